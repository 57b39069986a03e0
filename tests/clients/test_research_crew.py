"""The example runs as its first lines say, to its end and into a budget."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_agents import Fleet
from nemo_agents.testing import LocalGateway, running_gateway

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "research_crew_openai.py"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    home = tmp_path_factory.mktemp("example")
    home.chmod(0o700)
    with running_gateway(home) as started:
        started.provision(Fleet.from_file(EXAMPLE.parent / "research_crew" / "fleet.py"))
        yield started


def run_example(gateway: LocalGateway, *arguments: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NEMO_")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env={**environ, "NEMO_GATEWAY_URL": gateway.url, "NEMO_HOME": str(gateway.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_crew_answers_and_shows_its_tree(gateway):
    printed = run_example(gateway, "What", "is", "a", "CRDT?")
    assert printed.startswith("ok: 5 calls, $")
    answer, _, tree = printed.partition("OK: 5 calls in 4 steps")
    assert "\nanswer: [sandbox claude" in answer
    assert "\ncritique: [sandbox gpt-4o-mini]" in answer
    words = ("plan", "research", "web_search", "write", "critique")
    places = [tree.find(word) for word in words]
    assert places == sorted(places)
    assert -1 not in places


def test_a_small_budget_stops_it_with_what_it_has(gateway):
    printed = run_example(gateway, "--budget")
    assert printed.startswith("stopped: ")
    assert "\nstopped by budget: " in printed
    assert "\nplan: [sandbox" in printed
    assert "\nresearch: [sandbox gpt-4o-mini] web_search returned" in printed
    assert "\nanswer: [" not in printed


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80
