"""What waits to be written: who goes first, and who has to wait for room.

What somebody waits for, and the ends of calls, go first, in the order in which they came. Records of refused calls have
a small share of every batch, and all of it when nothing else waits: a role that is refused a thousand times a second
fills the log in its own time, not in that of the others. A batch keeps the order of its operations, so that a call is
opened before anything else is said of it; a record may be written later than what came after it and is about other
calls. What is to come `after_all` waits for the records before it too, and gives them a larger share while it does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from nemo_agents.gateway.stores.database import Touches
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.gateway.stores.writer_content import Content

__all__ = ["BATCH_BYTES", "BATCH_MAX", "CONTENT_MAX_BYTES", "RECORDS_PER_BATCH", "Backlog", "Operation", "Room"]

CONTENT_MAX_BYTES: Final = 16 << 20
"""How much of one call's question, or of its answer, is kept in the request log; what is bigger is not kept at all."""
BATCH_MAX: Final = 256
BATCH_BYTES: Final = 4 << 20
"""How much content goes into one batch, unless a single operation has more: packing and writing it is a wait for all
behind it, and where gateways share a database, for all that need the same locks."""
RECORD_BYTES_PER_BATCH: Final = 1 << 20
"""How much of it, beyond the first, is of the records of refused calls that go along with others."""
RECORDS_PER_BATCH: Final = 8
"""How many records of refused calls go along with a batch that others wait for: each costs about what a hold costs."""
_RECORDS_TO_CATCH_UP: Final = BATCH_MAX // 2
"""The same while somebody waits for all that came before, as a reader of the log does."""


class Operation:
    """One piece of work. Without a future nobody waits for it, and it is kept until it is written.

    Its number says when it came.
    """

    __slots__ = ("after_all", "content", "droppable", "future", "number", "orphaned", "run", "touches")

    def __init__(
        self,
        number: int,
        run: Callable[[Books], object] | None,
        touches: Touches,
        future: asyncio.Future[Any] | None = None,
        orphaned: Callable[[Any], None] | None = None,
        *,
        content: Content | None = None,
        after_all: bool = False,
        droppable: bool = False,
    ) -> None:
        self.number = number
        self.run = run
        self.touches = touches
        self.future = future
        self.orphaned = orphaned
        self.after_all = after_all
        self.droppable = droppable
        self.content = content

    @property
    def size(self) -> int:
        """How many bytes of content it is to keep."""
        return 0 if self.content is None else self.content.size

    @property
    def messages(self) -> Sequence[bytes]:
        """What it is to keep of what a call said; nothing once its caller has gone."""
        if self.content is None or (self.future is not None and self.future.cancelled()):
            return ()
        return self.content.messages

    def drop_content(self) -> None:
        """Keep everything but the content."""
        if self.content is not None:
            self.run = self.content.without()
            self.content = None


class Backlog:
    """Operations that wait for the thread that writes; all of it belongs to that thread."""

    def __init__(self) -> None:
        self._first: deque[Operation] = deque()
        self._records: deque[Operation] = deque()
        self._after_all: deque[Operation] = deque()  # whose turn has come, and that wait for records before them
        self.rests = False  # all of it could not be written, and nothing has come since

    def __len__(self) -> int:
        return len(self._first) + len(self._records) + len(self._after_all)

    def add(self, operations: Iterable[Operation]) -> None:
        """Take what has come, in its order."""
        self.rests = False
        for operation in operations:
            (self._records if operation.droppable else self._first).append(operation)

    def batch(self) -> list[Operation]:
        """Take what is to be written next, in the order in which it came."""
        self.rests = False
        share = min(len(self._records), _RECORDS_TO_CATCH_UP if self._after_all else RECORDS_PER_BATCH)
        batch: list[Operation] = []
        room = BATCH_BYTES
        while self._first and len(batch) < BATCH_MAX - share and (not batch or self._first[0].size <= room):
            operation = self._first.popleft()
            room -= operation.size
            (self._after_all if operation.after_all else batch).append(operation)
        if batch:
            batch += self._next_records(share, BATCH_BYTES if self._after_all else RECORD_BYTES_PER_BATCH)
        else:
            batch += self._next_records(BATCH_MAX, BATCH_BYTES)
        while self._after_all and not (self._records and self._records[0].number < self._after_all[0].number):
            batch.append(self._after_all.popleft())
        batch.sort(key=_number)
        return batch

    def sit_out(self, left: Sequence[Operation]) -> list[Operation]:
        """In an outage: take back what is left of a batch, and return whatever somebody waits for, to be told.

        What nobody waits for stays. Whoever waits for what is `left` is told by whoever took it.
        """
        turned_away = [each for each in (*self._after_all, *self._first) if each.future is not None]
        kept = [each for each in left if each.future is None]
        first = [*(each for each in kept if not each.droppable), *(each for each in self._first if each.future is None)]
        self._records.extendleft(reversed([each for each in kept if each.droppable]))
        self._first = deque(first)
        self._after_all.clear()
        self.rests = True
        return turned_away

    def drop_records(self, keep: int) -> int:
        """Drop the oldest records but so many; return how many were dropped."""
        excess = max(0, len(self._records) - keep)
        for _ in range(excess):
            self._records.popleft()
        return excess

    def shed_content(self, keep: int) -> int:
        """Drop the oldest contents but so many bytes, those of refused calls first; return of how many operations."""
        excess = sum(operation.size for operation in (*self._records, *self._first)) - keep
        shed = 0
        for operation in (*self._records, *self._first) if excess > 0 else ():
            if excess <= 0:
                break
            if operation.size:
                excess -= operation.size
                operation.drop_content()
                shed += 1
        return shed

    def _next_records(self, share: int, room: int) -> list[Operation]:
        taken: list[Operation] = []
        while self._records and len(taken) < share and (not taken or self._records[0].size <= room):
            taken.append(self._records.popleft())
            room -= taken[-1].size
        return taken


class Room:
    """So many places on one event loop. Who finds none waits in turn, and nobody who comes later goes before."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._promised = 0  # to those whose turn has come and who have not gone on yet
        self._turns: deque[asyncio.Future[bool]] = deque()
        self.taken = 0

    async def wait(self) -> None:
        """Return when there is a place, which is to be taken before anything else is awaited.

        Raises what those who wait are turned away with.
        """
        if not self._turns and self._free():
            return
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        self._let_in()  # those before may all have gone
        try:
            promised = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None and turn.result():
                self._promised -= 1
                self._let_in()
            raise
        self._promised -= promised

    def take(self) -> None:
        """Take a place, whether or not there is one."""
        self.taken += 1

    def give_back(self, places: int) -> None:
        """Give places back, and let in those who wait."""
        self.taken -= places
        self._let_in()

    def let_all_in(self) -> None:
        """Let everybody in who waits, room or not."""
        for turn in self._emptied():
            turn.set_result(False)

    def turn_away(self, error: Exception) -> None:
        """Raise an error for everybody who waits."""
        for turn in self._emptied():
            turn.set_exception(error)

    def _free(self) -> bool:
        return self.taken + self._promised < self._places

    def _let_in(self) -> None:
        while self._turns and self._free():
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(True)
                self._promised += 1

    def _emptied(self) -> list[asyncio.Future[bool]]:
        turns, self._turns = self._turns, deque()
        return [turn for turn in turns if not turn.done()]


def _number(operation: Operation) -> int:
    return operation.number
