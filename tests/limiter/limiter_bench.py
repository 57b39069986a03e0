"""What the tests of limiters share: short minutes, a log like the store's, and the check of every window."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nemo_agents.gateway.limiter.memory import MemoryLimiter
from nemo_agents.gateway.limiter.redis import RedisLimiter
from nemo_agents.policy.limits import RateScope
from nemo_agents.secret import Secret

SECOND = 1_000_000
T0 = 1_800_000_000 * SECOND
YEARS_S = 100_000_000  # places are renewed by the server's own clock, which is behind the simulated one
_names = itertools.count()


@dataclass(frozen=True)
class Use:
    """A row of the store's log."""

    grant_id: str
    fleet: str | None
    at_us: int
    tokens: int
    model: str | None = None


@dataclass
class Log:
    """The store's log of recent use, kept by a test; it counts how often it is read."""

    uses: list[Use] = field(default_factory=list)
    reads: int = 0

    async def recent_use(self, since_us: int) -> list[Use]:
        self.reads += 1
        return [use for use in self.uses if use.at_us >= since_us]


def fresh_name() -> str:
    """A name that no other test of this process uses."""
    return f"n{next(_names)}"


def scopes_of(name: str, *, fleet: dict | None = None, model: dict | None = None, **role) -> list[RateScope]:
    """The scopes of a role of a fleet of its own, of the fleet and of one model where limits are given."""
    scopes = [RateScope(kind="role", id=f"g-{name}", fleet=name, name="researcher", **role)]
    if fleet is not None:
        scopes.append(RateScope(kind="fleet", id=name, fleet=name, name=name, **fleet))
    if model is not None:
        scopes.append(RateScope(kind="model", id=f"g-{name}/gpt-4o", fleet=name, name="researcher, gpt-4o", **model))
    return scopes


def now_us() -> int:
    return time.time_ns() // 1000


def redis_limiter(url: str, log: Log | None = None, **options) -> RedisLimiter:
    """A limiter of one replica, quick to notice and to rebuild."""
    options = {"beat_s": 0.05, "grace_s": 0.15, **options}
    return RedisLimiter(Secret(url), recent_use=(log or Log()).recent_use, **options)


async def until(condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Let everybody else go on until something is true."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


async def settled(*limiters: MemoryLimiter | RedisLimiter) -> None:
    """Return when everything that left so far has been told to the server."""
    for limiter in limiters:
        if isinstance(limiter, RedisLimiter):
            await until(lambda of=limiter: not of._leaving and not of._telling)


def worst_window(admitted: Iterable[tuple[int, int]], window_us: int) -> int:
    """The largest weight in any half-open window: try every one that ends at an admission."""
    admitted = list(admitted)
    return max(
        (sum(weight for at, weight in admitted if end - window_us < at <= end) for end, _ in admitted), default=0
    )


def surely_worst_window(admitted: Iterable[tuple[int, int]], window_us: int) -> int:
    """The most admissions that were certainly within one window, each known by when it was asked and answered.

    The server decided somewhere in between: those asked after one moment and answered within a window of it were all
    in that window.
    """
    admitted = list(admitted)
    return max(
        (sum(start <= asked and answered < start + window_us for asked, answered in admitted) for start, _ in admitted),
        default=0,
    )
