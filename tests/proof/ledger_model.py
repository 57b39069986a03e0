"""The ledger as it is meant: a few dictionaries that say what holds, posts and periods amount to.

`Ledger` is the arithmetic alone. `MemoryBooks` adds what of calls and runs decides about money, and `MemoryStore` puts
the store's protocol before it, so that it stands in for a database wherever a test wants to decide when an answer
comes, whether it comes, and what is lost with a process.

Nothing here is taken from the real stores: what the two agree on, they agree on independently.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart, StoreUnavailable
from nemo_agents.policy.ledger import Balance, BudgetScope, Held, HoldRefused, RunCaps, RunRefused, Settlement

Key = tuple[str, str, str]


def key_of(scope: BudgetScope) -> Key:
    return scope.kind, scope.id, scope.period


def guard_of(scope: BudgetScope) -> int | None:
    """The limit that a hold must fit under; a scope in mode `shadow` has none."""
    return None if scope.mode == "shadow" else scope.limit_nanos


@dataclass(slots=True, kw_only=True)
class Hold:
    """One hold. `state` is `open`, or how it was resolved; `posted` what it has charged so far."""

    hold_id: str
    request_id: str
    n: int
    amount: int
    keys: tuple[Key, ...]
    expires_us: int
    state: str = "open"
    posted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the journal, from which every sum can be made again."""

    hold_id: str
    kind: str
    amount: int
    keys: tuple[Key, ...]


class Ledger:
    """Holds over several scopes, each in the period in which it was opened."""

    def __init__(self) -> None:
        self.holds: dict[str, Hold] = {}
        self.open: dict[str, Hold] = {}
        self.posted: dict[Key, int] = {}
        self.held: dict[Key, int] = {}
        self.journal: list[Entry] = []

    def copy(self) -> Ledger:
        other = type(self)()
        other.holds = {name: replace(hold) for name, hold in self.holds.items()}
        other.open = {name: other.holds[name] for name in self.open}
        other.posted, other.held, other.journal = dict(self.posted), dict(self.held), list(self.journal)
        return other

    def used(self, key: Key) -> int:
        return self.posted.get(key, 0) + self.held.get(key, 0)

    def fits(self, scope: BudgetScope, amount: int) -> bool:
        limit = guard_of(scope)
        return limit is None or self.used(key_of(scope)) + amount <= limit

    def hold(self, attempt: AttemptStart, request_id: str, scopes: Sequence[BudgetScope]) -> BudgetScope | None:
        """Hold in every scope, or return the first that cannot and hold in none."""
        for scope in scopes:
            if not self.fits(scope, attempt.hold_nanos):
                return scope
        self.take(attempt, request_id, tuple(key_of(scope) for scope in scopes))
        return None

    def take(self, attempt: AttemptStart, request_id: str, keys: tuple[Key, ...]) -> None:
        if attempt.hold_id in self.holds:
            raise ValueError(f"there is a hold {attempt.hold_id}")
        hold = Hold(
            hold_id=attempt.hold_id,
            request_id=request_id,
            n=attempt.n,
            amount=attempt.hold_nanos,
            keys=keys,
            expires_us=attempt.expires_us,
        )
        self.holds[hold.hold_id] = self.open[hold.hold_id] = hold
        for key in keys:
            self.held[key] = self.held.get(key, 0) + hold.amount
        self.journal.append(Entry(hold_id=hold.hold_id, kind="hold", amount=hold.amount, keys=keys))

    def settle(self, hold_id: str, settlement: Settlement) -> int:
        """Resolve a hold once, correct an expired one once, and return by how much the posted amount changed."""
        hold = self.holds.get(hold_id)
        if hold is None:
            return 0
        kind = settlement.kind
        truth = 0 if kind == "void" else settlement.amount_nanos
        if hold.state == "open":
            return self.resolve(hold, kind, hold.amount if kind == "expire" else truth)
        if hold.state == "expire" and kind != "expire":
            return self.correct(hold, truth)
        return 0

    def resolve(self, hold: Hold, kind: str, amount: int) -> int:
        del self.open[hold.hold_id]
        for key in hold.keys:
            self.held[key] -= hold.amount
            self.posted[key] = self.posted.get(key, 0) + amount
        hold.state, hold.posted = kind, amount
        self.journal.append(Entry(hold_id=hold.hold_id, kind=kind, amount=amount, keys=hold.keys))
        return amount

    def correct(self, hold: Hold, truth: int) -> int:
        difference = truth - hold.posted
        for key in hold.keys:
            self.posted[key] = self.posted.get(key, 0) + difference
        hold.state, hold.posted = "correct", truth
        self.journal.append(Entry(hold_id=hold.hold_id, kind="correct", amount=difference, keys=hold.keys))
        return difference

    def due(self, now_us: int) -> list[Hold]:
        return [hold for hold in self.open.values() if hold.expires_us <= now_us]

    def expire(self, hold: Hold) -> int:
        return self.settle(hold.hold_id, Settlement(kind="expire", amount_nanos=hold.amount))

    def problems(self) -> list[str]:
        """Make every sum again from the journal; return one sentence per difference."""
        posted: dict[Key, int] = {}
        held: dict[Key, int] = {}
        opened: dict[str, Entry] = {}
        resolved: dict[str, str] = {}
        found: list[str] = []
        for entry in self.journal:
            if entry.kind == "hold":
                opened[entry.hold_id] = entry
            elif entry.hold_id not in opened:
                found.append(f"{entry.kind} of {entry.hold_id}, which was never held")
                continue
            elif entry.keys != opened[entry.hold_id].keys:
                found.append(f"{entry.kind} of {entry.hold_id} in {entry.keys}, held in {opened[entry.hold_id].keys}")
            elif (entry.kind == "correct") != (resolved.get(entry.hold_id) == "expire"):
                found.append(f"{entry.kind} of {entry.hold_id} after {resolved.get(entry.hold_id)}")
            if entry.kind != "hold":
                resolved[entry.hold_id] = entry.kind
            for key in entry.keys:
                if entry.kind == "hold":
                    held[key] = held.get(key, 0) + entry.amount
                else:
                    posted[key] = posted.get(key, 0) + entry.amount
                    if entry.kind != "correct":
                        held[key] = held.get(key, 0) - opened[entry.hold_id].amount
        for name, kept, counted in (("posted", self.posted, posted), ("held", self.held, held)):
            for key in kept.keys() | counted.keys():
                if kept.get(key, 0) != counted.get(key, 0):
                    found.append(f"{key} says {kept.get(key, 0)} {name}, its entries say {counted.get(key, 0)}")
                if kept.get(key, 0) < 0:
                    found.append(f"{key} has {kept[key]} {name}")
        return found


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """What the log has of a call: `open`, or how it ended."""

    start: CallStart
    state: str
    attempts: int
    status: int = 0
    cost: int | None = None
    end: CallEnd | None = None


