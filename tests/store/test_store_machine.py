"""The store against a model of a ledger, in every order that Hypothesis can think of."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from store_values import Clock, a_call, an_attempt, attempt_end, call_end

from nemo_agents.gateway.stores.base import AttemptStart, CallStart
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import BudgetScope, Held, HoldRefused

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


class LedgerMachine(RuleBasedStateMachine):
    """Holds, settlements, silence, crashes and changed minds."""

    holds = Bundle("holds")

    @initialize(role=st.integers(0, 300), fleet=st.one_of(st.none(), st.integers(0, 500)))
    def begin(self, role: int, fleet: int | None) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(template(), self.folder / "0.db")
        self.generation = 0
        self.clock = Clock()
        self.model = Model()
        self.all: list[Hold] = []
        self.limits = {"run": None, "role": role, "fleet": fleet}
        self.period = 0
        self.store = SqliteStore(self.folder / "0.db", clock=self.clock)
        self.do(self.store.start())

    def do(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def scopes(self, grouped: bool) -> tuple[BudgetScope, ...]:
        ids = {
            "run": ("crew/run-one", "total"),
            "role": ("g1", f"p{self.period}"),
            "fleet": ("crew", f"p{self.period}"),
        }
        return tuple(
            BudgetScope(kind=kind, id=ids[kind][0], period=ids[kind][1], limit_nanos=self.limits[kind])
            for kind in ("run", "role", "fleet")
            if grouped or kind != "run"
        )

    @rule(target=holds, amount=st.integers(0, 120), grouped=st.booleans())
    def hold(self, amount: int, grouped: bool):
        scopes = self.scopes(grouped)
        call = a_call(run_id="run-one" if grouped else None, step="plan" if amount % 2 else None)
        attempt = an_attempt(amount, *scopes, expires_us=self.clock.now_us + TTL_US)
        answer = self.do(self.store.open_call(call, attempt))
        keys = tuple((s.kind, s.id, s.period) for s in scopes)
        fits = all(
            s.limit_nanos is None or self.model.posted.get(k, 0) + self.model.held.get(k, 0) + amount <= s.limit_nanos
            for s, k in zip(scopes, keys, strict=True)
        )
        assert isinstance(answer, Held if fits else HoldRefused), (answer, fits)
        if not fits:
            return multiple()
        for key in keys:
            self.model.held[key] = self.model.held.get(key, 0) + amount
        for balance, key in zip(answer.balances, keys, strict=True):
            assert balance.posted_nanos == self.model.posted.get(key, 0)
            assert balance.held_nanos == self.model.held[key]
            limit = balance.scope.limit_nanos
            assert limit is None or balance.posted_nanos + balance.held_nanos <= limit
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
        self.store.close_call(call_end(hold.call, "failed"), attempt_end(hold.attempt, "expire"))
        if hold.state == "open":
            self.model.post(hold, hold.attempt.hold_nanos)
            hold.state = "expired"

    def settle(self, hold: Hold, kind: str, amount: int, state: str) -> None:
        self.store.close_call(call_end(hold.call), attempt_end(hold.attempt, kind, amount))
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
                limit = self.limits[key[0]]
                assert limit is None or self.model.posted.get(key, 0) + self.model.held[key] <= limit

    @rule(by=st.integers(1, 1500))
    def time_passes(self, by: int) -> None:
        self.clock.now_us += by
        due = [h for h in self.all if h.state == "open" and h.attempt.expires_us <= self.clock.now_us]
        assert self.do(self.store.sweep(self.clock.now_us)) == len(due)
        for hold in due:
            self.model.post(hold, hold.attempt.hold_nanos)
            hold.state = "expired"

    @rule(role=st.integers(0, 300), fleet=st.one_of(st.none(), st.integers(0, 500)))
    def limits_change(self, role: int, fleet: int | None) -> None:
        self.limits |= {"role": role, "fleet": fleet}

    @rule()
    def period_rolls_over(self) -> None:
        self.period += 1

    @rule(hold=holds, cost=st.integers(0, 150))
    def crash(self, hold: Hold, cost: int) -> None:
        """The process is gone without a word: another one opens the file as it is on disk at this moment.

        What was acknowledged is in it. A settlement that was only queued is in it or not: both are right, and
        what is still open then is charged at its hold.
        """
        was_open = hold.state == "open"
        if was_open:
            self.store.close_call(call_end(hold.call), attempt_end(hold.attempt, "post", cost))
        self.generation += 1
        before, after = self.store.path, self.folder / f"{self.generation}.db"
        for suffix in ("", "-wal"):
            if Path(f"{before}{suffix}").exists():
                shutil.copy(f"{before}{suffix}", f"{after}{suffix}")
        self.do(self.store.close())
        self.store = SqliteStore(after, clock=self.clock)
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

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        for key in self.model.held:
            scope = BudgetScope(kind=key[0], id=key[1], period=key[2], limit_nanos=None)
            (balance,) = self.do(self.store.balances([scope]))
            assert (balance.posted_nanos, balance.held_nanos) == (self.model.posted.get(key, 0), self.model.held[key])
            assert balance.held_nanos == sum(
                h.attempt.hold_nanos for h in self.all if h.state == "open" and key in h.keys
            )
        assert self.do(self.store.verify_ledger()) == []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.do(self.store.close())
            self.loop.close()
            shutil.rmtree(self.folder)


_template: list[Path] = []


def template() -> Path:
    """Return an empty, migrated database; migrating one per example would take most of the time."""
    if not _template:
        from nemo_agents.gateway.stores import migrate

        path = Path(tempfile.mkdtemp()) / "template.db"
        migrate.bring_up_to_date(path)
        _template.append(path)
    return _template[0]


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
