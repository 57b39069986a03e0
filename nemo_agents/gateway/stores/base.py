"""The protocol of a store: keys, ledger, request log and runs behind one door.

The data plane calls four methods per request: `open_call` (awaits a committed intent row and hold), `next_attempt`
for a fallback, `close_call` (queued; `flush` waits for it) and `log_refusal` (queued). Everything else serves the
admin API and the viewer.

What every call makes one of is a msgspec Struct: frozen like the dataclasses, and made at a third of their price.

Times are integer microseconds since the epoch (UTC), money is integer nanos.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from msgspec import Struct

from nemo_agents.admin import wire
from nemo_agents.policy.budgets import BudgetRule
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, Held, HoldRefused, RunCaps, RunRefused, Settlement
from nemo_agents.policy.routing import Deployment

__all__ = [
    "AttemptEnd",
    "AttemptStart",
    "CallEnd",
    "CallStart",
    "Change",
    "Delivery",
    "FleetRecord",
    "HourSpend",
    "LogFilter",
    "PruneOrder",
    "RecentUse",
    "RootSpan",
    "SpanBatch",
    "SpanRecord",
    "Store",
    "StoreUnavailable",
]


class StoreUnavailable(Exception):  # noqa: N818 - a condition, answered with 503
    """The store cannot read or write now; nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRecord:
    """A fleet as the gateway keeps it (a LiteLLM team)."""

    fleet: str
    budgets: tuple[BudgetRule, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    shadow: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    blocked: bool = False
    created_us: int = 0
    updated_us: int = 0


class CallStart(Struct, frozen=True, kw_only=True):
    """The intent: everything known about a call before it is sent."""

    request_id: str
    started_us: int
    fleet: str | None
    role: str | None
    key_alias: str | None
    key_id: str | None  # public id of the secret that was used
    grant_id: str | None
    run_id: str  # equals request_id when the client sent no run id
    grouped: bool
    run_name: str | None = None
    caps: RunCaps = RunCaps()
    step: str | None = None
    parent_step: str | None = None
    endpoint: str = ""
    stream: bool = False
    model_asked: str | None = None
    guardrails: tuple[str, ...] = ()
    trace_id: str | None = None  # of `traceparent`, 32 hex
    parent_span: str | None = None  # likewise, 16 hex
    prompt: tuple[bytes, ...] | None = None  # JSON of each message as sent; None when content is not kept
    params: bytes | None = None  # JSON object of the other parameters


class AttemptStart(Struct, frozen=True, kw_only=True):
    """One attempt with its hold. `scopes` is in the fixed order run, role, fleet."""

    hold_id: str
    n: int
    model: str
    provider: str
    reason: Literal["first", "retry", "fallback"]
    started_us: int
    hold_nanos: int
    scopes: tuple[BudgetScope, ...]
    price_version: str | None
    expires_us: int
    wait_ms: int = 0  # before it, after the one before


class AttemptEnd(Struct, frozen=True, kw_only=True):
    """How an attempt ended, and how its hold resolves."""

    hold_id: str
    n: int
    ended_us: int
    status: int | None
    error: str | None
    settlement: Settlement
    usage_source: Literal["provider", "hold", "none"]
    usage: dict[str, int] = {}  # any of the five counts of policy.usage.Usage, by name


class CallEnd(Struct, frozen=True, kw_only=True):
    """How a call ended. Token counts and cost are sums over its attempts; None where unknown."""

    request_id: str
    ended_us: int
    state: Literal["ok", "refused", "failed", "abandoned"]
    status: int
    code: str | None = None
    error: str | None = None
    limit: str | None = None
    scope: str | None = None
    model_served: str | None = None
    provider: str | None = None
    ttft_us: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_nanos: int | None = None
    usage_source: Literal["provider", "hold", "none"] = "none"
    finish_reason: str | None = None
    guardrails: tuple[str, ...] = ()
    answer: bytes | None = None  # JSON of the answer message; None when content is not kept
    shadow: tuple[wire.Shadowed, ...] = ()  # refusals that were not given


class SpanRecord(Struct, frozen=True, kw_only=True):
    """One span as it is kept: `wire.SpanRow`, with JSON of the texts that it took and gave."""

    span_id: str
    parent_id: str | None
    kind: str
    name: str
    step: str | None
    role: str | None
    state: str
    started_us: int
    ended_us: int | None
    error: str | None = None
    request_id: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    attributes: Mapping[str, Any] = {}
    input: bytes | None = None
    output: bytes | None = None


class RootSpan(Struct, frozen=True, kw_only=True):
    """What the root of a trace says of the run that the trace is."""

    name: str
    state: str  # running | ok | failed
    started_us: int
    ended_us: int | None
    error: str | None = None


class SpanBatch(Struct, frozen=True, kw_only=True):
    """Spans of one run, at least one.

    `run_id` is the run that they name. Without it they belong to the run of the trace `trace_id` (see
    `stores.traces`), and where there is none, a new one is made under `trace_run_id`.
    """

    fleet: str
    role: str | None  # whose key brought them
    run_id: str | None
    trace_id: str
    trace_run_id: str
    spans: tuple[SpanRecord, ...]
    root: RootSpan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """Conditions on the request log and the run list; absent ones do not restrict."""

    fleet: str | None = None
    role: str | None = None
    model: str | None = None  # asked or served
    status: int | None = None
    code: str | None = None
    run_id: str | None = None
    state: str | None = None
    since_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentUse:
    """One request of the last minute that counted as a request, to rebuild the rate windows after a restart."""

    grant_id: str
    fleet: str | None
    at_us: int
    tokens: int  # 0 where nobody knows: what admission estimated is not kept
    model: str | None = None  # as the caller named it


class HourSpend(Struct, frozen=True, kw_only=True):
    """What the calls of a grant that started within one hour have cost."""

    grant_id: str
    hour_us: int  # its start; hours are counted from the epoch
    cost_nanos: int


class Delivery(Struct, frozen=True, kw_only=True):
    """An event that a webhook has still to get; `attempts` were made before."""

    event: wire.EventRow
    webhook: str
    attempts: int


class Change(Struct, frozen=True, kw_only=True):
    """Something that admission knows in memory was changed, perhaps by another replica."""

    kind: Literal["grant", "fleet", "deployment", "document", "run"]
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOrder:
    """What is to be deleted: what was over before `cut_us` (since the epoch), or of that only what was said."""

    pruning: str  # an id of its own
    cut_us: int
    contents_only: bool = False


class Store(Protocol):
    """What the gateway needs of a store."""

    shared: bool  # whether other gateways write it too

    async def start(self) -> None:
        """Open the store and bring its schema up to date. Raises SettingsError when it cannot be used as it is."""

    async def close(self) -> None:
        """Write what is queued, then let go."""

    async def flush(self) -> None:
        """Return when everything queued so far is committed."""

    @property
    def backlog(self) -> int:
        """How many operations wait to be written."""

    # --- data plane ---------------------------------------------------------------------------------------------
    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Held | HoldRefused | RunRefused:
        """Commit the intent row and the hold, or neither.

        A refusal leaves no call, no hold and no entry, at most a balance of zero; log it with `log_refusal` then.
        """

    async def next_attempt(self, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Held | HoldRefused:
        """Resolve the hold of the attempt that failed, and hold for the next in the same transaction."""

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        """Queue the end of a call: resolve its last hold and write its record. `attempt` None: already resolved."""

    def log_refusal(self, call: CallStart, end: CallEnd) -> None:
        """Queue the record of a call that was refused before it was sent.

        A refusal for a budget, a call cap or a stop marks a grouped run as stopped. While the store cannot write,
        these records are kept in memory up to a number, the latest of them.
        """

    async def log_hit(self, call: CallStart, end: CallEnd) -> RunRefused | None:
        """Commit the record of a call that was answered without being sent, from a cache.

        It counts in its run like any other call; where that was stopped or may make no more calls, nothing is written
        and the answer says which. Raises StoreUnavailable.
        """

    async def room_for_refusal(self) -> None:
        """Return when there is room for one more refusal in the queue, or the store cannot write; then log it at once.

        A caller that is refused faster than its refusals are written waits for its answers, and nobody else does.
        """

    async def sweep(self, now_us: int) -> int:
        """Expire open holds past their time (post at the hold); return how many."""

    async def recent_use(self, since_us: int) -> Sequence[RecentUse]:
        """Return the requests since then that admission counted, oldest first.

        Those that were admitted, and those that were refused after they had been counted. Tokens are what a call
        is known to have used: none for a refused one, none for one whose use is not known.
        """

    # --- keys, fleets, deployments ------------------------------------------------------------------------------
    async def grants(self) -> Sequence[Grant]:
        """Return every grant with its secrets, revoked ones included."""

    async def put_grant(self, grant: Grant) -> None:
        """Insert or replace a grant and its secrets. A secret that is not in `grant.secrets` is removed."""

    async def fleets(self) -> Sequence[FleetRecord]:
        """Return every fleet."""

    async def put_fleet(self, fleet: FleetRecord) -> None:
        """Insert or replace a fleet."""

    async def delete_fleet(self, fleet: str) -> bool:
        """Remove a fleet's record (its history stays); say whether there was one."""

    async def deployments(self) -> Sequence[Deployment]:
        """Return every deployment."""

    async def put_deployment(self, deployment: Deployment) -> None:
        """Insert or replace a deployment."""

    async def delete_deployment(self, deployment_id: str) -> bool:
        """Remove a deployment; say whether there was one."""

    async def document(self, name: str) -> bytes | None:
        """Return a document by name (a table of prices, say); None when there is none."""

    async def put_document(self, name: str, body: bytes) -> None:
        """Insert or replace a document."""

    # --- many replicas ------------------------------------------------------------------------------------------
    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which no other gateway changes keys, fleets or deployments. Raises StoreUnavailable."""

    async def changes(self, after: int | None) -> tuple[int, Sequence[Change]]:
        """Return the changes by anybody since a position, in order, and the position after them.

        `after` None asks for the position alone. A store that nobody shares answers with none.
        """

    async def now_us(self) -> int | None:
        """Return the time of the store's own clock, by which periods count where replicas share it; else None."""

    # --- events and webhooks ------------------------------------------------------------------------------------
    async def put_event(self, event: wire.EventRow, *, once: str, webhooks: Sequence[str]) -> int | None:
        """Store an event with a delivery to each webhook, and return its `seq`.

        `once` names what it tells: a second event of that name is not stored, and the answer is None.
        """

    async def events(self, *, after: int, limit: int, fleet: str | None = None) -> Sequence[wire.EventRow]:
        """Return events in the order of storing. `after` -1 asks for the latest ones."""

    async def claim_deliveries(self, now_us: int, *, lease_us: int, limit: int) -> Sequence[Delivery]:
        """Return deliveries that are due, the oldest first, and keep them from others until the lease ends."""

    async def end_delivery(self, seq: int, webhook: str, *, retry_us: int | None, error: str | None) -> None:
        """Note how a delivery went: done, to be tried again at `retry_us`, or given up (None with an error)."""

    # --- ledger reads -------------------------------------------------------------------------------------------
    async def balances(self, scopes: Sequence[BudgetScope]) -> Sequence[Balance]:
        """Return the balance of each scope, zero where nothing was ever held."""

    async def open_holds(self) -> tuple[int, int]:
        """Return how many holds are open, of everybody who shares the store, and the nanos that they hold."""

    async def spend_by_hour(self, since_us: int, until_us: int) -> Sequence[HourSpend]:
        """Return what each grant spent in each hour, by the start of its calls; hours of nothing are absent."""

    async def verify_ledger(self) -> Sequence[str]:
        """Recompute every balance from the entries; return one sentence per thing that does not add up."""

    # --- runs and the request log -------------------------------------------------------------------------------
    async def report_run(self, fleet: str, run_id: str, report: wire.RunReport) -> None:
        """Insert or update what the SDK tells about a run and its steps. Sums come from calls alone.

        Raises ValueError for a state that there is not, and for times before the year 2000 or more than a day
        after the store's clock.
        """

    async def log_spans(self, batch: SpanBatch) -> int:
        """Keep spans of one run; return how many there was no room for. Raises StoreUnavailable."""

    async def stop_run(self, fleet: str | None, run_id: str, now_us: int) -> bool:
        """Refuse every further call of a run; say whether there is such a run."""

    async def runs(self, where: LogFilter, *, before: str | None, limit: int) -> wire.RunPage:
        """Return a page of runs, newest first."""

    async def run(self, run_id: str, *, fleet: str | None) -> wire.RunDetail | None:
        """Return one run by id, by a prefix of six or more characters that only it has, or `last` (newest grouped)."""

    async def calls(self, where: LogFilter, *, before: str | None, limit: int) -> wire.LogPage:
        """Return a page of the request log, newest first."""

    async def call(self, request_id: str) -> wire.CallRow | None:
        """Return one record of the request log with its attempts."""

    async def contents(self, request_ids: Sequence[str]) -> dict[str, wire.CallContent]:
        """Return what these calls said, where content was kept."""

    async def span_contents(
        self, fleet: str, run_id: str, span_ids: Sequence[str]
    ) -> dict[str, tuple[str | None, str | None]]:
        """Return what these spans of a run took and gave, where content was kept."""

    # --- retention ----------------------------------------------------------------------------------------------
    def prune(self, order: PruneOrder) -> AsyncIterator[wire.Pruned]:
        """Delete in pieces what is older than the order says, and yield what each was. Raises StoreUnavailable.

        Runs that go on, open calls and holds stay, and every entry of the ledger.
        """

    async def prunable(self, order: PruneOrder) -> wire.Pruned:
        """Return what `prune` would delete now."""

    def vacuum(self) -> AsyncIterator[int]:
        """Give what is free back to the machine, in pieces, and yield how many bytes each was; nothing where it cannot.

        Raises StoreUnavailable.
        """

    async def log_size(self) -> wire.LogSize:
        """Return how large the database is."""
