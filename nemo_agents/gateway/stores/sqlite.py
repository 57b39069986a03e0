"""The store of a gateway on one machine: one SQLite file, one writer thread, a few reader threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from nemo_agents.admin import wire
from nemo_agents.gateway.stores import (
    hold,
    migrate,
    reader_calls,
    reader_ledger,
    reader_runs,
    writer_calls,
    writer_keys,
    writer_reports,
)
from nemo_agents.gateway.stores.base import (
    AttemptEnd,
    AttemptStart,
    CallEnd,
    CallStart,
    FleetRecord,
    LogFilter,
    RecentUse,
    Store,
)
from nemo_agents.gateway.stores.reader import Readers
from nemo_agents.gateway.stores.sqlite_file import (
    FileLock,
    check_writable,
    connect_reader,
    connect_writer,
    prepare,
)
from nemo_agents.gateway.stores.writer import Writer
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, Held, HoldRefused, RunRefused, Settlement
from nemo_agents.policy.routing import Deployment

__all__ = ["SqliteStore"]

_T = TypeVar("_T")
_SWEEP_MAX = 500  # holds per transaction
_LOST_AFTER_US = 6 * 3600 * 1_000_000


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


class SqliteStore:
    """The `Store` protocol over one file (see `stores.base` for what each method promises).

    `durability` says what a committed hold survives: `process` a crash of the gateway, `power` also a power
    cut. `clock` returns the time in microseconds since the epoch. `waiting_max` is how many operations may
    wait for the disk before `open_call` makes its callers queue. `busy_timeout_s` is how long a lock by a
    stranger is waited for.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        durability: Literal["process", "power"] = "process",
        clock: Callable[[], int] = _wall_clock_us,
        waiting_max: int = 10_000,
        busy_timeout_s: float = 2.0,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = FileLock(self.path)
        self._writer = Writer(
            partial(connect_writer, self.path, durability=durability, busy_timeout_s=busy_timeout_s),
            waiting_max=waiting_max,
        )
        self._readers = Readers(partial(connect_reader, self.path))

    # --- life -----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the file, bring its schema up to date, and close the holds that a process before left open.

        Nobody else owns them: the lock is ours. They are posted at the hold, since nobody knows what they
        cost. Raises SettingsError in one line when the file cannot be used, and leaves it as it is.
        """
        prepare(self.path)
        self._lock.acquire()
        try:
            migrate.bring_up_to_date(self.path)
            check_writable(self.path)
            self._writer.start()
            await self._expire(due_us=None)
        except BaseException:
            await self._let_go()
            raise

    async def close(self) -> None:
        """Write what is queued, then let go of the file and its lock."""
        await self._let_go()

    async def flush(self) -> None:
        """Return when everything queued so far is committed."""
        await self._writer.do(None)

    # --- data plane -----------------------------------------------------------------------------------------
    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Held | HoldRefused | RunRefused:
        """Commit the intent row and the hold, or neither.

        Cancelled while it waits, it takes the hold back.
        """
        hold.check_hold(attempt)
        return await self._writer.do(
            partial(writer_calls.open_call, call=call, attempt=attempt),
            orphaned=partial(self._take_back, call.request_id, attempt),
        )

    async def next_attempt(self, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Held | HoldRefused:
        """Resolve the hold of the attempt that failed, and hold for the next in the same transaction."""
        hold.check_hold(attempt)
        return await self._writer.do(
            partial(writer_calls.next_attempt, request_id=request_id, ended=ended, attempt=attempt),
            orphaned=partial(self._take_back, request_id, attempt),
        )

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        """Queue the end of a call."""
        self._writer.keep(partial(writer_calls.close_call, end=end, attempt=attempt))

    def log_refusal(self, call: CallStart, end: CallEnd) -> None:
        """Queue the record of a call that was refused before it was sent."""
        self._writer.keep(partial(writer_calls.log_refusal, call=call, end=end), droppable=True)

    async def sweep(self, now_us: int) -> int:
        """Expire open holds past their time; return how many. Runs that fell silent are marked as lost."""
        expired = await self._expire(due_us=now_us)
        await self._writer.do(partial(writer_reports.give_up_silent_runs, before_us=now_us - _LOST_AFTER_US))
        return expired

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
        await self._writer.do(partial(writer_keys.put_grant, grant=grant))

    async def fleets(self) -> Sequence[FleetRecord]:
        """Return every fleet."""
        return await self._read(writer_keys.read_fleets)

    async def put_fleet(self, fleet: FleetRecord) -> None:
        """Insert or replace a fleet."""
        await self._writer.do(partial(writer_keys.put_fleet, fleet=fleet))

    async def delete_fleet(self, fleet: str) -> bool:
        """Remove a fleet's record; say whether there was one."""
        return await self._writer.do(partial(writer_keys.delete_fleet, fleet=fleet))

    async def deployments(self) -> Sequence[Deployment]:
        """Return every deployment."""
        return await self._read(writer_keys.read_deployments)

    async def put_deployment(self, deployment: Deployment) -> None:
        """Insert or replace a deployment."""
        await self._writer.do(partial(writer_keys.put_deployment, deployment=deployment))

    async def delete_deployment(self, deployment_id: str) -> bool:
        """Remove a deployment; say whether there was one."""
        return await self._writer.do(partial(writer_keys.delete_deployment, deployment_id=deployment_id))

    # --- ledger reads ---------------------------------------------------------------------------------------
    async def balances(self, scopes: Sequence[BudgetScope]) -> Sequence[Balance]:
        """Return the balance of each scope, zero where nothing was ever held."""
        return await self._read(lambda db: [hold.read_balance(db, scope) for scope in scopes])

    async def verify_ledger(self) -> Sequence[str]:
        """Recompute every balance from the entries; return one sentence per thing that does not add up."""
        return await self._read(partial(reader_ledger.audit, now_us=self._clock()))

    # --- runs and the request log ---------------------------------------------------------------------------
    async def report_run(self, fleet: str, run_id: str, report: wire.RunReport) -> None:
        """Insert or update what the SDK tells. Raises ValueError for an unknown state or an impossible time."""
        writer_reports.check_report(report, now_us=self._clock())
        await self._writer.do(partial(writer_reports.report_run, fleet=fleet, run_id=run_id, report=report))

    async def stop_run(self, fleet: str | None, run_id: str, now_us: int) -> bool:
        """Refuse every further call of a run; say whether there is such a run."""
        return await self._writer.do(partial(writer_reports.stop_run, fleet=fleet, run_id=run_id, now_us=now_us))

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

    # --- inside ---------------------------------------------------------------------------------------------
    async def _read(self, query: Callable[..., _T]) -> _T:
        """Read after everything queued is committed, so that a client sees its own writes."""
        await self._writer.do(None)
        return await self._readers.read(query)

    async def _expire(self, *, due_us: int | None) -> int:
        expired = 0
        while True:
            some = await self._writer.do(
                partial(writer_calls.expire, now_us=self._clock(), due_us=due_us, limit=_SWEEP_MAX)
            )
            expired += some
            if some < _SWEEP_MAX:
                return expired

    def _take_back(self, request_id: str, attempt: AttemptStart, answer: object) -> None:
        """Void a hold whose caller was cancelled before it could send anything."""
        if not isinstance(answer, Held):
            return
        now_us = self._clock()
        self.close_call(
            CallEnd(
                request_id=request_id,
                ended_us=now_us,
                state="abandoned",
                status=499,
                cost_nanos=0,
                error="the client went away before the call was sent",
            ),
            AttemptEnd(
                hold_id=attempt.hold_id,
                n=attempt.n,
                ended_us=now_us,
                status=None,
                error=None,
                settlement=Settlement(kind="void", amount_nanos=0),
                usage_source="none",
            ),
        )

    async def _let_go(self) -> None:
        await self._writer.close()
        await self._readers.close()
        self._lock.release()


if TYPE_CHECKING:
    _fits: type[Store] = SqliteStore
