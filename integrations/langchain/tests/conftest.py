"""One gateway with a scripted provider behind it, and a fleet of three roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from nemo_agents import AgentRole, Fleet, Run
from nemo_agents.admin import observe
from nemo_agents.admin.wire import RunDetail, SpanRow
from nemo_agents.testing import LocalGateway, ScriptedProvider, running_gateway, scripted_provider

MODELS = ("gpt-4o-mini", "gpt-5-pro", "a-writers-model", "text-embedding-3-small")


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

    def bodies(self) -> list[dict]:
        """What the provider was asked since the test began."""
        return [received.body for received in self.provider.requests]


def spans_by_name(detail: RunDetail) -> dict[str, SpanRow]:
    """The spans of a run by their names; each name is there once."""
    named = {span.name: span for span in detail.spans}
    assert len(named) == len(detail.spans), [span.name for span in detail.spans]
    return named


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    fleet = Fleet(
        "crew",
        roles=[
            AgentRole(
                "researcher", models=["gpt-4o-mini", "gpt-5-pro"], budget="$5/day", tools=["web_search", "ask_writer"]
            ),
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


@pytest.fixture
def web_search() -> Callable[[str], str]:
    def web_search(query: str) -> str:
        """Search the web for pages about a topic."""
        return f"two pages about {query}"

    return web_search
