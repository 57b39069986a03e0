from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.errors import Code
from nemo_agents.policy.limits import (
    WINDOW_US,
    Admitted,
    Allowed,
    Never,
    RateScope,
    RateWindow,
    RateWindows,
    SlotLease,
    TokenCharge,
    Wait,
)
from nemo_agents.policy.rates import format_reset, rate_headers
from nemo_agents.policy.refusal import Refusal

unhurried = settings(deadline=None)  # a busy machine is not a failure

SECOND = 1_000_000
T0 = 1_800_000_000 * SECOND


def role(**limits):
    return RateScope(kind="role", id="g1", name="researcher", **limits)


def fleet(**limits):
    return RateScope(kind="fleet", id="crew", **limits)


def headers_of(windows, now_us, scopes):
    return rate_headers(windows.readings(now_us, scopes))


def worst_minute(admitted):
    """Return the largest weight in any half-open 60 seconds, by definition: try every one that ends at a charge."""
    return max(
        (sum(weight for at, weight in admitted if end - WINDOW_US < at <= end) for end, _ in admitted), default=0
    )


_gaps = st.one_of(st.integers(0, 30_000), st.integers(0, 5 * SECOND), st.integers(WINDOW_US - 3, WINDOW_US + 3))
# The same arrivals meet an exact window, and one that merges: above a limit of 1,000 charges share entries.
_arrivals = st.lists(st.tuples(_gaps, st.integers(1, 7)), max_size=60)


@unhurried
@given(_arrivals, st.integers(1, 20), st.sampled_from([1, 200]))
def test_no_minute_holds_more_than_the_limit(arrivals, limit, scale):
    window, now, admitted = RateWindow(), T0, []
    for gap, weight in arrivals:
        now += gap
        if isinstance(window.check(now, weight * scale, limit * scale), Allowed):
            window.charge(now, weight * scale, limit * scale)
            admitted.append((now, weight * scale))
    assert worst_minute(admitted) <= limit * scale


@unhurried
@given(_arrivals, st.integers(1, 20))
def test_up_to_a_thousand_nothing_is_refused_that_fits(arrivals, limit):
    window, now, admitted = RateWindow(), T0, []
    for gap, weight in arrivals:
        now += gap
        used = sum(w for at, w in admitted if now - WINDOW_US < at)
        assert isinstance(window.check(now, weight, limit), Allowed) == (used + weight <= limit)
        assert window.used(now) == used
        assert window.remaining(now, limit) == max(0, limit - used)
        if used + weight <= limit:
            window.charge(now, weight, limit)
            admitted.append((now, weight))


@unhurried
@given(_arrivals, st.integers(1, 20), st.sampled_from([1, 200]))
def test_who_waits_exactly_as_told_succeeds_and_not_a_microsecond_earlier(arrivals, limit, scale):
    window, now = RateWindow(), T0
    for gap, weight in arrivals:
        now += gap
        answer = window.check(now, weight * scale, limit * scale)
        if isinstance(answer, Never):
            assert weight > limit
            continue
        if isinstance(answer, Wait):
            assert 0 < answer.retry_after_us <= WINDOW_US
            early = window.check(now + answer.retry_after_us - 1, weight * scale, limit * scale)
            assert early == Wait(1)
            now += answer.retry_after_us
            assert window.check(now, weight * scale, limit * scale) == Allowed()
        window.charge(now, weight * scale, limit * scale)


@unhurried
@given(st.lists(st.tuples(_gaps, st.integers(1, 500)), min_size=1, max_size=60))
def test_above_a_thousand_a_charge_stays_at_most_60_ms_too_long(arrivals):
    limit, window, now, charged = 10**6, RateWindow(), T0, []
    for gap, weight in arrivals:
        now += gap
        window.charge(now, weight, limit)
        charged.append((now, weight))
        used = window.used(now)
        assert used >= sum(w for at, w in charged if now - WINDOW_US < at)
        assert used <= sum(w for at, w in charged if now - WINDOW_US - 60_000 < at)


def test_a_window_has_about_a_thousand_entries_whatever_happens():
    for limit in (None, 10**6, 1000):
        window = RateWindow()
        for step in range(50_000):
            entry = window.charge(T0 + step * 1000, 1, limit)
            if limit == 1000:
                window.settle(entry, -1)  # given back at once: use never reaches the limit
        assert len(window._entries) <= 2_100


_operations = st.lists(st.tuples(_gaps, st.integers(1, 50), st.integers(0, 80)), min_size=1, max_size=30)


