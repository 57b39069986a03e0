"""Processes, cores and memory of a Linux machine, read from /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of a line of /proc/stat that are work of processes: user, nice, system. Interrupts are nobody's.
_WORK = slice(1, 4)
_LOOK_S = 0.1
_STILL_LOOKS = 2


class BenchmarkError(Exception):
    """The benchmark cannot be run, or a run means nothing; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which core the measured server gets, and which the mock and the load generator."""

    server: int
    load: tuple[int, ...]

    @property
    def load_list(self) -> str:
        """The load's cores as taskset takes them."""
        return ",".join(str(core) for core in self.load)


def choose_cores() -> Cores:
    """Give the server the last core we may use and the load all others. Raises BenchmarkError on one core."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == 1:
        raise BenchmarkError("needs two cores: on one, the load generator and the server measure each other")
    return Cores(server=allowed[-1], load=tuple(allowed[:-1]))


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 20.0) -> None:
    """Return once something listens. Raises BenchmarkError with the log when it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.005)
    raise BenchmarkError(f"{process.args!r} does not listen on {port}:\n{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@contextmanager
def running(
    argv: Sequence[str], *, cores: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on the given cores while the block lasts; it is asked to end, then made to."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ("taskset", "-c", cores, *argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(timeout=10)


def family(pid: int) -> list[int]:
    """Return a process and everything below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread ended just now
        for child in children:
            found += family(int(child))
    return found


def cpu_ticks(pid: int) -> int:
    """Return the processor time that a process and those below it have used, in ticks; of those that live."""
    total = 0
    for member in family(pid):
        try:
            line = Path(f"/proc/{member}/stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
        # The name in brackets may contain spaces: count from behind it. utime and stime are fields 14 and 15.
        fields = line.rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total


def wait_until_idle(pids: Sequence[int], *, timeout_s: float = 60.0) -> bool:
    """Return True once processes use less than a tenth of a core, False when they do not come to rest.

    A server may work on for seconds at calls whose client has left, and would take the core from whoever is next.
    """
    deadline = time.monotonic() + timeout_s
    still = 0
    before = sum(cpu_ticks(pid) for pid in pids)
    while still < _STILL_LOOKS:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
        now = sum(cpu_ticks(pid) for pid in pids)
        still = still + 1 if now - before <= _LOOK_S * TICKS_PER_S / 10 else 0
        before = now
    return True


def memory_mb(pid: int, *, peak: bool) -> float:
    """Return the resident memory of a process and those below it in MB: now, or at each one's peak."""
    name = "VmHWM:" if peak else "VmRSS:"
    total_kb = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                total_kb += int(line.split()[1])
    return total_kb / 1024


def busy_ticks(cores: Sequence[int]) -> int:
    """Return the processor time that all processes of the machine have used on some cores, in ticks."""
    wanted = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines())
    return sum(sum(int(ticks) for ticks in fields[_WORK]) for fields in lines if fields[0] in wanted)
