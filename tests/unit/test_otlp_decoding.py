"""OTLP in protobuf and JSON says the same as the real package wrote, and a bomb costs neither memory nor time."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from nemo_agents.gateway.otlp.faults import BadTraces
from nemo_agents.gateway.otlp.jsonform import OBJECTS_MAX, decode_json, json_answer
from nemo_agents.gateway.otlp.protobuf import FIELDS_MAX, decode_protobuf, encode_answer, encode_status
from nemo_agents.policy.otel.values import ATTRIBUTES_MAX, DEPTH_MAX, SPANS_MAX

TRACE, SPAN, PARENT = "ab" * 16, "cd" * 8, "ef" * 8

scalars = st.one_of(
    st.text(max_size=20),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
attributes = st.dictionaries(st.text(max_size=10), values, max_size=5)
nanoseconds = st.integers(0, (1 << 63) - 1)


def any_value(value: Any) -> AnyValue:
    told = AnyValue()
    if isinstance(value, bool):
        told.bool_value = value
    elif isinstance(value, int):
        told.int_value = value
    elif isinstance(value, float):
        told.double_value = value
    elif isinstance(value, str):
        told.string_value = value
    elif isinstance(value, list):
        told.array_value.SetInParent()
        told.array_value.values.extend(map(any_value, value))
    else:
        told.kvlist_value.SetInParent()
        told.kvlist_value.values.extend(pairs(value))
    return told


def pairs(of: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in of.items()]


def request(*, resource: dict[str, Any] | None = None, spans: int = 1, **given_: Any) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    group.resource.attributes.extend(pairs(resource or {}))
    group.schema_url = "https://opentelemetry.io/schemas/1.45.0"
    scope = group.scope_spans.add()
    scope.scope.name = "some.instrumentation"
    for number in range(spans):
        span = scope.spans.add()
        span.trace_id = bytes.fromhex(given_.get("trace_id", TRACE))
        span.span_id = bytes.fromhex(given_["span_id"]) if "span_id" in given_ else (number + 1).to_bytes(8, "big")
        span.parent_span_id = bytes.fromhex(given_.get("parent_id", ""))
        span.name = given_.get("name", "chat gpt-4o-mini")
        span.kind, span.flags, span.dropped_events_count = 3, 257, 1
        span.start_time_unix_nano, span.end_time_unix_nano = given_.get("times", (1, 2))
        span.attributes.extend(pairs(given_.get("attributes", {})))
        if "exception" in given_:
            event = span.events.add(name="exception", time_unix_nano=2)
            event.attributes.extend(pairs({"exception.type": "ValueError", "exception.message": given_["exception"]}))
        if "failed" in given_:
            span.status.code, span.status.message = 2, given_["failed"]
        span.links.add(trace_id=bytes(16), span_id=bytes(8))
    return message


def as_json(message: ExportTraceServiceRequest) -> bytes:
    """Write a request as OTLP/JSON does: proto3's mapping, with ids in hexadecimal and 64 bit numbers as texts."""
    return msgspec.json.encode(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": [_json_pair(pair) for pair in group.resource.attributes]},
                    "schemaUrl": group.schema_url,
                    "scopeSpans": [
                        {"scope": {"name": scope.scope.name}, "spans": [_json_span(span) for span in scope.spans]}
                        for scope in group.scope_spans
                    ],
                }
                for group in message.resource_spans
            ]
        }
    )


def _json_span(span: Any) -> dict[str, Any]:
    return {
        "traceId": span.trace_id.hex().upper(),
        "spanId": span.span_id.hex(),
        "parentSpanId": span.parent_span_id.hex(),
        "name": span.name,
        "kind": "SPAN_KIND_CLIENT",
        "startTimeUnixNano": str(span.start_time_unix_nano),
        "endTimeUnixNano": str(span.end_time_unix_nano),
        "attributes": [_json_pair(pair) for pair in span.attributes],
        "events": [
            {"name": event.name, "attributes": [_json_pair(pair) for pair in event.attributes]} for event in span.events
        ],
        "status": {"code": span.status.code, "message": span.status.message},
        "links": [{"traceId": link.trace_id.hex()} for link in span.links],
    }


