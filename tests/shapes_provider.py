"""A provider that speaks every wire natively, as a process of its own: OpenAI's and Anthropic's. Nothing is random.

    python tests/shapes_provider.py --port 0        prints: listening on http://127.0.0.1:PORT

It answers as the scripted provider does (`nemo_agents.testing.replies`), and the model's name, after its last slash,
says how: see `BEHAVIOURS`.
`/v1/chat/completions`, `/v1/responses`, `/v1/messages`, `/v1/completions` and `/v1/embeddings` are served.

`GET /_seen` tells what was asked and what is billed for it; with `?finished=1` it waits until nothing is under way.
`POST /_reset` forgets everything. Tokens are words. A stream that breaks is billed for what was written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from faulty_provider import ClientLeft, FaultyProvider, HangUp, Link, dumps, head_of, vector

from nemo_agents.testing.replies import reply_to
from nemo_agents.testing.wires.base import Bill, bill_of, words_of
from nemo_agents.testing.wires.table import SHAPES, Shape

BEHAVIOURS = {
    "sense": "calls the tool that it is offered, speaks of results, fits a schema; else says the same text always",
    "parallel": "the same, but calls every tool that it is offered at once, and a single one twice",
    "thinker": "the same, but thinks first; and tells of tokens that were cached, and written to the cache",
    "breaks": "hangs up halfway through the text of a stream",
    "errs": "an error event of the wire's own halfway through a stream",
    "rate-limited": "429 with Retry-After: 7",
    "overloaded": "529",
    "unreadable": "400",
}
_REFUSALS = {
    "rate-limited": (429, "Rate limit reached", {"retry-after": "7"}),
    "overloaded": (529, "Overloaded", {}),
    "unreadable": (400, "Unsupported value", {}),
}


@dataclass(kw_only=True)
class Record:
    """One request, as `/_seen` shows it."""

    path: str
    headers: dict[str, str]
    body: Any
    status: int | None = None
    finished: bool = False
    bill: Bill | None = None  # None: nothing was served


@dataclass(kw_only=True)
class Memory:
    """What the process remembers between requests."""

    records: list[Record] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class ShapesLink(Link):
    """A connection to this provider: the faulty one's bytes, with other answers."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(state=None)  # type: ignore[arg-type]
        self.memory = memory

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.task = asyncio.get_running_loop().create_task(_serve(self))


async def _serve(link: ShapesLink) -> None:
    with contextlib.suppress(ClientLeft, HangUp):
        while True:
            head = (await link.read_head()).decode("latin-1")
            request_line, *lines = head.split("\r\n")
            method, target, _ = request_line.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await link.read(int(headers.get("content-length", 0)))
            await _dispatch(link, method, target, headers, body)
            if headers.get("connection", "").lower() == "close":
                break
    link.transport.close()


async def _dispatch(link: ShapesLink, method: str, target: str, headers: dict[str, str], raw: bytes) -> None:
    memory, url = link.memory, urlsplit(target)
    if (method, url.path) == ("GET", "/_seen"):
        async with memory.changed:
            await memory.changed.wait_for(
                lambda: "finished=1" not in url.query or all(record.finished for record in memory.records)
            )
        await link.answer(200, dumps({"requests": [asdict(record) for record in memory.records]}))
    elif (method, url.path) == ("POST", "/_reset"):
        memory.records.clear()
        await link.answer(200, b"{}")
    elif method == "POST" and (url.path in SHAPES or url.path == "/v1/embeddings"):
        record = Record(path=url.path, headers=headers, body=json.loads(raw))
        memory.records.append(record)
        try:
            await _behave(link, record)
        finally:
            record.finished = True
            async with memory.changed:
                memory.changed.notify_all()
    else:
        await link.answer(404, dumps({"error": {"message": f"no {method} {url.path} here", "type": "not_found"}}))


async def _behave(link: ShapesLink, record: Record) -> None:
    body = record.body
    behaviour = str(body["model"]).rsplit("/", 1)[-1]
    if record.path == "/v1/embeddings":
        await _embed(link, record)
        return
    shape = SHAPES[record.path]
    if behaviour in _REFUSALS:
        record.status, message, headers = _REFUSALS[behaviour]
        await link.answer(record.status, dumps(shape.error(record.status, message)), headers)
        return
    asked, conversation = shape.read(body, behaviour)
    replies = [reply_to(asked)] * asked.answers
    record.status, record.bill = 200, bill_of(asked, conversation, replies)
    if body.get("stream"):
        await _stream(link, behaviour, shape, list(shape.events(body, replies, record.bill)))
    else:
        await link.answer(200, dumps(shape.plain(body, replies, record.bill)))


async def _stream(link: ShapesLink, behaviour: str, shape: Shape, events: list[bytes]) -> None:
    fields = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    await link.write(head_of(200, fields))
    for index, event in enumerate(events):
        if index == len(events) // 2 and behaviour == "breaks":
            raise HangUp
        if index == len(events) // 2 and behaviour == "errs":
            last = shape.stream_error(shape.error(529, "Overloaded"))
            await link.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
            return
        await link.write(b"%x\r\n%b\r\n" % (len(event), event))
    await link.write(b"0\r\n\r\n")


async def _embed(link: ShapesLink, record: Record) -> None:
    body = record.body
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    as_base64 = body.get("encoding_format") == "base64"
    vectors = [vector(text, body.get("dimensions", 8), as_base64) for text in given]
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]
    words = sum(len(text) if isinstance(text, list) else words_of(text) for text in given)
    record.status = 200
    record.bill = Bill(plain=words, cached=0, written=0, written_1h=0, output=0, reasoning=0)
    usage = {"prompt_tokens": words, "total_tokens": words}
    await link.answer(200, dumps({"object": "list", "data": data, "model": body["model"], "usage": usage}))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    memory = Memory()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ShapesLink(memory), "127.0.0.1", options.port)
    port = server.sockets[0].getsockname()[1]
    print(f"listening on http://127.0.0.1:{port}", flush=True)  # noqa: T201 - whoever started it waits for this
    await server.serve_forever()


class ShapesProvider(FaultyProvider):
    """The handle of a running provider: the faulty one's, for what both have."""

    def requests(self) -> list[dict[str, Any]]:
        """What was asked, once all of it is over."""
        found: list[dict[str, Any]] = self._call("GET", "/_seen?finished=1")["requests"]
        return found


@contextlib.contextmanager
def run_shapes_provider() -> Iterator[ShapesProvider]:
    """Run the provider as a process of its own."""
    command = [sys.executable, __file__, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), f"the shapes provider did not start: {line!r}"
            yield ShapesProvider(root=line.removeprefix("listening on ").strip(), pid=process.pid)
        finally:
            process.terminate()
            process.wait(timeout=10)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
