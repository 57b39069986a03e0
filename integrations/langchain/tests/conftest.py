"""One gateway with a scripted provider behind it, and a fleet of three roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from worlds import World, make_world

from nemo_agents import AgentRole
from nemo_agents.admin.wire import RunDetail, SpanRow

MODELS = ("gpt-4o-mini", "gpt-5-pro", "a-writers-model", "text-embedding-3-small")


def spans_by_name(detail: RunDetail) -> dict[str, SpanRow]:
    """The spans of a run by their names; each name is there once."""
    named = {span.name: span for span in detail.spans}
    assert len(named) == len(detail.spans), [span.name for span in detail.spans]
    return named


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    roles = [
        AgentRole(
            "researcher", models=["gpt-4o-mini", "gpt-5-pro"], budget="$5/day", tools=["web_search", "ask_writer"]
        ),
        AgentRole("writer", models=["a-writers-model"], budget="$5/day"),
        AgentRole("embedder", models=["text-embedding-3-small"], budget="$5/day"),
    ]
    with make_world(tmp_path_factory.mktemp("gateway"), roles=roles, models=MODELS) as made:
        yield made


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
