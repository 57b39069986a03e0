"""Reads of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from nemo_agents.admin.wire import CallRow, RunDetail, RunPage, RunRow, StepRow, StoppedBy
from nemo_agents.gateway.stores.base import LogFilter
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.reader import cursor_of, parse_cursor
from nemo_agents.gateway.stores.reader_calls import read_calls_of_run
from nemo_agents.gateway.stores.reader_spans import read_spans_of_run
from nemo_agents.gateway.stores.writer_runs import RUN_COLUMNS, STEP_COLUMNS
from nemo_agents.policy.otel.tree import settle

__all__ = ["PREFIX_MIN", "read_run", "read_runs"]

PREFIX_MIN = 6

_SELECT = f"SELECT {', '.join('r.' + name for name in RUN_COLUMNS)} FROM runs r"  # noqa: S608 - our own column names
_STEPS = f"SELECT {', '.join(STEP_COLUMNS)} FROM steps WHERE run = :run ORDER BY seq"  # noqa: S608 - likewise


def read_runs(db: Database, where: LogFilter, *, before: str | None, limit: int) -> RunPage:
    """Return a page of runs, newest first. Raises ValueError for a bad cursor."""
    conditions, values = _conditions(where)
    if before is not None:
        at, run = parse_cursor(before, 2)
        conditions.append("(r.started_us, r.run) < (:at, :run)")
        values |= {"at": at, "run": run}
    found = _rows(db, conditions, {**values, "limit": limit + 1})
    page = found[:limit]
    last = page[-1] if len(found) > limit and page else None
    return RunPage(runs=[_run(row) for row in page], next=cursor_of(last["started_us"], last["run"]) if last else None)


def read_run(db: Database, run_id: str, *, fleet: str | None) -> RunDetail | None:
    """Return one run by id, by a prefix that only it has, or the newest grouped one for `last`."""
    row = _find(db, run_id, fleet)
    if row is None:
        return None
    steps = [_step(dict(zip(STEP_COLUMNS, values, strict=True))) for values in db.execute(_STEPS, {"run": row["run"]})]
    calls = read_calls_of_run(db, row["run"])
    _give_roles(steps, calls)
    spans = settle(read_spans_of_run(db, row["run"]), calls)
    return RunDetail(run=_run(row), steps=steps, calls=calls, spans=spans)


def _find(db: Database, run_id: str, fleet: str | None) -> dict[str, Any] | None:
    within = [] if fleet is None else ["r.fleet = :fleet"]
    values = {"fleet": fleet, "id": run_id, "limit": 1}
    exact = _rows(db, ["r.run_id = :id", *within], values)
    if exact:
        return exact[0]
    if run_id == "last":
        newest = _rows(db, ["r.grouped = 1", *within], values)
        return newest[0] if newest else None
    if len(run_id) < PREFIX_MIN:
        return None
    # A range, not LIKE: it uses the index, and takes `%` and `_` as they are.
    among = _rows(
        db,
        ["r.run_id >= :id", "r.run_id < :end", *within],
        {**values, "end": run_id + "\U0010ffff", "limit": 2},
    )
    return among[0] if len(among) == 1 else None


def _rows(db: Database, conditions: list[str], values: dict[str, Any]) -> list[dict[str, Any]]:
    where = " WHERE " + " AND ".join(conditions) if conditions else ""
    sql = f"{_SELECT}{where} ORDER BY r.started_us DESC, r.run DESC LIMIT :limit"
    return [dict(zip(RUN_COLUMNS, row, strict=True)) for row in db.execute(sql, values)]


def _conditions(where: LogFilter) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    of_calls: list[str] = []
    values: dict[str, Any] = {}
    for into, text, name, value in (
        (conditions, "r.fleet = :fleet", "fleet", where.fleet),
        (conditions, "r.state = :state", "state", where.state),
        (conditions, "r.run_id = :run_id", "run_id", where.run_id),
        (conditions, "r.started_us >= :since", "since", where.since_us),
        (of_calls, "c.role = :role", "role", where.role),
        (of_calls, "(c.model_asked = :model OR c.model_served = :model)", "model", where.model),
        (of_calls, "c.status = :status", "status", where.status),
        (of_calls, "c.code = :code", "code", where.code),
    ):
        if value is not None:
            into.append(text)
            values[name] = value
    if of_calls:  # one call that meets all of them
        conditions.append(f"EXISTS (SELECT 1 FROM calls c WHERE c.run = r.run AND {' AND '.join(of_calls)})")  # noqa: S608 - texts from above
    return conditions, values


def _run(row: dict[str, Any]) -> RunRow:
    told = row["state"] == "stopped" or (row["state"] == "failed" and row["stop_reported"])
    return RunRow(
        run_id=row["run_id"],
        fleet=row["fleet"] or None,
        name=row["name"],
        state=row["state"],
        grouped=bool(row["grouped"]),
        started_us=row["started_us"],
        ended_us=_ended(row),
        stopped_by=msgspec.json.decode(row["stopped_by"], type=StoppedBy) if told and row["stopped_by"] else None,
        error=row["error"],
        budget_nanos=row["budget_nanos"],
        max_calls=row["max_calls"],
        calls=row["calls"],
        errors=row["errors"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cached_tokens=row["cached_tokens"],
        cost_nanos=row["cost_nanos"],
        roles=json.loads(row["roles"]),
        models=json.loads(row["models"]),
    )


def _step(row: dict[str, Any]) -> StepRow:
    return StepRow(
        seq=row["seq"],
        step=row["step"],
        parent=row["parent"],
        role=row["role"],
        state=row["state"],
        started_us=row["started_us"],
        ended_us=_ended(row),
        error=row["error"],
        calls=row["calls"],
        errors=row["errors"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cached_tokens=row["cached_tokens"],
        cost_nanos=row["cost_nanos"],
    )


def _give_roles(steps: Sequence[StepRow], calls: Sequence[CallRow]) -> None:
    """A step that was told of without a role has that of its calls, if they all have one."""
    spoke: dict[str | None, set[str | None]] = {}
    for call in calls:
        spoke.setdefault(call.step, set()).add(call.role)
    for step in steps:
        if step.role is None and len(roles := spoke.get(step.step, set())) == 1:
            (step.role,) = roles


def _ended(row: dict[str, Any]) -> int | None:
    """Return when a run or step ended: as reported, else with the last thing that happened in it."""
    if row["state"] == "running":
        return None
    ended: int = row["last_us"] if row["ended_us"] is None else row["ended_us"]
    return ended
