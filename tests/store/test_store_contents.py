"""What calls said may be big: it holds up nobody's money, and what cannot be written is left out before a row is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator

import psycopg
import pytest
from store_values import a_call, an_attempt, attempt_end, call_end, refusal, role_scope, rows

from nemo_agents.gateway.stores import writer, writer_content, writer_queue
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.postgres_connection import Address
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import Held

GUARD_S = 30
SLOW_BYTES = 600_000


def said(size: int) -> bytes:
    """A message of about so many bytes that does not compress to less than half."""
    return b'{"role": "user", "content": "' + os.urandom(size // 2).hex().encode() + b'"}'


@pytest.fixture
def slow(database) -> Iterator[str]:
    """A database that gives up on each statement that writes more than `SLOW_BYTES` of messages."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION too_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF (SELECT sum(octet_length(body)) FROM fresh) > {SLOW_BYTES} THEN"
            " RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014'; END IF;"
            " RETURN NULL; END $$"
        )
        admin.execute(
            "CREATE TRIGGER slow AFTER INSERT ON messages REFERENCING NEW TABLE AS fresh"
            " FOR EACH STATEMENT EXECUTE FUNCTION too_slow()"
        )
    yield database
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("DROP FUNCTION too_slow() CASCADE")


@pytest.fixture
def impatient(monkeypatch) -> None:
    """A server that ends a transaction in which nothing comes for half a second."""
    monkeypatch.setitem(Address.connect.__kwdefaults__, "idle_s", 0.5)


async def test_big_records_of_refusals_hold_nobody_up(impatient, store, monkeypatch, logged):
    compress = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda message, _level: compress(message, 9))  # as on a slow machine
    async with asyncio.timeout(GUARD_S):
        refused = [a_call(prompt=(said(1_500_000),)) for _ in range(40)]
        for call in refused:
            store.log_refusal(call, refusal(call))
        flushed = asyncio.ensure_future(store.flush())  # has a batch of nothing but records begin at once
        await store._writer.do(lambda _: None)
        asked = time.monotonic()
        assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
        assert time.monotonic() - asked < 5
        await flushed
    assert logged == []
    async with asyncio.timeout(GUARD_S):
        contents = await store.contents([call.request_id for call in refused])
    assert all(contents[call.request_id].prompt for call in refused)


async def test_a_batch_has_so_many_bytes_and_what_is_of_others_among_them_is_little(store):
    sizes: list[int] = []
    real = store._writer._transact

    def transact(batch):
        sizes.append(sum(operation.size for operation in batch))
        return real(batch)

    store._writer._transact = transact
    for _ in range(12):
        call = a_call(prompt=(said(700_000),))
        store.log_refusal(call, refusal(call))
    calls = [(a_call(prompt=(said(700_000),)), an_attempt(1, role_scope())) for _ in range(12)]
    await asyncio.gather(*(store.open_call(*pair) for pair in calls))
    await store.flush()
    assert max(sizes) <= writer_queue.BATCH_BYTES + writer_queue.RECORD_BYTES_PER_BATCH
    assert len(await rows(store, "SELECT run FROM contents")) == 24


async def test_contents_are_packed_while_nothing_is_locked(store, monkeypatch):
    locked: list[bool] = []
    real = writer_content._compress

    def compress(message: bytes) -> bytes:
        locked.append(store._writer._books.db.in_transaction)
        return real(message)

    monkeypatch.setattr(writer_content, "_compress", compress)
    call, attempt = a_call(prompt=(said(100), said(200)), params=b"{}"), an_attempt(1, role_scope())
    await store.open_call(call, attempt)
    store.close_call(call_end(call, answer=said(300)), attempt_end(attempt))
    refused = a_call(prompt=call.prompt, params=b'{"n": 2}')
    store.log_refusal(refused, refusal(refused))
    await store.flush()
    assert locked == [False] * 5
    contents = await store.contents([call.request_id, refused.request_id])
    assert contents[call.request_id].prompt == contents[refused.request_id].prompt


async def test_the_largest_answer_costs_its_content_and_nothing_else(store, logged):
    call, attempt = a_call(prompt=(said(10),)), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    store.close_call(call_end(call, answer=said(64 << 20)), attempt_end(attempt, amount=60))
    async with asyncio.timeout(GUARD_S):
        row = await store.call(call.request_id)
    assert (row.state, row.cost_nanos) == ("ok", 60)
    content = (await store.contents([call.request_id]))[call.request_id]
    assert content.prompt
    assert content.answer is None
    assert ["too big" in line["event"] for line in logged] == [True]


async def test_a_big_answer_that_is_kept_comes_back_whole(store):
    call, attempt = a_call(prompt=(said(10), said(3_000_000), said(20))), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    answer = said(writer_queue.CONTENT_MAX_BYTES - 1000)
    store.close_call(call_end(call, answer=answer), attempt_end(attempt, amount=60))
    content = (await store.contents([call.request_id]))[call.request_id]
    assert content.answer["content"].encode() in answer
    assert [len(message["content"]) for message in content.prompt] == [10, 3_000_000, 20]


async def test_what_takes_too_long_is_written_in_parts_and_by_itself_without_its_content(slow, clock, logged):
    store = PostgresStore(slow, clock=clock)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    store.close_call(call_end(call, answer=said(2_000_000)), attempt_end(attempt, amount=60))
    refused = [a_call(prompt=(said(400_000),)) for _ in range(8)]
    for each in refused:
        store.log_refusal(each, refusal(each))
    late, late_attempt = a_call(prompt=(said(2_000_000),)), an_attempt(7, role_scope())
    async with asyncio.timeout(GUARD_S):
        assert isinstance(await store.open_call(late, late_attempt), Held)
        await store.flush()
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (60, 7)
    assert len((await store.calls(LogFilter(), before=None, limit=99)).calls) == 10
    contents = await store.contents([each.request_id for each in (call, late, *refused)])
    assert all(contents[each.request_id].prompt for each in refused)
    for each in (call, late):
        assert each.request_id not in contents or not contents[each.request_id].prompt
    assert sum("without its content" in line["event"] for line in logged) == 2
    assert not any("cannot be written" in line["event"] for line in logged)
    assert await store.verify_ledger() == []
    await store.close()


async def test_in_an_outage_only_so_much_content_is_kept(tmp_path, clock, monkeypatch, logged):
    monkeypatch.setattr(writer, "CONTENT_KEPT_BYTES", 2500)
    store = SqliteStore(tmp_path / "nemo.db", clock=clock, busy_timeout_s=0.01)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    stranger = sqlite3.connect(store.path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    store.close_call(call_end(call, answer=said(1000)), attempt_end(attempt, amount=60))
    refused = [a_call(prompt=(said(1000),)) for _ in range(5)]
    async with asyncio.timeout(GUARD_S):
        for each in refused:
            store.log_refusal(each, refusal(each))
            with pytest.raises(StoreUnavailable):
                await store.flush()
        stranger.close()
        await store.flush()
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (60, 0)
    assert [(await store.call(each.request_id)).state for each in refused] == ["refused"] * 5
    contents = await store.contents([each.request_id for each in (call, *refused)])
    assert contents[call.request_id].answer
    assert [each.request_id in contents for each in refused] == [False] * 4 + [True]
    assert sum(line.get("records", 0) for line in logged if "oldest contents" in line["event"]) == 4
    await store.close()
