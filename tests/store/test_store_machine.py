"""The stores against a model of a ledger, in every order that Hypothesis can think of.

Each role and fleet has several budgets at once, and some that only record. The file is written by one process, which
may crash; the shared database by two, of which either may.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from store_values import Clock, a_call, an_attempt, attempt_end, call_end, empty

from nemo_agents.gateway.stores import migrate
from nemo_agents.gateway.stores.base import AttemptStart, CallStart
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import BudgetScope, Held, HoldRefused, ScopeKind

TTL_US = 1000


@dataclass
class Hold:
    """What the model knows of one hold."""

    call: CallStart
    attempt: AttemptStart
    keys: tuple[tuple[str, str, str], ...]
    state: str = "open"  # open | posted | voided | expired | corrected
    posted: int = 0


@dataclass
class Model:
    """Balances as they must be, and the highest limit each was ever held against."""

    posted: dict[tuple[str, str, str], int] = field(default_factory=dict)
    held: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def post(self, hold: Hold, amount: int) -> None:
        for key in hold.keys:
            self.posted[key] = self.posted.get(key, 0) + amount - hold.posted
            if hold.state == "open":
                self.held[key] -= hold.attempt.hold_nanos
        hold.posted = amount


LIMITS = st.tuples(
    st.integers(0, 300),  # the role's day
    st.integers(0, 400),  # its month
    st.integers(0, 100),  # its week, in shadow
    st.one_of(st.none(), st.integers(0, 500)),  # the fleet's day
    st.integers(0, 100),  # its month, in shadow
)
SCOPES: tuple[tuple[ScopeKind, str, str, Literal["enforce", "shadow"]], ...] = (
    ("role", "g1", "day", "enforce"),
    ("role", "g1", "month", "enforce"),
    ("role", "g1", "week", "shadow"),
    ("fleet", "crew", "day", "enforce"),
    ("fleet", "crew", "month", "shadow"),
)


class LedgerMachine(RuleBasedStateMachine):
    """Holds, settlements, silence, crashes and changed minds."""

    holds = Bundle("holds")

    @initialize(limits=LIMITS)
    def begin(self, limits: tuple[int | None, ...]) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.model = Model()
        self.all: list[Hold] = []
        self.limits = limits
        self.day = 0
        self.stores: list[SqlStore] = []
        self.do(self.open_stores())

    async def open_stores(self) -> None:
        raise NotImplementedError

    def do(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    @property
    def store(self) -> SqlStore:
        """Whichever a request happens to reach."""
        self.turn = getattr(self, "turn", 0) + 1
        return self.stores[self.turn % len(self.stores)]

    def scopes(self, grouped: bool) -> tuple[BudgetScope, ...]:
        run = (BudgetScope(kind="run", id="crew/run-one", period="total", limit_nanos=None),) if grouped else ()
        return run + tuple(
            BudgetScope(
                kind=kind,
                id=scope_id,
                period=f"d{self.day}" if name == "day" else name,
                limit_nanos=limit,
                mode=mode,
                name=name,
            )
            for (kind, scope_id, name, mode), limit in zip(SCOPES, self.limits, strict=True)
        )

    @rule(target=holds, amount=st.integers(0, 120), grouped=st.booleans())
    def hold(self, amount: int, grouped: bool):
        scopes = self.scopes(grouped)
        call = a_call(run_id="run-one" if grouped else None, step="plan" if amount % 2 else None)
        attempt = an_attempt(amount, *scopes, expires_us=self.clock.now_us + TTL_US)
        answer = self.do(self.store.open_call(call, attempt))
        keys = tuple((s.kind, s.id, s.period) for s in scopes)
        tight = [
            s
            for s, k in zip(scopes, keys, strict=True)
            if s.mode == "enforce"
            and s.limit_nanos is not None
            and self.model.posted.get(k, 0) + self.model.held.get(k, 0) + amount > s.limit_nanos
        ]
        if tight:
            assert isinstance(answer, HoldRefused), answer
            assert answer.balance.scope == tight[0]
            return multiple()
        assert isinstance(answer, Held), answer
        for key in keys:
            self.model.held[key] = self.model.held.get(key, 0) + amount
        for balance, key in zip(answer.balances, keys, strict=True):
            assert balance.posted_nanos == self.model.posted.get(key, 0)
            assert balance.held_nanos == self.model.held[key]
            guard = balance.scope.guard_nanos
            assert guard is None or balance.posted_nanos + balance.held_nanos <= guard
        hold = Hold(call, attempt, keys)
        self.all.append(hold)
        return hold

    @rule(hold=holds, cost=st.integers(0, 150))
    def post(self, hold: Hold, cost: int) -> None:
        self.settle(hold, "post", cost, "posted")

    @rule(hold=holds)
    def void(self, hold: Hold) -> None:
        self.settle(hold, "void", 0, "voided")

    @rule(hold=holds)
    def expire_by_hand(self, hold: Hold) -> None:
        self.close(call_end(hold.call, "failed"), attempt_end(hold.attempt, "expire"))
        if hold.state == "open":
            self.model.post(hold, hold.attempt.hold_nanos)
            hold.state = "expired"

    def close(self, end, attempt) -> None:
        store = self.store
        store.close_call(end, attempt)
        if len(self.stores) > 1:  # it is heard of through any of them, and in this order
            self.do(store.flush())

    def settle(self, hold: Hold, kind: str, amount: int, state: str) -> None:
        self.close(call_end(hold.call), attempt_end(hold.attempt, kind, amount))
        if hold.state == "open":
            self.model.post(hold, amount)
            hold.state = state
        elif hold.state == "expired":
            self.model.post(hold, amount)
            hold.state = "corrected"

    @rule(hold=holds, amount=st.integers(0, 120))
    def fall_back(self, hold: Hold, amount: int) -> None:
        """The first attempt is charged at its hold; the next one is held against today's budgets."""
        if hold.state != "open":
            return
        scopes = self.scopes(hold.call.grouped)
        attempt = an_attempt(amount, *scopes, n=hold.attempt.n + 1, expires_us=self.clock.now_us + TTL_US)
        ended = attempt_end(hold.attempt, "expire")
        answer = self.do(self.store.next_attempt(hold.call.request_id, ended, attempt))
        self.model.post(hold, hold.attempt.hold_nanos)
        hold.state = "expired"
        if isinstance(answer, Held):
            hold.attempt, hold.state, hold.posted = attempt, "open", 0
            hold.keys = tuple((s.kind, s.id, s.period) for s in scopes)
            for key in hold.keys:
                self.model.held[key] = self.model.held.get(key, 0) + amount
            for scope, key in zip(scopes, hold.keys, strict=True):
                guard = scope.guard_nanos
                assert guard is None or self.model.posted.get(key, 0) + self.model.held[key] <= guard

    @rule(by=st.integers(1, 1500))
    def time_passes(self, by: int) -> None:
        self.clock.now_us += by
        due = [h for h in self.all if h.state == "open" and h.attempt.expires_us <= self.clock.now_us]
        assert self.do(self.store.sweep(self.clock.now_us)) == len(due)
        for hold in due:
            self.model.post(hold, hold.attempt.hold_nanos)
            hold.state = "expired"

    @rule(limits=LIMITS)
    def limits_change(self, limits: tuple[int | None, ...]) -> None:
        self.limits = limits

    @rule()
    def period_rolls_over(self) -> None:
        self.day += 1

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "stores"):
            return
        keys = list(self.model.held)
        scopes = [BudgetScope(kind=key[0], id=key[1], period=key[2], limit_nanos=None) for key in keys]
        for key, balance in zip(keys, self.do(self.store.balances(scopes)), strict=True):
            assert (balance.posted_nanos, balance.held_nanos) == (self.model.posted.get(key, 0), self.model.held[key])
            assert balance.held_nanos == sum(
                h.attempt.hold_nanos for h in self.all if h.state == "open" and key in h.keys
            )
        assert self.do(self.store.verify_ledger()) == []

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                self.do(store.close())
            self.loop.close()