def _json_pair(pair: KeyValue) -> dict[str, Any]:
    return {"key": pair.key, "value": _json_value(pair.value)}


def _json_value(value: AnyValue) -> dict[str, Any]:
    match value.WhichOneof("value"):
        case "string_value":
            return {"stringValue": value.string_value}
        case "bool_value":
            return {"boolValue": value.bool_value}
        case "int_value":
            return {"intValue": str(value.int_value)}
        case "double_value":
            return {"doubleValue": value.double_value}
        case "array_value":
            return {"arrayValue": {"values": [_json_value(each) for each in value.array_value.values]}}
        case _:
            return {"kvlistValue": {"values": [_json_pair(pair) for pair in value.kvlist_value.values]}}


@given(
    told=attributes,
    resource=attributes,
    name=st.text(max_size=30),
    times=st.tuples(nanoseconds, nanoseconds),
)
def test_both_encodings_say_what_was_written(told: Any, resource: Any, name: str, times: Any) -> None:
    message = request(attributes=told, resource=resource, name=name, times=times, span_id=SPAN, parent_id=PARENT)
    (span,), rejected = decode_protobuf(message.SerializeToString())
    assert rejected == 0
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, SPAN, PARENT)
    assert (span.name, span.start_ns, span.end_ns) == (name, *times)
    assert dict(span.attributes) == told
    assert dict(span.resource) == resource
    assert decode_json(as_json(message)) == ([span], 0)


def test_how_a_span_ended_is_read_from_its_status_and_its_exceptions() -> None:
    message = request(failed="it broke", exception="no such file", span_id=SPAN)
    for spans, _ in (decode_protobuf(message.SerializeToString()), decode_json(as_json(message))):
        assert (spans[0].failed, spans[0].message, spans[0].exception) == (True, "it broke", "ValueError: no such file")
        assert spans[0].parent_id is None


def test_bytes_are_told_by_their_size_and_numbers_that_are_none_stay_as_they_are() -> None:
    message = request(span_id=SPAN)
    told = message.resource_spans[0].scope_spans[0].spans[0].attributes
    told.add(key="blob").value.bytes_value = b"12345"
    told.add(key="nan").value.double_value = math.nan
    told.add(key="nothing")
    ((span,), _) = decode_protobuf(message.SerializeToString())
    assert span.attributes["blob"] == "5 bytes"
    assert math.isnan(span.attributes["nan"])
    assert span.attributes["nothing"] is None


@pytest.mark.parametrize("bad", [{"trace_id": "0" * 32}, {"trace_id": "ab"}, {"span_id": "0" * 16}, {"span_id": ""}])
def test_a_span_without_usable_ids_is_counted_and_the_others_are_taken(bad: dict[str, str]) -> None:
    message = request(**{"span_id": SPAN, **bad})
    message.MergeFrom(request(span_id=SPAN))
    for spans, rejected in (decode_protobuf(message.SerializeToString()), decode_json(as_json(message))):
        assert ([span.span_id for span in spans], rejected) == ([SPAN], 1)


def test_answers_are_read_by_the_real_package() -> None:
    assert encode_answer(0, "") == b""
    answer = ExportTraceServiceResponse.FromString(encode_answer(300, "too many ·"))
    assert (answer.partial_success.rejected_spans, answer.partial_success.error_message) == (300, "too many ·")
    assert msgspec.json.decode(json_answer(3, "why")) == {
        "partialSuccess": {"rejectedSpans": "3", "errorMessage": "why"}
    }
    assert json_answer(0, "") == b"{}"
    assert encode_status(3, "no") == b"\x08\x03\x12\x02no"  # google.rpc.Status: 1 code, 2 message


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for decode in (decode_protobuf, decode_json):
        try:
            decode(raw)
        except BadTraces as refused:
            assert refused.status in (400, 413)  # noqa: PT017 - most bytes are refused, and some are a request


