"""A long outage: those who wait hear of it at once, and records that nobody waits for pile up until it ends."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_values import Clock, a_call, an_attempt, attempt_end, call_end, refusal, role_scope

from nemo_agents.gateway.stores import writer
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import Held

GUARD_S = 20
"""Ends a test that would wait for ever."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        stranger.execute("ROLLBACK")
        stranger.close()


@contextmanager
def disk_full(_path: Path) -> Iterator[None]:
    """Let no file of this process grow: SQLite hears the same error from the system as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def started(tmp_path: Path, clock: Clock, *, waiting_max: int = 10_000) -> SqliteStore:
    store = SqliteStore(tmp_path / "nemo.db", clock=clock, busy_timeout_s=0.02, waiting_max=waiting_max)
    await store.start()
    return store


async def opened(store: SqliteStore, count: int) -> list:
    """Open calls of a hundred nanos each."""
    calls = [(a_call(), an_attempt(100, role_scope())) for _ in range(count)]
    answers = await asyncio.gather(*(store.open_call(call, attempt) for call, attempt in calls))
    assert all(isinstance(answer, Held) for answer in answers)
    return calls


def count_tries(store: SqliteStore) -> list[int]:
    """Return a list that gets the size of every batch that the writer tries from now on."""
    tries: list[int] = []
    real = store._writer._transact
    store._writer._transact = lambda batch: tries.append(len(batch)) or real(batch)
    return tries


@pytest.mark.parametrize("trouble", [locked, disk_full])
@pytest.mark.parametrize("waiting_max", [10_000, 50])
async def test_behind_many_kept_records_everybody_hears_at_once(tmp_path, clock, monkeypatch, trouble, waiting_max):
    """More records than a batch has, and more than may wait: those who come later are neither stuck nor shut out."""
    store = await started(tmp_path, clock, waiting_max=waiting_max)
    calls = await opened(store, 200)
    refused = [a_call() for _ in range(400)]
    monkeypatch.setattr(writer, "_RETRY_S", 1000.0)  # what is written at the end is written at once, not by and by
    async with asyncio.timeout(GUARD_S):
        with trouble(store.path):
            for call, attempt in calls:
                store.close_call(call_end(call), attempt_end(attempt, amount=60))
            for call in refused:
                store.log_refusal(call, refusal(call))
            for _ in range(3):
                for asked in (
                    store.open_call(a_call(), an_attempt(1, role_scope())),
                    store.next_attempt("one", attempt_end(an_attempt()), an_attempt(n=2)),
                    store.flush(),
                    store.calls(LogFilter(), before=None, limit=9),
                    store.grants(),
                    store.balances([role_scope()]),
                ):
                    with pytest.raises(StoreUnavailable, match="cannot be written now"):
                        await asked
            many = (store.open_call(a_call(), an_attempt(1, role_scope())) for _ in range(300))
            answers = await asyncio.gather(*many, return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreUnavailable}
        await store.flush()
        (balance,) = await store.balances([role_scope()])
        assert (balance.posted_nanos, balance.held_nanos) == (200 * 60, 0)
        for call in refused:
            assert (await store.call(call.request_id)).state == "refused"
        assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
        assert await store.verify_ledger() == []
        await store.close()


@pytest.mark.parametrize("waiting_max", [10_000, 50])
async def test_one_failed_try_is_an_answer_to_everybody(tmp_path, clock, waiting_max):
    """Each try may take the whole time that a lock is waited for: nobody waits for a second one."""
    store = await started(tmp_path, clock, waiting_max=waiting_max)
    with locked(store.path):
        tries = count_tries(store)
        many = (store.open_call(a_call(), an_attempt(1, role_scope())) for _ in range(1000))
        async with asyncio.timeout(GUARD_S):
            answers = await asyncio.gather(*many, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert tries == [min(waiting_max, writer.BATCH_MAX)]
    assert await store.verify_ledger() == []
    await store.close()


async def test_the_file_goes_away_in_the_middle_of_a_batch_with_a_culprit(tmp_path, clock, monkeypatch):
    """After a culprit each operation runs alone; those after the one that met the outage do not try again."""
    store = await started(tmp_path, clock)
    (call, attempt), (other, its_attempt) = await opened(store, 2)
    monkeypatch.setattr(writer, "_RETRY_S", 1000.0)
    real = store._writer._transact
    tries = []

    def break_down(batch):
        tries.append(len(batch))
        if len(tries) == 3:
            stranger.execute("BEGIN IMMEDIATE")
        return real(batch)

    stranger = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    store._writer._transact = break_down
    store.close_call(call_end(call), attempt_end(attempt, amount=60))
    culprit = store.open_call(call, an_attempt())
    waiting = [store.open_call(a_call(), an_attempt(1, role_scope())) for _ in range(3)]
    tasks = [asyncio.ensure_future(each) for each in (culprit, *waiting)]
    await asyncio.sleep(0)
    store.close_call(call_end(other), attempt_end(its_attempt, amount=70))
    async with asyncio.timeout(GUARD_S):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 4
    assert tries == [6, 1, 1]
    stranger.execute("ROLLBACK")
    stranger.close()
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (130, 0)
    assert await store.verify_ledger() == []
    await store.close()


async def test_of_refusals_the_latest_are_kept_and_of_settlements_all(tmp_path, clock, monkeypatch, logged):
    monkeypatch.setattr(writer, "DROPPABLE_MAX", 20)
    store = await started(tmp_path, clock)
    calls = await opened(store, 60)
    refused = [a_call() for _ in range(50)]
    async with asyncio.timeout(GUARD_S):
        with locked(store.path):
            for number, (call, attempt) in enumerate(calls):
                store.close_call(call_end(call), attempt_end(attempt, amount=60))
                if number < len(refused):
                    store.log_refusal(refused[number], refusal(refused[number]))
                if number % 10 == 0:
                    with pytest.raises(StoreUnavailable):
                        await store.flush()
        await store.flush()
        assert [await store.call(call.request_id) for call in refused[:30]] == [None] * 30
        rows = [await store.call(call.request_id) for call in refused[30:]]
        assert [row.state for row in rows] == ["refused"] * 20
        (balance,) = await store.balances([role_scope()])
        assert (balance.posted_nanos, balance.held_nanos) == (60 * 60, 0)
        assert await store.verify_ledger() == []
        await store.close()
    events = [line["event"] for line in logged]
    assert sum("the oldest are dropped" in event for event in events) == 1
    assert sum("cannot be written now" in event for event in events) == 1
    assert [line["records_dropped"] for line in logged if "can be written again" in line["event"]] == [30]


async def test_while_the_file_can_be_written_no_refusal_is_dropped(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(writer, "DROPPABLE_MAX", 20)
    store = await started(tmp_path, clock)
    refused = [a_call() for _ in range(600)]
    for call in refused:
        store.log_refusal(call, refusal(call))
    await store.flush()
    kept = "SELECT count(*) FROM calls WHERE state='refused'"
    assert await store._readers.read(lambda db: db.execute(kept).fetchone()) == (600,)
    await store.close()


async def test_in_an_outage_no_refused_caller_waits_for_room(tmp_path, clock, monkeypatch):
    """What cannot be written makes no room: the refused hear at once, and the latest of their records are kept."""
    monkeypatch.setattr(writer, "DROPPABLE_MAX", writer.RECORDS_MAX + 5)
    store = await started(tmp_path, clock)
    refused = [a_call() for _ in range(2 * writer.RECORDS_MAX + 1)]
    async with asyncio.timeout(GUARD_S):
        with locked(store.path):
            for call in refused:  # the first of them come before anybody knows of the outage, and then wait for that
                await store.room_for_refusal()
                store.log_refusal(call, refusal(call))
            with pytest.raises(StoreUnavailable):
                await store.flush()
        await store.flush()
        await store.room_for_refusal()
    assert store._writer._record_room.taken == 0
    kept = "SELECT count(*) FROM calls WHERE state='refused'"
    assert await store._readers.read(lambda db: db.execute(kept).fetchone()) == (writer.DROPPABLE_MAX,)
    await store.close()


async def test_who_waits_for_room_hears_that_the_store_closes(tmp_path, clock):
    store = await started(tmp_path, clock, waiting_max=2)
    many = [asyncio.ensure_future(store.open_call(a_call(), an_attempt())) for _ in range(20)]
    await asyncio.sleep(0)
    async with asyncio.timeout(GUARD_S):
        await store.close()
        answers = await asyncio.gather(*many, return_exceptions=True)
    assert [isinstance(answer, Held) for answer in answers] == [True] * 2 + [False] * 18
    assert {str(answer) for answer in answers[2:]} == {"the store is closed"}
