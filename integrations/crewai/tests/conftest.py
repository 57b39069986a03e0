"""One gateway with a scripted provider behind it, and a fleet of three roles."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# crewAI keeps a database per folder in the user's data directory; two test runs must not share one.
_DATA = tempfile.mkdtemp(prefix="nemo-agents-crewai-")
atexit.register(shutil.rmtree, _DATA, ignore_errors=True)
os.environ["XDG_DATA_HOME"] = _DATA

from worlds import World, make_world  # noqa: E402 - the directory is chosen before anything imports crewAI

from nemo_agents import AgentRole  # noqa: E402 - likewise

MODELS = ("gpt-4o-mini", "a-writers-model", "text-embedding-3-small")


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    roles = [
        AgentRole("researcher", models=["gpt-4o-mini"], budget="$5/day", tools=["web_search"]),
        AgentRole("writer", models=["a-writers-model"], budget="$5/day"),
        AgentRole("embedder", models=["text-embedding-3-small"], budget="$5/day"),
    ]
    with make_world(tmp_path_factory.mktemp("gateway"), roles=roles, models=MODELS) as made:
        yield made


@pytest.fixture
def world(everything: World) -> World:
    everything.provider.reset()
    return everything
