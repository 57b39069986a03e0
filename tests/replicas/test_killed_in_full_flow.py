"""`kill -9` in full flow, again and again: nothing acknowledged is lost, nothing was sent that the log does not know.

What is acknowledged: a client that has read a whole answer with status 200 finds its call in the log and in the ledger,
posted at its real cost, or charged at its hold when the process died before the posting was committed. The hold and
the intent row are committed before a call is sent, so a call that reached the provider always has both.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_provider import FaultyProvider, run_faulty_provider
from replica_client import Outcome
from replica_load import Load, load_of
from replica_stack import MakeStack, Stack, billed, one_gateway

pytestmark = pytest.mark.timeout(400)
LONG_S = 3600  # the mark of the module goes before `--timeout`
CALLERS = 32


def callers(chance: random.Random) -> list[dict[str, Any]]:
    """Callers that never tire: streams and plain calls, short and long, one in twelve broken off by the provider."""
    plans = []
    for caller in range(CALLERS):
        calls = [
            {
                "marker": f"c{caller}.{number}",
                "key": "role",
                "body": {
                    "model": f"faulty/{chance.choice(('ok', 'many-chunks', 'ok', 'many-chunks', 'drop-mid-stream'))}",
                    "max_tokens": chance.randint(1, 50),
                    "stream": chance.random() < 0.5,
                },
            }
            for number in range(6)
        ]
        plans.append({"calls": calls, "forever": True})
    return plans


def check_outcomes(stack: Stack, outcomes: list[Outcome], answered: int) -> None:
    """Hold what clients saw and what the provider counted against the ledger, call by call."""
    charged = stack.charged(prefix="c")
    cost = billed(stack.provider, prefix="c")
    unknown = set(cost) - set(charged)
    assert not unknown, f"{len(unknown)} calls were sent without a row in the log"
    acknowledged = [each for each in outcomes if each.status == 200 and (each.done or not each.stream)]
    assert len(acknowledged) >= answered // 2 > 0
    lost = [each.marker for each in acknowledged if not charged.get(each.marker)]
    assert not lost, f"{len(lost)} of {len(acknowledged)} answers have no entry in the ledger"
    below = {marker: (charged[marker], nanos) for marker, nanos in cost.items() if charged[marker] < nanos}
    assert not below, f"charged less than the provider billed: {below}"
    assert any(each.status is None and each.connected for each in outcomes), "no kill met a call in flight"


def kill_again_and_again(load: Load, kills: int, kill_one: Callable[[], None], seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(kills):
        load.answered(at_least=load.answered() + chance.randint(1, 120))
        kill_one()


@pytest.fixture
def own_provider() -> Any:
    """A provider whose records are this test's alone."""
    with run_faulty_provider("--many=2000") as provider:
        yield provider


def flow_of_one(tmp_path: Path, provider: FaultyProvider, kills: int, seed: int) -> None:
    with one_gateway(tmp_path, provider, log_level="error") as stack:
        (gateway,) = stack.gateways
        key = stack.key(budget=100_000.0)

        def kill_one() -> None:
            gateway.kill()
            gateway.start()

        with load_of(stack.urls, {"role": key.secret}, callers(random.Random(seed))) as load:
            kill_again_and_again(load, kills, kill_one, seed)
            answered = load.answered()
            outcomes = load.stop()
        gateway.kill()
        gateway.start()  # nothing is held when a start is over, without waiting for anything to run out
        assert stack.spent(key.fleet)[1] == 0
        stack.settle(key.fleet)
        check_outcomes(stack, outcomes, answered)


@pytest.mark.parametrize("seed", range(4))
def test_one_process_killed_25_times_loses_nothing(tmp_path: Path, own_provider: FaultyProvider, seed: int):
    flow_of_one(tmp_path, own_provider, 25, seed)


@pytest.mark.long
@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize("seed", range(100, 140))
def test_one_process_killed_a_thousand_times_loses_nothing(tmp_path: Path, own_provider: FaultyProvider, seed: int):
    flow_of_one(tmp_path, own_provider, 25, seed)


HOLD_TTL_S = 8.0
CLOSED_WITHIN_S = 5.0


def flow_of_three(make_replicas: MakeStack, provider: FaultyProvider, kills: int, seed: int) -> None:
    """A killed replica's holds are nobody's: the others close them when their time is over."""
    chance = random.Random(seed)
    times = {"first_byte_timeout_s": 4.0, "idle_timeout_s": 4.0, "drain_timeout_s": 2.0, "hold_ttl_s": HOLD_TTL_S}
    with make_replicas(provider, log_level="error", **times) as stack:
        key = stack.key(budget=100_000.0)

        def kill_one() -> None:
            victim = chance.choice(stack.gateways)
            victim.kill()
            victim.start()

        with load_of(stack.urls, {"role": key.secret}, callers(chance)) as load:
            kill_again_and_again(load, kills, kill_one, seed)
            answered = load.answered()
            outcomes = load.stop()
        for gateway in stack.gateways[1:]:
            gateway.kill()
        survivor = Stack(gateways=stack.gateways[:1], provider=provider, books=stack.books)
        survivor.settle(key.fleet, timeout_s=HOLD_TTL_S + CLOSED_WITHIN_S)
        check_outcomes(survivor, outcomes, answered)


def test_replicas_killed_12_times_lose_nothing(make_replicas: MakeStack, own_provider: FaultyProvider):
    flow_of_three(make_replicas, own_provider, 12, 0)


@pytest.mark.long
@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize("seed", range(1, 11))
def test_replicas_killed_hundreds_of_times_lose_nothing(
    make_replicas: MakeStack, own_provider: FaultyProvider, seed: int
):
    flow_of_three(make_replicas, own_provider, 50, seed)
