"""The example runs as its first lines say, to its end and into a budget; so does the README's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import EXAMPLES, FLEET_FILE, gateway_with_the_crew, in_order, run_program

from nemo_agents.testing import LocalGateway

EXAMPLE = EXAMPLES / "research_crew_crewai.py"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    with gateway_with_the_crew(tmp_path_factory.mktemp("example")) as started:
        yield started


def test_the_crew_answers_and_shows_its_tree(gateway: LocalGateway) -> None:
    printed = run_program(gateway, str(EXAMPLE), "What", "is", "a", "CRDT?")
    _, _, told = printed.partition("ok: 5 calls, $")
    answer, _, tree = told.partition("OK: 5 calls")
    assert "\nwrite: [sandbox claude" in answer
    assert "\ncritique: [sandbox gpt-4o-mini]" in answer
    words = ("research crew", "plan", "orchestrator", "researcher", "web_search", "writer", "critic")
    assert in_order(tree, *words)


def test_a_small_budget_stops_it_with_what_it_has(gateway: LocalGateway) -> None:
    printed = run_program(gateway, str(EXAMPLE), "--budget")
    _, _, told = printed.partition("stopped: ")
    assert "\nstopped by budget: " in told
    assert "\nplan: [sandbox" in told
    assert "\nresearch: [sandbox gpt-4o-mini]" in told
    assert "\nwrite: " not in told


def test_the_readmes_example_runs(gateway: LocalGateway, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    program = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "crew.py").write_text(program)
    (tmp_path / "fleet.py").write_text(FLEET_FILE.read_text())
    printed = run_program(gateway, str(tmp_path / "crew.py"), folder=tmp_path)
    assert re.search(r"^ok \$0\.\d+ http://127", printed, re.MULTILINE), printed
