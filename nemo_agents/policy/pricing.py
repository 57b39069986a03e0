"""What a call costs, and what it can cost at most.

Prices are integer nanos (1e-9 dollar) per million tokens, so that every published price is exact. A hold is
an upper bound: no usage within its token bounds costs more. Amounts are rounded up, once, at the end.

The bound on input tokens is the number of bytes: tokenizers that work on bytes or fall back to them (every
current provider's) never make more tokens than UTF-8 bytes. A bound on characters would be wrong, a character
can be four.

`prompt`, `best_of` and the `input` of responses belong to endpoints that the gateway does not serve yet; they are
bounded here all the same, so that no endpoint is added without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nemo_agents.policy.usage import Usage

__all__ = [
    "OUTPUT_TOKENS_MAX",
    "PROVIDER_TOOL_FIELDS",
    "ParamError",
    "Price",
    "PriceTier",
    "Rates",
    "answers_asked",
    "bytes_read",
    "content_boundable",
    "cost_nanos",
    "input_tokens_bound",
    "input_tokens_estimate",
    "output_cap",
    "output_tokens_max",
    "upper_bound_nanos",
]

_MTOK: Final = 1_000_000
OUTPUT_TOKENS_MAX: Final = 10_000_000
"""The largest `max_tokens` that is taken seriously."""
_CHOICES_MAX: Final = 128
_OUTPUT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")

_FRAMING_PER_MESSAGE: Final = 16
_HIDDEN_PREAMBLE: Final = 600
"""Providers wrap tool declarations and schemas into words of their own: this many tokens at most."""

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

_TEXT_PARTS: Final = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "refusal",
        "thinking",
        "tool_use",
        "tool_result",
        "summary_text",
        "reasoning_text",
    }
)
_TEXT_ITEMS: Final = frozenset(
    {
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
    }
)
_NESTING_MAX: Final = 4
"""A tool's result inside a message is the deepest content that any wire format has."""
_CLIENT_TOOLS: Final = frozenset({"function", "custom"})
_PLAIN_TIERS: Final = frozenset({"auto", "default", "flex", "standard", "standard_only"})

