"""What the data plane writes: calls, attempts and holds.

Each function is one operation on the writer thread. It looks before it writes, so that a policy's no leaves
nothing behind but balances of zero; an exception takes the operation back as a whole.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import structlog

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart
from nemo_agents.gateway.stores.hold import Hold, capped
from nemo_agents.gateway.stores.traces import trace_key
from nemo_agents.gateway.stores.writer_books import Books, CallRecord
from nemo_agents.gateway.stores.writer_runs import RunRecord, StepRecord, Sums, lower, outcome_of, stop_kept, stop_of
from nemo_agents.policy.ledger import Held, HoldRefused, RunRefused, Settlement

__all__ = ["close_call", "expire", "log_hit", "log_refusal", "next_attempt", "open_call", "take_back"]

_log = structlog.get_logger("nemo_agents.gateway")

_TEXT_MAX: Final = 4000  # of an error's text; providers answer with whole pages
_NOTHING: Final = (0, 0, 0, 0, 0, 0)  # the share of a call that is not there yet
_LOST: Final = "the gateway lost sight of this call; it is charged at its hold"

_INSERT_CALL: Final = (
    "INSERT INTO calls(run, seq, request_id, step, role, key_alias, key_id, grant_id, endpoint, stream, model_asked,"
    " parent_span, state, started_us, held_nanos, attempts, guardrails)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_ENDED: Final = (
    "INSERT INTO calls(run, seq, request_id, step, role, key_alias, key_id, grant_id, endpoint, stream, model_asked,"
    " parent_span, started_us, state, status, code, error, limit_name, scope, model_served, provider, ended_us,"
    " ttft_us, input_tokens, output_tokens, cached_tokens, cost_nanos, usage_source, finish_reason, guardrails, answer,"
    " shadow) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_END_CALL: Final = (
    "UPDATE calls SET state=?, status=?, code=?, error=?, limit_name=?, scope=?, model_served=?, provider=?,"
    " ended_us=?, ttft_us=?, input_tokens=?, output_tokens=?, cached_tokens=?, cost_nanos=?, usage_source=?,"
    " finish_reason=?, guardrails=CASE ? WHEN '[]' THEN guardrails ELSE ? END, answer=coalesce(?, answer),"
    " shadow=coalesce(?, shadow)"
    " WHERE run=? AND seq=?"
)
_INSERT_ATTEMPT: Final = (
    "INSERT INTO attempts(run, seq, n, hold_id, model, provider, reason, started_us, held_nanos, balances,"
    " price_version, expires_us, wait_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_OF_FLEET: Final = " JOIN runs r ON r.run = a.run AND r.fleet = :fleet"


def open_call(books: Books, call: CallStart, attempt: AttemptStart) -> Held | HoldRefused | RunRefused:
    """Commit the intent row and the hold, or neither."""
    # A call that is its own run has a new id: nothing to look up (UNIQUE says so, should it be wrong).
    run = books.find_run(call.fleet or "", call.run_id) if call.grouped else None
    budget, max_calls, admitted = call.caps.budget_nanos, call.caps.max_calls, 0
    if run is not None:
        budget, max_calls = lower(run.budget_nanos, budget), lower(run.max_calls, max_calls)
        admitted = run.admitted
        if run.stopped_us is not None:
            return RunRefused(why="stopped", max_calls=max_calls)
    if max_calls is not None and admitted >= max_calls:
        return RunRefused(why="max_calls", max_calls=max_calls)
    held = books.ledger.hold(attempt, request_id=call.request_id, scopes=capped(attempt.scopes, budget))
    if isinstance(held, HoldRefused):
        return held
    balances, hold = held
    run = run or _new_run(books, call)
    run.admitted += 1
    record = _insert_call(books, run, call, attempt)
    _insert_attempt(books, record, attempt, hold)
    books.opened(record)
    if call.grant_id is not None:
        books.used(call.grant_id, call.started_us)
    return Held(balances=balances, seq=record.seq)


def next_attempt(books: Books, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Held | HoldRefused:
    """Resolve the hold of the attempt that failed (whatever comes next), and hold for the next one."""
    call = books.find_call(request_id)
    if call is None:
        raise ValueError(f"no call {request_id} was opened")
    run = books.run(call.run)
    before = call.share()
    _settle(books, call, ended)
    held = books.ledger.hold(attempt, request_id=request_id, scopes=capped(attempt.scopes, run.budget_nanos))
    if isinstance(held, HoldRefused):
        # Nothing is open any more. Given up now, the call is no loose end should the process die before it is
        # closed.
        _end(books, run, call, _given_up(request_id, ended.ended_us, ended.error))
        books.add(run, call, before)
        return held
    call.state = "open"  # also when the sweeper had given it up
    call.attempts += 1
    _insert_attempt(books, call, attempt, held[1])
    books.opened(call)
    books.db.later(
        "UPDATE calls SET state='open', attempts=?, held_nanos=?, cost_nanos=? WHERE run=? AND seq=?",
        (call.attempts, attempt.hold_nanos, call.cost_nanos, call.run, call.seq),
    )
    run.last_us = max(run.last_us, ended.ended_us)
    books.add(run, call, before)
    return Held(balances=held[0], seq=call.seq)


def close_call(books: Books, end: CallEnd, attempt: AttemptEnd | None) -> None:
    """Resolve a call's last hold and write how it ended. Saying it again changes nothing."""
    call = books.find_call(end.request_id)
    if call is None:
        _log.error("the end of an unknown call was dropped", request_id=end.request_id)
        return
    before = call.share()
    if attempt is not None:
        _settle(books, call, attempt)
    run = books.run(call.run)
    if call.state in ("open", "abandoned"):  # what the sweeper gave up may still come back with the truth
        _end(books, run, call, end)
    elif call.share() != before:
        books.db.later("UPDATE calls SET cost_nanos=? WHERE run=? AND seq=?", (call.cost_nanos, call.run, call.seq))
    books.closed(call)
    books.add(run, call, before)


