"""`nemo_agents.testing` where the gateway's parts are not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import nemo_agents.testing
"""


@pytest.mark.parametrize("missing", ["starlette", "structlog"])
def test_it_says_what_to_install(missing):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"ImportError: nemo_agents.testing runs a gateway ({missing}")
    assert said.endswith("is missing). Run: pip install 'nemo-agents[gateway]'")
