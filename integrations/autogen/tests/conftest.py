"""One gateway with a scripted provider behind it, and a fleet of two roles."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import World, make_world

from nemo_agents import AgentRole

sys.path.insert(0, str(Path(__file__).parent))  # the tests are no package, and share `shapes`

# openai 2 looks into `httpx2` as soon as a thread has begun to import it, as the price list of the gateway does.
if importlib.util.find_spec("httpx2") is not None:
    importlib.import_module("httpx2")

MODELS = ("gpt-4o-mini", "a-writers-model")


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    roles = [AgentRole("researcher", models=MODELS[:1]), AgentRole("writer", models=MODELS[1:])]
    with make_world(tmp_path_factory.mktemp("gateway"), roles=roles, models=MODELS) as made:
        yield made


@pytest.fixture
def world(everything: World) -> World:
    everything.provider.reset()
    return everything
