"""What a provider can get wrong on the wire: bytes that are no answer, too many of them, too few, or none at all.

`faulty_provider.py` plays these below its own behaviours. Every one of them has taken the request up, so that it is on
the bill, and each is bounded in what it costs the provider itself: memory is a chunk, and what runs on forever ends
when the client leaves.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

__all__ = ["WIRE_FAULTS", "End", "Proper", "play"]

End = Literal["keep", "close", "reset"]
"""What becomes of the connection: it stays open, is closed in order, or is reset (RST)."""

GIGABYTE: Final = 1 << 30
MANY_CHUNKS: Final = 100_000
WIRE_FAULTS: Final = {
    "reset-before-head": "takes the request and resets the connection",
    "not-http": "greets like a mail server",
    "http-2": "answers in HTTP/2.0",
    "http-1.0": "answers in HTTP/1.0, without a length, and closes",
    "huge-header": "a header of 1 MB",
    "endless-header": "a header without an end",
    "many-headers": "10,000 headers",
    "interim-few": "three interim answers (100, 102, 103) before the answer",
    "interim-flood": "interim answers (103) without an end",
    "switch-protocols": "101",
    "hang-after-head": "says nothing after the head of its answer",
    "drop-after-head": "hangs up after the head of its answer",
    "reset-after-head": "resets the connection after the head of its answer",
    "hang-mid-body": "says nothing more after the first half of its answer",
    "reset-mid-body": "resets the connection after the first half of its answer",
    "half-first-event": "hangs up in the middle of its first piece",
    "dribble": "one byte for each release",
    "length-too-long": "announces more bytes than it sends, and closes",
    "length-too-short": "announces fewer bytes than it sends",
    "length-negative": "announces a negative number of bytes",
    "length-twice": "announces two different lengths",
    "length-and-chunked": "announces a length and chunks",
    "length-huge": "announces a terabyte",
    "chunk-size-bad": "a chunk whose size is no number",
    "chunk-size-huge": "a chunk of more bytes than a 64-bit number holds",
    "chunk-extension-endless": "a chunk extension without an end",
    "coding-unknown": "the transfer coding `gzip, chunked`",
    "two-answers": "a second answer behind the first, which nobody asked for",
    "endless-line": "a line of 1 GB",
    "tiny-chunks": "100,000 chunks",
    "gzip-bomb": "1 GB of zeros, compressed and announced as such",
    "gzip-unsaid": "compresses without saying so",
    "broken-json": "JSON that ends in the middle",
    "nested-json": "JSON of 100,000 lists within each other",
    "not-an-object": "a JSON list",
    "empty-body": "nothing, with status 200",
    "null-choices": "an answer whose `choices` are null",
    "wrong-kind": "a stream where none was asked for, and no stream where one was",
    "untyped": "an answer without a content type",
    "error-first": "an error event before anything else",
    "usage-text": "tells its usage as texts",
    "usage-negative": "tells a negative usage",
    "usage-huge": "tells a usage of more tokens than there are",
    "usage-list": "tells its usage as a list",
    "redirect-metadata": "redirects to the address of a cloud's instance metadata",
    "unavailable-seconds": "503 with Retry-After: 60",
    "unavailable-date": "503 with Retry-After as a date",
    "rate-limited-60": "429 with Retry-After: 60",
}

_JSON: Final = "content-type: application/json\r\n"
_SSE: Final = "content-type: text/event-stream\r\n"
_CHUNKED: Final = "transfer-encoding: chunked\r\n"
_PIECE: Final = b"x" * 65_536


class Wire(Protocol):
    """The provider's end of a connection, as these faults need it. A client that left ends them by an exception."""

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting while the client takes none."""

    async def stay_silent(self) -> None:
        """Wait until the client leaves."""

    async def released(self) -> None:
        """Wait for one release."""

    async def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proper:
    """The answer as it should be: whole, or as the events of a stream."""

    body: bytes
    events: list[bytes]
    stream: bool

    @property
    def content(self) -> bytes:
        """What follows the head, without its framing."""
        return b"".join(self.events) if self.stream else self.body

    @property
    def half(self) -> bytes:
        """The first half of it, which in a stream ends with an event."""
        if self.stream:
            return b"".join(self.events[: len(self.events) // 2])
        return self.body[: len(self.body) // 2]

    def head(self, framing: str, *, version: str = "1.1", kind: str | None = None) -> bytes:
        """Return the head of an answer that is framed in some way."""
        kind = kind if kind is not None else _SSE if self.stream else _JSON
        return f"HTTP/{version} 200 OK\r\n{kind}{framing}\r\n".encode()

    def whole(self, content: bytes | None = None, *, kind: str | None = None) -> bytes:
        """Return an answer with a length, by itself a proper one."""
        content = self.content if content is None else content
        return self.head(f"content-length: {len(content)}\r\n", kind=kind) + content


async def play(wire: Wire, fault: str, proper: Proper) -> End:
    """Answer with a fault of `WIRE_FAULTS`; say what becomes of the connection afterwards."""
    if fault in _FIXED:
        data, end = _FIXED[fault](proper)
        await wire.write(data)
        return end
    if fault in _STATUSES:
        await wire.answer(*_STATUSES[fault])
        return "keep"
    return await _PLAYED[fault](wire, proper)


# --- bytes that are what they are -----------------------------------------------------------------------------------
def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _with_usage(proper: Proper, usage: str) -> bytes:
    """The proper answer, with another text in place of its usage."""
    return re.sub(rb'"usage":\{[^{}]*\}', b'"usage":' + usage.encode(), proper.content)


def _counts(proper: Proper, prompt: Any, completion: Any) -> bytes:
    return _with_usage(proper, json.dumps({"prompt_tokens": prompt, "completion_tokens": completion}))


def _in_kind(proper: Proper, data: bytes) -> bytes:
    """Return this JSON text as a body, or as the one event of a stream that ends properly."""
    return proper.whole(b"data: %b\n\ndata: [DONE]\n\n" % data if proper.stream else data)


def _null_choices(proper: Proper) -> bytes:
    content = re.sub(rb'"choices":\[(?:[^\[\]]|\[[^\]]*\])*\]', b'"choices":null', proper.content)
    return proper.whole(content)


def _wrong_kind(proper: Proper) -> bytes:
    other = Proper(body=proper.body, events=proper.events, stream=not proper.stream)
    return other.whole()


_FIXED: Final[dict[str, Callable[[Proper], tuple[bytes, End]]]] = {
    "reset-before-head": lambda _: (b"", "reset"),
    "not-http": lambda _: (b"220 mail.example ESMTP ready\r\n", "close"),
    "http-2": lambda p: (p.head("", version="2.0") + p.content, "close"),
    "http-1.0": lambda p: (p.head("", version="1.0") + p.content, "close"),
    "huge-header": lambda p: (p.head(f"x-long: {'x' * (1 << 20)}\r\ncontent-length: 0\r\n"), "keep"),
    "many-headers": lambda p: (p.head("".join(f"x-{n}: {n}\r\n" for n in range(10_000))), "close"),
    "interim-few": lambda p: (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n"
        + p.whole(),
        "keep",
    ),
    "switch-protocols": lambda _: (b"HTTP/1.1 101 Switching\r\nupgrade: chess\r\nconnection: upgrade\r\n\r\n", "close"),
    "drop-after-head": lambda p: (p.head("content-length: 100\r\n"), "close"),
    "half-first-event": lambda p: (p.head(_CHUNKED) + _chunk((p.events[0] if p.stream else p.body)[:20]), "close"),
    "length-too-long": lambda p: (p.head(f"content-length: {len(p.content) + 9}\r\n") + p.half, "close"),
    "length-too-short": lambda p: (p.head(f"content-length: {len(p.half)}\r\n") + p.content, "keep"),
    "length-negative": lambda p: (p.head("content-length: -5\r\n") + p.content, "close"),
    "length-twice": lambda p: (p.head("content-length: 5\r\ncontent-length: 6\r\n") + p.content, "close"),
    "length-and-chunked": lambda p: (p.head(f"content-length: 5\r\n{_CHUNKED}") + _chunk(p.content), "close"),
    "length-huge": lambda p: (p.head(f"content-length: {1 << 40}\r\n") + p.half, "close"),
    "chunk-size-bad": lambda p: (p.head(_CHUNKED) + b"zz\r\n" + p.content, "close"),
    "chunk-size-huge": lambda p: (p.head(_CHUNKED) + b"f" * 17 + b"\r\n" + p.content, "close"),
    "coding-unknown": lambda p: (p.head("transfer-encoding: gzip, chunked\r\n") + _chunk(p.content), "close"),
    "two-answers": lambda p: (p.whole() + p.whole(b'{"choices": "of somebody else"}'), "keep"),
    "gzip-unsaid": lambda p: (p.whole(gzip.compress(p.content, mtime=0)), "keep"),
    "broken-json": lambda p: (_in_kind(p, p.body[: len(p.body) // 2]), "keep"),
    "nested-json": lambda p: (_in_kind(p, b"[" * MANY_CHUNKS + b"]" * MANY_CHUNKS), "keep"),
    "not-an-object": lambda p: (_in_kind(p, b"[1, 2]"), "keep"),
    "empty-body": lambda p: (p.whole(b""), "keep"),
    "null-choices": lambda p: (_null_choices(p), "keep"),
    "wrong-kind": lambda p: (_wrong_kind(p), "keep"),
    "untyped": lambda p: (p.whole(kind=""), "keep"),
    "error-first": lambda p: (_in_kind(p, b'{"error": {"message": "overloaded", "type": "server_error"}}'), "keep"),
    "usage-text": lambda p: (p.whole(_counts(p, "1", "15")), "keep"),
    "usage-negative": lambda p: (p.whole(_counts(p, 1, -15)), "keep"),
    "usage-huge": lambda p: (p.whole(_counts(p, 1, 10**30)), "keep"),
    "usage-list": lambda p: (p.whole(_with_usage(p, "[1, 15]")), "keep"),
}
_OVERLOADED: Final = b'{"error": {"message": "The engine is overloaded", "type": "server_error"}}'
_DATE: Final = "Fri, 31 Dec 2100 23:59:59 GMT"
_STATUSES: Final[dict[str, tuple[int, bytes, dict[str, str]]]] = {
    "redirect-metadata": (307, b"", {"location": "http://169.254.169.254/latest/meta-data/"}),
    "unavailable-seconds": (503, _OVERLOADED, {"retry-after": "60"}),
    "unavailable-date": (503, _OVERLOADED, {"retry-after": _DATE}),
    "rate-limited-60": (429, _OVERLOADED, {"retry-after": "60"}),
}


# --- what takes time, or does not end --------------------------------------------------------------------------------
async def _hang_after_head(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED))
    await wire.stay_silent()
    return "close"


async def _reset_after_head(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED))
    await wire.released()  # else the reset may overtake the head
    return "reset"


async def _hang_mid_body(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED) + _chunk(proper.half))
    await wire.stay_silent()
    return "close"


async def _reset_mid_body(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED) + _chunk(proper.half))
    await wire.released()
    return "reset"


async def _dribble(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED))
    content = proper.content
    for at in range(len(content)):
        await wire.released()
        await wire.write(_chunk(content[at : at + 1]))
    await wire.write(b"0\r\n\r\n")
    return "keep"


async def _endless_header(wire: Wire, proper: Proper) -> End:
    await wire.write(b"HTTP/1.1 200 OK\r\nx-long: ")
    return await _forever(wire, _PIECE)


async def _interim_flood(wire: Wire, proper: Proper) -> End:
    return await _forever(wire, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 1_000)


async def _chunk_extension_endless(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED) + b"5;x=")
    return await _forever(wire, _PIECE)


async def _endless_line(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(_CHUNKED) + _chunk(b"data: "))
    return await _forever(wire, _chunk(_PIECE))


async def _forever(wire: Wire, data: bytes) -> End:
    """Send a gigabyte of something, or what the client takes of it."""
    for _ in range(GIGABYTE // len(data)):
        await wire.write(data)
    return "close"


async def _tiny_chunks(wire: Wire, proper: Proper) -> End:
    """A chunk for every byte, after so many that say nothing: blanks before JSON, comments before events."""
    await wire.write(proper.head(_CHUNKED))
    padding = _chunk(b":\n" if proper.stream else b" ")
    for _ in range(MANY_CHUNKS // 1_000):
        await wire.write(padding * 1_000)
    content = (b"\n" if proper.stream else b"") + proper.content
    await wire.write(b"".join(_chunk(content[at : at + 1]) for at in range(len(content))) + b"0\r\n\r\n")
    return "keep"


async def _gzip_bomb(wire: Wire, proper: Proper) -> End:
    await wire.write(proper.head(f"content-encoding: gzip\r\n{_CHUNKED}"))
    for piece in _bomb():
        await wire.write(_chunk(piece))
    await wire.write(b"0\r\n\r\n")
    return "keep"


def _bomb() -> Iterator[bytes]:
    """A gigabyte of zeros as gzip has it: one compressed megabyte, over and over (the checksum at its end is wrong)."""
    packer = zlib.compressobj(9, wbits=31)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    yield first
    for _ in range(GIGABYTE // (1 << 20) - 1):
        yield again
    yield packer.flush(zlib.Z_FINISH)


_PLAYED: Final[dict[str, Callable[[Wire, Proper], Awaitable[End]]]] = {
    "endless-header": _endless_header,
    "interim-flood": _interim_flood,
    "hang-after-head": _hang_after_head,
    "reset-after-head": _reset_after_head,
    "hang-mid-body": _hang_mid_body,
    "reset-mid-body": _reset_mid_body,
    "dribble": _dribble,
    "chunk-extension-endless": _chunk_extension_endless,
    "endless-line": _endless_line,
    "tiny-chunks": _tiny_chunks,
    "gzip-bomb": _gzip_bomb,
}
assert set(WIRE_FAULTS) == {*_FIXED, *_STATUSES, *_PLAYED}
