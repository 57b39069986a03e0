from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.policy.pricing import (
    OUTPUT_TOKENS_MAX,
    ParamError,
    Price,
    PriceTier,
    answers_asked,
    content_boundable,
    cost_nanos,
    input_tokens_bound,
    input_tokens_estimate,
    output_cap,
    output_tokens_max,
    upper_bound_nanos,
)
from nemo_agents.policy.usage import Usage

unhurried = settings(deadline=None)  # a busy machine is not a failure

SONNET = Price(
    input=3_000_000_000, cached_input=300_000_000, cache_write=3_750_000_000, output=15_000_000_000, version="t"
)
TIERED = Price(
    input=1_250_000_000,
    cached_input=1_250_000_000,
    cache_write=1_250_000_000,
    output=5_000_000_000,
    version="t",
    tiers=(
        PriceTier(
            above=128_000,
            input=2_500_000_000,
            cached_input=2_500_000_000,
            cache_write=2_500_000_000,
            output=10_000_000_000,
        ),
    ),
)

_rate = st.integers(0, 10**12)
_rates = st.fixed_dictionaries(dict.fromkeys(("input", "cached_input", "cache_write", "output"), _rate))


@st.composite
def prices(draw):
    starts = sorted(draw(st.sets(st.integers(0, 300), max_size=3)))
    return Price(
        **draw(_rates),
        version="t",
        request_nanos=draw(st.integers(0, 10**9)),
        tiers=tuple(PriceTier(above=start, **draw(_rates)) for start in starts),
    )


@st.composite
def usages(draw):
    total_input = draw(st.integers(0, 400))
    cached = draw(st.integers(0, total_input))
    output = draw(st.integers(0, 400))
    return Usage(
        input_tokens=total_input,
        cached_tokens=cached,
        cache_write_tokens=draw(st.integers(0, total_input - cached)),
        output_tokens=output,
        reasoning_tokens=draw(st.integers(0, output)),
    )


@unhurried
@given(prices(), usages(), st.integers(0, 50), st.integers(0, 50))
def test_no_usage_within_the_bounds_costs_more_than_the_bound(price, usage, more_input, more_output):
    bound = upper_bound_nanos(price, usage.input_tokens + more_input, usage.output_tokens + more_output)
    assert cost_nanos(price, usage) <= bound


@unhurried
@given(prices(), usages())
def test_cost_is_the_exact_amount_rounded_up_once(price, usage):
    """Computed a second time, in rationals and token by token group, from the definition of a tier."""
    above = [tier for tier in price.tiers if tier.above < usage.input_tokens]
    rates = above[-1] if above else price
    plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    exact = price.request_nanos + sum(
        Fraction(rate * count, 10**6)
        for rate, count in [
            (rates.input, plain),
            (rates.cached_input, usage.cached_tokens),
            (rates.cache_write, usage.cache_write_tokens),
            (rates.output, usage.output_tokens),
        ]
    )
    assert 0 <= cost_nanos(price, usage) - exact < 1


def test_known_amounts():
    assert cost_nanos(SONNET, Usage(input_tokens=1000, output_tokens=500)) == 10_500_000  # $0.0105
    assert (
        cost_nanos(SONNET, Usage(input_tokens=1000, cached_tokens=600, cache_write_tokens=200, output_tokens=0))
        == 200 * 3000 + 600 * 300 + 200 * 3750
    )
    assert upper_bound_nanos(SONNET, 1000, 500) == 1000 * 3750 + 500 * 15_000


def test_one_token_of_a_cheap_model_is_never_free():
    cheap = Price(input=1, cached_input=0, cache_write=1, output=1, version="t")
    assert cost_nanos(cheap, Usage(input_tokens=1)) == 1
    assert cost_nanos(cheap, Usage(input_tokens=0)) == 0


def test_crossing_into_a_tier_reprices_every_token():
    assert cost_nanos(TIERED, Usage(input_tokens=128_000)) == 128_000 * 1250
    assert cost_nanos(TIERED, Usage(input_tokens=128_001)) == 128_001 * 2500


