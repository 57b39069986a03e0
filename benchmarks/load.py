"""One sample: wrk drives a server for some seconds, and the machine's counters are read around it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

from machine import TICKS_PER_S, BenchmarkError, Cores, busy_ticks, cpu_ticks

SCRIPT = Path(__file__).with_name("post.lua")
MARK = "RESULT "


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to drive: its address, the process that answers there, and the key it wants."""

    name: str
    url: str
    pid: int
    key: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one target did in one window at one number of connections.

    `cpu_us` is processor time of the target for each request, `foreign` what processes other than ours used
    of the cores in play during the window (1.0 is one whole core).
    """

    target: str
    connections: int
    round: int
    per_s: float
    p50_us: int
    p99_us: int
    cpu_us: float
    foreign: float


def drive(target: Target, *, connections: int, seconds: int, body: Path, cores: Cores) -> dict[str, int]:
    """Run wrk once and return what its script printed. Raises BenchmarkError when a request failed."""
    # Two threads keep up with any server that has one core.
    threads = min(len(cores.load), connections, 2)
    argv = (
        *("taskset", "-c", cores.load_list, "wrk", "--latency", "--timeout", "10s"),
        *("-t", str(threads), "-c", str(connections), "-d", f"{seconds}s", "-s", str(SCRIPT), target.url),
    )
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        env=os.environ | {"BENCH_BODY": str(body), "BENCH_KEY": target.key},
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if done.returncode or line is None:
        raise BenchmarkError(f"wrk failed on {target.name}: {(done.stderr or done.stdout).strip()[-500:]}")
    result: dict[str, int] = json.loads(line.removeprefix(MARK))
    if result["refused"] or result["broken"] or not result["requests"]:
        raise BenchmarkError(
            f"{target.name} at {connections} connections: {result['refused']} answers were not 2xx and "
            f"{result['broken']} connections broke, of {result['requests']} requests; that measures nothing"
        )
    return result


def sample(
    target: Target,
    *,
    mock_pid: int,
    connections: int,
    round_number: int,
    seconds: int,
    body: Path,
    cores: Cores,
) -> Sample:
    """Measure one target once."""
    in_play = (cores.server, *cores.load)
    ours = {target.pid, mock_pid}
    wrk_before_s = _children_s()
    target_before = cpu_ticks(target.pid)
    before = busy_ticks(in_play) - sum(cpu_ticks(pid) for pid in ours)
    result = drive(target, connections=connections, seconds=seconds, body=body, cores=cores)
    after = busy_ticks(in_play) - sum(cpu_ticks(pid) for pid in ours)
    used_ticks = cpu_ticks(target.pid) - target_before
    foreign_s = (after - before) / TICKS_PER_S - (_children_s() - wrk_before_s)
    duration_s = result["duration_us"] / 1e6
    return Sample(
        target=target.name,
        connections=connections,
        round=round_number,
        per_s=result["requests"] / duration_s,
        p50_us=result["p50_us"],
        p99_us=result["p99_us"],
        cpu_us=used_ticks / TICKS_PER_S * 1e6 / result["requests"],
        foreign=max(0.0, foreign_s / duration_s),
    )


def _children_s() -> float:
    """Return the processor seconds of children that have ended: of wrk, since the servers live on."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
