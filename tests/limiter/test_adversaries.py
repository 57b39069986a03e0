"""Ten ways to arrive that catch one rate limiter or another: none gets more than the limit into any window."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from limiter_bench import (
    SECOND,
    T0,
    fresh_name,
    now_us,
    redis_limiter,
    scopes_of,
    settled,
    surely_worst_window,
    worst_window,
)

from nemo_agents.gateway.limiter.memory import MemoryLimiter
from nemo_agents.policy.rates import WINDOW_US

LIMIT = 12
SCALES = [1, 200]  # exact entries; and above a thousand, where charges share them


def burst_at_the_edge() -> Iterator[int]:
    for start in (WINDOW_US - 1, WINDOW_US, 2 * WINDOW_US - 1, 2 * WINDOW_US, 3 * WINDOW_US + 1):
        yield from [start] * (LIMIT + 3)


def double_burst() -> Iterator[int]:
    for start in (0, WINDOW_US // 2, WINDOW_US, WINDOW_US + WINDOW_US // 2, 2 * WINDOW_US):
        yield from [start] * (LIMIT + 3)


def drip() -> Iterator[int]:
    step = WINDOW_US // LIMIT
    for n in range(4 * LIMIT):
        yield n * step + (n % 5 - 2)  # now and then a microsecond too early


def sawtooth() -> Iterator[int]:
    at = 0
    for _ in range(4):
        for n in range(LIMIT + 2):
            at += WINDOW_US // (2 + n * n)
            yield at


def at_random() -> Iterator[int]:
    dice, at = random.Random(20_261_124), 0
    for _ in range(120):
        at += dice.choice([0, 1, 30_000, 60_000, WINDOW_US // LIMIT, WINDOW_US - 1])
        yield at


PATTERNS = [burst_at_the_edge, double_burst, drip, sawtooth, at_random]


@pytest.mark.parametrize("scale", SCALES, ids=["exact", "shared"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
async def test_no_window_holds_more_than_the_limit_and_waiting_as_told_succeeds(turns, pattern, scale):
    """Requests for the exact limit; tokens of `scale` each, by which the larger limit is as full."""
    requests, tokens = scopes_of(fresh_name(), rpm=LIMIT), scopes_of(fresh_name(), tpm=LIMIT * scale)

    async def ask(at_us):
        if scale == 1:
            return (await turns.limiter.admit(at_us, requests, None)).refusal
        return (await turns.limiter.enter(at_us, tokens, scale)).refusal

    admitted, late, refused = [], 0, 0
    for at in pattern():
        now = max(T0 + at, late)
        refusal = await ask(now)
        if refusal is not None:
            refused += 1
            if refused % 4:
                continue  # most come again by the pattern alone
            now = late = now + refusal.retry_after_ms * 1000
            assert await ask(now) is None, "who waits exactly as told succeeds"
        admitted.append((now, 1))
    assert refused, "the pattern is adversarial"
    assert worst_window(admitted, WINDOW_US) == LIMIT


async def test_weights(turns):
    scopes, dice = scopes_of(fresh_name(), tpm=100, fleet={"tpm": 150}), random.Random(7)
    admitted, now = [], T0
    for _ in range(150):
        now += dice.choice([0, SECOND // 2, 5 * SECOND])
        weight = dice.choice([1, 7, 33, 50, 100])
        refusal = (await turns.limiter.enter(now, scopes, weight)).refusal
        if refusal is not None:
            now += refusal.retry_after_ms * 1000
            assert (await turns.limiter.enter(now, scopes, weight)).refusal is None
        admitted.append((now, weight))
    assert 90 < worst_window(admitted, WINDOW_US) <= 100


async def test_parallel_clients(turns):
    scopes = scopes_of(fresh_name(), rpm=LIMIT, max_parallel=5)
    for round_ in range(3):
        now = T0 + round_ * WINDOW_US
        limiters = [turns.limiter for _ in range(40)]
        answers = await asyncio.gather(*(limiter.admit(now, scopes, None) for limiter in limiters))
        assert sum(answer.refusal is None for answer in answers) == LIMIT
        entries = await asyncio.gather(*(limiter.enter(now, scopes, 1) for limiter in limiters))
        assert sum(entry.lease is not None for entry in entries) == 5
        for limiter, entry in zip(limiters, entries, strict=True):
            if entry.lease is not None:
                limiter.leave(entry.lease, 1)
        await settled(*limiters)


async def test_cancel_and_settle_churn(turns):
    """Whatever is given back and corrected in between: what was used within any window is within the limit."""
    scopes, dice = scopes_of(fresh_name(), tpm=100, max_parallel=50), random.Random(11)
    admitted: list[list[int]] = []
    out: list[tuple[object, object, list[int]]] = []
    now = T0
    for _ in range(300):
        now += dice.choice([0, 1, SECOND // 3, 9 * SECOND])
        limiter = turns.limiter
        entry = await limiter.enter(now, scopes, 30)
        if entry.lease is not None:
            charge = [now, 30]
            admitted.append(charge)
            out.append((limiter, entry.lease, charge))
            assert worst_window([(at, weight) for at, weight in admitted], WINDOW_US) <= 100
        if out and dice.random() < 0.6:
            limiter, lease, charge = out.pop(dice.randrange(len(out)))
            used = dice.choice([0, 5, 30])
            limiter.leave(lease, used)
            await settled(limiter)
            charge[1] = used
    used = (await turns.limiter.used(now, scopes))[0][1]
    assert used == sum(weight for at, weight in admitted if now - WINDOW_US < at)
    assert len(admitted) > 60


async def test_limits_that_change(turns):
    name, dice = fresh_name(), random.Random(13)
    admitted, now, refused = [], T0, 0
    for _ in range(200):
        now += dice.choice([0, SECOND, 4 * SECOND])
        limit = dice.choice([1, 5, LIMIT, 2 * LIMIT])
        scopes = scopes_of(name, rpm=limit)
        refusal = (await turns.limiter.admit(now, scopes, None)).refusal
        recent = sum(now - WINDOW_US < at for at, _ in admitted)
        assert (refusal is None) == (recent + 1 <= limit)
        if refusal is None:
            admitted.append((now, 1))
        else:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("backend", ["memory", "redis"])
async def test_clocks_that_differ(backend, request):
    """In Redis the replicas' own clocks do not matter; in memory a clock that jumps about gives nothing away."""
    window_us, limit = 300_000, 5
    scopes = scopes_of(fresh_name(), rpm=limit)
    if backend == "memory":
        limiter, dice, latest, admitted = MemoryLimiter(window_us=window_us), random.Random(3), 0, []
        for n in range(300):
            now = T0 + n * 10_000 + dice.choice([0, -200_000])
            latest = max(latest, now)
            if (await limiter.admit(now, scopes, None)).refusal is None:
                admitted.append((latest, 1))
        assert worst_window(admitted, window_us) == limit
        return
    url = request.getfixturevalue("redis_url")
    replicas = [redis_limiter(url, window_us=window_us) for _ in range(3)]
    for replica in replicas:
        await replica.start()
    admitted, until_us = [], now_us() + 4 * window_us

    async def client(replica, skew_us):
        while (asked := now_us()) < until_us:
            answer = await replica.admit(asked + skew_us, scopes, None)
            if answer.refusal is None:
                admitted.append((asked, now_us()))
            else:
                assert 0 < answer.refusal.retry_after_ms <= window_us // 1000

    skews = (0, 3_600 * SECOND, -3_600 * SECOND)
    await asyncio.gather(*(client(replica, skew) for replica, skew in zip(replicas, skews, strict=True)))
    assert surely_worst_window(admitted, window_us) <= limit
    assert len(admitted) >= 3 * limit, "and the limit is used in every window"
    for replica in replicas:
        await replica.close()


async def test_in_the_servers_own_time_who_waits_as_told_succeeds(redis_url):
    limiter = redis_limiter(redis_url, window_us=200_000)
    await limiter.start()
    scopes = scopes_of(fresh_name(), rpm=3)
    for _ in range(3):
        waits = 0
        while (refusal := (await limiter.admit(0, scopes, None)).refusal) is None:
            pass
        await asyncio.sleep(refusal.retry_after_ms / 1000)
        waits += 1
        assert (await limiter.admit(0, scopes, None)).refusal is None
    await limiter.close()
