"""The one thread that writes, with group commit.

Operations queue up; the thread takes all that wait (up to `BATCH_MAX`), runs them in one transaction, commits
once, and wakes the waiting callers with one call into their event loop. What one turn of the event loop asks
for is handed over at once, at its end; records that nobody waits for go along with the next operation that
somebody does, or after `KEEP_S`. Records of refused calls wait for company of their own kind, or for the next call of
their run, so that what they cost is paid once for many of them, and by a batch that nobody waits for. When an
operation fails, its neighbours run again, each in a transaction of its own, so that only the culprit hears of it.
Which operations go first is told in `stores.writer_queue`.

Records of refused calls that wait are few: `room_for_record` holds back whoever is about to add one. A role that is
refused faster than its refusals can be written is slowed down by that, and nobody else.

When the database cannot be written (disk full, read-only, locked, not reachable), everybody who waits gets
StoreUnavailable as soon as one try has failed, however much is queued. Records that nobody waits for are kept
in order and tried again, after a while and with every new operation, until they are written; of those that
may be dropped, the latest `DROPPABLE_MAX` are kept. The connection is opened anew after such a failure, so
the store recovers by itself when the cause goes away.

A connection that is lost during the COMMIT leaves it open whether that was done. Who waits gets MaybeWritten, and the
`orphaned` of an operation is called with None: what it may have written is to be taken back, as soon as somebody can.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any, Final, TypeVar

import structlog

from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.gateway.stores.database import CommitUnknown, Dialect, Touches
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.gateway.stores.writer_content import Content
from nemo_agents.gateway.stores.writer_queue import BATCH_MAX, CONTENT_MAX_BYTES, Backlog, Operation, Room

__all__ = ["BATCH_MAX", "DROPPABLE_MAX", "RECORDS_MAX", "MaybeWritten", "Writer"]

KEEP_S: Final = 0.005
"""How long a record that nobody waits for may wait for company: a commit costs more than what is in it."""
RECORDS_KEEP_S: Final = 0.1
"""The same for records of refused calls, so that their commit is rarely what a hold has to wait for."""
DROPPABLE_MAX: Final = 10_000
"""How many records that may be dropped are kept in memory while the file cannot be written."""
CONTENT_KEPT_BYTES: Final = 64 << 20
"""How much content is kept in memory while the file cannot be written."""
HEAVY_BYTES: Final = 1 << 18
"""With so much content, a batch may have taken too long because of it; with less, the database is the matter."""
RECORDS_MAX: Final = 64
"""How many of them wait at a time otherwise: few enough that a batch of nothing else is no long wait for a hold."""

_RECORDS_AT_ONCE: Final = RECORDS_MAX // 4  # so many are company enough for each other
_RETRY_S: Final = 0.25
_T = TypeVar("_T")
_What = TypeVar("_What")
_log = structlog.get_logger("nemo_agents.gateway")

_TRIES: Final = 4
_ANY: Final = Touches()


class MaybeWritten(StoreUnavailable):
    """The store was lost just as it was to commit: this may have been written."""


_Result = tuple[Operation, object, BaseException | None]


class Writer:
    """Feeds operations to the writing thread.

    Its methods are called on the event loop that `start` ran on.
    """

    def __init__(self, open_books: Callable[[], Books], dialect: Dialect, *, waiting_max: int) -> None:
        self._open_books = open_books
        self._dialect = dialect
        self._queue: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._backlog = Backlog()  # the thread's own, as far as `_dropped`
        self._books: Books | None = None
        self._down: StoreUnavailable | None = None  # the outage, until something is written again
        self._maybe: MaybeWritten | None = None  # what those of the last batch hear instead
        self._dropped = 0  # records, in this outage
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = Room(waiting_max)  # for operations that are waited for; the loop's own, as is all that follows
        self._record_room = Room(RECORDS_MAX)
        self._away = False  # there is an outage, as far as the loop has heard
        self._count = 0
        self._settled = 0  # of those
        self._outbox: list[Operation] = []
        self._records: list[Operation] = []
        self._runs_of_records: set[tuple[str | None, str]] = set()
        self._records_too = False
        self._hand_over_soon = False
        self._hand_over_later: asyncio.TimerHandle | None = None
        self._hand_over_records: asyncio.TimerHandle | None = None
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
            self._went_away(StoreUnavailable("the store is closed"))
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    async def do(
        self,
        run: Callable[[Books], _T] | None,
        touches: Touches = _ANY,
        *,
        content: Content | None = None,
        orphaned: Callable[[_T | None], None] | None = None,
        after_all: bool = False,
    ) -> _T:
        """Run an operation in one of the next transactions and return its result once that is committed.

        With `after_all`, everything that was queued before is committed by then, records of refused calls as well;
        `run` None only waits for that. When the caller is cancelled after the operation was committed, `orphaned` gets
        the result that nobody takes; None when nobody knows whether it was committed. Raises StoreUnavailable.
        """
        await self._room.wait()
        if self._thread is None or self._loop is None:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[Any] = self._loop.create_future()  # of _T: the queue forgets what it carries
        self._room.take()
        after_all = after_all or run is None
        operation = Operation(self._number(), run, touches, future, orphaned, content=content, after_all=after_all)
        _limit_content(operation)
        self._outbox.append(operation)
        # A refusal is counted in its run before the calls that were made after it.
        records_too = after_all or (touches.fleet, touches.run_id) in self._runs_of_records
        self._hand_over_at_end_of_turn(records_too=records_too)
        try:
            result: _T = await future
        except asyncio.CancelledError:
            # The result may be there already, and the caller be cancelled before its turn to take it.
            if future.done() and not future.cancelled() and future.exception() is None:
                _hand_to(orphaned, future.result())
            raise
        return result

    def keep(
        self,
        run: Callable[[Books], object],
        touches: Touches = _ANY,
        *,
        content: Content | None = None,
        droppable: bool = False,
    ) -> None:
        """Queue an operation that nobody waits for.

        It is never dropped while the process lives, unless it is `droppable`, the file cannot be written and
        `DROPPABLE_MAX` later ones of its kind wait as well.
        """
        if self._thread is None or self._loop is None:
            _log.error("a record came after the store was closed; open holds expire at the next start")
            return
        operation = Operation(self._number(), run, touches, content=content, droppable=droppable)
        _limit_content(operation)
        if not droppable:
            self._outbox.append(operation)
            if self._hand_over_later is None:
                self._hand_over_later = self._loop.call_later(KEEP_S, self._hand_over_kept)
            return
        self._records.append(operation)
        if touches.run_id is not None:
            self._runs_of_records.add((touches.fleet, touches.run_id))
        self._record_room.take()
        if len(self._records) >= _RECORDS_AT_ONCE:
            self._hand_over_at_end_of_turn(records_too=True)
        elif self._hand_over_records is None:
            self._hand_over_records = self._loop.call_later(RECORDS_KEEP_S, self._hand_over)

    async def room_for_record(self) -> None:
        """Return when another droppable record may be kept; it is to be kept before anything else is awaited.

        While the file cannot be written, that is at once.
        """
        if not self._away:
            await self._record_room.wait()

    @property
    def backlog(self) -> int:
        """How many operations have come and are neither written nor given up."""
        return self._count - self._settled

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _hand_over_at_end_of_turn(self, *, records_too: bool) -> None:
        self._records_too = self._records_too or records_too
        if not self._hand_over_soon and self._loop is not None:
            self._hand_over_soon = True
            self._loop.call_soon(self._hand_over_what_is_due)

    def _hand_over_kept(self) -> None:
        self._hand_over_later = None
        self._hand_over_what_is_due()

    def _hand_over_what_is_due(self) -> None:
        self._hand_over_soon = False
        if self._records_too:
            self._hand_over()
        elif self._outbox:
            operations, self._outbox = self._outbox, []
            self._queue.put(operations)

    def _hand_over(self) -> None:
        """Hand everything over, records of refused calls as well."""
        self._records_too = False
        if self._hand_over_records is not None:
            self._hand_over_records.cancel()
            self._hand_over_records = None
        if self._outbox or self._records:
            operations = [*self._outbox, *self._records]
            self._outbox, self._records = [], []
            self._runs_of_records.clear()
            self._queue.put(operations)

    def _went_away(self, error: StoreUnavailable) -> None:
        """On the event loop: nobody waits for room while nothing is written."""
        self._away = True
        self._room.turn_away(error)
        self._record_room.let_all_in()

    def _is_back(self, _: None) -> None:
        """On the event loop: the outage is over."""
        self._away = False

    def _were_dropped(self, records: int) -> None:
        """On the event loop: so many records do not wait any more."""
        self._settled += records
        self._record_room.give_back(records)

    def _resolve(self, results: list[_Result]) -> None:
        """On the event loop: hand out the results of one batch."""
        self._settled += len(results)
        waited = records = 0
        for operation, value, error in results:
            records += operation.droppable
            future = operation.future
            if future is None:
                continue
            waited += 1
            if isinstance(error, MaybeWritten) and operation.orphaned is not None:
                operation.orphaned(None)
            if future.cancelled():
                if error is None:
                    _hand_to(operation.orphaned, value)
            elif error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._room.give_back(waited)
        self._record_room.give_back(records)

    # --- the thread -----------------------------------------------------------------------------------------
    def _work(self) -> None:
        running = True
        while running or self._backlog:
            running = self._take(wait=running) and running
            batch = self._backlog.batch()
            if not batch:
                continue
            results, left = self._write(batch)
            self._deliver(results)
            if left:
                running = self._take(wait=False) and running  # what came during the try shares its fate
                self._sit_out(left)
                if not running:
                    break
        lost = len(self._backlog) + self._dropped
        if lost:
            _log.error("records could not be written before the store closed", records=lost)
        self._drop_connection()

    def _take(self, *, wait: bool) -> bool:
        """Move everything queued to the backlog, waiting for something to do; return False at the end."""
        try:
            if wait and (not self._backlog or self._backlog.rests):
                # Records that could not be written are tried again after a while, or with the next operation.
                operations = self._queue.get(timeout=_RETRY_S if self._backlog else None)
            else:
                operations = self._queue.get_nowait()
            while operations is not None:
                self._backlog.add(operations)
                operations = self._queue.get_nowait()
        except queue.Empty:
            return True
        return False

    def _write(self, batch: list[Operation]) -> tuple[list[_Result], list[Operation]]:
        """Write a batch; return what is settled, and in an outage what is left."""
        try:
            return self._try(batch), []
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            if self._is_too_much(error, batch):
                return self._write_less(batch, error)
            if self._is_outage(error):
                self._went_down(error)
                return [], batch
            if len(batch) == 1:
                return [self._failed(batch[0], error)], []
        results: list[_Result] = []
        for position, operation in enumerate(batch):
            done, left = self._write([operation])
            results += done
            if left:  # the database became unwritable
                return results, batch[position:]
        return results, []

    def _write_less(self, batch: list[Operation], error: Exception) -> tuple[list[_Result], list[Operation]]:
        """Write a batch that took too long in two halves, and an operation that does so by itself without its content.

        What is said of money, and that there was a call, is written in any case.
        """
        if len(batch) == 1:
            size = batch[0].size
            batch[0].drop_content()
            _log.warning("a record is kept without its content, which took too long", bytes=size, error=_line(error))
            return self._write(batch)
        half = len(batch) // 2
        results, left = self._write(batch[:half])
        if left:
            return results, left + batch[half:]
        more, left = self._write(batch[half:])
        return results + more, left

    def _is_too_much(self, error: Exception, batch: list[Operation]) -> bool:
        return self._dialect.too_slow(error) and sum(operation.size for operation in batch) >= HEAVY_BYTES

    def _try(self, batch: list[Operation]) -> list[_Result]:
        for tries in range(1, _TRIES + 1):
            try:
                return self._transact(batch)
            except Exception as error:
                if self._is_outage(error):
                    self._drop_connection()
                else:
                    self._roll_back()
                if tries == _TRIES or not self._dialect.may_retry(error) or self._is_too_much(error, batch):
                    raise
        raise AssertionError("unreachable")

    def _is_outage(self, error: Exception) -> bool:
        return isinstance(error, CommitUnknown) or self._dialect.is_outage(error)

    def _transact(self, batch: list[Operation]) -> list[_Result]:
        if all(operation.run is None for operation in batch):
            return [(operation, None, None) for operation in batch]
        if self._books is None:
            self._books = self._open_books()
            self._books.last_used = self.last_used
        books = self._books
        # Before the transaction: packing takes its time, and nobody should wait for our locks meanwhile.
        books.content.pack(chain.from_iterable(operation.messages for operation in batch))
        books.begin([operation.touches for operation in batch])
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
        except self._dialect.errors:  # the connection is beyond use; closing it rolls back
            self._drop_connection()

    def _went_down(self, error: Exception) -> None:
        self._drop_connection()
        if self._down is None:
            _log.error("the store cannot be written now; records wait in memory until it can", error=_line(error))
        self._down = StoreUnavailable(f"the store cannot be written now: {_line(error)}")
        self._down.__cause__ = error
        self._maybe = None
        if isinstance(error, CommitUnknown):
            self._maybe = MaybeWritten(f"the store was lost while it committed: {_line(error)}")
            self._maybe.__cause__ = error

    def _came_back(self) -> None:
        self._down = None
        dropped, self._dropped = self._dropped, 0
        self._tell(self._is_back, None)
        _log.warning("the store can be written again", records_dropped=dropped)

    def _sit_out(self, left: list[Operation]) -> None:
        """In an outage, say no to everybody who waits, and keep the records that nobody waits for, in order."""
        assert self._down is not None
        told: list[_Result] = [(o, None, self._maybe or self._down) for o in left if o.future is not None]
        told += [(o, None, self._down) for o in self._backlog.sit_out(left)]
        dropped = self._backlog.drop_records(keep=DROPPABLE_MAX)
        if dropped:
            if not self._dropped:
                _log.error("too many records of refused calls wait: the oldest are dropped", records_max=DROPPABLE_MAX)
            self._dropped += dropped
            self._tell(self._were_dropped, dropped)
        if shed := self._backlog.shed_content(keep=CONTENT_KEPT_BYTES):
            _log.warning("records wait without the oldest contents, which are too much to be kept", records=shed)
        self._tell(self._went_away, self._down)
        self._deliver(told)

    def _drop_connection(self) -> None:
        books, self._books = self._books, None
        if books is not None:
            try:
                books.db.close()
            except self._dialect.errors as error:
                _log.warning("a broken connection did not close cleanly", error=_line(error))

    def _failed(self, operation: Operation, error: Exception) -> _Result:
        if operation.future is None:
            _log.error("a record was refused by the store and dropped", error=_line(error), exc_info=error)
        elif (rule := self._dialect.refused(error)) is not None:
            told = ValueError(f"the store refused this record: {rule}")
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


def _limit_content(operation: Operation) -> None:
    """Keep none of a content that is so big that packing and writing it would be a long wait for everybody else."""
    if operation.size > CONTENT_MAX_BYTES:
        _log.warning("a record is kept without its content, which is too big", bytes=operation.size)
        operation.drop_content()


def _hand_to(orphaned: Callable[[Any], None] | None, value: object) -> None:
    if orphaned is not None and value is not None:  # None: it was not run, for its caller had gone before
        orphaned(value)


def _line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())
