"""Runs and steps as the writer keeps them: sums over their calls, and the state that follows from them.

The sums change in memory together with the call that changes them, and are written in the same transaction;
the state is a pure function of the record.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from nemo_agents.admin.wire import StoppedBy
from nemo_agents.errors import Code
from nemo_agents.gateway.stores.base import CallEnd

__all__ = [
    "INSERT_RUN",
    "RUN_COLUMNS",
    "SAVE_STEP",
    "STEP_COLUMNS",
    "RunRecord",
    "StepRecord",
    "Sums",
    "lower",
    "outcome_of",
    "run_declared",
    "run_update",
    "run_values",
    "step_values",
    "stop_json",
    "stop_kept",
    "stop_of",
]

_NAMES_MAX = 32  # roles and models listed on a run


@dataclass(slots=True, kw_only=True)
class Sums:
    """What runs and steps have in common: sums over calls, and what their state follows from.

    `outcome` is how the ended call with the highest number in the run went: ok, failed or stopped.
    """

    state: str = "running"
    reported_state: str | None = None
    started_us: int
    last_us: int
    ended_us: int | None = None
    error: str | None = None
    open_calls: int = 0
    outcome: str | None = None
    outcome_seq: int = 0
    calls: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nanos: int = 0

    def derive_state(self, *, stopped: bool = False) -> str:
        """Return the state.

        What the SDK reported at the end wins; an `ok` with errors on the way is `recovered`.
        """
        reported = self.reported_state
        if reported is not None and reported != "running":
            return "recovered" if reported == "ok" and self.errors else reported
        if reported == "running" or self.open_calls:
            return "running"
        if stopped:
            return "stopped"
        if self.outcome in (None, "ok"):
            return "recovered" if self.errors else "ok"
        return self.outcome or "ok"


@dataclass(slots=True, kw_only=True)
class StepRecord(Sums):
    """One row of `steps`."""

    run: int
    seq: int
    step: str
    parent: str | None
    role: str | None
    dirty: bool = False


@dataclass(slots=True, kw_only=True)
class RunRecord(Sums):
    """One row of `runs`, with its steps by label."""

    run: int
    run_id: str
    fleet: str
    grouped: int
    name: str
    stopped_by: str | None = None  # JSON of wire.StoppedBy
    stop_reported: int = 0
    stopped_us: int | None = None
    budget_nanos: int | None = None
    max_calls: int | None = None
    admitted: int = 0
    last_seq: int = 0
    roles: str = "[]"
    models: str = "[]"
    trace_id: str | None = None  # what spans find it by (see `stores.traces`)
    traced: int = 0  # name, state and end are those of the root of its trace
    spans_max: int | None = None  # no more than so many are kept of it: repeats count, too; None: not counted yet
    steps: dict[str, StepRecord] = field(default_factory=dict)
    dirty: bool = False
    stored: tuple[Any, ...] | None = None  # `run_declared` as the file has it; None before the first time

    def saw(self, role: str | None, model: str | None) -> None:
        """Note a role and a model of one of its calls."""
        self.roles = _with(self.roles, role)
        self.models = _with(self.models, model)

    def step_named(
        self, label: str, *, parent: str | None, role: str | None, started_us: int, state: str = "running"
    ) -> StepRecord:
        """Return the step with this label, the next in order when it is new."""
        step = self.steps.get(label)
        if step is None:
            seq = len(self.steps) + 1
            step = StepRecord(
                run=self.run,
                seq=seq,
                step=label,
                parent=parent,
                role=role,
                state=state,
                started_us=started_us,
                last_us=started_us,
            )
            self.steps[label] = step
        else:
            step.parent = step.parent if parent is None else parent
            step.role = step.role if role is None else role
        step.dirty = True
        return step


_SUMS: Final = (
    "state",
    "reported_state",
    "started_us",
    "last_us",
    "ended_us",
    "error",
    "open_calls",
    "outcome",
    "outcome_seq",
    "calls",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_nanos",
)
_RUN_FIXED: Final = ("run", "run_id", "fleet", "grouped", "trace_id")
_RUN_COUNTED: Final = (  # what a call changes
    "stopped_by",
    "admitted",
    "last_seq",
    "roles",
    "models",
    "last_us",
    "error",
    "open_calls",
    "outcome",
    "outcome_seq",
    "calls",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_nanos",
)
_RUN_DECLARED: Final = (  # what it hardly ever changes; `state` first
    "state",
    "started_us",
    "name",
    "reported_state",
    "ended_us",
    "stop_reported",
    "stopped_us",
    "budget_nanos",
    "max_calls",
    "traced",
)
RUN_COLUMNS: Final = (*_RUN_FIXED, *_RUN_DECLARED, *_RUN_COUNTED)
STEP_COLUMNS: Final = ("run", "seq", "step", "parent", "role", *_SUMS)

run_values = attrgetter(*RUN_COLUMNS)
run_declared = attrgetter(*_RUN_DECLARED)
_run_counted = attrgetter(*_RUN_COUNTED, "run")
step_values = attrgetter(*STEP_COLUMNS)

INSERT_RUN: Final = f"INSERT INTO runs({', '.join(RUN_COLUMNS)}) VALUES ({', '.join('?' * len(RUN_COLUMNS))})"  # noqa: S608 - our own column names
_UPDATE_RUN: Final = tuple(
    f"UPDATE runs SET {', '.join(f'{name}=?' for name in (*declared, *_RUN_COUNTED))} WHERE run=?"  # noqa: S608 - likewise
    for declared in ((), _RUN_DECLARED[:1], _RUN_DECLARED)
)
SAVE_STEP: Final = (
    f"INSERT INTO steps({', '.join(STEP_COLUMNS)}) VALUES ({', '.join('?' * len(STEP_COLUMNS))})"  # noqa: S608 - likewise
    f" ON CONFLICT (run, seq) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in STEP_COLUMNS[2:])}"
)


def run_update(run: RunRecord) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that saves a run, and its values.

    It names no more columns than it must: SQLite writes every index anew whose columns an UPDATE names.
    """
    declared = run_declared(run)
    if declared == run.stored:
        return _UPDATE_RUN[0], _run_counted(run)
    if run.stored is not None and declared[1:] == run.stored[1:]:
        return _UPDATE_RUN[1], (run.state, *_run_counted(run))
    return _UPDATE_RUN[2], (*declared, *_run_counted(run))


