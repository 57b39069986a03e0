"""The one thread that writes, with group commit.

Operations queue up; the thread takes all that wait (up to `BATCH_MAX`), runs them in one transaction, commits
once, and wakes the waiting callers with one call into their event loop. When an operation fails, its
neighbours run again, each in a transaction of its own, so that only the culprit hears of it.

When the file cannot be written (disk full, read-only, locked, I/O error), callers that wait get
StoreUnavailable at once; records that nobody waits for are kept in order and tried again until they are
written. The connection is opened anew after such a failure, so the store recovers by itself when the cause
goes away.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.gateway.stores.writer_books import Books

__all__ = ["BATCH_MAX", "Writer", "is_outage"]

BATCH_MAX: Final = 256

_RETRY_S: Final = 0.25
_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# Primary result codes that speak of the file or the machine, not of the statement (sqlite.org/rescode.html).
_OUTAGE: Final = frozenset({3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 22, 26})


def is_outage(error: BaseException) -> bool:
    """Say whether an error means that the store is unavailable, rather than that a statement is wrong."""
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, OSError)
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _OUTAGE


class _Operation:
    """One piece of work. Without a future nobody waits for it, and it is kept until it is written."""

    __slots__ = ("future", "orphaned", "run")

    def __init__(
        self,
        run: Callable[[Books], object] | None,
        future: asyncio.Future[Any] | None,
        orphaned: Callable[[Any], None] | None,
    ) -> None:
        self.run = run
        self.future = future
        self.orphaned = orphaned


_Result = tuple[_Operation, object, BaseException | None]


class Writer:
    """Feeds operations to the writing thread.

    Its methods are called on the event loop that `start` ran on.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, waiting_max: int) -> None:
        self._connect = connect
        self._waiting_max = waiting_max
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._pending: deque[_Operation] = deque()  # the thread's own
        self._books: Books | None = None  # the thread's own
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unfinished = 0  # the loop's own
        self._room: deque[asyncio.Future[None]] = deque()
        self._thread: threading.Thread | None = None
        self.last_used: dict[str, int] = {}

    def start(self) -> None:
        """Start the thread; the first operation opens the file."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="nemo-store-writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Write what is queued, close the file and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    @property
    def unfinished(self) -> int:
        """How many operations are queued or being written."""
        return self._unfinished

    async def do(self, run: Callable[[Books], _T] | None, *, orphaned: Callable[[_T], None] | None = None) -> _T:
        """Run an operation in the next transaction and return its result once that is committed.

        `run` None only waits for everything before it. When the caller is cancelled after the operation was
        committed, `orphaned` gets the result that nobody takes. Raises StoreUnavailable.
        """
        while self._unfinished >= self._waiting_max:
            await self._wait_for_room()
        if self._thread is None or self._loop is None:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[Any] = self._loop.create_future()  # of _T: the queue forgets what it carries
        self._unfinished += 1
        self._queue.put(_Operation(run, future, orphaned))
        result: _T = await future
        return result

    def keep(self, run: Callable[[Books], object]) -> None:
        """Queue an operation that nobody waits for; it is never dropped while the process lives."""
        if self._thread is None:
            _log.error("a record came after the store was closed; open holds expire at the next start")
            return
        self._unfinished += 1
        self._queue.put(_Operation(run, None, None))

    async def _wait_for_room(self) -> None:
        assert self._loop is not None
        turn: asyncio.Future[None] = self._loop.create_future()
        self._room.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._let_in(1)  # pass the turn on
            raise

    def _let_in(self, free: int) -> None:
        while free > 0 and self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def _resolve(self, results: list[_Result]) -> None:
        """On the event loop: hand out the results of one batch."""
        self._unfinished -= len(results)
        for operation, value, error in results:
            future = operation.future
            if future is None:
                continue
            if future.cancelled():
                if operation.orphaned is not None and error is None and value is not None:
                    operation.orphaned(value)
            elif error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._let_in(self._waiting_max - self._unfinished)

    # --- the thread -----------------------------------------------------------------------------------------
    def _work(self) -> None:
        running = True
        while running or self._pending:
            running = self._take(wait=running) and running
            batch = [self._pending.popleft() for _ in range(min(BATCH_MAX, len(self._pending)))]
            if not batch:
                continue
            results, kept = self._write(batch)
            self._deliver(results)
            self._pending.extendleft(reversed(kept))
            if kept and not running:
                _log.error("%d records could not be written before the store closed", len(self._pending))
                self._fail_pending()
                break
        if self._books is not None:
            self._books.db.close()

    def _take(self, *, wait: bool) -> bool:
        """Move everything queued to `_pending`, waiting for the first of it; return False at the end."""
        try:
            if wait:
                # Records that could not be written are tried again after a while, or with the next operation.
                operation = self._queue.get(timeout=_RETRY_S if self._pending else None)
            else:
                operation = self._queue.get_nowait()
            while operation is not None:
                self._pending.append(operation)
                operation = self._queue.get_nowait()
        except queue.Empty:
            return True
        return False

    def _write(self, batch: list[_Operation]) -> tuple[list[_Result], list[_Operation]]:
        """Write a batch; return what is settled, and what must be tried again."""
        try:
            return self._transact(batch), []
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._roll_back()
            if is_outage(error):
                return self._outage(batch, error)
            if len(batch) == 1:
                return [self._failed(batch[0], error)], []
        results: list[_Result] = []
        for position, operation in enumerate(batch):
            done, kept = self._write([operation])
            results += done
            if kept:  # the file became unwritable: the rest waits behind it, in order
                rest, later = self._outage(batch[position + 1 :], OSError("the store became unavailable"))
                return results + rest, kept + later
        return results, []

    def _transact(self, batch: list[_Operation]) -> list[_Result]:
        if all(operation.run is None for operation in batch):
            return [(operation, None, None) for operation in batch]
        if self._books is None:
            self._books = Books(self._connect())
            self._books.last_used = self.last_used
        books = self._books
        books.begin()
        results: list[_Result] = []
        for operation in batch:
            gone = operation.future is not None and operation.future.cancelled()
            results.append((operation, None if gone or operation.run is None else operation.run(books), None))
        books.commit()
        return results

    def _roll_back(self) -> None:
        if self._books is None:
            return
        try:
            self._books.rollback()
        except sqlite3.Error:  # the connection is beyond use; closing it rolls back
            self._drop_connection()

    def _outage(self, batch: list[_Operation], error: Exception) -> tuple[list[_Result], list[_Operation]]:
        self._drop_connection()
        unavailable = StoreUnavailable(f"the store cannot be written now: {error}")
        unavailable.__cause__ = error
        waiting: list[_Result] = [(o, None, unavailable) for o in batch if o.future is not None]
        kept = [o for o in batch if o.future is None]
        if kept:
            _log.warning("the store cannot be written now (%s); %d records wait", error, len(kept))
        return waiting, kept

    def _drop_connection(self) -> None:
        books, self._books = self._books, None
        if books is not None:
            try:
                books.db.close()
            except sqlite3.Error:
                _log.warning("a broken connection did not close cleanly", exc_info=True)

    def _failed(self, operation: _Operation, error: Exception) -> _Result:
        if operation.future is None:
            _log.error("a record was refused by the store and dropped", exc_info=error)
        elif isinstance(error, sqlite3.IntegrityError):
            told = ValueError(f"the store refused this record: {error}")
            told.__cause__ = error
            return operation, None, told
        return operation, None, error

    def _fail_pending(self) -> None:
        closed = StoreUnavailable("the store is closed")
        self._deliver([(operation, None, closed) for operation in self._pending])
        self._pending.clear()

    def _deliver(self, results: list[_Result]) -> None:
        assert self._loop is not None
        if results:
            try:
                self._loop.call_soon_threadsafe(self._resolve, results)
            except RuntimeError:  # the loop is closed: nobody waits any more
                _log.warning("an event loop closed before its store did")
