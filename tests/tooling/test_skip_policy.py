"""On a continuous integration machine a skip that nobody allowed fails the session, however a test skips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
CONFTEST = (TESTS / "conftest.py").read_text()
BESIDE = {"services.py": (TESTS / "services.py").read_text()}  # what it imports
FINE = "import pytest\ndef test_fine(): pass\n@pytest.mark.xfail\ndef test_expected(): assert False\n"
SKIPPING = {
    "test_mark.py": "import pytest\n@pytest.mark.skip(reason='no moon')\ndef test_a(): pass\n",
    "test_call.py": "import pytest\ndef test_a(): pytest.skip('no sun')\n",
    "test_module.py": "import pytest\npytest.skip('no stars', allow_module_level=True)\n",
}
RULE = "skipped against the rule"


def run(folder: Path, files: dict[str, str], *arguments: str, ci: bool, conftest: str = CONFTEST):
    for name, text in {**BESIDE, **files, "test_fine.py": FINE, "conftest.py": conftest}.items():
        (folder / name).write_text(text)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST_"))}
    environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | ({"CI": "true"} if ci else {})
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(folder)],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("-p", "xdist.plugin", "-n", "1")], ids=["alone", "parallel"])
def test_every_way_to_skip_fails_in_ci_and_is_named(tmp_path, arguments):
    done = run(tmp_path, SKIPPING, *arguments, ci=True)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    named = done.stdout.split(RULE)[1]
    for reason in ("no moon", "no sun", "no stars"):
        assert reason in named


def test_passing_and_expected_failures_are_no_skips(tmp_path):
    done = run(tmp_path, {}, ci=True)
    assert done.returncode == pytest.ExitCode.OK
    assert RULE not in done.stdout


def test_a_person_may_skip(tmp_path):
    done = run(tmp_path, SKIPPING, ci=False)
    assert done.returncode == pytest.ExitCode.OK
    assert RULE not in done.stdout


def test_an_allowed_reason_passes_and_only_that(tmp_path):
    allowing = CONFTEST.replace("ALLOWED_SKIPS: tuple[str, ...] = (", "ALLOWED_SKIPS = (r'^no m..n$', ", 1)
    done = run(tmp_path, SKIPPING, ci=True, conftest=allowing)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    named = done.stdout.split(RULE)[1]
    assert "no sun" in named
    assert "no moon" not in named