def take_back(books: Books, end: CallEnd, attempt: AttemptEnd) -> None:
    """Void a hold that may have been written, and end its call; where it was not, change nothing."""
    call = books.find_call(end.request_id)
    if call is not None and books.ledger.knows(call.run, call.seq, attempt):
        close_call(books, end, attempt)


def log_refusal(books: Books, call: CallStart, end: CallEnd) -> None:
    """Write the record of a call that was refused before it was sent."""
    known = books.find_call(call.request_id)
    if known is not None:  # its hold was committed while the caller was already leaving: nothing was sent
        _void_open(books, known, end.ended_us)
        close_call(books, end, None)
        return
    run = books.find_run(call.fleet or "", call.run_id) if call.grouped else None
    _log_ended(books, run or _new_run(books, call), call, end)


def _log_ended(books: Books, run: RunRecord, call: CallStart, end: CallEnd) -> None:
    """Write the record of a call that begins and ends at once."""
    record, step = _count_call(run, call, state=end.state)
    record.cost_nanos = 0
    *ended, guardrails, answer, shadow = _ended(books, run, record, end)
    started = (*_who(run, record, step, call), call.started_us)
    values = (*started, *ended, guardrails if end.guardrails else _names(call.guardrails), answer, shadow)
    books.db.later(_INSERT_ENDED, values)  # begun and ended at once: one statement, and not two
    books.content.question(run.run, record.seq, call.prompt, call.params)
    books.add(run, record, _NOTHING)


def log_hit(books: Books, call: CallStart, end: CallEnd) -> RunRefused | None:
    """Write the record of a call that was answered without being sent; a run that may make no more calls has none.

    It counts among the run's calls like any other.
    """
    run = books.find_run(call.fleet or "", call.run_id) if call.grouped else None
    max_calls = lower(None if run is None else run.max_calls, call.caps.max_calls)
    if run is not None and run.stopped_us is not None:
        return RunRefused(why="stopped", max_calls=max_calls)
    if max_calls is not None and (0 if run is None else run.admitted) >= max_calls:
        return RunRefused(why="max_calls", max_calls=max_calls)
    run = run or _new_run(books, call)
    run.admitted += 1
    _log_ended(books, run, call, end)
    if call.grant_id is not None:
        books.used(call.grant_id, call.started_us)
    return None


