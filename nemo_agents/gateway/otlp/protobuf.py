"""OTLP's trace messages in protobuf's binary form, read within bounds.

The messages: https://github.com/open-telemetry/opentelemetry-proto (v1), `collector/trace/v1/trace_service.proto`,
`trace/v1/trace.proto`, `common/v1/common.proto`. The encoding: https://protobuf.dev/programming-guides/encoding/.
Only the fields that are used here are read; every other field is passed over, whatever its number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from nemo_agents.gateway.otlp.faults import BadTraces
from nemo_agents.policy.otel.values import ATTRIBUTES_MAX, DEPTH_MAX, SPANS_MAX, OtelSpan, exception_text

__all__ = ["FIELDS_MAX", "decode_protobuf", "encode_answer", "encode_status"]

FIELDS_MAX: Final = 200_000
"""Fields in one request, each a step of this decoder: a second's work at most."""

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_VARINT_BYTES_MAX: Final = 10
_ERROR: Final = 2
_double = struct.Struct("<d").unpack
_fixed64 = struct.Struct("<Q").unpack

_Field = tuple[int, int, Any]  # number, wire type, and an int or a piece of the message


def decode_protobuf(raw: bytes) -> tuple[list[OtelSpan], int]:
    """Read an ExportTraceServiceRequest: its spans, and how many had no usable id. Raises BadTraces."""
    reader = _Reader()
    for number, wire, value in reader.fields(memoryview(raw)):
        if number == 1 and wire == _BYTES:
            reader.resource_spans(value)
    return reader.spans, reader.rejected


class _Reader:
    def __init__(self) -> None:
        self.spans: list[OtelSpan] = []
        self.rejected = 0
        self._left = FIELDS_MAX

    def fields(self, message: memoryview) -> Iterator[_Field]:
        """Yield the fields of a message."""
        at, end = 0, len(message)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise BadTraces(f"The request has more than {FIELDS_MAX} fields. Send fewer spans.", status=413)
            key, at = _varint(message, at)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise _malformed("a field has the number 0")
            value: Any
            if wire == _VARINT:
                value, at = _varint(message, at)
            elif wire == _BYTES:
                size, at = _varint(message, at)
                value, at = message[at : at + size], at + size
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
                value, at = message[at : at + size], at + size
            else:  # groups are not in these messages, nor in any that proto3 can write
                raise _malformed(f"wire type {wire}")
            if at > end:
                raise _malformed("a field is longer than what is left")
            yield number, wire, value

    def resource_spans(self, message: memoryview) -> None:
        resource: dict[str, Any] = {}
        scopes: list[memoryview] = []
        for number, wire, value in self.fields(message):
            if wire != _BYTES:
                continue
            if number == 1:
                self._attributes_in(value, 1, resource)
            elif number == 2:
                scopes.append(value)
        for scope in scopes:
            for number, wire, value in self.fields(scope):
                if number == 2 and wire == _BYTES:
                    self._span(value, resource)

    def _attributes_in(self, message: memoryview, field: int, into: dict[str, Any]) -> None:
        for number, wire, value in self.fields(message):
            if number == field and wire == _BYTES:
                self._attribute(value, into)

    def _span(self, message: memoryview, resource: dict[str, Any]) -> None:
        if len(self.spans) + self.rejected >= SPANS_MAX:
            raise BadTraces(f"The request has more than {SPANS_MAX} spans. Send fewer at a time.", status=413)
        ids = {1: "", 2: "", 4: ""}
        times = {7: 0, 8: 0}
        name = message_ = ""
        failed, exception = False, None
        attributes: dict[str, Any] = {}
        for number, wire, value in self.fields(message):
            if wire == _FIXED64 and number in times:
                (times[number],) = _fixed64(value)
            elif wire != _BYTES:
                continue
            elif number in ids:
                ids[number] = bytes(value).hex()
            elif number == 5:
                name = _utf8(value)
            elif number == 9:
                self._attribute(value, attributes)
            elif number == 11:
                exception = self._exception(value) or exception
            elif number == 15:
                failed, message_ = self._status(value)
        if not (_is_id(ids[1], 32) and _is_id(ids[2], 16)):
            self.rejected += 1
            return
        self.spans.append(
            OtelSpan(
                trace_id=ids[1],
                span_id=ids[2],
                parent_id=ids[4] if _is_id(ids[4], 16) else None,
                name=name,
                start_ns=times[7],
                end_ns=times[8],
                attributes=attributes,
                resource=resource,
                failed=failed,
                message=message_,
                exception=exception,
            )
        )

    def _status(self, message: memoryview) -> tuple[bool, str]:
        code, text = 0, ""
        for number, wire, value in self.fields(message):
            if number == 3 and wire == _VARINT:
                code = value
            elif number == 2 and wire == _BYTES:
                text = _utf8(value)
        return code == _ERROR, text

    def _exception(self, message: memoryview) -> str | None:
        name, attributes = "", dict[str, Any]()
        for number, wire, value in self.fields(message):
            if number == 2 and wire == _BYTES:
                name = _utf8(value)
            elif number == 3 and wire == _BYTES:
                self._attribute(value, attributes)
        return exception_text(attributes) if name == "exception" else None

    def _attribute(self, message: memoryview, into: dict[str, Any], depth: int = 0) -> None:
        key, told = "", None
        for number, wire, value in self.fields(message):
            if wire != _BYTES:
                continue
            if number == 1:
                key = _utf8(value)
            elif number == 2:
                told = value
        if len(into) < ATTRIBUTES_MAX:
            into[key] = None if told is None else self._value(told, depth)

    def _value(self, message: memoryview, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise BadTraces(f"An attribute is nested more than {DEPTH_MAX} deep.")
        told: Any = None
        for number, wire, value in self.fields(message):
            if number == 1 and wire == _BYTES:
                told = _utf8(value)
            elif number == 2 and wire == _VARINT:
                told = value != 0
            elif number == 3 and wire == _VARINT:
                told = value - (1 << 64) if value >> 63 else value
            elif number == 4 and wire == _FIXED64:
                (told,) = _double(value)
            elif number == 5 and wire == _BYTES:
                told = [self._value(each, depth + 1) for n, w, each in self.fields(value) if n == 1 and w == _BYTES]
            elif number == 6 and wire == _BYTES:
                told = {}
                for n, w, each in self.fields(value):
                    if n == 1 and w == _BYTES:
                        self._attribute(each, told, depth + 1)
            elif number == 7 and wire == _BYTES:
                told = f"{len(value)} bytes"
        return told


def encode_answer(rejected: int, message: str) -> bytes:
    """Return an ExportTraceServiceResponse; it is empty when all of the spans were taken."""
    if not rejected and not message:
        return b""
    text = message.encode()
    partial = b"\x08" + _as_varint(rejected) + (b"\x12" + _as_varint(len(text)) + text if text else b"")
    return b"\x0a" + _as_varint(len(partial)) + partial


def encode_status(code: int, message: str) -> bytes:
    """Return a google.rpc.Status, with which OTLP/HTTP answers a request that it turns away."""
    text = message.encode()
    return b"\x08" + _as_varint(code) + b"\x12" + _as_varint(len(text)) + text


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for _ in range(_VARINT_BYTES_MAX):
        if at >= len(message):
            raise _malformed("a number is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise _malformed("a number is too long")


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _is_id(text: str, size: int) -> bool:
    return len(text) == size and text.strip("0") != ""


def _utf8(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _malformed(what: str) -> BadTraces:
    return BadTraces(f"The body is not an ExportTraceServiceRequest in protobuf: {what}.")
