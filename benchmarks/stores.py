"""Measure what each store costs: SQLite in one process, PostgreSQL and Redis under one gateway and under three.

Four parts: `pairs` (holds and posts per second, beside the bare statements), `http` (what a request gains in latency),
`restart` (a start after a long day) and `fairness` (what a noisy role costs the others). The servers are started here,
in scratch folders on the loopback, and end with it. `benchmarks/README.md` says how to read the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import inspect
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import FrameType, ModuleType
from typing import Any

from load import Target, drive, sample
from machine import BenchmarkError, Cores, choose_cores
from report import summarize, table
from servers import gateway, mock, plain_proxy, request_body
from storelife import fairness, median_text, restart_seconds
from storepairs import (
    Pairs,
    counter_in_memory,
    postgres_floor,
    postgres_replicas,
    postgres_store,
    sqlite_check_then_charge,
    sqlite_floor,
    sqlite_store,
)

PARTS = ("pairs", "http", "restart", "fairness")
SERVICES = Path(__file__).parents[1] / "tests" / "services.py"
ENTRIES = (0, 100_000)
STARTS = 3
REPLICAS = 3
Contender = Callable[[int, float, Path], Pairs]


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by comma (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a sample (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each cell (default %(default)s)")
    parser.add_argument("--callers", default="1,64", help="callers of a store at a time (default %(default)s)")
    parser.add_argument("--sqlite-only", action="store_true", help="leave out PostgreSQL and Redis")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON, not the tables")
    chosen = parser.parse_args(argv)
    chosen.parts = chosen.parts.split(",")
    if unknown := sorted(set(chosen.parts) - set(PARTS)):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    try:
        chosen.callers = [int(text) for text in chosen.callers.split(",")]
    except ValueError:
        parser.error("--callers takes whole numbers by comma, such as 1,64")
    if min(chosen.seconds, chosen.rounds, *chosen.callers) < 1:
        parser.error("--seconds, --rounds and --callers start at 1")
    return chosen


class Servers:
    """A PostgreSQL and a Redis, with a fresh database for whoever asks."""

    def __init__(self, postgres: Any, redis: Any) -> None:
        self._postgres, self._redis = postgres, redis
        self._made = 0

    def database(self) -> str:
        """Make an empty database and return its address."""
        import psycopg  # noqa: PLC0415 - an optional driver

        self._made += 1
        name = f"bench_{self._made}"
        with psycopg.connect(self._postgres.url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
        return f"{self._postgres.url.rpartition('/')[0]}/{name}"

    def flags(self) -> tuple[str, ...]:
        """Return the flags of a gateway on a fresh database and an empty Redis."""
        import redis  # noqa: PLC0415 - an optional driver

        with redis.Redis.from_url(self._redis.url) as cache:
            cache.flushall()
        return ("--database", self.database(), "--cache", self._redis.url)


@contextmanager
def servers(cores: Cores) -> Iterator[Servers]:
    """Run both on the cores of the load, durably: the tests' PostgreSQL does without the disk, this one does not."""
    services = _services()
    with services.run_postgres("-c", "fsync=on") as postgres, services.run_redis() as redis:
        for service in (postgres, redis):
            os.sched_setaffinity(service.pid, cores.load)  # what it forks from now on inherits it
        yield Servers(postgres, redis)