@unhurried
@given(_operations, st.sampled_from([100, 50_000]))
def test_settling_leaves_what_was_used_in_the_first_place(operations, limit):
    """Estimates settled to actuals give the same window as charging the actuals at the same times."""
    estimated, exact, now = RateWindow(), RateWindow(), T0
    charges = []
    for gap, estimate, actual in operations:
        now += gap
        charges.append((estimated.charge(now, estimate, limit), actual - estimate))
        exact.charge(now, actual, limit)
    for entry, difference in reversed(charges):
        estimated.settle(entry, difference)
    for later in (0, 30 * SECOND, WINDOW_US - 1, WINDOW_US):
        assert estimated.used(now + later) == exact.used(now + later)
    assert estimated.used(now + WINDOW_US) == 0


def test_what_is_given_back_is_at_most_the_charge():
    window = RateWindow()
    entry = window.charge(T0, 5, 10)
    with pytest.raises(ValueError, match="cannot give back"):
        window.settle(entry, -6)
    window.settle(entry, -5)
    assert window.used(T0) == 0
    assert window.reset_us(T0) == 0


def test_a_late_settlement_does_nothing():
    window = RateWindow()
    entry = window.charge(T0, 5, 10)
    assert window.used(T0 + WINDOW_US) == 0
    window.settle(entry, 100)
    assert window.used(T0 + WINDOW_US) == 0


def test_a_limit_may_change_without_losing_history():
    window = RateWindow()
    for second in range(10):
        window.charge(T0 + second * SECOND, 1, None)
    now = T0 + 10 * SECOND
    assert window.check(now, 1, 11) == Allowed()
    assert window.check(now, 1, 10) == Wait(50 * SECOND)
    assert window.check(now, 1, 5) == Wait(55 * SECOND)
    assert window.remaining(now, 5) == 0
    assert window.check(now, 1, 0) == Never()


def test_a_clock_that_steps_back_gives_nothing_away():
    window = RateWindow()
    window.charge(T0, 5, 5)
    back = T0 - 30 * SECOND
    answer = window.check(back, 1, 5)
    assert answer == Wait(90 * SECOND)
    window.charge(back, 1, 6)
    assert window.used(T0 + WINDOW_US - 1) == 6


# --- the registry ----------------------------------------------------------------------------------------------------


def test_rpm_refusal_says_which_limit_and_when():
    windows = RateWindows()
    scopes = [role(rpm=2), fleet(rpm=100)]
    assert isinstance(windows.admit_requests(T0, scopes), Admitted)
    assert isinstance(windows.admit_requests(T0 + SECOND, scopes), Admitted)
    refusal = windows.admit_requests(T0 + 2 * SECOND + 1, scopes)
    assert refusal == Refusal(
        status=429,
        code=Code.RATE_LIMIT_EXCEEDED,
        message="Role researcher has used its limit of 2 requests per minute (rpm). Retry in 58 s.",
        scope="role",
        limit="rpm",
        retry_after_ms=58_000,  # 57.999999 s, rounded up
    )
    assert isinstance(windows.admit_requests(T0 + 2 * SECOND + 1 + 58_000 * 1000, scopes), Admitted)


def test_all_scopes_admit_or_none_counts():
    windows = RateWindows()
    assert isinstance(windows.admit_requests(T0, [fleet(rpm=1)]), Admitted)
    refusal = windows.admit_requests(T0, [role(rpm=5), fleet(rpm=1)])
    assert isinstance(refusal, Refusal)
    assert refusal.scope == "fleet"
    assert windows.used(T0, "role", "g1") == (0, 0)


def test_the_slowest_scope_tells_the_time():
    windows = RateWindows()
    windows.admit_requests(T0, [role(rpm=1)])
    windows.admit_requests(T0 + 20 * SECOND, [fleet(rpm=1)])
    now = T0 + 30 * SECOND
    scopes = [role(rpm=1), fleet(rpm=1)]
    refusal = windows.admit_requests(now, scopes)
    assert isinstance(refusal, Refusal)
    assert (refusal.scope, refusal.retry_after_ms) == ("fleet", 50_000)
    assert isinstance(windows.admit_requests(now + 50 * SECOND, scopes), Admitted)


_calls = st.lists(
    st.tuples(st.integers(0, 20 * SECOND), st.sampled_from(["a", "b"]), st.integers(1, 40)), min_size=1, max_size=40
)