def test_a_tier_out_of_reach_does_not_raise_the_bound():
    assert upper_bound_nanos(TIERED, 128_000, 10) == 128_000 * 1250 + 10 * 5000
    assert upper_bound_nanos(TIERED, 128_001, 10) == 128_001 * 2500 + 10 * 10_000


def test_prices_are_checked():
    with pytest.raises(ValueError, match="at least 0"):
        Price(input=-1, cached_input=0, cache_write=0, output=0, version="t")
    with pytest.raises(ValueError, match="at least 0"):
        Price(input=1, cached_input=0, cache_write=0, output=0, request_nanos=-1, version="t")
    tier = TIERED.tiers[0]
    with pytest.raises(ValueError, match="ascending"):
        Price(input=1, cached_input=0, cache_write=0, output=0, version="t", tiers=(tier, tier))
    with pytest.raises(ValueError, match="at least 0"):
        upper_bound_nanos(SONNET, -1, 0)


_texts = st.text(st.characters(), max_size=60)
_bodies = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": _texts}), max_size=4)},
    optional={"tools": st.just([{"type": "function", "function": {"name": "f"}}]), "system": _texts},
)


@unhurried
@given(_bodies)
def test_the_bound_counts_every_byte_of_every_text(body):
    texts = [message["content"] for message in body["messages"]] + [body.get("system", "")]
    read = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    framing = 16 * len(body["messages"]) + (600 if "tools" in body else 0)
    assert input_tokens_bound(body) >= read + framing
    assert 1 <= input_tokens_estimate(body) <= input_tokens_bound(body)


def test_lone_surrogates_are_counted():
    body = json.loads('{"messages": [{"role": "user", "content": "\\ud800\\udfff\\ud800"}]}')
    assert input_tokens_bound(body) >= 3 * 3 + 16


def test_an_unknown_field_counts_as_read_and_a_steering_one_does_not():
    plain = {"messages": [{"role": "user", "content": "hi"}]}
    bound = input_tokens_bound(plain)
    assert input_tokens_bound({**plain, "documents": ["x" * 1000]}) >= bound + 1000
    assert input_tokens_bound({**plain, "metadata": {"note": "x" * 1000}, "temperature": 0.1}) == bound
    assert input_tokens_bound({**plain, "response_format": {"type": "json_object"}}) >= bound + 600
    assert input_tokens_bound({"input": ["x" * 500, "y" * 500]}) >= 1000 + 32
    assert input_tokens_bound({"prompt": "x" * 500}) >= 500 + 16


def test_a_list_of_tokens_is_bounded_by_its_digits():
    assert input_tokens_bound({"input": [1] * 300}) >= 300


def test_output_is_capped_by_either_field():
    assert output_cap({"max_tokens": 12}, 99) == 12
    assert output_cap({"max_completion_tokens": 12}, 99) == 12
    assert output_cap({"max_output_tokens": 12}, 99) == 12
    assert output_cap({"max_tokens": None}, 99) == 99
    assert output_cap({"max_tokens": 7, "max_completion_tokens": 7}, 99) == 7
    assert output_cap({"max_tokens": OUTPUT_TOKENS_MAX}, 99) == OUTPUT_TOKENS_MAX


@pytest.mark.parametrize("value", [0, -1, True, False, 1.5, 1e3, "5", [], OUTPUT_TOKENS_MAX + 1, 10**4000])
@pytest.mark.parametrize("param", ["max_tokens", "max_completion_tokens", "n"])
def test_odd_numbers_are_refused_by_name(param, value):
    with pytest.raises(ParamError) as refused:
        output_tokens_max({param: value}, 10)
    assert refused.value.param == param
    assert isinstance(refused.value, ValueError)
    assert len(str(refused.value)) < 200


