"""Five hundred callers at once and a dollar: what is spent and held never passes it, whoever asks where and how."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from replica_load import run_load
from replica_stack import DOLLAR, Stack, billed

CALLERS, CALLS = 500, 4


def crowd(seed: int) -> list[dict[str, Any]]:
    """Callers whose calls may cost a tenth of a cent to five cents, and cost that or less; half of them streams."""
    chance = random.Random(seed)
    names = [f"s{seed}-{caller}-{number}" for caller in range(CALLERS) for number in range(CALLS)]
    calls = [
        {
            "marker": name,
            "key": f"s{seed}",
            "retry_on": ["budget_held"],
            "body": {
                "model": chance.choice(("faulty/ok", "faulty/many-chunks", "faulty/many-chunks")),
                "max_tokens": chance.randint(1, 50),
                "stream": chance.random() < 0.5,
            },
        }
        for name in names
    ]
    return [{"calls": calls[at : at + CALLS]} for at in range(0, len(calls), CALLS)]


def spend(stack: Stack, seed: int) -> None:
    """Let the crowd of this seed loose on a dollar of its own, and check the dollar."""
    stack.provider.reset()
    key = stack.key(budget=1.0, fleet_budget=1.0)
    outcomes = run_load(stack.urls, {f"s{seed}": key.secret}, crowd(seed))
    stack.settle(key.fleet)
    assert len(outcomes) == CALLERS * CALLS
    statuses = Counter((each.status, each.code) for each in outcomes)
    assert {status for status, _ in statuses} == {200, 402}, statuses
    assert (200, None) in statuses
    posted, _ = stack.spent(key.fleet)
    assert posted <= stack.most(key.fleet) <= DOLLAR
    assert stack.most(stack.grant_of(key), "role") <= DOLLAR
    assert stack.spent(stack.grant_of(key), "role") == (posted, 0)
    assert sum(billed(stack.provider, prefix=f"s{seed}-").values()) <= posted <= DOLLAR
    assert posted >= 0.95 * DOLLAR, f"only {posted / DOLLAR:.4f} of a dollar could be used"


@pytest.mark.parametrize("seed", range(20))
def test_a_dollar_is_never_overspent(stack: Stack, seed: int):
    """On one gateway and on three."""
    spend(stack, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_nor_are_a_hundred_more(stack: Stack, seed: int):
    spend(stack, seed)
