"""Measure the gateway, every check on, against nginx as a plain proxy on the same core and the bare mock.

All three are driven in turn, round after round, at several numbers of connections; the figures are medians.
Nothing leaves the loopback interface. `benchmarks/README.md` says how to read the table.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from load import Sample, Target, drive, sample
from machine import BenchmarkError, Cores, choose_cores, memory_mb
from report import as_json, summarize, table
from servers import gateway, mock, plain_proxy, request_body, start_seconds

WARM_UP_S = 1
STARTS = 3


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--seconds", type=int, default=3, help="length of a sample (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each cell (default %(default)s)")
    parser.add_argument("--connections", default="1,16,64", help="numbers of connections (default %(default)s)")
    parser.add_argument("--guardrails", default="", help="guardrails of the key, by comma (default none)")
    parser.add_argument("--baseline", action="store_true", help="leave out the gateway: try the machine alone")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON, not the table")
    chosen = parser.parse_args(argv)
    try:
        chosen.connections = [int(text) for text in chosen.connections.split(",")]
    except ValueError:
        parser.error("--connections takes whole numbers by comma, such as 1,16,64")
    if min(chosen.seconds, chosen.rounds, *chosen.connections) < 1:
        parser.error("--seconds, --rounds and --connections start at 1")
    return chosen


def measure(targets: list[Target], mock_pid: int, chosen: argparse.Namespace, body: Path, cores: Cores) -> list[Sample]:
    """Warm every target up, then take the samples, interleaved so that a slow minute hits all alike."""
    for target in targets:
        drive(target, connections=max(chosen.connections), seconds=WARM_UP_S, body=body, cores=cores)
    samples = []
    for number in range(1, chosen.rounds + 1):
        tell(f"round {number} of {chosen.rounds}")
        samples += [
            sample(
                target,
                mock_pid=mock_pid,
                connections=connections,
                round_number=number,
                seconds=chosen.seconds,
                body=body,
                cores=cores,
            )
            for connections in chosen.connections
            for target in targets
        ]
    return samples


def benchmark(chosen: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run it all and return the table and everything measured."""
    cores = choose_cores()
    body = folder / "request.json"
    body.write_bytes(request_body())
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        upstream = stack.enter_context(mock(cores, folder))
        proxy = stack.enter_context(plain_proxy(upstream, cores, folder))
        targets = [upstream, proxy]
        if not chosen.baseline:
            facts["start_s"] = start_seconds(upstream, cores, folder, STARTS)
            guardrails = [name for name in chosen.guardrails.split(",") if name]
            served, facts["idle_mb"] = stack.enter_context(gateway(upstream, cores, folder, guardrails))
            targets.append(served)
        seconds = len(targets) * (WARM_UP_S + chosen.rounds * len(chosen.connections) * chosen.seconds)
        tell(f"server on core {cores.server}, load on {cores.load_list}; about {seconds} s")
        samples = measure(targets, upstream.pid, chosen, body, cores)
        facts["peak_mb"] = {target.name: memory_mb(target.pid, peak=True) for target in targets}
    figures = summarize(samples, mock=upstream.name, proxy=proxy.name)
    parts = [table(figures), memory_and_start(facts)]
    if disturbed := sum(not item.clean for item in figures):
        parts.append(f"{disturbed} of {len(figures)} rows have no undisturbed sample: something else uses these cores")
    return "\n\n".join(parts), as_json(figures, samples, **facts)


def memory_and_start(facts: dict[str, Any]) -> str:
    """Return the lines below the table."""
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in facts["peak_mb"].items())
    lines = [f"peak memory in MB: {peaks}"]
    if "start_s" in facts:
        started_s = median(facts["start_s"])
        lines.append(f"gateway: idle {facts['idle_mb']:.0f} MB, lives {started_s:.2f} s after its command")
    return "\n".join(lines)


def require_tools() -> None:
    """Raise BenchmarkError when the machine lacks what a run needs."""
    if not sys.platform.startswith("linux"):
        raise BenchmarkError("needs Linux: cores and memory are read from /proc")
    if missing := [name for name in ("taskset", "wrk") if shutil.which(name) is None]:
        raise BenchmarkError(f"{' and '.join(missing)} missing; .ci/install-system bench installs it")


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
        require_tools()
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
