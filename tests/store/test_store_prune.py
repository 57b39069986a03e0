"""What is old is deleted: whole runs or what they said, never what is open, never what others refer to, never money."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from store_values import T0, Clock, a_call, an_attempt, attempt_end, call_end, role_scope, rows, write

from nemo_agents.admin import wire
from nemo_agents.gateway.stores import migrate, pruning, writer_prune
from nemo_agents.gateway.stores.base import LogFilter, PruneOrder, SpanBatch, SpanRecord
from nemo_agents.gateway.stores.database import Touches
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.gateway.stores.writer_content import DAY_US

TABLES = ("attempts", "calls", "contents", "messages", "runs", "spans", "steps")
LATER = T0 + 40 * DAY_US


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses."""
    monkeypatch.setattr(pruning, "REST_FACTOR", 0)


async def make_call(store: SqlStore, *, at_us: int = T0, prompt: tuple[bytes, ...] = (b'"q"',), **given: Any) -> str:
    """A call of the past that cost 7 nanos."""
    call = a_call(started_us=at_us, prompt=prompt, params=b'{"temperature":0}', **given)
    attempt = an_attempt(10, role_scope(), started_us=at_us)
    await store.open_call(call, attempt)
    end = call_end(call, ended_us=at_us + 1000, answer=b'["answer", %b]' % prompt[-1])
    store.close_call(end, attempt_end(attempt, amount=7, ended_us=at_us + 1000))
    await store.flush()
    return call.request_id


async def log_span(store: SqlStore, run_id: str, said: bytes, span_id: str = "a") -> None:
    span = SpanRecord(
        span_id=span_id,
        parent_id=None,
        kind="tool",
        name="t",
        step=None,
        role=None,
        state="ok",
        started_us=T0,
        ended_us=T0 + 5,
        input=said,
    )
    trace = "ab" * 16
    await store.log_spans(
        SpanBatch(fleet="crew", role="writer", run_id=run_id, trace_id=trace, trace_run_id=trace, spans=(span,))
    )


async def prune(store: SqlStore, *, cut_us: int = T0 + DAY_US, contents_only: bool = False) -> wire.Pruned:
    total = wire.Pruned()
    order = PruneOrder(pruning=f"p-{random.random()}", cut_us=cut_us, contents_only=contents_only)
    async for piece in store.prune(order):
        total.add(piece)
    return total


async def counts(store: SqlStore) -> dict[str, int]:
    return {table: (await rows(store, f"SELECT count(*) FROM {table}"))[0][0] for table in TABLES}


async def test_an_old_run_goes_with_all_that_is_in_it_and_the_money_stays(store: SqlStore, clock: Clock) -> None:
    await make_call(store, run_id="run-one", step="plan")
    await log_span(store, "run-one", b'"in"')
    clock.now_us = LATER
    recent = await make_call(store, at_us=LATER, run_id="run-two", prompt=(b'"other"',))
    before = await store.balances([role_scope()])
    order = PruneOrder(pruning="p", cut_us=T0 + DAY_US)
    assert await store.prunable(order) == wire.Pruned(runs=1, calls=1, contents=1, spans=1)
    gone = await prune(store)
    assert (gone.runs, gone.calls, gone.contents, gone.spans, gone.messages) == (1, 1, 1, 1, 3)
    assert await store.run("run-one", fleet=None) is None
    assert await counts(store) == {
        "attempts": 1,
        "calls": 1,
        "contents": 1,
        "messages": 3,
        "runs": 1,
        "spans": 0,
        "steps": 0,
    }
    assert await store.balances([role_scope()]) == before
    assert await rows(store, "SELECT count(*) FROM entries") == [(4,)]
    assert (await store.contents([recent]))[recent].prompt == ["other"]
    assert (await store.log_size()).pruned_before_us == T0 + DAY_US
    assert await prune(store) == wire.Pruned()


async def test_contents_alone_go_and_the_rest_is_as_it_was(store: SqlStore, clock: Clock) -> None:
    request = await make_call(store, run_id="run-one")
    await log_span(store, "run-one", b'"in"')
    before = await store.calls(LogFilter(), before=None, limit=9)
    clock.now_us = LATER
    gone = await prune(store, contents_only=True)
    assert (gone.runs, gone.calls, gone.contents, gone.messages) == (0, 0, 1, 4)
    assert await store.calls(LogFilter(), before=None, limit=9) == before
    found = await store.run("run-one", fleet=None)
    assert found is not None
    assert [(s.name, s.input) for s in found.spans] == [("t", None)]
    assert request not in await store.contents([request]) or not (await store.contents([request]))[request].prompt
    assert await prune(store, contents_only=True) == wire.Pruned()


