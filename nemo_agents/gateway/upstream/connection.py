"""One HTTP/1.1 connection to a provider, and the exchange of one request for one answer on it.

Wire format: RFC 9112. The parser is llhttp; what it leaves open is decided here, always on the strict side,
because an answer comes from a stranger: no compression, no transfer coding but `chunked`, no upgrade, a
bounded head, a bounded body, and a connection that said one byte too much is never used again.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from typing import Any, Final, Protocol, cast

import httptools

from nemo_agents.gateway.ports import ProviderRequest, UpstreamError
from nemo_agents.gateway.upstream.deadlines import Deadlines

__all__ = ["Connection", "Exchange", "Owner"]

# What a buffered chunk costs beyond its bytes; without it a flood of one-byte chunks would not count.
CHUNK_COST_BYTES: Final = 64
_BODILESS: Final = frozenset({204, 304})


class Owner(Protocol):
    """What a connection needs of its pool."""

    provider: str
    deadlines: Deadlines
    head_limit_bytes: int
    body_limit_bytes: int
    buffer_limit_bytes: int

    def release(self, connection: Connection) -> None:
        """Take back a connection that can serve another request."""

    def forget(self, connection: Connection) -> None:
        """Give up the place of a connection that is gone; harmless when repeated."""


class Exchange:
    """One request's answer: its head, then an async iterator over its body, which `aclose` ends early.

    The connection goes back to its pool as soon as the whole answer is in, even when it has not been read
    yet; it is dropped when the answer is abandoned, when a wait for it is cancelled, and after every fault.
    """

    __slots__ = (
        "_buffered",
        "_chunks",
        "_closed",
        "_connection",
        "_failure",
        "_idle_timeout_s",
        "_owner",
        "_paused",
        "_received",
        "_waiter",
        "complete",
        "headers",
        "status",
    )

    def __init__(self, connection: Connection, owner: Owner, *, idle_timeout_s: float) -> None:
        self._connection: Connection | None = connection
        self._owner = owner
        self._idle_timeout_s = idle_timeout_s
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._received = 0
        self._paused = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._failure: tuple[str, bool] | None = None  # what happened, and whether it is a time-out
        self.status = 0  # until the head is in
        self.headers: dict[str, str] = {}
        self.complete = False

    @property
    def failed(self) -> bool:
        """Whether the answer broke off."""
        return self._failure is not None

    async def head(self, timeout_s: float) -> None:
        """Wait until status and headers are in. Raises UpstreamError."""
        if not self.status:
            await self._wait(timeout_s, "sent no answer")
        self._raise_if_failed()

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._closed:
                raise StopAsyncIteration
            self._raise_if_failed()
            if self.complete:
                raise StopAsyncIteration
            await self._wait(self._idle_timeout_s, "went silent in the middle of an answer")
        chunk = self._chunks.popleft()
        self._buffered -= len(chunk) + CHUNK_COST_BYTES
        if self._paused and self._buffered <= self._owner.buffer_limit_bytes // 2:
            self._paused = False
            if self._connection is not None:
                self._connection.resume()
        return chunk

    async def aclose(self) -> None:
        """Let go: what has not arrived by now will not, and what was not read is gone."""
        self._closed = True
        self._chunks.clear()
        self._buffered = 0
        self._let_go()

    # --- Called by the connection ---

    def received_head(self, status: int, headers: dict[str, str]) -> None:
        """Take the head of the answer."""
        self.status = status
        self.headers = headers
        self._wake()

    def received(self, chunk: bytes) -> None:
        """Take a piece of the body, and stop reading from the network when too much lies here unread."""
        if self._closed:
            return
        self._received += len(chunk)
        if self._received > self._owner.body_limit_bytes:
            self.fail(f"sent more than {self._owner.body_limit_bytes} bytes")
            return
        self._chunks.append(chunk)
        self._buffered += len(chunk) + CHUNK_COST_BYTES
        if self._buffered > self._owner.buffer_limit_bytes and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()
        self._wake()

    def finish(self) -> None:
        """Note that the whole answer is in."""
        self.complete = True
        self._connection = None
        self._wake()

    def fail(self, what: str, *, timed_out: bool = False) -> None:
        """Note that no more of this answer will come, and why; what arrived before can still be read."""
        if self.complete or self._failure is not None:
            return
        self._failure = (what, timed_out)
        self._wake()

    # --- Within ---

    async def _wait(self, timeout_s: float, silence: str) -> None:
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._owner.deadlines.wait(waiter, timeout_s)
        except TimeoutError:
            self.fail(f"{silence} within {timeout_s:g} s", timed_out=True)
            self._let_go()
        except BaseException:
            self._let_go()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _let_go(self) -> None:
        self.fail("was left before the end of its answer")
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.drop()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            what, timed_out = self._failure
            raise UpstreamError(f"{self._owner.provider}: the provider {what}", sent=True, timed_out=timed_out)


class Connection(asyncio.Protocol):
    """One connection: idle, or busy with one exchange. Nothing is sent before the last answer is whole."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._poll: Any = None
        self.gone = False
        self.has_place = False  # whether the pool counts it; kept by the pool
        self._used = False
        self._tls = False
        self._begin_answer()
        self._overhead = 0  # bytes since the last piece of body: heads, trailers, chunk sizes and extensions
        self._persistent = False
        self.idle_until = 0.0  # loop time, kept by the pool
        self.keep_alive_s: float | None = None  # how long the provider says it keeps an idle connection

    # --- What the pool does with it ---

    def usable(self) -> bool:
        """Say whether a request may be written: open, and no end, reset or stray byte lies on the socket.

        The check asks the kernel, because the event loop may not yet have had the time to notice. It closes
        the gap but for the moment in which the provider's FIN is on the wire; then the request counts as
        sent.
        """
        if self.gone or self._transport is None or self._transport.is_closing():
            return False
        # On a new TLS connection the session tickets may still wait unread.
        return (self._tls and not self._used) or not self._poll(0)

    async def exchange(self, head: bytes, request: ProviderRequest) -> Exchange:
        """Send a request and return when the head of its answer is in. Raises UpstreamError, `sent` True."""
        assert self._exchange is None
        assert self._transport is not None
        exchange = Exchange(self, self._owner, idle_timeout_s=request.idle_timeout_s)
        self._exchange = exchange
        self._used = True
        self._overhead = 0
        self._begin_answer()
        self._transport.writelines((head, request.body))
        await exchange.head(request.first_byte_timeout_s)
        return exchange

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.fail("was left before the end of its answer")
        if not self.gone:
            self.gone = True
            if self.has_place:
                self._owner.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading from the network."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # --- What the event loop says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and make ready to ask the kernel about the socket."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, but does not inherit from it
        self._tls = transport.get_extra_info("sslcontext") is not None
        sock = transport.get_extra_info("socket")
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = _readability(sock.fileno())

    def data_received(self, data: bytes) -> None:
        """Parse; then hand over, finish or give up."""
        exchange = self._exchange
        if exchange is None or self._parser is None:
            self.drop()  # nobody asked: whatever this is, it must not become the answer to the next request
            return
        self._pieces.clear()
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._persistent = False
            if not self._complete:
                exchange.fail(f"did not speak proper HTTP ({type(error).__name__})")
        if self._pieces:
            exchange.received(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
            self._pieces.clear()
        if self._overhead > self._owner.head_limit_bytes and not self._complete:
            exchange.fail(f"sent more than {self._owner.head_limit_bytes} bytes of headers or chunk framing")
        if exchange.failed:
            self.drop()
        elif self._complete:
            self._finish(exchange)

    def eof_received(self) -> bool:
        """Take the end of the provider's side as the end of a body that has no length, else as a fault."""
        self._at_end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take leave; the parser goes, because it and this object hold each other."""
        self._transport = None
        self._at_end(exc)
        self._parser = None

    def _at_end(self, exc: Exception | None) -> None:
        exchange = self._exchange
        if exchange is not None:
            if self._until_eof and exc is None and not exchange.failed:
                self._persistent = False
                self._finish(exchange)
                return
            when = "in the middle of" if exchange.status else "before"
            exchange.fail(f"{'closed' if exc is None else 'broke'} the connection {when} its answer")
        self.drop()

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        transport = self._transport
        exchange.finish()
        if not self._persistent or transport is None or transport.get_write_buffer_size():
            self.drop()  # an answer that overtook its request leaves the rest of that in the way
            return
        if not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()
        self._owner.release(self)

    # --- What the parser says ---

    def _begin_answer(self) -> None:
        self._fields: dict[str, str] = {}
        self._fields_bytes = 0
        self._head_done = False
        self._complete = False
        self._until_eof = False
        self._pieces: list[bytes] = []

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self._complete:
            self._persistent = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers count against the same limit and are not kept."""
        self._fields_bytes += len(name) + len(value) + 4
        if self._head_done or self._complete or self._exchange is None:
            return
        if self._fields_bytes > self._owner.head_limit_bytes:
            self._exchange.fail(f"sent more than {self._owner.head_limit_bytes} bytes of headers or chunk framing")
            return
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else text

    def on_headers_complete(self) -> None:
        """Decide what the head means."""
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None or self._complete or exchange.failed:
            return
        status, headers = parser.get_status_code(), self._fields
        if status < 200:
            if status == 101:
                exchange.fail("wanted to switch protocols")
            self._fields = {}
            return
        self._head_done = True
        refused = _refusal(parser.get_http_version(), headers)
        if refused is not None:
            exchange.fail(refused)
            return
        length = headers.get("content-length")
        if length is not None and int(length) > self._owner.body_limit_bytes:
            exchange.fail(f"announced more than {self._owner.body_limit_bytes} bytes")
            return
        self._until_eof = length is None and "transfer-encoding" not in headers and status not in _BODILESS
        keep_alive = headers.get("keep-alive")
        self.keep_alive_s = None if keep_alive is None else _keep_alive_s(keep_alive)
        exchange.received_head(status, headers)

    def on_body(self, piece: bytes) -> None:
        """Collect a piece of the body; all that arrive together become one chunk."""
        if self._head_done and not self._complete:
            self._overhead = 0
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Note the end of the answer, unless it was only an interim one (1xx)."""
        if self._head_done and not self._complete:
            self._complete = True
            self._persistent = self._parser is not None and self._parser.should_keep_alive()


def _refusal(version: str, headers: dict[str, str]) -> str | None:
    """Say why an answer with this head is not accepted; None when it is."""
    if not version.startswith("1."):
        return f"answered in HTTP {version}"
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"", "identity"}:
        return f"compressed its answer ({coding[:20]!r}) although that was not accepted"
    transfer = headers.get("transfer-encoding", "chunked").strip().lower()
    if transfer != "chunked":
        return f"used the transfer coding {transfer[:20]!r}"
    return None


def _keep_alive_s(value: str) -> float | None:
    """Read `Keep-Alive: timeout=5, max=100`; None when it does not say."""
    for part in value.split(","):
        name, _, seconds = part.strip().partition("=")
        if name.lower() == "timeout" and seconds.isascii() and seconds.isdigit():
            return float(seconds[:6])
    return None


def _readability(fileno: int) -> Any:
    """Return a function that, called with 0, says without waiting whether something lies on the socket."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return poll.poll
    return lambda _timeout: select.select([fileno], [], [], 0)[0]
