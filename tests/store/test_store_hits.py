"""Calls that a cache answered: logged like any other, counted in their run, and no money anywhere."""

from __future__ import annotations

import pytest
from store_values import T0, a_call, an_attempt, attempt_end, call_end, role_scope, run_scope

from nemo_agents.gateway.stores.base import LogFilter
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Held, RunCaps, RunRefused

RUN = "run-one"


def hit(call, **more):
    return call_end(
        call, "ok", provider="cache", model_served="gpt-4o", input_tokens=0, output_tokens=0, cost_nanos=0, **more
    )


async def a_hit(store, **more):
    call = a_call(run_id=RUN, **more)
    return call, await store.log_hit(call, hit(call))


async def sent(store, cost=10, **more):
    call, attempt = a_call(run_id=RUN, **more), an_attempt(100, run_scope(), role_scope())
    answer = await store.open_call(call, attempt)
    if isinstance(answer, Held):
        store.close_call(call_end(call, "ok", input_tokens=3, output_tokens=4), attempt_end(attempt, "post", cost))
    return answer


async def test_a_hit_is_a_call_that_ended_well_and_cost_nothing(store):
    call, refused = await a_hit(store)
    assert refused is None
    row = await store.call(call.request_id)
    assert (row.state, row.status, row.provider, row.model_served) == ("ok", 200, "cache", "gpt-4o")
    assert (row.cost_nanos, row.attempts, row.attempt_rows, row.held_nanos) == (0, 0, [], 0)
    run = (await store.run(RUN, fleet="crew")).run
    assert (run.calls, run.errors, run.cost_nanos, run.state) == (1, 0, 0, "ok")


async def test_a_hit_beside_calls_that_were_sent_adds_nothing_to_their_sums(store):
    await sent(store)
    await a_hit(store, step="write")
    detail = await store.run(RUN, fleet="crew")
    assert (detail.run.calls, detail.run.cost_nanos, detail.run.input_tokens) == (2, 10, 3)
    assert [(step.step, step.calls) for step in detail.steps] == [("write", 1)]


async def test_a_hit_that_is_a_run_of_its_own_is_one(store):
    call = a_call()
    assert await store.log_hit(call, hit(call)) is None
    run = (await store.run(call.request_id, fleet="crew")).run
    assert (run.calls, run.state, run.grouped) == (1, "ok", False)


async def test_hits_use_up_the_calls_of_a_run(store):
    caps = RunCaps(max_calls=2)
    assert (await a_hit(store, caps=caps))[1] is None
    assert isinstance(await sent(store), Held)
    assert (await a_hit(store))[1] == RunRefused(why="max_calls", max_calls=2)
    assert await sent(store) == RunRefused(why="max_calls", max_calls=2)
    assert len((await store.calls(LogFilter(), before=None, limit=9)).calls) == 2, "what was refused left nothing"


async def test_a_cap_of_no_calls_leaves_no_run(store):
    assert (await a_hit(store, caps=RunCaps(max_calls=0)))[1] == RunRefused(why="max_calls", max_calls=0)
    assert await store.run(RUN, fleet="crew") is None


async def test_a_stopped_run_gets_no_answer_from_a_cache_either(store):
    await a_hit(store)
    assert await store.stop_run("crew", RUN, T0)
    assert (await a_hit(store))[1] == RunRefused(why="stopped", max_calls=None)


async def test_a_hit_counts_as_a_request_of_the_minute_and_as_no_tokens(store):
    await sent(store)
    await a_hit(store)
    uses = await store.recent_use(T0 - 60_000_000)
    assert sorted(use.tokens for use in uses) == [0, 7]


async def test_what_a_hit_said_is_in_the_log(store):
    call = a_call(run_id=RUN, prompt=(b'{"role":"user","content":"hi"}',), params=b"{}")
    await store.log_hit(call, hit(call, answer=b'{"content":"ho"}'))
    content = (await store.contents([call.request_id]))[call.request_id]
    assert content.answer == {"content": "ho"}


async def test_open_holds_are_counted_until_they_are_resolved(store):
    assert await store.open_holds() == (0, 0)
    call, attempt = a_call(), an_attempt(70, role_scope())
    await store.open_call(call, attempt)
    await store.open_call(a_call(), an_attempt(30, role_scope()))
    assert await store.open_holds() == (2, 100)
    store.close_call(call_end(call), attempt_end(attempt, "post", 5))
    assert await store.open_holds() == (1, 30)


async def test_the_backlog_is_what_waits_to_be_written(store):
    await store.flush()
    assert store.backlog == 0
    call = a_call()
    store.log_refusal(call, call_end(call, "refused", status=429, code="rate_limit_exceeded"))
    assert store.backlog == 1
    await store.flush()
    assert store.backlog == 0


@pytest.mark.parametrize("ttl_s", [None, 600])
async def test_how_long_answers_are_given_again_is_kept_with_the_key(store, ttl_s):
    await store.put_grant(Grant(grant_id="g1", cache_ttl_s=ttl_s))
    (kept,) = await store.grants()
    assert kept.cache_ttl_s == ttl_s
