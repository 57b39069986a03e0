"""The store of a gateway on one machine: one SQLite file, one writer thread, a few reader threads."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nemo_agents.admin import wire
from nemo_agents.gateway.stores import migrate, reader_prune, writer_reports
from nemo_agents.gateway.stores.base import Change, Store, StoreUnavailable
from nemo_agents.gateway.stores.database import Database, Touches
from nemo_agents.gateway.stores.pruning import paced
from nemo_agents.gateway.stores.reader import Readers
from nemo_agents.gateway.stores.sql import LOST_AFTER_US, SqlStore
from nemo_agents.gateway.stores.sqlite_file import (
    SQLITE,
    FileLock,
    check_writable,
    connect_reader,
    connect_writer,
    prepare,
)
from nemo_agents.gateway.stores.writer import Writer
from nemo_agents.gateway.stores.writer_books import Books

__all__ = ["SqliteStore"]

_VACUUM_PAGES = 32  # a short wait for calls: each page has others that name it
_INCREMENTAL = 2  # sqlite.org/pragma.html#pragma_auto_vacuum


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


class SqliteStore(SqlStore):
    """The `Store` protocol over one file (see `stores.base` for what each method promises).

    `durability` says what a committed hold survives: `process` a crash of the gateway, `power` also a power
    cut. `clock` returns the time in microseconds since the epoch. `waiting_max` is how many operations may
    wait for the disk before `open_call` makes its callers queue. `busy_timeout_s` is how long a lock by a
    stranger is waited for.
    """

    shared: bool = False

    def __init__(
        self,
        path: Path | str,
        *,
        durability: Literal["process", "power"] = "process",
        clock: Callable[[], int] = _wall_clock_us,
        waiting_max: int = 10_000,
        busy_timeout_s: float = 2.0,
    ) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path)
        self._changing = asyncio.Lock()
        open_file = partial(connect_writer, self.path, durability=durability, busy_timeout_s=busy_timeout_s)
        writer = Writer(lambda: Books(open_file(), clock=clock), SQLITE, waiting_max=waiting_max)
        super().__init__(writer, Readers(partial(connect_reader, self.path), SQLITE), clock)

    # --- life -----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the file, bring its schema up to date, and close the holds that a process before left open.

        Nobody else owns them: the lock is ours. They are posted at the hold, since nobody knows what they
        cost. Raises SettingsError in one line when the file cannot be used, and leaves it as it is.
        """
        prepare(self.path)
        self._lock.acquire()
        try:
            migrate.bring_up_to_date(self.path)
            check_writable(self.path)
            self._writer.start()
            await self._expire(due_us=None)
        except BaseException:
            await self._let_go()
            raise

    async def close(self) -> None:
        """Write what is queued, then let go of the file and its lock."""
        await self._let_go()

    # --- what replicas would share ---------------------------------------------------------------------------
    async def sweep(self, now_us: int) -> int:
        """Expire open holds past their time; return how many. Runs that fell silent are marked as lost."""
        expired = await self._expire(due_us=now_us)
        await self._writer.do(partial(writer_reports.give_up_silent_runs, before_us=now_us - LOST_AFTER_US))
        return expired

    async def stop_run(self, fleet: str | None, run_id: str, now_us: int) -> bool:
        """Refuse every further call of a run; say whether there is such a run."""
        return await self._writer.do(partial(writer_reports.stop_run, fleet=fleet, run_id=run_id, now_us=now_us))

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Let one change at a time be made: there is no other gateway."""
        async with self._changing:
            yield

    async def changes(self, after: int | None) -> tuple[int, Sequence[Change]]:  # noqa: ARG002 - nobody else changes anything
        """Return no changes: nobody shares this store."""
        return 0, ()

    async def now_us(self) -> int | None:
        """Return None: the gateway's own clock is the only one."""
        return None

    # --- retention ------------------------------------------------------------------------------------------
    async def vacuum(self) -> AsyncIterator[int]:
        """Move pages into free ones and cut the end of the file off, piece by piece; yield how many bytes each was.

        A file that an older version made has no map of its pages, which that takes: nothing is done to it.
        """
        while freed := await paced(self._writer, _vacuum_piece, Touches()):
            yield freed
        await asyncio.to_thread(self._checkpoint)

    async def log_size(self) -> wire.LogSize:
        """Return how large the file is, with what is not copied into it yet."""
        return await self._read(_read_size)

    def _checkpoint(self) -> None:
        """Copy what was written into the file, which gets its new size by that. Nobody waits for it."""
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the file cannot be made smaller now: {error}") from error

    async def _let_go(self) -> None:
        await self._writer.close()
        await self._readers.close()
        self._lock.release()


def _vacuum_piece(books: Books) -> int:
    (pages_before,) = books.db.execute("PRAGMA page_count").fetchone()
    books.db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
    (pages,) = books.db.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = books.db.execute("PRAGMA page_size").fetchone()
    return int(pages_before - pages) * int(page_bytes)


def _read_size(db: Database) -> wire.LogSize:
    names = ("page_count", "freelist_count", "page_size", "auto_vacuum")
    pages, free, page_bytes, mode = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return wire.LogSize(
        bytes=pages * page_bytes,
        free_bytes=free * page_bytes,
        shrinks=mode == _INCREMENTAL,
        pruned_before_us=reader_prune.read_pruned_before(db),
    )


if TYPE_CHECKING:
    _fits: type[Store] = SqliteStore
