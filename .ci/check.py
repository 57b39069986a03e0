"""Run every check that needs no test, side by side, and show the output of those that fail.

`python .ci/check.py` runs all, `python .ci/check.py types links` those two. The exit status is 1 when
any failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTHON = sys.executable

# The slowest first, so that it does not start last.
CHECKS: dict[str, tuple[str, ...]] = {
    "types": (str(BIN / "mypy"),),
    "imports": (str(BIN / "lint-imports"),),
    "dead-code": (PYTHON, ".ci/check_dead_code.py"),
    "docs": (PYTHON, "docs/generate.py", "--check"),
    "lint": (str(BIN / "ruff"), "check", "--quiet", "."),
    "format": (str(BIN / "ruff"), "format", "--check", "--quiet", "."),
    "links": (PYTHON, ".ci/check_links.py"),
    "lock": (PYTHON, ".ci/check_lock.py"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one check ended."""

    name: str
    status: int
    output: str
    seconds: float


def run(name: str) -> Outcome:
    """Run one check to its end."""
    started = time.monotonic()
    done = subprocess.run(
        CHECKS[name],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Outcome(name=name, status=done.returncode, output=done.stdout, seconds=time.monotonic() - started)


def main(names: list[str]) -> int:
    """Run the named checks, or all, and return the exit status."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        print(f"check: unknown: {', '.join(unknown)}; there are {', '.join(sorted(CHECKS))}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        outcomes = []
        for outcome in pool.map(run, names or CHECKS):
            verdict = "ok  " if outcome.status == 0 else "FAIL"
            print(f"{verdict} {outcome.name:<10} {outcome.seconds:5.1f} s", flush=True)
            outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if outcome.status]
    for outcome in failed:
        print(f"\n--- {outcome.name}: {' '.join(CHECKS[outcome.name]).replace(f'{ROOT}/', '')}")
        print(outcome.output.rstrip() or f"(no output, exit status {outcome.status})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
