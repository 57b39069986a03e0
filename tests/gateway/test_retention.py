"""`/nemo/runs/prune`, `runs prune` and the settings that keep the log small."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemo_agents.admin import observe, retention
from nemo_agents.admin.wire import LogSize, Pruned
from nemo_agents.client import Client
from nemo_agents.errors import AdminError, SettingsError
from nemo_agents.gateway.retention import DAY_S, PruneWish, Retention, RetentionBusy
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.stores.base import PruneOrder
from nemo_agents.testing import LocalGateway, running_gateway

INSERT = (
    "INSERT INTO runs(run, run_id, fleet, grouped, name, state, started_us, last_us, roles, models)"
    " VALUES (?, ?, 'crew', 1, 'old', 'ok', ?, ?, '[]', '[]')"
)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LocalGateway]:
    with running_gateway(tmp_path / "home") as running:
        yield running


@pytest.fixture
def admin(gateway: LocalGateway) -> Iterator[Client]:
    with gateway.admin() as client:
        yield client


def add_runs(gateway: LocalGateway, days: int, *run_ids: str) -> None:
    """Write runs that were over so many days ago."""
    at_us = time.time_ns() // 1000 - days * DAY_S * 1_000_000
    with closing(sqlite3.connect(gateway.home / "gateway.db")) as db:
        for run_id in run_ids:
            (number,) = db.execute("SELECT coalesce(max(run), 0) + 1 FROM runs").fetchone()
            db.execute(INSERT, (number, run_id, at_us, at_us))
        db.commit()


def command(gateway: LocalGateway, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "NEMO_ADMIN_KEY": gateway.admin_key.reveal(), "NO_COLOR": "1"}
    whole = [sys.executable, "-m", "nemo_agents", "runs", "prune", *args, "--gateway", gateway.url]
    return subprocess.run(
        whole, capture_output=True, text=True, env=environ, cwd=Path(__file__).parents[2], check=False, timeout=60
    )


def test_old_runs_go_and_their_pages_say_so(gateway: LocalGateway, admin: Client) -> None:
    add_runs(gateway, 40, "run-of-old")
    add_runs(gateway, 20, "run-of-late")
    with pytest.raises(AdminError, match=r"Run not found\.$"):
        admin.run(observe.run("run-of-nobody"))
    seen = admin.run(retention.prune(older_than_s=30 * DAY_S, dry_run=True))
    assert seen == Pruned(runs=1)
    assert admin.run(observe.run("run-of-old")).run.name == "old"
    assert admin.run(retention.prune(older_than_s=30 * DAY_S)).runs == 1
    with pytest.raises(AdminError, match="have been pruned") as told:
        admin.run(observe.run("run-of-old"))
    assert told.value.status == 404
    assert admin.run(observe.run("run-of-late")).run.name == "old"
    link = admin.run(observe.viewer_link("/runs/run-of-old"))
    page = httpx.get(link, follow_redirects=True)
    with httpx.Client(cookies=page.cookies, follow_redirects=True) as browser:
        page = browser.get(link)
    assert (page.status_code, "older than what is kept" in page.text) == (404, True)
    size = admin.run(retention.log_size())
    assert (size.shrinks, size.keep_runs_days, size.keep_content_days) == (True, None, 30)
    assert size.pruned_before_us is not None


@pytest.mark.parametrize("body", [{}, {"older_than_s": 60}, {"older_than_s": 10**12}, {"older_than_s": 7200, "x": 1}])
def test_what_cannot_be_meant_deletes_nothing(gateway: LocalGateway, admin: Client, body: dict[str, Any]) -> None:
    add_runs(gateway, 40, "run-of-old")
    headers = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
    answer = httpx.post(f"{gateway.url}/nemo/runs/prune", json=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert httpx.post(f"{gateway.url}/nemo/runs/prune", json={"older_than_s": 7200}).status_code == 401
    assert admin.run(observe.run("run-of-old")).run.name == "old"


def test_the_command_line_counts_deletes_and_shrinks(gateway: LocalGateway) -> None:
    add_runs(gateway, 40, "run-of-old", "run-of-yore")
    for wrong in ("5m", "soon"):
        assert command(gateway, "--older-than", wrong).returncode == 2
    assert command(gateway, "--older-than", "30d", "--dry-run").stdout == "Would delete 2 runs.\n"
    assert command(gateway, "--older-than", "50d").stdout == "Nothing is that old.\n"
    found = json.loads(command(gateway, "--older-than", "30d", "--vacuum", "--json").stdout)
    assert (found["runs"], found["done"]) == (2, True)


@pytest.mark.parametrize("name", ["keep_runs_days", "keep_content_days"])
@pytest.mark.parametrize("days", [-1, 40_000])
def test_settings_take_so_many_days(tmp_path: Path, name: str, days: int) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings(home=tmp_path, **{name: days})


# --- one at a time --------------------------------------------------------------------------------------------------
class SlowStore:
    """Deletes a run whenever it may."""

    def __init__(self) -> None:
        self.orders: list[PruneOrder] = []
        self.may = asyncio.Event()

    async def prune(self, order: PruneOrder) -> AsyncIterator[Pruned]:
        self.orders.append(order)
        yield Pruned(runs=1)
        await self.may.wait()
        yield Pruned(runs=1)

    async def vacuum(self) -> AsyncIterator[int]:
        yield 4096

    async def log_size(self) -> LogSize:
        return LogSize(bytes=1, free_bytes=0, shrinks=True)


def retention_of(store: SlowStore, *, runs: int = 0, contents: int = 0) -> Retention:
    now_us = 1000 * DAY_S * 1_000_000
    return Retention(
        store,  # type: ignore[arg-type]
        now_us=lambda: now_us,
        new_id=lambda: "p",
        keep_runs_days=runs,
        keep_content_days=contents,
    )


async def test_a_pruning_goes_on_while_its_caller_comes_and_goes() -> None:
    store = SlowStore()
    kept = retention_of(store)
    wish = PruneWish(older_than_s=7200, vacuum=True)
    assert await kept.prune(wish, within_s=0.01) == Pruned(runs=1, done=False)
    with pytest.raises(RetentionBusy):
        await kept.prune(PruneWish(older_than_s=9999), within_s=0.01)
    store.may.set()
    assert await kept.prune(wish, within_s=5) == Pruned(runs=2, bytes=4096)
    assert len(store.orders) == 1
    assert (await kept.prune(wish, within_s=5)).runs == 2
    assert len(store.orders) == 2


async def test_the_settings_say_what_goes() -> None:
    for runs, contents, wanted in ((0, 0, []), (0, 30, [(970, True)]), (90, 30, [(910, False), (970, True)])):
        store = SlowStore()
        store.may.set()
        await retention_of(store, runs=runs, contents=contents).keep_once()
        assert [(order.cut_us // (DAY_S * 1_000_000), order.contents_only) for order in store.orders] == wanted