def test_contradicting_limits_are_refused():
    with pytest.raises(ParamError, match="contradicts") as refused:
        output_cap({"max_tokens": 7, "max_completion_tokens": 8}, 99)
    assert refused.value.param == "max_tokens"


def test_every_answer_counts():
    assert output_tokens_max({"max_tokens": 10, "n": 3}, 99) == 30
    assert output_tokens_max({}, 99) == 99
    assert answers_asked({"n": 2, "best_of": 5}) == 5
    assert answers_asked({"prompt": ["a", "b", "c"], "n": 2}) == 6
    assert answers_asked({"prompt": [1, 2, 3]}) == 1
    assert answers_asked({"prompt": [[1, 2], [3]]}) == 2
    assert answers_asked({"n": 128}) == 128
    with pytest.raises(ParamError):
        answers_asked({"n": 129})


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "text"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}, {"role": "x", "content": None}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function"}]}]},
        {"messages": [{"content": [{"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}]}]},
        {"messages": [], "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "anthropic"}]},
        {"input": "text", "service_tier": "flex"},
        {"input": [1, 2, 3]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "t"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "42"}]},
        {"prompt": ["a", "b"], "modalities": ["text"], "audio": None},
    ],
)
def test_text_is_boundable(body):
    assert content_boundable(body) is None


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (
            {"messages": [{"content": "t"}, {"content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
            "messages[1].content[0].image_url",
        ),
        (
            {"messages": [{"content": [{"type": "text"}, {"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "messages[0].content[1].image_url",
        ),
        ({"messages": [{"content": [{"type": "input_audio"}]}]}, "messages[0].content[0].input_audio"),
        ({"messages": [{"content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file"),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
            "messages[0].content[0].content[0].image",
        ),
        ({"messages": [{"content": [{"type": ["odd"]}]}]}, "messages[0].content[0]"),
        ({"messages": [{"content": {"type": "image_url"}}]}, "messages[0].content.image_url"),
        ({"tools": [{"type": {}}]}, "tools[0]"),
        ({"input": [{"type": []}]}, "input[0]"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"content": [{"cache_control": {"ttl": "1h"}}]}]}, "messages[0].content[0].cache_control"),
        ({"tools": [{"type": "function"}, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": [{"type": "function", "cache_control": {"ttl": "1h"}}]}, "tools[0].cache_control"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0]"),
        ({"input": [{"content": [{"type": "input_image"}]}]}, "input[0].content[0].input_image"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"models": ["a", "b"]}, "models"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"service_tier": ["odd"]}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"system": [{"type": "image"}]}, "system[0].image"),
    ],
)
def test_what_text_does_not_bound_is_named(body, named):
    assert content_boundable(body) == named


BESIDE_TEXT = [
    "audio",
    "cached_content",
    "container",
    "conversation",
    "extra_body",
    "mcp_servers",
    "modalities",
    "models",
    "plugins",
    "prediction",
    "previous_response_id",
    "search_parameters",
    "speed",
    "web_search_options",
]


@pytest.mark.parametrize("field", BESIDE_TEXT)
@pytest.mark.parametrize("value", [{}, [], 0, False, ""], ids=repr)
def test_an_empty_switch_is_a_switch(field, value):
    """An empty `web_search_options` switches web search on: only null is as good as absent."""
    text = {"messages": [{"role": "user", "content": "t"}], "tools": []}
    assert content_boundable({**text, field: value}) == field
    assert content_boundable({**text, field: None}) is None


def test_a_spoken_answer_without_content_is_still_one():
    assert content_boundable({"messages": [{"role": "assistant", "audio": {}}]}) == "messages[0].audio"
    assert content_boundable({"messages": [{"role": "assistant", "audio": None}]}) is None


def test_content_nested_without_end_is_not_followed():
    content = [{"type": "text"}]
    for _ in range(5000):
        content = [{"type": "tool_result", "content": content}]
    named = content_boundable({"messages": [{"content": content}]})
    assert named is not None
    assert named.startswith("messages[0].content[0].content")
    assert len(named) < 100
