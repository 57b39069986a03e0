"""What came out, for the matrix of adapters: a JSON file, one row for each adapter."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from nemo_agents.testing.conformance.adapter import Adapter

__all__ = ["REPORT_VARIABLE", "write_row"]

REPORT_VARIABLE: Final = "NEMO_CONFORMANCE_REPORT"


def write_row(adapter: Adapter, values: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> None:
    """Put an adapter's row into the file that NEMO_CONFORMANCE_REPORT names, in place of an earlier one of its name.

    Without the variable nothing is written. Several processes may write to one file.
    """
    if not (name := environ.get(REPORT_VARIABLE)):
        return
    row: dict[str, Any] = {
        "name": adapter.name,
        "framework": adapter.framework,
        "version": _version(adapter.framework),
        "openai": _version("openai"),
        "values": dict(sorted(values.items())),
    }
    with Path(name).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows = json.loads(file.read() or "[]")
        rows = sorted([*(each for each in rows if each["name"] != adapter.name), row], key=lambda each: each["name"])
        file.truncate(0)
        file.write(json.dumps(rows, indent=1) + "\n")


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "?"