async def test_what_is_open_stays_with_what_it_says(store: SqlStore, clock: Clock) -> None:
    await make_call(store, run_id="open")
    call, attempt = a_call(run_id="open", prompt=(b'"open"',)), an_attempt(10, role_scope())
    await store.open_call(call, attempt)
    await make_call(store, run_id="reported", prompt=(b'"reported"',))
    await store.report_run("crew", "reported", wire.RunReport(name="r", state="running", started_us=T0))
    held, held_attempt = a_call(run_id="held"), an_attempt(10, role_scope())
    await store.open_call(held, held_attempt)
    store.close_call(call_end(held), None)  # its hold is resolved by the sweeper alone
    clock.now_us = LATER
    before = await counts(store)
    assert await prune(store, cut_us=T0 + 39 * DAY_US) == wire.Pruned()
    assert await prune(store, cut_us=T0 + 39 * DAY_US, contents_only=True) == wire.Pruned()
    assert await counts(store) == before
    store.close_call(call_end(call, ended_us=LATER), attempt_end(attempt, amount=1))
    store.close_call(call_end(held), attempt_end(held_attempt, amount=1))
    assert (await store.contents([call.request_id]))[call.request_id].prompt == ["open"]


async def test_a_run_that_comes_back_is_looked_at_again_under_the_lock(store: SqlStore, clock: Clock) -> None:
    await make_call(store, run_id="run-one")
    clock.now_us = LATER
    ((number,),) = await rows(store, "SELECT run FROM runs")
    piece = writer_prune.Piece(pruning="p", at_us=LATER, cut_us=T0 + DAY_US, runs=(number,))
    call, attempt = a_call(run_id="run-one", started_us=LATER), an_attempt(10, role_scope(), expires_us=LATER + 1)
    opening = asyncio.ensure_future(store.open_call(call, attempt))  # in the same transaction, just before
    await asyncio.sleep(0)
    gone = await store._writer.do(
        lambda books: writer_prune.drop_runs(books, piece), Touches(fleet="crew", run_id="run-one")
    )
    await opening
    assert gone == wire.Pruned()
    store.close_call(call_end(call, ended_us=LATER), attempt_end(attempt, amount=1))
    found = await store.run("run-one", fleet=None)
    assert found is not None
    assert found.run.calls == 2


async def test_a_pruned_run_may_begin_anew_under_its_id(store: SqlStore, clock: Clock) -> None:
    await make_call(store, run_id="run-one", trace_id="ab" * 16)
    clock.now_us = LATER
    await prune(store)
    await make_call(store, at_us=LATER, run_id="run-one")
    await log_span(store, "run-one", b'"in"')
    found = await store.run("run-one", fleet=None)
    assert found is not None
    assert (found.run.calls, len(found.spans)) == (1, 1)


async def test_a_lost_call_is_told_even_where_calls_were_pruned(any_store: SqlStore, clock: Clock) -> None:
    store = any_store
    await make_call(store, run_id="run-one")
    lost = await make_call(store)
    clock.now_us = LATER
    keep = await make_call(store, at_us=LATER)
    await write(store, f"UPDATE runs SET last_us = {LATER} WHERE run_id = '{lost}'")
    await prune(store)
    assert await store.verify_ledger() == []
    of_lost = f"run IN (SELECT run FROM runs WHERE run_id = '{lost}')"
    for table in ("attempts", "calls", "runs"):
        await write(store, f"DELETE FROM {table} WHERE {of_lost}")
    (fault,) = await store.verify_ledger()
    assert "2 holds" in fault
    assert "those of 1 " in fault
    assert await store.call(keep) is not None


async def test_messages_stay_as_long_as_anything_refers_to_them(store: SqlStore, clock: Clock) -> None:
    shared = b'"system"'
    await make_call(store, run_id="old", prompt=(shared, b'"gone"'))
    clock.now_us = LATER
    kept = await make_call(store, at_us=LATER, run_id="new", prompt=(shared, b'"here"'))
    gone = await prune(store)
    assert gone.messages == 2  # what only the old one asked, and its answer
    assert (await store.contents([kept]))[kept].prompt == ["system", "here"]
    clock.now_us = LATER + DAY_US // 2
    again = await make_call(store, at_us=clock.now_us, prompt=(b'"gone"',))
    assert (await store.contents([again]))[again].prompt == ["gone"]


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_pruned_what_is_left_has_its_messages(store: SqlStore, clock: Clock, seed: int) -> None:
    """Calls, spans and prunings in any order and at once: each hash that a row names has its message."""
    chance = random.Random(seed)
    words = [b'"word %d"' % n for n in range(8)]
    open_ones: list[Any] = []

    async def call() -> None:
        prompt = tuple(chance.choices(words, k=3))
        run_id = f"run-{chance.randrange(6)}"
        if chance.random() < 0.3:
            one = a_call(started_us=clock.now_us, run_id=run_id, prompt=prompt)
            attempt = an_attempt(1, role_scope(), started_us=clock.now_us, expires_us=clock.now_us + 10 * DAY_US)
            await store.open_call(one, attempt)
            open_ones.append((one, attempt))
        elif chance.random() < 0.3:
            await log_span(store, run_id, chance.choice(words), str(chance.randrange(9)))
        else:
            await make_call(store, at_us=clock.now_us, run_id=run_id, prompt=prompt)

    for _ in range(25):
        clock.now_us += chance.randrange(3 * DAY_US)
        cut_us = clock.now_us - chance.randrange(6 * DAY_US)
        contents_only = chance.random() < 0.5
        await asyncio.gather(
            *[call() for _ in range(3)], prune(store, cut_us=cut_us, contents_only=contents_only), call()
        )
        while open_ones and chance.random() < 0.4:
            one, attempt = open_ones.pop()
            end = call_end(one, ended_us=clock.now_us, answer=chance.choice(words))
            store.close_call(end, attempt_end(attempt, amount=1, ended_us=clock.now_us))
        await all_there(store)
    for one, attempt in open_ones:
        store.close_call(call_end(one, ended_us=clock.now_us), attempt_end(attempt, amount=1, ended_us=clock.now_us))
    clock.now_us += 30 * DAY_US
    await store.sweep(clock.now_us)
    await prune(store, cut_us=clock.now_us - DAY_US)
    assert (await counts(store))["messages"] == 0


