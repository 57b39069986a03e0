"""Whole lives of requests on a simulated clock, with everything going wrong that can, as a seed says.

One seed is one afternoon: one or two gateways (the real data plane, policies, relay, limiter and sweeper) on one
thread of virtual time, a store whose answers are late or lost, providers that refuse, fail, hang, break off, lie about
their usage or do not tell it, clients that leave or stop reading, and processes that are killed. Each seed draws its
own mix, so that some are about one fault alone.

Two books are kept apart from the store's: what each provider really bills for each attempt, by its own arithmetic, and
which holds nobody can resolve any more (their process was killed, or the store's answer was lost). After every commit
and every token these laws are checked:

- nothing is sent before its intent row and its hold are committed;
- posted and held stay within every budget, but for what a provider generated or reported beyond the cap it was sent;
- what is billed is never more than what is posted and held, in every scope.

When the faults have stopped: only holds without an owner are open; after their time and a sweep none is. Every call
that was sent has ended in the log, at no less than its bill; at its bill, to the nano, wherever the answer said it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ledger_model import Hold, Key, Ledger, MemoryBooks, MemoryStore
from virtual_loop import VirtualLoop
from world import (
    DOLLAR,
    DONE,
    HOLD_TTL_S,
    PROVIDERS,
    T0,
    Caller,
    a_chain,
    a_fleet,
    a_grant,
    a_piece,
    a_prompt,
    an_answer,
    an_event,
    bill_of,
    gateway_before,
    plain,
    streamed,
    the_usage,
)

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.state import CutOff
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.gateway.sweeper import sweep
from nemo_agents.policy.budgets import BudgetRule

FAULTS = (
    "slow store",
    "store down",
    "answer lost",
    "late records",
    "said twice",
    "refused connection",
    "provider's no",
    "provider's 502",
    "time-out",
    "reset",
    "breaks off",
    "no usage",
    "odd usage",
    "ignores the cap",
    "not JSON",
    "slow provider",
    "client leaves",
    "client stops reading",
    "cancelled",
    "cut",
    "killed",
    "clock jumps",
    "budget changes",
    "small budget",
)
GROUPS = {
    "cheap": ["alpha/cheap"],
    "ladder": ["alpha/cheap", "beta/plain", "delta/dear"],
    "free first": ["gamma/free", "beta/plain"],
    "dear first": ["delta/dear", "alpha/cheap"],
}


class WatchedLedger(Ledger):
    """A ledger that remembers what was posted beyond holds, and what was touched since it was last looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.beyond: dict[Key, int] = {}
        self.touched: set[Key] = set()

    def take(self, attempt: Any, request_id: str, keys: tuple[Key, ...]) -> None:
        super().take(attempt, request_id, keys)
        self.touched.update(keys)

    def resolve(self, hold: Hold, kind: str, amount: int) -> int:
        change = super().resolve(hold, kind, amount)
        self._note(hold, amount - hold.amount)
        return change

    def correct(self, hold: Hold, truth: int) -> int:
        change = super().correct(hold, truth)
        self._note(hold, change)
        return change

    def _note(self, hold: Hold, beyond: int) -> None:
        self.touched.update(hold.keys)
        if beyond > 0:
            for key in hold.keys:
                self.beyond[key] = self.beyond.get(key, 0) + beyond


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What really happened at a provider. `exact`: the gateway was told its bill, and lived to write it down."""

    hold: Hold
    model: str
    process: Process
    obeys: bool = True
    billed: int = 0
    exact: bool = False


class Client(Caller):
    """A caller of the simulation, with a fate of its own."""

    def __init__(self, world: World, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world = world
        self.process: Process | None = None
        self.request_id: str | None = None
        self.leaves = self._leave
        self.stays_s = world.after("client leaves", 30.0)
        self.reads = world.dice.randrange(1, 12) if world.strikes("client stops reading") else None

    async def _leave(self) -> None:
        await asyncio.sleep(self.stays_s)

    async def send(self, message: Any) -> None:
        assert self.process is not None
        if self.process.dead:
            return
        await self.world.some_time(0.01)
        streams = len(self.sent) > 0 and "text/event-stream" in self.headers["content-type"]
        if streams and self.reads is not None and len(self.sent) >= self.reads:
            await asyncio.sleep(1e6)  # until somebody loses patience; a short answer fits into the socket, read or not
        self.sent.append(message)


class Stuttering(MemoryStore):
    """A store to which the end of a call may be told twice."""

    world: World

    def close_call(self, end: Any, attempt: Any) -> None:
        super().close_call(end, attempt)
        if self.world.strikes("said twice"):
            super().close_call(end, attempt)


class Process:
    """One gateway process."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.calls: dict[asyncio.Task[Any], Client] = {}
        store = Stuttering(
            world.books, clock=world.now_us, pause=self.pause, queue_later=world.write_later, alone=not world.replicas
        )
        store.world = world
        self.store = world.around(store)
        providers = {provider: Provider(self, provider) for provider in PROVIDERS}
        self.gateway = gateway_before(self.store, providers, clock=world.clock, ids=world)
        self.sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.store.start()
        await self.gateway.load()
        self.sweeper = asyncio.create_task(sweep(self.gateway))

    async def pause(self, point: str) -> None:
        """Where the store takes its time, cannot be reached, or did what it was asked and cannot say so."""
        world = self.world
        if self.dead:
            raise StoreUnavailable("the process is gone")
        world.tell("store", point)
        answered = point.endswith("answered")
        if world.strikes("slow store"):
            await world.some_time(3.0)
        if not answered and world.strikes("store down"):
            raise StoreUnavailable("the store is down")
        if answered and world.strikes("answer lost"):
            world.lost_answer()
            raise StoreUnavailable("the connection broke before the answer came")

    async def serve(self, client: Client) -> None:
        client.process = self
        task = asyncio.current_task()
        assert task is not None
        self.calls[task] = client
        try:
            await client.call(self.gateway)
        except asyncio.CancelledError:
            self.world.not_exact(client)  # whoever ends a call ends what it was about to write down
        finally:
            del self.calls[task]
        if not self.dead:
            assert client.status != 500, f"an answer that nobody intended: {client.body!r}"

    def kill(self) -> None:
        """End it without a word: what it had queued is gone, and so is everybody who could resolve its holds."""
        self.world.tell("process", f"{self.name} is killed")
        self.dead = True
        self.store.die()
        mine = {client.request_id for client in self.world.clients if client.process is self}
        self.world.ownerless.update(h.hold_id for h in self.world.ledger.open.values() if h.request_id in mine)
        for attempt in self.world.attempts:
            if attempt.process is self and attempt.hold.state not in ("post", "correct"):
                attempt.exact = False  # what it was told is lost with it
        for task in [*self.calls, self.sweeper]:
            if task is not None:
                task.cancel()


