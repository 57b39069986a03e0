from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usage_variants import VARIANTS

from nemo_agents.policy.pricing import Price, ServiceTier, cost_nanos
from nemo_agents.policy.usage import Usage, usage_from_anthropic, usage_from_gemini, usage_from_openai

READERS = {"openai": usage_from_openai, "anthropic": usage_from_anthropic, "gemini": usage_from_gemini}
NANO_EACH = dict.fromkeys(("input", "cached_input", "cache_write", "cache_write_1h", "output"), 10**6)
UNIT = Price(**NANO_EACH, version="a nano a token", service_tiers=(ServiceTier(name="priority", **NANO_EACH),))

unhurried = settings(deadline=None)  # a busy machine is not a failure


def test_chat_completion_with_details():
    usage = usage_from_openai(
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 128},
        }
    )
    assert usage == Usage(input_tokens=2006, cached_tokens=1920, output_tokens=300, reasoning_tokens=128)
    assert usage is not None
    assert usage.total_tokens == 2306


def test_responses_api():
    usage = usage_from_openai(
        {
            "input_tokens": 36,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 87,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 123,
        }
    )
    assert usage == Usage(input_tokens=36, output_tokens=87)


def test_embeddings_have_no_output():
    assert usage_from_openai({"prompt_tokens": 5, "total_tokens": 5}, output=False) == Usage(input_tokens=5)
    assert usage_from_openai({"prompt_tokens": 5}, output=False) == Usage(input_tokens=5)
    assert usage_from_openai({"prompt_tokens": 5}) is None, "an answer whose size is not known is not free"


def test_explicit_zeros_are_values():
    assert usage_from_openai({"prompt_tokens": 0, "completion_tokens": 0}) == Usage(input_tokens=0)


def test_reasoning_beside_the_answer_is_output():
    """Gemini and xAI leave reasoning out of completion_tokens; only the total shows it."""
    gemini = usage_from_openai({"prompt_tokens": 8, "completion_tokens": 10, "total_tokens": 518})
    assert gemini == Usage(input_tokens=8, output_tokens=510)
    xai = usage_from_openai(
        {
            "prompt_tokens": 8,
            "completion_tokens": 10,
            "total_tokens": 518,
            "completion_tokens_details": {"reasoning_tokens": 500},
        }
    )
    assert xai == Usage(input_tokens=8, output_tokens=510, reasoning_tokens=500)
    without_total = usage_from_openai(
        {"prompt_tokens": 8, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 500}}
    )
    assert without_total == xai


def test_deepseek_cache_fields():
    usage = usage_from_openai(
        {
            "prompt_tokens": 100,
            "completion_tokens": 1,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        }
    )
    assert usage == Usage(input_tokens=100, cached_tokens=64, output_tokens=1)


