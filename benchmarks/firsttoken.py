"""A load generator that keeps so many streams open and notes when each one's first token came.

    python firsttoken.py URL CONNECTIONS SECONDS

Request, key and headers come by the environment, as for wrk. Prints one line of JSON. A stream that was begun in time
is read to its end: were the slow ones left out, a full server would look quick.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
import uvloop
from paced import MARK, WHOLE_S

TIMEOUT_S: Final = 60.0
_MARK: Final = MARK.encode()
_DONE: Final = b"[DONE]"


class Caller(asyncio.Protocol):
    """One connection, with at most one stream at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self._sent_ns = 0
        self._first_ns = 0
        self._text = bytearray()

    @property
    def usable(self) -> bool:
        """Whether another request can be written."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """Write a request; the future gets the microseconds until its first token once the stream has ended well."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._text.clear()
        self._first_ns = 0
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a stream that is under way."""
        self._transport = None
        self._fail(exc or ConnectionResetError("the connection was closed in a stream"))

    def data_received(self, data: bytes) -> None:
        """Read an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            self.close()

    def on_body(self, piece: bytes) -> None:
        """Look for the first token, and for the end."""
        self._text += piece
        if not self._first_ns and _MARK in self._text:
            self._first_ns = time.perf_counter_ns()

    def on_message_complete(self) -> None:
        """Hand out the result."""
        answer = self._answer
        if answer is None or answer.done():
            return
        if self._parser.get_status_code() != 200 or not self._first_ns or _DONE not in self._text[-200:]:
            self._fail(ValueError(f"status {self._parser.get_status_code()}: {bytes(self._text[:200])!r}"))
        else:
            answer.set_result((self._first_ns - self._sent_ns) // 1000)

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


async def _call(host: str, port: int, request: bytes, *, wait_s: float, seconds: float) -> tuple[list[int], list[str]]:
    """Ask again and again for some seconds, and return the times to first tokens, and what went wrong."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(wait_s)
    until_s = loop.time() + seconds
    first_us: list[int] = []
    faults: list[str] = []
    caller: Caller | None = None
    while loop.time() < until_s and len(faults) < 3:
        try:
            if caller is None or not caller.usable:
                _, caller = await loop.create_connection(Caller, host, port)
            first_us.append(await asyncio.wait_for(caller.ask(request), TIMEOUT_S))
        except (OSError, ValueError, httptools.HttpParserError, TimeoutError) as error:
            faults.append(f"{type(error).__name__}: {error}")
            if caller is not None:
                caller.close()
                caller = None
    if caller is not None:
        caller.close()
    return first_us, faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Microseconds to the first token of each stream, what went wrong with others, and how long it all took."""

    first_us: list[int]
    faults: list[str]
    duration_us: int


async def load(url: str, body: bytes, key: str, headers: Sequence[str], *, connections: int, seconds: float) -> Result:
    """Keep the connections busy, begun one after the other so that they do not march in step."""
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    lines = [
        f"POST {where.path} HTTP/1.1",
        f"host: {where.hostname}:{where.port}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"authorization: Bearer {key}",
        *headers,
    ]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    started = time.monotonic()
    results = await asyncio.gather(
        *(
            _call(where.hostname, where.port, request, wait_s=WHOLE_S * number / connections, seconds=seconds)
            for number in range(connections)
        )
    )
    return Result(
        first_us=[us for times, _ in results for us in times],
        faults=[fault for _, faults in results for fault in faults],
        duration_us=int((time.monotonic() - started) * 1e6),
    )


def main(argv: list[str]) -> None:
    """Run the load and print what came of it."""
    url, connections, seconds = argv
    body, key = Path(os.environ["BENCH_BODY"]).read_bytes(), os.environ["BENCH_KEY"]
    headers = os.environ["BENCH_HEADERS"].splitlines()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(load(url, body, key, headers, connections=int(connections), seconds=float(seconds)))
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1:])
