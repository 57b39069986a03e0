"""The endpoint for traces: who may send, how much, and on into the store.

It shares the gateway with agents' calls, and is kept from being in their way: few requests are worked on at a time,
large ones in a thread, and their spans go to the writer in small portions, each after the one before is committed. Who
sends faster than that waits, and beyond a few is asked to come back.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final

import structlog
from msgspec import Struct, json, structs

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.gateway.answers import Send, refusal_headers
from nemo_agents.gateway.authentication import authenticate, bearer, fleet_refusal
from nemo_agents.gateway.dataplane import INTERNAL, decode_headers
from nemo_agents.gateway.otlp.faults import BadTraces
from nemo_agents.gateway.otlp.jsonform import decode_json, json_answer
from nemo_agents.gateway.otlp.protobuf import decode_protobuf, encode_answer, encode_status
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import RootSpan, SpanBatch, SpanRecord, StoreUnavailable
from nemo_agents.policy.guardrails import BUILTIN, apply_to_request
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.otel.mapping import facts_of, without_content
from nemo_agents.policy.otel.values import SpanFacts
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.wires.envelope import openai_error

__all__ = ["BODY_BYTES_MAX", "TRACES", "TraceIntake"]

TRACES: Final = "/v1/traces"
BODY_BYTES_MAX: Final = 8 << 20
"""Bytes of one request, also once it is decompressed; `max_body_bytes` of the gateway where that is less."""

_AT_A_TIME: Final = 2
_WAITING_MAX: Final = 16
_PORTION: Final = 32  # spans: about a millisecond of the writer's time
_IN_THREAD_BYTES: Final = 16 * 1024
_PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"
_GZIP: Final = 31  # zlib's number for the format of gzip
# Codes of gRPC, which google.rpc.Status speaks in whatever the transport.
_GRPC: Final = {400: 3, 401: 16, 403: 7, 405: 12, 413: 8, 415: 3, 500: 13, 503: 14}

_log = structlog.get_logger("nemo_agents.gateway")
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class _Refused(Exception):  # noqa: N818 - control flow of one request
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


class _Wanted(Struct, frozen=True, kw_only=True):
    """How a request is to be read."""

    protobuf: bool
    gzip: bool
    bytes_max: int
    now_us: int
    content: bool
    redacting: tuple[str, ...]  # guardrails


class TraceIntake:
    """Serves `POST /v1/traces`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._waiting = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: Send) -> None:
        """Serve one HTTP request."""
        headers = decode_headers(scope)
        request_id = self._gateway.ids.request_id()
        protobuf = _media_type(headers) == _PROTOBUF
        try:
            await self._let_in(scope, headers)
            raw = await _read_body(receive, self._bytes_max)
            grant = await self._authenticate(headers)  # the body may have taken its time, and the key been changed
            rejected, why = await self._take(raw, headers, grant)
        except _Refused as refused:
            refusal = refused.refusal
        except BadTraces as bad:
            refusal = _bad(str(bad), bad.status)
        except StoreUnavailable as error:
            _log.error("traces were not taken: the store is unavailable", request_id=request_id, error=str(error))
            refusal = _come_back("The gateway's store cannot write now. Send the spans again shortly.")
        except Exception:  # noqa: BLE001 - the last line of defence, as on the data plane
            _log.exception("internal error", request_id=request_id)
            refusal = INTERNAL
        else:
            body = encode_answer(rejected, why) if protobuf else json_answer(rejected, why)
            await _answer(send, 200, body, {h.REQUEST_ID: request_id}, protobuf=protobuf)
            return
        told = {"code": _GRPC[refusal.status], "message": refusal.message}
        envelope = json.encode(told | openai_error(refusal, request_id))
        body = encode_status(_GRPC[refusal.status], refusal.message) if protobuf else envelope
        more = {h.REQUEST_ID: request_id} | refusal_headers(refusal)
        await _answer(send, refusal.status, body, more, protobuf=protobuf)

    @property
    def _bytes_max(self) -> int:
        return min(BODY_BYTES_MAX, self._gateway.settings.max_body_bytes)

    async def _let_in(self, scope: Mapping[str, Any], headers: dict[str, str]) -> None:
        """Refuse what can be told from the head alone, before the body is read."""
        if scope["method"] != "POST":
            raise _Refused(_WRONG_METHOD)
        if int(headers.get("content-length", "0") or 0) > self._bytes_max:
            raise _too_large(self._bytes_max)
        await self._authenticate(headers)
        if _media_type(headers) not in (_PROTOBUF, _JSON):
            raise BadTraces(f"Send traces as {_PROTOBUF} or {_JSON}.", status=415)
        if headers.get("content-encoding", "identity") not in ("identity", "gzip"):
            raise BadTraces("The content-encoding may be gzip, or none.", status=415)

    async def _authenticate(self, headers: dict[str, str]) -> Grant:
        found = await authenticate(self._gateway, bearer(headers), now_us=self._gateway.clock.now_us())
        if isinstance(found, Refusal):
            raise _Refused(found)
        blocked = fleet_refusal(self._gateway, found[0])
        if blocked is not None:
            raise _Refused(blocked)
        return found[0]

    async def _take(self, raw: bytes, headers: dict[str, str], grant: Grant) -> tuple[int, str]:
        """Read and store what was sent; return how many spans were not taken, and why."""
        if self._waiting >= _WAITING_MAX:
            raise _Refused(_come_back("Too many traces are coming in. Send the spans again shortly."))
        self._waiting += 1
        try:
            async with self._turns:
                wanted = _Wanted(
                    protobuf=_media_type(headers) == _PROTOBUF,
                    gzip=headers.get("content-encoding") == "gzip",
                    bytes_max=self._bytes_max,
                    now_us=self._gateway.clock.now_us(),
                    content=self._gateway.settings.content != "none",
                    redacting=tuple(n for n in grant.guardrails if n in BUILTIN and BUILTIN[n].action == "redact"),
                )
                if len(raw) > _IN_THREAD_BYTES or wanted.gzip:
                    spans, rejected = await asyncio.to_thread(_read, raw, wanted)
                else:
                    spans, rejected = _read(raw, wanted)
                left_out = 0
                for batch in _batches(spans, grant):
                    left_out += await self._gateway.store.log_spans(batch)
        finally:
            self._waiting -= 1
        reasons = [f"{rejected} without a usable trace id, span id or run id"] if rejected else []
        reasons += [f"{left_out} of a run that has all the spans that are kept of one"] if left_out else []
        return rejected + left_out, "; ".join(reasons)


