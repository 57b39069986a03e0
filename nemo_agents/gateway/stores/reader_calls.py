"""Reads of the request log and of what calls said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from nemo_agents.admin.wire import AttemptRow, CallContent, CallRow, LogPage, Shadowed
from nemo_agents.errors import Code
from nemo_agents.gateway.stores.base import LogFilter, RecentUse
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.reader import cursor_of, marks, parse_cursor
from nemo_agents.gateway.stores.writer_content import HASH_BYTES, unpack

__all__ = ["read_call", "read_calls", "read_calls_of_run", "read_contents", "read_recent_use"]

_SELECT = (
    "SELECT c.run, c.seq, c.request_id, r.run_id, s.step, r.fleet, c.role, c.key_alias, c.key_id, c.endpoint, c.stream,"
    " c.model_asked, c.model_served, c.provider, c.state, c.status, c.code, c.error, c.limit_name, c.scope,"
    " c.started_us, c.ended_us, c.ttft_us, c.input_tokens, c.output_tokens, c.cached_tokens, c.cost_nanos,"
    " c.held_nanos, c.usage_source, c.finish_reason, c.attempts, c.guardrails, c.shadow,"
    " c.parent_span"
    " FROM calls c JOIN runs r ON r.run = c.run LEFT JOIN steps s ON s.run = c.run AND s.seq = c.step"
)
_ATTEMPTS = (
    "SELECT seq, n, model, provider, reason, status, error, started_us, ended_us, held_nanos, cost_nanos,"
    " wait_ms FROM attempts WHERE run = :run"
)
_CHUNK = 500
_UPLOAD_US = 600_000_000
"""How long before its first attempt a request may have begun, and still be found by when it was admitted."""


def read_calls(db: Database, where: LogFilter, *, before: str | None, limit: int) -> LogPage:
    """Return a page of the request log, newest first. Raises ValueError for a bad cursor."""
    conditions, values = _conditions(where)
    if before is not None:
        at, run, seq = parse_cursor(before, 3)
        conditions.append("(c.started_us, c.run, c.seq) < (:at, :run, :seq)")
        values |= {"at": at, "run": run, "seq": seq}
    rows = db.execute(
        f"{_SELECT}{_where(conditions)} ORDER BY c.started_us DESC, c.run DESC, c.seq DESC LIMIT :limit",
        {**values, "limit": limit + 1},
    ).fetchall()
    page = rows[:limit]
    last = page[-1] if len(rows) > limit and page else None
    return LogPage(calls=[_call(row) for row in page], next=cursor_of(last[20], last[0], last[1]) if last else None)


def read_call(db: Database, request_id: str) -> CallRow | None:
    """Return one record with its attempts."""
    row = db.execute(f"{_SELECT} WHERE c.request_id = :id", {"id": request_id}).fetchone()
    if row is None:
        return None
    call = _call(row)
    attempts = db.execute(f"{_ATTEMPTS} AND seq = :seq ORDER BY n", {"run": row[0], "seq": row[1]})
    call.attempt_rows = [_attempt(attempt) for attempt in attempts]
    return call


def read_calls_of_run(db: Database, run: int) -> list[CallRow]:
    """Return the calls of a run in order, with their attempts."""
    calls = [_call(row) for row in db.execute(f"{_SELECT} WHERE c.run = :run ORDER BY c.seq", {"run": run})]
    by_seq = {call.seq: call for call in calls}
    for attempt in db.execute(f"{_ATTEMPTS} ORDER BY seq, n", {"run": run}):
        by_seq[attempt[0]].attempt_rows.append(_attempt(attempt))
    return calls


def read_contents(db: Database, request_ids: Sequence[str]) -> dict[str, CallContent]:
    """Return what these calls said, where it was kept."""
    rows: list[tuple[str, bytes | None, bytes | None, bytes | None]] = []
    for ids in _chunks(request_ids):
        rows += db.execute(
            "SELECT c.request_id, k.prompt, k.params, c.answer FROM calls c"  # noqa: S608 - only numbers of marks
            " LEFT JOIN contents k ON k.run = c.run AND k.seq = c.seq"
            f" WHERE c.request_id IN ({marks(ids)}) AND (k.run IS NOT NULL OR c.answer IS NOT NULL)",
            ids,
        ).fetchall()
    messages = _messages(db, rows)
    contents = {}
    for request_id, prompt, params, answer in rows:
        contents[request_id] = CallContent(
            request_id=request_id,
            prompt=[messages[key] for key in _split(prompt)],
            params=messages[params] if params else {},
            answer=messages[answer] if answer else None,
        )
    return contents


def read_recent_use(db: Database, since_us: int) -> list[RecentUse]:
    """Return the requests since then that admission counted, oldest first, with their tokens (0 where unknown).

    Admission asks for shape, grouping, model and tools first and for the requests of the minute then, and
    counts a request there even if something later refuses it. What was refused before is told by its code, or by
    having no model yet; bad grouping alone cannot be told from later faults of a request, and is counted. What the
    gateway refused because its own store or limiter was away uses up nobody's rates.

    Admission comes after the upload, and right before the first attempt: that says when, where there is one.
    """
    rows = db.execute(
        "SELECT c.grant_id, r.fleet, coalesce(a.started_us, c.started_us) AS at_us,"
        " coalesce(c.input_tokens, 0) + coalesce(c.output_tokens, 0), c.model_asked"
        " FROM calls c JOIN runs r ON r.run = c.run LEFT JOIN attempts a ON a.run = c.run AND a.seq = c.seq AND a.n = 1"
        " WHERE c.started_us >= :upload AND coalesce(a.started_us, c.started_us) >= :since"
        " AND c.grant_id IS NOT NULL"
        " AND (c.attempts > 0 OR (c.model_asked IS NOT NULL AND coalesce(c.limit_name, '') <> 'rpm'"
        " AND coalesce(c.code, '') NOT IN (:model, :tool, :down))) ORDER BY at_us",
        {
            "since": since_us,
            "upload": since_us - _UPLOAD_US,
            "model": Code.MODEL_NOT_ALLOWED,
            "tool": Code.TOOL_NOT_ALLOWED,
            "down": Code.STORE_UNAVAILABLE,
        },
    )
    return [
        RecentUse(grant_id=grant_id, fleet=fleet or None, at_us=at_us, tokens=tokens, model=model)
        for grant_id, fleet, at_us, tokens, model in rows
    ]


def _conditions(where: LogFilter) -> tuple[list[str], dict[str, Any]]:
    conditions, values = [], {}
    for text, name, value in (
        ("r.fleet = :fleet", "fleet", where.fleet),
        ("c.role = :role", "role", where.role),
        ("(c.model_asked = :model OR c.model_served = :model)", "model", where.model),
        ("c.status = :status", "status", where.status),
        ("c.code = :code", "code", where.code),
        ("r.run_id = :run_id", "run_id", where.run_id),
        ("c.state = :state", "state", where.state),
        ("c.started_us >= :since", "since", where.since_us),
    ):
        if value is not None:
            conditions.append(text)
            values[name] = value
    return conditions, values


def _where(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _call(row: tuple[Any, ...]) -> CallRow:
    started_us, ended_us = row[20], row[21]
    return CallRow(
        seq=row[1],
        request_id=row[2],
        run_id=row[3],
        step=row[4],
        fleet=row[5] or None,
        role=row[6],
        key_alias=row[7],
        key_id=row[8],
        endpoint=row[9],
        stream=bool(row[10]),
        model_asked=row[11],
        model_served=row[12],
        provider=row[13],
        state=row[14],
        status=row[15],
        code=row[16],
        error=row[17],
        limit=row[18],
        scope=row[19],
        started_us=started_us,
        latency_us=None if ended_us is None else ended_us - started_us,
        ttft_us=row[22],
        input_tokens=row[23],
        output_tokens=row[24],
        cached_tokens=row[25],
        cost_nanos=row[26],
        held_nanos=row[27],
        usage_source=row[28],
        finish_reason=row[29],
        attempts=row[30],
        guardrails=json.loads(row[31]),
        shadow=[] if row[32] is None else msgspec.json.decode(row[32], type=list[Shadowed]),
        parent_span=row[33],
    )


def _attempt(row: tuple[Any, ...]) -> AttemptRow:
    _, n, model, provider, reason, status, error, started_us, ended_us, held, cost, wait_ms = row
    return AttemptRow(
        n=n,
        model=model,
        provider=provider,
        reason=reason,
        status=status,
        error=error,
        started_us=started_us,
        latency_us=None if ended_us is None else ended_us - started_us,
        held_nanos=held,
        cost_nanos=cost,
        wait_ms=wait_ms,
    )


def _split(hashes: bytes | None) -> list[bytes]:
    return [hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)] if hashes else []


def _messages(db: Database, rows: Iterable[tuple[str, bytes | None, bytes | None, bytes | None]]) -> dict[bytes, Any]:
    keys: dict[bytes, None] = {}
    for _, prompt, params, answer in rows:
        keys.update(dict.fromkeys([*_split(prompt), *(key for key in (params, answer) if key)]))
    messages: dict[bytes, Any] = {}
    for some in _chunks(list(keys)):
        for key, body in db.execute(f"SELECT hash, body FROM messages WHERE hash IN ({marks(some)})", some):  # noqa: S608 - only numbers of marks
            messages[key] = json.loads(unpack(body))
    return messages


def _chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK))
