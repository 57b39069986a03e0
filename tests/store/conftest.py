"""What the tests of the store have in common: a clock that stands still, and short ways to say a call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_values import Clock

from nemo_agents.gateway.stores.sqlite import SqliteStore


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "nemo.db", clock=clock)
    await store.start()
    yield store
    assert await store.verify_ledger() == []
    await store.close()
