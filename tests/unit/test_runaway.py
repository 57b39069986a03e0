"""What a stream has cost at least while it passes, and when that has used up what was held for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.gateway.streaming import Meter
from nemo_agents.policy.pricing import TEXT_ONLY, Price, ServiceTier, cost_nanos, upper_bound_nanos
from nemo_agents.policy.settlement import output_nanos_per_mtok, settle_cut
from nemo_agents.policy.stream import StreamTally
from nemo_agents.policy.usage import Usage

PRICE = Price(input=10**9, cached_input=10**9, cache_write=10**9, output=2 * 10**9, version="v")


def piece(text="word", **delta):
    return {"choices": [{"index": 0, "delta": {"content": text, **delta}}]}


def tally_of(*chunks):
    tally = StreamTally(hide_usage=True)
    for chunk in chunks:
        tally.see(chunk)
    return tally


@pytest.mark.parametrize(
    ("chunks", "tokens"),
    [
        ([], 0),
        ([piece("")], 0),
        ([piece(None, role="assistant")], 0),
        ([piece(), piece(" and"), piece(" so")], 3),
        ([piece("x" * 128)], 1),
        ([piece("x" * 129)], 2),
        ([piece(None, reasoning_content="hm"), piece()], 2),
        ([piece(None, tool_calls=[{"index": 0, "function": {"name": "f", "arguments": '{"a"'}}])], 1),
        ([{"choices": [], "usage": {"completion_tokens": 9}}, {"error": "no"}, "[DONE]"], 0),
    ],
)
def test_every_piece_of_text_is_a_token_or_more(chunks, tokens):
    assert tally_of(*chunks).tokens_seen == tokens


@given(cap=st.integers(1, 300), tokens_in=st.integers(0, 500), answers=st.integers(1, 3))
def test_a_provider_that_obeys_its_cap_is_never_cut(cap, tokens_in, answers):
    """Also when it uses all of it: what was held has room for the input as well."""
    hold = upper_bound_nanos(PRICE, tokens_in + 1, cap * answers)
    tally = tally_of(*[piece()] * (cap * answers))
    assert not Meter(PRICE, hold, TEXT_ONLY).reached(tally)
    assert Meter(PRICE, hold, TEXT_ONLY).counted_nanos(tally) < hold


@given(hold=st.integers(1, 10**6), rate=st.integers(1, 10**10))
def test_one_that_does_not_is_cut_at_the_token_that_reaches_the_hold(hold, rate):
    price = replace(PRICE, output=rate)
    meter, last = Meter(price, hold, TEXT_ONLY), -(-hold * 10**6 // rate)
    tally = StreamTally(hide_usage=True)
    tally.tokens_seen = last - 1
    assert not meter.reached(tally)
    tally.tokens_seen = last
    assert meter.reached(tally)
    assert meter.counted_nanos(tally) >= hold
    assert cost_nanos(price, Usage(input_tokens=0, output_tokens=last)) == meter.counted_nanos(tally)


@pytest.mark.parametrize("price", [None, replace(PRICE, output=0)])
def test_what_costs_nothing_may_go_on(price):
    assert not Meter(price, 0, TEXT_ONLY).reached(tally_of(*[piece()] * 1000))


def test_a_cheaper_service_tier_that_was_asked_for_is_counted_at_its_price():
    flex = ServiceTier(name="flex", input=1, cached_input=1, cache_write=1, output=10**9)
    price = replace(PRICE, service_tiers=(flex,))
    assert output_nanos_per_mtok(price, TEXT_ONLY) == 2 * 10**9
    assert output_nanos_per_mtok(price, replace(TEXT_ONLY, service_tier="flex")) == 10**9


def test_a_cut_is_charged_at_the_hold_or_what_was_counted_beyond_it():
    assert settle_cut(counted_nanos=90, hold_nanos=100).amount_nanos == 100
    assert settle_cut(counted_nanos=101, hold_nanos=100).amount_nanos == 101
