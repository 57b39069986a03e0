"""One connection to Redis or Valkey for all callers: what they ask for while a batch is under way is the next batch.

A script is one command and one answer. A server that is silent for a second (see `patience`) breaks the connection,
and so does one that says that it cannot serve now, as a primary does that a failover made a replica: everybody who
waits is told so, and from then on everybody at once, until somebody has connected again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.limiter.lua import SCRIPTS
from nemo_agents.gateway.limiter.patience import Patience
from nemo_agents.secret import Secret

__all__ = ["Link", "NotSent", "NotUsable"]

SILENCE_S: Final = 1.0
_BATCH_MAX: Final = 512
_WAITING_MAX: Final = 10_000
_EVAL: Final = {
    name: b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % hashlib.sha1(text.encode()).hexdigest().encode()  # noqa: S324 - its name
    for name, text in SCRIPTS.items()
}
_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss"}
# Answers of a server that cannot serve now, while another one behind the same address may: a primary that became a
# replica says READONLY on the old connection for ever. Older servers wrap what a script met in a sentence of their own.
_NOT_NOW: Final = re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN|LOADING|BUSY|NOREPLICAS|CLUSTERDOWN)\b")
_log = structlog.get_logger("nemo_agents.gateway")
_encode = msgspec.msgpack.Encoder().encode


class NotUsable(Exception):  # noqa: N818 - a condition; at start it becomes a SettingsError
    """The server answered, and cannot be used as it is: the reason, without the password."""


class NotSent(LimiterUnavailable):
    """The server was not even asked: nothing can have been done there."""


@dataclass(slots=True, eq=False)
class _Asked:
    """One call: the command, who waits for it, and who is told if nobody waits any more."""

    command: bytes
    answer: asyncio.Future[bytes]
    orphan: Callable[[bytes], None] | None


class Link:
    """A connection that many callers share. `url` keeps its password to itself, and so does every error."""

    def __init__(self, url: Secret, *, on_server: Callable[[str], None]) -> None:
        self._on_server = on_server
        self._shown = str(url)
        self._connection = self._make(url)
        self._waiting: deque[_Asked] = deque()
        self._wake = asyncio.Event()
        self._up = False
        self._why = "it has not been reached yet"
        self._pump: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()  # while it is taken, nothing else is under way
        self._patience = Patience(SILENCE_S)

    @property
    def up(self) -> bool:
        """Whether calls are being sent."""
        return self._up

    def __str__(self) -> str:
        return self._shown

    async def connect(self) -> None:
        """Connect, unless connected: learn which server it is, and leave the scripts with it.

        Raises NotUsable and LimiterUnavailable.
        """
        async with self._connecting:
            if self._up:
                return
            connection = self._connection
            try:
                async with self._patience.lasting():
                    await connection.connect()  # type: ignore[no-untyped-call]  # the driver's is not annotated
                    self._patience.heard()
                    server = await self._introduce()
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                await self._hang_up()
                raise NotUsable(_about_access(str(error))) from None
            except ResponseError as error:
                await self._hang_up()
                if _is_not_now(error):
                    self._why = _in_words(error)
                    raise LimiterUnavailable(f"the rates at {self._shown} cannot be used: {self._why}") from None
                raise NotUsable(_about_answer(str(error))) from None
            except InvalidResponse:
                await self._hang_up()
                raise NotUsable("what answers there is neither Redis nor Valkey") from None
            except (RedisError, OSError, TimeoutError, ValueError) as error:
                await self._hang_up()
                self._why = _in_words(error)
                if isinstance(connection, SSLConnection) and _may_be_no_tls(error):
                    self._why += "; the address asks for TLS (rediss://), which the server may not speak"
                raise LimiterUnavailable(f"the rates at {self._shown} cannot be reached: {self._why}") from None
            self._on_server(server)
            self._up = True
            if self._pump is None:
                self._pump = asyncio.create_task(self._run(), name="rates")

    async def close(self) -> None:
        """Hang up; whoever waits is refused."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._break("the gateway stops")
        await self._hang_up()

    async def call(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[Any] | bytes,
        orphan: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """Run a script once, never twice, and return its MessagePack answer.

        `orphan` is given the answer when nobody waits for it any more. Raises NotSent, or LimiterUnavailable: then
        what the script would have done may have been done.
        """
        if not self._up or len(self._waiting) >= _WAITING_MAX:
            raise NotSent(f"the rates at {self._shown} cannot be reached: {self._why}")
        payload = arguments if isinstance(arguments, bytes) else _encode(arguments)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(_command(script, keys, payload), answer, orphan))
        self._wake.set()
        return await answer

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH_MAX))]
                try:
                    async with self._patience.lasting():
                        await self._exchange(batch)
                except asyncio.CancelledError:
                    for asked in batch:
                        self._fail(asked, "the gateway stops")
                    raise
                except Exception as error:  # noqa: BLE001 - whatever broke the connection, everybody must be told
                    why = _in_words(error)
                    for asked in batch:
                        self._fail(asked, why)
                    self._break(why)
                    await self._hang_up()

    async def _exchange(self, batch: Sequence[_Asked]) -> None:
        """Send a batch in one go, and hand out its answers.

        Raises what ends the connection: also an answer by which another server is to be looked for.
        """
        connection = self._connection
        if not connection.is_connected:
            raise ConnectionError("the connection is closed")
        await connection.send_packed_command(b"".join([asked.command for asked in batch]), check_health=False)
        again: list[_Asked] = []
        not_now = ""
        for asked in batch:
            try:
                self._answer(asked, await self._read())
            except NoScriptError:
                again.append(asked)  # somebody flushed the scripts: it was not run
            except ResponseError as error:
                why = str(error).partition(" script:")[0]
                self._fail(asked, why)
                not_now = why if _is_not_now(error) else not_now
        if not_now:
            raise ConnectionError(not_now)
        if again:
            await self._leave_scripts()
            await self._exchange(again)

    def _answer(self, asked: _Asked, answer: bytes) -> None:
        if not asked.answer.done():
            asked.answer.set_result(answer)
        elif asked.orphan is not None:
            asked.orphan(answer)

    def _fail(self, asked: _Asked, why: str, kind: type[LimiterUnavailable] = LimiterUnavailable) -> None:
        if not asked.answer.done():
            asked.answer.set_exception(kind(f"the rates at {self._shown} cannot be used: {why}"))

    def _break(self, why: str) -> None:
        """From now on nobody waits."""
        self._up, self._why = False, why
        for asked in self._waiting:
            self._fail(asked, why, NotSent)
        self._waiting.clear()

    async def _hang_up(self) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            await self._connection.disconnect(nowait=True)

    async def _introduce(self) -> str:
        """Return the name of the server's present life, having left the scripts with it."""
        facts: dict[str, str] = {}
        for section in ("server", "memory"):
            await self._connection.send_command("INFO", section)
            lines = (await self._read()).decode().splitlines()
            facts |= {name: value for name, _, value in (line.partition(":") for line in lines)}
        if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy") != "noeviction":
            _log.warning(
                "the server of the rates may drop them when its memory is full: set its maxmemory-policy to noeviction",
                server=self._shown,
                policy=facts.get("maxmemory_policy"),
            )
        await self._leave_scripts()
        return facts.get("run_id", "")

    async def _leave_scripts(self) -> None:
        connection = self._connection
        commands = [("SCRIPT", "LOAD", text) for text in SCRIPTS.values()]
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            await self._read()

    async def _read(self) -> bytes:
        answer: bytes = await self._connection.read_response(disable_decoding=True)
        self._patience.heard()
        return answer

    def _make(self, url: Secret) -> AbstractConnection:
        scheme, colon, rest = url.reveal().partition(":")
        try:
            options: dict[str, Any] = dict(parse_url(_SCHEMES.get(scheme, scheme) + colon + rest))
            make = options.pop("connection_class", Connection)
            # Time-outs are ours: the driver's would take a late event loop for a silent server.
            options |= {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None}
            connection: AbstractConnection = make(**options)
        except (ValueError, TypeError):
            raise SettingsError(
                f"cache {self._shown} is not an address of a Redis or Valkey server; write redis://host:6379/0"
            ) from None
        return connection


