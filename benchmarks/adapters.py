"""What an adapter adds to a call of its framework, in time and memory, and what importing the SDK costs.

Each installed adapter is measured in a process of its own against the bare framework: same gateway, same role's key,
same run, the two in turn call by call. `python benchmarks/adapters.py` prints the tables.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
from contenders_adapters import CONTENDERS, Contender, Role
from machine import BenchmarkError, Cores, choose_cores, running, tail
from report import aligned

from nemo_agents import AgentRole, Fleet
from nemo_agents.client import Client
from nemo_agents.provision import operate
from nemo_agents.provision.apply import apply
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.secret import Secret

FLEET: Final = Fleet("bench", roles=[AgentRole("bench", models=["gpt-4o-mini"], budget="$1000/day")])
GROUP: Final = "nemo_agents.adapters"
START_S: Final = 30.0
WARM_UP: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison. Times are microseconds of wall clock and of this process's processor time."""

    p50_us: float
    cpu_us: float
    kept_bytes: float
    """What stays in memory for each further call."""
    peak_kb: float
    """The most that a call needs while it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A contender beside its bare framework. The ratio is the median of those of each round."""

    name: str
    framework: str
    bare: Side
    ours: Side
    ratio: float


# --- in the process of one adapter ----------------------------------------------------------------------------------
def time_both(bare: Callable[[], object], ours: Callable[[], object], calls: int) -> tuple[list[float], list[float]]:
    """Make the calls of one round in turn, each side first every other time.

    Returns two pairs, bare and ours, in us: the medians of the wall clock, and the means of the processor time.
    """
    wall: tuple[list[float], list[float]] = ([], [])
    cpu = [0.0, 0.0]
    sides = (bare, ours)
    for number in range(calls):
        for side in ((0, 1), (1, 0))[number % 2]:
            cpu_began, began = time.process_time(), time.perf_counter()
            sides[side]()
            wall[side].append((time.perf_counter() - began) * 1e6)
            cpu[side] += (time.process_time() - cpu_began) * 1e6
    return [median(times) for times in wall], [spent / calls for spent in cpu]


