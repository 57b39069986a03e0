"""The write connection and what it remembers.

Only one thread of one process writes a SQLite file (a lock file sees to it), so rows that were just written need
not be read again. What is remembered is never ahead of the database for long: changed runs and steps are saved
before the same transaction commits, and a rollback forgets everything. Where several processes write one database,
what is remembered of rows lasts for one transaction (see `stores.postgres_books`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from nemo_agents.gateway.stores.database import Database, Touches
from nemo_agents.gateway.stores.hold import Hold, LedgerWriter
from nemo_agents.gateway.stores.traces import trace_key
from nemo_agents.gateway.stores.writer_content import ContentWriter, wall_clock_us
from nemo_agents.gateway.stores.writer_runs import (
    INSERT_RUN,
    RUN_COLUMNS,
    SAVE_STEP,
    STEP_COLUMNS,
    RunRecord,
    StepRecord,
    Sums,
    run_declared,
    run_update,
    run_values,
    step_values,
)

__all__ = ["CALL_COLUMNS", "Books", "CallRecord"]

_REMEMBERED_MAX: Final = 4096
_USED_STEP_US: Final = 1_000_000

_SELECT_RUN = f"SELECT {', '.join(RUN_COLUMNS)} FROM runs WHERE "  # noqa: S608 - our own column names
_SELECT_STEPS = f"SELECT {', '.join(STEP_COLUMNS)} FROM steps WHERE run=? ORDER BY seq"  # noqa: S608 - likewise
CALL_COLUMNS = (
    "request_id",
    "run",
    "seq",
    "state",
    "started_us",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_nanos",
    "attempts",
)
_SELECT_CALL = (
    f"SELECT {', '.join('c.' + name for name in CALL_COLUMNS)}, s.step FROM calls c"  # noqa: S608 - likewise
    " LEFT JOIN steps s ON s.run = c.run AND s.seq = c.step WHERE c.request_id=?"
)


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """What of a call changes after it was opened, and where it belongs."""

    request_id: str
    run: int
    seq: int
    state: str
    started_us: int
    step: str | None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_nanos: int | None = None
    attempts: int = 0
    hold: Hold | None = None  # of its last attempt, where this process took it

    def share(self) -> tuple[int, int, int, int, int, int]:
        """Return what the call adds to its run and step: open, errors, tokens in, out, cached, cost."""
        return (
            self.state == "open",
            self.state not in ("open", "ok"),
            self.input_tokens or 0,
            self.output_tokens or 0,
            self.cached_tokens or 0,
            self.cost_nanos or 0,
        )


class Books:
    """One write connection with its memory. Every method runs on the writer thread, inside a transaction."""

    def __init__(
        self, db: Database, ledger: LedgerWriter | None = None, *, clock: Callable[[], int] = wall_clock_us
    ) -> None:
        self.db = db
        self.ledger = ledger or LedgerWriter(db)
        self.content = ContentWriter(db, clock)
        self.last_used: dict[str, int] = {}
        self._runs: dict[int, RunRecord] = {}
        self._run_ids: dict[tuple[str, str], int] = {}
        self._traces: dict[tuple[str, str], int] = {}  # of runs that are remembered
        self._calls: dict[str, CallRecord] = {}
        self._dirty: list[RunRecord] = []
        self._next_run: int | None = None
        self._closed: list[str] = []
        self._used_due: dict[str, int] = {}
        self._used_saved: dict[str, int] = {}

    # --- transaction ----------------------------------------------------------------------------------------
    def begin(self, touches: Sequence[Touches]) -> None:  # noqa: ARG002 - nobody else writes: all of it may be touched
        """Take the write lock."""
        self.db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Save what changed in memory, and commit."""
        self.save()
        self.db.execute("COMMIT")
        self.committed()

    def save(self) -> None:
        """Write what changed in memory."""
        for run in self._dirty:
            if not run.dirty:
                continue
            run.dirty = False
            if run.stored:
                self.db.later(*run_update(run))
            else:
                self.db.later(INSERT_RUN, run_values(run))
            run.stored = run_declared(run)
            for step in run.steps.values():
                if step.dirty:
                    step.dirty = False
                    self.db.later(SAVE_STEP, step_values(step))
        for grant_id, used_us in self._used_due.items():
            self.db.later(
                "UPDATE grants SET last_used_us=CASE WHEN last_used_us > ? THEN last_used_us ELSE ? END"
                " WHERE grant_id=?",
                (used_us, used_us, grant_id),
            )

    def prove_writable(self) -> None:
        """Write something that changes nothing; an error means that nothing can be written."""
        self.db.execute("UPDATE alembic_version SET version_num = version_num")

    def committed(self) -> None:
        """Drop from memory what is not needed any more."""
        self._used_saved.update(self._used_due)
        self._used_due.clear()
        for request_id in self._closed:
            self._calls.pop(request_id, None)
        self._closed.clear()
        for run in self._dirty:
            if not run.grouped and not run.open_calls:  # a run of one call that ended
                self._forget_run(run)
        self._dirty.clear()
        self._trim()

    def rollback(self) -> None:
        """Take the transaction back, and forget what it may have changed in memory."""
        self.forget_rows()
        self.content.forget()
        self._next_run = None
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def forget_rows(self) -> None:
        """Drop what is remembered of rows that may change."""
        self._runs.clear()
        self._run_ids.clear()
        self._traces.clear()
        self._calls.clear()
        self._dirty.clear()
        self._closed.clear()
        self._used_due.clear()
        self.ledger.forget()

    # --- runs -----------------------------------------------------------------------------------------------
    def find_run(self, fleet: str, run_id: str) -> RunRecord | None:
        """Return a run by its public id."""
        known = self._run_ids.get((fleet, run_id))
        if known is not None:
            return self._runs[known]
        row = self.db.execute(_SELECT_RUN + "run_id=? AND fleet=?", (run_id, fleet)).fetchone()
        return None if row is None else self._remember(row)

    def find_trace(self, fleet: str, trace_id: str) -> RunRecord | None:
        """Return the oldest run of a trace (see `stores.traces`)."""
        known = self._traces.get((fleet, trace_id))
        if known is not None:
            return self._runs[known]
        found = "SELECT run FROM runs WHERE trace_id=? AND fleet=? ORDER BY run LIMIT 1"
        row = self.db.execute(found, (trace_id, fleet)).fetchone()
        return None if row is None else self.run(row[0])

    def run(self, run: int) -> RunRecord:
        """Return a run by its number, which a row names."""
        known = self._runs.get(run)
        return known or self._remember(self.db.execute(_SELECT_RUN + "run=?", (run,)).fetchone())

    def new_run(
        self, *, fleet: str, run_id: str, grouped: bool, name: str, started_us: int, trace_id: str | None = None
    ) -> RunRecord:
        """Add a run; it is written when the transaction commits. `trace_id` None: the one that follows from its id."""
        record = RunRecord(
            run=self.new_number(),
            run_id=run_id,
            fleet=fleet,
            grouped=int(grouped),
            name=name,
            started_us=started_us,
            last_us=started_us,
            trace_id=(trace_id or trace_key(fleet, run_id)) if grouped else None,
        )
        self._keep_run(record)
        return record

    def new_number(self) -> int:
        """Return a number that no run has."""
        if self._next_run is None:
            (last,) = self.db.execute("SELECT coalesce(max(run), 0) FROM runs").fetchone()
            self._next_run = int(last) + 1
        self._next_run += 1
        return self._next_run - 1

    def touched(self, run: RunRecord) -> None:
        """Derive the states of a run anew, and save it with this transaction."""
        run.state = run.derive_state(stopped=run.stopped_us is not None)
        if not run.dirty:
            run.dirty = True
            self._dirty.append(run)

    # --- calls ----------------------------------------------------------------------------------------------
    def find_call(self, request_id: str) -> CallRecord | None:
        """Return a call by its request id."""
        known = self._calls.get(request_id)
        if known is not None:
            return known
        row = self.db.execute(_SELECT_CALL, (request_id,)).fetchone()
        if row is None:
            return None
        *values, step = row
        return CallRecord(**dict(zip(CALL_COLUMNS, values, strict=True)), step=step)

    def opened(self, call: CallRecord) -> None:
        """Remember an open call."""
        self._calls[call.request_id] = call

    def closed(self, call: CallRecord) -> None:
        """Forget a call that ended, once that is committed."""
        self._closed.append(call.request_id)

    def add(self, run: RunRecord, call: CallRecord, before: tuple[int, int, int, int, int, int]) -> None:
        """Add to a run and its step what a call's share has changed by."""
        change = [after - was for after, was in zip(call.share(), before, strict=True)]
        _add(run, change)
        step = run.steps.get(call.step) if call.step is not None else None
        if step is not None:
            _add(step, change)
            step.state = step.derive_state()
            step.dirty = True
        self.touched(run)

    # --- grants ---------------------------------------------------------------------------------------------
    def used(self, grant_id: str, at_us: int) -> None:
        """Note when a grant was last used; written at most once a second, read from memory in between."""
        if at_us > self.last_used.get(grant_id, 0):
            self.last_used[grant_id] = at_us
            if at_us >= self._used_saved.get(grant_id, 0) + _USED_STEP_US:
                self._used_due[grant_id] = at_us

    def changed(self, kind: Literal["grant", "fleet", "deployment", "document", "run"], name: str) -> None:
        """Tell others who write the same database of a change; where there are none, nobody is told."""

    # --- memory ---------------------------------------------------------------------------------------------
    def _remember(self, row: tuple[Any, ...]) -> RunRecord:
        record = self.take_run(row)
        for values in self.db.execute(_SELECT_STEPS, (record.run,)).fetchall():
            self.take_step(values)
        return record

    def take_run(self, row: tuple[Any, ...]) -> RunRecord:
        """Remember a run as its row has it."""
        record = RunRecord(**dict(zip(RUN_COLUMNS, row, strict=True)))
        record.stored = run_declared(record)
        self._keep_run(record)
        return record

    def take_step(self, row: tuple[Any, ...]) -> None:
        """Remember a step of a run that is remembered, as its row has it."""
        step = StepRecord(**dict(zip(STEP_COLUMNS, row, strict=True)))
        self._runs[step.run].steps[step.step] = step

    def _keep_run(self, run: RunRecord) -> None:
        self._runs[run.run] = run
        self._run_ids[run.fleet, run.run_id] = run.run
        if run.trace_id is not None:
            self._traces.setdefault((run.fleet, run.trace_id), run.run)

    def _forget_run(self, run: RunRecord) -> None:
        self._runs.pop(run.run, None)
        self._run_ids.pop((run.fleet, run.run_id), None)

    def drop_runs(self, runs: Iterable[int]) -> None:
        """Forget runs whose rows were deleted."""
        gone = set(runs)
        for number in gone & self._runs.keys():
            self._forget_run(self._runs[number])
        self._traces = {trace: number for trace, number in self._traces.items() if number not in gone}

    def _trim(self) -> None:
        if len(self._runs) > _REMEMBERED_MAX:
            self._runs.clear()
            self._run_ids.clear()
            self._traces.clear()
        self.ledger.trim(4 * _REMEMBERED_MAX)


def _add(sums: Sums, change: list[int]) -> None:
    opened, errors, tokens_in, tokens_out, cached, cost = change
    sums.open_calls += opened
    sums.errors += errors
    sums.input_tokens += tokens_in
    sums.output_tokens += tokens_out
    sums.cached_tokens += cached
    sums.cost_nanos += cost
