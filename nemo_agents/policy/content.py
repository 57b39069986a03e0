"""What a request brings along beside text, and how much of it there can be.

Text is bounded by its bytes. An image is bounded by the most tokens that a provider makes of one, whatever its size
(`Price.image_tokens_max`); spoken input by its length, which follows from its bytes. What is fetched, searched or run
at the provider is bounded by nothing that the request says, and has no place under a budget.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "ANTHROPIC_CLIENT_TOOL",
    "PROVIDER_TOOL_FIELDS",
    "TEXT_ONLY",
    "Content",
    "content_boundable",
    "content_of",
    "is_client_tool",
]

AUDIO_TOKENS_PER_S: Final = 32
"""The most that a second of sound becomes: 32 at Google (Gemini API, "Audio understanding"), 10 at OpenAI."""
_MP3_BYTES_PER_S: Final = 1000
"""The slowest rate that MP3 has: 8 kbit/s (ISO/IEC 13818-3, layer III at low sampling rates)."""
_WAV_HEADER_BYTES: Final = 36
_WAV_CODINGS: Final = frozenset({1, 3, 6, 7})  # PCM, float, A-law, mu-law: what has a constant rate
_DETAILS: Final = frozenset({"low", "high", "auto"})
_IMAGE_PARTS: Final = frozenset({"image_url", "input_image", "image"})

_TEXT_PARTS: Final = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "redacted_thinking",  # encrypted, and longer than what it hides
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
ANTHROPIC_CLIENT_TOOL: Final = re.compile(r"(?:bash|computer|memory|text_editor)_\d{8}")
"""Types of tools that Anthropic describes and the client runs (`anthropic.types.ToolUnionParam`).

All its other types run at Anthropic, or stand for a set of tools: `web_search_…`, `web_fetch_…`, `code_execution_…`,
`tool_search_tool_…`, `mcp_toolset`, `browser_toolset_…`, `computer_toolset_…`.
"""

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
    "cached_content",
    "conversation",
    "fallbacks",  # models that Anthropic asks when the first one declines
    "models",
    "prediction",
    "previous_response_id",
    "speed",
    *PROVIDER_TOOL_FIELDS,
)
_BEYOND_TEXT_NAMES: Final = frozenset(_BEYOND_TEXT)
# Every field that is looked at beside the messages: a request that has none of them is what its messages are.
_LOOKED_AT: Final = _BEYOND_TEXT_NAMES | {
    "audio",
    "cache_control",
    "context_management",
    "inference_geo",
    "input",
    "modalities",
    "prompt",
    "service_tier",
    "system",
    "tools",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a request holds beside text, and how it asks to be billed.

    `images` counts all images, `images_low` those of them with low detail. `audio_tokens` bounds the spoken input.
    `media_bytes` is how much of the body is encoded images and sound, which are no text. `long_cache`: something is to
    be cached for an hour. `audio_output`: the answer may be spoken. `service_tier` is what was asked for, None for
    nothing. `unbounded` is the path to what nothing here bounds; the other fields then say nothing.
    """

    images: int = 0
    images_low: int = 0
    audio_tokens: int = 0
    media_bytes: int = 0
    long_cache: bool = False
    audio_output: bool = False
    service_tier: str | None = None
    unbounded: str | None = None

    def __post_init__(self) -> None:
        if min(self.images, self.images_low, self.audio_tokens, self.media_bytes) < 0 or self.images_low > self.images:
            raise ValueError(f"content is counted from 0, and images of low detail are images: {self}")


TEXT_ONLY: Final = Content()
"""Text and nothing else, billed as usual."""


def is_client_tool(kind: object) -> bool:
    """Say whether a tool of this type, in Anthropic's wire, is run by the client; None is a tool without a type."""
    if kind is None or kind == "custom":
        return True
    return isinstance(kind, str) and ANTHROPIC_CLIENT_TOOL.fullmatch(kind) is not None


def content_boundable(body: Mapping[str, Any]) -> str | None:
    """Return None when the request's cost has an upper bound; else name what has none.

    The name is a path into the request, fit for `error.param`: `messages[2].content[0].file`, `tools[1]`.
    """
    return content_of(body).unbounded


