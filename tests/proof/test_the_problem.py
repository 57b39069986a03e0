"""The problem itself: five hundred one-cent calls at once on a budget of one dollar."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from world import CENT, DOLLAR, a_day, a_prompt, an_answer, plain, sqlite_bench

A_CENT = {"alpha/cheap": {"input_per_mtok": 0, "output_per_mtok": 0, "per_request": 0.01}}
CALLS = 500


class Provider:
    """Takes a moment for each call, and bills a cent."""

    def __init__(self) -> None:
        self.billed = 0

    async def call(self) -> None:
        await asyncio.sleep(0.001)
        self.billed += CENT


async def test_check_then_charge_spends_five_dollars_of_one() -> None:
    """Everybody looks, everybody finds room, everybody spends; each line is right, and all of them are wrong."""
    provider, spent, limit = Provider(), 0, DOLLAR

    async def call() -> None:
        nonlocal spent
        if spent + CENT <= limit:
            await provider.call()
            spent += CENT

    await asyncio.gather(*[call() for _ in range(CALLS)])
    assert provider.billed == spent == 5 * DOLLAR


async def test_hold_then_send_spends_one_dollar_of_one(tmp_path: Path) -> None:
    """The same calls through the gateway: a hundred are served, all others refused before anything is sent."""
    provider = Provider()

    async def script(_request: Any, _body: Any) -> Any:
        await provider.call()
        return plain(an_answer(1, 1))

    async with sqlite_bench(tmp_path, script, a_day(1.0), prices=A_CENT) as bench:
        callers = await asyncio.gather(*[bench.call(a_prompt()) for _ in range(CALLS)])
        assert [caller.status for caller in callers].count(200) == 100
        assert {caller.status for caller in callers} == {200, 402}
        assert {caller.code for caller in callers} - {None} <= {"budget_held", "budget_exhausted"}
        assert provider.billed == (await bench.balance()).posted_nanos == DOLLAR
        assert (await bench.balance()).held_nanos == 0
