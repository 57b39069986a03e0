"""What the tests of the store have in common: a clock that stands still, and a store of either kind."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from store_values import Clock, empty

from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.postgres_connection import Address
from nemo_agents.gateway.stores.postgres_migrate import bring_up_to_date
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.gateway.stores.sqlite import SqliteStore


@pytest.fixture
def logged(whole_log: None) -> Iterator[list[MutableMapping[str, Any]]]:
    """What the gateway's log says during the test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def migrated(postgres_server) -> str:
    """The address of a database with our tables: making one for each test would take most of the time."""
    name = f"store_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = f"{postgres_server.url.rpartition('/')[0]}/{name}"
    bring_up_to_date(Address(url, None))
    return url


@pytest.fixture
def database(postgres_server, migrated) -> str:
    """The address of a database with our tables, and no rows in them."""
    postgres_server.ensure()
    empty(migrated)
    return migrated


@pytest.fixture(params=["sqlite", "postgres"])
async def any_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[SqlStore]:
    """A store of each kind."""
    store: SqlStore
    if request.param == "sqlite":
        store = SqliteStore(tmp_path / "nemo.db", clock=clock)
    else:
        store = PostgresStore(request.getfixturevalue("database"), clock=clock)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
async def store(any_store: SqlStore) -> AsyncIterator[SqlStore]:
    """A store of each kind, whose books balance after every test."""
    yield any_store
    assert await any_store.verify_ledger() == []


@pytest.fixture
async def replicas(database: str, clock: Clock) -> AsyncIterator[list[PostgresStore]]:
    """Three stores of three gateways on one database, whose books balance after every test."""
    stores = [PostgresStore(database, clock=clock) for _ in range(3)]
    for store in stores:
        await store.start()
    yield stores
    for store in stores:
        await store.flush()
    assert await stores[0].verify_ledger() == []
    for store in stores:
        await store.close()
