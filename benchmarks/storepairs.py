"""Holds and posts per second: our stores, and beside each the least that anything with its promise must do.

A pair is a hold before a call and its posting after it, for one role and its fleet: what money costs a request.
All pairs go against the same two budgets, so that they wait for each other as the calls of one busy role do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from machine import BenchmarkError

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart, Store
from nemo_agents.policy.ledger import BudgetScope, Held, Settlement

LIMIT_NANOS = 10**17
HOLD_NANOS, COST_NANOS = 1_000_000, 400_000
REPLICAS = 3

Pair = Callable[[int], Awaitable[None]]
"""Hold and post once; its number names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What one contender did in one window: pairs in all, seconds, and how long callers waited for their hold."""

    name: str
    callers: int
    pairs: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def per_s(self) -> float:
        """Pairs in a second."""
        return self.pairs / self.seconds


async def drive(
    name: str, *, callers: int, seconds: float, hold: Pair, post: Pair, finish: Callable[[], Awaitable[None]]
) -> Pairs:
    """Let callers hold and post for some seconds; what is queued at the end is written within the time that counts."""
    numbers, waits = itertools.count(), []
    begun = time.perf_counter()

    async def caller() -> None:
        while time.perf_counter() - begun < seconds:
            number = next(numbers)
            asked = time.perf_counter_ns()
            await hold(number)
            waits.append((time.perf_counter_ns() - asked) / 1000)
            await post(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    await finish()
    took = time.perf_counter() - begun
    cuts = quantiles(waits, n=100) if len(waits) > 1 else [waits[0]] * 99
    return Pairs(name=name, callers=callers, pairs=len(waits), seconds=took, p50_us=cuts[49], p99_us=cuts[98])


# --- our stores -----------------------------------------------------------------------------------------------------
def _scopes() -> tuple[BudgetScope, ...]:
    return tuple(
        BudgetScope(kind=kind, id="bench", period="total", limit_nanos=LIMIT_NANOS) for kind in ("role", "fleet")
    )


async def drive_store(name: str, store: Store, *, callers: int, seconds: float, tag: str = "") -> Pairs:
    """Measure a store that has been started: the whole of it, with the intent row and the log's record."""
    scopes, held = _scopes(), dict[int, tuple[CallStart, AttemptStart]]()

    async def hold(number: int) -> None:
        now_us = time.time_ns() // 1000
        call = CallStart(
            request_id=f"req_{tag}{number}",
            started_us=now_us,
            fleet="bench",
            role="bench",
            key_alias="bench",
            key_id="bench00000",
            grant_id="bench",
            run_id=f"req_{tag}{number}",
            grouped=False,
            endpoint="/v1/chat/completions",
            model_asked="mock/gpt-bench",
        )
        attempt = AttemptStart(
            hold_id=f"hold-{tag}{number}",
            n=1,
            model="gpt-bench",
            provider="mock",
            reason="first",
            started_us=now_us,
            hold_nanos=HOLD_NANOS,
            scopes=scopes,
            price_version="bench",
            expires_us=now_us + 3_600_000_000,
        )
        answer = await store.open_call(call, attempt)
        if not isinstance(answer, Held):
            raise BenchmarkError(f"{name} refused a hold: {answer!r}")
        held[number] = call, attempt

    async def post(number: int) -> None:
        call, attempt = held.pop(number)
        now_us = time.time_ns() // 1000
        store.close_call(
            CallEnd(
                request_id=call.request_id,
                ended_us=now_us,
                state="ok",
                status=200,
                model_served="gpt-bench",
                provider="mock",
                input_tokens=180,
                output_tokens=150,
                cached_tokens=0,
                cost_nanos=COST_NANOS,
                usage_source="provider",
                finish_reason="stop",
            ),
            AttemptEnd(
                hold_id=attempt.hold_id,
                n=1,
                ended_us=now_us,
                status=200,
                error=None,
                settlement=Settlement(kind="post", amount_nanos=COST_NANOS),
                usage_source="provider",
            ),
        )

    return await drive(name, callers=callers, seconds=seconds, hold=hold, post=post, finish=store.flush)


