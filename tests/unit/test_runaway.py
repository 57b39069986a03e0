"""What a stream has cost at least while it passes, and when that has used up what was held for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.gateway.streaming import Meter
from nemo_agents.policy.pricing import TEXT_ONLY, Price, ServiceTier, cost_nanos, upper_bound_nanos
from nemo_agents.policy.settlement import output_nanos_per_mtok, settle_broken, settle_cut
from nemo_agents.policy.stream import StreamTally
from nemo_agents.policy.usage import Usage, usage_from_openai

PRICE = Price(input=10**9, cached_input=10**9, cache_write=10**9, output=2 * 10**9, version="v")

DONE = "[DONE]"


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


@pytest.mark.parametrize(
    ("counted", "told", "amount"),
    [(90, None, 100), (101, None, 101), (101, 30, 101), (101, 130, 130), (90, 99, 100), (101, 10**18 + 1, 101)],
)
def test_a_cut_is_charged_at_the_most_of_its_hold_what_was_counted_and_what_it_said(counted, told, amount):
    assert settle_cut(counted_nanos=counted, told_nanos=told, hold_nanos=100).amount_nanos == amount


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, ("expire", 100)),
        (3, ("expire", 100)),
        (100, ("expire", 100)),
        (101, ("post", 101)),
        (2 * 10**18, ("expire", 100)),
    ],
)
def test_a_broken_answer_is_charged_at_its_hold_or_at_more_that_it_said_already(told, expected):
    settled = settle_broken(told_nanos=told, hold_nanos=100)
    assert (settled.kind, settled.amount_nanos) == expected


# --- the end of a stream --------------------------------------------------------------------------------------------
SPENT = {"prompt_tokens": 1, "completion_tokens": 2}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
STOP_1 = {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
LAST = {"choices": [], "usage": SPENT}


def with_usage(chunk):
    return {**chunk, "usage": SPENT}


@pytest.mark.parametrize(
    ("answers", "chunks", "ended", "whole"),
    [
        (1, [piece(), STOP, LAST, DONE], True, True),
        (1, [piece(), STOP, LAST], True, True),
        (1, [piece(), LAST], True, True),  # it says no finish reason; the chunk of usage comes at the end alone
        (1, [piece(), with_usage(STOP)], True, True),
        (1, [with_usage(piece()), STOP, DONE], True, True),
        (1, [piece(), STOP, DONE], True, False),
        (1, [piece(), DONE], True, False),
        (1, [piece(), STOP], True, False),
        (1, [DONE], True, False),
        (1, [LAST, DONE], True, True),  # an answer without any text
        (1, [], False, False),
        (1, [piece()], False, False),
        (1, [with_usage(piece())], False, False),
        (1, [with_usage(piece()), with_usage(piece())], False, False),
        (1, [LAST], False, False),  # before any choice: the head of a stream
        (1, [LAST, piece()], False, False),
        (1, [LAST, piece(), STOP, DONE], True, False),  # what came after it is not in it
        (1, [piece(), LAST, piece()], False, False),
        (1, [with_usage(STOP), piece()], False, False),  # a choice that goes on has not finished
        (1, [with_usage({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": ""}]})], False, False),
        (2, [with_usage(piece()), with_usage(STOP)], False, False),  # the second choice has not begun
        (2, [STOP, with_usage(STOP_1)], True, True),
        (2, [with_usage(STOP), STOP_1], True, False),
        (2, [with_usage(STOP), STOP_1, DONE], True, True),
        (1, [piece(), STOP, LAST, {"error": "no"}, DONE], False, False),
    ],
)
def test_usage_is_the_last_when_the_end_was_seen_and_nothing_came_after_it(answers, chunks, ended, whole):
    tally = StreamTally(hide_usage=True, answers=answers)
    for chunk in chunks:
        if chunk == DONE:
            tally.done()
        else:
            tally.see(chunk)
    assert (tally.ended, tally.usage) == (ended, usage_from_openai(SPENT) if whole else None)


@pytest.mark.parametrize(
    ("answers", "chunks", "finished"),
    [
        (1, [piece()], False),
        (1, [STOP], True),
        (1, [{"choices": [{"index": 0, "delta": {}, "finish_reason": ""}]}], False),
        (2, [STOP], False),
        (2, [STOP, piece(), STOP_1], False),
        (2, [STOP, STOP_1], True),
        (1, [STOP, STOP_1], True),
        (1, [STOP, {"choices": [{"index": 7, "delta": {"content": "x"}}]}], False),
    ],
)
def test_a_stream_has_finished_when_every_choice_has(answers, chunks, finished):
    tally = StreamTally(hide_usage=True, answers=answers)
    for chunk in chunks:
        tally.see(chunk)
    assert tally.finished is finished
