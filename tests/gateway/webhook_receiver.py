"""A receiver of webhooks that does what each test wants: answer, fail, hang, hang up, redirect, or send a gigabyte."""

from __future__ import annotations

import queue
import socketserver
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = b"x" * 65_536
CHUNKS_OF_A_GIGABYTE = 2**30 // len(CHUNK)


@dataclass(frozen=True, kw_only=True)
class Got:
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class Receiver:
    """What a receiver got, and what it does next: `script` first, then `ok` for ever.

    A status may be followed by its `Retry-After`: `503 120`.
    """

    url: str
    script: deque[str] = field(default_factory=deque)
    got: queue.Queue[Got] = field(default_factory=queue.Queue)
    released: threading.Event = field(default_factory=threading.Event)
    sent_bytes: int = 0

    def next(self, timeout_s: float = 20) -> Got:
        """Return the next request, waiting for it."""
        return self.got.get(timeout=timeout_s)

    def trapped(self) -> bool:
        """Say whether a redirect was followed."""
        return any(got.path == "/trap" for got in list(self.got.queue))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        receiver = self.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        what = receiver.script.popleft() if receiver.script else "ok"
        receiver.got.put(Got(path=self.path, headers={k.lower(): v for k, v in self.headers.items()}, body=body))
        if what == "hang":
            receiver.released.wait(60)
            self.close_connection = True
        elif what == "close":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            self.close_connection = True
        elif what == "gigabyte":
            self._gigabyte()
        elif what == "redirect":
            self._answer(307, {"location": "/trap"})
        else:
            status, _, retry_after = what.partition(" ")
            self._answer(204 if what == "ok" else int(status), {"retry-after": retry_after} if retry_after else {})

    do_GET = do_POST  # noqa: N815 - http.server's name; what a redirect that was followed might turn into

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _gigabyte(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-length", str(2**30))
        self.end_headers()
        with suppress(OSError):
            for _ in range(CHUNKS_OF_A_GIGABYTE):
                self.wfile.write(CHUNK)
                self.receiver.sent_bytes += len(CHUNK)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without looking up the host's name
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


@contextmanager
def webhook_receiver(*script: str) -> Iterator[Receiver]:
    """Run a receiver on a free port of this machine."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    receiver = Receiver(url=f"http://127.0.0.1:{server.server_address[1]}/hook", script=deque(script))
    handler.receiver = receiver
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
