"""When a deployment is out of every pick for a while, and how it comes back.

A deployment is `ready`, until its faults say otherwise; then it is `cooling` for a time; after that one call at a time
is a probe (`probing`), which ends the cooldown when it succeeds and doubles it when it fails.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

from nemo_agents.policy.faults import Fault

__all__ = ["Cooldown", "State", "speaks_of_deployment"]

State = Literal["ready", "cooling", "probing"]

_IN_A_ROW: Final = 5
_CALLS_MIN: Final = 10
_SLOT_US: Final = 5_000_000
_SLOTS: Final = 12  # that is, 60 seconds
_FIRST_US: Final = 5_000_000
_LONGEST_US: Final = 60_000_000
_ASKED_FOR_MAX_US: Final = 3_600_000_000  # a provider may ask for a day; an hour later somebody looks again
_RESERVED_US: Final = 2_000_000  # what is to be the probe has to be sent within this time
_PROBE_US: Final = 120_000_000  # after so long without a word a probe is lost, and another may go
_CREDENTIALS: Final = frozenset({401, 403})
_BUSY: Final = frozenset({408, 429})


def speaks_of_deployment(fault: Fault) -> bool:
    """Say whether a failure says something about the deployment, and not only about the request.

    No connection, no answer in time or a broken one, 408, 429 and 5xx do, and so do 401 and 403, by which a provider
    refuses the gateway's credentials.
    """
    if fault.kind is not None:
        return False
    return fault.status is None or fault.status >= 500 or fault.status in _BUSY or fault.status in _CREDENTIALS


class Cooldown:
    """The cooldown of one deployment. Times are of one clock, in microseconds, and may stand still.

    It begins with five faults in a row, or with more than half of at least ten calls of the last 60 seconds, and lasts
    5 seconds, doubling with each failed probe up to 60. A 429 that says when to come back begins one at once, as long
    as it says.
    """

    __slots__ = ("_failed_probes", "_in_a_row", "_probe_until_us", "_slots", "_until_us")

    def __init__(self) -> None:
        self._until_us: int | None = None  # None: ready
        self._probe_until_us: int | None = None  # None: no probe is under way
        self._failed_probes = 0
        self._in_a_row = 0
        self._slots: deque[list[int]] = deque()  # of 5 seconds each: number, calls, faults

    def state(self, now_us: int) -> State:
        """Return how it stands; `probing` from when the next call may be a probe."""
        if self._until_us is None:
            return "ready"
        return "cooling" if now_us < self._until_us else "probing"

    @property
    def ready(self) -> bool:
        """Whether it is ready, at any time: nothing has to be reserved or told of a call then but how it ended."""
        return self._until_us is None

    @property
    def faults_in_a_row(self) -> int:
        """How many of the latest calls in a row were faults, while ready."""
        return self._in_a_row

    def until_us(self, now_us: int) -> int | None:
        """Return until when it is not to be picked; None when it may be now, be it as a probe."""
        if self._until_us is None:
            return None
        if now_us < self._until_us:
            return self._until_us
        return self._probe_until_us if self._probing(now_us) else None

    def reserve(self, now_us: int, *, wait_us: int = 0) -> bool:
        """Note that a call is about to be made, in `wait_us`; say whether it is the probe, as its end has to again."""
        if self._until_us is None or self._probing(now_us):
            return False
        self._probe_until_us = now_us + wait_us + _RESERVED_US
        return True

    def sent(self, now_us: int, *, probe: bool) -> None:
        """Note that the call that was reserved for is on its way."""
        if probe and self._until_us is not None:
            self._probe_until_us = now_us + _PROBE_US

    def succeeded(self, now_us: int, *, probe: bool) -> None:
        """Note an answer. That of a probe ends the cooldown; that of a call from before it changes nothing."""
        if probe:
            self._make_ready()
        elif self._until_us is None:
            self._in_a_row = 0
            self._count(now_us, 0)

    def failed(self, now_us: int, *, probe: bool, asked_for_ms: int | None = None) -> None:
        """Note a fault that speaks of the deployment; `asked_for_ms` is what a 429 said about when to come back."""
        asked_us = None if asked_for_ms is None else now_us + min(asked_for_ms * 1000, _ASKED_FOR_MAX_US)
        if probe:
            self._probe_until_us = None
        if self._until_us is not None:
            if probe and now_us >= self._until_us:
                self._failed_probes += 1
                self._until_us = now_us + self._length_us()
            self._until_us = max(self._until_us, asked_us or 0)
            return
        self._in_a_row += 1
        self._count(now_us, 1)
        calls, faults = sum(slot[1] for slot in self._slots), sum(slot[2] for slot in self._slots)
        if asked_us is not None:
            self._until_us = asked_us
        elif self._in_a_row >= _IN_A_ROW or (calls >= _CALLS_MIN and faults * 2 > calls):
            self._until_us = now_us + self._length_us()

    def left(self, *, probe: bool) -> None:
        """Note that a call ended without a word on the deployment: the next one is the probe then."""
        if probe:
            self._probe_until_us = None

    def _length_us(self) -> int:
        return min(_LONGEST_US, _FIRST_US << min(self._failed_probes, 8))

    def _probing(self, now_us: int) -> bool:
        return self._probe_until_us is not None and now_us < self._probe_until_us

    def _make_ready(self) -> None:
        self._until_us = self._probe_until_us = None
        self._failed_probes = self._in_a_row = 0
        self._slots.clear()

    def _count(self, now_us: int, faults: int) -> None:
        """Count a call; what is kept are the calls and faults of the last 60 seconds, to within a slot."""
        number = now_us // _SLOT_US
        slots = self._slots
        if not slots or slots[-1][0] != number:
            while slots and slots[0][0] <= number - _SLOTS:
                slots.popleft()
            slots.append([number, 0, 0])
        latest = slots[-1]
        latest[1] += 1
        latest[2] += faults
