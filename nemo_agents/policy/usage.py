"""What a provider says a call used, on one set of axes for every provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

__all__ = ["Usage", "usage_from_anthropic", "usage_from_gemini", "usage_from_openai"]

_COUNT_MAX: Final = 10**12
"""More tokens than any call can use; a larger number is a mistake and not a measurement."""
_TIER_LENGTH_MAX: Final = 64


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one call.

    `cached_tokens` and `cache_write_tokens` are disjoint parts of `input_tokens`; `cache_write_1h_tokens` is a part of
    `cache_write_tokens`. `audio_input_tokens` and `image_input_tokens` are disjoint parts of the input, too, seen by
    what they are. `reasoning_tokens` and `audio_output_tokens` are disjoint parts of `output_tokens`. `service_tier`
    is the tier that the answer says it was served in; None where it says none. Raises ValueError when the parts do not
    fit.
    """

    input_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    service_tier: str | None = None

    def __post_init__(self) -> None:
        parts = (
            self.cached_tokens,
            self.cache_write_tokens,
            self.cache_write_1h_tokens,
            self.audio_input_tokens,
            self.image_input_tokens,
            self.reasoning_tokens,
            self.audio_output_tokens,
            self.output_tokens,
        )
        if min(parts) < 0 or self.cached_tokens + self.cache_write_tokens > self.input_tokens:
            raise ValueError(f"cached and written tokens are parts of the input: {self}")
        if self.cache_write_1h_tokens > self.cache_write_tokens:
            raise ValueError(f"tokens written for an hour are parts of the written ones: {self}")
        if self.audio_input_tokens + self.image_input_tokens > self.input_tokens:
            raise ValueError(f"audio and image tokens are parts of the input: {self}")
        if self.reasoning_tokens + self.audio_output_tokens > self.output_tokens:
            raise ValueError(f"reasoning and spoken tokens are part of the output: {self}")

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class _OddCountError(ValueError):
    """A count that is present and is no count."""


def usage_from_openai(obj: object, *, output: bool = True, service_tier: object = None) -> Usage | None:
    """Read the `usage` of chat completions, completions, responses or (with `output=False`) embeddings.

    None means unknown: the object is missing, or what it says cannot be true. Explicit zeros are values.
    Accepts `prompt_tokens`/`completion_tokens` and the Responses API's `input_tokens`/`output_tokens`, in
    which cached, audio and image tokens are parts of the input. `service_tier` is the field of that name beside the
    usage. Differences between providers are resolved towards the dearer reading:

    - Gemini and xAI count reasoning beside `completion_tokens`, and only `total_tokens` shows it: what the
      total holds beyond the input is output.
    - Cached tokens beyond the input earn no discount at all; tokens written to a cache count at most the
      input. Parts beyond their whole count as the whole.
    """
    if not isinstance(obj, (dict, Mapping)):  # dict first: asking an abstract class is slow
        return None
    try:
        return _read(obj, output=output, tier=_tier(service_tier) or _tier(obj.get("service_tier")))
    except _OddCountError:
        return None


def usage_from_anthropic(obj: object) -> Usage | None:
    """Read the `usage` of Anthropic's Messages API, whose three groups of input are disjoint; None means unknown.

    `input_tokens` leaves out what was read from a cache (`cache_read_input_tokens`) and what was written to one
    (`cache_creation_input_tokens`, split by lifetime in `cache_creation`). Thoughts are a part of the output.
    """
    if not isinstance(obj, (dict, Mapping)):
        return None
    try:
        plain, output = _count(obj, "input_tokens"), _count(obj, "output_tokens")
        cached = _count(obj, "cache_read_input_tokens") or 0
        split = _details(obj, "cache_creation")
        hour = _count(split, "ephemeral_1h_input_tokens") or 0
        split_sum = hour + (_count(split, "ephemeral_5m_input_tokens") or 0)
        written = max(_count(obj, "cache_creation_input_tokens") or 0, split_sum)
        thoughts = _count(_details(obj, "output_tokens_details"), "thinking_tokens") or 0
    except _OddCountError:
        return None
    if plain is None or output is None:
        return None
    return Usage(
        input_tokens=plain + cached + written,
        output_tokens=output,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=hour,
        reasoning_tokens=min(thoughts, output),
        service_tier=_tier(obj.get("service_tier")),
    )