@given(st.data())
def test_a_request_that_is_cut_or_changed_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(request(attributes={"a": [1, {"b": "c"}]}, failed="x", exception="y", spans=2).SerializeToString())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        decode_protobuf(bytes(raw[: data.draw(st.integers(at, len(raw)))]))
    except BadTraces as refused:
        assert refused.status in (400, 413)  # noqa: PT017 - what is cut between two fields is a request


# --- bombs --------------------------------------------------------------------------------------------------------
def nested_value(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("decode", [decode_json, decode_protobuf])
def test_what_is_nested_deeper_than_is_read_is_refused(decode: Any) -> None:
    for depth, fits in ((DEPTH_MAX, True), (DEPTH_MAX + 1, False)):
        message = request(attributes={"deep": nested_value(depth)}, span_id=SPAN)
        raw = message.SerializeToString() if decode is decode_protobuf else as_json(message)
        if fits:
            assert decode(raw)[0][0].attributes["deep"] == nested_value(depth)
        else:
            with pytest.raises(BadTraces, match="deep"):
                decode(raw)


def deep_protobuf(depth: int) -> bytes:
    """A value within a value, written by hand: the real package refuses to write as deep."""
    raw = b"\x0a\x01x"
    for _ in range(depth):
        raw = field(5, field(1, raw))
    return field(1, field(2, field(2, field(9, field(1, b"k") + field(2, raw)))))


def field(number: int, content: bytes) -> bytes:
    size, raw = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        raw.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(raw) + bytes([size]) + content


BOMBS = {
    "deep protobuf": (decode_protobuf, lambda: deep_protobuf(20_000), 400),
    "deep JSON": (decode_json, lambda: b'{"resourceSpans":' + b"[" * 100_000, 400),
    "deep JSON values": (
        decode_json,
        lambda: (
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"k","value":'
            + b'{"arrayValue":{"values":[' * 50_000
        ),
        400,
    ),
    "many JSON objects": (decode_json, lambda: b'{"resourceSpans":[' + b"{}," * OBJECTS_MAX + b"{}]}", 413),
    "many unknown JSON parts": (decode_json, lambda: b'{"x":[' + b"[]," * OBJECTS_MAX + b"[]]}", 413),
    "many protobuf groups": (decode_protobuf, lambda: b"\x0a\x00" * (FIELDS_MAX + 1), 413),
    "many protobuf attributes": (
        decode_protobuf,
        lambda: field(1, field(2, field(2, b"\x4a\x00" * (FIELDS_MAX + 1)))),
        413,
    ),
    "many spans": (decode_protobuf, lambda: request(spans=SPANS_MAX + 1).SerializeToString(), 413),
    "many spans in JSON": (decode_json, lambda: as_json(request(spans=SPANS_MAX + 1)), 413),
    "unusable spans": (
        decode_protobuf,
        lambda: request(spans=SPANS_MAX + 1, trace_id="").SerializeToString(),
        413,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_costs_little(name: str) -> None:
    decode, make, status = BOMBS[name]
    raw = make()
    before_s = time.thread_time()
    with pytest.raises(BadTraces) as refused:
        decode(raw)
    assert refused.value.status == status
    assert time.thread_time() - before_s < 5
    tracemalloc.start()
    with pytest.raises(BadTraces):
        decode(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_the_first_attributes_of_many_are_taken() -> None:
    message = request(attributes={f"a{n}": n for n in range(ATTRIBUTES_MAX + 50)}, span_id=SPAN)
    for spans, _ in (decode_protobuf(message.SerializeToString()), decode_json(as_json(message))):
        assert list(spans[0].attributes.values()) == list(range(ATTRIBUTES_MAX))
