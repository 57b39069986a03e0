"""Where time, chance and ids come from; everything else gets them as arguments."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Protocol

from nemo_agents.policy.grouping import REQUEST_ID_PREFIX
from nemo_agents.policy.keys import mint

__all__ = ["Clock", "Ids", "RandomIds", "SystemClock"]


class Clock(Protocol):
    """The time of day, in microseconds since the epoch (UTC)."""

    def now_us(self) -> int:
        """Return the time now."""


class SystemClock:
    """The machine's clock, made monotonic: it is read once at start and then follows the monotonic clock.

    A step backwards of the machine's clock therefore never reopens a closed minute or day while the gateway runs.
    """

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        """Return the time now; follows forward steps of the machine's clock of more than a second."""
        now = time.monotonic_ns() // 1000 + self._offset_us
        ahead = time.time_ns() // 1000 - now
        if ahead > 1_000_000:
            self._offset_us += ahead
            now += ahead
        return now


class Ids(Protocol):
    """Fresh names and secrets."""

    def request_id(self) -> str:
        """Return an id for a request."""

    def key(self) -> str:
        """Return the full text of a new virtual key."""

    def grant_id(self) -> str:
        """Return an id for a grant."""


class RandomIds:
    """Ids and secrets from the operating system's randomness.

    A request's id names it and opens nothing, so it is counted up from a random start: asking the system for
    randomness costs more than anything else a request does in Python.
    """

    def __init__(self) -> None:
        self._process = secrets.token_hex(6)
        self._requests = itertools.count(secrets.randbits(32))

    def request_id(self) -> str:
        """Return `req_`, 48 random bits of this process, and a count."""
        return f"{REQUEST_ID_PREFIX}{self._process}{next(self._requests) & 0xFFFF_FFFF_FFFF:012x}"

    def key(self) -> str:
        """Return the full text of a new virtual key, of 190 random bits."""
        return mint(secrets.choice)[1]

    def grant_id(self) -> str:
        """Return `g_` and 64 random bits."""
        return "g_" + secrets.token_hex(8)
