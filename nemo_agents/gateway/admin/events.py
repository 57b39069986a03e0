"""`/nemo/events`: what alerts have told, as pages or as a stream of Server-Sent Events.

The stream is that of the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html): each event has
its `seq` as `id`, so that a client which comes back with `Last-Event-ID` misses nothing, whichever gateway it meets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from nemo_agents.admin.wire import EventPage, EventRow
from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller, caller_of
from nemo_agents.gateway.admin.faults import AdminFault, bad
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable

__all__ = ["ROUTES"]

POLL_S = 1.0
_HEARTBEAT_POLLS = 15
_LIMIT_DEFAULT = 100
_LIMIT_MAX = 500
_PAGE = 200
_STREAMS_MAX = 200
_STREAMS_PER_FLEET_MAX = 20
_RETRY_MS = 2_000
_LATEST = -1
_DIGITS_MAX = 18


async def _events(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    fleet = caller.fleet if caller.fleet is not None else request.query_params.get("fleet") or None
    after = _after(request)
    if "text/event-stream" in request.headers.get("accept", ""):
        return await _stream(gateway, request, caller, fleet, after)
    limit = min(_whole(request.query_params.get("limit", str(_LIMIT_DEFAULT)), "limit") or _LIMIT_DEFAULT, _LIMIT_MAX)
    found = list(await gateway.store.events(after=_LATEST if after is None else after, limit=limit, fleet=fleet))
    if after is not None and not found:
        return json_response(EventPage(events=found, next=after))
    return json_response(EventPage(events=found, next=found[-1].seq if found else 0))


async def _stream(gateway: Gateway, request: Request, caller: Caller, fleet: str | None, after: int | None) -> Response:
    if after is None:  # from now on
        latest = await gateway.store.events(after=_LATEST, limit=1)
        after = latest[-1].seq if latest else 0
    who = caller.fleet or ""  # whose key asks, not what it asks about: nobody uses up another's streams
    streams = gateway.event_streams
    if streams.total() >= _STREAMS_MAX or (who and streams[who] >= _STREAMS_PER_FLEET_MAX):
        raise AdminFault(429, "Too many streams of events are open; read pages of /nemo/events.", "rate_limit_error")
    streams[who] += 1  # with nothing awaited since the look, so that those who come at once see each other
    return _Stream(gateway, who, _sse(gateway, request, fleet, after))


class _Stream(StreamingResponse):
    """A stream of events that is counted until it ends, and ends when its client has read nothing for too long."""

    def __init__(self, gateway: Gateway, who: str, events: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._gateway = gateway
        self._who = who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - `_sse` looks for its end
        """Send the stream, and give its place back however that ends."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._gateway.settings.client_timeout_s):
                await send(message)

        try:
            with contextlib.suppress(OSError):  # who left, or reads nothing, needs no answer; TimeoutError is one
                await self.stream_response(send_in_time)
        finally:
            streams = self._gateway.event_streams
            streams[self._who] -= 1
            if not streams[self._who]:
                del streams[self._who]


async def _sse(gateway: Gateway, request: Request, fleet: str | None, after: int) -> AsyncIterator[bytes]:
    """Yield events as they come, until the client leaves, its key is no longer good, or the gateway stops."""
    silent = 0
    yield f"retry: {_RETRY_MS}\n\n".encode()
    while not gateway.stopping.is_set():
        events = await _since(gateway, after, fleet)
        silent += 1
        if events:
            after, silent = events[-1].seq, 0
            yield b"".join([_frame(event) for event in events])
        elif silent >= _HEARTBEAT_POLLS:
            silent = 0
            yield b": nothing new\n\n"
        if len(events) < _PAGE:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await gateway.stopping.wait()
        if await request.is_disconnected() or not _still_good(gateway, request):
            return


async def _since(gateway: Gateway, after: int, fleet: str | None) -> Sequence[EventRow]:
    try:
        return await gateway.store.events(after=after, limit=_PAGE, fleet=fleet)
    except StoreUnavailable:
        return ()  # the stream stays open, and goes on when the store can be read


def _still_good(gateway: Gateway, request: Request) -> bool:
    try:
        caller_of(gateway, request, Access.KEY)
    except AdminFault:
        return False
    return True


def _frame(event: EventRow) -> bytes:
    """Return one event of the stream; JSON has no line breaks, so that it is one `data` line."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.kind.encode(), msgspec.json.encode(event))


def _after(request: Request) -> int | None:
    """Return the event after which to go on: of a client that comes back the last it has seen, else as it asks."""
    told = {"Last-Event-ID": request.headers.get("last-event-id"), "after": request.query_params.get("after")}
    return next((_whole(text, name) for name, text in told.items() if text), None)


def _whole(text: str, param: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise bad(f"`{param}` must be a whole number.", param)
    return int(text)


ROUTES = [AdminRoute(method="GET", path="/nemo/events", access=Access.KEY, handler=_events)]
