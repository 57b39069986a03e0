"""One sample: wrk drives a server for some seconds, and the machine's counters are read around it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from machine import TICKS_PER_S, BenchmarkError, Cores, busy_ticks, cpu_ticks

SCRIPT = Path(__file__).with_name("post.lua")
MARK = "RESULT "
LONGER = 4
_T = TypeVar("_T")


class NoAnswerYetError(BenchmarkError):
    """The window was too short for a server that is this slow: nothing failed, and nothing was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to drive: its address, the process that answers there, the key it wants, and headers beside that."""

    name: str
    url: str
    pid: int
    key: str = field(default="none", repr=False)
    headers: tuple[tuple[str, str], ...] = ()

    def environment(self, body: Path) -> dict[str, str]:
        """Return what a load generator is told, by its environment so that no key stands in a process list."""
        headers = "\n".join(f"{name}: {value}" for name, value in self.headers)
        return os.environ | {"BENCH_BODY": str(body), "BENCH_KEY": self.key, "BENCH_HEADERS": headers}


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


def drive(
    target: Target, *, connections: int, seconds: int, body: Path, cores: Cores, timeout_s: int = 10
) -> dict[str, int]:
    """Run wrk once and return what its script printed. Raises BenchmarkError when a request failed or none ended.

    An answer that takes longer than `timeout_s` is a failure.
    """
    # Two threads keep up with any server that has one core.
    threads = min(len(cores.load), connections, 2)
    argv = (
        *("taskset", "-c", cores.load_list, "wrk", "--latency", "--timeout", f"{timeout_s}s"),
        *("-t", str(threads), "-c", str(connections), "-d", f"{seconds}s", "-s", str(SCRIPT), target.url),
    )
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + timeout_s + 20,
        env=target.environment(body),
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if done.returncode or line is None:
        raise BenchmarkError(f"wrk failed on {target.name}: {(done.stderr or done.stdout).strip()[-500:]}")
    result: dict[str, int] = json.loads(line.removeprefix(MARK))
    if not (result["refused"] or result["broken"] or result["requests"]):
        raise NoAnswerYetError(f"{target.name} at {connections} connections answered nothing in {seconds} s")
    if result["refused"] or result["broken"]:
        raise BenchmarkError(
            f"{target.name} at {connections} connections: {result['refused']} answers were not 2xx and "
            f"{result['broken']} connections broke, of {result['requests']} requests; that measures nothing"
        )
    return result


def patiently(work: Callable[[int], _T], seconds: int) -> _T:
    """Do some work that drives a server for so many seconds; for several times as long when it answered nothing."""
    try:
        return work(seconds)
    except NoAnswerYetError:
        return work(seconds * LONGER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a window of time took: processor seconds of the target, and of processes that are not ours."""

    target_s: float
    foreign_s: float


def watch(target: Target, *, mock_pid: int, cores: Cores, work: Callable[[], _T]) -> tuple[_T, Use]:
    """Do some work that ends the programs it starts, and return with its result what the processors did meanwhile."""
    in_play = (cores.server, *cores.load)
    ours = {target.pid, mock_pid}
    load_before_s = _children_s()
    target_before = cpu_ticks(target.pid)
    before = busy_ticks(in_play) - sum(cpu_ticks(pid) for pid in ours)
    result = work()
    after = busy_ticks(in_play) - sum(cpu_ticks(pid) for pid in ours)
    used_s = (cpu_ticks(target.pid) - target_before) / TICKS_PER_S
    foreign_s = (after - before) / TICKS_PER_S - (_children_s() - load_before_s)
    return result, Use(target_s=used_s, foreign_s=max(0.0, foreign_s))


def sample(
    target: Target,
    *,
    mock_pid: int,
    connections: int,
    round_number: int,
    seconds: int,
    body: Path,
    cores: Cores,
    timeout_s: int = 10,
) -> Sample:
    """Measure one target once."""
    result, use = watch(
        target,
        mock_pid=mock_pid,
        cores=cores,
        work=lambda: drive(
            target, connections=connections, seconds=seconds, body=body, cores=cores, timeout_s=timeout_s
        ),
    )
    duration_s = result["duration_us"] / 1e6
    return Sample(
        target=target.name,
        connections=connections,
        round=round_number,
        per_s=result["requests"] / duration_s,
        p50_us=result["p50_us"],
        p99_us=result["p99_us"],
        cpu_us=use.target_s * 1e6 / result["requests"],
        foreign=use.foreign_s / duration_s,
    )


def _children_s() -> float:
    """Return the processor seconds of children that have ended: of the load generator, since the servers live on."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