def memory_of(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Return the bytes that each call leaves behind, and the KB that one needs at most."""
    tracemalloc.start()
    try:
        for _ in range(WARM_UP):
            call()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        _, peak = tracemalloc.get_traced_memory()
        for _ in range(calls):
            call()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / (calls + 1), (peak - before) / 1024


def measure(contender: Contender, url: str, home: Path, *, calls: int, rounds: int) -> Measured:
    """Measure one contender within a run and a step."""
    fleet = FLEET.connect(url, home=home, environ={})
    with fleet.run(f"bench {contender.name}") as run, run.step("bench", role="bench") as step:
        role = Role(member=fleet["bench"], model="gpt-4o-mini", headers=dict(step.headers()))
        bare, ours = contender.bare(role), contender.ours(role)
        for _ in range(WARM_UP):
            bare()
            ours()
        taken = [time_both(bare, ours, calls) for _ in range(rounds)]
        memory = [memory_of(call, calls) for call in (bare, ours)]
    sides = [
        Side(
            p50_us=median(wall[side] for wall, _ in taken),
            cpu_us=median(cpu[side] for _, cpu in taken),
            kept_bytes=memory[side][0],
            peak_kb=memory[side][1],
        )
        for side in (0, 1)
    ]
    return Measured(
        name=contender.name,
        framework=f"{contender.framework} {version(contender.framework)}",
        bare=sides[0],
        ours=sides[1],
        ratio=median(wall[1] / wall[0] for wall, _ in taken),
    )


# --- the command ----------------------------------------------------------------------------------------------------
@contextmanager
def gateway(folder: Path, cores: Cores) -> Iterator[tuple[str, Path]]:
    """Run a gateway with the sandbox as its provider and the fleet provisioned; yield its address and home."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    log = folder / "gateway.log"
    argv = (sys.executable, "-m", "nemo_agents", "gateway", "--port", "0", "--home", str(home))
    env = {name: value for name, value in os.environ.items() if not name.startswith("NEMO_")}
    env |= {"PYTHONUNBUFFERED": "1", "NEMO_SANDBOX": "on"}
    with running(argv, cores=str(cores.server), log=log, env=env) as process:
        url = _address(log, lambda: process.poll() is None)
        admin = Secret((home / "admin.key").read_text(encoding="utf-8").strip())
        store = FileKeyStore(home / "keys.json")
        with Client(url, admin) as client:
            client.run(apply(client.run(operate.prepare(FLEET, url, store)), store))
        yield url, home


def _address(log: Path, lives: Callable[[], bool]) -> str:
    deadline = time.monotonic() + START_S
    while lives() and time.monotonic() < deadline:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            try:
                if httpx.get(f"{found[0]}/health/live", timeout=1.0, trust_env=False).is_success:
                    return found[0]
            except httpx.TransportError:
                pass  # it has printed its address and does not listen yet
        time.sleep(0.02)
    raise BenchmarkError(f"the gateway did not start:\n{tail(log)}")


def in_own_process(name: str, url: str, home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a contender in a process of its own. Raises BenchmarkError with what it said when it fails."""
    argv = (sys.executable, __file__, "--only", name, "--url", url, "--home", str(home))
    sizes = ("--calls", str(options.calls), "--rounds", str(options.rounds))
    done = subprocess.run((*argv, *sizes), capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise BenchmarkError(f"{name}: {done.stderr.strip()[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def import_ms(modules: Sequence[str], rounds: int) -> dict[str, float]:
    """Return how long each import takes in a fresh interpreter: the median, in ms, the modules in turn."""
    program = "import sys, time; t = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - t)"
    # Compiled once, as after an installation: the first round writes what is missing, and does not count.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    taken: dict[str, list[float]] = {module: [] for module in modules}
    for number in range(rounds + 1):
        for module in modules:
            argv = (sys.executable, "-c", program, module)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True, env=env)
            if number:
                taken[module].append(float(done.stdout.splitlines()[-1]) * 1000)
    return {module: median(times) for module, times in taken.items()}


def call_table(measured: Sequence[dict[str, Any]]) -> str:
    """Return what was measured as a table."""
    rows = [["", "call", "bare µs", "+µs", "ratio", "bare CPU µs", "+CPU µs", "+kept B/call", "+peak KB"]]
    for found in measured:
        bare, ours = found["bare"], found["ours"]
        rows.append(
            [
                "",
                f"{found['name']} ({found['framework']})",
                f"{bare['p50_us']:,.0f}",
                f"{ours['p50_us'] - bare['p50_us']:+,.0f}",
                f"{found['ratio']:.2f}",
                f"{bare['cpu_us']:,.0f}",
                f"{ours['cpu_us'] - bare['cpu_us']:+,.0f}",
                f"{ours['kept_bytes'] - bare['kept_bytes']:+,.0f}",
                f"{ours['peak_kb'] - bare['peak_kb']:+,.1f}",
            ]
        )
    return aligned(rows)


def import_table(taken: dict[str, float]) -> str:
    """Return the times of imports as a table."""
    rows = [["", "import", "ms", "/ openai"]]
    rows += [["", name, f"{ms:,.0f}", f"{ms / taken['openai']:.2f}"] for name, ms in taken.items()]
    return aligned(rows)


def installed() -> list[Contender]:
    """Return the contenders whose adapter and framework are installed here; the plain client always is."""
    adapters = {entry.value for entry in entry_points(group=GROUP)}
    return [contender for contender in CONTENDERS if contender.adapter is None or contender.adapter in adapters]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="calls of each side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help="measure this one in this process; needs --url and --home")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url is not None:
        contender = next(each for each in CONTENDERS if each.name == options.only)
        found = measure(contender, options.url, options.home, calls=options.calls, rounds=options.rounds)
        print(json.dumps(asdict(found)))
        return 0
    contenders = [each for each in installed() if options.only in (None, each.name)]
    try:
        cores = choose_cores()
        os.sched_setaffinity(0, cores.load)
        with tempfile.TemporaryDirectory() as folder, gateway(Path(folder), cores) as (url, home):
            measured = [in_own_process(each.name, url, home, options) for each in contenders]
    except BenchmarkError as exc:
        print(f"adapters: {exc}", file=sys.stderr)
        return 1
    modules = [name for each in contenders for name in (*each.imports, each.adapter) if name is not None]
    taken = import_ms(list(dict.fromkeys(("openai", "nemo_agents", *modules))), options.rounds)
    if options.json:
        print(json.dumps({"calls": measured, "import_ms": taken}))
        return 0
    print(call_table(measured))
    print()
    print(import_table(taken))
    missing = sorted({each.adapter for each in CONTENDERS if each.adapter} - {each.adapter for each in contenders})
    if missing and options.only is None:
        print(f"\nnot installed here, and so not measured: {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
