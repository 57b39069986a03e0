"""Answers in a Redis or Valkey server, where every gateway of the same cache finds them.

It has connections of its own, so that an answer of a megabyte is no wait for the rates. The rates live in the same
server, whose memory must not fill up: a script keeps all answers together below a number of bytes, and drops those
first whose time is over soonest. A server that fails is left alone for a moment; until then, nothing is found and
nothing kept.

What the server holds are the answers themselves, in clear.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.cache.base import OVERHEAD_BYTES, CachedAnswer
from nemo_agents.gateway.outages import Outage
from nemo_agents.secret import Secret

__all__ = ["RedisCache"]

_TIMEOUT_S: Final = 0.5
_LEAVE_ALONE_S: Final = 2.0
_CONNECTIONS_MAX: Final = 32
_PUTS_MAX: Final = 64
"""Answers on their way to the server at a time; beyond that, nothing is kept."""
# One tag: everything that the script touches is on one node of a cluster.
_PREFIX: Final = b"{nemo:answers}:"
_INDEX: Final = _PREFIX + b"index"  # keys by the millisecond in which their time is over
_SIZES: Final = _PREFIX + b"sizes"  # bytes by key, and their sum under ""
_DROPS_MAX: Final = 1000

# KEYS: the answer, the index, the sizes. ARGV: the answer, its bytes with what comes with them, TTL in milliseconds,
# bytes at most, answers dropped at most. The sum is of what the index names, so what has expired is counted out first.
_PUT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local total = tonumber(redis.call('HGET', KEYS[3], '') or '0')
local function drop(key)
  total = total - tonumber(redis.call('HGET', KEYS[3], key) or '0')
  redis.call('HDEL', KEYS[3], key)
  redis.call('ZREM', KEYS[2], key)
  redis.call('UNLINK', key)
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[5])) do drop(key) end
drop(KEYS[1])
local size, room, drops = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5])
while total + size > room and drops > 0 do
  local next_one = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not next_one then total = 0 break end
  drop(next_one)
  drops = drops - 1
end
local kept = 0
if total + size <= room then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
  redis.call('ZADD', KEYS[2], now + ARGV[3], KEYS[1])
  redis.call('HSET', KEYS[3], KEYS[1], size)
  total = total + size
  kept = 1
end
redis.call('HSET', KEYS[3], '', total)
return kept
"""

_log = structlog.get_logger("nemo_agents.gateway")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CachedAnswer).decode
_FAULTS: Final = (RedisError, OSError, TimeoutError, msgspec.MsgspecError)


class RedisCache:
    """At most `max_bytes` of answers of all gateways together. `url` keeps its password to itself.

    Raises SettingsError when the address cannot be one. `clock_s` never goes back.
    """

    def __init__(
        self,
        url: Secret,
        max_bytes: int,
        *,
        timeout_s: float = _TIMEOUT_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        address = url.reveal()
        for name, known_as in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
            if address.startswith(name):
                address = known_as + address.removeprefix(name)
        try:
            pool = BlockingConnectionPool.from_url(
                address,
                max_connections=_CONNECTIONS_MAX,
                timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # a second try is a second wait
            )
        except ValueError:
            raise SettingsError(
                f"cache {url} is not an address of a Redis or Valkey server; write redis://host:6379/0"
            ) from None
        self._client = Redis.from_pool(pool)
        self._put = self._client.register_script(_PUT)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._clock_s = clock_s
        self._away_until_s = 0.0
        self._outage = Outage(_log, "answers cannot be cached now; calls go to their providers")
        self._putting: set[asyncio.Task[None]] = set()

    async def get(self, key: bytes) -> CachedAnswer | None:
        """Return the answer that is kept under a key; None when there is none, or the server is too late to say so."""
        if self._clock_s() < self._away_until_s:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                found: bytes | None = await self._client.get(_name(key))  # type: ignore[assignment]  # never decoded here
            answer = None if found is None else _decode(found)
        except _FAULTS as error:
            self._failed(error)
            return None
        self._outage.over()
        return answer

    def put(self, key: bytes, answer: CachedAnswer, ttl_s: int) -> None:
        """Keep an answer for some seconds, if the server takes it; nobody waits for that."""
        too_many = len(self._putting) >= _PUTS_MAX
        if ttl_s <= 0 or too_many or answer.size_bytes > self._max_bytes or self._clock_s() < self._away_until_s:
            return
        putting = asyncio.get_running_loop().create_task(self._keep(key, answer, ttl_s))
        self._putting.add(putting)
        putting.add_done_callback(self._putting.discard)

    @property
    def kept(self) -> None:
        """None: the server counts them."""
        return

    async def settled(self) -> None:
        """Return when everything that was put has been kept, or could not be."""
        await asyncio.gather(*self._putting, return_exceptions=True)

    async def close(self) -> None:
        """Let go of connections; what is on its way has the server's time-out to arrive."""
        await self.settled()
        try:
            await self._client.aclose()
        except _FAULTS as error:
            _log.debug("the cache of answers did not close cleanly", error=type(error).__name__)

    async def _keep(self, key: bytes, answer: CachedAnswer, ttl_s: int) -> None:
        packed = _encode(answer)
        size = len(packed) + OVERHEAD_BYTES
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._put(
                    keys=[_name(key), _INDEX, _SIZES], args=[packed, size, ttl_s * 1000, self._max_bytes, _DROPS_MAX]
                )
        except _FAULTS as error:
            self._failed(error)
            return
        self._outage.over()

    def _failed(self, error: Exception) -> None:
        self._away_until_s = self._clock_s() + _LEAVE_ALONE_S
        self._outage.met(error if str(error) else TimeoutError("it does not answer in time"))


def _name(key: bytes) -> bytes:
    return _PREFIX + key.hex().encode()
