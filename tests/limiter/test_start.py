"""A cache that cannot be used is said at start, in one line, without its password."""

from __future__ import annotations

import asyncio
import contextlib
import traceback

import pytest
from limiter_bench import Log, fresh_name, scopes_of
from services import free_port, run_redis

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.addresses import with_password
from nemo_agents.gateway.limiter.redis import RedisLimiter
from nemo_agents.secret import Secret

PASSWORD = "the-password-of-the-cache"


async def refused(url: str, password: str | None = PASSWORD) -> str:
    """What the start says, which must be one line and hold no password, nor may the traceback."""
    limiter = RedisLimiter(with_password(url, Secret(password) if password else None), recent_use=Log().recent_use)
    with pytest.raises(SettingsError) as caught:
        await limiter.start()
    await limiter.close()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("cache")
    assert PASSWORD not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    return text


async def test_nobody_there():
    port = free_port()
    assert f"redis://127.0.0.1:{port}" in await refused(f"redis://127.0.0.1:{port}/0")


async def test_a_name_that_does_not_exist():
    assert "cannot be reached" in await refused("redis://no-such-host.invalid:6379/0")


async def test_a_password_is_needed_or_another_one():
    with run_redis("--requirepass", "right") as server:
        assert "NEMO_CACHE_PASSWORD" in await refused(server.url, None)
        assert "NEMO_CACHE_PASSWORD" in await refused(server.url)
        limiter = RedisLimiter(with_password(server.url, Secret("right")), recent_use=Log().recent_use, grace_s=0)
        await limiter.start()
        assert (await limiter.admit(0, scopes_of(fresh_name(), rpm=1), None)).refusal is None
        await limiter.close()


async def test_a_password_that_nobody_asked_for(redis_url):
    assert "NEMO_CACHE_PASSWORD" in await refused(redis_url)


@pytest.mark.parametrize(
    "says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None], ids=["http", "hangs up", "is silent"]
)
async def test_something_else_than_redis(says):
    async def serve(reader, writer):
        await reader.read(1)
        if says is None:
            with contextlib.suppress(ConnectionError):
                await reader.read()
        else:
            writer.write(says)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        text = await refused(f"redis://127.0.0.1:{port}/0", None)
        over_tls = await refused(f"rediss://127.0.0.1:{port}/0", None)
    assert "neither Redis nor Valkey" in text or "cannot be reached" in text
    assert "TLS" not in text
    assert "asks for TLS (rediss://)" in over_tls


async def test_an_address_that_is_none():
    with pytest.raises(SettingsError, match="redis://host:6379/0"):
        RedisLimiter(with_password("redis://h/0?db=x", Secret(PASSWORD)), recent_use=Log().recent_use)


async def test_a_server_that_only_reads(redis_url):
    port = redis_url.rpartition(":")[2].partition("/")[0]
    with run_redis("--replicaof", f"127.0.0.1 {port}") as replica:
        assert "read only replica" in await refused(replica.url, None)


async def test_the_valkey_scheme(redis_url):
    limiter = RedisLimiter(Secret(redis_url.replace("redis:", "valkey:")), recent_use=Log().recent_use, grace_s=0)
    await limiter.start()
    assert (await limiter.admit(0, scopes_of(fresh_name(), rpm=1), None)).refusal is None
    await limiter.close()