def content_of(body: Mapping[str, Any]) -> Content:
    """Return what the request holds beside text; `unbounded` names the first thing that has no upper bound.

    Bounded are: images inside the request (`data:` URLs, Anthropic's base64 sources) and images elsewhere whose
    `detail` is declared; spoken input inside the request as WAV or MP3; a spoken answer, which the output cap covers.
    Not bounded are: files (a provider bills their text and a picture of each page), images and sound by reference
    alone, tools of the provider's, and content of kinds unknown here.
    """
    if _LOOKED_AT.isdisjoint(body) and _all_plain(body.get("messages")):
        return TEXT_ONLY
    found = _Found()
    found.unbounded = _walk(body, found)
    return found.content()


@dataclass(slots=True)
class _Found:
    """What the walk through one request has found so far."""

    images: int = 0
    images_low: int = 0
    audio_tokens: int = 0
    media_bytes: int = 0
    long_cache: bool = False
    audio_output: bool = False
    service_tier: str | None = None
    unbounded: str | None = None

    def content(self) -> Content:
        if self.unbounded is not None:
            return Content(unbounded=self.unbounded)
        if not (self.images or self.audio_tokens or self.long_cache or self.audio_output or self.service_tier):
            return TEXT_ONLY
        return Content(
            images=self.images,
            images_low=self.images_low,
            audio_tokens=self.audio_tokens,
            media_bytes=self.media_bytes,
            long_cache=self.long_cache,
            audio_output=self.audio_output,
            service_tier=self.service_tier,
        )


def _walk(body: Mapping[str, Any], found: _Found) -> str | None:
    if not _BEYOND_TEXT_NAMES.isdisjoint(body):
        for name in _BEYOND_TEXT:
            if body.get(name) is not None:  # also an empty object: to some providers it is a switch
                return name
    tier = body.get("service_tier")
    if tier is not None:
        if not isinstance(tier, str):
            return "service_tier"
        found.service_tier = tier.lower()
    if isinstance(body.get("prompt"), (dict, Mapping)):  # a prompt that is stored at the provider
        return "prompt"
    return (
        _answer(body, found)
        or _beyond_rates(body)
        or _cached(body, "cache_control", found)
        or _tools(body, found)
        or _messages(body, found)
        or _items(body, found)
        or _parts(body.get("system"), "system", found)
    )


def _answer(body: Mapping[str, Any], found: _Found) -> str | None:
    """Look at what the answer may be: text, or speech, whose tokens count against the same cap."""
    modalities, audio = body.get("modalities"), body.get("audio")
    if modalities is not None:
        if not isinstance(modalities, list) or not modalities:
            return "modalities"
        if not all(isinstance(kind, str) and kind in ("text", "audio") for kind in modalities):
            return "modalities"
        found.audio_output = "audio" in modalities
    if audio is not None and not (found.audio_output and isinstance(audio, dict) and audio):
        return "audio"
    return None


def _beyond_rates(body: Mapping[str, Any]) -> str | None:
    """Look for what Anthropic bills beside the tokens of the call: a region of its own, and further samplings.

    Clearing old tool results or thoughts takes something away; compaction is a second answer that is billed, too.
    """
    if body.get("inference_geo") not in (None, "global"):
        return "inference_geo"
    managed = body.get("context_management")
    if managed is None:
        return None
    edits = managed.get("edits") if isinstance(managed, (dict, Mapping)) else managed
    for edit in edits if isinstance(edits, list) else (edits,):
        kind = edit.get("type") if isinstance(edit, (dict, Mapping)) else None
        if edit is not None and not (isinstance(kind, str) and kind.startswith("clear_")):
            return "context_management"
    return None


def _tools(body: Mapping[str, Any], found: _Found) -> str | None:
    for where, tool in _objects(body.get("tools"), "tools"):
        kind = tool.get("type")
        if not _is_one_of(kind, _CLIENT_TOOLS) and not is_client_tool(kind):
            return where
        cached = _cached(tool, f"{where}.cache_control", found)
        if cached:
            return cached
    return None


def _messages(body: Mapping[str, Any], found: _Found) -> str | None:
    messages = body.get("messages")
    if _all_plain(messages):
        return None
    for where, message in _objects(messages, "messages"):
        if message.get("audio") is not None:  # an earlier spoken answer, by its id
            return f"{where}.audio"
        unbounded = _cached(message, f"{where}.cache_control", found) or _parts(
            message.get("content"), f"{where}.content", found
        )
        if unbounded:
            return unbounded
    return None


