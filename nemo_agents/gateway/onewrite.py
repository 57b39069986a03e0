"""Uvicorn's HTTP protocol with one write for an answer's head and body: one system call and one packet less."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from nemo_agents.gateway.answers import LINE

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

    from nemo_agents.gateway.answers import Line

__all__ = ["OneWriteProtocol"]

_STATUS_LINE: Final = b"HTTP/1.1 "


class OneWriteProtocol(HttpToolsProtocol):
    """Uvicorn's own protocol, on a transport that lets the head of an answer wait for what follows at once.

    To the application it offers the extension `nemo.line` (`answers.Line`).
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the joining transport between the protocol and the connection."""
        super().connection_made(cast("asyncio.Transport", _JoiningTransport(transport, self.loop)))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # Uvicorn has an extension as a dict of its options; this one is the very thing it offers.
        cycle.scope["extensions"] = cast("dict[str, dict[object, object]]", {LINE: _CycleLine(cycle)})
        super()._start_asgi_task(cycle, app)


class _CycleLine:
    """A `Line` on one request of Uvicorn's, which stays in charge of the connection.

    What its `send` does for an answer in two messages, and checks of each header, is done here in one step, for
    headers that were checked where they were made.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def blocked(self) -> bool:
        return self._cycle.flow.write_paused

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        cycle = self._cycle
        if cycle.disconnected:
            return True
        plain = not (cycle.access_log or cycle.default_headers or cycle.scope["method"] == "HEAD")
        if cycle.response_started or cycle.flow.write_paused or not plain:
            return False
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        cast("_JoiningTransport", cycle.transport).write_both(STATUS_LINE[status] + head + end, body)
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


class _JoiningTransport:
    """Passes everything on; only a head waits, until the next write or the end of the event loop's turn."""

    __slots__ = ("_head", "_loop", "_transport", "get_extra_info", "is_closing", "pause_reading", "resume_reading")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        # Called for every request, and therefore without a step in between.
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        head = self._head
        if head is not None:
            self._head = None
            self._transport.writelines((head, data))
        elif data.startswith(_STATUS_LINE):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def write_both(self, head: bytes, body: bytes) -> None:
        """Write a whole answer."""
        self._flush()
        self._transport.writelines((head, body))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


if TYPE_CHECKING:

    def _fits(cycle: RequestResponseCycle) -> Line:
        return _CycleLine(cycle)
