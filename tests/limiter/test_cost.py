"""What a decision costs the server: a full window is looked through in a few reads, not in one for each entry."""

from __future__ import annotations

import redis
from limiter_bench import T0, YEARS_S, fresh_name, redis_limiter, scopes_of

from nemo_agents.policy.limits import OWN_ENTRY_LIMIT_MAX


def reads(url: str) -> int:
    """How many times the server was asked for fields of hashes, by scripts too."""
    with redis.Redis.from_url(url) as client:
        told = client.info("commandstats")
    return sum(told.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hget", "hmget"))


async def test_a_refusal_by_a_full_window_takes_few_reads(redis_url: str):
    """The wait of the largest request depends on the latest of a thousand entries."""
    limiter = redis_limiter(redis_url, time_of="caller", lease_s=YEARS_S)
    await limiter.start()
    scopes = scopes_of(fresh_name(), tpm=OWN_ENTRY_LIMIT_MAX)
    for number in range(OWN_ENTRY_LIMIT_MAX):
        assert (await limiter.enter(T0 + number, scopes, 1)).lease is not None
    before = reads(redis_url)
    refused = await limiter.enter(T0 + OWN_ENTRY_LIMIT_MAX, scopes, OWN_ENTRY_LIMIT_MAX)
    assert refused.refusal.limit == "tpm"
    assert reads(redis_url) - before <= 20
    before = reads(redis_url)
    assert await limiter.used(T0 + 61_000_000, scopes) == [(0, 0)]
    assert reads(redis_url) - before <= 20, "nor does a window that has ended take more"
    await limiter.close()
