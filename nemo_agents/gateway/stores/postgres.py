"""The store of many gateways: one PostgreSQL database, the authority for money and the request log.

Each gateway has one connection that writes, four that read, and one each for audits and for changes that exclude those
of others. What makes it exact with many of them is in `stores.postgres_books`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg
import structlog

from nemo_agents.admin import wire
from nemo_agents.errors import SettingsError
from nemo_agents.gateway.stores import postgres_migrate, reader_ledger, reader_prune, writer_reports
from nemo_agents.gateway.stores.base import Change, Store, StoreUnavailable
from nemo_agents.gateway.stores.database import Database, Touches
from nemo_agents.gateway.stores.postgres_books import PostgresBooks, lock_number
from nemo_agents.gateway.stores.postgres_connection import POSTGRES, Address, PostgresDatabase
from nemo_agents.gateway.stores.reader import Readers
from nemo_agents.gateway.stores.sql import CHANGES, LOST_AFTER_US, SqlStore
from nemo_agents.gateway.stores.writer import Writer
from nemo_agents.secret import Secret

__all__ = ["PostgresStore"]

_TURN_S: Final = 10.0
"""How long a change by another gateway is waited for, and how long one may take before others go on."""
_READ_S: Final = 30.0
"""How long one who reads may be silent within a transaction: nobody waits for it, and contents take time to unpack."""
_AUDIT_S: Final = 1800.0
"""How long an audit of a large ledger may take."""
_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_log = structlog.get_logger("nemo_agents.gateway")


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


class PostgresStore(SqlStore):
    """The `Store` protocol over a PostgreSQL database (see `stores.base` for what each method promises).

    `conninfo` is a `postgresql://` address or libpq's `key=value` text; `password` may come beside it. `clock`
    returns the time in microseconds since the epoch. `waiting_max` is how many operations may wait for the database
    before `open_call` makes its callers queue. Raises SettingsError for an address that makes no sense.
    """

    shared: bool = True

    def __init__(
        self,
        conninfo: str,
        *,
        password: Secret | None = None,
        clock: Callable[[], int] = _wall_clock_us,
        waiting_max: int = 10_000,
    ) -> None:
        try:
            self._address = Address(conninfo, password)
        except psycopg.Error:  # its text may repeat the address, with the password in it
            raise SettingsError(
                "The address of the database is not one that PostgreSQL understands: "
                "write postgresql://user@host:port/database."
            ) from None
        writer = Writer(self._open_books, POSTGRES, waiting_max=waiting_max)
        readers = Readers(lambda: PostgresDatabase(self._address.connect(idle_s=_READ_S)), POSTGRES, begin=_READ)
        super().__init__(writer, readers, clock)
        self._turn = _Turn(self._address)
        self._auditor = Readers(
            lambda: PostgresDatabase(self._address.connect(idle_s=_READ_S, statement_s=_AUDIT_S)),
            POSTGRES,
            begin=_READ,
            threads=1,
        )

    def _open_books(self) -> PostgresBooks:
        db = PostgresDatabase(self._address.connect(by_index=True))
        try:
            db.learn()
        except BaseException:
            db.close()
            raise
        return PostgresBooks(db, clock=self._clock)

    # --- life -----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Bring the schema up to date, one gateway at a time.

        Open holds are left alone: they may be those of another gateway, and expire in their time. Raises
        SettingsError in one line when the database cannot be used as it is.
        """
        await asyncio.to_thread(postgres_migrate.bring_up_to_date, self._address)
        self._writer.start()
        try:
            await self.flush()
        except StoreUnavailable as error:
            await self.close()
            raise SettingsError(f"{self._address.label} cannot be used as the gateway's database: {error}.") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Write what is queued, then let go of the database."""
        await self._writer.close()
        await self._readers.close()
        await self._auditor.close()
        await self._turn.close()

    # --- one operation for each shard -----------------------------------------------------------------------
    async def sweep(self, now_us: int) -> int:
        """Expire open holds past their time, whoever took them; return how many. Silent runs are marked as lost.

        A fleet that cannot be swept keeps no other from it; what was wrong with the first such is raised in the end.
        """
        expired, faults = 0, list[Exception]()
        for fleet in await self._read(partial(_fleets_with_due_holds, now_us=now_us)):
            try:
                expired += await self._expire(due_us=now_us, fleet=fleet)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other fleets are swept as well
                faults.append(_of_fleet(error, fleet))
        before_us = now_us - LOST_AFTER_US
        for fleet in await self._read(partial(_fleets_with_silent_runs, before_us=before_us)):
            give_up = partial(writer_reports.give_up_silent_runs, before_us=before_us, fleet=fleet)
            try:
                await self._writer.do(give_up, Touches(fleet=fleet))
            except Exception as error:  # noqa: BLE001 - likewise
                faults.append(_of_fleet(error, fleet))
        if faults:
            raise faults[0]
        return expired

    async def stop_run(self, fleet: str | None, run_id: str, now_us: int) -> bool:
        """Refuse every further call of a run, through any gateway; say whether there is such a run."""
        fleets = [fleet] if fleet is not None else await self._read(partial(_fleets_with_run, run_id=run_id))
        found = False
        for each in fleets:
            stop = partial(writer_reports.stop_run, fleet=each, run_id=run_id, now_us=now_us)
            touches = Touches(fleet=each, run_id=run_id, topics=(CHANGES,))
            found = await self._writer.do(stop, touches) or found
        return found

    async def vacuum(self) -> AsyncIterator[int]:
        """Do nothing: PostgreSQL clears up by itself (autovacuum), and uses the room again."""
        pieces: tuple[int, ...] = ()
        for freed in pieces:
            yield freed

    async def log_size(self) -> wire.LogSize:
        """Return how large the database is."""
        return await self._read(_read_size)

    async def verify_ledger(self) -> Sequence[str]:
        """Recompute every balance from the entries; return one sentence per thing that does not add up."""
        await self._writer.do(None)
        return await self._auditor.read(partial(reader_ledger.audit, now_us=self._clock()))

    # --- many replicas --------------------------------------------------------------------------------------
    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Let one gateway at a time change keys, fleets or deployments. Raises StoreUnavailable.

        A gateway that takes more than ten seconds for its change loses its turn.
        """
        async with self._turn:
            yield

    async def changes(self, after: int | None) -> tuple[int, Sequence[Change]]:
        """Return the changes by anybody since a position, in order, and the position after them."""
        return await self._readers.read(partial(_read_changes, after=after))

    async def now_us(self) -> int | None:
        """Return the time of the database's clock."""
        return await self._readers.read(_read_clock)


