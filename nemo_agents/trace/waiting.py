"""Whether a refused or lost call is sent again, and after which wait: the one retry policy of the SDK.

A refusal that waiting cures says so in `retry-after`, and a client that waits that long succeeds. A lost connection is
tried again, as the request may never have arrived. Everything else is told to the caller at once: a gateway that has
retried at its providers is not asked to do so again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from nemo_agents.errors import Code, GatewayError, GatewayUnavailable, RateLimited

__all__ = ["SYSTEM_SLEEPER", "WAIT_MAX_S", "Sleeper", "wait_after_loss_s", "wait_after_refusal_s"]

WAIT_MAX_S: Final = 120.0
_FIRST_BACKOFF_S: Final = 0.5
_BACKOFF_MAX_S: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleeper:
    """How clients wait, in seconds. The blocking one lets a signal's exception through, the other can be cancelled."""

    sleep: Callable[[float], None]
    asleep: Callable[[float], Awaitable[None]]


SYSTEM_SLEEPER: Final = Sleeper(sleep=time.sleep, asleep=asyncio.sleep)


def wait_after_refusal_s(
    error: GatewayError, *, told_not_to: bool, tries_left: int, left_s: float | None
) -> float | None:
    """Return the seconds to wait before a refused call is sent again, None when it is not.

    `told_not_to` is the gateway's `x-should-retry: false`, `tries_left` how often it may still be sent, `left_s` the
    time to the step's deadline (None: none, and a wait is at most `WAIT_MAX_S`).
    """
    if tries_left <= 0 or told_not_to:
        return None
    if not isinstance(error, (RateLimited, GatewayUnavailable)) or error.code == Code.LOOP_DETECTED:
        return None
    wait_s = error.retry_after_s
    return wait_s if wait_s is not None and _fits(wait_s, left_s) else None


def wait_after_loss_s(*, lost: int, tries_left: int, left_s: float | None) -> float | None:
    """Return the seconds to wait after the connection was lost for the `lost`-th time (from 1), None to give up.

    They double from half a second to eight.
    """
    if tries_left <= 0:
        return None
    wait_s: float = min(_FIRST_BACKOFF_S * 2.0 ** (lost - 1), _BACKOFF_MAX_S)
    return wait_s if _fits(wait_s, left_s) else None


def _fits(wait_s: float, left_s: float | None) -> bool:
    return wait_s <= WAIT_MAX_S if left_s is None else wait_s < left_s
