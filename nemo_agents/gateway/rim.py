"""Where time, chance and ids come from; everything else gets them as arguments."""

from __future__ import annotations

import itertools
import random
import secrets
import time
from typing import Protocol

from nemo_agents.policy.grouping import REQUEST_ID_PREFIX
from nemo_agents.policy.keys import mint

__all__ = ["Clock", "ClockSteps", "Ids", "RandomIds", "SharedClock", "SystemClock", "chance"]

_STEP_BACK_US = 5_000_000
_STEP_FORWARD_US = 60_000_000


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


class SharedClock:
    """The clock of a store that many gateways share: a reading of it now and then, the monotonic clock in between.

    It never goes back. A reading that is a little behind makes it stand still for as long; one that is behind by more
    than five seconds is not followed, so that no period that has ended begins again.
    """

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self._last_us = 0
        self._read = False

    def now_us(self) -> int:
        """Return the time now."""
        now = time.monotonic_ns() // 1000 + self._offset_us
        if now < self._last_us:
            return self._last_us
        self._last_us = now
        return now

    def follow(self, theirs_us: int, *, asked_ns: int, answered_ns: int) -> None:
        """Take a reading of the other clock, made between two times of the monotonic clock."""
        offset_us = theirs_us - (asked_ns + answered_ns) // 2000
        if not self._read:  # what was told before was this machine's time, and no period
            self._read, self._offset_us, self._last_us = True, offset_us, 0
        elif offset_us >= self._offset_us - _STEP_BACK_US:
            self._offset_us = offset_us


class ClockSteps:
    """Notices when a clock was set, by comparing it with the monotonic clock now and then.

    What counts are steps of more than 5 seconds back or 60 seconds forward; a machine that slept has made one, too.
    """

    def __init__(self) -> None:
        self._offset_us: int | None = None

    def look(self, time_us: int, monotonic_us: int) -> int | None:
        """Return by how many microseconds the clock was set since the last look; None when it was not."""
        before, self._offset_us = self._offset_us, time_us - monotonic_us
        step_us = 0 if before is None else self._offset_us - before
        return step_us if step_us < -_STEP_BACK_US or step_us > _STEP_FORWARD_US else None


def chance() -> float:
    """Return a number from 0 up to, not including, 1: for a choice among equals, never for a secret."""
    return random.random()  # noqa: S311 - who guesses it knows which deployment is asked


class Ids(Protocol):
    """Fresh names and secrets."""

    def request_id(self) -> str:
        """Return an id for a request."""

    def key(self) -> str:
        """Return the full text of a new virtual key."""

    def grant_id(self) -> str:
        """Return an id for a grant."""

    def event_id(self) -> str:
        """Return an id for an event."""


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

    def event_id(self) -> str:
        """Return `evt_` and 64 random bits."""
        return "evt_" + secrets.token_hex(8)
