"""Ten thousand simulated afternoons (a million with `make test-long`), and the proof that they find bugs."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from longrun import seeds
from planted import (
    Around,
    ChecksThenCharges,
    ForgetsTheAbandoned,
    HoldsNothingForAFallback,
    ReleasesWhatExpires,
    SettlesBeforeTheSend,
    VoidsWhatNobodyKnows,
)
from simulation import FAULTS, WatchedLedger, World, simulate

from nemo_agents.gateway import attempt, relay
from nemo_agents.policy.ledger import Settlement

FOUND_WITHIN = 300  # seeds


@pytest.mark.parametrize("played", seeds(10_000, 20, long=1_000_000))
def test_the_books_balance_whatever_goes_wrong(played: range) -> None:
    for seed in played:
        simulate(seed)


def test_a_seed_is_always_the_same_afternoon() -> None:
    for seed in range(40):
        assert simulate(seed).log == simulate(seed).log


def test_every_fault_strikes_and_every_end_is_reached() -> None:
    """A simulation in which nothing goes wrong proves nothing."""
    struck: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    states: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    beyond = ownerless = fallbacks = replicas = 0
    for seed in range(300):
        world = simulate(seed)
        struck += world.struck
        statuses.update(client.status for client in world.clients)
        states.update(call.state for call in world.books.calls.values())
        kinds.update(hold.state for hold in world.ledger.holds.values())
        beyond += sum(world.ledger.beyond.values())
        ownerless += len(world.ownerless)
        fallbacks += sum(hold.n > 1 for hold in world.ledger.holds.values())
        replicas += world.replicas
    assert {fault for fault in FAULTS if not struck[fault]} == set()
    assert statuses.keys() >= {0, 200, 402, 403, 429, 502, 503, 504}
    assert states.keys() == {"ok", "failed", "refused", "abandoned"}
    assert kinds.keys() == {"post", "void", "expire", "correct"}
    assert min(beyond, ownerless, fallbacks, replicas) > 0


def finds(**planted: Any) -> int:
    """Return the first seed that fails with a bug planted; fail when none does."""
    for seed in range(FOUND_WITHIN):
        try:
            simulate(seed, **planted)
        except AssertionError:
            return seed
    pytest.fail(f"not found within {FOUND_WITHIN} seeds")


@pytest.mark.parametrize(
    "bug",
    [ChecksThenCharges, ForgetsTheAbandoned, HoldsNothingForAFallback, SettlesBeforeTheSend, VoidsWhatNobodyKnows],
    ids=lambda bug: bug.__name__,
)
def test_it_finds_a_bug_between_relay_and_store(bug: type[Around]) -> None:
    finds(around=bug)


def test_it_finds_a_sweeper_that_releases() -> None:
    class Releases(ReleasesWhatExpires, WatchedLedger):
        pass

    finds(ledger=Releases)


def test_it_finds_a_relay_that_believes_a_time_out_to_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "settle_failure", lambda **_: Settlement(kind="void", amount_nanos=0))
    finds()


def test_it_finds_a_relay_that_settles_a_cut_call_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settle: Callable[..., Any] = relay.failed_end
    voided = itertools.count()

    def ended(x: Any, attempt: Any, failure: Any) -> Any:
        end = settle(x, attempt, failure)
        if not any(call.cut for call in x.gateway.in_flight if call.task is asyncio.current_task()):
            return end
        next(voided)
        return type(end)(**{**_fields(end), "settlement": Settlement(kind="void", amount_nanos=0)})

    monkeypatch.setattr(relay, "failed_end", ended)
    finds()
    assert next(voided) > 0


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


@pytest.fixture(autouse=True)
def _no_world_is_left_behind() -> Iterator[None]:
    """What one seed leaves running would be another seed's fault."""
    yield
    assert World.alive == 0
