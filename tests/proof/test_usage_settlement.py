"""What providers have been seen to report as usage, through the gateway's whole path of settlement.

Whatever they say, the client gets its answer, and the ledger gets the exact cost or, where nobody can know it, all that
was held: never less than nothing, never an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from usage_variants import VARIANTS
from world import DOLLAR, DONE, a_day, a_piece, a_prompt, an_answer, an_event, pieces, plain, sqlite_bench, streamed

from nemo_agents.policy.pricing import cost_nanos
from nemo_agents.policy.usage import Usage

MODEL = "beta/plain"
MONEY = {
    MODEL: {
        "input_per_mtok": 10,
        "cached_input_per_mtok": 1,
        "cache_write_per_mtok": 12.5,
        "output_per_mtok": 1_000,
    }
}
IDS = [f"{wire}: {name}" for name, wire, _, _ in VARIANTS]


def test_there_are_sixty_of_them() -> None:
    assert len(VARIANTS) >= 60
    assert len(set(IDS)) == len(VARIANTS)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("wire", "usage", "expected"), [row[1:] for row in VARIANTS], ids=IDS)
async def test_a_reported_usage_is_charged_exactly_or_at_the_hold(
    tmp_path: Path, wire: str, usage: Any, expected: dict[str, Any] | None, stream: bool
) -> None:
    """What is billed in another provider's own wire is read no lower than it is meant."""

    async def script(_request: Any, _body: Any) -> Any:
        tier = {"service_tier": expected["service_tier"]} if expected and "service_tier" in expected else {}
        if stream:
            last = {"choices": [], "usage": usage, **tier}
            return streamed(pieces(a_piece("done", end=True), an_event(last), DONE))
        return plain(json.dumps({**json.loads(an_answer(0, 0, usage=usage)), **tier}).encode())

    async with sqlite_bench(tmp_path, script, a_day(1_000_000), prices=MONEY) as bench:
        caller = await bench.call(a_prompt(model=MODEL, max_tokens=50, stream=stream))
        assert caller.status == 200
        row = await bench.store.call(caller.headers["x-nemo-request-id"])
        assert row is not None
        (attempt,) = row.attempt_rows
        hold, charged = attempt.held_nanos, attempt.cost_nanos
        assert charged is not None
        price = bench.gateway.prices.price("beta", "plain")
        assert price is not None
        true_cost = None if expected is None else cost_nanos(price, Usage(**{"input_tokens": 0, **expected}))
        if wire == "openai":
            assert charged == (hold if true_cost is None else true_cost)
        else:
            assert true_cost is None or charged >= min(true_cost, hold)
        balance = await bench.balance()
        assert (balance.posted_nanos, balance.held_nanos) == (charged, 0)
        assert row.cost_nanos == charged >= 0
        assert (row.usage_source == "provider") == (row.input_tokens is not None)
        if not stream and row.usage_source == "provider":
            assert "x-nemo-request-cost" in caller.headers
        if row.usage_source == "hold":
            assert "x-nemo-request-cost" not in caller.headers


async def test_a_bill_beyond_belief_is_a_mistake_and_charged_at_the_hold(tmp_path: Path) -> None:
    """Counts that just pass for some, at the dearest price there is: trillions of dollars are no measurement."""

    async def script(_request: Any, _body: Any) -> Any:
        return plain(an_answer(10**12, 10**12))

    async with sqlite_bench(tmp_path, script, a_day(1)) as bench:
        caller = await bench.call(a_prompt(model="delta/dear", max_tokens=1))
        assert caller.status == 200
        row = await bench.store.call(caller.headers["x-nemo-request-id"])
        assert row is not None
        assert row.state == "ok"
        (attempt,) = row.attempt_rows
        balance = await bench.balance()
        assert (balance.posted_nanos, balance.held_nanos) == (attempt.held_nanos, 0)


async def test_a_bill_beyond_the_hold_is_recorded_in_full_and_ends_the_budget(tmp_path: Path) -> None:
    """A provider that ignores its cap costs what it costs: truth first, and nothing more until the budget resets."""

    async def script(_request: Any, _body: Any) -> Any:
        return plain(an_answer(10, 3_000))

    async with sqlite_bench(tmp_path, script, a_day(1)) as bench:
        assert (await bench.call(a_prompt(model=MODEL, max_tokens=10))).status == 200
        assert (await bench.balance()).posted_nanos == 1_000 * (10 * 10 + 1_000 * 3_000) > DOLLAR
        refused = await bench.call(a_prompt(model=MODEL, max_tokens=1))
        assert (refused.status, refused.code) == (402, "budget_exhausted")
