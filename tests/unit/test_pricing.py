from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.policy.pricing import (
    OUTPUT_TOKENS_MAX,
    TEXT_ONLY,
    UNKNOWN_TIER_FACTOR,
    Content,
    ParamError,
    Price,
    PriceTier,
    ServiceTier,
    answers_asked,
    clamp_output_tokens,
    cost_nanos,
    fixed_price,
    input_tokens_bound,
    input_tokens_estimate,
    output_cap,
    output_tokens_max,
    pinned_service_tier,
    unpriced_component,
    upper_bound_nanos,
)
from nemo_agents.policy.usage import Usage

unhurried = settings(deadline=None)  # a busy machine is not a failure

RATES = {"input": 1, "cached_input": 1, "cache_write": 1, "output": 1}
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
_optional = (
    "cache_write_1h",
    "reasoning",
    "audio_input",
    "cached_audio",
    "audio_output",
    "image_input",
    "cached_image",
)
_rates = st.fixed_dictionaries(
    dict.fromkeys(("input", "cached_input", "cache_write", "output"), _rate),
    optional=dict.fromkeys(_optional, st.none() | _rate),
)
_TIER_NAMES = ["default", "flex", "priority", "batch", "odd"]


@st.composite
def _tiers(draw):
    starts = sorted(draw(st.sets(st.integers(0, 300), max_size=3)))
    return tuple(PriceTier(above=start, **draw(_rates)) for start in starts)


@st.composite
def prices(draw):
    image_max = draw(st.integers(0, 100))
    return Price(
        **draw(_rates),
        version="t",
        request_nanos=draw(st.integers(0, 10**9)),
        image_nanos=draw(st.integers(0, 10**9)),
        image_tokens_max=image_max,
        image_tokens_low=draw(st.integers(0, image_max)),
        tiers=draw(_tiers()),
        service_tiers=tuple(
            ServiceTier(name=name, **draw(_rates), tiers=draw(_tiers()))
            for name in draw(st.sets(st.sampled_from(_TIER_NAMES)))
        ),
    )


@st.composite
def contents(draw):
    images = draw(st.integers(0, 3))
    return Content(
        images=images,
        images_low=draw(st.integers(0, images)),
        audio_tokens=draw(st.integers(0, 100)),
        long_cache=draw(st.booleans()),
        audio_output=draw(st.booleans()),
        service_tier=draw(st.none() | st.sampled_from([*_TIER_NAMES, "auto", "unheard-of"])),
    )


@st.composite
def usages(draw, *, content=TEXT_ONLY, image_tokens=0, text=400):
    """What a call with this content can use: no more sound and images than it has, and text beside them."""
    audio = draw(st.integers(0, content.audio_tokens))
    seen = draw(st.integers(0, image_tokens))
    total_input = audio + seen + draw(st.integers(0, text))
    cached = draw(st.integers(0, total_input))
    written = draw(st.integers(0, total_input - cached))
    output = draw(st.integers(0, 400))
    reasoning = draw(st.integers(0, output))
    served = {None, "default", "standard", content.service_tier}
    if content.service_tier in ("auto", "unheard-of"):
        served |= {"flex", "priority", "batch", "unheard-of", "brand-new"}
    served.discard("auto")
    return Usage(
        input_tokens=total_input,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.integers(0, written)) if content.long_cache else 0,
        audio_input_tokens=audio,
        image_input_tokens=seen,
        output_tokens=output,
        reasoning_tokens=reasoning,
        audio_output_tokens=draw(st.integers(0, output - reasoning)) if content.audio_output else 0,
        service_tier=draw(st.sampled_from(sorted(served, key=str))),
    )


