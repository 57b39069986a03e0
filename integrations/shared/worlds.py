"""What the tests of an adapter play with: a gateway, a scripted provider behind it, and a fleet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_agents import AgentRole, Fleet, Run
from nemo_agents.admin import observe
from nemo_agents.admin.wire import RunDetail
from nemo_agents.testing import LocalGateway, ScriptedProvider, running_gateway, scripted_provider

__all__ = ["World", "make_world"]


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

    def bodies(self) -> list[dict[str, Any]]:
        """What the provider was asked since the test began."""
        return [received.body for received in self.provider.requests]


@contextmanager
def make_world(home: Path, *, roles: Sequence[AgentRole], models: Sequence[str]) -> Iterator[World]:
    """Run a gateway with its data in `home`, a provider of these models, and a fleet of these roles."""
    home.chmod(0o700)
    with scripted_provider() as provider, running_gateway(home, settings=provider.settings(*models)) as gateway:
        yield World(provider=provider, gateway=gateway, fleet=gateway.provision(Fleet("crew", roles=roles)))