class FileMachine(LedgerMachine):
    """One process and its file."""

    async def open_stores(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(template(), self.folder / "0.db")
        self.generation = 0
        self.stores = [SqliteStore(self.folder / "0.db", clock=self.clock)]
        await self.stores[0].start()

    @rule(hold=LedgerMachine.holds, cost=st.integers(0, 150))
    def crash(self, hold: Hold, cost: int) -> None:
        """The process is gone without a word: another one opens the file as it is on disk at this moment.

        What was acknowledged is in it. A settlement that was only queued is in it or not: both are right, and
        what is still open then is charged at its hold.
        """
        was_open = hold.state == "open"
        if was_open:
            self.store.close_call(call_end(hold.call), attempt_end(hold.attempt, "post", cost))
        self.generation += 1
        before, after = self.stores[0].path, self.folder / f"{self.generation}.db"
        for suffix in ("", "-wal"):
            if Path(f"{before}{suffix}").exists():
                shutil.copy(f"{before}{suffix}", f"{after}{suffix}")
        self.do(self.store.close())
        self.stores = [SqliteStore(after, clock=self.clock)]
        self.do(self.store.start())
        if was_open:
            row = self.do(self.store.call(hold.call.request_id))
            if row.attempt_rows[-1].status == 200:
                self.model.post(hold, cost)
                hold.state = "posted"
        for each in self.all:
            if each.state == "open":
                self.model.post(each, each.attempt.hold_nanos)
                each.state = "expired"

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class SharedMachine(LedgerMachine):
    """Two processes and their database."""

    database: str

    async def open_stores(self) -> None:
        empty(self.database)
        self.stores = [PostgresStore(self.database, clock=self.clock) for _ in range(2)]
        for store in self.stores:
            await store.start()

    @rule(hold=LedgerMachine.holds, cost=st.integers(0, 150))
    def crash(self, hold: Hold, cost: int) -> None:
        """One process is gone with what it had queued; the other goes on, and open holds are left to their time."""
        store = self.store
        store.close_call(call_end(hold.call), attempt_end(hold.attempt, "post", cost))
        store._writer._outbox.clear()
        self.do(store.close())
        self.stores[self.stores.index(store)] = fresh = PostgresStore(self.database, clock=self.clock)
        self.do(fresh.start())


_template: list[Path] = []


def template() -> Path:
    """Return an empty, migrated database; migrating one per example would take most of the time."""
    if not _template:
        path = Path(tempfile.mkdtemp()) / "template.db"
        migrate.bring_up_to_date(path)
        _template.append(path)
    return _template[0]


def of_examples(number: int) -> settings:
    return settings(
        max_examples=number,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def test_one_process_and_its_file():
    run_state_machine_as_test(FileMachine, settings=of_examples(40))


def test_two_processes_and_their_database(database):
    machine = type("Machine", (SharedMachine,), {"database": database})
    run_state_machine_as_test(machine, settings=of_examples(15))