def expire(books: Books, now_us: int, *, due_us: int | None, limit: int, fleet: str | None = None) -> int:
    """Post up to `limit` holds past their time at the hold, and give their calls up.

    `due_us` None expires all; `fleet` None those of all fleets.
    """
    rows = books.db.execute(
        "SELECT c.request_id, a.n, a.hold_id, a.held_nanos FROM attempts a JOIN calls c ON c.run = a.run"  # noqa: S608 - our own text
        f" AND c.seq = a.seq{_OF_FLEET if fleet is not None else ''}"
        " WHERE a.settled IS NULL AND a.expires_us <= :due ORDER BY a.expires_us LIMIT :limit",
        {"due": (1 << 62) if due_us is None else due_us, "limit": limit, "fleet": fleet},
    ).fetchall()
    for request_id, n, hold_id, held in rows:
        end = AttemptEnd(
            hold_id=hold_id,
            n=n,
            ended_us=now_us,
            status=None,
            error=_LOST,
            settlement=Settlement(kind="expire", amount_nanos=held),
            usage_source="hold",
        )
        close_call(books, _given_up(request_id, now_us, _LOST), end)
    return len(rows)


def _given_up(request_id: str, now_us: int, error: str | None) -> CallEnd:
    return CallEnd(
        request_id=request_id, ended_us=now_us, state="abandoned", status=0, error=error, usage_source="hold"
    )


def _new_run(books: Books, call: CallStart) -> RunRecord:
    name = call.run_name or (call.run_id if call.grouped else call.model_asked or call.endpoint)
    return books.new_run(
        fleet=call.fleet or "",
        run_id=call.run_id,
        grouped=call.grouped,
        name=name,
        started_us=call.started_us,
        trace_id=call.trace_id and trace_key(call.fleet or "", call.run_id, call.trace_id),
    )


def _insert_call(books: Books, run: RunRecord, call: CallStart, attempt: AttemptStart) -> CallRecord:
    """Insert the row of a call that is to be sent, and count it in its run and step."""
    record, step = _count_call(run, call, state="open")
    record.attempts = 1
    who = _who(run, record, step, call)
    books.db.later(_INSERT_CALL, (*who, "open", call.started_us, attempt.hold_nanos, 1, _names(call.guardrails)))
    books.content.question(run.run, record.seq, call.prompt, call.params)
    books.add(run, record, _NOTHING)
    return record


def _count_call(run: RunRecord, call: CallStart, *, state: str) -> tuple[CallRecord, StepRecord | None]:
    """Count a call in its run and step, lower the run's caps, and return what is to become of its row."""
    run.budget_nanos = lower(run.budget_nanos, call.caps.budget_nanos)
    run.max_calls = lower(run.max_calls, call.caps.max_calls)
    if call.run_name and run.reported_state is None:
        run.name = call.run_name
    run.saw(call.role, call.model_asked)
    run.last_seq += 1
    step = None
    if call.step is not None:
        step = run.step_named(call.step, parent=call.parent_step, role=None, started_us=call.started_us)
    for sums in (run, step) if step else (run,):
        if sums.reported_state == "lost":  # it lives after all
            sums.reported_state = "running"
        sums.calls += 1
        sums.started_us = min(sums.started_us, call.started_us) if sums.reported_state is None else sums.started_us
        sums.last_us = max(sums.last_us, call.started_us)
    record = CallRecord(
        request_id=call.request_id,
        run=run.run,
        seq=run.last_seq,
        state=state,
        started_us=call.started_us,
        step=call.step,
    )
    return record, step


