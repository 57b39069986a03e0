"""Half an hour of steady load: no memory, file or hold is left behind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from replica_load import load_of
from replica_stack import GatewayProcess, Key, Stack

SOAK_S = float(os.environ.get("NEMO_SOAK_S", "1800"))
PER_S, CALLERS = 100, 20
SAMPLES = 60
CALLS_TO_FILL = 60_000
"""Calls of one gateway until all that it remembers of calls is full and was forgotten once.

It remembers the hashes of 50,000 messages, the balances of 16,384 runs, 4,096 runs, and the requests of a minute, which
are most at full load."""
FORGETS_EVERY = 2_000  # answers after which the provider forgets what it was asked
GROWTH_MAX_BYTES = 64  # for one call: nothing that is kept of a call is smaller
UNEVEN_MB = 3.0  # what the allocator makes of the same load at another time
FAULTS = ("drop-mid-stream",)


def callers(*, paced: bool) -> list[dict[str, Any]]:
    """Twenty callers, half of their calls streams, one in fifty broken off by the provider.

    Paced, they make a hundred calls a second together, else as many as they can.
    """
    calls = [
        {
            "marker": f"n{number}",
            "key": "role",
            "body": {
                "model": f"faulty/{FAULTS[0] if number == 0 else 'ok'}",
                "max_tokens": 15,
                "stream": number % 2 == 0,
            },
        }
        for number in range(50)
    ]
    return [
        {
            "calls": [{**call, "marker": f"{caller}.{call['marker']}"} for call in calls],
            "forever": True,
            "pace_s": CALLERS / PER_S if paced else None,
            "first_after_s": caller / PER_S,
        }
        for caller in range(CALLERS)
    ]


def memory_mb(pid: int) -> float:
    """What a process has for itself in memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no memory is told")


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def highest(marks: list[float], gateways: Sequence[GatewayProcess]) -> list[float]:
    """The marks, each raised to what its gateway has now."""
    return [max(mark, memory_mb(gateway.pid)) for mark, gateway in zip(marks, gateways, strict=True)]


def fill_memories(stack: Stack, key: Key) -> list[float]:
    """Let every gateway forget once what it remembers of calls, and return the most that each needed until then."""
    marks = [0.0] * len(stack.gateways)
    with load_of(stack.urls, {"role": key.secret}, callers(paced=False)) as load:
        answered = 0
        while answered < CALLS_TO_FILL * len(stack.gateways):
            answered = load.answered(at_least=answered + FORGETS_EVERY)
            stack.provider.reset()
            marks = highest(marks, stack.gateways)
    return marks


@pytest.mark.long
@pytest.mark.timeout(2 * SOAK_S + 1800)
def test_nothing_grows_in_half_an_hour(stack: Stack):
    """A gateway remembers the latest calls, so many and no more; what it needs for that it needs before the soak.

    Memory goes up and down with what is remembered. What must not rise is its high-water mark.
    """
    key = stack.key(budget=1_000_000.0)
    filled = fill_memories(stack, key)
    marks = list(filled)
    with load_of(stack.urls, {"role": key.secret}, callers(paced=True)) as load:
        begun = answered = load.answered(at_least=PER_S * 5)
        files = [open_files(each.pid) for each in stack.gateways]
        for _ in range(SAMPLES):
            answered = load.answered(at_least=answered + int(PER_S * SOAK_S / SAMPLES * 0.9))
            stack.provider.reset()  # it remembers every request, and would be what grows
            marks = highest(marks, stack.gateways)
        files_after = [open_files(each.pid) for each in stack.gateways]
        outcomes = load.stop()
    statuses = Counter((each.status, each.code) for each in outcomes)
    assert {status for status, _ in statuses} <= {200, 502}, statuses
    stack.settle(key.fleet)
    for before, after in zip(files, files_after, strict=True):
        assert after <= before + 5
    allowed_mb = UNEVEN_MB + GROWTH_MAX_BYTES * (answered - begun) / len(stack.gateways) / 1_000_000
    for before_mb, after_mb in zip(filled, marks, strict=True):
        grew_mb = after_mb - before_mb
        assert grew_mb < allowed_mb, f"{grew_mb:.1f} MB in {answered - begun} calls, from {before_mb:.0f} MB"
