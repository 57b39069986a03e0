"""Gateways that share a store: what one changes, the others hear of, and one that hears nothing trusts no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_agents.errors import SettingsError
from nemo_agents.gateway import replica as replica_module
from nemo_agents.gateway.replica import TRUST_S, Replica
from nemo_agents.gateway.server import build
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.state import CutOff, Gateway, InFlight
from nemo_agents.gateway.stores.base import Change, FleetRecord, StoreUnavailable
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.routing import Deployment


class SharedFile(SqliteStore):
    """One file for several gateways of this process, with the list of changes that a shared store keeps."""

    shared = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.log: list[Change] = []
        self.down = False
        self.lock = asyncio.Lock()
        self.inside = 0
        self.inside_max = 0

    async def changes(self, after: int | None) -> tuple[int, Sequence[Change]]:
        if self.down:
            raise StoreUnavailable("it is down")
        return len(self.log), self.log[after:] if after is not None else []

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        async with self.lock:
            self.inside += 1
            self.inside_max = max(self.inside_max, self.inside)
            yield
            self.inside -= 1

    async def put_grant(self, grant: Grant) -> None:
        await super().put_grant(grant)
        self.log.append(Change(kind="grant", id=grant.grant_id))

    async def put_fleet(self, fleet: FleetRecord) -> None:
        await super().put_fleet(fleet)
        self.log.append(Change(kind="fleet", id=fleet.fleet))

    async def delete_fleet(self, fleet: str) -> bool:
        self.log.append(Change(kind="fleet", id=fleet))
        return await super().delete_fleet(fleet)

    async def put_deployment(self, deployment: Deployment) -> None:
        await super().put_deployment(deployment)
        self.log.append(Change(kind="deployment", id=deployment.deployment_id))

    async def delete_deployment(self, deployment_id: str) -> bool:
        self.log.append(Change(kind="deployment", id=deployment_id))
        return await super().delete_deployment(deployment_id)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SharedFile]:
    store = SharedFile(tmp_path / "gateway.db")
    await store.start()
    yield store
    await store.close()


PEPPER = {"NEMO_PEPPER": "one pepper for all of them"}


async def joined(store: SharedFile, home: Path, environ: dict[str, str] | None = None) -> tuple[Gateway, Replica]:
    gateway = build(Settings(home=home, sandbox="on"), PEPPER if environ is None else environ)
    gateway.store = store
    replica = Replica(gateway)
    await replica.join()
    await gateway.load()
    return gateway, replica


GRANT = Grant(grant_id="g_1", alias="a", role="writer", fleet="crew", created_us=1)
OTHER = replace(GRANT, grant_id="g_2", alias="b")


def flying(gateway: Gateway, **where: Any) -> InFlight:
    async def forever() -> None:
        await asyncio.Event().wait()

    facts = {"grant_id": "g_1", "fleet": "crew", "run_id": "r", **where}
    call = InFlight(task=asyncio.ensure_future(forever()), **facts)
    gateway.in_flight.add(call)
    return call


def code_of(call: InFlight) -> str | None:
    return call.cut.code if isinstance(call.cut, CutOff) else None


async def test_what_one_changes_is_in_force_on_the_other(store: SharedFile, tmp_path: Path):
    one, _ = await joined(store, tmp_path / "1")
    await one.put_grant(GRANT)
    two, replica = await joined(store, tmp_path / "2")
    assert two.keyring.find("g_1") == GRANT
    await one.put_grant(OTHER)
    await one.put_fleet(FleetRecord(fleet="crew", rpm=7))
    deployment = Deployment(deployment_id="d", fleet="crew", group="group", model="sandbox/m")
    await one.put_deployment(deployment)
    assert two.keyring.find("g_2") is None
    await replica.catch_up()
    assert two.keyring.find("g_2") == OTHER
    assert two.fleets["crew"].rpm == 7
    assert list(two.groups("crew")["group"]) == [deployment]
    await one.delete_fleet("crew")
    await one.delete_deployment("d")
    await replica.catch_up()
    assert "crew" not in two.fleets
    assert "group" not in two.groups("crew")


async def test_calls_in_flight_that_may_not_go_on_are_cut_by_the_other_as_well(store: SharedFile, tmp_path: Path):
    one, _ = await joined(store, tmp_path / "1")
    for grant in (GRANT, OTHER):
        await one.put_grant(grant)
    two, replica = await joined(store, tmp_path / "2")
    revoked, blocked = flying(two), flying(two, grant_id="g_2", fleet="crew-2")
    stopped, elsewhere = (
        flying(two, grant_id="g_3", run_id="r-9", fleet="f/g"),
        flying(two, grant_id="g_3", run_id="r-9"),
    )
    of_fleet = flying(two, grant_id="g_4", fleet="crew-3", run_id="x")
    await one.put_grant(replace(GRANT, revoked_us=5))
    await one.put_grant(replace(OTHER, blocked=True))
    await one.put_fleet(FleetRecord(fleet="crew-3", blocked=True))
    store.log.append(Change(kind="run", id="f/g/r-9"))
    await replica.catch_up()
    assert (code_of(revoked), code_of(blocked)) == ("key_revoked", "key_blocked")
    assert (code_of(stopped), code_of(elsewhere)) == ("run_stopped", None)
    assert code_of(of_fleet) == "key_blocked"


async def test_changes_of_two_gateways_come_one_after_the_other_and_know_of_each_other(
    store: SharedFile, tmp_path: Path
):
    """Each reads the grant, waits, and writes it with one thing changed: without the order one change would be lost."""
    gateways = [(await joined(store, tmp_path / str(n)))[0] for n in range(3)]
    async with gateways[0].changing:
        await gateways[0].put_grant(GRANT)

    async def add(gateway: Gateway, tool: str) -> None:
        async with gateway.changing:
            grant = gateway.keyring.find("g_1")
            assert grant is not None
            await asyncio.sleep(0)
            await gateway.put_grant(replace(grant, models=(*grant.models, tool)))

    await asyncio.gather(*[add(gateways[n % 3], f"m{n}") for n in range(12)])
    (kept,) = await store.grants()
    assert sorted(kept.models) == sorted(f"m{n}" for n in range(12))
    assert store.inside_max == 1


async def test_one_that_hears_nothing_trusts_its_keys_for_half_a_minute(
    store: SharedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gateway, replica = await joined(store, tmp_path / "1")
    now = replica_module.time.monotonic_ns()
    monkeypatch.setattr(replica_module.time, "monotonic_ns", lambda: now)
    await replica.catch_up()
    store.down = True
    now += int(TRUST_S * 1e9)
    with pytest.raises(StoreUnavailable):
        await replica.catch_up()
    assert not gateway.keys_are_stale
    now += 1
    assert gateway.keys_are_stale
    store.down = False
    await replica.catch_up()
    assert not gateway.keys_are_stale


async def test_it_keeps_up_by_itself_and_survives_an_outage(store: SharedFile, tmp_path: Path):
    one, _ = await joined(store, tmp_path / "1")
    two, replica = await joined(store, tmp_path / "2")
    following = asyncio.create_task(replica.follow())
    store.down = True
    await one.store.put_grant(GRANT)
    replica.wake()
    await asyncio.sleep(0)
    store.down = False
    async with asyncio.timeout(10):
        while two.keyring.find("g_1") is None:  # noqa: ASYNC110 - nothing else tells of it
            await asyncio.sleep(0)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_another_pepper_does_not_start_and_says_what_to_do(store: SharedFile, tmp_path: Path):
    await joined(store, tmp_path / "1")
    with pytest.raises(SettingsError, match="NEMO_PEPPER") as refused:
        await joined(store, tmp_path / "2", {"NEMO_PEPPER": "another pepper than theirs"})
    assert "\n" not in str(refused.value)
    assert "another pepper than theirs" not in str(refused.value)
    assert "the pepper of the first one" in str(refused.value)
    await joined(store, tmp_path / "3")
