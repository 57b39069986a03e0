"""A gateway with more to do than it can: its own event loop is late, and the server is not to blame for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvloop
from limiter_bench import fresh_name, redis_limiter, scopes_of

from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.limiter.link import SILENCE_S
from nemo_agents.gateway.limiter.patience import LOOKS, Patience


@contextmanager
def busy(turn_s: float) -> Iterator[list[float]]:
    """Let every turn of the event loop take so long; yields a list of when they ended."""
    loop = asyncio.get_running_loop()
    ends: list[float] = []
    over = False

    def work() -> None:
        until = time.monotonic() + turn_s
        while time.monotonic() < until:
            pass
        ends.append(time.monotonic())
        if not over:
            loop.call_soon(work)

    loop.call_soon(work)
    try:
        yield ends
    finally:
        over = True


def test_a_late_loop_is_not_a_silent_server(redis_url):
    """On the loop that a gateway runs on, which looks at its timers before it looks at its sockets."""

    async def ask() -> None:
        limiter = redis_limiter(redis_url)
        await limiter.start()
        with busy(1.1 * SILENCE_S) as turns:
            assert (await limiter.admit(0, scopes_of(fresh_name(), rpm=100), None)).refusal is None
        assert len(turns) >= 2, "the answer was read later than a clock would have waited"
        assert limiter._link.up
        await limiter.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())


async def test_a_late_loop_connects_again(redis_server, redis_url):
    """To connect takes a dozen exchanges, and on a busy loop several times as long as a server may be silent."""
    limiter = redis_limiter(redis_url)
    await limiter.start()
    redis_server.restart()
    scopes = scopes_of(fresh_name(), rpm=100)
    with pytest.raises(LimiterUnavailable):
        await limiter.admit(0, scopes, None)
    limiter._tasks[0].cancel()  # the keeper would connect before the loop is busy
    with busy(0.15) as turns:
        begun = time.monotonic()
        await limiter._link.connect()
        assert time.monotonic() - begun > SILENCE_S, turns
    assert limiter._link.up
    await limiter.close()


async def test_a_stopped_server_is_noticed_on_a_busy_loop(redis_server, redis_url):
    limiter = redis_limiter(redis_url)
    await limiter.start()
    redis_server.stop()
    with busy(0.05):
        begun = time.monotonic()
        with pytest.raises(LimiterUnavailable, match="does not answer in time"):
            await limiter.admit(0, scopes_of(fresh_name(), rpm=1), None)
        assert time.monotonic() - begun < 2 * SILENCE_S
    redis_server.cont()
    await limiter.close()


async def test_patience_begins_anew_with_every_word():
    """A server that says something again and again may take as long as it wants."""
    patience = Patience(0.05)
    begun = time.monotonic()
    async with patience.lasting():
        while time.monotonic() < begun + 0.2:
            await asyncio.sleep(0)
            patience.heard()
    with pytest.raises(TimeoutError):
        async with patience.lasting():
            await asyncio.Event().wait()
    assert time.monotonic() - begun >= 0.2 + 0.05 * (LOOKS - 1) / LOOKS


async def test_patience_takes_no_cancellation_for_silence():
    async def wait() -> None:
        async with Patience(0.05).lasting():
            await asyncio.Event().wait()

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
