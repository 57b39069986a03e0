"""Every cache of answers: in memory, and in Redis, where a server that is away is a miss and never a wait."""

from __future__ import annotations

import asyncio
import socket

import pytest

from nemo_agents.gateway.cache import CachedAnswer, MemoryCache
from nemo_agents.gateway.cache.base import OVERHEAD_BYTES
from nemo_agents.gateway.cache.redis import RedisCache
from nemo_agents.secret import Secret

ANSWER = CachedAnswer(content_type="application/json", body=b'{"a": 1}', model_served="gpt-4o", cost_nanos=5)
ROOM = 100_000


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def key(n):
    return n.to_bytes(32, "big")


def big(size, mark=b"x"):
    return CachedAnswer(content_type="text/event-stream", body=mark * size)


# --- both ---------------------------------------------------------------------------------------------------------
@pytest.fixture(params=["memory", "redis"])
async def cache(request):
    if request.param == "memory":
        made = MemoryCache(ROOM)
    else:
        made = RedisCache(Secret(request.getfixturevalue("redis_url")), ROOM, timeout_s=10)
    yield made
    await made.close()


async def settled(cache):
    if isinstance(cache, RedisCache):
        await cache.settled()


async def test_what_was_put_is_got_and_nothing_else(cache):
    assert await cache.get(key(1)) is None
    cache.put(key(1), ANSWER, 60)
    cache.put(key(2), big(10), 60)
    await settled(cache)
    assert await cache.get(key(1)) == ANSWER
    assert (await cache.get(key(2))).stream
    assert await cache.get(key(3)) is None


async def test_a_second_answer_takes_the_place_of_the_first(cache):
    cache.put(key(1), ANSWER, 60)
    await settled(cache)
    cache.put(key(1), big(20), 60)
    await settled(cache)
    assert (await cache.get(key(1))).body == b"x" * 20


async def test_all_answers_together_stay_below_the_limit(cache):
    each = ROOM // 4
    for n in range(8):
        cache.put(key(n), big(each - OVERHEAD_BYTES - 200), 60 + n)
        await settled(cache)
    found = [n for n in range(8) if await cache.get(key(n)) is not None]
    assert found == [4, 5, 6, 7]


async def test_an_answer_larger_than_the_whole_cache_is_not_kept_and_pushes_nothing_out(cache):
    cache.put(key(1), ANSWER, 60)
    await settled(cache)
    cache.put(key(2), big(ROOM), 60)
    await settled(cache)
    assert await cache.get(key(2)) is None
    assert await cache.get(key(1)) == ANSWER


# --- memory -------------------------------------------------------------------------------------------------------
async def test_an_answer_is_gone_when_its_time_is_over():
    clock = Clock()
    cache = MemoryCache(ROOM, clock_s=clock)
    cache.put(key(1), ANSWER, 10)
    clock.now_s = 9.9
    assert await cache.get(key(1)) == ANSWER
    clock.now_s = 10.0
    assert await cache.get(key(1)) is None
    assert cache.kept == (0, 0)


async def test_what_was_not_used_for_longest_goes_first():
    cache = MemoryCache(3 * (1000 + OVERHEAD_BYTES))
    for n in range(3):
        cache.put(key(n), big(1000), 60)
    assert await cache.get(key(0)) is not None
    cache.put(key(3), big(1000), 60)
    assert [n for n in range(4) if await cache.get(key(n)) is not None] == [0, 2, 3]
    assert cache.kept == (3, 3 * (1000 + OVERHEAD_BYTES))


async def test_a_cache_of_no_bytes_keeps_nothing():
    cache = MemoryCache(0)
    cache.put(key(1), ANSWER, 60)
    assert await cache.get(key(1)) is None


# --- redis --------------------------------------------------------------------------------------------------------
async def test_two_gateways_share_their_answers_and_the_limit(redis_url):
    one, other = (RedisCache(Secret(redis_url), ROOM, timeout_s=10) for _ in range(2))
    one.put(key(1), ANSWER, 60)
    await one.settled()
    assert await other.get(key(1)) == ANSWER
    other.put(key(2), big(ROOM - OVERHEAD_BYTES - 100), 90)
    await other.settled()
    assert await one.get(key(1)) is None
    assert await one.get(key(2)) is not None
    await one.close()
    await other.close()


async def test_the_server_forgets_answers_in_time_and_counts_them_out(redis_url):
    import redis.asyncio

    cache = RedisCache(Secret(redis_url), ROOM, timeout_s=10)
    client = redis.asyncio.Redis.from_url(redis_url)
    cache.put(key(1), ANSWER, 600)
    await cache.settled()
    (name,) = [name for name in await client.keys("*") if name.endswith(key(1).hex().encode())]
    assert 590_000 < await client.pttl(name) <= 600_000
    first = int(await client.hget("{nemo:answers}:sizes", ""))
    assert first > OVERHEAD_BYTES
    await client.zadd("{nemo:answers}:index", {name: 1})  # as if its time were over
    cache.put(key(2), big(0), 600)
    await cache.settled()
    assert await cache.get(key(1)) is None
    assert 0 < int(await client.hget("{nemo:answers}:sizes", "")) < first
    assert await client.hlen("{nemo:answers}:sizes") == 2
    await client.aclose()
    await cache.close()


async def test_a_server_that_lost_everything_is_filled_anew(redis_url):
    import redis.asyncio

    cache = RedisCache(Secret(redis_url), ROOM, timeout_s=10)
    cache.put(key(1), ANSWER, 600)
    await cache.settled()
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.delete("{nemo:answers}:index")
    cache.put(key(2), big(ROOM - OVERHEAD_BYTES - 100), 600)
    await cache.settled()
    assert await cache.get(key(2)) is not None, "a sum of answers that nobody can name any more counts for nothing"
    await client.flushdb()
    assert await cache.get(key(2)) is None
    cache.put(key(3), ANSWER, 600)
    await cache.settled()
    assert await cache.get(key(3)) == ANSWER
    await client.aclose()
    await cache.close()


async def test_what_another_version_wrote_is_a_miss(redis_url):
    import redis.asyncio

    cache = RedisCache(Secret(redis_url), ROOM, timeout_s=10)
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.set("{nemo:answers}:" + key(1).hex(), b"\xc1 nonsense")
    assert await cache.get(key(1)) is None
    await client.aclose()
    await cache.close()


async def test_a_server_that_is_away_is_a_miss_and_is_left_alone_for_a_while():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    clock = Clock()
    cache = RedisCache(Secret(f"redis://127.0.0.1:{port}/0"), ROOM, clock_s=clock, timeout_s=10)
    assert await cache.get(key(1)) is None
    accepted = []
    server = await asyncio.start_server(lambda _, writer: (accepted.append(1), writer.close()), "127.0.0.1", port)
    async with server:
        assert await cache.get(key(1)) is None
        cache.put(key(1), ANSWER, 60)
        await cache.settled()
        assert not accepted, "it was left alone"
        clock.now_s = 60.0
        assert await cache.get(key(1)) is None
        assert accepted, "and is asked again later"
    await cache.close()


async def test_a_server_that_is_silent_costs_its_time_out_and_no_more():
    async def silent(reader, _):
        await reader.read()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"redis://:a-password@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    cache = RedisCache(Secret(url), ROOM, timeout_s=0.05)
    async with asyncio.timeout(20):
        assert await cache.get(key(1)) is None
        cache.put(key(1), ANSWER, 60)
        await cache.settled()
    await cache.close()
    server.close()
    assert "a-password" not in repr(cache)
