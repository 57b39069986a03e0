"""One gateway with a scripted provider behind it, and a fleet of three roles."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

# crewAI keeps a database per folder in the user's data directory; two test runs must not share one.
_DATA = tempfile.mkdtemp(prefix="nemo-agents-crewai-")
atexit.register(shutil.rmtree, _DATA, ignore_errors=True)
os.environ["XDG_DATA_HOME"] = _DATA

from nemo_agents import AgentRole, Fleet, Run  # noqa: E402 - the directory is chosen before anything imports crewAI
from nemo_agents.admin import observe  # noqa: E402 - likewise
from nemo_agents.admin.wire import RunDetail  # noqa: E402 - likewise
from nemo_agents.testing import LocalGateway, ScriptedProvider, running_gateway, scripted_provider  # noqa: E402

MODELS = ("gpt-4o-mini", "a-writers-model", "text-embedding-3-small")


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
        roles=[
            AgentRole("researcher", models=["gpt-4o-mini"], budget="$5/day", tools=["web_search"]),
            AgentRole("writer", models=["a-writers-model"], budget="$5/day"),
            AgentRole("embedder", models=["text-embedding-3-small"], budget="$5/day"),
        ],
    )
    home = tmp_path_factory.mktemp("gateway")
    home.chmod(0o700)
    with scripted_provider() as provider, running_gateway(home, settings=provider.settings(*MODELS)) as gateway:
        yield World(provider=provider, gateway=gateway, fleet=gateway.provision(fleet))


@pytest.fixture
def world(everything: World) -> World:
    everything.provider.reset()
    return everything