@unhurried
@given(_calls, st.integers(1, 6), st.integers(1, 8), st.integers(20, 60))
def test_waiting_as_told_succeeds_over_several_scopes(calls, rpm, fleet_rpm, tpm):
    windows, now = RateWindows(), T0
    for gap, name, tokens in calls:
        now += gap
        scopes = [RateScope(kind="role", id=name, rpm=rpm, tpm=tpm), fleet(rpm=fleet_rpm, tpm=2 * tpm)]
        for admit in (windows.admit_requests, lambda at, asked, n=tokens: windows.admit_tokens(at, asked, n)):
            answer = admit(now, scopes)
            if isinstance(answer, Refusal) and answer.retry_after_ms is not None:
                now += answer.retry_after_ms * 1000
                answer = admit(now, scopes)
            if isinstance(answer, Refusal):
                assert tokens > tpm, "only what can never pass is refused after waiting"


def test_tokens_are_charged_by_estimate_and_settled():
    windows = RateWindows()
    scopes = [role(tpm=1000), fleet(tpm=5000)]
    first = windows.admit_tokens(T0, scopes, 900)
    assert isinstance(first, TokenCharge)
    refusal = windows.admit_tokens(T0 + SECOND, scopes, 200)
    assert isinstance(refusal, Refusal)
    assert (refusal.limit, refusal.scope, refusal.retry_after_ms) == ("tpm", "role", 59_000)
    assert "1,000 tokens per minute (tpm), and this request needs about 200" in refusal.message
    windows.settle_tokens(first, 300)
    assert windows.used(T0 + SECOND, "role", "g1") == (0, 300)
    assert windows.used(T0 + SECOND, "fleet", "crew") == (0, 300)
    second = windows.admit_tokens(T0 + SECOND, scopes, 200)
    assert isinstance(second, TokenCharge)
    windows.settle_tokens(second, 0)
    assert windows.used(T0 + SECOND, "role", "g1") == (0, 300)


def test_a_charge_resolves_once():
    windows = RateWindows()
    charge = windows.admit_tokens(T0, [role(tpm=1000)], 900)
    assert isinstance(charge, TokenCharge)
    windows.settle_tokens(charge, 300)
    windows.settle_tokens(charge, 0)
    windows.settle_tokens(charge, 800)
    assert windows.used(T0, "role", "g1") == (0, 300)


def test_a_call_that_used_more_than_the_limit_leaves_a_debt():
    windows = RateWindows()
    charge = windows.admit_tokens(T0, [role(tpm=1000)], 10)
    assert isinstance(charge, TokenCharge)
    windows.settle_tokens(charge, 4000)
    assert headers_of(windows, T0, [role(tpm=1000)])["x-ratelimit-remaining-tokens"] == "0"
    refusal = windows.admit_tokens(T0 + SECOND, [role(tpm=1000)], 1)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_ms == 59_000
    with pytest.raises(ValueError, match="at least 0"):
        windows.settle_tokens(charge, -1)


def test_what_can_never_pass_has_no_retry_after():
    windows = RateWindows()
    refusal = windows.admit_tokens(T0, [role(tpm=1000)], 1001)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_ms is None
    assert "waiting does not help" in refusal.message
    nothing = windows.admit_requests(T0, [role(rpm=0)])
    assert isinstance(nothing, Refusal)
    assert nothing.retry_after_ms is None


def test_the_rpm_slot_stays_used_when_a_later_check_refuses():
    windows = RateWindows()
    scopes = [role(rpm=1, tpm=10)]
    assert isinstance(windows.admit_requests(T0, scopes), Admitted)
    assert isinstance(windows.admit_tokens(T0, scopes, 11), Refusal)
    assert isinstance(windows.admit_requests(T0, scopes), Refusal)


def test_calls_in_flight():
    windows = RateWindows()
    scopes = [role(max_parallel=2), fleet(max_parallel=3)]
    leases = [windows.acquire(T0, scopes) for _ in range(2)]
    refusal = windows.acquire(T0, scopes)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.limit, refusal.scope) == (429, "max_parallel", "role")
    assert refusal.retry_after_ms is not None
    other = RateScope(kind="role", id="g2", max_parallel=2)
    assert isinstance(windows.acquire(T0, [other, scopes[1]]), SlotLease)
    crowded = windows.acquire(T0, [other, scopes[1]])
    assert isinstance(crowded, Refusal)
    assert crowded.scope == "fleet"
    windows.release(leases[0])
    windows.release(leases[0])  # again, without effect
    assert isinstance(windows.acquire(T0, scopes), SlotLease)
    assert isinstance(windows.acquire(T0, scopes), Refusal)