PROVIDER_TOOL_FIELDS: Final = (
    "container",
    "extra_body",  # some providers read further fields from it, tools among them
    "mcp_servers",
    "plugins",
    "search_parameters",
    "web_search_options",
)
"""Fields beside `tools` that give a model a tool of its provider's: web search, a shell, other servers.

Being there is enough: an empty `web_search_options` switches web search on. Only `null` is as good as absent.
"""
# Fields that make a provider read, run, search or bill something the request does not contain.
_BEYOND_TEXT: Final = (
    "audio",
    "cached_content",
    "conversation",
    "models",
    "prediction",
    "previous_response_id",
    "speed",
    *PROVIDER_TOOL_FIELDS,
)
_BEYOND_TEXT_NAMES: Final = frozenset(_BEYOND_TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Nanos per million tokens; where a provider has no price for cached or written input, that of input."""

    input: int
    cached_input: int
    cache_write: int
    output: int

    def __post_init__(self) -> None:
        if min(self.input, self.cached_input, self.cache_write, self.output) < 0:
            raise ValueError(f"a price is at least 0: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTier(Rates):
    """Rates for all tokens of a call whose input is larger than `above` tokens."""

    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price(Rates):
    """The price of one model: its rates, dearer tiers for long input, and nanos per request beside tokens.

    `version` says where the numbers are from; a ledger entry keeps it, so that a later table changes no past
    amount.
    """

    version: str
    request_nanos: int = 0
    tiers: tuple[PriceTier, ...] = ()

    def __post_init__(self) -> None:
        Rates.__post_init__(self)  # super() does not reach through a slotted dataclass
        if self.request_nanos < 0:
            raise ValueError(f"a price is at least 0: {self}")
        if [tier.above for tier in self.tiers] != sorted({tier.above for tier in self.tiers}):
            raise ValueError("price tiers are in ascending order, and no two begin at the same size")

    def rates_for(self, input_tokens: int) -> Rates:
        """Return the rates for this much input; crossing into a tier reprices all tokens of the call."""
        rates: Rates = self
        for tier in self.tiers:
            if input_tokens > tier.above:
                rates = tier
        return rates


class ParamError(ValueError):
    """A parameter of a request that cannot be meant; `param` is its name."""

    def __init__(self, message: str, *, param: str) -> None:
        self.param = param
        super().__init__(message)


def upper_bound_nanos(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """Return what a call costs at most: the dearest way to bill each token, over every tier it can reach."""
    if input_tokens_max < 0 or output_tokens_max < 0:
        raise ValueError("token bounds are at least 0")
    input_rate, output_rate = max(price.input, price.cached_input, price.cache_write), price.output
    for tier in price.tiers:
        if tier.above < input_tokens_max:
            input_rate = max(input_rate, tier.input, tier.cached_input, tier.cache_write)
            output_rate = max(output_rate, tier.output)
    return price.request_nanos + _per_mtok(input_rate * input_tokens_max + output_rate * output_tokens_max)


def cost_nanos(price: Price, usage: Usage) -> int:
    """Return what a call cost, exactly, rounded up to a whole nano."""
    rates = price.rates_for(usage.input_tokens)
    plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    return price.request_nanos + _per_mtok(
        rates.input * plain
        + rates.cached_input * usage.cached_tokens
        + rates.cache_write * usage.cache_write_tokens
        + rates.output * usage.output_tokens
    )


def _per_mtok(product: int) -> int:
    return -(-product // _MTOK)


def bytes_read(body: Mapping[str, Any]) -> int:
    """Return how many bytes of the request a model may get to read, as JSON."""
    size = 0
    for name, value in body.items():
        if value is not None and name not in _NOT_READ:
            size += _json_size(value)
    return size


def input_tokens_bound(body: Mapping[str, Any], size: int | None = None) -> int:
    """Return more tokens than the request's text can be for any model; `size` is its `bytes_read`, where known.

    It holds for text only: ask `content_boundable` first whether the request brings in anything else.
    """
    read = bytes_read(body) if size is None else size
    return read + _FRAMING_PER_MESSAGE * _message_count(body) + _preamble(body)


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
    wrapped = get("tools") or get("functions") or get("response_format") or get("text")
    return _HIDDEN_PREAMBLE if wrapped else 0


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


def content_boundable(body: Mapping[str, Any]) -> str | None:
    """Return None when bytes and `max_tokens` bound the request's cost; else name what they do not bound.

    The name is a path into the request, fit for `error.param`: `messages[2].content[0].image_url`,
    `tools[1]`. Images, audio and files cost what the provider decides, wherever they are; provider-side tools
    fetch text of their own; a priority tier and an hour-long cache are billed at other prices.
    """
    if not _BEYOND_TEXT_NAMES.isdisjoint(body):
        for name in _BEYOND_TEXT:
            if body.get(name) is not None:  # also an empty object: to some providers it is a switch
                return name
    tier = body.get("service_tier")
    if tier is not None and not _is_one_of(tier, _PLAIN_TIERS):
        return "service_tier"
    modalities = body.get("modalities")
    if modalities is not None and modalities != ["text"]:
        return "modalities"
    if isinstance(body.get("prompt"), (dict, Mapping)):  # a prompt that is stored at the provider
        return "prompt"
    return _tools(body) or _messages(body) or _items(body) or _parts(body.get("system"), "system")


def _tools(body: Mapping[str, Any]) -> str | None:
    for where, tool in _objects(body.get("tools"), "tools"):
        if not _is_one_of(tool.get("type", "function"), _CLIENT_TOOLS):
            return where
        if _long_cache(tool):
            return f"{where}.cache_control"
    return None


def _messages(body: Mapping[str, Any]) -> str | None:
    messages = body.get("messages")
    if isinstance(messages, list) and all(_plain(message) for message in messages):
        return None
    for where, message in _objects(messages, "messages"):
        if message.get("audio") is not None:  # an earlier spoken answer, by its id
            return f"{where}.audio"
        if _long_cache(message):
            return f"{where}.cache_control"
        found = _parts(message.get("content"), f"{where}.content")
        if found:
            return found
    return None


def _plain(message: Any) -> bool:
    """Say whether a message is a text and nothing that could be more; false says nothing."""
    return (
        isinstance(message, dict)
        and isinstance(message.get("content"), str)
        and "audio" not in message
        and "cache_control" not in message
    )


def _items(body: Mapping[str, Any]) -> str | None:
    """Look through the `input` of the Responses API; texts and token lists (also of embeddings) are text."""
    for where, item in _objects(body.get("input"), "input"):
        if not _is_one_of(item.get("type", "message"), _TEXT_ITEMS):
            return where
        found = _parts(item.get("content"), f"{where}.content") or _parts(item.get("output"), f"{where}.output")
        if found:
            return found
    return None


def _parts(content: Any, where: str, *, depth: int = 0) -> str | None:
    if depth > _NESTING_MAX:
        return where
    for here, part in _objects(content, where):
        kind = part.get("type", "text")
        if not _is_one_of(kind, _TEXT_PARTS):
            return f"{here}.{kind}" if isinstance(kind, str) and kind.isidentifier() else here
        if _long_cache(part):
            return f"{here}.cache_control"
        found = _parts(part.get("content"), f"{here}.content", depth=depth + 1)
        if found:
            return found
    return None


def _objects(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects in a list, or the one object that stands in its place, each with its path."""
    if value is None or isinstance(value, str):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, (dict, Mapping)):
                yield f"{where}[{index}]", item
    elif isinstance(value, (dict, Mapping)):
        yield where, value


def _is_one_of(kind: Any, known: frozenset[str]) -> bool:
    return isinstance(kind, str) and kind in known


def _long_cache(value: Mapping[str, Any]) -> bool:
    cache = value.get("cache_control")
    return isinstance(cache, Mapping) and cache.get("ttl", "5m") != "5m"
