"""Clocks: that of a shared store, followed and never back, and steps that somebody made to one."""

from __future__ import annotations

import pytest

from nemo_agents.gateway import rim
from nemo_agents.gateway.rim import ClockSteps, SharedClock

S = 1_000_000


class Monotonic:
    """The monotonic clock in the test's hands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.us = 1_000 * S
        monkeypatch.setattr(rim.time, "monotonic_ns", lambda: self.us * 1000)

    def passes(self, us: int) -> None:
        self.us += us


@pytest.fixture
def monotonic(monkeypatch) -> Monotonic:
    return Monotonic(monkeypatch)


def read(clock: SharedClock, monotonic: Monotonic, theirs_us: int, *, takes_us: int = 0) -> None:
    asked = monotonic.us
    monotonic.passes(takes_us)
    clock.follow(theirs_us, asked_ns=asked * 1000, answered_ns=monotonic.us * 1000)


def test_the_first_reading_of_the_other_clock_counts_whatever_this_machine_thinks(monotonic):
    clock = SharedClock()
    noon = clock.now_us() - 3_600 * S
    read(clock, monotonic, noon)
    assert clock.now_us() == noon
    monotonic.passes(7)
    assert clock.now_us() == noon + 7


def test_a_reading_is_of_the_middle_of_the_time_it_took(monotonic):
    clock = SharedClock()
    read(clock, monotonic, 5_000 * S, takes_us=200)
    assert clock.now_us() == 5_000 * S + 100


def test_it_follows_forward_at_once_and_stands_still_for_what_is_a_little_behind(monotonic):
    clock = SharedClock()
    read(clock, monotonic, 5_000 * S)
    read(clock, monotonic, 9_000 * S)
    assert clock.now_us() == 9_000 * S
    read(clock, monotonic, 8_998 * S)
    assert clock.now_us() == 9_000 * S
    monotonic.passes(S)
    assert clock.now_us() == 9_000 * S
    monotonic.passes(2 * S)
    assert clock.now_us() == 9_001 * S


def test_a_step_back_opens_no_period_that_has_ended(monotonic):
    """An hour back, over midnight: the day that has begun stays, and goes on."""
    clock = SharedClock()
    midnight = 86_400 * S
    read(clock, monotonic, midnight + 60 * S)
    read(clock, monotonic, midnight - 3_540 * S)
    monotonic.passes(30 * S)
    assert clock.now_us() == midnight + 90 * S
    read(clock, monotonic, midnight + 120 * S)
    assert clock.now_us() == midnight + 120 * S


@pytest.mark.parametrize(
    ("step_us", "noticed"),
    [(0, False), (59 * S, False), (61 * S, True), (-4 * S, False), (-6 * S, True), (-86_400 * S, True)],
)
def test_a_step_is_noticed_once(step_us, noticed):
    steps, time_us, monotonic_us = ClockSteps(), 10**15, 10**9
    assert steps.look(time_us, monotonic_us) is None
    assert steps.look(time_us + 30 * S, monotonic_us + 30 * S) is None
    found = steps.look(time_us + 60 * S + step_us, monotonic_us + 60 * S)
    assert found == (step_us if noticed else None)
    assert steps.look(time_us + 90 * S + step_us, monotonic_us + 90 * S) is None
