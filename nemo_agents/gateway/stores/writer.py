"""The one thread that writes, with group commit.

Operations queue up; the thread takes all that wait (up to `BATCH_MAX`), runs them in one transaction, commits
once, and wakes the waiting callers with one call into their event loop. What one turn of the event loop asks
for is handed over at once, at its end; records that nobody waits for go along with the next operation that
somebody does, or after `KEEP_S`. When an operation fails, its neighbours run again, each in a transaction of
its own, so that only the culprit hears of it.

When the file cannot be written (disk full, read-only, locked, I/O error), everybody who waits gets
StoreUnavailable as soon as one try has failed, however much is queued. Records that nobody waits for are kept
in order and tried again, after a while and with every new operation, until they are written; of those that
may be dropped, the latest `DROPPABLE_MAX` are kept. The connection is opened anew after such a failure, so
the store recovers by itself when the cause goes away.
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

__all__ = ["BATCH_MAX", "DROPPABLE_MAX", "Writer", "is_outage"]

BATCH_MAX: Final = 256
KEEP_S: Final = 0.005
"""How long a record that nobody waits for may wait for company: a commit costs more than what is in it."""
DROPPABLE_MAX: Final = 10_000
"""How many records that may be dropped are kept in memory while the file cannot be written."""

_RETRY_S: Final = 0.25
_T = TypeVar("_T")
_What = TypeVar("_What")
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

    __slots__ = ("droppable", "future", "orphaned", "run")

    def __init__(
        self,
        run: Callable[[Books], object] | None,
        future: asyncio.Future[Any] | None,
        orphaned: Callable[[Any], None] | None,
        *,
        droppable: bool = False,
    ) -> None:
        self.run = run
        self.future = future
        self.orphaned = orphaned
        self.droppable = droppable


_Result = tuple[_Operation, object, BaseException | None]


class Writer:
    """Feeds operations to the writing thread.

    Its methods are called on the event loop that `start` ran on.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, waiting_max: int) -> None:
        self._connect = connect
        self._waiting_max = waiting_max
        self._queue: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._kept: deque[_Operation] = deque()  # the thread's own, as far as `_dropped`: records of an outage
        self._pending: deque[_Operation] = deque()  # what came after those
        self._books: Books | None = None
        self._down: StoreUnavailable | None = None  # the outage, until something is written again
        self._dropped = 0  # records, in this outage
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waited_for = 0  # operations; the loop's own, as is all that follows
        self._outbox: list[_Operation] = []
        self._hand_over_soon = False
        self._hand_over_later: asyncio.TimerHandle | None = None
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
            self._turn_away(StoreUnavailable("the store is closed"))
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    async def do(self, run: Callable[[Books], _T] | None, *, orphaned: Callable[[_T], None] | None = None) -> _T:
        """Run an operation in the next transaction and return its result once that is committed.

        `run` None only waits for everything before it. When the caller is cancelled after the operation was
        committed, `orphaned` gets the result that nobody takes. Raises StoreUnavailable.
        """
        while self._waited_for >= self._waiting_max:
            await self._wait_for_room()
        if self._thread is None or self._loop is None:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[Any] = self._loop.create_future()  # of _T: the queue forgets what it carries
        self._waited_for += 1
        self._outbox.append(_Operation(run, future, orphaned))
        if not self._hand_over_soon:
            self._hand_over_soon = True
            self._loop.call_soon(self._hand_over)
        try:
            result: _T = await future
        except asyncio.CancelledError:
            # The result may be there already, and the caller be cancelled before its turn to take it.
            if future.done() and not future.cancelled() and future.exception() is None:
                _hand_to(orphaned, future.result())
            raise
        return result

    def keep(self, run: Callable[[Books], object], *, droppable: bool = False) -> None:
        """Queue an operation that nobody waits for.

        It is never dropped while the process lives, unless it is `droppable`, the file cannot be written and
        `DROPPABLE_MAX` later ones of its kind wait as well.
        """
        if self._thread is None or self._loop is None:
            _log.error("a record came after the store was closed; open holds expire at the next start")
            return
        self._outbox.append(_Operation(run, None, None, droppable=droppable))
        if self._hand_over_later is None:
            self._hand_over_later = self._loop.call_later(KEEP_S, self._hand_over_kept)

    def _hand_over_kept(self) -> None:
        self._hand_over_later = None
        self._hand_over()

    def _hand_over(self) -> None:
        self._hand_over_soon = False
        if self._outbox:
            operations, self._outbox = self._outbox, []
            self._queue.put(operations)

    async def _wait_for_room(self) -> None:
        assert self._loop is not None
        turn: asyncio.Future[None] = self._loop.create_future()
        self._room.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._let_in(1)  # pass the turn on
            raise

    def _let_in(self, free: int) -> None:
        while free > 0 and self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def _turn_away(self, error: StoreUnavailable) -> None:
        """On the event loop: tell those who wait for room that there is nothing to wait for."""
        while self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _resolve(self, results: list[_Result]) -> None:
        """On the event loop: hand out the results of one batch."""
        for operation, value, error in results:
            future = operation.future
            if future is None:
                continue
            self._waited_for -= 1
            if future.cancelled():
                if error is None:
                    _hand_to(operation.orphaned, value)
            elif error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._let_in(self._waiting_max - self._waited_for)

    # --- the thread -----------------------------------------------------------------------------------------
    def _work(self) -> None:
        running = True
        while running or self._kept or self._pending:
            running = self._take(wait=running) and running
            batch: list[_Operation] = []
            while len(batch) < BATCH_MAX and (self._kept or self._pending):
                batch.append((self._kept or self._pending).popleft())
            if not batch:
                continue
            results, left = self._write(batch)
            self._deliver(results)
            if left:
                running = self._take(wait=False) and running  # what came during the try shares its fate
                self._sit_out(left)
                if not running:
                    break
        lost = len(self._kept) + self._dropped
        if lost:
            _log.error("%d records could not be written before the store closed", lost)
        if self._books is not None:
            self._books.db.close()

    def _take(self, *, wait: bool) -> bool:
        """Move everything queued to `_pending`, waiting for something to do; return False at the end."""
        try:
            if wait and not self._pending and (self._down is not None or not self._kept):
                # Records that could not be written are tried again after a while, or with the next operation.
                operations = self._queue.get(timeout=_RETRY_S if self._kept else None)
            else:
                operations = self._queue.get_nowait()
            while operations is not None:
                self._pending.extend(operations)
                operations = self._queue.get_nowait()
        except queue.Empty:
            return True
        return False

    def _write(self, batch: list[_Operation]) -> tuple[list[_Result], list[_Operation]]:
        """Write a batch; return what is settled, and in an outage what is left."""
        try:
            return self._transact(batch), []
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._roll_back()
            if is_outage(error):
                self._went_down(error)
                return [], batch
            if len(batch) == 1:
                return [self._failed(batch[0], error)], []
        results: list[_Result] = []
        for position, operation in enumerate(batch):
            done, left = self._write([operation])
            results += done
            if left:  # the file became unwritable
                return results, batch[position:]
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
        if self._down is not None:
            self._came_back()
        return results

    def _roll_back(self) -> None:
        if self._books is None:
            return
        try:
            self._books.rollback()
        except sqlite3.Error:  # the connection is beyond use; closing it rolls back
            self._drop_connection()

    def _went_down(self, error: Exception) -> None:
        self._drop_connection()
        if self._down is None:
            _log.error("the store cannot be written now (%s); records wait in memory until it can", error)
        self._down = StoreUnavailable(f"the store cannot be written now: {error}")
        self._down.__cause__ = error

    def _came_back(self) -> None:
        self._down = None
        dropped, self._dropped = self._dropped, 0
        _log.warning("the store can be written again; %d records of refused calls were dropped meanwhile", dropped)

    def _sit_out(self, left: list[_Operation]) -> None:
        """In an outage, say no to everybody who waits, and keep the records that nobody waits for, in order."""
        assert self._down is not None
        waiting = [o for some in (left, self._pending) for o in some if o.future is not None]
        self._kept.extendleft(reversed([o for o in left if o.future is None]))
        self._kept.extend(o for o in self._pending if o.future is None)
        self._pending.clear()
        if len(self._kept) > DROPPABLE_MAX:
            self._drop_oldest(sum(o.droppable for o in self._kept) - DROPPABLE_MAX)
        self._tell(self._turn_away, self._down)
        self._deliver([(operation, None, self._down) for operation in waiting])

    def _drop_oldest(self, excess: int) -> None:
        if excess <= 0:
            return
        if not self._dropped:
            _log.error("more than %d records of refused calls wait: the oldest are dropped", DROPPABLE_MAX)
        self._dropped += excess
        remaining: deque[_Operation] = deque()
        for operation in self._kept:
            if operation.droppable and excess:
                excess -= 1
            else:
                remaining.append(operation)
        self._kept = remaining

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

    def _deliver(self, results: list[_Result]) -> None:
        if results:
            self._tell(self._resolve, results)

    def _tell(self, how: Callable[[_What], None], what: _What) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(how, what)
        except RuntimeError:  # the loop is closed: nobody waits any more
            _log.warning("an event loop closed before its store did")


def _hand_to(orphaned: Callable[[Any], None] | None, value: object) -> None:
    if orphaned is not None and value is not None:  # None: it was not run, for its caller had gone before
        orphaned(value)
