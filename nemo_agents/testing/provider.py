"""A provider for tests: an OpenAI-compatible server on loopback that answers sensibly, or as the test says.

    with scripted_provider() as provider, running_gateway(tmp_path, settings=provider.settings("swift")) as gateway:
        provider.say("Good evening").call_tool("weather", {"city": "Paris"}).fail(429, retry_after_s=0.2)

By itself it calls the tool that it is offered, with arguments that fit its schema, speaks of a tool's results, honours
`tool_choice`, `response_format`, `stop` and caps, and streams with usage: see `nemo_agents.testing.replies`. What
`say`, `call_tool` and `fail` queue is answered first, a request each. Nothing is random; tokens are words.

Chat Completions, Responses, Messages, Completions, Embeddings and the list of models are served.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from nemo_agents.groups import ModelGroup
from nemo_agents.testing.replies import Call, Reply, reply_to
from nemo_agents.testing.wires.base import CREATED, Bill, Body, bill_of, dumps, words_of
from nemo_agents.testing.wires.table import SHAPES, Shape

__all__ = ["Received", "ScriptedProvider", "scripted_provider"]

_PRICE: Final = {"input_per_mtok": "1", "output_per_mtok": "2"}
_WIRES: Final = ("chat", "responses", "messages", "completions", "embeddings")
_POLL_S: Final = 0.02  # how soon the server notices that it shall end


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request that arrived: its path, its headers by their names in lower case, and its body as JSON."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    status: int
    code: str | None
    message: str
    retry_after_s: float | None


class ScriptedProvider:
    """The handle of a running provider; any thread may use it. `url` is what an OpenAI client takes as its base."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._lock = threading.Lock()
        self._queue: deque[Reply | _Failure] = deque()
        self._requests: list[Received] = []

    def __repr__(self) -> str:
        return f"ScriptedProvider({self.origin!r})"

    @property
    def url(self) -> str:
        """The base address; ends in `/v1`."""
        return f"{self.origin}/v1"

    @property
    def requests(self) -> list[Received]:
        """What was asked so far, oldest first; lists of models do not count."""
        with self._lock:
            return list(self._requests)

    def say(self, text: str) -> Self:
        """Answer the next request with this text, whatever it asks; with no more words than the request allows."""
        return self._next(Reply(text=text))

    def call_tool(self, name: str, arguments: Mapping[str, Any] | None = None) -> Self:
        """Answer the next request with a call of this tool, whether it was offered or not."""
        call = Call(id=f"call_{name}", name=name, arguments=dict(arguments or {}))
        return self._next(Reply(calls=(call,), finish="tools"))

    def fail(
        self, status: int, *, code: str | None = None, message: str = "", retry_after_s: float | None = None
    ) -> Self:
        """Refuse the next request with this status, and with `retry-after` in seconds where it is given."""
        said = message or f"The provider was told to answer {status}"
        return self._next(_Failure(status=status, code=code, message=said, retry_after_s=retry_after_s))

    def reset(self) -> None:
        """Forget what was asked and what was queued."""
        with self._lock:
            self._queue.clear()
            self._requests.clear()

    def settings(self, *models: str) -> dict[str, Any]:
        """Return settings for `running_gateway`: each model is served by this provider alone, at $1 and $2 per million.

        A name with a slash is taken as `provider/model` of this provider, which the gateway knows as `scripted`.
        """
        names = models or ("gpt-4o-mini",)
        bare = [name.removeprefix("scripted/") for name in names]
        return {
            "sandbox": "off",
            "retries": 0,
            "providers": {"scripted": {"base_url": self.url, "wires": list(_WIRES)}},
            "prices": {f"scripted/{name}": _PRICE for name in bare},
            "groups": tuple(
                ModelGroup(name, models=[f"scripted/{name}"]) for name in names if not name.startswith("scripted/")
            ),
        }

    def _next(self, answer: Reply | _Failure) -> Self:
        with self._lock:
            self._queue.append(answer)
        return self

    def _take(self, received: Received) -> Reply | _Failure | None:
        with self._lock:
            self._requests.append(received)
            if received.path in SHAPES and self._queue:
                return self._queue.popleft()
        return None


