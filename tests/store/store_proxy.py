"""A way to PostgreSQL that breaks at a chosen point: before a COMMIT arrives, or before its answer does.

Or it is a pooler's, which loses the server after the COMMIT and answers in its own words.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Cut = Literal["commit-lost", "answer-lost", "pooler-answers"]
_IN_ITS_OWN_WORDS = b"SERROR\0VERROR\0C08P01\0Mserver conn crashed?\0\0"
# An ErrorResponse, and a ReadyForQuery (postgresql.org/docs/current/protocol-message-formats.html).
POOLERS_ANSWER = b"E" + (len(_IN_ITS_OWN_WORDS) + 4).to_bytes(4, "big") + _IN_ITS_OWN_WORDS + b"Z\0\0\0\x05I"
COMMIT = b"COMMIT\x00"


class _Way:
    def __init__(self) -> None:
        self.mute = threading.Event()  # what the server says goes nowhere
        self.answered = threading.Event()  # it has said something since


class Proxy:
    """Passes bytes between clients and one server; `arm` breaks the next COMMIT that passes."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._cut: Cut | None = None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._closed = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, cut: Cut) -> None:
        self._cut = cut

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        for each in self._open:
            _end(each)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._open += [client, server]
            way = _Way()
            threading.Thread(target=self._there, args=(client, server, way), daemon=True).start()
            threading.Thread(target=self._back, args=(client, server, way), daemon=True).start()

    def _there(self, client: socket.socket, server: socket.socket, way: _Way) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                cut = self._take_cut() if COMMIT in data else None
                if cut in ("answer-lost", "pooler-answers"):
                    way.mute.set()
                    server.sendall(data)
                    assert way.answered.wait(30)  # it is committed now
                if cut is not None:
                    self.cuts += 1
                if cut == "pooler-answers":
                    client.sendall(POOLERS_ANSWER)
                    continue
                if cut is not None:
                    break
                if way.mute.is_set():
                    break
                server.sendall(data)
        _end(client)
        _end(server)

    def _back(self, client: socket.socket, server: socket.socket, way: _Way) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if way.mute.is_set():
                    way.answered.set()
                    return
                client.sendall(data)
        _end(client)

    def _take_cut(self) -> Cut | None:
        with self._lock:
            cut, self._cut = self._cut, None
            return cut


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def breakable(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of a database, and the address that leads through it."""
    before, _, after = url.rpartition("@")
    address, _, name = after.partition("/")
    proxy = Proxy(int(address.rpartition(":")[2]))
    try:
        yield proxy, f"{before}@127.0.0.1:{proxy.port}/{name}"
    finally:
        proxy.close()
