"""A refusal as a value: what the gateway answers when a policy says no."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_agents.errors import Code

__all__ = ["Refusal", "Tried"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One attempt at a provider that gave no answer. `status` is the provider's, None when there was none."""

    n: int
    provider: str
    model: str
    status: int | None
    error: str
    wait_ms: int = 0
    latency_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A policy no.

    `retry_after_ms` is set exactly when waiting that long can cure it; `resets_at_us` when a spent budget starts anew
    (microseconds since the epoch, UTC). `scope` is `run`, `key`, `role`, `fleet` or `model`;
    `limit` names the limit. `attempts` tells what was tried at providers, where that is what failed.
    """

    status: int
    code: Code
    message: str
    param: str | None = None
    scope: str | None = None
    limit: str | None = None
    retry_after_ms: int | None = None
    resets_at_us: int | None = None
    attempts: tuple[Tried, ...] = ()