class _Turn:
    """A lock that one gateway has at a time, on a connection of its own.

    It is held by a transaction, so that the server takes it away from a gateway that is gone or stands still.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._here = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nemo-store-turn")
        self._connection: psycopg.Connection | None = None

    async def __aenter__(self) -> None:
        await self._here.acquire()
        try:
            await self._run(self._take)
        except BaseException as error:
            # Cancelled, the thread may still get the lock; it does one thing at a time, and gives it back right after.
            self._thread.submit(self._give_back)
            self._here.release()
            if isinstance(error, psycopg.Error):
                raise StoreUnavailable(f"the store cannot be locked now: {self._address.hide(str(error))}") from error
            if isinstance(error, RuntimeError) and "shutdown" in str(error):
                raise StoreUnavailable("the store is closed") from error
            raise

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._run(self._give_back)
        finally:
            self._here.release()

    async def close(self) -> None:
        """Give the connection back."""
        with suppress(RuntimeError):  # it is closed already
            await self._run(self._drop)
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self, what: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, what)

    def _take(self) -> None:
        kept, self._connection = self._connection, None
        if kept is not None:
            try:
                self._lock(kept)
            except psycopg.Error as error:
                if not POSTGRES.may_retry(error):  # the connection of the last change may have grown stale
                    raise
        if self._connection is None:
            self._lock(self._address.connect(idle_s=_TURN_S, lock_s=_TURN_S, statement_s=_TURN_S + 1))

    def _lock(self, connection: psycopg.Connection) -> None:
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [lock_number("*exclusive")])
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _give_back(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute("ROLLBACK")
        except psycopg.Error as error:
            _log.warning("a change lost its turn", error=self._address.hide(str(error)), after_s=_TURN_S)
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _of_fleet(error: Exception, fleet: str) -> Exception:
    error.add_note(f"while the fleet {fleet!r} was swept")
    return error


def _fleets_with_due_holds(db: Database, now_us: int) -> list[str]:
    rows = db.execute(
        "SELECT DISTINCT r.fleet FROM attempts a JOIN runs r ON r.run = a.run"
        " WHERE a.settled IS NULL AND a.expires_us <= :now ORDER BY r.fleet",
        {"now": now_us},
    )
    return [fleet for (fleet,) in rows]


def _fleets_with_silent_runs(db: Database, before_us: int) -> list[str]:
    rows = db.execute(
        f"SELECT DISTINCT fleet FROM runs WHERE {writer_reports.SILENT} ORDER BY fleet",  # noqa: S608 - our own text
        {"before": before_us},
    )
    return [fleet for (fleet,) in rows]


def _fleets_with_run(db: Database, run_id: str) -> list[str]:
    return [fleet for (fleet,) in db.execute("SELECT fleet FROM runs WHERE run_id = ? ORDER BY fleet", (run_id,))]


def _read_changes(db: Database, after: int | None) -> tuple[int, list[Change]]:
    if after is None:
        return int(db.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()[0]), []
    rows = db.execute("SELECT seq, kind, id FROM changes WHERE seq > ? ORDER BY seq", (after,)).fetchall()
    return (rows[-1][0] if rows else after), [Change(kind=kind, id=name) for _, kind, name in rows]


def _read_size(db: Database) -> wire.LogSize:
    (size,) = db.execute("SELECT pg_database_size(current_database())").fetchone()
    pruned = reader_prune.read_pruned_before(db)
    return wire.LogSize(bytes=size, free_bytes=0, shrinks=False, pruned_before_us=pruned)


def _read_clock(db: Database) -> int:
    row = db.execute("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)").fetchone()
    return int(row[0])


if TYPE_CHECKING:
    _fits: type[Store] = PostgresStore
