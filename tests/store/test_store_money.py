"""Holds and their resolution: never past a limit, exactly once, and always on record."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from msgspec.structs import asdict, replace
from store_values import (
    T0,
    Clock,
    a_call,
    an_attempt,
    attempt_end,
    call_end,
    fleet_scope,
    refusal,
    role_scope,
    rows,
    run_scope,
    write,
)

from nemo_agents.gateway.stores.base import LogFilter
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import BudgetScope, Held, HoldRefused, RunCaps, RunRefused
from nemo_agents.policy.usage import Usage

DOLLAR = 1_000_000_000


async def amounts(store: SqlStore, scope: BudgetScope) -> tuple[int, int]:
    (balance,) = await store.balances([scope])
    return balance.posted_nanos, balance.held_nanos


async def test_a_hold_counts_against_every_scope_and_posts_what_it_cost(store):
    call, attempt = a_call(), an_attempt(100, role_scope(1000), fleet_scope(150))
    held = await store.open_call(call, attempt)
    assert isinstance(held, Held)
    assert [(b.scope.kind, b.posted_nanos, b.held_nanos) for b in held.balances] == [
        ("role", 0, 100),
        ("fleet", 0, 100),
    ]
    store.close_call(call_end(call), attempt_end(attempt, amount=40))
    assert await amounts(store, role_scope()) == (40, 0)
    assert await amounts(store, fleet_scope()) == (40, 0)
    row = await store.call(call.request_id)
    assert (row.cost_nanos, row.held_nanos, row.state, row.attempts) == (40, 100, "ok", 1)


async def test_a_refused_hold_takes_from_no_scope_and_names_the_first_that_cannot(store):
    call, attempt = a_call(), an_attempt(100, role_scope(1000), fleet_scope(99))
    refused = await store.open_call(call, attempt)
    assert isinstance(refused, HoldRefused)
    assert (refused.balance.scope.kind, refused.needed_nanos, len(refused.balances)) == ("fleet", 100, 2)
    assert await amounts(store, role_scope()) == (0, 0)
    assert await store.call(call.request_id) is None
    assert (await store.runs(LogFilter(), before=None, limit=10)).runs == []


async def test_a_hold_may_reach_the_limit_and_not_pass_it(store):
    assert isinstance(await store.open_call(a_call(), an_attempt(100, role_scope(100))), Held)
    assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope(100))), HoldRefused)
    assert isinstance(await store.open_call(a_call(), an_attempt(0, role_scope(100))), Held)


async def test_posting_more_than_held_is_recorded_in_full_and_blocks_the_next(store):
    call, attempt = a_call(), an_attempt(10, role_scope(100))
    await store.open_call(call, attempt)
    store.close_call(call_end(call), attempt_end(attempt, amount=500))
    assert await amounts(store, role_scope()) == (500, 0)
    assert isinstance(await store.open_call(a_call(), an_attempt(0, role_scope(100))), HoldRefused)


async def test_a_hold_resolves_once_however_often_it_is_said(store):
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    for kind, amount in (("post", 40), ("post", 90), ("void", 0), ("expire", 100)):
        store.close_call(call_end(call), attempt_end(attempt, kind, amount))
    assert await amounts(store, role_scope()) == (40, 0)
    assert (await store.call(call.request_id)).cost_nanos == 40


@pytest.mark.parametrize(("kind", "amount", "posted"), [("void", 0, 0), ("void", 70, 0), ("expire", 0, 100)])
async def test_a_void_costs_nothing_and_an_expiry_costs_the_hold(store, kind, amount, posted):
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    store.close_call(call_end(call, "failed"), attempt_end(attempt, kind, amount))
    assert await amounts(store, role_scope()) == (posted, 0)


async def test_the_truth_about_an_expired_hold_is_a_correction(store, clock):
    """A stream that outlives its hold is charged at the hold, then at what it really cost.

    The call comes back.
    """
    call, attempt = a_call(run_id="run-one"), an_attempt(100, run_scope(), role_scope())
    await store.open_call(call, attempt)
    assert await store.sweep(attempt.expires_us - 1) == 0
    clock.now_us = attempt.expires_us
    assert await store.sweep(clock.now_us) == 1
    assert await amounts(store, role_scope()) == (100, 0)
    row = await store.call(call.request_id)
    assert (row.state, row.cost_nanos, row.usage_source) == ("abandoned", 100, "hold")
    for _ in range(2):
        store.close_call(call_end(call), attempt_end(attempt, amount=30))
    assert await amounts(store, role_scope()) == (30, 0)
    detail = await store.run("run-one", fleet="crew")
    assert (detail.run.cost_nanos, detail.run.errors, detail.run.state) == (30, 0, "ok")
    assert (detail.calls[0].state, detail.calls[0].cost_nanos) == ("ok", 30)


async def test_a_hold_settles_in_its_own_period_whenever_it_ends(store):
    call, attempt = a_call(), an_attempt(100, role_scope(100, period="monday"))
    await store.open_call(call, attempt)
    assert isinstance(await store.open_call(a_call(), an_attempt(100, role_scope(100, period="tuesday"))), Held)
    store.close_call(call_end(call), attempt_end(attempt, amount=70))
    assert await amounts(store, role_scope(period="monday")) == (70, 0)
    assert await amounts(store, role_scope(period="tuesday")) == (0, 100)


async def test_a_fallback_resolves_the_first_hold_and_takes_its_own(store):
    call, first = a_call(), an_attempt(100, role_scope(150))
    await store.open_call(call, first)
    second = an_attempt(120, role_scope(150), n=2, model="claude", provider="anthropic")
    failed = attempt_end(first, "void", status=503, error="overloaded")
    assert isinstance(await store.next_attempt(call.request_id, failed, second), Held)
    assert await amounts(store, role_scope()) == (0, 120)
    store.close_call(call_end(call), attempt_end(second, amount=110))
    row = await store.call(call.request_id)
    assert (row.cost_nanos, row.attempts) == (110, 2)
    assert [(a.n, a.provider, a.reason, a.status, a.cost_nanos) for a in row.attempt_rows] == [
        (1, "openai", "first", 503, 0),
        (2, "anthropic", "fallback", 200, 110),
    ]


async def test_a_fallback_that_does_not_fit_still_resolves_the_attempt_before(store):
    call, first = a_call(run_id="run-one"), an_attempt(100, run_scope(), role_scope(150))
    await store.open_call(call, first)
    refused = await store.next_attempt(
        call.request_id,
        attempt_end(first, "expire", status=None, error="time-out"),
        an_attempt(60, run_scope(), role_scope(150), n=2),
    )
    assert isinstance(refused, HoldRefused)
    assert await amounts(store, role_scope()) == (100, 0)
    store.close_call(call_end(call, "failed", code="upstream_timeout", status=504), None)
    row = await store.call(call.request_id)
    assert (row.state, row.code, row.cost_nanos) == ("failed", "upstream_timeout", 100)
    assert (await store.run("run-one", fleet=None)).run.cost_nanos == 100


async def test_the_caps_of_a_run_stick_and_are_only_lowered(store):
    caps = RunCaps(budget_nanos=100)
    await store.open_call(a_call(run_id="run-one", caps=caps), an_attempt(60, run_scope(100)))
    # A later call that forgets the cap, or asks for more, is held to it all the same.
    for scope, later in ((run_scope(None), RunCaps()), (run_scope(900), RunCaps(budget_nanos=900))):
        refused = await store.open_call(a_call(run_id="run-one", caps=later), an_attempt(60, scope))
        assert isinstance(refused, HoldRefused)
        assert refused.balance.scope.limit_nanos == 100
    lower = RunCaps(budget_nanos=70)
    assert isinstance(await store.open_call(a_call(run_id="run-one", caps=lower), an_attempt(10, run_scope())), Held)
    assert isinstance(await store.open_call(a_call(run_id="run-one"), an_attempt(1, run_scope(100))), HoldRefused)
    assert (await store.run("run-one", fleet="crew")).run.budget_nanos == 70


async def test_max_calls_counts_only_calls_that_got_a_hold(store):
    caps = RunCaps(max_calls=2)
    refused = a_call(run_id="run-one", caps=caps)
    store.log_refusal(refused, refusal(refused))
    for _ in range(2):
        assert isinstance(await store.open_call(a_call(run_id="run-one", caps=caps), an_attempt()), Held)
    answer = await store.open_call(a_call(run_id="run-one"), an_attempt())
    assert answer == RunRefused(why="max_calls", max_calls=2)
    assert isinstance(await store.open_call(a_call(run_id="run-two", caps=caps), an_attempt()), Held)


async def test_a_stopped_run_takes_no_call(store):
    assert not await store.stop_run("crew", "run-one", T0)
    await store.open_call(a_call(run_id="run-one"), an_attempt())
    assert await store.stop_run("crew", "run-one", T0 + 5)
    answer = await store.open_call(a_call(run_id="run-one"), an_attempt())
    assert isinstance(answer, RunRefused)
    assert answer.why == "stopped"
    other_fleet = a_call(run_id="run-one", fleet="other")
    assert isinstance(await store.open_call(other_fleet, an_attempt()), Held)


@pytest.mark.parametrize(
    "attempt",
    [an_attempt(-1, role_scope()), an_attempt(10**19, role_scope()), an_attempt(1, role_scope(), role_scope())],
)
async def test_a_hold_that_cannot_be_meant_never_reaches_the_ledger(store, attempt):
    with pytest.raises(ValueError, match="a hold"):
        await store.open_call(a_call(), attempt)
    assert (await store.calls(LogFilter(), before=None, limit=5)).calls == []


async def test_entries_cannot_be_rewritten(store):
    await store.open_call(a_call(), an_attempt(100, role_scope()))
    for sql in ("UPDATE entries SET amount_nanos = 1", "DELETE FROM entries"):
        with pytest.raises(ValueError, match="append-only"):
            await write(store, sql)
    assert await rows(store, "SELECT amount_nanos FROM entries") == [(100,)]


async def test_two_hundred_callers_on_one_dollar(store):
    """Whatever the order: never past the dollar, and every refusal was right when it was given."""
    dice = random.Random(7)
    scope, peak = role_scope(DOLLAR), 0
    running = 0

    async def one(size: int, cost: int) -> int:
        nonlocal peak, running
        call, attempt = a_call(), an_attempt(size, scope, fleet_scope(None))
        answer = await store.open_call(call, attempt)
        if isinstance(answer, HoldRefused):
            b = answer.balance
            assert b.posted_nanos + b.held_nanos + size > DOLLAR
            assert answer.needed_nanos == size
            return 0
        b = answer.balances[0]
        peak = max(peak, b.posted_nanos + b.held_nanos)
        store.close_call(call_end(call), attempt_end(attempt, amount=cost))
        return cost

    sizes = [dice.randint(1, DOLLAR // 20) for _ in range(200)]
    costs = await asyncio.gather(*(one(size, dice.randint(0, size)) for size in sizes))
    assert peak <= DOLLAR
    assert await amounts(store, role_scope()) == (sum(costs), 0)
    assert 0 < sum(costs) <= DOLLAR
    assert any(cost == 0 for cost in costs)


async def test_a_caller_that_leaves_while_it_waits_holds_nothing(store):
    call, attempt = a_call(), an_attempt(100, role_scope())
    task = asyncio.create_task(store.open_call(call, attempt))
    await asyncio.sleep(0)  # the operation is queued
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.flush()
    assert await amounts(store, role_scope()) == (0, 0)


async def test_a_refusal_logged_for_a_committed_hold_takes_it_back(store):
    """The caller was cancelled after the commit and logs that it refused.

    Nothing was sent, nothing is charged.
    """
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    store.log_refusal(call, refusal(call, code="invalid_request", status=499))
    assert await amounts(store, role_scope()) == (0, 0)
    assert (await store.call(call.request_id)).state == "refused"


async def test_a_restart_closes_what_was_open_at_its_hold(tmp_path, clock: Clock):
    """Of a file, which nobody else writes. Where gateways share a database, open holds expire in their time."""
    store = SqliteStore(tmp_path / "nemo.db", clock=clock)
    await store.start()
    call, attempt = a_call(run_id="run-one"), an_attempt(100, run_scope(), role_scope())
    await store.open_call(call, attempt)
    await store.close()
    reopened = SqliteStore(store.path, clock=clock)
    await reopened.start()
    assert await amounts(reopened, role_scope()) == (100, 0)
    row = await reopened.call(call.request_id)
    assert (row.state, row.cost_nanos) == ("abandoned", 100)
    assert await reopened.verify_ledger() == []
    await reopened.close()


async def test_verify_tells_what_does_not_add_up(any_store, clock):
    store = any_store
    call, attempt = a_call(run_id="run-one", step="plan"), an_attempt(100, run_scope(), role_scope())
    await store.open_call(call, attempt)
    store.close_call(call_end(call), attempt_end(attempt, amount=40))
    open_call, open_attempt = a_call(run_id="run-one"), an_attempt(7, role_scope())
    await store.open_call(open_call, open_attempt)
    clock.now_us = open_attempt.expires_us + 10_000_000 - 1  # those who sweep have a moment to come by
    assert await store.verify_ledger() == []
    clock.now_us += 1
    assert await store.verify_ledger() == [
        f"Hold {open_attempt.hold_id} of request {open_call.request_id} ($0.000000007) is open past its time."
    ]
    clock.now_us = T0
    for sql, told in (
        ("UPDATE balances SET posted_nanos = posted_nanos + 1 WHERE kind = 'role'", "posted, its entries"),
        ("UPDATE balances SET held_nanos = held_nanos + 1 WHERE kind = 'role'", "held, its entries"),
        ("UPDATE calls SET cost_nanos = 41 WHERE seq = 1", "its entries add up to"),
        ("UPDATE runs SET calls = 9", "says calls 9, its calls add up to 2"),
        ("UPDATE steps SET input_tokens = 9", "step plan says input_tokens 9"),
        ("UPDATE attempts SET settled = 'void' WHERE seq = 1", "does not say what its entries say"),
    ):
        await write(store, sql)
        said = await store.verify_ledger()
        assert any(told in sentence for sentence in said), (sql, said)


async def test_recent_use_is_what_admission_counted(store):
    """Requests are counted once grouping, model and tools are right, and stay so whatever refuses them then."""
    for begun, at, state in ((T0 - 5, T0 - 5, "ok"), (T0 - 60_000_000, T0 + 1, "ok"), (T0 - 5, T0 + 2, "open")):
        call, attempt = a_call(started_us=begun), an_attempt(started_us=at)  # admitted after its upload
        await store.open_call(call, attempt)
        if state == "ok":
            store.close_call(call_end(call), attempt_end(attempt))
    for at, code, status, more in (
        (T0 - 4, "budget_exhausted", 402, {}),
        (T0 + 3, "budget_exhausted", 402, {}),
        (T0 + 4, "rate_limit_exceeded", 429, {"limit": "rpm"}),
        (T0 + 5, "rate_limit_exceeded", 429, {"limit": "tpm"}),
        (T0 + 6, "rate_limit_exceeded", 429, {"limit": "max_parallel"}),
        (T0 + 7, "model_not_allowed", 403, {"limit": "models"}),
        (T0 + 8, "tool_not_allowed", 403, {"limit": "tools"}),
        (T0 + 9, "guardrail_blocked", 400, {"limit": None, "scope": None}),
        (T0 + 10, "run_stopped", 403, {"limit": "stopped", "scope": "run"}),
        (T0 + 10, "store_unavailable", 503, {"limit": None, "scope": None}),  # no fault of the caller's
    ):
        call = a_call(started_us=at)
        store.log_refusal(call, refusal(call, code, status, **more))
    for at, code, status in ((T0 + 11, "invalid_request", 400), (T0 + 12, "key_expired", 403)):
        call = a_call(started_us=at, model_asked=None)  # refused before its model was looked at
        store.log_refusal(call, refusal(call, code, status, limit=None, scope=None))
    broken = a_call(started_us=T0 + 13)
    store.log_refusal(broken, call_end(broken, "failed", status=500, code="internal_error"))
    stranger = a_call(started_us=T0 + 14, grant_id=None)
    store.log_refusal(stranger, refusal(stranger))
    used = await store.recent_use(T0)
    assert {(u.grant_id, u.fleet) for u in used} == {("g1", "crew")}
    assert [(u.at_us - T0, u.tokens) for u in used] == [
        (1, 7),
        (2, 0),
        (3, 0),
        (5, 0),
        (6, 0),
        (9, 0),
        (10, 0),
        (13, 0),
    ]


async def test_an_entry_keeps_every_count_of_its_usage(store):
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    usage = asdict(
        Usage(input_tokens=30, output_tokens=4, cached_tokens=10, cache_write_tokens=5, reasoning_tokens=2),
    )
    store.close_call(call_end(call), attempt_end(attempt, amount=9, usage=usage))
    ((kept,),) = await rows(store, "SELECT usage FROM entries WHERE slot=1")
    assert json.loads(kept) == usage


async def test_calls_without_a_fleet_are_runs_of_one(store):
    call, attempt = replace(a_call(), fleet=None, role=None), an_attempt(5, role_scope())
    held = await store.open_call(call, attempt)
    assert held.seq == 1
    store.close_call(call_end(call), attempt_end(attempt, amount=5))
    (run,) = (await store.runs(LogFilter(), before=None, limit=5)).runs
    assert (run.run_id, run.fleet, run.grouped, run.state, run.cost_nanos) == (
        call.request_id,
        None,
        False,
        "ok",
        5,
    )


async def test_several_budgets_of_one_scope_all_bind_and_shadows_only_record(store):
    day, week = role_scope(1000), role_scope(150, period="week")
    shadow = BudgetScope(kind="role", id="g1", period="month", limit_nanos=10, mode="shadow")
    call, attempt = a_call(), an_attempt(100, day, week, shadow)
    held = await store.open_call(call, attempt)
    assert [b.held_nanos for b in held.balances] == [100, 100, 100]
    refused = await store.open_call(a_call(), an_attempt(100, day, week, shadow))
    assert isinstance(refused, HoldRefused)
    assert (refused.balance.scope.period, [b.held_nanos for b in refused.balances]) == ("week", [100, 100, 100])
    store.close_call(call_end(call), attempt_end(attempt, amount=40))
    assert await amounts(store, shadow) == (40, 0)
    assert isinstance(await store.open_call(a_call(), an_attempt(100, day, week, shadow)), Held)


async def test_a_hold_has_up_to_sixteen_scopes_that_differ(store):
    many = [role_scope(period=f"p{number}") for number in range(17)]
    assert len((await store.open_call(a_call(), an_attempt(1, *many[:16]))).balances) == 16
    for wrong in (many, [many[0], many[0]]):
        with pytest.raises(ValueError, match="different scopes"):
            await store.open_call(a_call(), an_attempt(1, *wrong))


async def test_texts_with_nul_and_other_odd_characters_are_kept(store):
    odd = "a\0b \u20ac %s ? :name {} \U0001f600 \\u0000"
    for number in range(5):  # one alone, and many at once
        call, attempt = a_call(run_name=odd, role=odd), an_attempt()
        await store.open_call(call, attempt)
        store.close_call(call_end(call, "failed", error=odd, finish_reason=odd), attempt_end(attempt, error=odd))
        kept = [(await store.call(call.request_id)).error for _ in range(1)]
        assert kept[0].replace("\ufffd", "\0") == odd, number
    many = [a_call(role=odd) for _ in range(9)]
    for call in many:
        store.log_refusal(call, refusal(call, error=odd))
    page = await store.calls(LogFilter(state="refused"), before=None, limit=99)
    assert {call.role.replace("\ufffd", "\0") for call in page.calls} == {odd}
    assert len(page.calls) == 9
