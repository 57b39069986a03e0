"""How much a request makes a model read and write, from its fields alone.

The bound on input tokens is the number of bytes: tokenizers that work on bytes or fall back to them (every
current provider's) never make more tokens than UTF-8 bytes. A bound on characters would be wrong, a character
can be four.

Every wire is read here alike, whichever it is: a field that one of them lacks is absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nemo_agents.policy.content import ANTHROPIC_CLIENT_TOOL

__all__ = [
    "OUTPUT_TOKENS_MAX",
    "ParamError",
    "answers_asked",
    "bytes_read",
    "framing_tokens",
    "input_tokens_bound",
    "input_tokens_estimate",
    "output_cap",
    "output_tokens_max",
    "text_read",
]

OUTPUT_TOKENS_MAX: Final = 10_000_000
"""The largest `max_tokens` that is taken seriously."""
_CHOICES_MAX: Final = 128
_OUTPUT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")

_FRAMING_PER_MESSAGE: Final = 16
_HIDDEN_PREAMBLE: Final = 600
"""Providers wrap tool declarations and schemas into words of their own: this many tokens at most."""

_DESCRIBED_BY_PROVIDER: Final = 2_000
"""What Anthropic makes of a tool that it describes itself: 735 tokens at most are published (computer use)."""

# Fields of a request that steer the call and are not shown to the model. A field that is not listed counts as
# read.
_NOT_READ: Final = frozenset(
    {
        "model",
        "metadata",
        "user",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "best_of",
        "seed",
        "stop",
        "stop_sequences",
        "store",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "service_tier",
        "parallel_tool_calls",
        "reasoning_effort",
        "encoding_format",
        "dimensions",
        "prompt_cache_key",
        "safety_identifier",
        "nemo_guardrail_ids",
    }
)


class ParamError(ValueError):
    """A parameter of a request that cannot be meant; `param` is its name."""

    def __init__(self, message: str, *, param: str) -> None:
        self.param = param
        super().__init__(message)


def bytes_read(body: Mapping[str, Any]) -> int:
    """Return how many bytes of the request a model may get to read, as JSON."""
    size = 0
    for name, value in body.items():
        if value is not None and name not in _NOT_READ:
            size += _json_size(value)
    return size


def text_read(body: Mapping[str, Any]) -> str:
    """Return what a model may get to read, as one JSON text. Raises UnicodeError for lone surrogates."""
    read = [value for name, value in body.items() if value is not None and name not in _NOT_READ]
    return msgspec.json.encode(read).decode()


def input_tokens_bound(body: Mapping[str, Any], size: int | None = None) -> int:
    """Return more tokens than the request's text can be for any model; `size` is its `bytes_read`, where known.

    It holds for text only: ask `content_boundable` first whether the request brings in anything else.
    """
    read = bytes_read(body) if size is None else size
    return read + framing_tokens(body)


def framing_tokens(body: Mapping[str, Any]) -> int:
    """Return how many tokens a provider may put around the request's texts, at most."""
    return _FRAMING_PER_MESSAGE * _message_count(body) + _preamble(body)


def input_tokens_estimate(body: Mapping[str, Any], size: int | None = None) -> int:
    """Return about how many tokens the text is, at least 1: four bytes each; for rates, not for money."""
    return max(1, -(-(bytes_read(body) if size is None else size) // 4))


def _json_size(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except UnicodeEncodeError:  # lone surrogates have no UTF-8; escaped they are longer, never shorter
        return len(json.dumps(value))


def _message_count(body: Mapping[str, Any]) -> int:
    count = 1
    for name in ("messages", "input", "prompt"):
        items = body.get(name)
        if items is not None and not isinstance(items, str) and isinstance(items, (list, Sequence)):
            count += len(items)
    return count


def _preamble(body: Mapping[str, Any]) -> int:
    get = body.get
    tools = get("tools")
    schema = get("response_format") or get("text") or get("output_config") or get("output_format")
    if not (tools or schema or get("functions")):
        return 0
    described = sum(_is_described_by_provider(tool) for tool in tools) if isinstance(tools, list) else 0
    return _HIDDEN_PREAMBLE + described * _DESCRIBED_BY_PROVIDER


def _is_described_by_provider(tool: object) -> bool:
    kind = tool.get("type") if isinstance(tool, (dict, Mapping)) else None
    return isinstance(kind, str) and ANTHROPIC_CLIENT_TOOL.fullmatch(kind) is not None


def output_cap(body: Mapping[str, Any], default: int) -> int:
    """Return how many tokens one answer may have: what the client set, else `default`.

    The same number must be written into the upstream request. Raises ParamError for anything but a whole
    number from 1 to `OUTPUT_TOKENS_MAX`, and when two fields disagree. `null` is as good as absent.
    """
    chosen: int | None = None
    for name in _OUTPUT_FIELDS:
        if body.get(name) is None:
            continue
        value = _whole(body[name], name, most=OUTPUT_TOKENS_MAX)
        if chosen is not None and value != chosen:
            raise ParamError(f"{name} ({value}) contradicts another limit on the answer ({chosen}).", param=name)
        chosen = value
    return default if chosen is None else chosen


def answers_asked(body: Mapping[str, Any]) -> int:
    """Return how many answers the request asks for: `n` or `best_of` of each prompt. Raises ParamError."""
    choices = 1
    for name in ("n", "best_of"):
        if body.get(name) is not None:
            choices = max(choices, _whole(body[name], name, most=_CHOICES_MAX))
    return choices * _prompt_count(body.get("prompt"))


def output_tokens_max(body: Mapping[str, Any], default: int) -> int:
    """Return the most output tokens the request can bring about, over all its answers. Raises ParamError."""
    return output_cap(body, default) * answers_asked(body)


def _prompt_count(prompt: Any) -> int:
    """Count the prompts of `/v1/completions`: a list of texts or of token lists is many, of tokens one."""
    if not isinstance(prompt, list) or all(isinstance(item, int) for item in prompt):
        return 1
    return len(prompt)


def _whole(value: Any, name: str, *, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ParamError(f"{name} must be a whole number from 1 to {most}.", param=name)
    return value
