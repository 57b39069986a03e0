"""The stores against the model of a ledger, and the proof that the machine finds what it looks for.

Dice play 5,000 runs of up to 80 steps on SQLite (30 to 40 ms of a core each) and 300 on PostgreSQL (180 ms of a core,
the server's share included); Hypothesis plays some more, to shorten what it finds. `make test-long` plays 100,000 and
20,000.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from backends import SQLITE, Backend, PostgresBackend, memory, sqlite_with
from dice import STEPS, machine_on, play
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from ledger_machine import the_loop
from ledger_model import Ledger, MemoryStore
from longrun import seeds
from planted import (
    ARITHMETIC,
    ChecksThenCharges,
    HoldsNothingForAFallback,
    LosesCommits,
    ReadsTheLimitBeforeTheLock,
    VoidsWhatNobodyKnows,
    books_of,
)

from nemo_agents.gateway.stores.sqlite import SqliteStore

BEFORE_A_STORE = (ChecksThenCharges, ReadsTheLimitBeforeTheLock, HoldsNothingForAFallback, VoidsWhatNobodyKnows)
SHORTENED = settings(
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
# To see whether a bug is found, neither chance nor the shortest way to it is wanted.
SEARCH = settings(
    SHORTENED, max_examples=400, derandomize=True, database=None, phases=(Phase.generate,), report_multiple_bugs=False
)


def play_all(backend: Backend, played: range) -> None:
    for seed in played:
        play(backend, seed)


@pytest.mark.parametrize("played", seeds(5_000, 20, long=100_000))
def test_sqlite_is_the_model(played: range) -> None:
    """Every answer and balance of the store is the model's, whatever happens in between."""
    play_all(SQLITE, played)


@pytest.mark.parametrize("runs", [60, pytest.param(5_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("backend", [SQLITE, memory()], ids=lambda backend: backend.name)
def test_hypothesis_finds_no_way_to_tell_them_apart(backend: Backend, runs: int) -> None:
    run_state_machine_as_test(machine_on(backend), settings=settings(SHORTENED, max_examples=runs))


@contextlib.contextmanager
def two_gateways(url: str, make: Callable[[Any], Any] = lambda store: store) -> Iterator[Backend]:
    postgres = PostgresBackend(url, make)
    try:
        yield postgres.backend
    finally:
        the_loop().run_until_complete(postgres.stop())


@pytest.mark.parametrize("played", seeds(300, 6, long=20_000))
def test_postgres_is_the_model(postgres_url: str, played: range) -> None:
    """Two gateways on one database."""
    with two_gateways(postgres_url) as backend:
        play_all(backend, played)


def finds(backend: Backend) -> None:
    """Assert that the machine fails on a backend; what it says about it is not for the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(AssertionError):
        run_state_machine_as_test(machine_on(backend), settings=SEARCH)


@pytest.mark.parametrize("bug", ARITHMETIC, ids=lambda bug: bug.__name__)
def test_it_finds_a_bug_in_the_arithmetic(bug: type[Ledger]) -> None:
    """Each planted bug is found within 400 runs."""
    finds(memory(books=lambda: books_of(bug)))


def test_it_finds_a_store_that_loses_commits() -> None:
    finds(memory(LosesCommits))


def test_the_memory_store_without_a_bug_is_not_accused() -> None:
    """The search that finds the planted bugs is silent about the store they were planted in."""
    play_all(memory(MemoryStore), range(100))


@pytest.mark.parametrize("bug", BEFORE_A_STORE, ids=lambda bug: bug.__name__)
def test_it_finds_a_bug_before_sqlite(bug: type) -> None:
    """The same through the real store: the machine needs no look inside."""
    finds(sqlite_with(lambda path, **options: bug(SqliteStore(path, **options))))


@pytest.mark.parametrize("bug", BEFORE_A_STORE, ids=lambda bug: bug.__name__)
def test_it_finds_a_bug_before_postgres(postgres_url: str, bug: type) -> None:
    """The dice find it within 50 runs, though the machine looks at PostgreSQL's balances only now and then."""
    with two_gateways(postgres_url, bug) as backend, pytest.raises(AssertionError):
        play_all(backend, range(50))