def _services() -> ModuleType:
    """Return the tests' own way to start a PostgreSQL and a Redis."""
    spec = importlib.util.spec_from_file_location("services", SERVICES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["services"] = module  # dataclasses look there for what their annotations mean
    spec.loader.exec_module(module)
    return module


# --- pairs ----------------------------------------------------------------------------------------------------------
def contenders(shared: Servers | None) -> dict[str, tuple[str, Contender]]:
    """Return what is measured, and against which floor."""

    def of(coroutine: Callable[..., Any], *before: Any, in_folder: bool = True) -> Contender:
        def run(callers: int, seconds: float, folder: Path) -> Pairs:
            values = (folder, *before) if in_folder else before
            measured: Pairs = asyncio.run(coroutine("", *values, callers=callers, seconds=seconds))
            return measured

        return run

    found: dict[str, tuple[str, Contender]] = {
        "counter in memory": ("counter in memory", of(counter_in_memory, in_folder=False)),
        "check, then charge (SQLite)": ("guarded updates (SQLite)", of(sqlite_check_then_charge)),
        "guarded updates (SQLite)": ("guarded updates (SQLite)", of(sqlite_floor, "NORMAL")),
        "SQLite store, process": ("guarded updates (SQLite)", of(sqlite_store, "process")),
        "guarded updates (SQLite, power)": ("guarded updates (SQLite, power)", of(sqlite_floor, "FULL")),
        "SQLite store, power": ("guarded updates (SQLite, power)", of(sqlite_store, "power")),
    }
    if shared is not None:
        floor = "guarded updates (PostgreSQL)"

        def on_database(measure: Callable[..., Any]) -> Contender:
            def run(callers: int, seconds: float, _: Path) -> Pairs:
                done = measure("", shared.database(), callers=callers, seconds=seconds)
                measured: Pairs = done if isinstance(done, Pairs) else asyncio.run(done)
                return measured

            return run

        found[floor] = (floor, on_database(postgres_floor))
        found["PostgreSQL store"] = (floor, on_database(postgres_store))
        found["PostgreSQL store, 3 processes"] = (floor, on_database(postgres_replicas))
    return found


def measure_pairs(
    chosen: argparse.Namespace, folder: Path, shared: Servers | None
) -> dict[tuple[str, int], list[Pairs]]:
    """Measure every contender in turn, round after round."""
    found: dict[tuple[str, int], list[Pairs]] = {}
    everybody = contenders(shared)
    for number in range(1, chosen.rounds + 1):
        for callers in chosen.callers:
            tell(f"pairs: round {number} of {chosen.rounds}, {callers} callers")
            for name, (_, run) in everybody.items():
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    found.setdefault((name, callers), []).append(run(callers, chosen.seconds, Path(place)))
    return found


def pairs_table(found: dict[tuple[str, int], list[Pairs]], floors: dict[str, str]) -> str:
    """Return the medians as a table; `/ floor` compares samples of the same round."""
    rows = [["callers", "store", "pairs/s", "hold p50 µs", "hold p99 µs", "/ floor"]]
    for (name, callers), samples in found.items():
        of_floor = found[floors[name], callers]
        ratio = median(ours.per_s / floor.per_s for ours, floor in zip(samples, of_floor, strict=True))
        per_s, p50_us, p99_us = (
            median(getattr(each, figure) for each in samples) for figure in ("per_s", "p50_us", "p99_us")
        )
        rows.append([str(callers), name, f"{per_s:,.0f}", f"{p50_us:,.0f}", f"{p99_us:,.0f}", f"{ratio:.2f}"])
    return _aligned(sorted(rows[1:], key=lambda row: int(row[0])), rows[0])


def _aligned(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    lines = []
    for number, row in enumerate((head, *rows)):
        if number and (number == 1 or row[0] != rows[number - 2][0]):
            lines.append("")
        cells = [
            text.ljust(width) if index == 1 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# --- http -----------------------------------------------------------------------------------------------------------
def measure_http(
    chosen: argparse.Namespace, folder: Path, cores: Cores, shared: Servers | None
) -> tuple[str, list[Any]]:
    """Drive the mock alone, the plain proxy, and a gateway on each store, all on the same core."""
    body = folder / "request.json"
    body.write_bytes(request_body())
    with ExitStack() as stack:
        upstream = stack.enter_context(mock(cores, folder))
        proxy = stack.enter_context(plain_proxy(upstream, cores, folder))
        targets: list[Target] = [upstream, proxy]
        on = {"gateway SQLite": ()} | ({"gateway PG+Redis": shared.flags()} if shared is not None else {})
        for name, flags in on.items():
            target, _ = stack.enter_context(gateway(upstream, cores, folder, (), name=name, flags=flags))
            targets.append(target)
        for target in targets:
            drive(target, connections=16, seconds=1, body=body, cores=cores)
        samples = []
        for number in range(1, chosen.rounds + 1):
            tell(f"http: round {number} of {chosen.rounds}")
            samples += [
                sample(
                    target,
                    mock_pid=upstream.pid,
                    connections=connections,
                    round_number=number,
                    seconds=chosen.seconds,
                    body=body,
                    cores=cores,
                )
                for connections in (1, 16)
                for target in targets
            ]
    return table(summarize(samples, mock=upstream.name, proxy=proxy.name)), [asdict(each) for each in samples]


# --- fairness -------------------------------------------------------------------------------------------------------
def measure_fairness(chosen: argparse.Namespace, folder: Path, shared: Servers | None) -> dict[str, dict[str, float]]:
    """Measure what a noisy role costs the others: on each store, and with the load spread over several gateways."""
    seconds = max(6, chosen.seconds * 3)
    found = {"SQLite": fairness(folder, seconds=seconds)}
    if shared is not None:
        for name, replicas in {"PG+Redis": 1, f"PG+Redis, {REPLICAS} replicas": REPLICAS}.items():
            found[name] = fairness(folder, seconds=seconds, flags=shared.flags(), replicas=replicas)
    return found


# --- the command ----------------------------------------------------------------------------------------------------
def benchmark(chosen: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the parts and return their tables and everything measured."""
    cores = choose_cores()
    texts, facts = [], dict[str, Any]()
    with ExitStack() as stack:
        shared = None if chosen.sqlite_only else stack.enter_context(servers(cores))
        if "pairs" in chosen.parts:
            found = measure_pairs(chosen, folder, shared)
            texts.append(pairs_table(found, {name: floor for name, (floor, _) in contenders(shared).items()}))
            facts["pairs"] = {
                f"{name} at {callers}": [asdict(s) for s in some] for (name, callers), some in found.items()
            }
        if "http" in chosen.parts:
            text, facts["http"] = measure_http(chosen, folder, cores, shared)
            texts.append(text)
        if "restart" in chosen.parts:
            tell("restart")
            facts["restart_s"] = {
                entries: restart_seconds(folder, entries=entries, times=STARTS) for entries in ENTRIES
            }
            told = ", ".join(f"{median_text(some)} with {n:,} entries" for n, some in facts["restart_s"].items())
            texts.append(f"from command to ready after kill -9: {told}")
        if "fairness" in chosen.parts:
            tell("fairness")
            facts["fairness"] = measure_fairness(chosen, folder, shared)
            texts += [
                f"p95 of 20 normal roles on {name}: {each['alone_ms']:.1f} ms alone, {each['beside_ms']:.1f} ms beside "
                f"a role at 50 times their rate (x {each['ratio']:.2f})"
                for name, each in facts["fairness"].items()
            ]
    return "\n\n".join(texts), facts


def tell(text: str) -> None:
    """Say how far we are, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(argv: list[str]) -> int:
    """Run the benchmark and return the exit status."""
    chosen = options(argv)
    signal.signal(signal.SIGTERM, _end)  # so that the servers end with us
    try:
        with tempfile.TemporaryDirectory(prefix="nemo-bench-") as folder:
            text, everything = benchmark(chosen, Path(folder))
    except BenchmarkError as error:
        tell(f"benchmark: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(everything, indent=2) if chosen.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