@dataclass(slots=True, kw_only=True)
class RunRecord:
    caps: RunCaps
    admitted: int = 0
    seq: int = 0
    stopped: bool = False


def lower(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known) if known else None


@dataclass
class MemoryBooks:
    """What outlives a process: the ledger, the log, the runs, and the gateway's records."""

    ledger: Ledger = field(default_factory=Ledger)
    calls: dict[str, CallRecord] = field(default_factory=dict)
    runs: dict[tuple[str, str], RunRecord] = field(default_factory=dict)
    grants: dict[str, Any] = field(default_factory=dict)
    fleets: dict[str, Any] = field(default_factory=dict)
    deployments: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    after_commit: Callable[[], None] = lambda: None

    def balance(self, scope: BudgetScope) -> Balance:
        key = key_of(scope)
        ledger = self.ledger
        return Balance(scope=scope, posted_nanos=ledger.posted.get(key, 0), held_nanos=ledger.held.get(key, 0))

    def _hold(self, attempt: AttemptStart, request_id: str, cap: int | None) -> HoldRefused | tuple[Balance, ...]:
        scopes = tuple(
            replace(s, limit_nanos=lower(s.limit_nanos, cap)) if s.kind == "run" else s for s in attempt.scopes
        )
        refused = self.ledger.hold(attempt, request_id, scopes)
        balances = tuple(self.balance(scope) for scope in scopes)
        if refused is None:
            return balances
        return HoldRefused(balance=self.balance(refused), needed_nanos=attempt.hold_nanos, balances=balances)

    def open_call(self, call: CallStart, attempt: AttemptStart) -> Held | HoldRefused | RunRefused:
        name = (call.fleet or "", call.run_id)
        known = self.runs.get(name)
        budget = lower(known.caps.budget_nanos if known else None, call.caps.budget_nanos)
        calls = lower(known.caps.max_calls if known else None, call.caps.max_calls)
        if known is not None and known.stopped:
            return RunRefused(why="stopped", max_calls=calls)
        if calls is not None and (known.admitted if known else 0) >= calls:
            return RunRefused(why="max_calls", max_calls=calls)
        balances = self._hold(attempt, call.request_id, budget)
        if isinstance(balances, HoldRefused):
            return balances
        run = self._run(call)
        run.admitted += 1
        self.calls[call.request_id] = CallRecord(start=call, state="open", attempts=1)
        self.after_commit()
        return Held(balances=balances, seq=run.seq)

    def _run(self, call: CallStart) -> RunRecord:
        run = self.runs.setdefault((call.fleet or "", call.run_id), RunRecord(caps=RunCaps()))
        run.caps = RunCaps(
            budget_nanos=lower(run.caps.budget_nanos, call.caps.budget_nanos),
            max_calls=lower(run.caps.max_calls, call.caps.max_calls),
        )
        run.seq += 1
        return run

    def next_attempt(self, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Held | HoldRefused:
        call = self.calls[request_id]
        run = self.runs[call.start.fleet or "", call.start.run_id]
        self._settle(call, ended)
        balances = self._hold(attempt, request_id, run.caps.budget_nanos)
        if isinstance(balances, HoldRefused):
            call.state = "abandoned"
            self.after_commit()
            return balances
        call.state, call.attempts = "open", call.attempts + 1
        self.after_commit()
        return Held(balances=balances, seq=run.seq)

    def _settle(self, call: CallRecord, ended: AttemptEnd) -> None:
        change = self.ledger.settle(ended.hold_id, ended.settlement)
        if change or call.cost is not None:
            call.cost = (call.cost or 0) + change

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        call = self.calls.get(end.request_id)
        if call is None:
            return
        if attempt is not None:
            self._settle(call, attempt)
        if call.state in ("open", "abandoned"):
            call.state, call.status, call.end = end.state, end.status, end
        self.after_commit()

    def log_refusal(self, call: CallStart, end: CallEnd) -> None:
        known = self.calls.get(call.request_id)
        if known is None:
            self._run(call)
            self.calls[call.request_id] = CallRecord(start=call, state="refused", attempts=0, status=end.status)
            return
        for hold in [hold for hold in self.ledger.open.values() if hold.request_id == call.request_id]:
            self.ledger.settle(hold.hold_id, Settlement(kind="void", amount_nanos=0))
        self.close_call(end, None)

    def sweep(self, due: Sequence[Hold]) -> int:
        for hold in due:
            self.ledger.expire(hold)
            call = self.calls[hold.request_id]
            call.cost = (call.cost or 0) + hold.posted
            if call.state == "open":
                call.state = "abandoned"
        self.after_commit()
        return len(due)


async def no_pause(_point: str) -> None:
    """The default: nothing takes any time."""


class MemoryStore:
    """The store's protocol before `MemoryBooks`, as one process sees it; what it only queued is gone with it.

    `pause` is awaited before and after every commit: it may take its time, raise StoreUnavailable, be cancelled, or
    never return. `queue_later` gets a function that writes what is queued; by default that happens with the next
    operation that somebody waits for. `alone` says that no other process writes: what it finds open when it starts
    has no owner.
    """

    shared = False

    def __init__(
        self,
        books: MemoryBooks | None = None,
        *,
        clock: Callable[[], int],
        pause: Callable[[str], Awaitable[None]] = no_pause,
        queue_later: Callable[[Callable[[], None]], object] | None = None,
        alone: bool = True,
    ) -> None:
        self.books = books if books is not None else MemoryBooks()
        self.clock = clock
        self.pause = pause
        self.queue_later = queue_later
        self.alone = alone
        self.gone = False
        self._queue: deque[Callable[[], None]] = deque()
        self._changes: list[Any] = []

    # --- life
    async def start(self) -> None:
        if self.alone:
            self.books.sweep(list(self.books.ledger.open.values()))

    async def close(self) -> None:
        self.drain()
        self.gone = True

    async def flush(self) -> None:
        await self.pause("flush")
        self.drain()

    def drain(self) -> None:
        while self._queue and not self.gone:
            self._queue.popleft()()

    def write_one(self) -> None:
        """Write the oldest thing that is queued, if the process still lives."""
        if self._queue and not self.gone:
            self._queue.popleft()()

    def keep(self, write: Callable[[], None]) -> None:
        if self.gone:
            return
        self._queue.append(write)
        if self.queue_later is not None:
            self.queue_later(self.write_one)

    def die(self) -> None:
        """End this process's store without a word: what was queued is lost, and nothing it says counts any more."""
        self.gone = True
        self._queue.clear()

    def _alive(self) -> None:
        if self.gone:
            raise StoreUnavailable("the process is gone")
        if self.queue_later is None:
            self.drain()

    # --- data plane
    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Held | HoldRefused | RunRefused:
        await self.pause("open_call")
        self._alive()
        answer = self.books.open_call(call, attempt)
        return await self._tell("open_call answered", answer, call.request_id, attempt)

    async def next_attempt(self, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Held | HoldRefused:
        await self.pause("next_attempt")
        self._alive()
        answer = self.books.next_attempt(request_id, ended, attempt)
        return await self._tell("next_attempt answered", answer, request_id, attempt)

    async def _tell(self, point: str, answer: Any, request_id: str, attempt: AttemptStart) -> Any:
        try:
            await self.pause(point)
        except asyncio.CancelledError:
            if isinstance(answer, Held):
                self.keep(lambda: self.take_back(request_id, attempt))
            raise
        return answer

    def take_back(self, request_id: str, attempt: AttemptStart) -> None:
        """Void a hold whose caller was cancelled before it could send anything."""
        now_us = self.clock()
        void = Settlement(kind="void", amount_nanos=0)
        end = AttemptEnd(
            hold_id=attempt.hold_id,
            n=attempt.n,
            ended_us=now_us,
            status=None,
            error=None,
            settlement=void,
            usage_source="none",
        )
        self.books.close_call(CallEnd(request_id=request_id, ended_us=now_us, state="abandoned", status=499), end)

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        self.keep(lambda: self.books.close_call(end, attempt))

    def log_refusal(self, call: CallStart, end: CallEnd) -> None:
        self.keep(lambda: self.books.log_refusal(call, end))

    async def room_for_refusal(self) -> None:
        return

    async def sweep(self, now_us: int) -> int:
        await self.pause("sweep")
        self._alive()
        return self.books.sweep(self.books.ledger.due(now_us))

    async def recent_use(self, since_us: int) -> Sequence[Any]:  # noqa: ARG002 - the protocol's
        return []

    # --- records
    async def grants(self) -> Sequence[Any]:
        return list(self.books.grants.values())

    async def put_grant(self, grant: Any) -> None:
        await self.pause("put_grant")
        self._alive()
        self.books.grants[grant.grant_id] = grant

    async def fleets(self) -> Sequence[Any]:
        return list(self.books.fleets.values())

    async def put_fleet(self, fleet: Any) -> None:
        self.books.fleets[fleet.fleet] = fleet

    async def deployments(self) -> Sequence[Any]:
        return list(self.books.deployments.values())

    async def put_deployment(self, deployment: Any) -> None:
        self.books.deployments[deployment.deployment_id] = deployment

    async def document(self, name: str) -> bytes | None:
        return self.books.documents.get(name)

    async def put_document(self, name: str, body: bytes) -> None:
        self.books.documents[name] = body

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        yield

    async def changes(self, after: int | None) -> tuple[int, Sequence[Any]]:  # noqa: ARG002 - the protocol's
        return 0, ()

    async def now_us(self) -> int | None:
        return None

    async def put_event(self, event: Any, *, once: str, webhooks: Sequence[str]) -> int | None:  # noqa: ARG002 - the protocol's
        return None

    # --- reads
    async def balances(self, scopes: Sequence[BudgetScope]) -> Sequence[Balance]:
        await self.pause("balances")
        self._alive()
        return [self.books.balance(scope) for scope in scopes]

    async def spend_by_hour(self, since_us: int, until_us: int) -> Sequence[Any]:  # noqa: ARG002 - the protocol's
        return ()

    async def verify_ledger(self) -> Sequence[str]:
        self._alive()
        return self.books.ledger.problems()

    async def call(self, request_id: str) -> CallRecord | None:
        self._alive()
        return self.books.calls.get(request_id)
