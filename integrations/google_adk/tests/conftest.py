"""A gateway with a scripted provider behind it, and a fleet on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemo_agents import AgentRole, Fleet
from nemo_agents.admin import observe
from nemo_agents.admin.wire import RunDetail
from nemo_agents.testing import LocalGateway, ScriptedProvider, running_gateway, scripted_provider

sys.path.insert(0, str(Path(__file__).parent))  # for `adk`, what the tests of this folder share

FLEET = Fleet(
    "adk",
    roles=[
        AgentRole("researcher", models=["gpt-4o-mini", "gpt-4o"], budget="$10/day"),
        AgentRole("writer", models=["claude-3-5-sonnet-20241022"], budget="$10/day"),
        AgentRole("guarded", models=["gpt-4o-mini", "gpt-4o"], guardrails=["prompt-injection-detect"]),
    ],
)


@pytest.fixture(scope="session")
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="session")
def gateway(provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    settings = provider.settings("gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet-20241022")
    with running_gateway(tmp_path_factory.mktemp("gateway"), settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def provisioned(gateway: LocalGateway) -> Fleet:
    return gateway.provision(FLEET)


@pytest.fixture
def fleet(provisioned: Fleet, provider: ScriptedProvider) -> Fleet:
    provider.reset()
    return provisioned


@pytest.fixture
def told(gateway: LocalGateway) -> Callable[[str], RunDetail]:
    """What the gateway knows about a run, once all that the run has told it is there."""

    def detail(run_id: str) -> RunDetail:
        deadline = time.monotonic() + 10
        with gateway.admin() as client:
            while True:
                found = client.run(observe.run(run_id))
                if all(span.state != "running" for span in found.spans) or time.monotonic() > deadline:
                    return found

    return detail