@unhurried
@given(prices(), contents(), st.integers(0, 50), st.integers(0, 50), st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_bound(price, content, more_input, more_output, data):
    """For every price, content and service tier: sound, images, caches, reasoning and tiers in any combination."""
    usage = data.draw(usages(content=content, image_tokens=price.image_tokens(content)))
    text = max(0, usage.input_tokens - price.image_tokens(content) - content.audio_tokens)
    parts = usage.input_tokens - usage.audio_input_tokens - usage.image_input_tokens
    bound = upper_bound_nanos(price, max(text, parts) + more_input, usage.output_tokens + more_output, content)
    cost = cost_nanos(price, usage, content)
    assert type(cost) is type(bound) is int
    assert 0 <= cost <= bound


@unhurried
@given(prices(), st.integers(0, 400), st.integers(0, 400))
def test_text_alone_is_bounded_as_any_content_is(price, tokens_in, tokens_out):
    """What most calls are is reckoned in a shorter way: `Content()` says the same, and goes the longer one."""
    assert Content() == TEXT_ONLY
    assert Content() is not TEXT_ONLY
    assert upper_bound_nanos(price, tokens_in, tokens_out, TEXT_ONLY) == upper_bound_nanos(
        price, tokens_in, tokens_out, Content()
    )


@given(prices(), usages())
def test_cost_is_the_exact_amount_rounded_up_once(price, usage):
    """Computed a second time, in rationals and token by token group, from the definition of a tier."""
    price = replace(price, service_tiers=())
    above = [tier for tier in price.tiers if tier.above < usage.input_tokens]
    rates = above[-1] if above else price
    plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    exact = price.request_nanos + sum(
        Fraction(rate * count, 10**6)
        for rate, count in [
            (rates.input, plain),
            (rates.cached_input, usage.cached_tokens),
            (rates.cache_write, usage.cache_write_tokens),
            (rates.output, usage.output_tokens - usage.reasoning_tokens),
            (rates.output if rates.reasoning is None else rates.reasoning, usage.reasoning_tokens),
        ]
    )
    assert 0 <= cost_nanos(price, usage) - exact < 1


RICH = Price(
    input=2_000_000,
    cached_input=1_000_000,
    cache_write=3_000_000,
    cache_write_1h=4_000_000,
    output=5_000_000,
    reasoning=6_000_000,
    audio_input=40_000_000,
    cached_audio=20_000_000,
    audio_output=80_000_000,
    image_input=8_000_000,
    request_nanos=7,
    image_nanos=1000,
    image_tokens_max=100,
    image_tokens_low=10,
    version="t",
    service_tiers=(
        ServiceTier(name="flex", input=1_000_000, cached_input=0, cache_write=1_000_000, output=2_000_000),
        ServiceTier(name="priority", input=9_000_000, cached_input=9_000_000, cache_write=9_000_000, output=9_000_000),
    ),
)


@pytest.mark.parametrize(
    ("usage", "content", "nanos"),
    [
        (Usage(input_tokens=10), TEXT_ONLY, 7 + 20),
        (Usage(input_tokens=10, cached_tokens=10), TEXT_ONLY, 7 + 10),
        (Usage(input_tokens=10, cache_write_tokens=10), TEXT_ONLY, 7 + 30),
        (Usage(input_tokens=10, cache_write_tokens=10, cache_write_1h_tokens=4), TEXT_ONLY, 7 + 18 + 16),
        (Usage(input_tokens=0, output_tokens=10, reasoning_tokens=4), TEXT_ONLY, 7 + 30 + 24),
        (Usage(input_tokens=0, output_tokens=10, audio_output_tokens=4), TEXT_ONLY, 7 + 30 + 320),
        (Usage(input_tokens=10, audio_input_tokens=4), TEXT_ONLY, 7 + 12 + 160),
        (Usage(input_tokens=10, audio_input_tokens=4, cached_tokens=10), TEXT_ONLY, 7 + 6 + 80),
        (Usage(input_tokens=10, image_input_tokens=4, cached_tokens=10), TEXT_ONLY, 7 + 6 + 32),  # no discount known
        (Usage(input_tokens=10, image_input_tokens=10), Content(images=2), 7 + 2000 + 80),
        (Usage(input_tokens=10, output_tokens=10, service_tier="flex"), TEXT_ONLY, 7 + 10 + 20),
        (Usage(input_tokens=10, output_tokens=10, service_tier="priority"), TEXT_ONLY, 7 + 90 + 90),
        (Usage(input_tokens=10, service_tier="default"), Content(service_tier="priority"), 7 + 20),
        (Usage(input_tokens=10), Content(service_tier="priority"), 7 + 90),  # the answer does not say: the dearer
        (Usage(input_tokens=10), Content(service_tier="auto"), 7 + 90),
        (Usage(input_tokens=10, service_tier="brand-new"), TEXT_ONLY, 7 + 90),
    ],
)
def test_every_component_is_billed_at_its_own_rate(usage, content, nanos):
    assert cost_nanos(RICH, usage, content) == nanos


@pytest.mark.parametrize(
    ("content", "nanos"),
    [
        (TEXT_ONLY, 7 + 10 * 3 + 10 * 6),
        (Content(long_cache=True), 7 + 10 * 4 + 10 * 6),
        (Content(audio_output=True), 7 + 10 * 3 + 10 * 80),
        (Content(audio_tokens=5), 7 + 10 * 3 + 5 * 40 + 10 * 6),
        (Content(images=3, images_low=1), 7 + 3000 + 10 * 3 + 210 * 8 + 10 * 6),
        (Content(service_tier="flex"), 7 + 10 * 3 + 10 * 6),
        (Content(service_tier="priority"), 7 + 10 * 9 + 10 * 9),
        (Content(service_tier="auto"), 7 + 10 * 9 + 10 * 9),
        (Content(service_tier="unheard-of"), 7 + 10 * 9 + 10 * 9),
        (Content(service_tier="default"), 7 + 10 * 3 + 10 * 6),
    ],
)
def test_the_bound_takes_the_dearest_of_what_applies(content, nanos):
    assert upper_bound_nanos(RICH, 10, 10, content) == nanos


def test_a_dearer_tier_without_a_price_is_bounded_by_a_factor():
    for name in ("priority", "auto", "unheard-of"):
        asked = Content(service_tier=name)
        assert upper_bound_nanos(SONNET, 10, 10, asked) == UNKNOWN_TIER_FACTOR * upper_bound_nanos(SONNET, 10, 10)
    for name in ("default", "standard", "standard_only", "flex", "batch"):
        assert upper_bound_nanos(SONNET, 10, 10, Content(service_tier=name)) == upper_bound_nanos(SONNET, 10, 10)


def test_the_standard_tier_is_written_where_the_account_could_choose_another():
    pinned = Price(**RATES, version="t", service_tiers=(ServiceTier(name="default", **RATES),))
    assert pinned_service_tier(pinned, TEXT_ONLY) == "default"
    assert pinned_service_tier(pinned, Content(service_tier="flex")) is None
    assert pinned_service_tier(RICH, TEXT_ONLY) is None


def test_speech_needs_a_price():
    assert unpriced_component(SONNET, Content(audio_output=True)) == "audio_output"
    assert unpriced_component(SONNET, TEXT_ONLY) is None
    assert unpriced_component(RICH, Content(audio_output=True)) is None


def test_a_role_can_price_a_request():
    price = fixed_price(5_000_000)
    assert price.version == "role"
    assert upper_bound_nanos(price, 10**6, 10**6) == cost_nanos(price, Usage(input_tokens=10**6)) == 5_000_000


@unhurried
@given(prices(), contents(), st.tuples(st.integers(0, 400), st.integers(0, 60), st.integers(1, 3)), st.data())
def test_the_clamp_is_the_largest_cap_that_fits(price, content, sizes, data):
    """Held against every cap there is, tried one by one."""
    text, wanted, answers = sizes
    free = data.draw(st.integers(0, 10**9) | st.integers(0, upper_bound_nanos(price, text, 200, content)))
    fitting = [n for n in range(1, wanted + 1) if upper_bound_nanos(price, text, n * answers, content) <= free]
    clamped = clamp_output_tokens(price, text, wanted, free, content=content, answers=answers)
    assert clamped == (fitting[-1] if fitting else None)


def test_the_clamp_uses_all_that_is_left():
    free = upper_bound_nanos(SONNET, 1000, 812)
    assert clamp_output_tokens(SONNET, 1000, 4096, free) == 812
    assert clamp_output_tokens(SONNET, 1000, 4096, free - 1) == 811
    assert clamp_output_tokens(SONNET, 1000, 500, free) == 500
    assert clamp_output_tokens(SONNET, 1000, 4096, upper_bound_nanos(SONNET, 1000, 1) - 1) is None
    assert clamp_output_tokens(SONNET, 1000, 4096, -5) is None


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
    with pytest.raises(ValueError, match="at least 0"):
        Price(**RATES, reasoning=-1, version="t")
    with pytest.raises(ValueError, match="at least 0"):
        Price(**RATES, image_nanos=-1, version="t")
    with pytest.raises(ValueError, match="low detail"):
        Price(**RATES, image_tokens_max=1, image_tokens_low=2, version="t")
    with pytest.raises(ValueError, match="one price"):
        Price(**RATES, version="t", service_tiers=(ServiceTier(name="a", **RATES),) * 2)
    with pytest.raises(ValueError, match="counted from 0"):
        Content(images=1, images_low=2)


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
    assert input_tokens_bound({"prompt": [1] * 300}) >= 300
    assert input_tokens_bound({"prompt": [[1] * 300] * 2, "suffix": "x" * 50}) >= 650


def test_every_part_of_a_message_of_anthropics_counts_as_read():
    """Blocks within blocks, thoughts, what tools were called with: all but marks, numbers and the cap."""
    words = "x" * 1000
    blocks = [
        {"type": "thinking", "thinking": words, "signature": words},
        {"type": "redacted_thinking", "data": words},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"q": words}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": words}]},
    ]
    body = {"system": [{"type": "text", "text": words}], "messages": [{"role": "user", "content": blocks}]}
    bound = input_tokens_bound(body)
    assert bound >= 6000 + 2 * 16
    assert input_tokens_bound({**body, "max_tokens": 9, "stop_sequences": [words], "top_k": 5}) == bound
    schema = {"type": "json_schema", "schema": {"description": words}}
    assert input_tokens_bound({**body, "output_config": {"format": schema}}) >= bound + 1000 + 600


def test_a_tool_that_anthropic_describes_counts_as_its_description():
    """735 tokens are published for the largest, which its three words in the request do not show."""
    own = {"tools": [{"name": "f", "input_schema": {}}]}
    bash = {"type": "bash_20250124", "name": "bash"}
    assert input_tokens_bound({"tools": [*own["tools"], bash, bash]}) >= input_tokens_bound(own) + 2 * 735
    assert input_tokens_bound({"tools": [{"type": "function"}, "odd", {"type": 7}]}) < 735


def test_the_thoughts_of_a_message_count_within_its_cap():
    """Anthropic's `budget_tokens` is a part of `max_tokens`."""
    body = {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert output_tokens_max(body, 99) == 2000


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
    assert answers_asked({"prompt": ["a", "b"], "n": 2, "best_of": 5}) == 10
    assert answers_asked({"prompt": ["a"]}) == answers_asked({"prompt": "a"}) == answers_asked({"prompt": None}) == 1
    assert answers_asked({"n": 128}) == 128
    with pytest.raises(ParamError):
        answers_asked({"n": 129})
