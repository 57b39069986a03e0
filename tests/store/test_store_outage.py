"""Group commit and bad days: one culprit in a batch, a locked file, a full disk, a kill."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from store_values import HOUR_US, T0, Clock, a_call, an_attempt, attempt_end, call_end, refusal, role_scope, rows

from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import Held

HERE = Path(__file__).parent


class Gate:
    """Keeps the writer thread busy until it is opened, so that what is queued meanwhile forms one batch."""

    def __init__(self, store: SqliteStore) -> None:
        import threading

        self._open = threading.Event()
        self._entered = threading.Event()
        self._task = asyncio.ensure_future(store._writer.do(self._wait))

    def _wait(self, _books) -> None:
        self._entered.set()
        self._open.wait(30)

    async def __aenter__(self):
        await asyncio.to_thread(self._entered.wait, 30)
        return self

    async def __aexit__(self, *_) -> None:
        self._open.set()
        await self._task


async def test_a_failing_operation_does_not_fail_its_neighbours(store):
    twice = a_call("the-same")
    await store.open_call(twice, an_attempt(1, role_scope()))
    async with Gate(store):
        good = [
            asyncio.ensure_future(store.open_call(a_call(run_id="r"), an_attempt(10, role_scope()))) for _ in range(5)
        ]
        bad = asyncio.ensure_future(store.open_call(twice, an_attempt(1000, role_scope())))
        more = [
            asyncio.ensure_future(store.open_call(a_call(run_id="r"), an_attempt(10, role_scope()))) for _ in range(5)
        ]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*good, *more)
    assert [answer.seq for answer in answers] == list(range(1, 11))
    with pytest.raises(ValueError, match="request_id"):
        await bad
    (balance,) = await store.balances([role_scope()])
    assert balance.held_nanos == 101


async def test_a_broken_record_that_nobody_waits_for_is_dropped_alone(store, logged):
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    async with Gate(store):
        store.close_call(call_end(call), attempt_end(attempt, amount=-5))
        store.close_call(call_end(call), attempt_end(attempt, amount=5))
        store.close_call(call_end(a_call("never-opened")), None)
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (5, 0)
    told = {line["event"]: line for line in logged}
    assert "-5" in told["a record was refused by the store and dropped"]["error"]
    assert told["the end of an unknown call was dropped"]["request_id"] == "never-opened"


async def test_a_batch_is_one_commit(store):
    commits = []
    real = store._writer._transact
    store._writer._transact = lambda batch: commits.append(len(batch)) or real(batch)
    async with Gate(store):
        commits.clear()
        tasks = [asyncio.ensure_future(store.open_call(a_call(), an_attempt(1, role_scope()))) for _ in range(100)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert commits == [100]


async def test_a_cancelled_caller_gets_its_committed_hold_voided(store):
    """Cancelled between the commit and the answer: nobody will ever settle this hold, so the store does."""
    call, attempt = a_call(), an_attempt(100, role_scope())
    real = store._writer._resolve

    def late(results) -> None:
        task.cancel()
        asyncio.get_running_loop().call_soon(real, results)

    store._writer._resolve = late
    task = asyncio.ensure_future(store.open_call(call, attempt))
    with pytest.raises(asyncio.CancelledError):
        await task
    store._writer._resolve = real
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (0, 0)
    row = await store.call(call.request_id)
    assert (row.state, row.status, row.cost_nanos) == ("abandoned", 499, 0)


@pytest.mark.parametrize("n", [1, 2])
async def test_a_caller_cancelled_as_its_hold_is_delivered_gets_it_voided(store, n):
    """The result is there, and the caller is cancelled before its turn to take it: nobody knows of this hold."""
    call, first, second = a_call(), an_attempt(100, role_scope()), an_attempt(70, role_scope(), n=2)
    if n == 1:
        asked = store.open_call(call, first)
    else:
        await store.open_call(call, first)
        asked = store.next_attempt(call.request_id, attempt_end(first, "expire", 100), second)
    real = store._writer._resolve
    delivered = []

    def deliver(results) -> None:
        real(results)
        delivered.extend(value for _, value, _ in results)
        task.cancel()

    store._writer._resolve = deliver
    task = asyncio.ensure_future(asked)
    with pytest.raises(asyncio.CancelledError):
        await task
    store._writer._resolve = real
    assert isinstance(delivered[0], Held)
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (0 if n == 1 else 100, 0)
    row = await store.call(call.request_id)
    assert (row.state, row.status, row.attempts) == ("abandoned", 499, n)
    unsettled = "SELECT count(*) FROM attempts WHERE settled IS NULL"
    assert await store._readers.read(lambda db: db.execute(unsettled).fetchone()) == (0,)


async def test_callers_queue_when_the_disk_is_behind(tmp_path, clock):
    store = SqliteStore(tmp_path / "nemo.db", clock=clock, waiting_max=4)
    await store.start()
    async with Gate(store):
        tasks = [asyncio.ensure_future(store.open_call(a_call(), an_attempt())) for _ in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert store._writer._room.taken == 4
        late = a_call()
        store.log_refusal(late, refusal(late))  # never waits, never lost
        tasks[7].cancel()
        tasks[12].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(answer, Held) for answer in answers) == 18
    assert (await store.call(late.request_id)).state == "refused"
    await store.close()


async def test_a_locked_file_is_an_outage_that_ends_by_itself(tmp_path, clock):
    store = SqliteStore(tmp_path / "nemo.db", clock=clock, busy_timeout_s=0.05)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    stranger = sqlite3.connect(store.path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    store.close_call(call_end(call), attempt_end(attempt, amount=60))
    refused = a_call()
    store.log_refusal(refused, refusal(refused))
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.open_call(a_call(), an_attempt(1, role_scope()))
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.calls(LogFilter(), before=None, limit=9)  # what is queued is not yet to be seen
    stranger.execute("ROLLBACK")
    stranger.close()
    assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (60, 1)
    assert (await store.call(refused.request_id)).state == "refused"
    assert await store.verify_ledger() == []
    await store.close()


async def test_a_full_disk_is_an_outage_that_ends_by_itself(tmp_path, clock):
    """No file of this process may grow any more.

    SQLite hears the same error from the system as on a full disk.
    """
    store = SqliteStore(tmp_path / "nemo.db", clock=clock)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        store.close_call(call_end(call), attempt_end(attempt, amount=60))
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.open_call(a_call(), an_attempt(1, role_scope()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (60, 1)
    assert await store.verify_ledger() == []
    await store.close()


async def test_what_cannot_be_written_at_the_end_is_said(tmp_path, clock, logged):
    store = SqliteStore(tmp_path / "nemo.db", clock=clock, busy_timeout_s=0.01)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    stranger = sqlite3.connect(store.path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    store.close_call(call_end(call), attempt_end(attempt, amount=60))
    await store.close()
    stranger.close()
    assert [line["records"] for line in logged if "could not be written" in line["event"]] == [1]


async def flow(path: str) -> None:
    """In the child.

    Calls as fast as they go; each acknowledged hold and each sent settlement on its own line.
    """
    store = (PostgresStore if path.startswith("postgresql:") else SqliteStore)(path, clock=Clock())
    await store.start()
    scope, dice = role_scope(10**12), random.Random(os.getpid())

    async def worker(number: int) -> None:
        while True:
            call, attempt = (
                a_call(run_id=f"run-{number % 4}" if number % 2 else None, step="s"),
                an_attempt(dice.randint(1, 999), scope),
            )
            name = f"{os.getpid()}-{call.request_id}"
            call = a_call(name, run_id=call.run_id if call.grouped else None, step="s", prompt=(b'"hi"',))
            attempt = an_attempt(attempt.hold_nanos, scope, hold_id=f"{os.getpid()}-{attempt.hold_id}")
            assert isinstance(await store.open_call(call, attempt), Held)
            os.write(1, (json.dumps([name, attempt.hold_id, attempt.hold_nanos]) + "\n").encode())
            if dice.random() < 0.8:
                store.close_call(call_end(call), attempt_end(attempt, amount=attempt.hold_nanos // 2))

    await asyncio.gather(*(worker(number) for number in range(16)))


def start_flow(path: str) -> subprocess.Popen[bytes]:
    code = (
        f"import sys, asyncio; sys.path.insert(0, {str(HERE)!r}); import test_store_outage as t;"
        "asyncio.run(t.flow(sys.argv[1]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)


def kill_in_full_flow(children: list[subprocess.Popen[bytes]], wanted: int) -> dict[str, tuple[str, int]]:
    """Kill them once each has acknowledged so many holds; return what they acknowledged until then."""
    lines: list[bytes] = []
    for child in children:
        for _ in range(wanted):
            line = child.stdout.readline()
            assert line, "the child died by itself"
            lines.append(line)
    for child in children:
        child.send_signal(signal.SIGKILL)
    for child in children:
        lines += child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
    told = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {request_id: (hold_id, amount) for request_id, hold_id, amount in told}


async def check_books(store: SqlStore, acknowledged: dict[str, tuple[str, int]], *, at_us: int) -> None:
    """What was acknowledged is in the books and resolved, and they balance."""
    await store.start()
    await store.sweep(at_us)
    assert await store.verify_ledger() == []
    (balance,) = await store.balances([role_scope()])
    assert balance.held_nanos == 0
    kept = dict(await rows(store, "SELECT hold_id, amount_nanos FROM entries WHERE kind='hold'"))
    settled = dict(await rows(store, "SELECT hold_id, amount_nanos FROM entries WHERE slot=1"))
    for hold_id, amount in acknowledged.values():
        assert kept[hold_id] == amount
        assert settled[hold_id] in (amount, amount // 2)
    assert kept.keys() == settled.keys()
    assert balance.posted_nanos == sum(settled.values())
    await store.close()


def test_kill_nine_loses_no_acknowledged_hold(tmp_path):
    """Ten times in full flow.

    What was acknowledged is in the file, open holds close at the hold, the books balance.
    """
    path = tmp_path / "nemo.db"
    dice = random.Random(1)
    acknowledged: dict[str, tuple[str, int]] = {}
    for _ in range(10):
        acknowledged |= kill_in_full_flow([start_flow(str(path))], dice.randint(20, 300))
        asyncio.run(check_books(SqliteStore(path, clock=Clock()), acknowledged, at_us=T0))
    assert len(acknowledged) >= 200


def test_kill_nine_of_all_gateways_loses_no_acknowledged_hold(database):
    """Their transactions in flight are the server's to end; open holds expire in their time, whoever took them."""
    dice = random.Random(1)
    acknowledged: dict[str, tuple[str, int]] = {}
    for _ in range(3):
        acknowledged |= kill_in_full_flow([start_flow(database) for _ in range(3)], dice.randint(20, 150))
        clock = Clock()
        clock.now_us += HOUR_US
        asyncio.run(check_books(PostgresStore(database, clock=clock), acknowledged, at_us=clock.now_us))
    assert len(acknowledged) >= 200
