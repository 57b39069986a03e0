"""One gateway with a scripted provider behind it, and a fleet of two roles."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_agents import AgentRole, Fleet, Run
from nemo_agents.admin import observe
from nemo_agents.admin.wire import RunDetail
from nemo_agents.testing import LocalGateway, ScriptedProvider, running_gateway, scripted_provider

sys.path.insert(0, str(Path(__file__).parent))  # the tests are no package, and share `shapes`

# openai 2 looks into `httpx2` as soon as a thread has begun to import it, as the price list of the gateway does.
if importlib.util.find_spec("httpx2") is not None:
    importlib.import_module("httpx2")

MODELS = ("gpt-4o-mini", "a-writers-model")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a test plays with."""

    provider: ScriptedProvider
    gateway: LocalGateway
    fleet: Fleet

    def told(self, run: Run) -> RunDetail:
        """What the gateway keeps about a run."""
        with self.gateway.admin() as admin:
            return admin.run(observe.run(run.id))


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    fleet = Fleet(
        "crew",
        roles=[AgentRole("researcher", models=MODELS[:1]), AgentRole("writer", models=MODELS[1:])],
    )
    home = tmp_path_factory.mktemp("gateway")
    home.chmod(0o700)
    with scripted_provider() as provider, running_gateway(home, settings=provider.settings(*MODELS)) as gateway:
        yield World(provider=provider, gateway=gateway, fleet=gateway.provision(fleet))


@pytest.fixture
def world(everything: World) -> World:
    everything.provider.reset()
    return everything
