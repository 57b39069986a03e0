"""A pool of connections to one provider: reuse, a limit with a queue, expiry of idle ones.

A place in the pool is taken before a connection is opened and given back when it is gone. Whoever cannot have
one waits in line and is handed either an idle connection or a free place, in the order of arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nemo_agents.gateway.ports import UpstreamError
from nemo_agents.gateway.upstream.addresses import refused_address
from nemo_agents.gateway.upstream.connection import Connection
from nemo_agents.gateway.upstream.deadlines import Deadlines

__all__ = ["Address", "Pool", "PoolSettings"]

# Of the time for which a provider says it keeps an idle connection, the last second is not relied upon.
KEEP_ALIVE_MARGIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Limits towards one provider; all of them bound what a hostile answer can make us hold."""

    pool_timeout_s: float = 10.0  # how long a request waits in line for a connection
    idle_expiry_s: float = 20.0  # an idle connection is closed after this, or earlier if the provider says so
    head_limit_bytes: int = 64 << 10
    body_limit_bytes: int = 64 << 20
    buffer_limit_bytes: int = 256 << 10  # unread body per answer, beyond which the network is not read


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a provider listens. With `tls` its certificate must match `host`."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class Pool:
    """The connections to one address. It belongs to the event loop that first uses it."""

    def __init__(self, provider: str, address: Address, *, max_connections: int, settings: PoolSettings) -> None:
        self.provider = provider
        self.deadlines = Deadlines()
        self.head_limit_bytes = settings.head_limit_bytes
        self.body_limit_bytes = settings.body_limit_bytes
        self.buffer_limit_bytes = settings.buffer_limit_bytes
        self._address = address
        self._settings = settings
        self._max_connections = max_connections
        self._taken = 0  # places: connections being opened, idle, busy, or promised to someone in the queue
        self._idle: deque[Connection] = deque()  # the most recently used at the right
        self._queue: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connections(self) -> int:
        """How many places are taken."""
        return self._taken

    @property
    def idle(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        return len(self._queue)

    async def acquire(self, connect_timeout_s: float) -> Connection:
        """Return a connection on which a request may be written now. Raises UpstreamError, `sent` False."""
        self._check_loop()
        while True:
            connection = await self._next()
            if connection is None:
                return await self._connect(connect_timeout_s)
            if connection.usable():
                return connection
            # It died idle, before anything was written, so a new one may take its place without risk. Where
            # it has already given its place back, on its way from one request to the next, this one asks
            # again.
            if not connection.gone:
                connection.has_place = False
                connection.drop()
                return await self._connect(connect_timeout_s)

    def release(self, connection: Connection) -> None:
        """Take back a connection whose exchange is over."""
        if self._closed:
            connection.drop()
            return
        if self._serve(connection):
            return
        expiry_s = self._settings.idle_expiry_s
        if connection.keep_alive_s is not None:
            expiry_s = min(expiry_s, connection.keep_alive_s - KEEP_ALIVE_MARGIN_S)
        if expiry_s <= 0:
            connection.drop()
            return
        loop = asyncio.get_running_loop()
        connection.idle_until = loop.time() + expiry_s
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(expiry_s, self._sweep, loop)

    def forget(self, connection: Connection) -> None:
        """Free the place of a connection that is gone."""
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        self._free_place()

    def close(self) -> None:
        """Close idle connections and refuse new requests; answers under way may be read to their end."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_exception(self._error("the gateway is closing its connections"))
        for connection in list(self._idle):
            connection.drop()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(f"the connections to {self.provider} belong to another event loop; make a new one")

    async def _next(self) -> Connection | None:
        """Return an idle connection, or None together with the right to open one."""
        if self._closed:
            raise self._error("the gateway has closed its connections")
        if self._idle:
            return self._idle.pop()
        if self._taken < self._max_connections:
            self._taken += 1
            return None
        future: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        try:
            return await self.deadlines.wait(future, self._settings.pool_timeout_s)
        except TimeoutError:
            self._leave_queue(future)
            raise self._error(
                f"all {self._max_connections} connections are busy, "
                f"none came free within {self._settings.pool_timeout_s:g} s",
                timed_out=True,
            ) from None
        except asyncio.CancelledError:
            self._leave_queue(future)
            if not future.cancelled() and future.exception() is None:
                self._give_back(future.result())  # it was served in the very moment in which it was cancelled
            raise

    def _leave_queue(self, future: asyncio.Future[Connection | None]) -> None:
        with contextlib.suppress(ValueError):
            self._queue.remove(future)

    def _give_back(self, got: Connection | None) -> None:
        if got is None:
            self._free_place()
        elif not got.gone:
            self.release(got)

    def _free_place(self) -> None:
        """Pass a free place on to the first in line, or note that there is one more."""
        if self._closed or not self._serve(None):
            self._taken -= 1

    def _serve(self, what: Connection | None) -> bool:
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(what)
                return True
        return False

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [each for each in self._idle if each.idle_until <= now]:
            connection.drop()
        self._sweeper = None
        if self._idle:
            earliest = min(each.idle_until for each in self._idle)
            self._sweeper = loop.call_later(max(earliest - now, 0.05), self._sweep, loop)

    async def _connect(self, timeout_s: float) -> Connection:
        """Open a connection in the place that this request holds; every way to fail gives the place back."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._first_that_answers(await self._resolve())
        except UpstreamError:
            self._free_place()
            raise
        except TimeoutError as error:
            self._free_place()
            raise self._error(f"no connection within {timeout_s:g} s", timed_out=True) from error
        except ssl.SSLError as error:
            self._free_place()
            reason = getattr(error, "verify_message", None) or error.reason or type(error).__name__
            raise self._error(f"no TLS connection: {reason}") from error
        except OSError as error:
            self._free_place()
            raise self._error(f"no connection: {error.strerror or error}") from error
        except BaseException:
            self._free_place()
            raise
        connection.has_place = True
        if not connection.usable():
            if connection.gone:
                self._free_place()  # it was gone before it could be given the place
            connection.drop()
            raise self._error("the provider closed the connection at once")
        return connection

    async def _resolve(self) -> list[str]:
        """Return the IP addresses of the host, in the system's order. Raises UpstreamError for one that is refused.

        The connection is then made to these very addresses: a name cannot change between the look and the use.
        """
        host, port = self._address.host, self._address.port
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        for address in addresses:
            why = refused_address(address)
            if why is not None:
                raise self._error(f"no connection: {host} is {address}, {why}. Mend the provider's base_url.")
        return addresses

    async def _first_that_answers(self, addresses: Sequence[str]) -> Connection:
        """Open a connection to the first address that takes one. Raises OSError, that of the first of them."""
        loop, tls = asyncio.get_running_loop(), self._address.tls
        failure: OSError | None = None
        for address in addresses:
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self),
                    address,
                    self._address.port,
                    ssl=tls,
                    server_hostname=self._address.host if tls is not None else None,
                )
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = failure or error
            else:
                return connection
        raise failure or OSError(f"{self._address.host} has no address")

    def _error(self, what: str, *, timed_out: bool = False) -> UpstreamError:
        where = f"{self._address.host}:{self._address.port}"
        return UpstreamError(f"{self.provider} ({where}): {what}", sent=False, timed_out=timed_out)
