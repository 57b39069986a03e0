"""A word over the cache that something was changed, so that other gateways look at once and not at their next turn.

Nobody relies on it: a word that is lost, and a cache that is down, cost a fraction of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from nemo_agents.secret import Secret

__all__ = ["Wake"]

_CHANNEL = "nemo-agents:changes"
_AGAIN_S = 1.0
_TIMEOUT_S = 1.0
_log = structlog.get_logger("nemo_agents.gateway")


class Wake:
    """Says a word after each change, and calls `woken` for every word heard, its own among them."""

    def __init__(self, url: Secret, woken: Callable[[], None]) -> None:
        address = url.reveal()
        for name, known_as in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
            if address.startswith(name):
                address = known_as + address.removeprefix(name)
        self._client = Redis.from_url(address, socket_connect_timeout=_TIMEOUT_S)
        self._woken = woken
        self._saying: set[asyncio.Task[None]] = set()

    def say(self) -> None:
        """Tell the others, without waiting for it."""
        saying = asyncio.create_task(self._say())
        self._saying.add(saying)
        saying.add_done_callback(self._saying.discard)

    async def listen(self) -> None:
        """Listen until cancelled; where there is nothing to listen to, try again later."""
        try:
            while True:
                try:
                    await self._listen()
                except (RedisError, OSError, TimeoutError) as error:
                    _log.debug("no word of changes can be heard", error=type(error).__name__)
                await asyncio.sleep(_AGAIN_S)
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                await self._client.aclose()

    async def _listen(self) -> None:
        async with self._client.pubsub(ignore_subscribe_messages=True) as words:
            await words.subscribe(_CHANNEL)
            async for _ in words.listen():
                self._woken()

    async def _say(self) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                await self._client.publish(_CHANNEL, b"")
