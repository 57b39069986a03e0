"""Memory and Redis decide alike, to the microsecond and to the word."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limiter_bench import SECOND, T0, YEARS_S, fresh_name, redis_limiter, scopes_of, settled

from nemo_agents.gateway.limiter.base import Repeat
from nemo_agents.gateway.limiter.memory import MemoryLimiter
from nemo_agents.policy.budgets import LoopRule
from nemo_agents.policy.rates import WINDOW_US

_gaps = st.one_of(st.integers(0, 70_000), st.integers(0, 20 * SECOND), st.integers(WINDOW_US - 2, WINDOW_US + 2))
_limits = st.fixed_dictionaries(
    {
        "rpm": st.sampled_from([None, 0, 1, 3, 2000]),
        "tpm": st.sampled_from([None, 10, 60, 5000]),
        "max_parallel": st.sampled_from([None, 0, 1, 3]),
        "shadow": st.sets(st.sampled_from(["rpm", "tpm", "max_parallel"])).map(frozenset),
    }
)
_rules = st.builds(
    LoopRule,
    repeats=st.integers(2, 4),
    within_s=st.sampled_from([1, 30]),
    mode=st.sampled_from(["enforce", "shadow"]),
)
_repeats = st.one_of(st.none(), st.tuples(st.sampled_from(["run-1", "run-2"]), st.sampled_from([b"a" * 16, b"b" * 16])))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), _gaps, _repeats),
        st.tuples(st.just("enter"), _gaps, st.integers(0, 70)),
        st.tuples(st.just("leave"), st.integers(0, 10), st.one_of(st.none(), st.integers(0, 90))),
        st.tuples(st.just("limits"), _limits, st.one_of(st.none(), _limits)),
    ),
    max_size=30,
)


@pytest.fixture
async def pair(redis_url):
    redis = redis_limiter(redis_url, time_of="caller", lease_s=YEARS_S)
    await redis.start()
    yield MemoryLimiter(), redis, [T0]  # one clock for all examples: it never steps back
    await redis.close()


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=_limits, of_fleet=st.one_of(st.none(), _limits), rule=_rules, steps=_steps)
async def test_memory_and_redis_decide_alike(pair, first, of_fleet, rule, steps):
    memory, redis, clock = pair
    name, now, leases = fresh_name(), clock[0], []
    scopes = scopes_of(name, fleet=of_fleet, **first)
    for what, one, other in steps:
        if what == "limits":
            scopes = scopes_of(name, fleet=other, **one)
        elif what == "admit":
            now += one
            repeat = None if other is None else Repeat(run=f"{name}/{other[0]}", digest=other[1], rule=rule)
            assert await memory.admit(now, scopes, repeat) == await redis.admit(now, scopes, repeat)
        elif what == "enter":
            now += one
            here, there = await memory.enter(now, scopes, other), await redis.enter(now, scopes, other)
            assert (here.refusal, here.shadowed) == (there.refusal, there.shadowed)
            assert [reading for reading in here.readings if reading.what == "tokens"] == list(there.readings)
            assert (here.lease is None) == (there.lease is None)
            if here.lease is not None:
                leases.append((here.lease, there.lease))
        elif leases:
            here, there = leases.pop(one % len(leases))
            memory.leave(here, other)
            redis.leave(there, other)
            await settled(redis)
        clock[0] = now
        assert list(await memory.used(now, scopes)) == list(await redis.used(now, scopes))