def _read(raw: bytes, wanted: _Wanted) -> tuple[list[SpanFacts], int]:
    """Return what the spans of a request tell, as far as it may be kept, and how many are not usable."""
    body = _decompressed(raw, wanted.bytes_max) if wanted.gzip else raw
    spans, rejected = decode_protobuf(body) if wanted.protobuf else decode_json(body)
    told = [facts for span in spans if (facts := facts_of(span, now_us=wanted.now_us)) is not None]
    rejected += len(spans) - len(told)
    if not wanted.content:
        told = [without_content(each) for each in told]
    return (_redacted(told, wanted.redacting) if wanted.redacting else told), rejected


def _decompressed(raw: bytes, bytes_max: int) -> bytes:
    """Unpack gzip without ever having more of it than may be."""
    unpacking = zlib.decompressobj(_GZIP)
    try:
        body = unpacking.decompress(raw, bytes_max + 1)
    except zlib.error as error:
        raise BadTraces(f"The body is not gzip: {error}.") from None
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    if not unpacking.eof or unpacking.unused_data:
        raise BadTraces("The body is not one whole gzip member.")
    return body


def _redacted(spans: Sequence[SpanFacts], guardrails: Sequence[str]) -> list[SpanFacts]:
    """Return spans as the guardrails of the role let them be kept: as with calls, the log has what went on."""
    texts: list[str] = []
    for span in spans:
        texts += [text for text in (span.input, span.output, span.error, *span.attributes.values()) if _is_text(text)]
    said = {"messages": [{"role": "user", "content": text} for text in texts]}
    new = iter([message["content"] for message in apply_to_request(said, guardrails).body["messages"]])

    def next_for(text: Any) -> Any:
        return next(new) if _is_text(text) else text

    return [
        structs.replace(
            span,
            input=next_for(span.input),
            output=next_for(span.output),
            error=next_for(span.error),
            attributes={name: next_for(value) for name, value in span.attributes.items()},
        )
        for span in spans
    ]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _batches(spans: Iterable[SpanFacts], grant: Grant) -> Iterator[SpanBatch]:
    """Yield spans by run, in portions. Without a fleet to share them with, a run and a trace are the grant's alone."""
    own = "" if grant.fleet is not None else f"{grant.grant_id}."
    by_run: dict[tuple[str | None, str], list[SpanFacts]] = {}
    for span in spans:
        by_run.setdefault((span.run_id, "" if span.run_id is not None else span.trace_id), []).append(span)
    for (run_id, _), several in by_run.items():
        roots = [span for span in several if span.is_root]
        root = max(roots, key=lambda span: span.ended_us or 0) if roots else None
        for first in range(0, len(several), _PORTION):
            portion = several[first : first + _PORTION]
            last = first + _PORTION >= len(several)
            yield SpanBatch(
                fleet=grant.fleet or "",
                role=grant.role,
                run_id=None if run_id is None else own + run_id,
                trace_id=own + several[0].trace_id,
                trace_run_id=own + several[0].trace_id,
                spans=tuple([_record(span) for span in portion]),
                root=_root(root) if last and root is not None else None,
            )


def _root(span: SpanFacts) -> RootSpan:
    return RootSpan(
        name=span.name, state=span.state, started_us=span.started_us, ended_us=span.ended_us, error=span.error
    )


def _record(span: SpanFacts) -> SpanRecord:
    return SpanRecord(
        span_id=span.span_id,
        parent_id=span.parent_id,
        kind=span.kind,
        name=span.name,
        step=span.step,
        role=span.role,
        state=span.state,
        started_us=span.started_us,
        ended_us=span.ended_us,
        error=span.error,
        request_id=span.request_id,
        model=span.model,
        input_tokens=span.input_tokens,
        output_tokens=span.output_tokens,
        attributes=span.attributes,
        input=None if span.input is None else json.encode(span.input),
        output=None if span.output is None else json.encode(span.output),
    )


async def _read_body(receive: _Receive, bytes_max: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadTraces("The client left before its request was complete.")
        body += message.get("body", b"")
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
        if not message.get("more_body", False):
            return bytes(body)


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str], *, protobuf: bool) -> None:
    kind = _PROTOBUF if protobuf else _JSON
    base = {"content-type": kind, "content-length": str(len(body))}
    pairs = [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in {**base, **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large(bytes_max: int) -> BadTraces:
    return BadTraces(f"The traces are larger than {bytes_max} bytes. Send fewer spans at a time.", status=413)


def _bad(message: str, status: int) -> Refusal:
    code = Code.REQUEST_TOO_LARGE if status == 413 else Code.INVALID_REQUEST
    return Refusal(status=status, code=code, message=message)


def _come_back(message: str) -> Refusal:
    return Refusal(status=503, code=Code.STORE_UNAVAILABLE, message=message, retry_after_ms=1_000)


_WRONG_METHOD: Final = Refusal(status=405, code=Code.METHOD_NOT_ALLOWED, message=f"Use POST for {TRACES}.")
