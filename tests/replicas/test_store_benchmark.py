"""The benchmark of the stores: what it counts, and what it compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stores

    return stores


def test_a_ratio_compares_samples_of_one_round(stores: Any):
    def samples(name: str, *pairs: int) -> list[Any]:
        return [
            stores.Pairs(name=name, callers=1, pairs=count, seconds=2.0, p50_us=10.0, p99_us=20.0) for count in pairs
        ]

    found = {("floor", 1): samples("floor", 100, 1000, 200), ("ours", 1): samples("ours", 50, 100, 150)}
    shown = stores.pairs_table(found, {"floor": "floor", "ours": "floor"}).splitlines()
    ours = next(line for line in shown if " ours " in line).split()
    # 50, 25 and 75 a second; half, a tenth and three quarters of the floor of the same round
    assert ours == ["1", "ours", "50", "10", "20", "0.50"]


async def test_every_pair_is_in_the_books(stores: Any, tmp_path: Path):
    from storepairs import COST_NANOS, drive_store

    from nemo_agents.gateway.stores.sqlite import SqliteStore
    from nemo_agents.policy.ledger import BudgetScope

    store = SqliteStore(tmp_path / "gateway.db")
    await store.start()
    done = await drive_store("ours", store, callers=4, seconds=0.2)
    scope = BudgetScope(kind="fleet", id="bench", period="total", limit_nanos=None)
    (balance,) = await store.balances([scope])
    assert (balance.posted_nanos, balance.held_nanos) == (done.pairs * COST_NANOS, 0)
    assert await store.verify_ledger() == []
    await store.close()


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--callers", "many"], ["--parts", "pairs,nothing"]])
def test_what_cannot_be_measured_is_refused(stores: Any, arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        stores.options(arguments)
    assert ended.value.code == 2
