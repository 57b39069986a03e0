"""One sample of the time to the first token: many paced streams at a time through one server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import firsttoken
from load import Sample, Target, watch
from machine import BenchmarkError, Cores

PROGRAM: Final = Path(firsttoken.__file__)


def percentile(values: Sequence[int], share: float) -> int:
    """Return the value that so much of all is not above (nearest rank); there must be one."""
    ordered = sorted(values)
    rank = -(-len(ordered) * round(share * 10_000) // 10_000)
    return ordered[max(0, rank - 1)]


def first_token_sample(
    target: Target, *, mock_pid: int, connections: int, round_number: int, seconds: int, body: Path, cores: Cores
) -> Sample:
    """Measure one target once: `p50_us` and `p99_us` are times to first tokens, `per_s` whole streams a second.

    Raises BenchmarkError when a stream failed.
    """
    result, use = watch(
        target,
        mock_pid=mock_pid,
        cores=cores,
        work=lambda: _drive(target, connections=connections, seconds=seconds, body=body, cores=cores),
    )
    duration_s = result["duration_us"] / 1e6
    times: list[int] = result["first_us"]
    return Sample(
        target=target.name,
        connections=connections,
        round=round_number,
        per_s=len(times) / duration_s,
        p50_us=percentile(times, 0.5),
        p99_us=percentile(times, 0.99),
        cpu_us=use.target_s * 1e6 / len(times),
        foreign=use.foreign_s / duration_s,
    )


def _drive(target: Target, *, connections: int, seconds: int, body: Path, cores: Cores) -> dict[str, Any]:
    argv = ("taskset", "-c", cores.load_list, sys.executable, str(PROGRAM), target.url, str(connections), str(seconds))
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 2 * firsttoken.TIMEOUT_S,
        env=target.environment(body),
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"the streams through {target.name} could not be begun: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["faults"] or not result["first_us"]:
        why = result["faults"][0] if result["faults"] else "no stream ended"
        raise BenchmarkError(
            f"{target.name} at {connections} connections: {len(result['faults'])} streams failed beside "
            f"{len(result['first_us'])} that did not: {why}"
        )
    return result