async def sqlite_store(name: str, folder: Path, durability: Any, *, callers: int, seconds: float) -> Pairs:
    """Measure our SQLite store on a fresh file."""
    from nemo_agents.gateway.stores.sqlite import SqliteStore  # noqa: PLC0415 - beside its contenders

    store = SqliteStore(folder / "gateway.db", durability=durability, clock=lambda: time.time_ns() // 1000)
    await store.start()
    try:
        return await drive_store(name, store, callers=callers, seconds=seconds)
    finally:
        await store.close()


async def postgres_store(name: str, database: str, *, callers: int, seconds: float, tag: str = "") -> Pairs:
    """Measure our PostgreSQL store from one process."""
    from nemo_agents.gateway.stores.postgres import PostgresStore  # noqa: PLC0415 - an optional driver

    store = PostgresStore(database, clock=lambda: time.time_ns() // 1000)
    await store.start()
    try:
        return await drive_store(name, store, callers=callers, seconds=seconds, tag=tag)
    finally:
        await store.close()


def postgres_replicas(name: str, database: str, *, callers: int, seconds: float) -> Pairs:
    """Measure it from several processes at once, the callers divided among them."""
    each = max(1, callers // REPLICAS)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, database, str(each), str(seconds), f"r{number}-"],
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for number in range(REPLICAS)
    ]
    done = []
    for process in processes:
        out, _ = process.communicate(timeout=seconds * 4 + 60)
        if process.returncode:
            raise BenchmarkError(f"{name}: a process ended with {process.returncode}")
        done.append(Pairs(**json.loads(out)))
    return Pairs(
        name=name,
        callers=each * REPLICAS,
        pairs=sum(part.pairs for part in done),
        seconds=max(part.seconds for part in done),
        p50_us=max(part.p50_us for part in done),
        p99_us=max(part.p99_us for part in done),
    )


# --- what each must be held against ---------------------------------------------------------------------------------
async def counter_in_memory(name: str, *, callers: int, seconds: float) -> Pairs:
    """A guarded counter in memory: forgets everything with its process, and is one process's alone."""
    balances = {"role": [0, 0], "fleet": [0, 0]}

    async def hold(_: int) -> None:
        if any(posted + held + HOLD_NANOS > LIMIT_NANOS for posted, held in balances.values()):
            raise BenchmarkError("the budget is spent")
        for balance in balances.values():
            balance[1] += HOLD_NANOS
        await asyncio.sleep(0)

    async def post(_: int) -> None:
        for balance in balances.values():
            balance[1] -= HOLD_NANOS
            balance[0] += COST_NANOS

    return await drive(name, callers=callers, seconds=seconds, hold=hold, post=post, finish=_nothing)


_TABLE = "CREATE TABLE floor (id INTEGER PRIMARY KEY, posted BIGINT NOT NULL, held BIGINT NOT NULL)"
_GUARDED = "UPDATE floor SET held = held + {0} WHERE id IN (1, 2) AND posted + held + {0} <= {1}"
_POST = "UPDATE floor SET held = held - {0}, posted = posted + {1} WHERE id IN (1, 2)"


@contextlib.contextmanager
def _floor_file(path: Path, synchronous: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute(_TABLE)
        db.execute("INSERT INTO floor VALUES (1, 0, 0), (2, 0, 0)")
        yield db


async def sqlite_floor(name: str, folder: Path, synchronous: str, *, callers: int, seconds: float) -> Pairs:
    """Two guarded UPDATEs on a SQLite file, a transaction each, in the event loop: no log, no entries, no grouping."""
    hold_sql, post_sql = _GUARDED.format("?1", "?2"), _POST.format("?1", "?2")
    with _floor_file(folder / "floor.db", synchronous) as db:

        async def hold(_: int) -> None:
            if db.execute(hold_sql, (HOLD_NANOS, LIMIT_NANOS)).rowcount != 2:
                raise BenchmarkError("the budget is spent")
            await asyncio.sleep(0)

        async def post(_: int) -> None:
            db.execute(post_sql, (HOLD_NANOS, COST_NANOS))

        return await drive(name, callers=callers, seconds=seconds, hold=hold, post=post, finish=_nothing)


async def sqlite_check_then_charge(name: str, folder: Path, *, callers: int, seconds: float) -> Pairs:
    """What most gateways do, on the same file: read the balance before the call, add the cost after it. Not safe."""
    with _floor_file(folder / "floor.db", "NORMAL") as db:

        async def hold(_: int) -> None:
            for (posted,) in db.execute("SELECT posted FROM floor WHERE id IN (1, 2)").fetchall():
                if posted > LIMIT_NANOS:
                    raise BenchmarkError("the budget is spent")
            await asyncio.sleep(0)

        async def post(_: int) -> None:
            db.execute(_POST.format("?1", "?2"), (0, COST_NANOS))

        return await drive(name, callers=callers, seconds=seconds, hold=hold, post=post, finish=_nothing)


async def postgres_floor(name: str, database: str, *, callers: int, seconds: float) -> Pairs:
    """Two guarded UPDATEs in PostgreSQL, a transaction each, on as many connections as there are callers, up to 16."""
    import psycopg  # noqa: PLC0415 - an optional driver

    # Both rows are locked in one order: two callers that took them crosswise would wait for each other for ever.
    locked = "WITH rows AS (SELECT id FROM floor WHERE id IN (1, 2) ORDER BY id FOR UPDATE) "
    hold_sql, post_sql = (
        locked + sql.format("%s", "%s").replace("id IN (1, 2)", "id IN (SELECT id FROM rows)")
        for sql in (_GUARDED, _POST)
    )
    size = min(callers, 16)
    connections = [await psycopg.AsyncConnection.connect(database, autocommit=True) for _ in range(size)]
    free: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    try:
        await connections[0].execute("DROP TABLE IF EXISTS floor")
        await connections[0].execute(_TABLE)
        await connections[0].execute("INSERT INTO floor VALUES (1, 0, 0), (2, 0, 0)")

        async def run(sql: str, *values: int) -> None:
            connection = await free.get()
            try:
                if (await connection.execute(sql, values)).rowcount != 2:
                    raise BenchmarkError("the budget is spent")
            finally:
                free.put_nowait(connection)

        async def hold(_: int) -> None:
            await run(hold_sql, HOLD_NANOS, HOLD_NANOS, LIMIT_NANOS)

        async def post(_: int) -> None:
            await run(post_sql, HOLD_NANOS, COST_NANOS)

        return await drive(name, callers=callers, seconds=seconds, hold=hold, post=post, finish=_nothing)
    finally:
        for connection in connections:
            await connection.close()


async def _nothing() -> None:
    return None


if __name__ == "__main__":
    _, of_database, of_callers, of_seconds, of_tag = sys.argv
    measured = asyncio.run(
        postgres_store("part", of_database, callers=int(of_callers), seconds=float(of_seconds), tag=of_tag)
    )
    print(json.dumps(asdict(measured)))