def lower(declared: int | None, asked: int | None) -> int | None:
    """Return a cap after another call asked for one: the lower of the two; None is no cap."""
    if declared is None or asked is None:
        return asked if declared is None else declared
    return min(declared, asked)


_STOPS: Final[dict[str, str]] = {
    Code.BUDGET_EXHAUSTED: "budget",
    Code.BUDGET_HELD: "budget",
    Code.REQUEST_EXCEEDS_BUDGET: "budget",
    Code.GUARDRAIL_BLOCKED: "guardrail",
    Code.LOOP_DETECTED: "loop",
    Code.KEY_BLOCKED: "access",
    Code.KEY_EXPIRED: "access",
    Code.KEY_REVOKED: "access",
    Code.MODEL_NOT_ALLOWED: "access",
    Code.TOOL_NOT_ALLOWED: "access",
}


def stop_of(end: CallEnd, step: str | None) -> StoppedBy | None:
    """Return what a refusal stopped a run with; a call that was cut in flight by a stop counts as one.

    None when it stops none (a rate does not: waiting cures it).
    """
    cut = end.state == "failed" and end.code == Code.RUN_STOPPED
    if (end.state != "refused" and not cut) or end.code is None:
        return None
    if end.code == Code.RUN_STOPPED:
        kind: str | None = "max_calls" if end.limit == "max_calls" else "stopped"
    else:
        kind = _STOPS.get(end.code) or ("budget" if end.status == 402 else None)
    if kind is None:
        return None
    return StoppedBy(
        kind=kind,
        code=end.code,
        scope="run" if cut else end.scope,
        limit="stopped" if cut else end.limit,
        step=step,
        request_id=end.request_id,
        message=end.error or "",
    )


def stop_kept(run: RunRecord, end: CallEnd, stop: StoppedBy | None) -> str | None:
    """Return the JSON of what a run is stopped by, after its latest call ended so.

    What the SDK reported stays. So does a stop by hand, whatever calls that were in flight then come to; the call
    that it cut says where it met the run.
    """
    if run.stop_reported:
        return run.stopped_by
    if run.stopped_us is None or (stop is not None and end.state == "failed"):
        return stop_json(stop)
    return run.stopped_by


def outcome_of(end: CallEnd, stop: StoppedBy | None) -> str:
    """Return how an ended call counts for its run and step: ok, failed or stopped."""
    if stop is not None:
        return "stopped"
    return "ok" if end.state == "ok" else "failed"


def stop_json(stop: StoppedBy | None) -> str | None:
    """Return the text in which a stop is kept."""
    return None if stop is None else msgspec.json.encode(stop).decode()


@lru_cache(maxsize=4096)
def _with(names: str, name: str | None) -> str:
    if name is None:
        return names
    listed = json.loads(names)
    return names if name in listed or len(listed) >= _NAMES_MAX else json.dumps([*listed, name])
