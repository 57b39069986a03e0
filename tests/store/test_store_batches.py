"""Batches on PostgreSQL: how many transactions they take, and what becomes of contents that are too big for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from store_values import T0, a_call, an_attempt, attempt_end, call_end, fleet_scope, role_scope

from nemo_agents.admin.wire import EventRow
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.policy.ledger import Held


@pytest.fixture
async def shared(database, clock) -> AsyncIterator[PostgresStore]:
    """A store on PostgreSQL, whose books balance after every test."""
    store = PostgresStore(database, clock=clock)
    await store.start()
    yield store
    assert await store.verify_ledger() == []
    await store.close()


def tries_of(store: PostgresStore) -> list[int]:
    """The sizes of the batches that are tried from now on."""
    sizes: list[int] = []
    real = store._writer._transact

    def transact(batch):
        sizes.append(len(batch))
        return real(batch)

    store._writer._transact = transact
    return sizes


def an_event(number: int) -> EventRow:
    return EventRow(
        seq=0, event_id=f"e{number}", kind="budget_alert", at_us=T0, fleet="crew", role=None, message="m", facts={}
    )


@pytest.mark.parametrize("reading", ["flush", "event", "deliveries"])
async def test_a_read_among_first_holds_leaves_them_one_transaction(shared, reading):
    tries = tries_of(shared)
    reads = {
        "flush": shared.flush,
        "event": lambda: shared.put_event(an_event(1), once="once", webhooks=["https://hook"]),
        "deliveries": lambda: shared.claim_deliveries(T0, lease_us=1, limit=9),
    }
    calls = [a_call() for _ in range(40)]
    attempts = [an_attempt(1, role_scope(100, id=f"g{n}"), fleet_scope(100)) for n in range(40)]
    opened = [shared.open_call(*pair) for pair in zip(calls, attempts, strict=True)]
    answers = await asyncio.gather(*opened[:20], reads[reading](), *opened[20:])
    assert sum(isinstance(answer, Held) for answer in answers) == 40
    assert tries == [41]
    for call, attempt in zip(calls, attempts, strict=True):  # what was new is moved by others' settlements too
        shared.close_call(call_end(call), attempt_end(attempt, amount=1))
    await asyncio.gather(shared.flush(), shared.open_call(a_call(), an_attempt(1, fleet_scope(100))))
    (fleet,) = await shared.balances([fleet_scope()])
    assert (fleet.posted_nanos, fleet.held_nanos) == (40, 1)


async def test_a_balance_that_somebody_else_makes_meanwhile_is_met_and_not_passed_by(shared, database):
    """Between what a batch read and its end, with a read in between: the guard holds, and the batch is done again."""
    tries = tries_of(shared)
    made = False

    def make(_books) -> None:
        nonlocal made
        if not made:
            made = True
            with psycopg.connect(database, autocommit=True) as other:
                other.execute(
                    "INSERT INTO balances(kind, scope_id, period, posted_nanos) VALUES ('role', 'g1', '2025-10-09', 0)"
                )

    held = shared.open_call(a_call(), an_attempt(60, role_scope(100)))
    answer, _, _ = await asyncio.gather(held, shared._writer.do(make), shared.flush())
    assert isinstance(answer, Held)
    assert tries == [3, 3]
    (balance,) = await shared.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (0, 60)


async def test_a_fleet_that_cannot_be_swept_keeps_no_other_from_it(shared):
    """Its balance is at the end of what fits into the column, so that posting its hold fails each time."""
    for fleet in ("alpha", "beta", "gamma"):
        await shared.open_call(a_call(fleet=fleet), an_attempt(100, role_scope(id=fleet)))
    edge = f"UPDATE balances SET posted_nanos = {2**63 - 1} WHERE scope_id = 'alpha'"
    await shared._writer.do(lambda books: books.db.execute(edge))
    with pytest.raises(ValueError, match="out of range") as caught:
        await shared.sweep(T0 + 10**12)
    assert any("'alpha'" in note for note in caught.value.__notes__)
    balances = await shared.balances([role_scope(id=fleet) for fleet in ("alpha", "beta", "gamma")])
    assert [balance.held_nanos for balance in balances] == [100, 0, 0]
    await shared._writer.do(lambda books: books.db.execute("UPDATE balances SET posted_nanos = 0 WHERE held_nanos > 0"))
    assert await shared.sweep(T0 + 10**12) == 1
