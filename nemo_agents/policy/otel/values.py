"""Spans as values: as OTLP brings them, as they are kept, and how much of one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

__all__ = [
    "ATTRIBUTES_MAX",
    "ATTRIBUTE_CHARS_MAX",
    "DEPTH_MAX",
    "ERROR_CHARS_MAX",
    "NAME_CHARS_MAX",
    "SPANS_MAX",
    "TEXT_BYTES_MAX",
    "OtelSpan",
    "SpanFacts",
    "SpanKind",
    "Value",
    "cut",
    "cut_bytes",
    "exception_text",
]

SPANS_MAX: Final = 2_000
"""Spans in one request."""
ATTRIBUTES_MAX: Final = 128
"""Attributes of one span, and of one resource; the first ones are taken (OpenTelemetry's own default limit)."""
DEPTH_MAX: Final = 16
"""Lists and maps within one another in one attribute."""
TEXT_BYTES_MAX: Final = 32 * 1024
"""UTF-8 bytes that are kept of an input or output."""
ATTRIBUTE_CHARS_MAX: Final = 2_000
"""Characters that are kept of any other attribute."""
ERROR_CHARS_MAX: Final = 4_000
NAME_CHARS_MAX: Final = 200

Value: TypeAlias = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
SpanKind = Literal["agent", "task", "tool", "chain", "retriever", "guardrail", "llm", "other"]


class OtelSpan(Struct, frozen=True, kw_only=True):
    """One span as OTLP has it. Times are nanoseconds since the epoch, 0 where there is none."""

    trace_id: str  # 32 hex
    span_id: str  # 16 hex
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = {}  # of Value
    resource: Mapping[str, Any] = {}
    failed: bool = False
    message: str = ""  # of the status
    exception: str | None = None  # `type: message` of the last event of that name


class SpanFacts(Struct, frozen=True, kw_only=True):
    """What a span tells, whichever convention it is written in. `run_id` and `step` are None where it names none."""

    span_id: str
    parent_id: str | None
    kind: SpanKind
    name: str
    state: Literal["running", "ok", "failed"]
    started_us: int
    ended_us: int | None
    is_root: bool = False  # of a trace that is a run: how it went is how the run went
    run_id: str | None = None
    trace_id: str = ""
    step: str | None = None
    role: str | None = None
    error: str | None = None
    request_id: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input: str | None = None
    output: str | None = None
    attributes: Mapping[str, Any] = {}  # scalars


def exception_text(attributes: Mapping[str, Any]) -> str | None:
    """Return `type: message` of an `exception` event, as the conventions for exceptions name them."""
    parts = [attributes.get("exception.type"), attributes.get("exception.message")]
    return ": ".join(part for part in parts if isinstance(part, str) and part) or None


def cut(text: str, most_chars: int) -> str:
    """Return a text of at most so many characters, with `…` where something is left out."""
    return text if len(text) <= most_chars else text[: most_chars - 1] + "…"


def cut_bytes(text: str, most_bytes: int) -> str:
    """Return the beginning of a text that has at most so many bytes in UTF-8, with `…` where something is left out."""
    if len(text) * 4 <= most_bytes or len(raw := text.encode("utf-8", "replace")) <= most_bytes:
        return text
    return raw[: most_bytes - 3].decode("utf-8", "ignore") + "…"
