"""The example runs as its first lines say, to its end and into a budget."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from programs import EXAMPLES, gateway_with_the_crew, in_order, run_program
from shapes import needs

from nemo_agents.testing import LocalGateway

needs("agentchat")

EXAMPLE = EXAMPLES / "research_crew_autogen.py"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    with gateway_with_the_crew(tmp_path_factory.mktemp("example")) as started:
        yield started


def test_the_crew_answers_and_shows_its_tree(gateway):
    printed = run_program(gateway, str(EXAMPLE), "What", "is", "a", "CRDT?")
    assert printed.startswith("ok: 5 calls, $")
    said, _, tree = printed.partition("\nanswer: ")
    assert "writer: [sandbox claude" in said
    assert in_order(tree, "crew", "orchestrator", "researcher", "web_search", "writer", "critic  ")


def test_a_small_budget_stops_it_with_what_it_has(gateway):
    printed = run_program(gateway, str(EXAMPLE), "--budget")
    assert printed.startswith("stopped: ")
    assert "\nstopped by budget: " in printed
    assert "\norchestrator: [sandbox" in printed
    assert "\nwriter: [" not in printed


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80
