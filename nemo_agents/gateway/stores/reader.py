"""Read connections: a few threads, each with a connection of its own that cannot write.

Every read is one transaction, so that a run and its calls are seen as of one moment. Lists are paged by
keyset: the cursor is the position of the last row, so a page costs the same wherever it is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.gateway.stores.database import Database, Dialect

__all__ = ["Readers", "cursor_of", "marks", "parse_cursor"]

_T = TypeVar("_T")


class Readers:
    """A small pool of threads that read."""

    def __init__(
        self, connect: Callable[[], Database], dialect: Dialect, *, begin: str = "BEGIN", threads: int = 4
    ) -> None:
        self._connect = connect
        self._dialect = dialect
        self._begin = begin
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="nemo-store-reader")
        self._local = threading.local()
        self._open: list[Database] = []
        self._lock = threading.Lock()

    async def read(self, query: Callable[[Database], _T]) -> _T:
        """Run a query in a read transaction on one of the threads. Raises StoreUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, query)
        except RuntimeError as error:  # the executor was shut down
            if "shutdown" in str(error):
                raise StoreUnavailable("the store is closed") from error
            raise
        except Exception as error:
            if self._dialect.is_outage(error):
                raise StoreUnavailable(f"the store cannot be read now: {' '.join(str(error).split())}") from error
            raise

    async def close(self) -> None:
        """Finish what is being read, and close the connections."""
        await asyncio.to_thread(self._executor.shutdown)
        with self._lock:
            for db in self._open:
                db.close()
            self._open.clear()

    def _run(self, query: Callable[[Database], _T]) -> _T:
        known: Database | None = getattr(self._local, "db", None)
        if known is not None:
            try:
                return self._ask(known, query)
            except self._dialect.errors as error:  # it may have grown stale while nobody asked
                if not self._dialect.may_retry(error):
                    raise
        return self._ask(self._opened(), query)

    def _opened(self) -> Database:
        db = self._local.db = self._connect()
        with self._lock:
            self._open.append(db)
        return db

    def _ask(self, db: Database, query: Callable[[Database], _T]) -> _T:
        try:
            db.execute(self._begin)
            try:
                return query(db)
            finally:
                db.execute("ROLLBACK")
        except self._dialect.errors:
            self._local.db = None
            with self._lock:
                self._open.remove(db)
            db.close()
            raise


def marks(values: Sequence[object]) -> str:
    """Return as many parameter marks as there are values."""
    return ", ".join("?" * len(values))


def cursor_of(*position: int) -> str:
    """Return the opaque text for a position in a list that is ordered by these integers."""
    return base64.urlsafe_b64encode(".".join(map(str, position)).encode()).decode().rstrip("=")


def parse_cursor(text: str, size: int) -> tuple[int, ...]:
    """Return the position that `cursor_of` made a text of. Raises ValueError for any other text."""
    try:
        raw = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
        position = tuple(int(part) for part in raw.split("."))
        if len(position) == size and all(-(1 << 63) <= part < 1 << 63 for part in position):
            return position
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise ValueError("`before` is not a cursor of this list; take it from `next` of the page before, unchanged")