def _all_plain(messages: Any) -> bool:
    """Say whether each message is a text and nothing that could be more; false says nothing."""
    if not isinstance(messages, list):
        return messages is None
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return False
        if "audio" in message or "cache_control" in message:
            return False
    return True


def _items(body: Mapping[str, Any], found: _Found) -> str | None:
    """Look through the `input` of the Responses API; texts and token lists (also of embeddings) are text."""
    for where, item in _objects(body.get("input"), "input"):
        if not _is_one_of(item.get("type", "message"), _TEXT_ITEMS):
            return where
        unbounded = _parts(item.get("content"), f"{where}.content", found) or _parts(
            item.get("output"), f"{where}.output", found
        )
        if unbounded:
            return unbounded
    return None


def _parts(content: Any, where: str, found: _Found, *, depth: int = 0) -> str | None:
    if depth > _NESTING_MAX:
        return where
    for here, part in _objects(content, where):
        kind = part.get("type", "text")
        if _is_one_of(kind, _IMAGE_PARTS):
            bounded = _image(part, kind, found)
        elif kind == "input_audio":
            bounded = _sound(part.get("input_audio"), found)
        else:
            bounded = _is_one_of(kind, _TEXT_PARTS)
        if not bounded:
            return f"{here}.{kind}" if isinstance(kind, str) and kind.isidentifier() else here
        unbounded = _cached(part, f"{here}.cache_control", found) or _parts(
            part.get("content"), f"{here}.content", found, depth=depth + 1
        )
        if unbounded:
            return unbounded
    return None


def _image(part: Mapping[str, Any], kind: str, found: _Found) -> bool:
    """Count an image in one of its three spellings; false when it is only referred to, at no declared detail."""
    image = part.get("image_url")
    holder = image if kind == "image_url" and isinstance(image, (dict, Mapping)) else part
    detail, url = holder.get("detail"), holder.get("url") if holder is image else image
    if detail is not None and not isinstance(detail, str):
        return False
    if kind == "image":
        source = part.get("source")
        if not isinstance(source, (dict, Mapping)) or source.get("type") != "base64":
            return False
        data, detail = source.get("data"), None
        if not isinstance(data, str):
            return False
        inline = len(data)
    else:
        inline = len(url) if isinstance(url, str) and url[:11].lower() == "data:image/" else 0
        if not inline and detail not in _DETAILS:
            return False
    found.images += 1
    found.images_low += detail == "low"
    found.media_bytes += inline
    return True


def _sound(sound: Any, found: _Found) -> bool:
    """Count spoken input by its length; false when its bytes do not bound its length."""
    if not isinstance(sound, (dict, Mapping)) or not isinstance(sound.get("data"), str):
        return False
    data = sound["data"]
    try:
        head = base64.b64decode(data[:64], validate=True)
    except (ValueError, binascii.Error):
        return False
    rate = _bytes_per_second(head, sound.get("format"))
    if not rate:
        return False
    size = -(-len(data) * 3 // 4)
    found.audio_tokens += -(-size * AUDIO_TOKENS_PER_S // rate)
    found.media_bytes += len(data)
    return True


def _bytes_per_second(head: bytes, coding: Any) -> int:
    """Return how many bytes a second of sound takes at least; 0 when that is not known.

    Silence compresses to nothing in every other coding (Opus, FLAC, AAC), so that a few bytes could be hours.
    """
    if coding == "mp3":
        is_mp3 = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
        return _MP3_BYTES_PER_S if is_mp3 else 0
    if coding != "wav" or len(head) < _WAV_HEADER_BYTES or head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt ":
        return 0
    coded, channels, sampled_hz, _, _, bits = struct.unpack("<HHIIHH", head[20:36])
    return channels * sampled_hz * (bits // 8) if coded in _WAV_CODINGS else 0


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


def _cached(value: Mapping[str, Any], where: str, found: _Found) -> str | None:
    """Note a cache of an hour; name one of a lifetime that has no known price."""
    cache = value.get("cache_control")
    if not isinstance(cache, Mapping):
        return None
    ttl = cache.get("ttl")
    if ttl is None or ttl == "5m":
        return None
    if ttl != "1h":
        return where
    found.long_cache = True
    return None
