"""OTLP's trace messages as JSON, read within bounds.

The mapping is that of proto3 with hexadecimal ids (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
Unknown fields are passed over without being kept, so that memory is bounded by how many objects a body begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from nemo_agents.gateway.otlp.faults import BadTraces
from nemo_agents.policy.otel.values import ATTRIBUTES_MAX, DEPTH_MAX, SPANS_MAX, OtelSpan, exception_text

__all__ = ["OBJECTS_MAX", "decode_json", "json_answer"]

OBJECTS_MAX: Final = 400_000
"""Braces and brackets that open in one body, those in texts among them: each may cost a hundred bytes of memory."""

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"(?!0{16})[0-9a-f]{16}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")
_ERRORS: Final = (2, "2", "STATUS_CODE_ERROR")


class _AnyValue(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _ArrayValue | None = None
    kvlist_value: _KeyValueList | None = None
    bytes_value: str | None = None


class _ArrayValue(msgspec.Struct):
    values: list[_AnyValue] = []


class _KeyValue(msgspec.Struct):
    key: str = ""
    value: _AnyValue | None = None


class _KeyValueList(msgspec.Struct):
    values: list[_KeyValue] = []


class _Event(msgspec.Struct):
    name: str = ""
    attributes: list[_KeyValue] = []


class _Status(msgspec.Struct):
    code: int | str = 0
    message: str = ""


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = None
    name: str = ""
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[_KeyValue] = []
    events: list[_Event] = []
    status: _Status | None = None


class _ScopeSpans(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct):
    attributes: list[_KeyValue] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


_decoder = msgspec.json.Decoder(_Request)


def decode_json(raw: bytes) -> tuple[list[OtelSpan], int]:
    """Read an ExportTraceServiceRequest: its spans, and how many had no usable id. Raises BadTraces."""
    if raw.count(b"{") + raw.count(b"[") > OBJECTS_MAX:
        raise BadTraces("The request has too many parts. Send fewer spans at a time.", status=413)
    try:
        request = _decoder.decode(raw)
    except RecursionError:
        raise BadTraces("The body is not accepted: nested too deeply.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadTraces(f"The body is not an ExportTraceServiceRequest in JSON: {str(error).rstrip('.')}.") from None
    spans: list[OtelSpan] = []
    rejected = 0
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes) if group.resource is not None else {}
        for span in [span for scope in group.scope_spans for span in scope.spans]:
            if len(spans) + rejected >= SPANS_MAX:
                raise BadTraces(f"The request has more than {SPANS_MAX} spans. Send fewer at a time.", status=413)
            read = _span(span, resource)
            if read is None:
                rejected += 1
            else:
                spans.append(read)
    return spans, rejected


def json_answer(rejected: int, message: str) -> bytes:
    """Return an ExportTraceServiceResponse; it is empty when all of the spans were taken."""
    if not rejected and not message:
        return b"{}"
    return msgspec.json.encode({"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": message}})


def _span(span: _Span, resource: dict[str, Any]) -> OtelSpan | None:
    trace_id, span_id = span.trace_id.lower(), span.span_id.lower()
    parent_id = (span.parent_span_id or "").lower()
    if not (_TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id)):
        return None
    told = [exception_text(_attributes(event.attributes)) for event in span.events if event.name == "exception"]
    return OtelSpan(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id if _SPAN_ID.fullmatch(parent_id) else None,
        name=span.name,
        start_ns=_time(span.start_time_unix_nano),
        end_ns=_time(span.end_time_unix_nano),
        attributes=_attributes(span.attributes),
        resource=resource,
        failed=span.status is not None and span.status.code in _ERRORS,
        message=span.status.message if span.status is not None else "",
        exception=next((text for text in reversed(told) if text), None),
    )


def _attributes(pairs: Sequence[_KeyValue], depth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        if len(found) >= ATTRIBUTES_MAX:
            break
        found[pair.key] = None if pair.value is None else _value(pair.value, depth)
    return found


def _value(value: _AnyValue, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise BadTraces(f"An attribute is nested more than {DEPTH_MAX} deep.")
    if value.string_value is not None:
        return value.string_value
    if value.bool_value is not None:
        return value.bool_value
    if value.int_value is not None:
        return _integer(value.int_value)
    if value.double_value is not None:
        return value.double_value  # `NaN` and the infinities are texts in JSON
    if value.array_value is not None:
        return [_value(each, depth + 1) for each in value.array_value.values]
    if value.kvlist_value is not None:
        return _attributes(value.kvlist_value.values, depth + 1)
    return None if value.bytes_value is None else f"{len(value.bytes_value) * 3 // 4} bytes"


def _integer(told: int | str) -> int | str:
    return int(told) if isinstance(told, str) and _NUMBER.fullmatch(told) else told


def _time(told: int | str) -> int:
    read = _integer(told)
    return read if isinstance(read, int) and read > 0 else 0
