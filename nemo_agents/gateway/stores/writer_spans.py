"""What traces say of runs: spans, and of a run that only a trace tells of, its name, state and end.

Spans come in any order and more than once. Each is kept by its id in its run; of two reports of one span, the one that
ends later stays. Where a span belongs (its step, the call that it is) is worked out by the reader, from all there are.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from nemo_agents.gateway.stores.base import SpanBatch, SpanRecord
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.gateway.stores.writer_runs import RunRecord

__all__ = ["SPANS_PER_RUN", "SPAN_COLUMNS", "log_spans"]

SPANS_PER_RUN: Final = 50_000
"""How many spans of one run are kept; those that come later are turned away."""

SPAN_COLUMNS: Final = (
    "run",
    "span_id",
    "parent_id",
    "kind",
    "name",
    "step",
    "role",
    "state",
    "started_us",
    "ended_us",
    "error",
    "request_id",
    "model",
    "input_tokens",
    "output_tokens",
    "attributes",
    "input",
    "output",
)
_SAVE: Final = (
    f"INSERT INTO spans({', '.join(SPAN_COLUMNS)}) VALUES ({', '.join('?' * len(SPAN_COLUMNS))})"  # noqa: S608 - our own column names
    f" ON CONFLICT (run, span_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in SPAN_COLUMNS[2:])}"
    " WHERE coalesce(excluded.ended_us, 0) >= coalesce(spans.ended_us, 0)"
)


def log_spans(books: Books, batch: SpanBatch) -> int:
    """Keep the spans of one run, and return how many there was no room for."""
    run = _run_of(books, batch)
    taken = batch.spans[: _room(books, run, len(batch.spans))]
    books.db.executemany(_SAVE, [_values(books, run.run, span) for span in taken])
    run.spans_max = (run.spans_max or 0) + len(taken)
    _tell_run(run, batch)
    books.touched(run)
    return len(batch.spans) - len(taken)


def _room(books: Books, run: RunRecord, wanted: int) -> int:
    """Return how many more spans of a run may be kept. To count is to read them all, so it is done when it matters."""
    if run.spans_max is None or run.spans_max + wanted > SPANS_PER_RUN:
        (stored,) = books.db.execute("SELECT count(*) FROM spans WHERE run=?", (run.run,)).fetchone()
        run.spans_max = int(stored)
    return max(0, SPANS_PER_RUN - run.spans_max)


def _run_of(books: Books, batch: SpanBatch) -> RunRecord:
    run_id = batch.run_id or batch.trace_run_id
    run = books.find_trace(batch.fleet, batch.trace_id) if batch.run_id is None else None
    run = run or books.find_run(batch.fleet, run_id)  # also where calls name the trace's run, and another trace
    if run is not None:
        return run
    run = books.new_run(
        fleet=batch.fleet,
        run_id=run_id,
        grouped=True,
        name=run_id,
        started_us=min(span.started_us for span in batch.spans),
        trace_id=batch.trace_id,
    )
    run.traced, run.reported_state = 1, "running"
    return run


def _tell_run(run: RunRecord, batch: SpanBatch) -> None:
    """Note in its run that spans came, and what the root of the trace says of it.

    What the SDK reports stays as it is. A run that nobody reports has the name and the end of its root.
    """
    for role in {span.role for span in batch.spans} | ({batch.role} if run.traced else set()):
        run.saw(role, None)
    run.last_us = max(run.last_us, *(span.ended_us or span.started_us for span in batch.spans))
    if run.traced:
        run.started_us = min(run.started_us, *(span.started_us for span in batch.spans))
    if run.reported_state == "lost":  # it lives after all
        run.reported_state, run.ended_us = "running", None
    root = batch.root
    if root is None or not (run.traced or run.reported_state is None):
        return
    if run.traced or run.name == run.run_id:
        run.name = root.name
    if (root.ended_us or 0) < (run.ended_us or 0):
        return
    run.traced = 1
    # A call that a limit refused ended it, where the trace only knows of an error.
    run.reported_state = "stopped" if root.state == "failed" and run.outcome == "stopped" else root.state
    run.started_us = min(run.started_us, root.started_us)
    run.ended_us, run.error = root.ended_us, root.error


def _values(books: Books, run: int, span: SpanRecord) -> tuple[Any, ...]:
    return (
        run,
        span.span_id,
        span.parent_id,
        span.kind,
        span.name,
        span.step,
        span.role,
        span.state,
        span.started_us,
        span.ended_us,
        span.error,
        span.request_id,
        span.model,
        span.input_tokens,
        span.output_tokens,
        msgspec.json.encode(span.attributes).decode(),
        books.content.keep(span.input),
        books.content.keep(span.output),
    )