class Provider:
    """A provider as one process reaches it. It keeps its own account of what it generated."""

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name

    async def close(self) -> None:
        """It has nothing."""

    async def send(self, request: ProviderRequest) -> ProviderResponse:
        world = self.process.world
        if self.process.dead:
            raise UpstreamError("the process is gone", sent=False)
        if world.strikes("slow provider"):
            await world.some_time(4.0)
        if world.strikes("refused connection"):
            raise UpstreamError("connection refused", sent=False)
        body = json.loads(request.body)
        model = f"{self.name}/{body['model']}"
        attempt = world.sent(model, self.process)
        if world.strikes("provider's no"):
            status = world.dice.choice((400, 401, 404, 429, 429, 500, 503))
            return plain(json.dumps({"error": {"message": "no"}}).encode(), status)
        cap = body["max_tokens"]
        tokens_in = world.dice.randrange(1, 1 + len(json.dumps(body["messages"])) // 3)
        tokens_out = world.dice.randrange(cap + 1)
        if world.strikes("ignores the cap"):
            attempt.obeys, tokens_out = False, cap * 3 + 1
        if request.stream:
            return streamed(self._stream(attempt, tokens_in, tokens_out))
        world.bill(attempt, tokens_in, tokens_out)
        await world.some_time(2.0)
        if world.strikes("provider's 502"):
            return plain(b"<html>", world.dice.choice((502, 504, 524)))
        if world.strikes("time-out"):
            await asyncio.sleep(request.first_byte_timeout_s)
            raise UpstreamError("no answer in time", sent=True, timed_out=True)
        if world.strikes("reset"):
            raise UpstreamError("connection reset", sent=True)
        if world.strikes("not JSON"):
            return plain(b"<html>It works!</html>")
        return ProviderResponse(
            status=world.dice.choice((200, 200, 200, 201)),
            headers={"content-type": "application/json"},
            chunks=self._plain(attempt, tokens_in, tokens_out),
        )

    async def _plain(self, attempt: Attempt, tokens_in: int, tokens_out: int) -> Any:
        world, exact = self.process.world, False
        if world.strikes("odd usage"):
            whole = an_answer(tokens_in, tokens_out, usage=world.odd_usage(tokens_in, tokens_out))
        elif world.strikes("no usage"):
            whole = an_answer(tokens_in, tokens_out, usage=None)
        else:
            whole, exact = an_answer(tokens_in, tokens_out), True
        half = len(whole) // 2
        yield whole[:half]
        await world.some_time(1.0)
        if world.strikes("breaks off"):
            raise UpstreamError("broke off", sent=True)
        yield whole[half:]
        attempt.exact = exact and not self.process.dead

    async def _stream(self, attempt: Attempt, tokens_in: int, tokens_out: int) -> Any:
        """Every token is billed as it is generated; the input at once."""
        world, exact = self.process.world, False
        world.bill(attempt, tokens_in, 0)
        shown = min(tokens_out, 6)  # tokens that are seen one by one; the rest comes with the last of them
        for n in range(shown):
            await world.some_time(0.5)
            if world.strikes("breaks off"):
                raise UpstreamError("broke off", sent=True)
            if world.strikes("reset") and n == 2:
                yield b'data: {"choices": [{"delta": {"cont'
                raise UpstreamError("connection reset", sent=True)
            if world.strikes("time-out"):
                await asyncio.sleep(5.0)
                raise UpstreamError("nothing more came", sent=True, timed_out=True)
            world.bill(attempt, 0, tokens_out - shown + 1 if n == shown - 1 else 1)
            yield a_piece("x ", end=n == shown - 1)
        if world.strikes("odd usage"):
            yield an_event({"choices": [], "usage": world.odd_usage(tokens_in, tokens_out)})
        elif not world.strikes("no usage"):
            exact = True
            yield the_usage(tokens_in, tokens_out)
        yield DONE
        attempt.exact = exact and not self.process.dead


class World:
    """One seed."""

    alive = 0  # loops that are open: none between two seeds

    def __init__(
        self,
        seed: int,
        *,
        around: Callable[[Any], Any] = lambda store: store,
        ledger: type[WatchedLedger] = WatchedLedger,
    ) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.around = around
        self.loop = VirtualLoop()
        World.alive += 1
        self.log: list[str] = []
        self.clock = self
        self.skew_us = 0
        self.calm = False
        self.struck: Counter[str] = Counter()
        dice = self.dice
        # Each fault is absent in half of the seeds, and rare or frequent in the others; some seeds know one alone.
        alone = dice.choice(FAULTS) if dice.random() < 0.2 else None
        self.chance = {
            fault: (0.3 if fault == alone else 0.0)
            if alone
            else dice.choice((0.0, 0.0, dice.uniform(0.01, 0.1), dice.uniform(0.1, 0.5)))
            for fault in FAULTS
        }
        self.replicas = dice.random() < 0.4
        self.began_us = T0 + dice.choice((0, 86_400_000_000 - dice.randrange(60_000_000)))
        self.ledger = ledger()
        self.books = MemoryBooks(ledger=self.ledger, after_commit=self.check)
        self.attempts: list[Attempt] = []
        self.by_hold: dict[str, Attempt] = {}
        self.billed: dict[Key, int] = {}
        self.ownerless: set[str] = set()
        self.most: dict[tuple[str, str, str], int] = {}  # the highest limit that each budget ever had
        self.run_caps: dict[str, int] = {}
        self.processes: list[Process] = []
        self.clients: list[Client] = []
        self.numbers = 0

    # --- what the gateway takes for the world
    def now_us(self) -> int:
        return self.began_us + self.skew_us + round(self.loop.time() * 1e6)

    def request_id(self) -> str:
        self.numbers += 1
        name = f"req_{self.numbers:018x}"
        client = self._client()
        if client is not None:
            client.request_id = name
        return name

    def event_id(self) -> str:
        self.numbers += 1
        return f"evt_{self.numbers}"

    def _client(self) -> Client | None:
        task = asyncio.current_task()
        return next((p.calls[task] for p in self.processes if task in p.calls), None) if task is not None else None

    # --- fate
    def strikes(self, fault: str, *, at_least: float = 0.0) -> bool:
        if self.calm or self.dice.random() >= max(self.chance[fault], at_least):
            return False
        self.struck[fault] += 1
        return True

    def after(self, fault: str, most_s: float) -> float:
        return self.dice.uniform(0, most_s) if self.strikes(fault) else 1e6

    async def some_time(self, most_s: float) -> None:
        """Let others go first: for no time at all, a little, or rather long."""
        await asyncio.sleep(0 if self.calm else self.dice.choice((0.0, 0.001, self.dice.random() * most_s)))

    def write_later(self, write: Callable[[], None]) -> None:
        slow = self.dice.random() * 10 if self.strikes("late records") else 0.005
        self.loop.call_later(slow, write)

    def tell(self, who: str, what: str) -> None:
        client = self._client() if asyncio.current_task(self.loop) else None
        self.log.append(f"{self.loop.time():10.3f} {who:8} {client.request_id if client else '-':23} {what}")

    def odd_usage(self, tokens_in: int, tokens_out: int) -> Any:
        return self.dice.choice(
            (
                None,
                {},
                {"prompt_tokens": None, "completion_tokens": tokens_out},
                {"prompt_tokens": str(tokens_in), "completion_tokens": tokens_out},
                {"prompt_tokens": -1, "completion_tokens": -tokens_out - 1},
                {"prompt_tokens": 10**18, "completion_tokens": tokens_out},
                [tokens_in, tokens_out],
            )
        )

    # --- the books beside the books
    def lost_answer(self) -> None:
        client = self._client()
        for hold in self.ledger.open.values():
            if client is not None and hold.request_id == client.request_id:
                self.ownerless.add(hold.hold_id)

    def not_exact(self, client: Client) -> None:
        for attempt in self.attempts:
            attempt.exact = attempt.exact and attempt.hold.request_id != client.request_id

    def sent(self, model: str, process: Process) -> Attempt:
        """Something left: its intent row and a hold are there, or money is spent that nobody knows of."""
        client = self._client()
        assert client is not None
        self.tell("provider", f"{model} is asked")
        assert client.request_id in self.books.calls, f"{client.request_id} was sent without an intent row"
        holds = [hold for hold in self.ledger.holds.values() if hold.request_id == client.request_id]
        assert holds, f"{client.request_id} was sent without a hold"
        hold = holds[-1]
        assert hold.hold_id not in self.by_hold, f"{client.request_id} was sent twice on one hold"
        attempt = Attempt(hold=hold, model=model, process=process)
        self.attempts.append(attempt)
        self.by_hold[hold.hold_id] = attempt
        return attempt

    def bill(self, attempt: Attempt, tokens_in: int, tokens_out: int) -> None:
        before = self._counts(attempt)
        attempt.billed += bill_of(attempt.model, tokens_in, tokens_out)
        for key in attempt.hold.keys:
            self.billed[key] = self.billed.get(key, 0) + self._counts(attempt) - before
            self._check_bill(key)

    @staticmethod
    def _counts(attempt: Attempt) -> int:
        """What of a bill the budget answers for: a provider that ignores its cap is answered for up to the hold."""
        return attempt.billed if attempt.obeys else min(attempt.billed, attempt.hold.amount)

    def check(self) -> None:
        """What must be true after every commit."""
        ledger = self.ledger
        for key in ledger.touched:
            kind, name, period = key
            duration = {10: "1d", 7: "1mo"}.get(len(period), "")
            limit = self.run_caps.get(name) if kind == "run" else self.most.get((kind, name, duration))
            used = ledger.used(key)
            assert min(ledger.posted.get(key, 0), ledger.held.get(key, 0)) >= 0, f"{key} is negative"
            beyond = ledger.beyond.get(key, 0)
            assert limit is None or used <= limit + beyond, f"{key} has {used} of {limit} (and {beyond} beyond holds)"
            self._check_bill(key)
        ledger.touched.clear()

    def _check_bill(self, key: Key) -> None:
        billed, used = self.billed.get(key, 0), self.ledger.used(key)
        assert billed <= used, f"{billed} are billed to {key}, which knows of {used}"

    # --- the afternoon
    async def live(self) -> None:
        dice = self.dice
        tight = self.strikes("small budget", at_least=0.3)
        budget = dice.choice((0.004, 0.02, 0.1)) if tight else dice.choice((1.0, 10.0))
        self.burst = dice.random() < 0.3
        self.keys = []
        for number, role in ((1, "writer"), (2, "critic")):
            rules = [BudgetRule(amount_nanos=round(budget * DOLLAR), duration="1d")]
            if dice.random() < 0.3:
                rules.append(BudgetRule(amount_nanos=round(budget * 2 * DOLLAR), duration="1mo"))
            if dice.random() < 0.2:
                rules.append(BudgetRule(amount_nanos=1, duration="12h", mode="shadow"))
            key, grant = a_grant(number, *rules, role=role)
            self.books.grants[grant.grant_id] = grant
            self.keys.append((key, grant))
            for rule in rules:
                if rule.mode == "enforce":
                    self.most["role", grant.grant_id, rule.duration or ""] = rule.amount_nanos
        fleet_budget = dice.choice((None, budget * 1.2))
        rules = [] if fleet_budget is None else [BudgetRule(amount_nanos=round(fleet_budget * DOLLAR), duration="1d")]
        self.books.fleets["crew"] = a_fleet(*rules)
        if rules:
            self.most["fleet", "crew", "1d"] = rules[0].amount_nanos
        for group, models in GROUPS.items():
            for deployment in a_chain(group, models):
                self.books.deployments[deployment.deployment_id] = deployment
        for n in range(1 + self.replicas):
            await self.boot(f"p{n}")
        tasks = [asyncio.create_task(self.one_call()) for _ in range(dice.randrange(3, 12))]
        tasks += [asyncio.create_task(each) for each in self.troubles()]
        await asyncio.wait(tasks, timeout=3_000)
        assert all(task.done() for task in tasks), "a call is stuck"
        for task in tasks:
            task.result()
        await self.settle()

    async def boot(self, name: str) -> None:
        process = Process(self, name)
        self.processes.append(process)
        calm, self.calm = self.calm, True  # a start that fails is another start
        await process.start()
        self.calm = calm

    async def one_call(self) -> None:
        dice = self.dice
        await asyncio.sleep(0 if self.burst else dice.choice((0, dice.random() * 20)))
        key, _ = dice.choice(self.keys)
        body = a_prompt("x" * dice.randrange(200), model=dice.choice(list(GROUPS)), stream=dice.random() < 0.5)
        body["max_tokens"] = dice.choice((1, 5, 20, 60))
        if dice.random() < 0.3:
            del body["max_tokens"]
        headers = {}
        if dice.random() < 0.4:
            run = f"run-{dice.randrange(2)}"
            cap = dice.choice(("0.01", "0.1"))
            headers = {h.RUN_ID: run, h.RUN_BUDGET: cap}
            name = f"crew/{run}"
            self.run_caps[name] = max(self.run_caps.get(name, 0), round(float(cap) * DOLLAR))
        living = [process for process in self.processes if not process.dead]
        if not living:
            return
        client = Client(self, key, body, headers=headers)
        self.clients.append(client)
        task = asyncio.create_task(dice.choice(living).serve(client))
        if self.strikes("cancelled"):
            self.loop.call_later(dice.random() * 5, task.cancel)
        await task

    def troubles(self) -> list[Any]:
        return [self.sweep_in_between()] + [
            each()
            for fault, each in (
                ("cut", self.cut),
                ("killed", self.kill),
                ("clock jumps", self.jump),
                ("budget changes", self.change_budget),
            )
            if self.chance[fault] and self.strikes(fault, at_least=0.7)
        ]

    async def cut(self) -> None:
        await asyncio.sleep(self.dice.random() * 20)
        _, grant = self.dice.choice(self.keys)
        cut_off = CutOff(Code.KEY_BLOCKED, "The key was blocked.")
        for process in self.processes:
            if not process.dead:
                self.tell("admin", f"cuts the calls of {grant.grant_id}")
                process.gateway.cut(cut_off, lambda call: call.grant_id == grant.grant_id)

    async def kill(self) -> None:
        await asyncio.sleep(self.dice.random() * 15)
        process = self.dice.choice(self.processes)
        if not process.dead:
            process.kill()
            await asyncio.sleep(self.dice.random() * 5)
            await self.boot(f"{process.name} again")

    async def sweep_in_between(self) -> None:
        """Other replicas sweep when it suits them, not when it suits these calls."""
        for _ in range(self.dice.randrange(6)):
            await asyncio.sleep(self.dice.random() * 6)
            for process in self.processes:
                if not process.dead:
                    with contextlib.suppress(StoreUnavailable):
                        await process.store.sweep(self.now_us())

    async def jump(self) -> None:
        for _ in range(self.dice.randrange(1, 4)):
            await asyncio.sleep(self.dice.random() * 6)
            self.skew_us += self.dice.choice((1_000_000, 61_000_000, 3_600_000_000, 86_400_000_000))
            self.tell("clock", f"is {self.skew_us / 1e6:.0f} s ahead")

    async def change_budget(self) -> None:
        await asyncio.sleep(self.dice.random() * 15)
        _, grant = self.dice.choice(self.keys)
        grant = self.books.grants[grant.grant_id]
        amount = round(grant.budgets[0].amount_nanos * self.dice.choice((0.0, 0.3, 1.5)))
        changed = replace(grant, budgets=(replace(grant.budgets[0], amount_nanos=amount), *grant.budgets[1:]))
        place = ("role", grant.grant_id, "1d")
        self.most[place] = max(self.most[place], amount)
        for process in self.processes:
            if not process.dead:
                try:
                    await process.gateway.put_grant(changed)
                except StoreUnavailable:
                    return

    # --- the evening
    async def settle(self) -> None:
        """The faults stop: what is open has no owner, and a sweep after its time ends it."""
        self.calm = True
        await asyncio.sleep(20)  # what was queued is written
        left = {hold.hold_id for hold in self.ledger.open.values()}
        assert left <= self.ownerless, f"open, and nobody's: {sorted(left - self.ownerless)}"
        for process in self.processes:
            assert process.dead or not process.gateway.in_flight, "a call that ended is still in flight"
        await asyncio.sleep(HOLD_TTL_S + 35)
        assert not self.ledger.open, f"open after their time and a sweep: {sorted(self.ledger.open)}"
        assert self.ledger.problems() == []
        for attempt in self.attempts:
            hold = attempt.hold
            call = self.books.calls[hold.request_id]
            assert call.state != "open", f"{hold.request_id} never ended in the log"
            assert hold.posted >= self._counts(attempt), f"{hold} was billed {attempt.billed}"
            was_cut = call.end is not None and call.end.code == Code.KEY_BLOCKED
            if attempt.exact and hold.hold_id not in self.ownerless and not was_cut:
                assert hold.posted == attempt.billed, f"{hold} was billed {attempt.billed}, and the answer said so"
        for call in self.books.calls.values():
            spent = sum(hold.posted for hold in self.ledger.holds.values() if hold.request_id == call.start.request_id)
            assert (call.cost or 0) == spent, f"{call.start.request_id} says {call.cost}, its attempts {spent}"
        for process in self.processes:
            if process.sweeper is not None:
                process.sweeper.cancel()
        await asyncio.sleep(0)

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self.live())
            assert not self.loop.unhandled, self.loop.unhandled
        finally:
            self._clear()

    def _clear(self) -> None:
        """Let every task end, so that nothing of one seed is left for the next."""
        self.calm = True
        for process in self.processes:
            process.dead = True
            process.store.die()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=1e5))
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.exception()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        World.alive -= 1


def simulate(seed: int, *, log: Callable[[str], Any] | None = None, **planted: Any) -> World:
    """Run one seed; a failure says how to see it again."""
    world = World(seed, **planted)
    try:
        world.run()
    except BaseException as error:
        error.add_note("\n".join(world.log[-60:]))
        mix = {fault: round(chance, 2) for fault, chance in world.chance.items() if chance}
        error.add_note(f"seed={seed} {mix}: again with python tests/proof/replay.py simulation {seed} --log")
        raise
    finally:
        if log is not None:
            log("\n".join(world.log))
    return world
