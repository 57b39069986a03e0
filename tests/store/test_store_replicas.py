"""Many gateways on one PostgreSQL: whoever asks, the books are one."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import replace

import psycopg
import pytest
from store_values import (
    HOUR_US,
    T0,
    a_call,
    an_attempt,
    attempt_end,
    call_end,
    fleet_scope,
    refusal,
    role_scope,
    rows,
    run_scope,
)

from nemo_agents.admin.wire import EventRow, RunReport
from nemo_agents.gateway.stores.base import Change, FleetRecord, StoreUnavailable
from nemo_agents.gateway.stores.database import Touches
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.policy.keys import Grant, KeySecret
from nemo_agents.policy.ledger import BudgetScope, Held, HoldRefused, RunCaps, RunRefused
from nemo_agents.policy.routing import Deployment

LIMIT = 10_000
GUARD_S = 60

# Every version of a balance that is ever written, whether it is committed or not.
WITNESS = """
CREATE TABLE IF NOT EXISTS witness(scope_id text, total bigint);
TRUNCATE witness;
CREATE OR REPLACE FUNCTION bear_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO witness VALUES (new.scope_id, new.posted_nanos + new.held_nanos); RETURN new; END $$;
CREATE OR REPLACE TRIGGER witness AFTER INSERT OR UPDATE ON balances FOR EACH ROW EXECUTE FUNCTION bear_witness();
"""


@pytest.fixture
def witness(database):
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(WITNESS)
    yield lambda: psycopg.connect(database).execute("SELECT scope_id, max(total) FROM witness GROUP BY 1").fetchall()
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("DROP TABLE witness; DROP TRIGGER witness ON balances")


async def amounts(store: PostgresStore, scope: BudgetScope) -> tuple[int, int]:
    (balance,) = await store.balances([scope])
    return balance.posted_nanos, balance.held_nanos


@pytest.mark.parametrize("fleets", [["crew"], ["crew", "other", None]])
async def test_concurrent_holds_of_many_gateways_never_pass_a_budget(replicas, witness, fleets):
    """With one fleet, and with a key that is in several at once: its budget is one all the same."""
    dice = random.Random(3)
    outcomes = {"held": 0, "refused": 0}
    spent = 0

    async def caller(store: PostgresStore, fleet: str | None) -> None:
        nonlocal spent
        for _ in range(12):
            size = dice.randint(1, 400)
            call = a_call(fleet=fleet, run_id="run-one" if dice.random() < 0.3 else None, step="s")
            attempt = an_attempt(size, role_scope(LIMIT), fleet_scope(LIMIT * 2))
            answer = await store.open_call(call, attempt)
            if isinstance(answer, HoldRefused):
                outcomes["refused"] += 1
                assert answer.balance.left_nanos < size
                continue
            outcomes["held"] += 1
            for balance in answer.balances:
                assert balance.posted_nanos + balance.held_nanos <= balance.scope.limit_nanos
            cost = dice.randint(0, size)
            if dice.random() < 0.2:  # through whichever gateway hears of its end
                store = dice.choice(replicas)
            store.close_call(call_end(call), attempt_end(attempt, amount=cost))
            spent += cost

    async with asyncio.timeout(GUARD_S):
        await asyncio.gather(*(caller(replicas[n % 3], fleets[n % len(fleets)]) for n in range(24)))
        for store in replicas:
            await store.flush()
    assert await amounts(replicas[0], role_scope()) == (spent, 0)
    assert await amounts(replicas[1], fleet_scope()) == (spent, 0)
    assert outcomes["held"]
    assert outcomes["refused"]
    for scope_id, total in witness():
        assert total <= (LIMIT if scope_id == "g1" else 2 * LIMIT)


async def test_a_cap_on_calls_and_the_numbers_of_a_run_are_of_all_gateways(replicas):
    caps = RunCaps(max_calls=10, budget_nanos=950)
    calls = [(a_call(run_id="run-one", caps=caps), an_attempt(100, run_scope())) for _ in range(30)]
    answers = await asyncio.gather(*(replicas[n % 3].open_call(*pair) for n, pair in enumerate(calls)))
    held = [answer for answer in answers if isinstance(answer, Held)]
    assert sorted(answer.seq for answer in held) == list(range(1, 10))  # the ninth fills the budget
    assert all(isinstance(answer, HoldRefused) for answer in answers if not isinstance(answer, Held))
    small = [(a_call(run_id="run-one"), an_attempt(1, run_scope())) for _ in range(9)]
    answers = await asyncio.gather(*(replicas[n % 3].open_call(*pair) for n, pair in enumerate(small)))
    assert sorted(type(answer).__name__ for answer in answers) == ["Held"] + ["RunRefused"] * 8
    assert await rows(replicas[0], "SELECT run_id, admitted, calls, last_seq FROM runs") == [("run-one", 10, 10, 10)]


async def test_a_run_that_all_report_at_once_is_one_run(replicas):
    told = RunReport(name="r", started_us=T0)
    await asyncio.gather(*(store.report_run("crew", "run-one", told) for store in replicas * 4))
    await asyncio.gather(*(store.open_call(a_call(run_id="run-one"), an_attempt()) for store in replicas * 4))
    assert await rows(replicas[0], "SELECT count(*), sum(calls)::int FROM runs") == [(1, 12)]


async def test_a_run_that_one_stops_is_stopped_for_all(replicas):
    first, second, third = replicas
    for fleet in ("crew", "other"):
        assert isinstance(await first.open_call(a_call(run_id="run-one", fleet=fleet), an_attempt()), Held)
    position, _ = await third.changes(None)
    assert await second.stop_run(None, "run-one", T0 + 1)
    assert not await second.stop_run("crew", "run-two", T0 + 1)
    answer = await first.open_call(a_call(run_id="run-one"), an_attempt())
    assert isinstance(answer, RunRefused)
    _, changes = await third.changes(position)
    assert changes == [Change(kind="run", id="crew/run-one"), Change(kind="run", id="other/run-one")]


async def test_every_change_is_seen_once_and_in_order_by_who_polls(replicas):
    """Numbers rise as they are committed: who has seen one will find none below it later."""
    secret = KeySecret(public_id="abcdefghij", digest=b"\x00", created_us=T0)
    grant = Grant(grant_id="g0", fleet="crew", secrets=(secret,))
    seen: list[Change] = []
    done = asyncio.Event()

    async def poll() -> None:
        position, none = await replicas[2].changes(None)
        assert none == []
        ready.set()
        last = False
        while not last:
            last = done.is_set()
            position, changes = await replicas[2].changes(position)
            seen.extend(changes)

    ready = asyncio.Event()
    polling = asyncio.ensure_future(poll())
    await ready.wait()
    await asyncio.gather(
        *(replicas[n % 3].put_grant(replace(grant, grant_id=f"g{n}", secrets=())) for n in range(20)),
        *(replicas[n % 3].put_fleet(FleetRecord(fleet=f"f{n}")) for n in range(20)),
        *(replicas[n % 3].open_call(a_call(), an_attempt(1, role_scope(LIMIT))) for n in range(20)),
    )
    await replicas[0].put_deployment(Deployment(deployment_id="d", fleet=None, group="g", model="m"))
    await replicas[0].put_document("prices", b"{}")
    await replicas[1].delete_deployment("d")
    await replicas[1].delete_fleet("f1")
    await replicas[1].put_grant(replace(grant, revoked_us=T0 + 5))
    done.set()
    await polling
    assert sorted((c.kind, c.id) for c in seen[:-5]) == sorted(
        [("grant", f"g{n}") for n in range(20)] + [("fleet", f"f{n}") for n in range(20)]
    )
    tail = [("deployment", "d"), ("document", "prices"), ("deployment", "d"), ("fleet", "f1"), ("grant", "g0")]
    assert [(c.kind, c.id) for c in seen[-5:]] == tail
    revoked = {g.grant_id: g.revoked_us for g in await replicas[0].grants()}
    assert revoked["g0"] == T0 + 5
    assert (await replicas[0].changes(None))[0] == 45


async def test_holds_of_others_are_expired_once_and_only_past_their_time(replicas, clock, database):
    calls = []
    for number in range(30):
        call = a_call(fleet=["crew", "other", None][number % 3])
        attempt = an_attempt(100, role_scope(), expires_us=T0 + (10 if number < 20 else HOUR_US))
        await replicas[0].open_call(call, attempt)
        calls.append((call, attempt))
    late = PostgresStore(database, clock=clock)
    await late.start()
    assert await amounts(late, role_scope()) == (0, 3000)  # a start takes nothing from anybody
    clock.now_us = T0 + 10
    swept = await asyncio.gather(*(store.sweep(clock.now_us) for store in (*replicas[1:], late)))
    assert sum(swept) == 20
    assert await amounts(late, role_scope()) == (2000, 1000)
    replicas[0].close_call(call_end(calls[0][0]), attempt_end(calls[0][1], amount=30))  # it was slow, not gone
    await replicas[0].flush()
    assert await amounts(late, role_scope()) == (1930, 1000)
    await late.close()


async def test_silent_runs_are_lost_whoever_looks(replicas):
    await replicas[0].report_run("crew", "run-one", RunReport(name="r", started_us=T0))
    await asyncio.gather(*(store.sweep(T0 + 7 * HOUR_US) for store in replicas))
    assert (await replicas[1].run("run-one", fleet=None)).run.state == "lost"


async def test_events_are_told_once_and_delivered_by_one(replicas):
    def event(number: int) -> EventRow:
        return EventRow(event_id=f"evt_{number}", kind="budget.alert", at_us=T0, message="m")

    told = await asyncio.gather(
        *(replicas[n % 3].put_event(event(n), once=f"once {n // 3}", webhooks=["a", "b"]) for n in range(30))
    )
    assert sorted(seq for seq in told if seq is not None) == list(range(1, 11))
    claims = await asyncio.gather(
        *(replicas[n % 3].claim_deliveries(T0, lease_us=1000, limit=3) for n in range(12)),
    )
    got = [(delivery.event.seq, delivery.webhook) for some in claims for delivery in some]
    assert sorted(got) == [(seq, webhook) for seq in range(1, 11) for webhook in ("a", "b")]


async def test_one_gateway_at_a_time_makes_changes(replicas):
    inside: list[int] = []

    async def change(number: int) -> None:
        async with replicas[number % 3].exclusive():
            inside.append(number)
            await replicas[number % 3].put_document("d", str(number).encode())
            assert inside[-1] == number
            inside.append(number)

    async with asyncio.timeout(GUARD_S):
        async with replicas[0].exclusive():
            leaves = asyncio.ensure_future(change(1))
            others = [asyncio.ensure_future(change(number)) for number in range(9)]
            await replicas[0].put_document("d", b"first")
            leaves.cancel()
            assert inside == []
        await asyncio.gather(*others)
    assert inside[::2] == inside[1::2]
    assert len(inside) == 18


async def test_periods_count_by_one_clock(replicas):
    told = [await store.now_us() for store in replicas]
    assert told == sorted(told)
    assert told[0] > T0


async def test_a_gateway_that_stands_still_holds_up_the_others_for_seconds_only(replicas):
    """It stands in the middle of a transaction, with the lock of the fleet: the server ends that transaction."""
    still, other, _ = replicas
    call, attempt = a_call(), an_attempt(100, role_scope(LIMIT))
    await other.open_call(call, attempt)
    release, entered = threading.Event(), threading.Event()

    def stand(books) -> None:
        books.db.execute("UPDATE balances SET held_nanos = 0 WHERE scope_id = ?", ("g1",))
        entered.set()
        release.wait(GUARD_S)

    standing = asyncio.ensure_future(still._writer.do(stand, Touches(fleet="crew")))
    await asyncio.to_thread(entered.wait, GUARD_S)
    async with asyncio.timeout(5):
        assert isinstance(await other.open_call(a_call(), an_attempt(10, role_scope(LIMIT))), Held)
    release.set()
    with pytest.raises(StoreUnavailable):
        await standing
    assert await amounts(still, role_scope()) == (0, 110)
    assert isinstance(await still.open_call(a_call(), an_attempt(1, role_scope(LIMIT))), Held)


async def test_what_one_refuses_or_says_twice_is_in_the_log_once(replicas):
    call = a_call(run_id="run-one")
    for store in replicas:
        store.log_refusal(call, refusal(call))
        await store.flush()
    assert await rows(replicas[0], "SELECT count(*), max(state) FROM calls") == [(1, "refused")]
    opened, attempt = a_call(), an_attempt(100, role_scope())
    await replicas[0].open_call(opened, attempt)
    for store in replicas:
        store.close_call(call_end(opened), attempt_end(attempt, amount=40))
    for store in replicas:
        await store.flush()
    assert await amounts(replicas[0], role_scope()) == (40, 0)


async def test_a_call_may_go_on_through_another_gateway(replicas):
    first, second, third = replicas
    call, attempt = a_call(run_id="run-one", step="plan"), an_attempt(100, role_scope(150))
    await first.open_call(call, attempt)
    following = an_attempt(120, role_scope(150), n=2)
    answer = await second.next_attempt(call.request_id, attempt_end(attempt, "void"), following)
    assert isinstance(answer, Held)
    third.close_call(call_end(call), attempt_end(following, amount=50))
    await third.flush()
    assert await amounts(first, role_scope()) == (50, 0)
    row = await first.call(call.request_id)
    assert (row.state, row.attempts, row.cost_nanos, row.step) == ("ok", 2, 50, "plan")


async def test_the_same_messages_from_everywhere_are_kept_once(replicas):
    history = [f'"message {number}"'.encode() for number in range(40)]
    dice = random.Random(5)

    async def ask(store: PostgresStore, number: int) -> None:
        prompt = tuple(dice.sample(history, 30))
        call, attempt = a_call(prompt=prompt, fleet=f"fleet-{number % 4}"), an_attempt()
        await store.open_call(call, attempt)
        store.close_call(call_end(call, answer=dice.choice(history)), attempt_end(attempt))

    async with asyncio.timeout(GUARD_S):
        await asyncio.gather(*(ask(replicas[n % 3], n) for n in range(60)))
    for store in replicas:
        await store.flush()
    assert await rows(replicas[0], "SELECT count(*) FROM messages") == [(40,)]
