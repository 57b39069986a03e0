"""An OpenAI-compatible provider that misbehaves on demand, as a process of its own. Nothing in it is random.

    python tests/faulty_provider.py --port 0        prints: listening on http://127.0.0.1:PORT

The model name chooses the behaviour (see `BEHAVIOURS` or `--help`); whatever stands before its last slash
is ignored, so `faulty/ok` is `ok`. `/v1/chat/completions`, `/v1/embeddings` and `/v1/models` are served.

`GET /_seen` tells what was asked (see `Record`); with `?at_least=N` it waits until N requests have arrived,
with `&finished=1` until none of them is under way. `POST /_release?count=N` ends N waits, also future ones.
`POST /_reset` forgets everything. With `--tls` it listens on a second port too, whose certificate nobody trusts.

Tokens are words. The bill is what a strict provider would charge: the whole answer as soon as the request was
taken up, in a stream what was generated until the client left; refusals and 5xx cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from faulty_wire import WIRE_FAULTS, Proper, play

TEXT = "The answer is forty two and nothing else needs to be said about it today"
CREATED = 1_760_000_000
BEHAVIOURS = {
    "ok": "a proper answer; in a stream usage comes when asked for, in a last chunk without choices",
    "usage-last": "the same",
    "usage-missing": "never says what it used",
    "echo": "answers with the text of the request's own body",
    "tools": "calls the first tool it is offered with fitting arguments; after a tool's answer it speaks",
    "many-chunks": "an answer of --many words, one per chunk",
    "ignores-cap": "the same, whatever cap on its output it was sent",
    "empty-finish-reason": "ignores its cap, and every chunk has the finish reason ''",
    "second-runs-on": "ignores its cap in a second choice, after the first has finished",
    "usage-running": "every chunk of a stream tells the usage so far, and no chunk of its own tells it at the end",
    "usage-running-drop": "the same, and hangs up halfway",
    "usage-running-end": "the same, and ends properly halfway, without any word that it is the end",
    "usage-running-error": "the same, with an error event halfway",
    "usage-running-stepped": "the same, and every piece of text waits for a release",
    "usage-running-ignores-cap": "the same, ignores its cap",
    "slow-first-byte": "answers when released, or after --delay-s",
    "stepped": "a stream in which every piece of text waits for a release",
    "hang": "never answers",
    "redirect": "307 to /_trap, which is recorded like any request",
    "rate-limited": "429 with Retry-After: 1",
    "rate-limited-once": "the first time only",
    "error-500": "500",
    "error-500-once": "the first time only",
    "error-503": "503 in its own words",
    "timeout-408": "408 in its own words",
    "proxy-500": "500 as something in between says it: a page, whatever the backend has done",
    "proxy-503": "503, likewise",
    "proxy-408": "408, likewise",
    "proxy-json-503": "503, as a JSON object with a message and nothing else",
    "unauthorized": "401",
    "bad-request": "400",
    "too-long": "400, as for a prompt that is longer than the model's context",
    "not-allowed": "400, as for what a content filter stops",
    "role-drop": "a stream that hangs up after its first chunk, which says nothing yet",
    "role-error": "the same, with an error event instead",
    "role-hang": "a stream that says nothing after its first chunk but comments, one for each release",
    "drop-before-head": "takes the request and hangs up",
    "drop-mid-body": "hangs up halfway through the body, in a stream after half of the events",
    "drop-mid-stream": "the same",
    "half-event": "hangs up in the middle of an event",
    "not-json": "HTML with status 200",
    "error-200": "an error body with status 200",
    "bad-utf8": "JSON text that is not UTF-8",
    "sse-error-event": "an error event in the middle of a stream, and then its end",
    "huge-line": "a line of 2 MB in the middle of a stream",
    "gzip": "compresses although nobody asked",
    "created": "a proper answer with status 201",
    "accepted": "202 and no answer",
    "no-content": "204",
    "usage-detailed": "says which tokens were cached, written to the cache and spent on reasoning: one of each",
    "done-missing": "a stream without [DONE]",
    "done-twice": "a stream with two",
    "done-drop": "a stream that is whole, and then a connection that is not closed in order",
    "rate-limited-bare": "429 that does not say how long",
    "seeded": "mostly ok; else, by the dice of --seed and the prompt, one of `SEEDED`",
    "switched": "ok while a release is there to take, else 500",
    **WIRE_FAULTS,
}
# What the dice of `seeded` choose from. None of them breaks a stream after it has shown something.
SEEDED = {
    False: ("error-500", "error-503", "rate-limited-bare", "drop-before-head", "drop-mid-body", "hang"),
    True: ("error-500", "error-503", "rate-limited-bare", "drop-before-head", "role-drop", "hang"),
}


@dataclass(kw_only=True)
class Record:
    """One request, as `/_seen` shows it."""

    path: str
    headers: dict[str, str]
    body: Any  # decoded JSON, or the text that was not JSON
    model: str = ""
    played: str = ""  # the behaviour, where the model's name leaves it to something else
    stream: bool = False
    status: int | None = None  # None: hung up or still at it
    chunks: int = 0  # events that were written in a stream
    sent_bytes: int = 0  # of an answer with a fault on the wire, as far as the client took them
    client_left: bool = False
    finished: bool = False
    prompt_tokens: int = 0  # billed
    completion_tokens: int = 0  # billed


@dataclass(kw_only=True)
class State:
    """What the process remembers between requests."""

    delay_s: float
    many: int
    seed: str = ""
    fault_rate: float = 0.2  # of `seeded`
    records: list[Record] = field(default_factory=list)
    times_seen: Counter[str] = field(default_factory=Counter)
    permits: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class ClientLeft(Exception):  # noqa: N818 - an event, not a fault
    """The client closed its side, or all of it."""


class HangUp(Exception):  # noqa: N818 - an order
    """The behaviour wants the connection gone."""


class Link(asyncio.Protocol):
    """The server's end of a connection: bytes in, bytes out with back-pressure; knows if the client left."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.inbox = bytearray()
        self.news = asyncio.Event()
        self.left = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.written = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.task = asyncio.get_running_loop().create_task(serve(self))

    def data_received(self, data: bytes) -> None:
        if not self.inbox and data[:2] == b"\x16\x03":  # a TLS greeting: servers do not wait for the rest of it
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            self.transport.close()
        self.inbox += data
        self.news.set()

    def eof_received(self) -> bool:
        self._note_that_client_left()
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        self._note_that_client_left()

    def _note_that_client_left(self) -> None:
        self.left.set()
        self.news.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def more(self) -> None:
        """Wait for more bytes."""
        if self.left.is_set():
            raise ClientLeft
        self.news.clear()
        await self.news.wait()

    async def read_head(self) -> bytes:
        while (end := self.inbox.find(b"\r\n\r\n")) < 0:
            await self.more()
        head = bytes(self.inbox[:end])
        del self.inbox[: end + 4]
        return head

    async def read(self, size: int) -> bytes:
        while len(self.inbox) < size:
            await self.more()
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data

    async def write(self, data: bytes) -> None:
        """Send, give the other side the chance to be heard, and wait while it is not taking any."""
        self.transport.write(data)
        self.written += len(data)
        await asyncio.sleep(0)
        await self.writable.wait()
        if self.left.is_set():
            raise ClientLeft

    async def unless_left(self, awaitable: Any, timeout_s: float | None = None) -> None:
        """Wait for something, at most `timeout_s`, or until the client leaves."""
        tasks = [asyncio.ensure_future(awaitable), asyncio.ensure_future(self.left.wait())]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if self.left.is_set():
            raise ClientLeft

    async def stay_silent(self) -> None:
        """Wait until the client leaves."""
        await self.unless_left(asyncio.Event().wait())

    async def released(self) -> None:
        """Wait for one release."""
        if self.state.permits.locked():
            await self.unless_left(self.state.permits.acquire())
        else:
            await self.state.permits.acquire()

    def reset(self) -> None:
        """Leave with a reset instead of an end."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self.write(head_of(status, fields) + body)


def head_of(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def serve(link: Link) -> None:
    """Serve one connection until somebody hangs up."""
    try:
        while True:
            head = (await link.read_head()).decode("latin-1")
            request_line, *lines = head.split("\r\n")
            method, target, _ = request_line.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await link.read(int(headers.get("content-length", 0)))
            await dispatch(link, method, target, headers, body)
            if headers.get("connection", "").lower() == "close":
                break
    except (ClientLeft, HangUp):
        pass
    finally:
        link.transport.close()


async def dispatch(link: Link, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
    state, url = link.state, urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    match (method, url.path):
        case ("GET", "/_seen"):
            await link.answer(200, await seen(state, query))
        case ("POST", "/_release"):
            for _ in range(int(query.get("count", 1))):
                state.permits.release()
            await link.answer(200, b"{}")
        case ("POST", "/_reset"):
            state.records.clear()
            state.times_seen.clear()
            state.permits = asyncio.Semaphore(0)
            await link.answer(200, b"{}")
        case ("GET", "/v1/models"):
            models = [{"id": name, "object": "model", "created": CREATED, "owned_by": "tests"} for name in BEHAVIOURS]
            await link.answer(200, dumps({"object": "list", "data": models}))
        case ("POST", "/v1/chat/completions" | "/v1/embeddings"):
            await handle(link, url.path, headers, body)
        case (_, "/_trap"):
            state.records.append(Record(path=url.path, headers=headers, body=None, status=200, finished=True))
            await announce(state)
            await link.answer(200, b"{}")
        case _:
            await link.answer(404, error_body(f"no {method} {url.path} here", "invalid_request_error"))


async def seen(state: State, query: dict[str, str]) -> bytes:
    at_least = int(query.get("at_least", 0))

    def reached() -> bool:
        records = state.records
        return len(records) >= at_least and (query.get("finished") != "1" or all(each.finished for each in records))

    async with state.changed:
        await state.changed.wait_for(reached)
    records = [asdict(record) for record in state.records]
    billed = {kind: sum(record[kind] for record in records) for kind in ("prompt_tokens", "completion_tokens")}
    return dumps({"requests": records, "billed": billed, "billed_tokens": sum(billed.values())})


async def handle(link: Link, path: str, headers: dict[str, str], raw: bytes) -> None:
    """Record a request, behave as its model name says, and record how that went."""
    state = link.state
    try:
        body = json.loads(raw)
    except ValueError:
        body = raw.decode("utf-8", "replace")
    record = Record(path=path, headers=headers, body=body)
    if isinstance(body, dict):
        record.model = str(body.get("model", ""))
        record.stream = bool(body.get("stream", False))
    state.records.append(record)
    await announce(state)
    try:
        if not isinstance(body, dict):
            record.status = 400
            await link.answer(400, error_body("the body is not a JSON object", "invalid_request_error"))
            return
        await behave(link, record, raw)
    except ClientLeft:
        record.client_left = True
        raise
    finally:
        record.finished = True
        await announce(state)


async def announce(state: State) -> None:
    async with state.changed:
        state.changed.notify_all()


async def behave(link: Link, record: Record, raw: bytes) -> None:
    state, behaviour = link.state, record.model.rsplit("/", 1)[-1]
    state.times_seen[behaviour] += 1
    if behaviour.endswith("-once"):
        behaviour = behaviour.removesuffix("-once") if state.times_seen[behaviour] == 1 else "ok"
    elif behaviour == "seeded":
        behaviour = by_dice(state, record)
    elif behaviour == "switched":
        behaviour = "error-500" if state.permits.locked() else "ok"
        if behaviour == "ok":
            await state.permits.acquire()
    record.played = behaviour
    if behaviour not in BEHAVIOURS:
        record.status = 404
        await link.answer(404, error_body(f"the model {record.model!r} does not exist", "model_not_found"))
        return
    if behaviour in REFUSALS:
        record.status, body, headers = REFUSALS[behaviour]
        await link.answer(record.status, body, headers)
        return
    record.prompt_tokens = words_in(record.body.get("messages") or record.body.get("input") or "")
    if behaviour in WIRE_FAULTS:
        await misbehave(link, record, behaviour, raw)
    elif record.path == "/v1/embeddings":
        await embed(link, record, behaviour)
    elif record.stream:
        await stream(link, record, behaviour, raw)
    else:
        await answer(link, record, behaviour, raw)


def by_dice(state: State, record: Record) -> str:
    """Choose what to do by the seed, the prompt, and how often it has come: never by the order of arrival."""
    prompt = json.dumps(record.body.get("messages"))
    state.times_seen[prompt] += 1
    dice = random.Random(f"{state.seed}|{prompt}|{state.times_seen[prompt]}")
    return dice.choice(SEEDED[record.stream]) if dice.random() < state.fault_rate else "ok"


async def misbehave(link: Link, record: Record, behaviour: str, raw: bytes) -> None:
    """Answer with a fault on the wire. What was asked for has been generated, and is billed."""
    if behaviour.startswith(("unavailable", "rate-limited", "redirect")):
        record.prompt_tokens = 0  # nothing was
    message, finish_reason, tokens = message_for(link.state, record, "ok", raw)
    events = [event async for event in with_faults(link, record, "ok", deltas_of(message), finish_reason, usage=True)]
    record.completion_tokens = tokens if record.prompt_tokens else 0
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    body = {**envelope(record, "chat.completion"), "choices": [choice], "usage": usage_of(record)}
    record.status, before = 200, link.written
    try:
        end = await play(link, behaviour, Proper(body=dumps(body), events=events, stream=record.stream))
    finally:
        record.sent_bytes = link.written - before
    match end:
        case "close":
            raise HangUp
        case "reset":
            link.reset()
            raise HangUp


async def embed(link: Link, record: Record, behaviour: str) -> None:
    await before_the_head(link, record, behaviour)
    texts = record.body.get("input")
    texts = texts if isinstance(texts, list) and not all(isinstance(each, int) for each in texts) else [texts]
    as_base64 = record.body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector(text, record.body.get("dimensions", 8), as_base64),
        }
        for index, text in enumerate(texts)
    ]
    answer_body: dict[str, Any] = {"object": "list", "data": data, "model": record.body["model"]}
    if behaviour != "usage-missing":
        answer_body["usage"] = {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens}
    await whole(link, record, behaviour, dumps(answer_body))


async def answer(link: Link, record: Record, behaviour: str, raw: bytes) -> None:
    message, finish_reason, record.completion_tokens = message_for(link.state, record, behaviour, raw)
    await before_the_head(link, record, behaviour)
    body = {
        **envelope(record, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
    }
    if behaviour != "usage-missing":
        body["usage"] = usage_of(record)
    await whole(link, record, behaviour, dumps(body))


async def whole(link: Link, record: Record, behaviour: str, body: bytes) -> None:
    """Send an answer that is not a stream, with the faults that a body can have."""
    record.status = 201 if behaviour == "created" else 200
    match behaviour:
        case "drop-mid-body" | "drop-mid-stream" | "half-event":
            await link.write(head_of(200, {"content-type": "application/json", "content-length": str(len(body))}))
            await link.write(body[: len(body) // 2])
            raise HangUp
        case "not-json":
            await link.answer(200, b"<html><h1>It works!</h1></html>", {"content-type": "text/html"})
        case "error-200":
            await link.answer(200, error_body("something broke", "server_error"))
        case "bad-utf8":
            await link.answer(200, body.replace(b'"The', b'"\xff\xfeThe'))
        case "gzip":
            await link.answer(200, gzip.compress(body, mtime=0), {"content-encoding": "gzip"})
        case _:
            await link.answer(record.status, body)


async def stream(link: Link, record: Record, behaviour: str, raw: bytes) -> None:
    message, finish_reason, tokens = message_for(link.state, record, behaviour, raw)
    if behaviour == "drop-mid-body":
        behaviour = "drop-mid-stream"
    if behaviour in {"not-json", "error-200", "gzip"}:
        record.completion_tokens = tokens
        await whole(link, record, behaviour, b"data: [DONE]\n\n")
        return
    try:
        await before_the_head(link, record, behaviour)
    except (ClientLeft, HangUp):
        record.completion_tokens = tokens  # the work was done, whoever hears of it
        raise
    record.status = 201 if behaviour == "created" else 200
    headers = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    await link.write(head_of(record.status, headers))
    wants_usage = bool((record.body.get("stream_options") or {}).get("include_usage"))
    deltas = deltas_of(message)
    async for event in with_faults(link, record, behaviour, deltas, finish_reason, usage=wants_usage):
        await link.write(b"%x\r\n%b\r\n" % (len(event), event))
        record.chunks += 1
    await link.write(b"0\r\n\r\n")


async def with_faults(
    link: Link,
    record: Record,
    behaviour: str,
    deltas: list[dict[str, Any]],
    finish_reason: str,
    *,
    usage: bool,
) -> AsyncIterator[bytes]:
    """The events of a stream. Tokens are billed as their event is generated."""
    envelope_ = {**envelope(record, "chat.completion.chunk"), **({"usage": None} if usage else {})}
    running = behaviour.startswith("usage-running")
    answers = 2 if behaviour == "second-runs-on" else 1

    def event(delta: dict[str, Any], reason: str | None = None, *, index: int = answers - 1) -> bytes:
        if reason is None and behaviour == "empty-finish-reason":
            reason = ""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        told = {"usage": usage_of(record)} if running else {}
        return b"data: " + dumps({**envelope_, "choices": [choice], **told}) + b"\n\n"

    if answers > 1:
        yield event({"role": "assistant", "content": "No"}, "stop", index=0)
    yield event({"role": "assistant", "content": None if "tool_calls" in deltas[0] else ""})
    match behaviour:
        case "role-drop":
            raise HangUp
        case "role-error":
            yield b"data: " + error_body("the model is overloaded", "server_error") + b"\n\n"
            return
        case "role-hang":
            while True:
                await link.unless_left(link.state.permits.acquire())
                yield b": patience\n\n"
    for index, delta in enumerate(deltas):
        if index == len(deltas) // 2:
            match behaviour:
                case "drop-mid-stream" | "usage-running-drop":
                    raise HangUp
                case "usage-running-end":
                    return
                case "half-event":
                    whole_event = event(delta)
                    await link.write(b"%x\r\n%b" % (len(whole_event), whole_event[: len(whole_event) // 2]))
                    raise HangUp
                case "sse-error-event" | "usage-running-error":
                    yield b"data: " + error_body("the model is overloaded", "server_error") + b"\n\n"
                    return
                case "huge-line":
                    yield b"data: " + b"x" * (2 << 20) + b"\n\n"
                case "bad-utf8":
                    yield event({"content": "~"}).replace(b"~", b"\xff\xfe")
        if behaviour.endswith("stepped"):
            await link.unless_left(link.state.permits.acquire())
        record.completion_tokens += words_in(delta.get("content") or "") + len(delta.get("tool_calls") or ())
        yield event(delta)
    yield event({}, finish_reason)
    if usage and not running and behaviour != "usage-missing":
        yield b"data: " + dumps({**envelope_, "choices": [], "usage": usage_of(record)}) + b"\n\n"
    if behaviour != "done-missing":
        yield b"data: [DONE]\n\n"
    if behaviour == "done-twice":
        yield b"data: [DONE]\n\n"
    if behaviour == "done-drop":
        raise HangUp


async def before_the_head(link: Link, record: Record, behaviour: str) -> None:
    match behaviour:
        case "hang":
            await link.unless_left(asyncio.Event().wait())
        case "drop-before-head":
            raise HangUp
        case "slow-first-byte":
            await link.unless_left(link.state.permits.acquire(), link.state.delay_s)


def message_for(state: State, record: Record, behaviour: str, raw: bytes) -> tuple[dict[str, Any], str, int]:
    """Return the assistant's message, its finish reason and its length in tokens."""
    messages = record.body.get("messages") or []
    tools = record.body.get("tools") or []
    if behaviour == "tools" and tools and messages and messages[-1].get("role") != "tool":
        function = tools[0]["function"]
        arguments = json.dumps(example_of(function.get("parameters") or {"type": "object"}))
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        return message, "tool_calls", len(deltas_of(message))
    text = TEXT
    if behaviour == "echo":
        text = raw.decode("utf-8", "replace")
    elif behaviour in IGNORES_CAP or behaviour == "many-chunks":
        text = " ".join(f"w{number}" for number in range(state.many))
    words, reason = text.split(" "), "stop"
    limit = record.body.get("max_completion_tokens") or record.body.get("max_tokens")
    if isinstance(limit, int) and behaviour != "echo" and behaviour not in IGNORES_CAP and len(words) > limit:
        words, reason = words[:limit], "length"
    text = " ".join(words)
    return {"role": "assistant", "content": text, "refusal": None}, reason, words_in(text)