class _Server(ThreadingHTTPServer):
    """A thread for each connection; none of them is waited for."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.provider = ScriptedProvider(f"http://127.0.0.1:{self.server_address[1]}")
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up; a fault of this code is an answer 500."""

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        with self._lock:
            left = list(self._open)
        for connection in left:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""

    def do_GET(self) -> None:
        """Serve the list of models; it is empty, for every name is answered."""
        if self.path.split("?", 1)[0] == "/v1/models":
            self._answer(200, {"object": "list", "data": []})
        else:
            self._answer(404, _error("not_found", f"no GET {self.path} here"))

    def do_POST(self) -> None:
        """Serve a request of any wire."""
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.split("?", 1)[0]
        if path not in SHAPES and path != "/v1/embeddings":
            self._answer(404, _error("not_found", f"no POST {path} here"))
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._answer(400, _error("invalid_request_error", "the body is not JSON"))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        told = self.server.provider._take(Received(path=path, headers=headers, body=body))  # noqa: SLF001 - one module
        if path == "/v1/embeddings":
            self._answer(200, _embeddings(body))
        elif isinstance(told, _Failure):
            self._fail(SHAPES[path], told)
        else:
            self._reply(SHAPES[path], body, told)

    def _reply(self, shape: Shape, body: Body, told: Reply | None) -> None:
        try:
            asked, conversation = shape.read(body, str(body["model"]).rsplit("/", 1)[-1])
            replies = [reply_to(asked) if told is None else _within(told, asked.cap)] * asked.answers
            bill: Bill = bill_of(asked, conversation, replies)
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            self._answer(400, shape.error(400, f"cannot read this request: {type(exc).__name__}: {exc}"))
            return
        if not body.get("stream"):
            self._answer(200, shape.plain(body, replies, bill))
            return
        self._head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
        for event in shape.events(body, replies, bill):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def _fail(self, shape: Shape, failure: _Failure) -> None:
        body = shape.error(failure.status, failure.message)
        if failure.code is not None:
            body["error"]["code"] = failure.code
        headers = {}
        if failure.retry_after_s is not None:
            headers = {
                "retry-after": f"{failure.retry_after_s:g}",
                "retry-after-ms": f"{failure.retry_after_s * 1000:.0f}",
            }
        self._answer(failure.status, body, headers)

    def _answer(self, status: int, body: Body, headers: Mapping[str, str] | None = None) -> None:
        raw = dumps(body)
        self._head(status, {"content-type": "application/json", "content-length": str(len(raw)), **(headers or {})})
        self.wfile.write(raw)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _within(told: Reply, cap: int | None) -> Reply:
    pieces = told.pieces
    return told if cap is None or len(pieces) <= cap else replace(told, text="".join(pieces[:cap]))


def _error(kind: str, message: str) -> Body:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _embeddings(body: Body) -> Body:
    given = body.get("input")
    texts = given if isinstance(given, list) else [given]
    size, as_base64 = body.get("dimensions") or 8, body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, size, as_base64=as_base64)}
        for index, text in enumerate(texts)
    ]
    words = sum(words_of(text) for text in texts)
    return {
        "object": "list",
        "created": CREATED,
        "data": data,
        "model": body.get("model"),
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }


def _vector(text: object, size: int, *, as_base64: bool) -> list[float] | str:
    values = [byte / 128 - 1 for byte in hashlib.shake_256(repr(text).encode()).digest(size)]
    return base64.b64encode(struct.pack(f"<{size}f", *values)).decode() if as_base64 else values


@contextmanager
def scripted_provider() -> Iterator[ScriptedProvider]:
    """Run a provider in a thread while the block runs; leaving waits for no connection."""
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="scripted-provider", daemon=True)
    thread.start()
    try:
        yield server.provider
    finally:
        server.end()
        thread.join()