def _who(run: RunRecord, record: CallRecord, step: StepRecord | None, call: CallStart) -> tuple[int | str | None, ...]:
    """Return the first columns of a call's row: which it is, whose, and what it asks for."""
    return (
        run.run,
        record.seq,
        call.request_id,
        step.seq if step else None,
        call.role,
        call.key_alias,
        call.key_id,
        call.grant_id,
        call.endpoint,
        int(call.stream),
        call.model_asked,
        call.parent_span,
    )


def _insert_attempt(books: Books, call: CallRecord, attempt: AttemptStart, hold: Hold) -> None:
    call.hold = hold
    books.db.later(
        _INSERT_ATTEMPT,
        (
            call.run,
            call.seq,
            attempt.n,
            attempt.hold_id,
            attempt.model,
            attempt.provider,
            attempt.reason,
            attempt.started_us,
            attempt.hold_nanos,
            hold.listed,
            attempt.price_version,
            attempt.expires_us,
            attempt.wait_ms,
        ),
    )


def _settle(books: Books, call: CallRecord, end: AttemptEnd) -> None:
    change = books.ledger.settle(call.run, call.seq, call.request_id, end, known=call.hold)
    call.hold = None  # it is open no longer
    if change:
        call.cost_nanos = (call.cost_nanos or 0) + change


def _end(books: Books, run: RunRecord, call: CallRecord, end: CallEnd) -> None:
    """Write how a call ended."""
    *values, guardrails, answer, shadow = _ended(books, run, call, end)
    books.db.later(_END_CALL, (*values, guardrails, guardrails, answer, shadow, call.run, call.seq))


def _ended(books: Books, run: RunRecord, call: CallRecord, end: CallEnd) -> tuple[Any, ...]:
    """Note in its run how a call ended, and return the last columns of its row.

    What it cost is the sum of its settled holds, whatever `end` says.
    """
    call.state = end.state
    call.input_tokens, call.output_tokens = end.input_tokens, end.output_tokens
    call.cached_tokens = end.cached_tokens
    if call.cost_nanos is None and end.cost_nanos is not None:
        call.cost_nanos = 0  # known to be nothing
    stop = stop_of(end, call.step)
    error = None if end.error is None else end.error[:_TEXT_MAX]
    run.saw(None, end.model_served)
    outcome = outcome_of(end, stop)
    if call.seq >= run.outcome_seq:
        run.stopped_by = stop_kept(run, end, stop)
        if run.reported_state is None:
            run.error = None if end.state == "ok" else error
    for sums in _counted(run, call):
        sums.last_us = max(sums.last_us, end.ended_us)
        if call.seq >= sums.outcome_seq:
            sums.outcome, sums.outcome_seq = outcome, call.seq
    return (
        end.state,
        end.status or None,
        end.code,
        error,
        end.limit,
        end.scope,
        end.model_served,
        end.provider,
        end.ended_us,
        end.ttft_us,
        end.input_tokens,
        end.output_tokens,
        end.cached_tokens,
        call.cost_nanos,
        end.usage_source,
        end.finish_reason,
        _names(end.guardrails),
        books.content.keep(end.answer),
        msgspec.json.encode(end.shadow).decode() if end.shadow else None,
    )


def _counted(run: RunRecord, call: CallRecord) -> tuple[Sums, ...]:
    return (run,) if call.step is None else (run, run.steps[call.step])


def _void_open(books: Books, call: CallRecord, now_us: int) -> None:
    before = call.share()
    rows = books.db.execute(
        "SELECT n, hold_id FROM attempts WHERE run=? AND seq=? AND settled IS NULL", (call.run, call.seq)
    ).fetchall()
    for n, hold_id in rows:
        end = AttemptEnd(
            hold_id=hold_id,
            n=n,
            ended_us=now_us,
            status=None,
            error=None,
            settlement=Settlement(kind="void", amount_nanos=0),
            usage_source="none",
        )
        _settle(books, call, end)
    books.add(books.run(call.run), call, before)


def _names(names: tuple[str, ...]) -> str:
    return json.dumps(names) if names else "[]"