async def all_there(store: SqlStore) -> None:
    there = {bytes(key) for (key,) in await rows(store, "SELECT hash FROM messages")}
    named = await rows(store, "SELECT prompt, params FROM contents")
    named += await rows(store, "SELECT answer, NULL FROM calls")
    named += await rows(store, "SELECT input, output FROM spans")
    for blob in (bytes(each) for row in named for each in row if each is not None):
        assert {blob[n : n + 16] for n in range(0, len(blob), 16)} <= there


async def test_another_gateway_that_knows_a_message_brings_it_again(
    replicas: list[PostgresStore], clock: Clock
) -> None:
    one, other, _ = replicas
    await make_call(other, run_id="old", prompt=(b'"known"',))
    clock.now_us = LATER
    assert (await prune(one)).messages == 3
    request = await make_call(other, at_us=LATER, prompt=(b'"known"',))
    assert (await one.contents([request]))[request].prompt == ["known"]


async def test_a_run_of_many_spans_goes_in_pieces(store: SqlStore, clock: Clock) -> None:
    await make_call(store, run_id="run-one")
    for number in range(writer_prune.PIECE + 20):
        await log_span(store, "run-one", b'"in"', str(number))
    clock.now_us = LATER
    gone = await prune(store)
    assert (gone.spans, gone.runs) == (writer_prune.PIECE + 20, 1)


# --- events and changes ---------------------------------------------------------------------------------------------
def an_event(number: int, kind: str = "spend.spike", **facts: Any) -> wire.EventRow:
    return wire.EventRow(seq=0, event_id=f"e{number}", kind=kind, at_us=T0, message="m", facts=facts)


async def test_told_events_go_but_the_last_one_and_those_that_keep_a_budget_from_being_told_twice(
    store: SqlStore, clock: Clock
) -> None:
    events = [
        an_event(1),
        an_event(2, "budget.alert", resets_at_us=None),
        an_event(3, "budget.alert", resets_at_us=T0 + 5),
        an_event(4, "budget.exhausted", resets_at_us=LATER),
        an_event(5),
        an_event(6),
    ]
    for number, event in enumerate(events):
        await store.put_event(event, once=event.event_id, webhooks=["hook"] if number == 4 else [])
    clock.now_us = LATER
    assert (await prune(store)).events == 2
    left = await store.events(after=0, limit=9)
    assert [event.event_id for event in left] == ["e2", "e4", "e5", "e6"]
    await store.end_delivery(5, "hook", retry_us=None, error=None)
    assert (await prune(store)).events == 1
    assert await rows(store, "SELECT count(*) FROM deliveries") == [(0,)]
    assert await store.put_event(an_event(7), once="e7", webhooks=[]) == 7


async def test_of_old_changes_the_latest_of_each_thing_stays(replicas: list[PostgresStore]) -> None:
    store = replicas[0]
    for name in ("a", "b", "a", "a"):
        await store.put_document(name, b"x")
    position, _ = await store.changes(None)
    gone = await prune(store, cut_us=1 << 61)
    assert gone.changes == 2
    at, found = await store.changes(0)
    assert (at, [change.id for change in found]) == (position, ["b", "a"])


# --- the file -------------------------------------------------------------------------------------------------------
async def test_the_file_shrinks_while_it_is_used(tmp_path: Any, clock: Clock) -> None:
    store = SqliteStore(tmp_path / "nemo.db", clock=clock)
    await store.start()
    for number in range(40):
        noise = random.Random(number).randbytes(50_000).hex().encode()
        await make_call(store, prompt=(b'"%b"' % noise,))
    clock.now_us = LATER
    await prune(store)
    before = await store.log_size()
    assert before.shrinks
    assert before.free_bytes > before.bytes // 2
    freed = [size async for size in store.vacuum()]
    after = await store.log_size()
    assert (after.bytes, after.free_bytes) == (before.bytes - sum(freed), 0)
    assert store.path.stat().st_size == after.bytes
    assert await store.verify_ledger() == []
    await store.close()


async def test_a_file_of_before_is_pruned_and_says_that_it_does_not_shrink(tmp_path: Any) -> None:
    path = tmp_path / "nemo.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 1")
    migrate.upgrade(path)
    store = SqliteStore(path, clock=Clock())
    await store.start()
    assert not (await store.log_size()).shrinks
    assert [size async for size in store.vacuum()] == []
    await store.close()
