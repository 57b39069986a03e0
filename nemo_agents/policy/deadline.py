"""Until when a client waits for its answer, as far as it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nemo_agents.admin import headers as h

__all__ = ["deadline_us"]

_LONGEST_S: Final = 7 * 86_400


def deadline_us(headers: Mapping[str, str], started_us: int) -> int | None:
    """Return the time after which nobody waits for an answer any more; None when the client does not say.

    Read are `x-nemo-timeout-ms`, and `x-stainless-read-timeout` in seconds, in which the clients of OpenAI and
    Anthropic tell their own time-out. What is no number above 0 is not heeded.
    """
    for name, us in ((h.TIMEOUT_MS, 1e3), (h.STAINLESS_READ_TIMEOUT_S, 1e6)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            wait_us = float(text) * us
        except ValueError:
            continue
        if 0 < wait_us <= _LONGEST_S * 1e6:
            return started_us + int(wait_us)
    return None
