"""In which order the deployments of a group are asked: tiers, strategies, context, cooldown."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.groups import STRATEGIES
from nemo_agents.policy.routing import Target
from nemo_agents.policy.selection import LAST, Candidate, Choice, arrange, cooled_last, smoothed_us


def target(name, **fields) -> Target:
    return Target(provider="openai", model=name, deployment=name, **fields)


def candidate(name, *, in_flight=0, latency_us=None, cost_nanos=None, **fields) -> Candidate:
    return Candidate(target=target(name, **fields), in_flight=in_flight, latency_us=latency_us, cost_nanos=cost_nanos)


def drawn(*numbers: float) -> Callable[[], float]:
    """Chance that gives these numbers, one after the other, and the last of them from then on."""
    left = list(numbers)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def names(candidates, strategy="order", *, tokens_in=10, chance=None):
    chosen = arrange(candidates, strategy, tokens_in=tokens_in, chance=chance or drawn(0.5))
    return [(choice.target.model, choice.stage) for choice in chosen]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lower_tier_comes_first_whatever_the_strategy_says(strategy):
    """Here the later tier is idle, fast, free and heavy."""
    late = candidate("late", order=8, weight=100, latency_us=1, cost_nanos=0)
    early = candidate("early", order=3, in_flight=50, latency_us=10**9, cost_nanos=10**9)
    assert names([late, early], strategy) == [("early", 0), ("late", 1)]


def test_order_is_the_order_of_the_list():
    assert names([candidate("b"), candidate("a")]) == [("b", 0), ("a", 0)]


def test_weights_are_shares_of_the_calls():
    dice = random.Random(7)
    group = [candidate("a", weight=1), candidate("b", weight=3), candidate("c", weight=6)]
    n = 20_000
    orders = [[name for name, _ in names(group, "weighted", chance=dice.random)] for _ in range(n)]
    first = Counter(order[0] for order in orders)
    for name, share in (("a", 0.1), ("b", 0.3), ("c", 0.6)):
        spread = math.sqrt(n * share * (1 - share))
        assert abs(first[name] - n * share) < 5 * spread
    after_c = Counter(order[1] for order in orders if order[0] == "c")
    share = 0.25  # of what is left when c is gone: a weighs 1 of 4
    spread = math.sqrt(after_c.total() * share * (1 - share))
    assert abs(after_c["a"] - after_c.total() * share) < 5 * spread


def test_least_busy_counts_calls_in_flight_by_weight():
    group = [candidate("a", in_flight=2), candidate("b", in_flight=5, weight=3), candidate("c", in_flight=3, weight=1)]
    assert [name for name, _ in names(group, "least-busy")] == ["b", "a", "c"]


def test_least_busy_chooses_among_equals_by_chance():
    group = [candidate("a"), candidate("b")]
    assert [name for name, _ in names(group, "least-busy", chance=drawn(0.9, 0.1))] == ["b", "a"]
    assert [name for name, _ in names(group, "least-busy", chance=drawn(0.1, 0.9))] == ["a", "b"]


def test_lowest_latency_asks_the_unknown_first_then_the_fastest():
    group = [candidate("slow", latency_us=900), candidate("fast", latency_us=100), candidate("new")]
    assert [name for name, _ in names(group, "lowest-latency")] == ["new", "fast", "slow"]


def test_lowest_latency_now_and_then_asks_any():
    group = [candidate("fast", latency_us=100), candidate("slow", latency_us=900)]
    exploring = drawn(0.5, 0.5, 0.04, 0.99)  # two ties, then whether, then which
    assert [name for name, _ in names(group, "lowest-latency", chance=exploring)] == ["slow", "fast"]
    dice = random.Random(3)
    first = Counter(names(group, "lowest-latency", chance=dice.random)[0][0] for _ in range(10_000))
    assert 150 < first["slow"] < 350  # half of a twentieth


def test_lowest_cost_asks_the_unknown_last():
    group = [candidate("unknown"), candidate("dear", cost_nanos=9), candidate("free", cost_nanos=0)]
    assert [name for name, _ in names(group, "lowest-cost")] == ["free", "dear", "unknown"]


# --- context
def test_what_is_too_small_is_passed_over_where_something_larger_is():
    group = [
        candidate("small", context_tokens=99),
        candidate("exact", order=1, context_tokens=100),
        candidate("unknown", order=2),
    ]
    assert names(group, tokens_in=100) == [("exact", 0), ("unknown", 1)]
    assert names(group, tokens_in=99) == [("small", 0), ("exact", 1), ("unknown", 2)]


def test_when_nothing_is_large_enough_all_stay_the_largest_first():
    group = [candidate("small", context_tokens=8), candidate("large", order=5, context_tokens=16)]
    assert names(group, tokens_in=100) == [("large", 0), ("small", 1)]


# --- cooldown
def test_what_is_cooling_down_comes_last_the_soonest_ready_first():
    choices = [Choice(target=target(name), stage=n) for n, name in enumerate("abcd")]
    until = {"a": 500, "c": 300}
    found = cooled_last(choices, lambda one: until.get(one.model))
    assert [(choice.target.model, choice.stage) for choice in found] == [("b", 1), ("d", 3), ("c", LAST), ("a", LAST)]
    everything = cooled_last(choices, lambda one: ord(one.model))
    assert [choice.target.model for choice in everything] == list("abcd")


@given(
    st.lists(
        st.builds(
            candidate,
            st.uuids().map(str),
            in_flight=st.integers(0, 5),
            latency_us=st.none() | st.integers(0, 100),
            cost_nanos=st.none() | st.integers(0, 100),
            order=st.integers(0, 3),
            weight=st.integers(1, 10_000),
            context_tokens=st.none() | st.integers(1, 200),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(STRATEGIES),
    st.integers(0, 300),
    st.randoms(use_true_random=False),
)
def test_nobody_is_asked_twice_and_there_is_always_somebody(group, strategy, tokens_in, dice):
    chosen = arrange(group, strategy, tokens_in=tokens_in, chance=dice.random)
    found = [choice.target for choice in chosen]
    assert chosen
    assert len(set(found)) == len(found)
    assert set(found) <= {one.target for one in group}
    assert [choice.stage for choice in chosen] == sorted(choice.stage for choice in chosen)
    fits = {one.target for one in group if one.target.context_tokens is None or one.target.context_tokens >= tokens_in}
    assert set(found) == (fits or {one.target for one in group})
    if fits:
        assert [one.order for one in found] == sorted(one.order for one in found)


# --- latency
def test_latency_is_a_mean_that_forgets():
    assert smoothed_us(None, 500) == 500
    assert smoothed_us(1_000, 0) == 800
    mean = 10_000
    for _ in range(40):
        mean = smoothed_us(mean, 100)
    assert 100 <= mean < 110
