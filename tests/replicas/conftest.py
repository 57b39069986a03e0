"""One gateway on SQLite, and three on PostgreSQL and Redis: every proof runs against both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from faulty_provider import FaultyProvider, run_faulty_provider
from replica_stack import MakeStack, Stack, empty_cache, fresh_database, one_gateway, replicas
from services import Service, postgres_server, redis_server

__all__ = ["postgres_server", "redis_server"]  # fixtures

MODES = ("one", "three")
REDIS_DATABASES = 16  # of an unconfigured server; nobody has that many stacks at a time


@pytest.fixture(scope="session")
def provider() -> Iterator[FaultyProvider]:
    """A provider for stacks that take turns; a test forgets what was there before it, and reads its own."""
    with run_faulty_provider("--many=2000") as running:
        yield running


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="session")
def make_replicas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, provider: FaultyProvider
) -> MakeStack:
    """Run three gateways on a fresh database and a Redis database of their own."""
    numbers = itertools.cycle(range(REDIS_DATABASES))

    @contextmanager
    def make(behind: FaultyProvider = provider, **settings: object) -> Iterator[Stack]:
        postgres: Service = request.getfixturevalue("postgres_server")
        redis: Service = request.getfixturevalue("redis_server")
        with fresh_database(postgres) as database:
            cache = f"redis://127.0.0.1:{redis.port}/{next(numbers)}"
            empty_cache(cache)
            folder = tmp_path_factory.mktemp("three")
            with replicas(folder, behind, database=database, cache=cache, **settings) as stack:
                yield stack

    return make


@pytest.fixture(scope="session")
def make_stack(
    mode: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, provider: FaultyProvider
) -> MakeStack:
    """Run gateways with settings of the test's own, before the shared provider or another one."""
    if mode == "three":
        made: MakeStack = request.getfixturevalue("make_replicas")
        return made

    def make(behind: FaultyProvider = provider, **settings: object) -> AbstractContextManager[Stack]:
        return one_gateway(tmp_path_factory.mktemp("one"), behind, **settings)

    return make


@pytest.fixture(scope="session")
def stack(make_stack: MakeStack) -> Iterator[Stack]:
    """Gateways as they are without any settings."""
    with make_stack() as running:
        yield running
