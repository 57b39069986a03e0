"""What every store does that speaks SQL: one writer thread, a few reader threads, and the same statements.

How the connections are made, and what it takes to start, is each database's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

from nemo_agents.admin import wire
from nemo_agents.gateway.stores import (
    hold,
    pruning,
    reader_calls,
    reader_ledger,
    reader_prune,
    reader_runs,
    reader_spans,
    writer_calls,
    writer_events,
    writer_keys,
    writer_reports,
    writer_spans,
)
from nemo_agents.gateway.stores.base import (
    AttemptEnd,
    AttemptStart,
    CallEnd,
    CallStart,
    Delivery,
    FleetRecord,
    HourSpend,
    LogFilter,
    PruneOrder,
    RecentUse,
    SpanBatch,
)
from nemo_agents.gateway.stores.database import Database, Touches
from nemo_agents.gateway.stores.reader import Readers
from nemo_agents.gateway.stores.writer import Writer
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.gateway.stores.writer_content import Content
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, Held, HoldRefused, RunRefused, Settlement
from nemo_agents.policy.routing import Deployment

__all__ = ["CHANGES", "EVENTS", "LOST_AFTER_US", "SWEEP_MAX", "SqlStore"]

CHANGES = "*changes"
EVENTS = "*events"
"""Topics: what is numbered in the order of commits. No fleet has such a name (`*` is in none)."""

SWEEP_MAX = 500  # holds per transaction
LOST_AFTER_US = 6 * 3600 * 1_000_000

_WENT_AWAY = "the client went away before the call was sent"
_LOST_SIGHT = "the database was lost while it committed this hold; nothing was sent"

_T = TypeVar("_T")


class SqlStore:
    """The methods of the `Store` protocol that are the same for every database (see `stores.base`)."""

    def __init__(self, writer: Writer, readers: Readers, clock: Callable[[], int]) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock
        self._fleets: dict[str, str] = {}  # of the calls that are open here, by request id

    async def flush(self) -> None:
        """Return when everything queued so far is committed, and the database has taken one write more."""
        await self._writer.do(Books.prove_writable, after_all=True)

    @property
    def backlog(self) -> int:
        """How many operations wait to be written."""
        return self._writer.backlog

    # --- data plane -----------------------------------------------------------------------------------------
    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Held | HoldRefused | RunRefused:
        """Commit the intent row and the hold, or neither.

        Cancelled while it waits, it takes the hold back.
        """
        hold.check_hold(attempt)
        fleet = self._fleets[call.request_id] = call.fleet or ""
        run_id = call.run_id if call.grouped else None
        try:
            answer: Held | HoldRefused | RunRefused = await self._writer.do(
                partial(writer_calls.open_call, call=call, attempt=attempt),
                Touches(fleet=fleet, run_id=run_id, scopes=attempt.scopes),
                content=_content(partial(writer_calls.open_call, attempt=attempt), call=call),
                orphaned=partial(self._take_back, call.request_id, fleet, attempt),
            )
        except BaseException:
            self._fleets.pop(call.request_id, None)
            raise
        if not isinstance(answer, Held):
            self._fleets.pop(call.request_id, None)
        return answer

    async def next_attempt(self, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Held | HoldRefused:
        """Resolve the hold of the attempt that failed, and hold for the next in the same transaction."""
        hold.check_hold(attempt)
        fleet = self._fleets.get(request_id)
        return await self._writer.do(
            partial(writer_calls.next_attempt, request_id=request_id, ended=ended, attempt=attempt),
            Touches(fleet=fleet, request_id=request_id, scopes=attempt.scopes),
            orphaned=partial(self._take_back, request_id, fleet, attempt),
        )

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        """Queue the end of a call."""
        fleet = self._fleets.pop(end.request_id, None)
        touches = Touches(fleet=fleet, request_id=end.request_id)
        content = _content(partial(writer_calls.close_call, attempt=attempt), end=end)
        self._writer.keep(partial(writer_calls.close_call, end=end, attempt=attempt), touches, content=content)

    def log_refusal(self, call: CallStart, end: CallEnd) -> None:
        """Queue the record of a call that was refused before it was sent."""
        run_id = call.run_id if call.grouped else None
        touches = Touches(fleet=call.fleet or "", request_id=call.request_id, run_id=run_id, lasting=False)
        log = partial(writer_calls.log_refusal, call=call, end=end)
        content = _content(writer_calls.log_refusal, call=call, end=end)
        self._writer.keep(log, touches, content=content, droppable=True)

    async def log_hit(self, call: CallStart, end: CallEnd) -> RunRefused | None:
        """Commit the record of a call that the cache answers; where its run may make no more calls, nothing."""
        return await self._writer.do(
            partial(writer_calls.log_hit, call=call, end=end),
            Touches(fleet=call.fleet or "", request_id=call.request_id, run_id=call.run_id if call.grouped else None),
            content=_content(writer_calls.log_hit, call=call, end=end),
        )

    async def room_for_refusal(self) -> None:
        """Return when the store keeps up with the refusals logged before, or cannot write at all."""
        await self._writer.room_for_record()

    async def recent_use(self, since_us: int) -> Sequence[RecentUse]:
        """Return the requests since then that admission counted, oldest first."""
        return await self._read(partial(reader_calls.read_recent_use, since_us=since_us))

    # --- keys, fleets, deployments --------------------------------------------------------------------------
    async def grants(self) -> Sequence[Grant]:
        """Return every grant with its secrets, revoked ones included."""
        return await self._read(partial(writer_keys.read_grants, last_used=self._writer.last_used))

    async def put_grant(self, grant: Grant) -> None:
        """Insert or replace a grant and its secrets.

        Raises ValueError when a public id belongs to another grant.
        """
        await self._writer.do(
            partial(writer_keys.put_grant, grant=grant), Touches(fleet=grant.fleet or "", topics=(CHANGES,))
        )

    async def fleets(self) -> Sequence[FleetRecord]:
        """Return every fleet."""
        return await self._read(writer_keys.read_fleets)

    async def put_fleet(self, fleet: FleetRecord) -> None:
        """Insert or replace a fleet."""
        await self._writer.do(partial(writer_keys.put_fleet, fleet=fleet), Touches(topics=(CHANGES,)))

    async def delete_fleet(self, fleet: str) -> bool:
        """Remove a fleet's record; say whether there was one."""
        return await self._writer.do(partial(writer_keys.delete_fleet, fleet=fleet), Touches(topics=(CHANGES,)))

    async def deployments(self) -> Sequence[Deployment]:
        """Return every deployment."""
        return await self._read(writer_keys.read_deployments)

    async def put_deployment(self, deployment: Deployment) -> None:
        """Insert or replace a deployment."""
        await self._writer.do(partial(writer_keys.put_deployment, deployment=deployment), Touches(topics=(CHANGES,)))

    async def delete_deployment(self, deployment_id: str) -> bool:
        """Remove a deployment; say whether there was one."""
        return await self._writer.do(
            partial(writer_keys.delete_deployment, deployment_id=deployment_id), Touches(topics=(CHANGES,))
        )

    async def document(self, name: str) -> bytes | None:
        """Return a document by name; None when there is none."""
        return await self._read(partial(writer_events.read_document, name=name))

    async def put_document(self, name: str, body: bytes) -> None:
        """Insert or replace a document."""
        put = partial(writer_events.put_document, name=name, body=body, now_us=self._clock())
        await self._writer.do(put, Touches(topics=(CHANGES,)))

    # --- events and webhooks --------------------------------------------------------------------------------
    async def put_event(self, event: wire.EventRow, *, once: str, webhooks: Sequence[str]) -> int | None:
        """Store an event with its deliveries, and return its `seq`; None when it was stored before."""
        put = partial(writer_events.put_event, event=event, once=once, webhooks=webhooks)
        return await self._writer.do(put, Touches(topics=(EVENTS,)))

    async def events(self, *, after: int, limit: int, fleet: str | None = None) -> Sequence[wire.EventRow]:
        """Return events in the order of storing. `after` -1 asks for the latest ones."""
        return await self._read(partial(writer_events.read_events, after=after, limit=limit, fleet=fleet))

    async def claim_deliveries(self, now_us: int, *, lease_us: int, limit: int) -> Sequence[Delivery]:
        """Return deliveries that are due, the oldest first, and keep them back until the lease ends."""
        claim = partial(writer_events.claim_deliveries, now_us=now_us, lease_us=lease_us, limit=limit)
        return await self._writer.do(claim, Touches(topics=(EVENTS,)))

    async def end_delivery(self, seq: int, webhook: str, *, retry_us: int | None, error: str | None) -> None:
        """Note how a delivery went."""
        end = partial(writer_events.end_delivery, seq=seq, webhook=webhook, retry_us=retry_us, error=error)
        await self._writer.do(partial(end, now_us=self._clock()), Touches(topics=(EVENTS,)))

    # --- ledger reads ---------------------------------------------------------------------------------------
    async def balances(self, scopes: Sequence[BudgetScope]) -> Sequence[Balance]:
        """Return the balance of each scope, zero where nothing was ever held."""
        return await self._read(lambda db: [hold.read_balance(db, scope) for scope in scopes])

    async def open_holds(self) -> tuple[int, int]:
        """Return how many holds are open, of everybody who shares the store, and the nanos that they hold."""
        return await self._read(reader_ledger.read_open_holds)

    async def spend_by_hour(self, since_us: int, until_us: int) -> Sequence[HourSpend]:
        """Return what each grant spent in each hour of a range, by the start of its calls."""
        return await self._read(partial(reader_ledger.read_spend_by_hour, since_us=since_us, until_us=until_us))

    async def verify_ledger(self) -> Sequence[str]:
        """Recompute every balance from the entries; return one sentence per thing that does not add up."""
        return await self._read(partial(reader_ledger.audit, now_us=self._clock()))

    # --- runs and the request log ---------------------------------------------------------------------------
    async def report_run(self, fleet: str, run_id: str, report: wire.RunReport) -> None:
        """Insert or update what the SDK tells. Raises ValueError for an unknown state or an impossible time."""
        writer_reports.check_report(report, now_us=self._clock())
        told = partial(writer_reports.report_run, fleet=fleet, run_id=run_id, report=report)
        await self._writer.do(told, Touches(fleet=fleet, run_id=run_id))

    async def log_spans(self, batch: SpanBatch) -> int:
        """Keep spans of one run; return how many there was no room for."""
        log = partial(writer_spans.log_spans, batch=batch)
        content = Content(writer_spans.log_spans, batch=batch)
        touches = Touches(fleet=batch.fleet, run_id=batch.run_id, lasting=False)
        return await self._writer.do(log, touches, content=content if content.messages else None)

    async def runs(self, where: LogFilter, *, before: str | None, limit: int) -> wire.RunPage:
        """Return a page of runs, newest first. Raises ValueError for a bad cursor."""
        return await self._read(partial(reader_runs.read_runs, where=where, before=before, limit=limit))

    async def run(self, run_id: str, *, fleet: str | None) -> wire.RunDetail | None:
        """Return one run by id, by a prefix of six or more characters that only it has, or `last`."""
        return await self._read(partial(reader_runs.read_run, run_id=run_id, fleet=fleet))

    async def calls(self, where: LogFilter, *, before: str | None, limit: int) -> wire.LogPage:
        """Return a page of the request log, newest first. Raises ValueError for a bad cursor."""
        return await self._read(partial(reader_calls.read_calls, where=where, before=before, limit=limit))

    async def call(self, request_id: str) -> wire.CallRow | None:
        """Return one record of the request log with its attempts."""
        return await self._read(partial(reader_calls.read_call, request_id=request_id))

    async def contents(self, request_ids: Sequence[str]) -> dict[str, wire.CallContent]:
        """Return what these calls said, where content was kept."""
        return await self._read(partial(reader_calls.read_contents, request_ids=list(request_ids)))

    async def span_contents(
        self, fleet: str, run_id: str, span_ids: Sequence[str]
    ) -> dict[str, tuple[str | None, str | None]]:
        """Return what these spans of a run took and gave, where content was kept."""
        read = partial(reader_spans.read_span_contents, fleet=fleet, run_id=run_id, span_ids=list(span_ids))
        return await self._read(read)

    # --- retention ------------------------------------------------------------------------------------------
    def prune(self, order: PruneOrder) -> AsyncIterator[wire.Pruned]:
        """Delete what is older than the order says, in pieces, and yield what each was."""
        return pruning.prune(self._writer, self._readers, order, now_us=self._clock(), events=EVENTS, changes=CHANGES)

    async def prunable(self, order: PruneOrder) -> wire.Pruned:
        """Return what `prune` would delete now."""
        read = partial(reader_prune.read_counts, cut_us=order.cut_us, contents_only=order.contents_only)
        return await self._read(read)

    # --- inside ---------------------------------------------------------------------------------------------
    async def _read(self, query: Callable[[Database], _T]) -> _T:
        """Read after everything queued is committed, so that a client sees its own writes."""
        await self._writer.do(None)
        return await self._readers.read(query)

    async def _expire(self, *, due_us: int | None, fleet: str | None = None) -> int:
        expired = 0
        while True:
            some = await self._writer.do(
                partial(writer_calls.expire, now_us=self._clock(), due_us=due_us, limit=SWEEP_MAX, fleet=fleet),
                Touches(fleet=fleet),
            )
            expired += some
            if some < SWEEP_MAX:
                return expired

    def _take_back(self, request_id: str, fleet: str | None, attempt: AttemptStart, answer: object) -> None:
        """Void a hold whose caller could not send anything: it had gone, or does not know of the hold.

        `answer` None means that the hold may not even be there.
        """
        if answer is not None and not isinstance(answer, Held):
            return
        now_us = self._clock()
        end = CallEnd(
            request_id=request_id,
            ended_us=now_us,
            state="abandoned",
            status=499 if answer is not None else 503,
            cost_nanos=0,
            error=_WENT_AWAY if answer is not None else _LOST_SIGHT,
        )
        void = AttemptEnd(
            hold_id=attempt.hold_id,
            n=attempt.n,
            ended_us=now_us,
            status=None,
            error=None,
            settlement=Settlement(kind="void", amount_nanos=0),
            usage_source="none",
        )
        operation = writer_calls.take_back if answer is None else writer_calls.close_call
        touches = Touches(fleet=fleet, request_id=request_id)
        self._writer.keep(partial(operation, end=end, attempt=void), touches)


def _content(
    run: Callable[..., object], *, call: CallStart | None = None, end: CallEnd | None = None
) -> Content | None:
    content = Content(run, call=call, end=end)
    return content if content.messages else None