def _command(script: str, keys: Sequence[str], payload: bytes) -> bytes:
    """Write a call as the protocol has it: the driver's own way of doing so costs as much as all the rest."""
    parts = [b"*%d\r\n%b$%d\r\n%d\r\n" % (len(keys) + 4, _EVAL[script], len(str(len(keys))), len(keys))]
    for key in keys:
        text = key.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    parts.append(b"$%d\r\n%b\r\n" % (len(payload), payload))
    return b"".join(parts)


def _is_not_now(error: ResponseError) -> bool:
    return isinstance(error, (ReadOnlyError, ClusterDownError)) or _NOT_NOW.search(str(error)) is not None


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return str(error).strip() or type(error).__name__


_AS_WITHOUT_TLS: Final = ("closed", "reset", "EOF", "SSL", "Error connecting")
"""In the driver's texts; the last one stands alone, without a number, for a server that hung up."""


def _may_be_no_tls(error: BaseException) -> bool:
    """Say whether a connection may have failed as it does where a server takes a TLS greeting for a command."""
    told = str(error)
    silent = isinstance(error, TimeoutError) or any(word in told for word in _AS_WITHOUT_TLS)
    return silent and "certificate" not in told.lower()


def _about_access(answer: str) -> str:
    if "NOPERM" in answer or "permission" in answer:
        return f"its user lacks a permission ({answer}): it needs INFO, SCRIPT LOAD, EVALSHA and all of `nemo:*`"
    return "it needs a password, or another one: set NEMO_CACHE_PASSWORD"


def _about_answer(answer: str) -> str:
    if "NOAUTH" in answer or "WRONGPASS" in answer or "invalid password" in answer:
        return "it needs a password, or another one: set NEMO_CACHE_PASSWORD"
    return f"it refuses what the gateway needs ({answer})"
