"""What providers have been seen to report as usage, and what must be made of it.

Each row is (name, wire, usage, expected): `wire` is `openai`, `anthropic` or `gemini`; `expected` the fields of Usage
that are not zero, or None where the usage is unknown, so that the call is charged at its hold.
"""

from __future__ import annotations

from typing import Any, Final

Variant = tuple[str, str, Any, "dict[str, Any] | None"]

_HUGE: Final = 10**18
_IN3_OUT5: Final = {"input_tokens": 3, "output_tokens": 5}


def _chat(prompt: Any = 100, completion: Any = 20, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def _prompt(**details: Any) -> dict[str, Any]:
    return _chat(prompt_tokens_details=details)


def _completion(**details: Any) -> dict[str, Any]:
    return _chat(completion_tokens_details=details)


def _is(**fields: Any) -> dict[str, Any]:
    return {"input_tokens": 100, "output_tokens": 20, **fields}


VARIANTS: Final[tuple[Variant, ...]] = (
    # --- nothing, or nothing that is a usage
    ("no usage", "openai", None, None),
    ("an empty object", "openai", {}, None),
    ("a list", "openai", [1, 2], None),
    ("a text", "openai", "100", None),
    ("a number", "openai", 100, None),
    ("true", "openai", True, None),
    # --- counts that are none
    ("both null", "openai", _chat(None, None), None),
    ("prompt missing", "openai", {"completion_tokens": 20}, None),
    ("prompt null", "openai", _chat(None), None),
    ("completion missing", "openai", {"prompt_tokens": 100}, None),
    ("completion null", "openai", _chat(completion=None), None),
    ("prompt as text", "openai", _chat("100"), None),
    ("completion as text", "openai", _chat(completion="20"), None),
    ("prompt as float", "openai", _chat(100.0), None),
    ("prompt true", "openai", _chat(True), None),
    ("prompt negative", "openai", _chat(-1), None),
    ("completion negative", "openai", _chat(completion=-20), None),
    ("prompt beyond belief", "openai", _chat(_HUGE), None),
    ("completion beyond belief", "openai", _chat(completion=_HUGE), None),
    ("total beyond belief", "openai", _chat(total_tokens=_HUGE), None),
    ("total as text", "openai", _chat(total_tokens="120"), None),
    # --- zeros are values
    ("all zero", "openai", _chat(0, 0, total_tokens=0), {}),
    ("no answer", "openai", _chat(completion=0), {"input_tokens": 100}),
    # --- sums
    ("a right total", "openai", _chat(total_tokens=120), _is()),
    ("total null", "openai", _chat(total_tokens=None), _is()),
    ("total too small", "openai", _chat(total_tokens=119), None),
    ("total larger: thoughts beside", "openai", _chat(total_tokens=420), _is(output_tokens=320)),
    ("only prompt and total", "openai", {"prompt_tokens": 100, "total_tokens": 120}, _is()),
    # --- details of the prompt
    ("details null", "openai", _chat(prompt_tokens_details=None, completion_tokens_details=None), _is()),
    ("details a list", "openai", _chat(prompt_tokens_details=[5]), None),
    ("cached", "openai", _prompt(cached_tokens=60), _is(cached_tokens=60)),
    ("cached null", "openai", _prompt(cached_tokens=None), _is()),
    ("cached zero", "openai", _prompt(cached_tokens=0), _is()),
    ("cached as text", "openai", _prompt(cached_tokens="60"), None),
    ("cached negative", "openai", _prompt(cached_tokens=-1), None),
    ("more cached than there is", "openai", _prompt(cached_tokens=101), _is()),
    ("cached beyond belief", "openai", _prompt(cached_tokens=_HUGE), None),
    ("cached and written", "openai", _prompt(cached_tokens=80, cache_write_tokens=50),
     _is(cached_tokens=50, cache_write_tokens=50)),
    ("written beside, by translation", "openai", _chat(cache_creation_input_tokens=40), _is(cache_write_tokens=40)),
    ("more written than there is", "openai", _prompt(cache_write_tokens=500), _is(cache_write_tokens=100)),
    ("DeepSeek's cache", "openai", _chat(prompt_cache_hit_tokens=64, prompt_cache_miss_tokens=36),
     _is(cached_tokens=64)),
    ("heard", "openai", _prompt(audio_tokens=70), _is(audio_input_tokens=70)),
    ("more heard than there is", "openai", _prompt(audio_tokens=700), _is(audio_input_tokens=100)),
    ("heard and seen", "openai", _prompt(audio_tokens=70, image_tokens=70),
     _is(audio_input_tokens=70, image_input_tokens=30)),
    ("heard, negative", "openai", _prompt(audio_tokens=-7), None),
    # --- details of the answer
    ("reasoning inside", "openai", _completion(reasoning_tokens=15), _is(reasoning_tokens=15)),
    ("reasoning beside, no total", "openai", _completion(reasoning_tokens=300),
     _is(output_tokens=320, reasoning_tokens=300)),
    ("reasoning beside, in the total (xAI)", "openai",
     _chat(total_tokens=420, completion_tokens_details={"reasoning_tokens": 300}),
     _is(output_tokens=320, reasoning_tokens=300)),
    ("more reasoning than the total has", "openai",
     _chat(total_tokens=120, completion_tokens_details={"reasoning_tokens": 21}), None),
    ("spoken", "openai", _completion(audio_tokens=12), _is(audio_output_tokens=12)),
    ("spoken and thought", "openai", _completion(audio_tokens=12, reasoning_tokens=15),
     _is(audio_output_tokens=5, reasoning_tokens=15)),
    ("spoken, a float", "openai", _completion(audio_tokens=1.5), None),
    # --- the Responses API
    ("responses", "openai",
     {**_IN3_OUT5, "input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 2}},
     {**_IN3_OUT5, "cached_tokens": 1, "reasoning_tokens": 2}),
    ("Anthropic's wire read as OpenAI's", "openai", {**_IN3_OUT5, "cache_read_input_tokens": 2000}, None),
    # --- service tiers
    ("tier in the usage", "openai", _chat(service_tier="Priority"), _is(service_tier="priority")),
    ("tier auto says nothing", "openai", _chat(service_tier="auto"), _is()),
    ("tier a number", "openai", _chat(service_tier=3), _is()),
    # --- Anthropic: three disjoint groups
    ("Anthropic plain", "anthropic", _IN3_OUT5, _IN3_OUT5),
    ("Anthropic read and written", "anthropic",
     {**_IN3_OUT5, "cache_read_input_tokens": 2000, "cache_creation_input_tokens": 100, "service_tier": "standard"},
     {"input_tokens": 2103, "output_tokens": 5, "cached_tokens": 2000, "cache_write_tokens": 100,
      "service_tier": "standard"}),
    ("Anthropic written for an hour", "anthropic",
     {**_IN3_OUT5, "cache_creation_input_tokens": 100,
      "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}},
     {"input_tokens": 103, "output_tokens": 5, "cache_write_tokens": 100, "cache_write_1h_tokens": 70}),
    ("Anthropic split larger than its sum", "anthropic",
     {**_IN3_OUT5, "cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_1h_input_tokens": 70}},
     {"input_tokens": 73, "output_tokens": 5, "cache_write_tokens": 70, "cache_write_1h_tokens": 70}),
    ("Anthropic nulls", "anthropic",
     {**_IN3_OUT5, "cache_read_input_tokens": None, "cache_creation_input_tokens": None, "cache_creation": None},
     _IN3_OUT5),
    ("Anthropic thoughts", "anthropic",
     {**_IN3_OUT5, "output_tokens_details": {"thinking_tokens": 4}}, {**_IN3_OUT5, "reasoning_tokens": 4}),
    ("Anthropic more thoughts than output", "anthropic",
     {**_IN3_OUT5, "output_tokens_details": {"thinking_tokens": 9}}, {**_IN3_OUT5, "reasoning_tokens": 5}),
    ("Anthropic output missing", "anthropic", {"input_tokens": 3}, None),
    ("Anthropic negative", "anthropic", {**_IN3_OUT5, "cache_read_input_tokens": -1}, None),
    ("Anthropic split a list", "anthropic", {**_IN3_OUT5, "cache_creation": [1]}, None),
    # --- Gemini: thoughts beside candidates
    ("Gemini thoughts beside", "gemini",
     {"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 300, "totalTokenCount": 420},
     _is(output_tokens=320, reasoning_tokens=300)),
    ("Gemini tools beside the prompt", "gemini",
     {"promptTokenCount": 60, "toolUsePromptTokenCount": 40, "candidatesTokenCount": 20, "totalTokenCount": 120},
     _is()),
    ("Gemini cached inside", "gemini",
     {"promptTokenCount": 100, "cachedContentTokenCount": 90, "candidatesTokenCount": 20}, _is(cached_tokens=90)),
    ("Gemini heard", "gemini",
     {"promptTokenCount": 100, "candidatesTokenCount": 20,
      "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10}, {"modality": "AUDIO", "tokenCount": 90}]},
     _is(audio_input_tokens=90)),
    ("Gemini no candidates, a total", "gemini", {"promptTokenCount": 100, "totalTokenCount": 120}, _is()),
    ("Gemini total too small", "gemini",
     {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 20}, None),
    ("Gemini prompt missing", "gemini", {"candidatesTokenCount": 20}, None),
    ("Gemini details a text", "gemini",
     {"promptTokenCount": 100, "candidatesTokenCount": 20, "promptTokensDetails": "none"}, None),
)  # fmt: skip
