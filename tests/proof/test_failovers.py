"""Three hundred scripted chains of failing providers: the ledger is what they bill, and never less.

Each target of a chain does one thing; the bill is the providers' own. An attempt that provably cost nothing is charged
nothing, one whose answer says its usage is charged exactly that, and any other is charged what was held for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from longrun import seeds
from world import (
    DOLLAR,
    DONE,
    Caller,
    a_day,
    a_piece,
    a_prompt,
    an_answer,
    bill_of,
    pieces,
    plain,
    sqlite_bench,
    streamed,
    the_usage,
)

from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError

CHAINS = {
    "rising": ("alpha/cheap", "beta/plain", "delta/dear"),
    "free, then paid": ("gamma/free", "beta/plain"),
    "free, then dear": ("gamma/free", "delta/dear", "alpha/cheap", "beta/plain"),
    "falling": ("delta/dear", "beta/plain", "alpha/cheap", "gamma/free"),
    "one": ("beta/plain",),
}
MODEL_OF = {name.partition("/")[2]: name for chain in CHAINS.values() for name in chain}
NOTHING = ("refuses", "429", "500", "503")  # the next target is asked, and nothing was billed
REFUSES_FOR_GOOD = ("400", "401", "404")  # nobody else is asked
UNKNOWN = ("time-out", "reset", "502", "504", "breaks off", "not JSON", "error 200")  # billed, and nobody says how much
ANSWERS = ("answers", "answers", "answers", "no usage")


@dataclass
class Script:
    """What each target of a chain will do, and what it bills when it has done it."""

    does: list[str]
    stream: bool
    billed: list[int] = field(default_factory=list)

    async def __call__(self, _request: ProviderRequest, body: dict[str, Any]) -> ProviderResponse:
        what = self.does[len(self.billed)]
        model, cap = MODEL_OF[body["model"]], body["max_tokens"]
        generated = min(cap, 7)
        free = what in NOTHING or what in REFUSES_FOR_GOOD
        self.billed.append(0 if free else bill_of(model, 12, generated))
        match what:
            case "refuses":
                raise UpstreamError("connection refused", sent=False)
            case "time-out":
                raise UpstreamError("no answer in time", sent=True, timed_out=True)
            case "reset":
                raise UpstreamError("connection reset", sent=True)
            case "not JSON":
                return plain(b"<html>")
            case "error 200":
                return plain(b'{"error": {"message": "something broke"}}')
            case "breaks off":
                return self._breaks_off()
            case "answers" | "no usage":
                return self._answers(generated, tells=what == "answers")
            case status:
                return plain(b'{"error": {"message": "no"}}', int(status))

    def _breaks_off(self) -> ProviderResponse:
        async def chunks() -> Any:
            yield a_piece("x") if self.stream else b'{"choices": [{"mess'
            raise UpstreamError("broke off", sent=True)

        kind = "text/event-stream" if self.stream else "application/json"
        return ProviderResponse(status=200, headers={"content-type": kind}, chunks=chunks())

    def _answers(self, generated: int, *, tells: bool) -> ProviderResponse:
        if not self.stream:
            return plain(an_answer(12, generated) if tells else an_answer(12, generated, usage=None))
        usage = [the_usage(12, generated)] if tells else []
        return streamed(pieces(*[a_piece("x", end=n == generated - 1) for n in range(generated)], *usage, DONE))


def plan(seed: int) -> tuple[str, Script, dict[str, Any], float]:
    dice = random.Random(seed)
    group = dice.choice(list(CHAINS))
    failures = dice.choice((NOTHING, UNKNOWN, NOTHING + UNKNOWN, NOTHING + UNKNOWN + REFUSES_FOR_GOOD))
    does = [dice.choice(failures) for _ in CHAINS[group]]
    if dice.random() < 0.8:
        does[dice.randrange(len(does))] = dice.choice(ANSWERS)
    stream = dice.random() < 0.4
    body = a_prompt("x" * dice.randrange(60), model=group, stream=stream)
    if dice.random() < 0.7:
        body["max_tokens"] = dice.choice((1, 3, 7, 20))
    return group, Script(does=does, stream=stream), body, dice.choice((0.005, 0.05, 0.3, 2.0, 100.0))


@pytest.mark.parametrize("played", seeds(300, 10, long=30_000))
async def test_the_ledger_is_what_the_providers_bill(tmp_path: Path, played: range) -> None:
    for seed in played:
        group, script, body, budget = plan(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            await one_chain(folder, group, script, body, budget)
        except BaseException as error:
            error.add_note(f"seed={seed}: {group} on ${budget}: {script.does}, billed {script.billed}")
            raise


async def one_chain(folder: Path, group: str, script: Script, body: dict[str, Any], budget: float) -> None:
    async with sqlite_bench(folder, script, a_day(budget), fleet=[a_day(budget * 2)], chains=CHAINS) as bench:
        caller = await bench.call(body)
        row = await bench.store.call("req_000000000000000001")
        assert row is not None
        assert len(row.attempt_rows) == len(script.billed), "a hold and a request for each attempt"
        charged = 0
        for attempt, what, billed in zip(row.attempt_rows, script.does, script.billed, strict=False):
            cost = attempt.cost_nanos or 0
            charged += cost
            assert cost >= billed, f"{what} was billed {billed} and charged {cost}"
            if what == "answers" or what in NOTHING or what in REFUSES_FOR_GOOD:
                assert cost == billed, f"{what} was billed {billed} and charged {cost}"
            else:
                assert cost == attempt.held_nanos, f"{what} is unknown, held at {attempt.held_nanos}, charged {cost}"
        for kind, limit in (("role", budget), ("fleet", budget * 2)):
            balance = await bench.balance(kind=kind)
            assert balance.held_nanos == 0
            assert sum(script.billed) <= balance.posted_nanos == charged <= limit * DOLLAR
        check_answer(caller, group, script)


def check_answer(caller: Caller, group: str, script: Script) -> None:
    """The chain went as far as it had to and might, and the client was told how it ended."""
    does, asked = script.does, len(script.billed)
    ends = [n for n, what in enumerate(does, 1) if what in REFUSES_FOR_GOOD or what in ANSWERS]
    if script.stream:  # once a piece is seen, nobody else is asked
        ends += [n for n, what in enumerate(does, 1) if what == "breaks off"]
    due = min([*ends, len(CHAINS[group])])
    assert asked <= due
    if asked < due:
        assert caller.code in ("budget_exhausted", "request_exceeds_budget"), caller.body
        assert caller.status == 402
        return
    last = does[asked - 1]
    if last in ANSWERS or (script.stream and last == "breaks off"):
        assert caller.status == 200
    else:
        assert caller.status in (400, 404, 429, 502, 504), caller.status


def test_the_plans_hold_every_kind_of_chain() -> None:
    """A list of failures that never meets a budget, a dearer target or an answer would prove little."""
    plans = [plan(seed) for seed in range(300)]
    done = {(what, n > 0) for _, script, _, _ in plans for n, what in enumerate(script.does)}
    for what in {*NOTHING, *UNKNOWN, *REFUSES_FOR_GOOD, *ANSWERS}:
        assert (what, True) in done, f"{what} is never a fallback"
        assert (what, False) in done, f"{what} is never first"
    assert {group for group, _, _, _ in plans} == set(CHAINS)


@pytest.mark.parametrize("first", ["refuses", "429", "500", "time-out"])
async def test_a_paid_fallback_of_a_free_model_needs_room_in_the_budget(tmp_path: Path, first: str) -> None:
    """The gate is on the attempt, not on the name that was asked for: the free model costs nothing, the other does."""
    script = Script(does=[first, "answers"], stream=False)
    async with sqlite_bench(tmp_path, script, a_day(0.001), chains=CHAINS) as bench:
        caller = await bench.call(a_prompt(model="free, then paid", max_tokens=20))
        assert (caller.status, caller.code) == (402, "request_exceeds_budget")
        assert [len(bench.providers[name].asked) for name in ("gamma", "beta")] == [1, 0]
        balance = await bench.balance()
        assert (balance.posted_nanos, balance.held_nanos) == (0, 0)


async def test_a_dearer_fallback_counts_what_the_attempt_before_may_have_cost(tmp_path: Path) -> None:
    """A timed-out attempt stays charged at its hold, so that the next one has that much less room."""
    hold: list[int] = []
    for budget in (100.0, None):
        folder = tmp_path / str(budget)
        folder.mkdir()
        script = Script(does=["time-out", "answers", "answers"], stream=False)
        # room for either attempt, and one nano too little for both
        limit = budget if budget is not None else (sum(hold) - 1) / DOLLAR
        async with sqlite_bench(folder, script, a_day(limit), chains=CHAINS) as bench:
            caller = await bench.call(a_prompt(model="rising", max_tokens=20))
            row = await bench.store.call("req_000000000000000001")
            assert row is not None
            if budget is not None:
                assert caller.status == 200
                hold = [attempt.held_nanos for attempt in row.attempt_rows]
                assert len(hold) == 2
            else:
                assert (caller.status, caller.code) == (402, "budget_exhausted")
                assert (await bench.balance()).posted_nanos == hold[0] >= script.billed[0] > 0
                assert len(script.billed) == 1
