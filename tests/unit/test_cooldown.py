"""When a deployment cools down, for how long, and how it comes back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nemo_agents.policy.cooldown import Cooldown, speaks_of_deployment
from nemo_agents.policy.faults import Fault

S = 1_000_000


def call(cooldown, now_us, *, ok, asked_for_ms=None):
    """Make a call that ends at once."""
    probe = cooldown.reserve(now_us)
    cooldown.sent(now_us, probe=probe)
    if ok:
        cooldown.succeeded(now_us, probe=probe)
    else:
        cooldown.failed(now_us, probe=probe, asked_for_ms=asked_for_ms)
    return probe


def cooled(now_us=0):
    cooldown = Cooldown()
    for _ in range(5):
        call(cooldown, now_us, ok=False)
    return cooldown


def test_five_faults_in_a_row_begin_it():
    cooldown = Cooldown()
    for _ in range(2):
        for _ in range(4):
            call(cooldown, 0, ok=False)
        assert (cooldown.state(0), cooldown.until_us(0), cooldown.faults_in_a_row) == ("ready", None, 4)
        for _ in range(10):
            call(cooldown, 0, ok=True)
    for _ in range(5):
        call(cooldown, 0, ok=False)
    assert (cooldown.state(0), cooldown.until_us(0)) == ("cooling", 5 * S)


def test_more_than_half_of_ten_begin_it():
    cooldown = Cooldown()
    pattern = [False, True, False, False, True, False, True, True, False, False]  # six of ten, never five in a row
    for n, ok in enumerate(pattern):
        assert cooldown.state(n * S) == "ready"
        call(cooldown, n * S, ok=ok)
    assert cooldown.state(9 * S) == "cooling"


def test_half_of_them_do_not():
    cooldown = Cooldown()
    for n in range(200):
        call(cooldown, n * S, ok=n % 2 == 1)
    assert cooldown.state(200 * S) == "ready"


def test_faults_of_more_than_a_minute_ago_are_forgotten():
    cooldown = Cooldown()
    for n in range(8):
        call(cooldown, n, ok=n % 4 == 3)  # six of eight
    call(cooldown, 66 * S, ok=True)
    call(cooldown, 66 * S, ok=False)
    assert cooldown.state(66 * S) == "ready"
    again = Cooldown()
    for n in range(8):
        call(again, n, ok=n % 4 == 3)
    call(again, 50 * S, ok=True)
    call(again, 50 * S, ok=False)
    assert again.state(50 * S) == "cooling"


def test_a_429_that_says_when_begins_one_at_once_for_as_long():
    cooldown = Cooldown()
    call(cooldown, 0, ok=False, asked_for_ms=1_500)
    assert cooldown.until_us(0) == 1_500_000
    assert cooldown.state(1_499_999) == "cooling"
    assert cooldown.state(1_500_000) == "probing"
    day = Cooldown()
    call(day, 0, ok=False, asked_for_ms=86_400_000)
    assert day.until_us(0) == 3_600 * S  # after an hour somebody looks again


def test_a_probe_that_succeeds_ends_it_and_all_is_forgotten():
    cooldown = cooled()
    assert call(cooldown, 5 * S, ok=True)
    assert (cooldown.state(5 * S), cooldown.faults_in_a_row) == ("ready", 0)
    for _ in range(4):
        call(cooldown, 5 * S, ok=False)
    assert cooldown.state(5 * S) == "ready"
    call(cooldown, 5 * S, ok=False)
    assert cooldown.until_us(5 * S) == 10 * S  # five seconds again


def test_each_probe_that_fails_doubles_it_up_to_a_minute():
    cooldown, now = cooled(), 0
    lengths = []
    for _ in range(7):
        until = cooldown.until_us(now)
        lengths.append((until - now) // S)
        now = until
        assert call(cooldown, now, ok=False)
    assert lengths == [5, 10, 20, 40, 60, 60, 60]


def test_one_probe_at_a_time():
    cooldown = cooled()
    now = 6 * S
    assert cooldown.until_us(now) is None
    assert cooldown.reserve(now)
    assert cooldown.until_us(now) is not None  # others are kept away
    assert not cooldown.reserve(now)
    cooldown.left(probe=True)  # the client went: the next call is the probe
    assert cooldown.until_us(now) is None
    assert cooldown.reserve(now)


def test_a_probe_that_is_lost_keeps_nobody_away_for_ever():
    cooldown = cooled()
    assert cooldown.reserve(6 * S)
    assert not cooldown.reserve(7 * S)
    assert cooldown.reserve(8 * S)  # the other was never sent
    cooldown.sent(8 * S, probe=True)
    assert not cooldown.reserve(127 * S)
    assert cooldown.reserve(128 * S)


def test_a_reservation_waits_with_its_call():
    cooldown = cooled()
    assert cooldown.reserve(6 * S, wait_us=8 * S)
    assert not cooldown.reserve(15 * S)
    assert cooldown.reserve(16 * S)


def test_calls_from_before_change_nothing_but_what_a_429_says():
    cooldown = cooled()
    cooldown.succeeded(1 * S, probe=False)
    assert cooldown.until_us(1 * S) == 5 * S
    cooldown.failed(1 * S, probe=False)
    assert cooldown.until_us(1 * S) == 5 * S
    cooldown.failed(1 * S, probe=False, asked_for_ms=9_000)
    assert cooldown.until_us(1 * S) == 10 * S


def test_asked_while_cooling_for_there_is_no_other_its_success_counts_and_its_failure_does_not_double():
    cooldown = cooled()
    assert call(cooldown, 1 * S, ok=False)
    assert cooldown.until_us(1 * S) == 5 * S
    assert call(cooldown, 2 * S, ok=True)
    assert cooldown.state(2 * S) == "ready"


@pytest.mark.parametrize(
    ("fault", "speaks"),
    [
        (Fault(status=None, sent=False), True),
        (Fault(status=None, timed_out=True), True),
        (Fault(status=None), True),
        (Fault(status=408), True),
        (Fault(status=429), True),
        (Fault(status=500), True),
        (Fault(status=529), True),
        (Fault(status=401), True),
        (Fault(status=403), True),
        (Fault(status=403, kind="content_filter"), False),
        (Fault(status=400), False),
        (Fault(status=400, kind="context_window"), False),
        (Fault(status=404), False),
        (Fault(status=409), False),
        (Fault(status=422), False),
        (Fault(status=202), False),
    ],
)
def test_what_speaks_of_the_deployment(fault, speaks):
    assert speaks_of_deployment(fault) is speaks


class CooldownMachine(RuleBasedStateMachine):
    """Calls that begin and end in any order, against a count kept the long way."""

    def __init__(self):
        super().__init__()
        self.cooldown = Cooldown()
        self.now = 1_000 * S
        self.open: list[bool] = []  # calls under way: whether each is the probe
        self.seen: list[tuple[int, bool]] = []  # end of calls while ready: when, whether a fault

    @property
    def ready(self):
        return self.cooldown.state(self.now) == "ready"

    @rule(seconds=st.integers(0, 70))
    def time_passes(self, seconds):
        self.now += seconds * S

    @rule()
    def begin(self):
        before = self.cooldown.until_us(self.now)
        state = self.cooldown.state(self.now)
        probe = self.cooldown.reserve(self.now)
        self.cooldown.sent(self.now, probe=probe)
        if state == "ready":
            assert not probe
        if state == "probing":
            assert probe is (before is None)
        self.open.append(probe)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), end=st.sampled_from(["ok", "fault", "left"]), asked=st.none() | st.integers(0, 90_000))
    def end(self, data, end, asked):
        probe = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        was_ready, former = self.ready, self.cooldown.until_us(self.now)
        if end == "left":
            self.cooldown.left(probe=probe)
            assert self.ready is was_ready
            return
        if end == "ok":
            self.cooldown.succeeded(self.now, probe=probe)
        else:
            self.cooldown.failed(self.now, probe=probe, asked_for_ms=asked)
        if was_ready and not (end == "ok" and probe):
            self.seen.append((self.now, end == "fault"))
        if was_ready:
            assert self.ready is not self.should_begin(end, asked)
        elif end == "ok":
            assert self.ready is probe
        else:
            assert not self.ready
            if former is not None and self.cooldown.state(self.now) == "cooling":
                assert self.cooldown.until_us(self.now) <= max(former, self.now + 90 * S)
        if self.ready is not was_ready or (end == "ok" and probe):
            self.seen.clear()

    def should_begin(self, end, asked):
        if end == "ok":
            return False
        recent = [fault for at, fault in self.seen if at // (5 * S) > self.now // (5 * S) - 12]
        in_a_row = [fault for _, fault in self.seen[-5:]]
        many = len(recent) >= 10 and sum(recent) * 2 > len(recent)
        return asked is not None or many or in_a_row == [True] * 5

    @invariant()
    def a_cooldown_ends(self):
        until = self.cooldown.until_us(self.now)
        assert until is None or self.now < until <= self.now + 130 * S

    @invariant()
    def there_is_one_probe_at_most_for_a_while(self):
        if self.cooldown.state(self.now) == "probing" and self.cooldown.until_us(self.now) is not None:
            assert any(self.open)


CooldownMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCooldownMachine = CooldownMachine.TestCase
