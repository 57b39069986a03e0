"""Deleting what is old, while calls are served.

Readers look for what may go, the writer deletes it in small pieces between the calls, and after each piece there is a
pause of several times what it took: pruning has a small share of the disk, however much there is to do.

**Messages** are kept once for all that refer to them, and nobody counts who does. Instead each knows a day on which it
was written or referred to: whoever writes a reference sees to it that the day is today's (`stores.writer_content`). To
sweep the messages before a day D:

1. Every reference that is left and may have been written before D is read, and its messages are put on the day D.
2. Messages of earlier days are deleted.

A reference that 1 did not see was written later, so its message has a later day, and 2 leaves it alone: in one
statement that looks at the day under the lock of the row. If 2 comes first, the reference brings the message with it
again. D lies at least a day back, for a writer that takes a day to be today's while midnight passes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Final, TypeVar

from nemo_agents.admin.wire import Pruned
from nemo_agents.gateway.stores import reader_prune, writer_prune
from nemo_agents.gateway.stores.base import PruneOrder
from nemo_agents.gateway.stores.database import Touches
from nemo_agents.gateway.stores.reader import Readers
from nemo_agents.gateway.stores.reader_prune import Candidate
from nemo_agents.gateway.stores.writer import Writer
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.gateway.stores.writer_content import DAY_US
from nemo_agents.gateway.stores.writer_prune import PIECE, Piece

__all__ = ["REST_FACTOR", "paced", "prune"]

REST_FACTOR: Final = 4.0
"""How long the writer is left to others after a piece, in times of what the piece took."""
_REST_S_MAX: Final = 0.5
_T = TypeVar("_T")


async def paced(writer: Writer, run: Callable[[Books], _T], touches: Touches) -> _T:
    """Run a piece of work on the writer, then leave it to others for a while. Raises StoreUnavailable."""
    began = time.monotonic()
    result: _T = await writer.do(run, touches)
    await asyncio.sleep(min(_REST_S_MAX, REST_FACTOR * (time.monotonic() - began)))
    return result


async def prune(
    writer: Writer, readers: Readers, order: PruneOrder, *, now_us: int, events: str, changes: str
) -> AsyncIterator[Pruned]:
    """Delete piece by piece, and yield what each piece was. Raises StoreUnavailable.

    `events` and `changes` are the topics that are locked for theirs.
    """
    drop = writer_prune.drop_contents if order.contents_only else writer_prune.drop_runs
    after: Candidate | None = None
    while True:
        page = await readers.read(
            partial(reader_prune.read_candidates, cut_us=order.cut_us, speaking=order.contents_only, after=after)
        )
        if not page:
            break
        after = page[-1]
        for fleet, runs in _pieces(page):
            touches = Touches(fleet=fleet, lasting=False)
            if not order.contents_only and len(runs) == 1 and runs[0].spans > PIECE:
                thin = partial(writer_prune.drop_spans, run=runs[0].run, cut_us=order.cut_us)
                while gone := await paced(writer, thin, touches):
                    yield Pruned(spans=gone)
            numbers = tuple(run.run for run in runs)
            piece = Piece(pruning=order.pruning, at_us=now_us, cut_us=order.cut_us, runs=numbers)
            yield await paced(writer, partial(drop, piece=piece), touches)
    if not order.contents_only:
        seqs = await readers.read(partial(reader_prune.read_events_over, cut_us=order.cut_us))
        for first in range(0, len(seqs), PIECE):
            delete = partial(writer_prune.delete_events, seqs=seqs[first : first + PIECE])
            yield Pruned(events=await paced(writer, delete, Touches(topics=(events,))))
        old = partial(writer_prune.delete_changes, before_us=order.cut_us)
        yield Pruned(changes=await paced(writer, old, Touches(topics=(changes,))))
    async for swept in _sweep(writer, readers, min(order.cut_us, now_us - DAY_US) // DAY_US):
        yield Pruned(messages=swept)


async def _sweep(writer: Writer, readers: Readers, day: int) -> AsyncIterator[int]:
    """Delete the messages that nothing refers to since a day; see the module."""
    place: tuple[int, int, int] | None = (-(1 << 62), 0, 0)
    while place is not None:
        hashes, place = await readers.read(partial(reader_prune.read_hashes_of_calls, day=day, after=place))
        await _refer(writer, hashes, day)
    spot: tuple[int, str] | None = (-1, "")
    while spot is not None:
        hashes, spot = await readers.read(partial(reader_prune.read_hashes_of_spans, after=spot))
        await _refer(writer, hashes, day)
    while swept := await paced(writer, partial(writer_prune.delete_messages, day=day), Touches(lasting=False)):
        yield swept


async def _refer(writer: Writer, hashes: Iterable[bytes], day: int) -> None:
    listed = sorted(hashes)
    for first in range(0, len(listed), 5 * PIECE):
        some = listed[first : first + 5 * PIECE]
        await paced(writer, partial(writer_prune.refer, hashes=some, day=day), Touches(lasting=False))


def _pieces(page: list[Candidate]) -> Iterator[tuple[str, list[Candidate]]]:
    """Yield what is deleted in one transaction each: runs of one fleet, as many as make a piece."""
    for fleet, runs in groupby(sorted(page, key=attrgetter("fleet")), key=attrgetter("fleet")):
        piece: list[Candidate] = []
        size = 0
        for run in runs:
            weight = max(1, run.calls + run.spans)
            if piece and size + weight > PIECE:
                yield fleet, piece
                piece, size = [], 0
            piece.append(run)
            size += weight
        yield fleet, piece
