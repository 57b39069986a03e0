"""The example runs as its first lines say, to its end and into a budget; so does the README's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_agents import Fleet
from nemo_agents.testing import LocalGateway, running_gateway

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "research_crew_crewai.py"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    home = tmp_path_factory.mktemp("example")
    home.chmod(0o700)
    with running_gateway(home) as started:
        started.provision(Fleet.from_file(EXAMPLE.parent / "research_crew" / "fleet.py"))
        yield started


def run_program(gateway: LocalGateway, *arguments: str, folder: Path = ROOT) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("NEMO_", "CREWAI_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environ, "NEMO_GATEWAY_URL": gateway.url, "NEMO_HOME": str(gateway.home)},
        stdin=subprocess.DEVNULL,  # where there is a terminal, crewAI asks about its traces at its first crew
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_crew_answers_and_shows_its_tree(gateway: LocalGateway) -> None:
    printed = run_program(gateway, str(EXAMPLE), "What", "is", "a", "CRDT?")
    _, _, told = printed.partition("ok: 5 calls, $")
    answer, _, tree = told.partition("OK: 5 calls")
    assert "\nwrite: [sandbox claude" in answer
    assert "\ncritique: [sandbox gpt-4o-mini]" in answer
    words = ("research crew", "plan", "orchestrator", "researcher", "web_search", "writer", "critic")
    places = [tree.find(word) for word in words]
    assert places == sorted(places)
    assert -1 not in places


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
    (tmp_path / "fleet.py").write_text((EXAMPLE.parent / "research_crew" / "fleet.py").read_text())
    printed = run_program(gateway, str(tmp_path / "crew.py"), folder=tmp_path)
    assert re.search(r"^ok \$0\.\d+ http://127", printed, re.MULTILINE), printed
