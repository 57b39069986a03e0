"""A provider that streams bit by bit: `python pacedmock.py PORT` answers every request with the same paced stream.

A bare protocol on asyncio, so that many streams at a time cost the load's core little.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final, cast

import httptools
import uvloop
from paced import FIRST_S, GAP_S, PIECES, events

_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PIECES: Final = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in events(PIECES)]


class Stream(asyncio.Protocol):
    """One connection; it answers one request after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._next = 0
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """Write no more."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Read requests; one that cannot be read ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def on_message_complete(self) -> None:
        """Begin to answer: from now on the provider thinks."""
        self._next = 0
        self._due_s = self._loop.time() + FIRST_S
        self._loop.call_at(self._due_s, self._write)

    def _write(self) -> None:
        if self._transport is None:
            return
        piece = _PIECES[self._next]
        last = self._next == PIECES - 1
        self._transport.write((_HEAD if self._next == 0 else b"") + piece + (b"0\r\n\r\n" if last else b""))
        if not last:
            self._next += 1
            self._due_s += GAP_S
            self._loop.call_at(self._due_s, self._write)


async def serve(port: int) -> None:
    """Answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Stream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
