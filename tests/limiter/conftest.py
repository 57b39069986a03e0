"""Every limiter, in simulated time: in memory, in Redis, and as three replicas on one Redis that take turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import cycle

import pytest
from limiter_bench import YEARS_S, redis_limiter

from nemo_agents.gateway.limiter.base import Limiter
from nemo_agents.gateway.limiter.memory import MemoryLimiter

BACKENDS = ["memory", "redis", "three replicas"]


class Turns:
    """Hands out the replicas one after the other."""

    def __init__(self, limiters: list[Limiter]) -> None:
        self.all = limiters
        self._next = cycle(limiters)

    @property
    def limiter(self) -> Limiter:
        return next(self._next)


@pytest.fixture(params=BACKENDS)
async def turns(request: pytest.FixtureRequest) -> AsyncIterator[Turns]:
    """Replicas of one backend, whose time is that of the caller."""
    if request.param == "memory":
        yield Turns([MemoryLimiter()])
        return
    url = request.getfixturevalue("redis_url")
    count = 3 if request.param == "three replicas" else 1
    limiters = [redis_limiter(url, time_of="caller", lease_s=YEARS_S) for _ in range(count)]
    for limiter in limiters:
        await limiter.start()
    yield Turns(limiters)
    for limiter in limiters:
        await limiter.close()
