"""Lanes: environments with agent frameworks in them, each made once from a lock with hashes in `.ci`.

This clone and its integrations are installed in each as editable, so that entry points are found and an edit counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
INTEGRATIONS = ROOT / "integrations"
PYTEST_INI = INTEGRATIONS / "pytest.ini"
# Which lane has the frameworks of which integration; `plain` are frameworks that need no adapter of their own.
LANES: Mapping[str, tuple[str, ...]] = {
    "openai2": ("autogen", "crewai", "google_adk", "langchain", "plain"),
    "openai3": ("autogen", "langchain", "plain"),
    "oldest": ("autogen", "crewai", "google_adk", "langchain"),
    "pyautogen": ("autogen",),
}


# The examples are for the versions of today; what an adapter promises of the oldest is in all its other tests.
OPTIONS: Mapping[str, tuple[str, ...]] = {"oldest": ("--ignore-glob=*/test_example*.py",)}


def lock_of(lane: str) -> Path:
    return ROOT / ".ci" / f"requirements-lane-{lane}.txt"


def folder_of(integration: str) -> Path:
    return ROOT / "tests" / "adapters" / "plain" if integration == "plain" else INTEGRATIONS / integration / "tests"


def ini_of(tests: Path) -> Path:
    """Return how tests are configured: by a file of their own, or as those of every integration."""
    own = tests / "pytest.ini"
    return own if own.exists() else PYTEST_INI


def make_lane(lane: str) -> Path:
    """Return the interpreter of a lane, making it when its lock is new; whoever else wants it waits."""
    digest = hashlib.sha256(lock_of(lane).read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix) / f"lane-{lane}-{digest}"
    with Path(sys.prefix, f"lane-{lane}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for outdated in set(Path(sys.prefix).glob(f"lane-{lane}-*")) - {folder}:
            shutil.rmtree(outdated)
        _run([ROOT / ".ci" / "extras-env", sys.executable, folder, lock_of(lane)])
        _install_clone(folder, lane)
    return folder / "bin" / "python"


def _install_clone(folder: Path, lane: str) -> None:
    projects = [ROOT, *(INTEGRATIONS / name for name in LANES[lane] if (INTEGRATIONS / name).is_dir())]
    declared = b"".join((project / "pyproject.toml").read_bytes() for project in projects)
    stamp, digest = folder / "clone-installed", hashlib.sha256(declared).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    editable = [argument for project in projects for argument in ("--editable", str(project))]
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    _run([*pip, "--no-index", "--no-deps", "--no-build-isolation", *editable])
    stamp.write_text(digest)


def _run(command: list[Path | str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def lane() -> Callable[[str], Path]:
    """Give the interpreter of a lane: `lane("openai2")`."""
    return make_lane


@dataclass(kw_only=True)
class Outcomes:
    """How the tests of a suite ended, by the name of their class; `said` is what pytest printed."""

    passed: dict[str, set[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)  # by reason, also of expected failures
    failed: list[str] = field(default_factory=list)
    said: str = ""


def run_suite(
    python: Path, ini: Path, tests: Path, scratch: Path, environ: Mapping[str, str], *options: str
) -> Outcomes:
    """Run tests in a lane, with `scratch` as their home, and return how they ended. None may fail."""
    report = scratch / "report.xml"
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), **environ}
    command = [python, "-m", "pytest", "-c", ini, f"--junitxml={report}", *options, tests]
    done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    outcomes = Outcomes(said=done.stdout[-8000:])
    for case in ET.parse(report).iter("testcase"):
        name = case.attrib["name"]
        if (skip := case.find("skipped")) is not None:
            whole_module = skip.attrib["message"] == "collection skipped"
            outcomes.skipped[str(skip.text) if whole_module else skip.attrib["message"]] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            outcomes.failed.append(name)
        else:
            outcomes.passed.setdefault(case.attrib["classname"].rpartition(".")[2], set()).add(name)
    assert outcomes.failed == [], outcomes.said
    assert done.returncode == 0, outcomes.said
    return outcomes
