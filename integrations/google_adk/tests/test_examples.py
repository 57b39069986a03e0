"""The examples run as their first lines say, to their end and into a budget."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import EXAMPLES, gateway_with_the_crew, in_order, run_program

from nemo_agents.testing import LocalGateway

CREW, PIPELINE = EXAMPLES / "research_crew_google_adk.py", EXAMPLES / "mixed_pipeline.py"

FRAMEWORKS = ("langchain", "crewai", "autogen_agentchat", "nemo_agents_langchain", "nemo_agents_crewai")
HAS_ALL = all(find_spec(name) for name in (*FRAMEWORKS, "nemo_agents_autogen"))
needs_all = pytest.mark.skipif(not HAS_ALL, reason="the mixed pipeline needs all four frameworks and their adapters")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    with gateway_with_the_crew(tmp_path_factory.mktemp("example")) as started:
        yield started


def test_the_crew_answers_and_shows_its_tree(local: LocalGateway):
    printed = run_program(local, str(CREW), "What", "is", "a", "CRDT?")
    assert printed.startswith("ok: 5 calls, $")
    _, _, tree = printed.partition("\nOK: ")
    assert in_order(tree, "plan", "orchestrator", "research", "web_search", "write", "critique")


def test_a_small_budget_stops_the_crew_with_what_it_has(local: LocalGateway):
    printed = run_program(local, str(CREW), "--budget")
    assert printed.startswith("stopped: ")
    assert "\nstopped by budget: " in printed
    assert "\nplan: [sandbox" in printed
    assert "\nanswer: [sandbox" not in printed


@needs_all
def test_the_mixed_pipeline_is_one_run_of_four_frameworks(local: LocalGateway):
    printed = run_program(local, str(PIPELINE), "What", "is", "a", "CRDT?")
    assert "\nok: " in f"\n{printed}"  # crewAI may print a note of its own first
    _, _, tree = printed.partition("\nOK: ")
    assert in_order(tree, "plan", "research", "write", "critique")


@needs_all
def test_a_small_budget_stops_the_mixed_pipeline_with_what_it_has(local: LocalGateway):
    printed = run_program(local, str(PIPELINE), "--budget")
    assert printed.startswith("stopped: ")
    assert "\nstopped by budget: " in printed
    assert "\nplan: [sandbox" in printed
    assert "\ncritique: [sandbox" not in printed


@pytest.mark.parametrize("example", [CREW, PIPELINE], ids=lambda path: path.stem)
def test_it_is_short(example: Path):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 80
