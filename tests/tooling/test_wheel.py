"""The wheel has all that runs, and nothing else; what is installed from it works away from the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "nemo_agents"
NEEDED = (
    "py.typed",
    "cli/research_crew.toml",
    "gateway/stores/migrations/env.py",
    "gateway/stores/migrations/script.py.mako",
    "gateway/stores/migrations/versions/v0001_first_tables.py",
    "viewer/static/viewer.css",
    "viewer/static/viewer.js",
    "viewer/templates/base.html",
    "viewer/templates/run.html",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone, built with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_has_every_file_of_the_package_and_nothing_else(wheel):
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    packed = {name for name in names(wheel) if ".dist-info/" not in name}
    assert packed == there
    assert {f"{PACKAGE}/{name}" for name in NEEDED} <= packed
    assert not any("test" in Path(name).parts[:-1] or "tests" in Path(name).parts for name in packed)


def test_it_says_how_to_call_it_and_under_which_licence(wheel):
    about = {name.partition(".dist-info/")[2] for name in names(wheel)}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= about


def test_the_demo_runs_from_it_away_from_the_clone(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {"PATH": os.environ["PATH"], "HOME": str(elsewhere), "PYTHONPATH": str(site), "LANG": "C.UTF-8"}

    def python(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args], cwd=elsewhere, env=env, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", f"import {PACKAGE}; print({PACKAGE}.__file__)").startswith(str(site))
    shown = python("-m", PACKAGE, "demo")
    assert "ledger: every balance adds up" in shown
    assert "  + orchestrator " in shown
