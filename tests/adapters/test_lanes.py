"""Every integration in each of its lanes: its own tests pass there, and what they say of it is what the matrix says.

`make matrix` writes the matrix anew; `docs/reference/adapters.md` is made from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lanes import INTEGRATIONS, LANES, OPTIONS, folder_of, ini_of, lock_of, run_suite

pytestmark = pytest.mark.timeout(900)  # the first of a lane installs it

MATRIX = Path(__file__).parent / "matrix.json"
PAIRS = [(integration, lane) for lane, integrations in LANES.items() for integration in integrations]
# Regular expressions of the reasons for which a test may be skipped in a lane, and why that is right.
SKIPS = {
    r"has no shape '": "a framework has no such way to be asked; the matrix says which",
    r"\bthis lane has ": "four distributions answer to the name AutoGen, and no lane has room for all",
    r"litellm": "the lanes without it show that the native route needs none",
}


def rows_of(report: Path) -> list[dict[str, Any]]:
    return json.loads(report.read_text()) if report.exists() else []


@pytest.mark.parametrize(("integration", "name"), PAIRS, ids=[f"{pair[0]}-{pair[1]}" for pair in PAIRS])
def test_an_integration_in_its_lane(integration: str, name: str, lane: Callable[[str], Path], tmp_path: Path):
    """Its tests pass, some at least, each skip is explained, and its rows of the matrix are the committed ones."""
    report, tests = tmp_path / "conformance.json", folder_of(integration)
    environ = {"NEMO_CONFORMANCE_REPORT": str(report)}
    outcomes = run_suite(lane(name), ini_of(tests), tests, tmp_path, environ, *OPTIONS.get(name, ()))
    assert sum(map(len, outcomes.passed.values())), f"{integration} has no test that passed: {outcomes.said}"
    unexplained = [reason for reason in outcomes.skipped if not any(re.search(known, reason) for known in SKIPS)]
    assert unexplained == []
    rows = rows_of(report)
    if os.environ.get("NEMO_MATRIX") == "write":
        write(f"{integration} {name}", rows)
    committed = json.loads(MATRIX.read_text()).get(f"{integration} {name}")
    assert committed == rows, "`make matrix` writes the matrix anew"


def write(pair: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of an integration in a lane into the matrix."""
    with MATRIX.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        matrix = {**json.loads(file.read() or "{}"), pair: rows}
        file.truncate(0)
        file.write(json.dumps(dict(sorted(matrix.items())), indent=1) + "\n")


def test_every_integration_has_a_lane_and_tests():
    """A folder with a project among the integrations is run somewhere, and what is to be run is there."""
    projects = {path.parent.name for path in INTEGRATIONS.glob("*/pyproject.toml")}
    assert projects | {"plain"} == {integration for integration, _ in PAIRS}
    without = [integration for integration, _ in PAIRS if not list(folder_of(integration).glob("test_*.py"))]
    assert without == []


def test_the_matrix_is_of_the_locked_versions():
    """A row names a version that the lane's lock has; a lock that moved needs a new matrix."""
    matrix = json.loads(MATRIX.read_text())
    assert set(matrix) == {f"{integration} {lane}" for integration, lane in PAIRS}
    for pair, rows in matrix.items():
        locked = lock_of(pair.split(" ")[1]).read_text()
        for row in rows:
            for distribution, version in ((row["framework"], row["version"]), ("openai", row["openai"])):
                assert f"\n{distribution}=={version} " in f"\n{locked}", (
                    f"{pair}: {distribution} {version} is not locked"
                )
