"""The lanes, for every test of adapters. `plain` is collected in its lanes alone, where its frameworks are."""

from __future__ import annotations

from pathlib import Path

from lanes import lane  # noqa: F401 - a fixture

HERE = Path(__file__).parent
# The folders below are run by test_lanes.py and test_frameworks.py in environments of their own.
collect_ignore = [str(HERE / "plain"), str(HERE / "frameworks")]
