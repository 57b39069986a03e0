"""Who goes first: refusals of one role wait behind the holds of the others, and are all written nevertheless."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_values import a_call, an_attempt, attempt_end, call_end, refusal, role_scope, rows

from nemo_agents.gateway.stores import writer
from nemo_agents.gateway.stores.base import LogFilter
from nemo_agents.gateway.stores.database import Touches
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.gateway.stores.writer_queue import BATCH_MAX, RECORDS_PER_BATCH, Backlog, Operation, Room
from nemo_agents.policy.ledger import Held

GUARD_S = 20
"""Ends a test that would wait for ever."""


class Shut:
    """Holds the writer thread back until it is opened, and notes the batches that it writes from then on."""

    def __init__(self, store: SqlStore) -> None:
        self.batches: list[list[Operation]] = []
        self._writer = store._writer
        self._open, self._entered = threading.Event(), threading.Event()

    def _wait(self, _books: object) -> None:
        self._entered.set()
        assert self._open.wait(GUARD_S)

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._writer.do(self._wait))
        await asyncio.to_thread(self._entered.wait, GUARD_S)
        real = self._writer._transact
        self._writer._transact = lambda batch: self.batches.append(batch) or real(batch)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.set()
        await self._task


def log_refusals(store: SqlStore, count: int) -> list[str]:
    calls = [a_call() for _ in range(count)]
    for call in calls:
        store.log_refusal(call, refusal(call))
    return [call.request_id for call in calls]


def records_in(batch: list[Operation]) -> int:
    return sum(each.droppable for each in batch)


async def test_a_hold_waits_for_a_few_refusals_however_many_came_before(store):
    async with Shut(store) as shut:
        refused = log_refusals(store, 3 * BATCH_MAX)
        asked = asyncio.ensure_future(store.open_call(a_call(), an_attempt(1, role_scope())))
        await asyncio.sleep(0)
        store._writer._hand_over()
    assert isinstance(await asked, Held)
    assert records_in(shut.batches[0]) == RECORDS_PER_BATCH
    assert any(each.future is not None for each in shut.batches[0])
    await store.flush()
    kept = await rows(store, "SELECT request_id FROM calls WHERE state='refused' ORDER BY started_us, run")
    assert [request_id for (request_id,) in kept] == refused, "all of them, in their order"


async def test_refusals_wait_for_company_of_their_own_and_are_nobodys_burden(store, monkeypatch):
    """A hold takes none along; so many of them, or a reader, have them written."""
    monkeypatch.setattr(writer, "RECORDS_KEEP_S", 1000.0)  # however slow this machine is, their time is not up
    async with Shut(store) as shut:
        first = log_refusals(store, writer._RECORDS_AT_ONCE - 1)
        asked = asyncio.ensure_future(store.open_call(a_call(), an_attempt(1, role_scope())))
        await asyncio.sleep(0)
        store._writer._hand_over_what_is_due()
    assert isinstance(await asked, Held)
    assert [records_in(batch) for batch in shut.batches] == [0]
    async with Shut(store) as shut:
        first += log_refusals(store, 1)
        await asyncio.sleep(0)
    await store.calls(LogFilter(), before=None, limit=1)
    assert records_in(shut.batches[0]) == writer._RECORDS_AT_ONCE
    async with Shut(store) as shut:
        first += log_refusals(store, 1)
    page = await store.calls(LogFilter(state="refused"), before=None, limit=100)
    assert {row.request_id for row in page.calls} == set(first), "a reader sees those before it"


async def test_a_refusal_is_counted_before_the_calls_that_its_run_made_after_it(store, monkeypatch):
    monkeypatch.setattr(writer, "RECORDS_KEEP_S", 1000.0)
    refused, later = a_call(run_id="run-one"), a_call(run_id="run-one")
    store.log_refusal(refused, refusal(refused))
    assert isinstance(await store.open_call(later, an_attempt(1, role_scope())), Held)
    store.close_call(call_end(later), attempt_end(an_attempt(1)))
    found = "SELECT request_id FROM calls ORDER BY run, seq"
    assert await rows(store, found) == [(refused.request_id,), (later.request_id,)]


async def test_the_end_of_a_call_does_not_wait_for_refusals(store):
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    async with Shut(store) as shut:
        log_refusals(store, BATCH_MAX)
        store.close_call(call_end(call), attempt_end(attempt, amount=60))
        store._writer._hand_over()
    await store.flush()
    assert [each.droppable for each in shut.batches[0]].count(False) == 1
    assert records_in(shut.batches[0]) == RECORDS_PER_BATCH


async def test_a_batch_of_nothing_else_is_full_of_refusals(store):
    async with Shut(store) as shut:
        log_refusals(store, 2 * BATCH_MAX)
        store._writer._hand_over()
    await store.flush()
    assert [records_in(batch) for batch in shut.batches[:2]] == [BATCH_MAX, BATCH_MAX]


@pytest.mark.parametrize("reader", [SqlStore.flush, lambda store: store.call("nobody")])
async def test_a_reader_sees_the_refusals_before_it_although_holds_keep_coming(store, reader):
    count, busy = "SELECT count(*) FROM calls WHERE state='refused'", True

    async def keep_asking() -> int:
        asked = 0
        while busy:
            assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
            asked += 1
        return asked

    async with asyncio.timeout(GUARD_S):
        async with Shut(store) as shut:
            others = [asyncio.ensure_future(keep_asking()) for _ in range(4)]
            log_refusals(store, 2 * BATCH_MAX)
            reading = asyncio.ensure_future(reader(store))
            await asyncio.sleep(0)
            log_refusals(store, BATCH_MAX)  # those after it are nothing to wait for
        await reading
        (seen,) = await store._readers.read(lambda db: db.execute(count).fetchone())
        assert seen >= 2 * BATCH_MAX
        busy = False
        assert min(await asyncio.gather(*others)) > 0
    mixed = [batch for batch in shut.batches if any(each.future and not each.after_all for each in batch)]
    assert max(records_in(batch) for batch in mixed) <= BATCH_MAX // 2


async def test_who_is_refused_faster_than_it_is_written_waits(store, monkeypatch):
    """Its answer waits until its record has room; the record is there, and nobody else waits."""
    logged: list[int] = []

    async def refused(number: int) -> None:
        await store.room_for_refusal()
        call = a_call(f"refused-{number}")
        store.log_refusal(call, refusal(call))
        logged.append(number)

    async with Shut(store):
        tasks = [asyncio.ensure_future(refused(number)) for number in range(200)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert logged == list(range(writer.RECORDS_MAX))
        tasks[writer.RECORDS_MAX].cancel()
        asked = asyncio.ensure_future(store.open_call(a_call(), an_attempt(1, role_scope())))
        await asyncio.sleep(0)
        store._writer._hand_over()
    assert isinstance(await asked, Held)
    async with asyncio.timeout(GUARD_S):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert logged == [number for number in range(200) if number != writer.RECORDS_MAX], "in turn"
    await store.flush()
    assert await rows(store, "SELECT count(*) FROM calls WHERE state='refused'") == [(199,)]
    assert store._writer._record_room.taken == 0


def operation(number: int, kind: str) -> Operation:
    return Operation(number, None, Touches(), after_all=kind == "reader", droppable=kind == "record")


@given(
    arrivals=st.lists(
        st.lists(st.tuples(st.sampled_from(["hold", "record", "reader"]), st.sampled_from([1, 20, 300])), max_size=4),
        max_size=4,
    )
)
def test_any_backlog_is_written_completely_and_in_order(arrivals):
    """Whatever comes between batches: each kind keeps its order, readers see all before them, and nobody starves."""
    backlog, numbers, written = Backlog(), itertools.count(1), list[Operation]()
    kinds: dict[int, str] = {}
    done: set[int] = set()
    for arrival in [*arrivals, *([()] * 40)]:
        came = {next(numbers): kind for kind, count in arrival for _ in range(count)}
        kinds |= came
        backlog.add([operation(number, kind) for number, kind in came.items()])
        waiting = len(backlog)
        batch = backlog.batch()
        assert bool(batch) == bool(waiting)
        assert len(backlog) == waiting - len(batch)
        assert [each.number for each in batch] == sorted(each.number for each in batch)
        records = sum(each.droppable for each in batch)
        if any(not each.droppable and not each.after_all for each in batch):
            assert records <= BATCH_MAX // 2
            assert records >= RECORDS_PER_BATCH or not backlog._records
        assert len([each for each in batch if not each.after_all]) <= BATCH_MAX
        for each in batch:
            if each.after_all:
                assert done >= {number for number in kinds if number < each.number}
            written.append(each)
            done.add(each.number)
    assert not backlog
    assert sorted(each.number for each in written) == list(range(1, next(numbers)))
    for droppable in (True, False):
        order = [each.number for each in written if each.droppable is droppable and not each.after_all]
        assert order == sorted(order)


async def test_room_is_given_in_turn_and_never_to_those_who_left():
    room, order = Room(2), []

    async def enter(name: str) -> None:
        await room.wait()
        room.take()
        order.append(name)

    tasks = {name: asyncio.ensure_future(enter(name)) for name in "abcdef"}
    await asyncio.sleep(0)
    assert order == ["a", "b"]
    tasks["c"].cancel()
    await asyncio.sleep(0)
    room.give_back(1)
    tasks["d"].cancel()  # its turn has come, and it leaves: the turn is passed on
    late = asyncio.ensure_future(enter("late"))
    async with asyncio.timeout(GUARD_S):
        await tasks["e"]
        assert order == ["a", "b", "e"]
        room.give_back(2)
        await tasks["f"]
        await late
        assert order == ["a", "b", "e", "f", "late"]
        assert room.taken == 2
        gone = asyncio.ensure_future(room.wait())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        room.give_back(2)
        await room.wait()
