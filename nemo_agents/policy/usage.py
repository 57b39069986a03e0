"""What a provider says a call used, on one set of axes for every provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Usage", "usage_from_openai"]

_COUNT_MAX: Final = 10**12
"""More tokens than any call can use; a larger number is a mistake and not a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call.

    `cached_tokens` and `cache_write_tokens` are disjoint parts of `input_tokens`, `reasoning_tokens` a part
    of `output_tokens`. Raises ValueError when they are not.
    """

    input_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        parts = (self.cached_tokens, self.cache_write_tokens, self.reasoning_tokens, self.output_tokens)
        if min(parts) < 0 or self.cached_tokens + self.cache_write_tokens > self.input_tokens:
            raise ValueError(f"cached and written tokens are parts of the input: {self}")
        if self.reasoning_tokens > self.output_tokens:
            raise ValueError(f"reasoning tokens are part of the output: {self}")

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class _OddCountError(ValueError):
    """A count that is present and is no count."""


def usage_from_openai(obj: object, *, output: bool = True) -> Usage | None:
    """Read the `usage` of chat completions, completions, responses or (with `output=False`) embeddings.

    None means unknown: the object is missing, or what it says cannot be true. Explicit zeros are values.
    Accepts `prompt_tokens`/`completion_tokens` and the Responses API's `input_tokens`/`output_tokens`, in
    which cached tokens are a part of the input. Differences between providers are resolved towards the dearer
    reading:

    - Gemini and xAI count reasoning beside `completion_tokens`, and only `total_tokens` shows it: what the
    total
      holds beyond the input is output.
    - Cached tokens beyond the input earn no discount at all; tokens written to a cache count at most the
    input.
    """
    if not isinstance(obj, (dict, Mapping)):  # dict first: asking an abstract class is slow
        return None
    try:
        return _read(obj, output=output)
    except _OddCountError:
        return None


def _read(obj: Mapping[str, object], *, output: bool) -> Usage | None:
    given_input = _count(obj, "prompt_tokens", "input_tokens")
    if given_input is None or _anthropic_wire(obj):
        return None
    given_output = _count(obj, "completion_tokens", "output_tokens") if output else 0
    total = _count(obj, "total_tokens")
    reasoning = _count(_details(obj, "completion_tokens_details", "output_tokens_details"), "reasoning_tokens") or 0
    output_tokens = _output(given_input, given_output, total, reasoning)
    if output_tokens is None or reasoning > output_tokens:
        return None
    input_details = _details(obj, "prompt_tokens_details", "input_tokens_details")
    cached = _count(input_details, "cached_tokens")
    if cached is None:
        cached = _count(obj, "prompt_cache_hit_tokens") or 0  # DeepSeek
    written = min(_count(input_details, "cache_write_tokens", "cache_creation_tokens") or 0, given_input)
    return Usage(
        input_tokens=given_input,
        output_tokens=output_tokens,
        cached_tokens=0 if cached > given_input else min(cached, given_input - written),
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
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