def usage_from_gemini(obj: object) -> Usage | None:
    """Read `usageMetadata` of Gemini's own API; None means unknown.

    Thoughts stand beside the candidates, the results of tools beside the prompt, and cached content inside the prompt.
    An absent count is a zero there only when the total agrees.
    """
    if not isinstance(obj, (dict, Mapping)):
        return None
    try:
        prompt = _count(obj, "promptTokenCount")
        tools = _count(obj, "toolUsePromptTokenCount") or 0
        answer, thoughts = _count(obj, "candidatesTokenCount"), _count(obj, "thoughtsTokenCount") or 0
        total = _count(obj, "totalTokenCount")
        cached = _count(obj, "cachedContentTokenCount") or 0
        heard, seen = _modality(obj, "promptTokensDetails", "AUDIO"), _modality(obj, "promptTokensDetails", "IMAGE")
        spoken = _modality(obj, "candidatesTokensDetails", "AUDIO")
    except _OddCountError:
        return None
    if prompt is None or (answer is None and total is None):
        return None
    input_tokens = prompt + tools
    counted = (answer or 0) + thoughts
    if total is not None and total < input_tokens + counted:
        return None
    output_tokens = counted if total is None else total - input_tokens
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=0 if cached > prompt else cached,
        audio_input_tokens=min(heard, input_tokens),
        image_input_tokens=min(seen, input_tokens - min(heard, input_tokens)),
        reasoning_tokens=thoughts,
        audio_output_tokens=min(spoken, output_tokens - thoughts),
        service_tier=_tier(obj.get("serviceTier")),
    )


def _read(obj: Mapping[str, object], *, output: bool, tier: str | None) -> Usage | None:
    given_input = _count(obj, "prompt_tokens", "input_tokens")
    if given_input is None or _anthropic_wire(obj):
        return None
    given_output = _count(obj, "completion_tokens", "output_tokens") if output else 0
    total = _count(obj, "total_tokens")
    output_details = _details(obj, "completion_tokens_details", "output_tokens_details")
    reasoning = (_count(output_details, "reasoning_tokens") or 0) if output_details else 0
    output_tokens = _output(given_input, given_output, total, reasoning)
    if output_tokens is None or reasoning > output_tokens:
        return None
    input_details = _details(obj, "prompt_tokens_details", "input_tokens_details")
    cached = written = None
    heard = seen = spoken = 0
    if input_details:
        cached = _count(input_details, "cached_tokens")
        written = _count(input_details, "cache_write_tokens", "cache_creation_tokens")
        heard = min(_count(input_details, "audio_tokens") or 0, given_input)
        seen = min(_count(input_details, "image_tokens") or 0, given_input - heard)
    if output_details:
        spoken = min(_count(output_details, "audio_tokens") or 0, output_tokens - reasoning)
    if cached is None:
        cached = _count(obj, "prompt_cache_hit_tokens") or 0  # DeepSeek
    if written is None:
        written = _count(obj, "cache_creation_input_tokens") or 0  # Anthropic's models behind a translation
    written = min(written, given_input)
    return Usage(
        input_tokens=given_input,
        output_tokens=output_tokens,
        cached_tokens=0 if cached > given_input else min(cached, given_input - written),
        cache_write_tokens=written,
        audio_input_tokens=heard,
        image_input_tokens=seen,
        reasoning_tokens=reasoning,
        audio_output_tokens=spoken,
        service_tier=tier,
    )


def _output(given_input: int, given_output: int | None, total: int | None, reasoning: int) -> int | None:
    if total is None:
        if given_output is None:
            return None
        return given_output if reasoning <= given_output else given_output + reasoning
    if total < given_input + (given_output or 0):
        return None
    return total - given_input


def _anthropic_wire(obj: Mapping[str, object]) -> bool:
    """Anthropic's own wire: its `input_tokens` leaves out cached tokens and must not be read as a total."""
    return "prompt_tokens" not in obj and ("cache_read_input_tokens" in obj or "cache_creation_input_tokens" in obj)


def _modality(obj: Mapping[str, object], name: str, modality: str) -> int:
    rows = obj.get(name)
    if rows is None:
        return 0
    if not isinstance(rows, list):
        raise _OddCountError
    total = 0
    for row in rows:
        if not isinstance(row, (dict, Mapping)):
            raise _OddCountError
        if row.get("modality") == modality:
            total += _count(row, "tokenCount") or 0
    return total


def _tier(value: object) -> str | None:
    """Return the name of a service tier; what is none, or says no more than `auto`, is unknown."""
    if not isinstance(value, str) or value == "auto" or not 0 < len(value) <= _TIER_LENGTH_MAX:
        return None
    return value.lower()


def _details(obj: Mapping[str, object], *names: str) -> Mapping[str, object]:
    for name in names:
        value = obj.get(name)
        if value is None:
            continue
        if not isinstance(value, (dict, Mapping)):
            raise _OddCountError
        return value
    return {}


def _count(obj: Mapping[str, object], *names: str) -> int | None:
    """Return the first of these fields that is present and not null, None when none is."""
    for name in names:
        value = obj.get(name)
        if value is None:
            continue
        if type(value) is not int or not 0 <= value <= _COUNT_MAX:  # a bool is no count
            raise _OddCountError
        return value
    return None
