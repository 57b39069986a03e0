"""Every order of holds, settlements, silence, crashes and changed minds that Hypothesis can think of.

The machine asks a store through two clients and keeps the model beside it. After every few steps, and whenever time
passes or a process dies, it compares: each answer, each balance, and four laws that hold without any model:

- no guarded scope has more posted and held than its limit, unless a truth came out larger than its hold (which is
  recorded in full) or the limit was lowered afterwards;
- what is posted is the sum of the resolutions, what is held the sum of the open holds (`verify_ledger`);
- what the provider really bills is never more than what is posted and held;
- a hold counts in the period in which it was opened, whenever it ends.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from backends import Backend, Opened
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ledger_model import Hold, Key, MemoryBooks, guard_of, key_of

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart
from nemo_agents.policy.keys import Grant, KeySecret
from nemo_agents.policy.ledger import BudgetScope, Held, HoldRefused, RunCaps, Settlement

T0 = 1_760_000_000_000_000
TTL_US = 1000
LOOK_AFTER = 16  # steps that may go by before the machine looks
CRASHES_MAX = 2  # of one run: opening a file again takes as long as a hundred steps

AMOUNTS = st.integers(0, 120)
ANY = st.integers(0, 1 << 16)
LIMITS = st.one_of(st.none(), st.integers(0, 400))
MODES = st.sampled_from(["enforce", "enforce", "enforce", "shadow"])
_loop: list[asyncio.AbstractEventLoop] = []
_runs = itertools.count(1)


def the_loop() -> asyncio.AbstractEventLoop:
    """One event loop for all runs: a machine is gone with all of its tasks when it ends."""
    if not _loop or _loop[0].is_closed():
        _loop[:] = [asyncio.new_event_loop()]
    return _loop[0]


class LedgerMachine(RuleBasedStateMachine):
    """Two clients of one store."""

    backend: ClassVar[Backend]

    @initialize(role=st.integers(0, 300), month=LIMITS, fleet=LIMITS, run=LIMITS)
    def begin(self, role: int, month: int | None, fleet: int | None, run: int | None) -> None:
        self.loop = the_loop()
        self.now_us = T0
        self.opened: Opened = self.do(self.backend.open(lambda: self.now_us))
        self.model = MemoryBooks()
        self.numbers = itertools.count(1)
        self.tag = next(_runs)  # names are no run's but this one's, where runs share a database
        self.fleet, self.grant_id = f"crew{self.tag}", f"g{self.tag}"
        self.limits: dict[str, tuple[int | None, Any]] = {
            "day": (role, "enforce"),
            "month": (month, "enforce"),
            "fleet": (fleet, "enforce"),
        }
        self.run_cap = run
        self.day = 0
        self.pending: list[tuple[asyncio.Task[Any], object]] = []
        self.turn: int | None = None  # whose asking and telling is under way, where each client writes for itself
        self.told = False  # something was told for which no answer comes
        self.since_look = 0
        self.crashes = 0
        # What follows is the machine's own, and taken from no ledger.
        self.bills: dict[str, tuple[str, int]] = {}  # of each hold: how far it is, and what the provider bills for it
        self.scopes_of: dict[str, tuple[Key, ...]] = {}
        self.ceilings: dict[Key, int] = {}
        self.attempts: dict[str, tuple[CallStart, AttemptStart]] = {}

    def do(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    # --- words --------------------------------------------------------------------------------------------------
    def scopes(self, *, grouped: bool) -> tuple[BudgetScope, ...]:
        ids = {
            "day": ("role", self.grant_id, f"2025-10-{self.day + 10}"),
            "month": ("role", self.grant_id, f"2025-{10 + self.day // 3}"),
            "fleet": ("fleet", self.fleet, f"2025-10-{self.day + 10}"),
        }
        name = f"{self.fleet}/run-one"
        run = [BudgetScope(kind="run", id=name, period="total", limit_nanos=self.run_cap)] if grouped else []
        rest = [
            BudgetScope(kind=kind, id=scope_id, period=period, limit_nanos=limit, mode=mode, name=name)
            for name, (kind, scope_id, period) in ids.items()
            for limit, mode in [self.limits[name]]
        ]
        return (*run, *rest)

    def new_call(self, *, grouped: bool) -> CallStart:
        request_id = f"req-{self.tag}-{next(self.numbers)}"
        return CallStart(
            request_id=request_id,
            started_us=self.now_us,
            fleet=self.fleet,
            role="writer",
            key_alias=f"{self.fleet}/writer",
            key_id="abcdefghij",
            grant_id=self.grant_id,
            run_id="run-one" if grouped else request_id,
            grouped=grouped,
            caps=RunCaps(budget_nanos=self.run_cap if grouped else None),
            step="plan" if grouped else None,
            endpoint="/v1/chat/completions",
            model_asked="m",
        )

    def new_attempt(self, amount: int, scopes: tuple[BudgetScope, ...], n: int = 1) -> AttemptStart:
        return AttemptStart(
            hold_id=f"hold-{self.tag}-{next(self.numbers)}",
            n=n,
            model="m",
            provider="p",
            reason="first" if n == 1 else "fallback",
            started_us=self.now_us,
            hold_nanos=amount,
            scopes=scopes,
            price_version="v",
            expires_us=self.now_us + TTL_US,
        )

    def ended(self, hold: Hold, kind: Any, amount: int) -> AttemptEnd:
        return AttemptEnd(
            hold_id=hold.hold_id,
            n=hold.n,
            ended_us=self.now_us,
            status=200 if kind == "post" else None,
            error=None if kind == "post" else "it broke",
            settlement=Settlement(kind=kind, amount_nanos=amount),
            usage_source={"post": "provider", "void": "none", "expire": "hold"}[kind],
        )

    def call_end(self, hold: Hold, kind: str) -> CallEnd:
        state = "ok" if kind == "post" else "failed"
        return CallEnd(request_id=hold.request_id, ended_us=self.now_us, state=state, status=200)

    def pick(self, which: int, *, open_only: bool = True) -> Hold:
        ledger = self.model.ledger
        return list((ledger.open if open_only else ledger.holds).values())[
            which % len(ledger.open if open_only else ledger.holds)
        ]

    # --- what the laws need -------------------------------------------------------------------------------------
    def granted(self, call: CallStart, attempt: AttemptStart, answer: Held) -> None:
        """Note a hold that a client was given; the limits that it was given under are kept from now on."""
        self.attempts[attempt.hold_id] = (call, attempt)
        self.scopes_of[attempt.hold_id] = tuple(key_of(balance.scope) for balance in answer.balances)
        self.bills[attempt.hold_id] = ("under way", attempt.hold_nanos)
        for balance in answer.balances:
            used, limit = balance.posted_nanos + balance.held_nanos, guard_of(balance.scope)
            assert limit is None or used <= limit, f"{balance.scope.kind} was held beyond its limit: {balance}"
            key = key_of(balance.scope)
            self.ceilings[key] = max(self.ceilings.get(key, 0), used if limit is None else limit)

    def ends(self, hold_id: str, kind: str, amount: int) -> None:
        """Note what the provider bills for a hold: the first word counts, but for silence, which truth may follow."""
        before, billed = self.bills[hold_id]
        if before == "under way" or (before == "expire" and kind != "expire"):
            truth = {"post": amount, "void": 0, "expire": billed}[kind]
            held = self.attempts[hold_id][1].hold_nanos
            for key in self.scopes_of[hold_id]:
                self.ceilings[key] += max(0, truth - held)
            self.bills[hold_id] = (kind if before == "under way" else "correct", truth)

    # --- holds --------------------------------------------------------------------------------------------------
    def ask(self, client: int, call: CallStart, attempt: AttemptStart) -> None:
        self.turn_to(client)
        expected = self.model.open_call(call, attempt)
        task = self.loop.create_task(self.opened.stores[client].open_call(call, attempt))
        if isinstance(expected, Held):
            self.granted(call, attempt, expected)
        self.expect(task, expected)

    def expect(self, task: asyncio.Task[Any], expected: object) -> None:
        self.pending.append((task, expected))
        self.do(asyncio.sleep(0))  # it has asked, and may have to wait for its answer
        self.stepped()

    def turn_to(self, client: int | None) -> None:
        """Let another client ask, or all of them (None).

        Where each of them writes for itself, what one was asked and told is written before another has its turn: so
        the order is known, and with it the answers. What one is asked meanwhile, it writes together.
        """
        if self.backend.in_order or (client is not None and client == self.turn):
            return
        self.wait()
        if self.turn is not None and self.told:
            self.do(self.opened.stores[self.turn].flush())
        self.turn, self.told = client, False

    def stepped(self) -> None:
        self.since_look += 1
        if self.since_look >= LOOK_AFTER:
            self.look()

    @rule(amount=AMOUNTS, grouped=st.booleans())
    def hold(self, amount: int, grouped: bool) -> None:
        call = self.new_call(grouped=grouped)
        self.ask(amount % 2, call, self.new_attempt(amount, self.scopes(grouped=grouped)))

    @rule(amounts=st.tuples(AMOUNTS, AMOUNTS))
    def two_hold_at_once(self, amounts: tuple[int, int]) -> None:
        """Two clients ask at the same moment: the answers are those of one order or of the other."""
        self.wait()
        self.turn_to(None)
        asked = []
        for amount in amounts:
            call = self.new_call(grouped=False)
            asked.append((call, self.new_attempt(amount, self.scopes(grouped=False))))
        answers = self.do(self.both([s.open_call(*a) for s, a in zip(self.opened.stores, asked, strict=True)]))
        ways = []
        for order in ((0, 1), (1, 0)):
            model = self.model_copy()
            told = {i: model.open_call(*asked[i]) for i in order}
            ways.append((model, [told[0], told[1]]))
        fitting = [model for model, told in ways if all(same(a, t) for a, t in zip(answers, told, strict=True))]
        assert fitting, f"no order of two holds gives {answers}: {[told for _, told in ways]}"
        self.model = fitting[0]
        for (call, attempt), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Held):
                self.granted(call, attempt, answer)
        self.stepped()

    @staticmethod
    async def both(awaitables: Sequence[Any]) -> list[Any]:
        return list(await asyncio.gather(*awaitables))

    @staticmethod
    async def all_of(awaitables: Sequence[Any]) -> list[Any]:
        """Return what each gave or raised: of several that went wrong it is the first that tells why."""
        return list(await asyncio.gather(*awaitables, return_exceptions=True))

    def model_copy(self) -> MemoryBooks:
        return MemoryBooks(
            ledger=self.model.ledger.copy(),
            calls={name: replace(call) for name, call in self.model.calls.items()},
            runs={name: replace(run) for name, run in self.model.runs.items()},
        )

    # --- ends ---------------------------------------------------------------------------------------------------
    def settle(self, hold: Hold, kind: str, amount: int, client: int = 0) -> None:
        end, attempt = self.call_end(hold, kind), self.ended(hold, kind, amount)
        self.turn_to(client)
        self.opened.stores[client].close_call(end, attempt)
        self.ends(hold.hold_id, kind, amount)
        self.model.close_call(end, attempt)
        self.told = True
        self.stepped()

    @precondition(lambda self: self.model.ledger.open)
    @rule(which=ANY, cost=st.integers(0, 150))
    def post(self, which: int, cost: int) -> None:
        self.settle(self.pick(which), "post", cost, which % 2)

    @precondition(lambda self: self.model.ledger.open)
    @rule(which=ANY)
    def never_sent(self, which: int) -> None:
        self.settle(self.pick(which), "void", 0)

    @precondition(lambda self: self.model.ledger.holds)
    @rule(which=ANY, kind=st.sampled_from(["post", "void", "expire"]), cost=st.integers(0, 150))
    def say_again_or_late(self, which: int, kind: str, cost: int) -> None:
        """Anything about any hold: a second word changes nothing, and the truth about an expired one is taken."""
        hold = self.pick(which, open_only=False)
        self.settle(hold, kind, hold.amount if kind == "expire" else cost, which % 2)

    @precondition(lambda self: self.model.ledger.open)
    @rule(which=ANY, amount=AMOUNTS, sent=st.booleans())
    def fall_back(self, which: int, amount: int, sent: bool) -> None:
        """One attempt fails, for nothing or for all that was held, and another is held under today's budgets."""
        hold = self.pick(which)
        call, attempt = self.attempts[hold.hold_id]
        kind = "expire" if sent else "void"
        ended = self.ended(hold, kind, hold.amount if sent else 0)
        following = self.new_attempt(amount, self.scopes(grouped=call.grouped), attempt.n + 1)
        self.ends(hold.hold_id, kind, 0)
        self.turn_to(which % 2)
        expected = self.model.next_attempt(call.request_id, ended, following)
        task = self.loop.create_task(self.opened.stores[which % 2].next_attempt(call.request_id, ended, following))
        if isinstance(expected, Held):
            self.granted(call, following, expected)
        self.expect(task, expected)

    # --- the world ----------------------------------------------------------------------------------------------
    @rule(by=st.integers(1, 1500))
    def time_passes(self, by: int) -> None:
        self.wait()
        self.turn_to(by % 2)
        self.now_us += by
        due = self.model.ledger.due(self.now_us)
        assert self.do(self.opened.stores[by % 2].sweep(self.now_us)) == len(due)
        self.expire(due)
        self.stepped()

    def expire(self, due: Sequence[Hold]) -> None:
        for hold in due:
            self.ends(hold.hold_id, "expire", hold.amount)
        self.model.sweep(due)

    @rule(name=st.sampled_from(["day", "month", "fleet"]), limit=LIMITS, mode=MODES)
    def a_limit_changes(self, name: str, limit: int | None, mode: str) -> None:
        self.limits[name] = (limit, mode)

    @rule()
    def the_day_ends(self) -> None:
        self.day = min(self.day + 1, 19)

    @precondition(lambda self: self.model.ledger.holds)
    @rule(client=st.integers(0, 1))
    def the_key_is_rotated(self, client: int) -> None:
        """Another secret of the same grant; its spend stays."""
        secret = KeySecret(public_id=f"k{self.tag}-{next(self.numbers)}", digest=b"d", created_us=self.now_us)
        grant = Grant(grant_id=self.grant_id, alias=f"{self.fleet}/writer", secrets=(secret,))
        self.do(self.opened.stores[client].put_grant(grant))
        self.stepped()

    @precondition(lambda self: self.crashes < CRASHES_MAX)
    @rule(which=ANY, cost=st.integers(0, 150))
    def crash(self, which: int, cost: int) -> None:
        """The process is gone without a word. What was acknowledged is on disk, what was only queued perhaps."""
        self.crashes += 1
        self.wait()
        self.turn_to(None)
        for store in {id(store): store for store in self.opened.stores}.values():
            self.do(store.flush())
        in_doubt = self.pick(which) if self.model.ledger.open else None
        if in_doubt is not None:
            cost += cost == in_doubt.amount  # or nobody could tell what was heard from what was charged for silence
            said = self.call_end(in_doubt, "post"), self.ended(in_doubt, "post", cost)
            self.opened.stores[0].close_call(*said)
        self.do(self.backend.crash(self.opened))  # nobody waits for an answer now
        if in_doubt is not None:
            silent = self.model_copy()
            self.model.close_call(*said)
            heard = self.model
            if self.backend.alone:
                for model in (silent, heard):
                    model.sweep(list(model.ledger.open.values()))
            if self.agrees_with(heard):
                self.ends(in_doubt.hold_id, "post", cost)
            else:
                self.model = silent
        if self.backend.alone:
            for name in [name for name, (state, _) in self.bills.items() if state == "under way"]:
                self.ends(name, "expire", 0)
            self.model.sweep(list(self.model.ledger.open.values()))
        self.look(audit=True)

    # --- the look -----------------------------------------------------------------------------------------------
    @rule()
    def look_now(self) -> None:
        self.look()

    def wait(self) -> None:
        """Take the answers that are due, and hold them against what the model said when they were asked for."""
        if self.pending:
            tasks = [task for task, _ in self.pending]
            answers = self.do(self.all_of(tasks))
            expectations = [expected for _, expected in self.pending]
            self.pending.clear()
            for answer, expected in zip(answers, expectations, strict=True):
                if not same(answer, expected):
                    raised = answer if isinstance(answer, BaseException) else None
                    raise AssertionError(f"the store says {answer!r}, the model {expected!r}") from raised

    def keys(self) -> list[Key]:
        return sorted(self.model.ledger.held)

    def read(self) -> dict[Key, tuple[int, int]]:
        keys = self.keys()
        scopes = [BudgetScope(kind=kind, id=i, period=p, limit_nanos=None) for kind, i, p in keys]  # type: ignore[arg-type]
        found = self.do(self.opened.stores[0].balances(scopes))
        return {key: (b.posted_nanos, b.held_nanos) for key, b in zip(keys, found, strict=True)}

    def agrees_with(self, model: MemoryBooks) -> bool:
        ledger = model.ledger
        return self.read() == {key: (ledger.posted.get(key, 0), ledger.held[key]) for key in self.keys()}

    def look(self, *, audit: bool = False) -> None:
        self.wait()
        self.turn_to(0)
        self.since_look = 0
        found = self.read()
        billed: dict[Key, int] = {}
        for name, (_, amount) in self.bills.items():
            for key in self.scopes_of[name]:
                billed[key] = billed.get(key, 0) + amount
        for key, (posted, held) in found.items():
            used = posted + held
            assert min(posted, held) >= 0, f"{key} is negative: {posted}, {held}"
            assert used <= self.ceilings.get(key, 0), f"{key} has {used} of {self.ceilings.get(key, 0)}"
            assert billed.get(key, 0) <= used, f"the provider bills {billed[key]} to {key}, which knows of {used}"
        ledger = self.model.ledger
        expected = {key: (ledger.posted.get(key, 0), ledger.held[key]) for key in self.keys()}
        assert found == expected, f"the store has {found}, the model {expected}"
        if audit:
            assert self.do(self.opened.stores[0].verify_ledger()) == []

    def teardown(self) -> None:
        if not hasattr(self, "opened"):
            return
        try:
            self.wait()
            self.turn_to(0)
            self.now_us += 100 * TTL_US
            left = list(self.model.ledger.open.values())
            assert self.do(self.opened.stores[0].sweep(self.now_us)) == len(left)
            self.expire(left)
            self.look(audit=True)
            assert self.model.ledger.problems() == []
        finally:
            for task, _ in self.pending:
                task.cancel()
            self.do(self.backend.close(self.opened))


def same(answer: object, expected: object) -> bool:
    """Whether a store's answer says what the model's says: yes or no, and the balances."""
    if type(answer) is not type(expected):
        return False
    if isinstance(answer, (Held, HoldRefused)) and isinstance(expected, (Held, HoldRefused)):
        return sums(answer.balances) == sums(expected.balances)
    return answer == expected


def sums(balances: Sequence[Any]) -> list[tuple[Key, int, int]]:
    return [(key_of(b.scope), b.posted_nanos, b.held_nanos) for b in balances]