def deltas_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut a message as OpenAI streams it: a word at a time; a tool call as its name, then its arguments."""
    if "tool_calls" not in message:
        first, *others = message["content"].split(" ")
        return [{"content": first}, *({"content": f" {word}"} for word in others)]
    call = message["tool_calls"][0]
    function = call["function"]
    head = {"index": 0, **call, "function": {"name": function["name"], "arguments": ""}}
    pieces = [function["arguments"][at : at + 8] for at in range(0, len(function["arguments"]), 8)]
    calls = [head, *({"index": 0, "function": {"arguments": piece}} for piece in pieces)]
    return [{"tool_calls": [each]} for each in calls]


def example_of(schema: dict[str, Any]) -> Any:
    """The plainest value that fits a JSON schema, as far as tools use it."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind == "object":
        required = schema.get("required", [])
        return {name: example_of(each) for name, each in schema.get("properties", {}).items() if name in required}
    return {"string": "Paris", "integer": 1, "number": 1.5, "boolean": True, "array": []}.get(kind)


def envelope(record: Record, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-faulty", "object": kind, "created": CREATED, "model": record.body["model"]}


def usage_of(record: Record) -> dict[str, Any]:
    prompt, completion = record.prompt_tokens, record.completion_tokens
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if not record.model.endswith("usage-detailed"):
        return counts
    return {
        **counts,
        "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


def words_in(value: Any) -> int:
    """Count the words of every text in a value, which is how long it is in this provider's tokens."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(map(words_in, value)) if not all(isinstance(each, int) for each in value) else len(value)
    if isinstance(value, dict):
        return words_in(value.get("content") or value.get("text") or "")
    return 0


def vector(text: object, size: int, as_base64: bool) -> list[float] | str:
    digest = hashlib.shake_256(repr(text).encode()).digest(size)
    values = [byte / 128 - 1 for byte in digest]
    return base64.b64encode(struct.pack(f"<{size}f", *values)).decode() if as_base64 else values


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def error_body(message: str, kind: str) -> bytes:
    return dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})


IGNORES_CAP = {"ignores-cap", "empty-finish-reason", "second-runs-on", "usage-running-ignores-cap"}
PAGE = b"<html><h1>Service Unavailable</h1></html>"
REFUSALS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "rate-limited": (429, error_body("Rate limit reached", "rate_limit_error"), {"retry-after": "1"}),
    "error-500": (500, error_body("The server had an error", "server_error"), {}),
    "error-503": (503, error_body("The engine is overloaded", "server_error"), {}),
    "timeout-408": (408, error_body("The request took too long", "server_error"), {}),
    "proxy-500": (500, PAGE, {"content-type": "text/html"}),
    "proxy-503": (503, PAGE, {"content-type": "text/html"}),
    "proxy-408": (408, PAGE, {"content-type": "text/html"}),
    "proxy-json-503": (503, dumps({"message": "Service Unavailable"}), {}),
    "rate-limited-bare": (429, error_body("Rate limit reached", "rate_limit_error"), {}),
    "unauthorized": (401, error_body("Incorrect API key provided", "invalid_request_error"), {}),
    "bad-request": (400, error_body("Unsupported value", "invalid_request_error"), {}),
    "too-long": (400, error_body("This model's maximum context length is 8 tokens.", "invalid_request_error"), {}),
    "not-allowed": (400, error_body("Output blocked by content filtering policy", "invalid_request_error"), {}),
    "redirect": (307, b"", {"location": "/_trap"}),
    "accepted": (202, dumps({"id": "job_1", "status": "queued"}), {}),
    "no-content": (204, b"", {}),
}


def untrusted() -> ssl.SSLContext:
    """TLS with a certificate that no authority has signed."""
    data = Path(__file__).parent / "data"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(data / "loopback.crt", data / "loopback.key")
    return context


async def main() -> None:
    behaviours = "\n".join(f"{name:20}{what}" for name, what in BEHAVIOURS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{behaviours}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=float(os.environ.get("FAULTY_DELAY_S", "30")))
    parser.add_argument("--many", type=int, default=2000, help="words in an answer of many-chunks")
    parser.add_argument("--seed", default="", help="what the dice of `seeded` are thrown by")
    parser.add_argument("--fault-rate", type=float, default=0.2, help="the share of faults of `seeded`")
    parser.add_argument("--tls", action="store_true", help="listen on a second port, with TLS")
    options = parser.parse_args()
    state = State(delay_s=options.delay_s, many=options.many, seed=options.seed, fault_rate=options.fault_rate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Link(state), "127.0.0.1", options.port, backlog=1024)
    roots = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]
    if options.tls:
        second = await loop.create_server(lambda: Link(state), "127.0.0.1", 0, ssl=untrusted())
        roots.append(f"https://127.0.0.1:{second.sockets[0].getsockname()[1]}")
    print(f"listening on {' '.join(roots)}", flush=True)  # noqa: T201 - whoever started it waits for this
    await server.serve_forever()


@dataclass(frozen=True, kw_only=True)
class FaultyProvider:
    """The handle of a running provider. `root` is its origin, `base_url` what an OpenAI client is given.

    `tls_root` is its other origin, where it was started with `--tls`.
    """

    root: str
    pid: int
    tls_root: str = ""

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    def seen(self, *, at_least: int = 0, finished: bool = False) -> dict[str, Any]:
        """What was asked; waits until `at_least` requests arrived, and with `finished` until all are over."""
        result: dict[str, Any] = self._call("GET", f"/_seen?at_least={at_least}&finished={int(finished)}")
        return result

    def release(self, count: int = 1) -> None:
        """Let that many waits of `slow-first-byte` or `stepped` end, now or when they come."""
        self._call("POST", f"/_release?count={count}")

    def reset(self) -> None:
        self._call("POST", "/_reset")

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self.root + path, method=method, headers={"connection": "close"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=20) as answer:
            return json.load(answer)


@contextlib.contextmanager
def run_faulty_provider(*flags: str) -> Iterator[FaultyProvider]:
    """Run the provider as a process of its own, with command line flags such as `--many=100000`."""
    command = [sys.executable, __file__, "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), f"the faulty provider did not start: {line!r}"
            root, _, tls_root = line.removeprefix("listening on ").strip().partition(" ")
            yield FaultyProvider(root=root, pid=process.pid, tls_root=tls_root)
        finally:
            process.terminate()
            process.wait(timeout=10)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
