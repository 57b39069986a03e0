"""Budgets and the clock: holds that outlive their period, and clocks that are set while money is out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from world import CENT, HOUR_US, T0, HandClock, a_day, a_prompt, an_answer, plain, sqlite_bench

from nemo_agents.gateway import rim
from nemo_agents.policy.budgets import BudgetRule

A_CENT = {"alpha/cheap": {"input_per_mtok": 0, "output_per_mtok": 0, "per_request": 0.01}}
DAY_US = 24 * HOUR_US


async def a_cent(_request: Any, _body: Any) -> Any:
    return plain(an_answer(1, 1))


class Gate:
    """Where calls wait at the provider; `full` is set when so many are there."""

    def __init__(self, size: int) -> None:
        self.free, self.full, self.open = size, asyncio.Event(), asyncio.Event()

    async def passed(self) -> None:
        self.free -= 1
        if not self.free:
            self.full.set()
        await self.open.wait()


@pytest.mark.parametrize("fails", [False, True], ids=["answered", "broken"])
async def test_two_hundred_holds_over_midnight_stay_in_their_day(tmp_path: Path, fails: bool) -> None:
    """The new day begins empty while two dollars of the old one are in flight, and stays its own when they end."""
    gate = Gate(200)

    async def script(_request: Any, _body: Any) -> Any:
        if bench.clock.at_us < T0 + DAY_US:
            await gate.passed()
            if fails:
                return plain(b"not JSON")  # nobody knows what it cost: charged at the hold
        return plain(an_answer(1, 1))

    clock = HandClock(T0 + DAY_US - 1_000_000)
    rules = (a_day(2.0), BudgetRule(amount_nanos=500 * CENT, duration="1mo"))
    async with sqlite_bench(tmp_path, script, *rules, fleet=[a_day(2.0)], clock=clock, prices=A_CENT) as bench:
        calls = [asyncio.create_task(bench.call(a_prompt())) for _ in range(200)]
        await gate.full.wait()
        assert (await bench.balance()).held_nanos == 200 * CENT
        assert (await bench.call(a_prompt())).code == "budget_held"  # the old day is full

        clock.at_us += 2_000_000  # past midnight
        for _ in range(50):
            assert (await bench.call(a_prompt())).status == 200
        today = "2025-11-25"
        assert ((await bench.balance()).posted_nanos, (await bench.balance()).held_nanos) == (0, 200 * CENT)
        assert (await bench.balance(period=today)).posted_nanos == 50 * CENT

        gate.open.set()
        assert {caller.status for caller in await asyncio.gather(*calls)} == {502 if fails else 200}
        for kind in ("role", "fleet"):
            yesterday, now = await bench.balance(kind=kind), await bench.balance(kind=kind, period=today)
            assert (yesterday.posted_nanos, yesterday.held_nanos) == (200 * CENT, 0)
            assert (now.posted_nanos, now.held_nanos) == (50 * CENT, 0)
        month = await bench.balance(period="2025-11")
        assert (month.posted_nanos, month.held_nanos) == (250 * CENT, 0)


async def test_a_sweep_after_midnight_charges_the_day_of_the_hold(tmp_path: Path) -> None:
    """What never ended is charged in full where it was held, and what it really cost corrects that very day."""
    gate = Gate(1)

    async def script(_request: Any, _body: Any) -> Any:
        await gate.passed()
        return plain(an_answer(1, 1))

    clock = HandClock(T0 + DAY_US - 1_000_000)
    async with sqlite_bench(tmp_path, script, a_day(1_000.0), clock=clock) as bench:
        call = asyncio.create_task(bench.call(a_prompt(max_tokens=20)))
        await gate.full.wait()
        held = (await bench.balance()).held_nanos
        assert held > 0
        clock.at_us += DAY_US
        assert await bench.store.sweep(clock.now_us()) == 1
        assert (await bench.balance()).posted_nanos == held
        gate.open.set()
        assert (await call).status == 200
        assert (await bench.balance()).posted_nanos == 1_000 * (1 + 100)
        for later in ("2025-11-25", "2025-11-26"):
            assert (await bench.balance(period=later)).posted_nanos == 0


class Machine:
    """A machine's two clocks, of which one can be set."""

    def __init__(self, now_us: int) -> None:
        self.wall_us = now_us
        self.monotonic_us = 1_000_000_000

    def passes(self, seconds: float) -> None:
        self.wall_us += round(seconds * 1e6)
        self.monotonic_us += round(seconds * 1e6)

    def is_set(self, *, hours: float) -> None:
        self.wall_us += round(hours * HOUR_US)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(T0 + 12 * HOUR_US)
    times = SimpleNamespace(time_ns=lambda: made.wall_us * 1000, monotonic_ns=lambda: made.monotonic_us * 1000)
    monkeypatch.setattr(rim, "time", times)
    return made


@pytest.mark.parametrize("hours", [-1, -24, -48])
async def test_a_clock_that_is_set_back_gives_no_budget_twice(tmp_path: Path, machine: Machine, hours: int) -> None:
    clock = rim.SystemClock()
    async with sqlite_bench(tmp_path, a_cent, a_day(0.02), clock=clock, prices=A_CENT) as bench:
        assert [(await bench.call(a_prompt())).status for _ in range(2)] == [200, 200]
        machine.is_set(hours=hours)
        machine.passes(1)
        assert (await bench.call(a_prompt())).code == "budget_exhausted"
        assert (await bench.balance(period="2025-11-23")).posted_nanos == 0, "a period that had ended is open again"
        machine.passes(13 * 3600)  # the day ends when it would have ended
        assert (await bench.call(a_prompt())).status == 200
        assert (await bench.balance(period="2025-11-25")).posted_nanos == CENT


@pytest.mark.parametrize("hours", [1, 24])
async def test_a_clock_that_jumps_and_jumps_back_resets_once(tmp_path: Path, machine: Machine, hours: int) -> None:
    """Forward is followed, for the clock may have been wrong until now; back is not, or a day would begin twice."""
    clock = rim.SystemClock()
    async with sqlite_bench(tmp_path, a_cent, a_day(0.02), clock=clock, prices=A_CENT) as bench:
        for _ in range(3):
            statuses = [(await bench.call(a_prompt())).status for _ in range(4)]
            machine.is_set(hours=hours)
            machine.passes(1)
            jumped = [(await bench.call(a_prompt())).status for _ in range(4)]
            machine.is_set(hours=-hours)
            machine.passes(1)
            back = [(await bench.call(a_prompt())).status for _ in range(4)]
            assert (statuses + jumped + back).count(200) <= 4, "more days began than there were"
        days = [f"2025-11-{day}" for day in range(20, 31)]
        spent = [(await bench.balance(period=day)).posted_nanos for day in days]
        assert max(spent) == 2 * CENT
        # An hour from noon is the same day. A day ahead is another, and three times the same one.
        assert sum(spent) == (2 * CENT if hours == 1 else 4 * CENT)


async def test_no_step_of_the_clock_ever_turns_it_back(machine: Machine) -> None:
    """Whatever is done to the machine's clock, the gateway's goes on."""
    clock, before = rim.SystemClock(), 0
    for hours in (1, -1, 24, -24, 0.1, -48, 72, -0.5):
        machine.is_set(hours=hours)
        for _ in range(3):
            machine.passes(0.5)
            now = clock.now_us()
            assert now > before
            before = now
