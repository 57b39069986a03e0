"""On what a benchmark was run: the versions of the programs, and the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from servers import nginx_program


def machine_facts() -> dict[str, str]:
    """Return versions and processor, by name; what cannot be found out is left out."""
    facts = {
        "nemo-agents": version("nemo-agents"),
        "uvicorn": version("uvicorn"),
        "uvloop": version("uvloop"),
        "CPython": platform.python_version(),
        "nginx": _first(r"nginx/([\d.]+)", (nginx_program(), "-v")),
        "wrk": _first(r"wrk (\S+)", ("wrk", "--version")),
        "Linux": platform.release(),
        "processor": _first_in(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "cores": str(len(os.sched_getaffinity(0))),
    }
    return {name: value for name, value in facts.items() if value}


def _first(pattern: str, argv: tuple[str, ...]) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False)
    return _first_in(pattern, done.stdout + done.stderr)


def _first_in(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