def test_impossible_cache_counts_earn_no_discount():
    too_many = usage_from_openai(
        {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 11}}
    )
    assert too_many == Usage(input_tokens=10)
    overlapping = usage_from_openai(
        {
            "prompt_tokens": 10,
            "completion_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 5},
        }
    )
    assert overlapping == Usage(input_tokens=10, cached_tokens=5, cache_write_tokens=5)
    written = usage_from_openai(
        {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cache_write_tokens": 50}}
    )
    assert written == Usage(input_tokens=10, cache_write_tokens=10)


@pytest.mark.parametrize(
    "obj",
    [
        None,
        [],
        "12",
        {},
        {"prompt_tokens": None, "completion_tokens": None},
        {"completion_tokens": 3},
        {"prompt_tokens": 3, "completion_tokens": None},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": "12", "completion_tokens": 3},
        {"prompt_tokens": 12.0, "completion_tokens": 3},
        {"prompt_tokens": 10**12 + 1, "completion_tokens": 3},
        {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 14},
        {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": -5}},
        {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": [5]},
        {
            "prompt_tokens": 12,
            "completion_tokens": 3,
            "total_tokens": 15,
            "completion_tokens_details": {"reasoning_tokens": 9},
        },
        {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 2000},
    ],
)
def test_what_cannot_be_true_is_unknown(obj):
    assert usage_from_openai(obj) is None


@pytest.mark.parametrize(("wire", "usage", "expected"), [row[1:] for row in VARIANTS], ids=[row[0] for row in VARIANTS])
def test_what_providers_report(wire, usage, expected):
    """Each variant is read exactly, or is unknown; at a nano a token, what is read costs its tokens and no less."""
    read = READERS[wire](usage)
    assert read == (None if expected is None else Usage(**{"input_tokens": 0, **expected}))
    if read is not None:
        assert cost_nanos(UNIT, read) == read.total_tokens


def test_the_variants_are_many_and_none_is_there_twice():
    assert len(VARIANTS) >= 60
    assert len({row[0] for row in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("read", [usage_from_anthropic, usage_from_gemini])
@pytest.mark.parametrize("usage", [None, [], "12", 3, True, {}])
def test_what_is_no_usage_is_unknown_on_every_wire(read, usage):
    assert read(usage) is None


def test_the_answers_own_tier_counts_before_that_of_its_usage():
    counts = {"prompt_tokens": 1, "completion_tokens": 1, "service_tier": "flex"}
    told = usage_from_openai(counts, service_tier="default")
    assert told is not None
    assert told.service_tier == "default"
    silent = usage_from_openai(counts, service_tier=None)
    assert silent is not None
    assert silent.service_tier == "flex"


_junk = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 50), st.floats(allow_nan=True), st.text(max_size=3), st.just(10**13)
)
_details = st.one_of(
    _junk, st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "reasoning_tokens"]), _junk)
)


@unhurried
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": _junk,
            "completion_tokens": _junk,
            "total_tokens": _junk,
            "prompt_tokens_details": _details,
            "completion_tokens_details": _details,
        },
    )
)
def test_any_object_gives_a_consistent_usage_or_none(obj):
    """The constructor of Usage checks consistency; nothing a provider sends may make the reader raise."""
    usage = usage_from_openai(obj)
    assert usage is None or usage.total_tokens >= obj["prompt_tokens"] + (obj.get("completion_tokens") or 0)


_ANY_WIRE = {
    usage_from_anthropic: (
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation",
        "output_tokens_details",
        "service_tier",
    ),
    usage_from_gemini: (
        "promptTokenCount",
        "toolUsePromptTokenCount",
        "candidatesTokenCount",
        "thoughtsTokenCount",
        "totalTokenCount",
        "cachedContentTokenCount",
        "promptTokensDetails",
        "candidatesTokensDetails",
    ),
}
_rows = st.lists(st.dictionaries(st.sampled_from(["modality", "tokenCount"]), st.sampled_from(["AUDIO", "IMAGE", 7])))
_values = st.one_of(
    _junk, _rows, st.dictionaries(st.sampled_from(["ephemeral_1h_input_tokens", "thinking_tokens"]), _junk)
)


@unhurried
@given(st.sampled_from(list(_ANY_WIRE)), st.data())
def test_no_wire_makes_its_reader_raise(read, data):
    usage = read(data.draw(st.dictionaries(st.sampled_from(_ANY_WIRE[read]), _values)))
    assert usage is None or usage.total_tokens >= 0


def test_inconsistent_values_cannot_be_built():
    with pytest.raises(ValueError, match="parts of the input"):
        Usage(input_tokens=5, cached_tokens=3, cache_write_tokens=3)
    with pytest.raises(ValueError, match="part of the output"):
        Usage(input_tokens=5, output_tokens=1, reasoning_tokens=2)
    with pytest.raises(ValueError, match="parts of the input"):
        Usage(input_tokens=5, output_tokens=-1)
    with pytest.raises(ValueError, match="parts of the input"):
        Usage(input_tokens=5, audio_input_tokens=3, image_input_tokens=3)
    with pytest.raises(ValueError, match="for an hour"):
        Usage(input_tokens=5, cache_write_tokens=3, cache_write_1h_tokens=4)
    with pytest.raises(ValueError, match="part of the output"):
        Usage(input_tokens=5, output_tokens=5, reasoning_tokens=3, audio_output_tokens=3)
