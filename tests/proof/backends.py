"""The stores that the proofs are about, each with a way to open it, to crash it and to open it again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger_model import MemoryBooks, MemoryStore

from nemo_agents.gateway.stores import migrate, schema
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.gateway.stores.sqlite import SqliteStore

EMPTIED_AFTER = 8  # runs: a truncation takes about as long as an audit of so many
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How the machine gets its stores.

    `open` gives the clients' stores of a new, empty database, all started; `crash` ends them without a word and opens
    others on what is on disk at this moment; `close` is the orderly end. `in_order` says that what one event loop asks
    is done in the order of asking, whichever client is asked, so that answers are known before they come. `alone` says
    that a start charges whatever is open, since nobody else can own it. `crashes_in`: one run in so many crashes.
    """

    name: str
    open: Callable[[Any], Any]
    crash: Callable[[Any], Any]
    close: Callable[[Any], Any]
    in_order: bool = True
    alone: bool = True
    crashes_in: int = 1


def memory_folder() -> str | None:
    """Where files need no disk, if there is such a place: what is proved here is not about power cuts."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_template: list[Path] = []


def empty_database() -> Path:
    """An empty, migrated file to copy: migrating one for every run would take most of the time."""
    if not _template:
        path = Path(tempfile.mkdtemp(dir=memory_folder())) / "empty.db"
        migrate.bring_up_to_date(path)
        _template.append(path)
    return _template[0]


def copy_as_it_is(before: Path, after: Path) -> None:
    """Copy a database that is in use, as another process would find it were this one killed now."""
    for suffix in ("", "-wal"):
        if Path(f"{before}{suffix}").exists():
            shutil.copy(f"{before}{suffix}", f"{after}{suffix}")


@dataclass
class Opened:
    """The stores of two clients (perhaps one and the same), and what a crash needs."""

    stores: list[Any]
    clock: Callable[[], int]
    folder: Path | None = None
    books: MemoryBooks | None = None


# --- SQLite: one process, one store, two clients of it ----------------------------------------------------------------
def _sqlite(make: Callable[..., Any]) -> Backend:
    def at(folder: Path, clock: Callable[[], int]) -> tuple[Path, Any]:
        path = folder / f"{next(_numbers)}.db"
        return path, make(path, durability="process", clock=clock)

    async def open_new(clock: Callable[[], int]) -> Opened:
        folder = Path(tempfile.mkdtemp(dir=memory_folder()))
        path, store = at(folder, clock)
        shutil.copy(empty_database(), path)
        await store.start()
        return Opened(stores=[store, store], clock=clock, folder=folder)

    async def crash(opened: Opened) -> None:
        """Open a copy of the file as it is now, which is what another process would find after a kill."""
        assert opened.folder is not None
        before = opened.stores[0]
        path, store = at(opened.folder, opened.clock)
        copy_as_it_is(before.path, path)
        await before.close()
        await store.start()
        opened.stores = [store, store]

    async def close(opened: Opened) -> None:
        await opened.stores[0].close()
        shutil.rmtree(opened.folder)

    return Backend(name="sqlite", open=open_new, crash=crash, close=close)


SQLITE = _sqlite(SqliteStore)


# --- memory: the model itself behind the protocol, to plant bugs in ---------------------------------------------------
def memory(make: Callable[..., Any] = MemoryStore, books: Callable[[], MemoryBooks] = MemoryBooks) -> Backend:
    async def open_new(clock: Callable[[], int]) -> Opened:
        kept = books()
        store = make(kept, clock=clock)
        await store.start()
        return Opened(stores=[store, store], clock=clock, books=kept)

    async def crash(opened: Opened) -> None:
        opened.stores[0].die()
        store = make(opened.books, clock=opened.clock)
        await store.start()
        opened.stores = [store, store]

    async def close(opened: Opened) -> None:
        await opened.stores[0].close()

    return Backend(name="memory", open=open_new, crash=crash, close=close)


def sqlite_with(make: Callable[..., Any]) -> Backend:
    """SQLite with something before it."""
    return _sqlite(make)


# --- PostgreSQL: two gateways' stores on one database -----------------------------------------------------------------
class PostgresBackend:
    """Two stores that stay open from run to run, since every run has names of its own; close them with `stop`.

    `make` may put something before each. Every run ends with an audit of the whole ledger: what the runs before it
    have left is thrown away now and then.
    """

    def __init__(self, url: str, make: Callable[[Any], Any] = lambda store: store) -> None:
        self.url = url
        self.make = make
        self.runs = 0
        self.clock: Callable[[], int] = lambda: 0
        self.stores: list[Any] = []
        self.backend = Backend(
            name="postgres",
            open=self.open,
            crash=self.crash,
            close=self.close,
            in_order=False,
            alone=False,
            crashes_in=4,  # all connections have to be made anew, which takes half as long as a run without it
        )

    def now_us(self) -> int:
        """The time of the run that is on."""
        return self.clock()

    async def open(self, clock: Callable[[], int]) -> Opened:
        from nemo_agents.gateway.stores.postgres import PostgresStore

        self.clock = clock
        while len(self.stores) < 2:
            store = PostgresStore(self.url, clock=self.now_us)
            await store.start()
            self.stores.append(self.make(store))
        if self.runs % EMPTIED_AFTER == 0:
            await asyncio.to_thread(self._empty)
        self.runs += 1
        return Opened(stores=list(self.stores), clock=clock)

    async def crash(self, _opened: Opened) -> None:
        """End every connection from the server's side, in the middle of whatever it does.

        What was queued is kept in memory and written to the next connection; a killed process is what the tests of
        the replicas are about.
        """
        await asyncio.to_thread(self._end_connections)
        for store in self.stores:
            for _ in range(100):
                with contextlib.suppress(StoreUnavailable):
                    await store.flush()
                    break
            else:
                raise AssertionError("the store does not come back")

    def _empty(self) -> None:
        import psycopg

        tables = [table.name for table in schema.metadata.sorted_tables]
        with psycopg.connect(self.url, autocommit=True) as admin:
            admin.execute("SET session_replication_role = replica")  # the ledger lets nobody else take anything away
            admin.execute(f"TRUNCATE {', '.join(tables)}")

    def _end_connections(self) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async def close(self, opened: Opened) -> None:
        """They stay for the next run."""

    async def stop(self) -> None:
        for store in self.stores:
            await store.close()