def test_headers_show_the_tightest_scope():
    windows = RateWindows()
    scopes = [role(rpm=30, tpm=100_000), fleet(rpm=10)]
    assert headers_of(windows, T0, scopes) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "10",
        "x-ratelimit-reset-requests": "0s",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": "100000",
        "x-ratelimit-reset-tokens": "0s",
        "ratelimit-policy": '"rpm";q=10;w=60, "tpm";q=100000;w=60;qu="tokens"',
        "ratelimit": '"rpm";r=10;t=0, "tpm";r=100000;t=0',
    }
    windows.admit_requests(T0, scopes)
    windows.admit_tokens(T0, scopes, 400)
    headers = headers_of(windows, T0 + 59 * SECOND + 880_000, scopes)
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-reset-requests"] == "120ms"
    assert headers["x-ratelimit-remaining-tokens"] == "99600"
    assert headers_of(windows, T0, [role(), fleet()]) == {}


@pytest.mark.parametrize(
    ("reset_us", "text"),
    [(0, "0s"), (1, "1ms"), (120_000, "120ms"), (SECOND, "1s"), (SECOND + 1, "2s"), (360 * SECOND, "6m0s")],
)
def test_reset_texts(reset_us, text):
    assert format_reset(reset_us) == text


@dataclass(frozen=True)
class Use:
    grant_id: str
    fleet: str | None
    at_us: int
    tokens: int
    model: str | None = None


def test_a_restart_does_not_start_limits_anew():
    windows = RateWindows()
    windows.restore(
        T0,
        [
            Use("g1", "crew", T0 - 70 * SECOND, 500),
            Use("g1", "crew", T0 - 50 * SECOND, 30),
            Use("g2", None, T0 - 40 * SECOND, 5),
            Use("g1", "crew", T0 + 3 * SECOND, 40),  # another clock's future counts as now
        ],
    )
    assert windows.used(T0, "role", "g1") == (2, 70)
    assert windows.used(T0, "fleet", "crew") == (2, 70)
    assert windows.used(T0, "role", "g2") == (1, 5)
    refusal = windows.admit_requests(T0, [role(rpm=2)])
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_ms == 10_000


def test_idle_windows_are_dropped_and_busy_ones_kept():
    windows = RateWindows()
    for n in range(100):
        windows.admit_requests(T0, [RateScope(kind="role", id=f"g{n}")])
    lease = windows.acquire(T0, [RateScope(kind="role", id="busy", max_parallel=1)])
    windows.admit_requests(T0 + 61 * SECOND, [role()])
    assert len(windows) == 2
    assert isinstance(windows.acquire(T0 + 61 * SECOND, [RateScope(kind="role", id="busy", max_parallel=1)]), Refusal)
    assert isinstance(lease, SlotLease)
    windows.release(lease)
    windows.admit_requests(T0 + 122 * SECOND, [role()])
    assert len(windows) == 1


def test_the_fastest_legal_client_gets_its_whole_limit():
    """A client that always waits as told gets exactly its limit per minute on average, not less."""
    windows, now, admitted = RateWindows(), T0, 0
    while now < T0 + 10 * WINDOW_US:
        answer = windows.admit_requests(now, [role(rpm=30)])
        if isinstance(answer, Refusal):
            assert answer.retry_after_ms is not None
            now += answer.retry_after_ms * 1000
        else:
            admitted += 1
    assert Fraction(admitted, 10) == 30


def test_a_limit_in_mode_shadow_counts_and_never_refuses():
    windows = RateWindows()
    shadow = role(rpm=1, tpm=100, max_parallel=1, shadow=frozenset({"rpm", "tpm", "max_parallel"}))
    scopes = [shadow, fleet(rpm=3, tpm=250, max_parallel=3)]
    assert [len(windows.admit_requests(T0, scopes).shadowed) for _ in range(3)] == [0, 1, 1]
    assert windows.admit_requests(T0, scopes).scope == "fleet", "the other limit still refuses"
    assert [len(windows.admit_tokens(T0, scopes, 100).shadowed) for _ in range(2)] == [0, 1]
    assert windows.admit_tokens(T0, scopes, 101).scope == "fleet"
    assert [len(windows.acquire(T0, scopes).shadowed) for _ in range(3)] == [0, 1, 1]
    assert windows.used(T0, "role", "g1") == (3, 200)


def test_a_restart_restores_the_windows_of_one_model_too():
    windows = RateWindows()
    windows.restore(T0, [Use("g1", "crew", T0 - SECOND, 30, "gpt-4o")])
    assert windows.used(T0, "model", "g1/gpt-4o") == (1, 30)


def test_a_window_may_be_of_another_length():
    window = RateWindow(1_000)
    window.charge(T0, 5, 5)
    assert window.check(T0 + 999, 1, 5) == Wait(1)
    assert window.check(T0 + 1_000, 1, 5) == Allowed()
    assert window.log() == []
