"""The examples, run as a user runs them: each a process of its own, against a gateway with the research crew on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_agents import Fleet
from nemo_agents.testing import LocalGateway, running_gateway

__all__ = ["EXAMPLES", "FLEET_FILE", "gateway_with_the_crew", "in_order", "run_program"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLEET_FILE = EXAMPLES / "research_crew" / "fleet.py"


@contextmanager
def gateway_with_the_crew(home: Path) -> Iterator[LocalGateway]:
    """Run a gateway with its data in `home`, and the fleet of the examples on it."""
    home.chmod(0o700)
    with running_gateway(home) as started:
        started.provision(Fleet.from_file(FLEET_FILE))
        yield started


def run_program(gateway: LocalGateway, *arguments: str, folder: Path = EXAMPLES.parent) -> str:
    """Run a program of Python to its end, and return what it printed."""
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


def in_order(text: str, *words: str) -> bool:
    """Say whether all of these are in a text, each first seen behind the one before."""
    places = [text.find(word) for word in words]
    return places == sorted(places) and -1 not in places
