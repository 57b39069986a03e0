"""Who tries to reach what is not on this machine: an audit hook that refuses it and remembers it.

It sees everything that goes through Python's own sockets, blocking or awaiting. It does not see libraries that open
connections in C themselves, such as gRPC.
"""

from __future__ import annotations

import ipaddress
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["LeftThisMachine", "only_loopback"]

_NAMES: Final = frozenset({"", "localhost"})


class LeftThisMachine(OSError):  # noqa: N818 - what happened
    """A connection to, or a look-up of, something that is not on this machine."""


class _Guard:
    """One for the process, for an audit hook cannot be taken out again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._installed = False
        self.watchers: list[list[str]] = []

    def install(self) -> None:
        with self._lock:
            if not self._installed:
                sys.addaudithook(self._hook)
                self._installed = True

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watchers or not event.startswith("socket."):
            return
        host = _host(event, args)
        if host is None or _is_loopback(host):
            return
        for seen in self.watchers:
            seen.append(f"{event} {host}")
        raise LeftThisMachine(f"{event}: {host} is not on this machine, and tests of adapters reach nothing else")


_GUARD: Final = _Guard()


def _host(event: str, args: tuple[Any, ...]) -> str | None:
    match event, args:
        case (("socket.getaddrinfo" | "socket.gethostbyname" | "socket.gethostbyaddr"), (host, *_)):
            return host.decode() if isinstance(host, bytes) else host
        case (("socket.connect" | "socket.sendto"), (_, (str() as host, *_))):
            return host
        case _:
            return None  # a Unix socket, or no address at all


def _is_loopback(host: str) -> bool:
    if host.lower() in _NAMES:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@contextmanager
def only_loopback() -> Iterator[list[str]]:
    """Refuse every other host while the block runs; the list that it gives fills with what was tried."""
    _GUARD.install()
    seen: list[str] = []
    _GUARD.watchers.append(seen)
    try:
        yield seen
    finally:
        # by identity: two empty lists are equal
        _GUARD.watchers[:] = [other for other in _GUARD.watchers if other is not seen]
