"""Where in the gateway the processor time of a request goes, by stage and by thread, under load."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import stageprobe
from contenders import our_gateway
from load import drive, patiently
from machine import BenchmarkError, Cores
from report import aligned
from stagemap import STAGES
from workloads import KINDS, Kind, Provider

PROGRAM: Final = Path(stageprobe.__file__)
WRITER: Final = "nemo-store-writer"
MEASURED: Final = ("plain", "long", "sse")
CONNECTIONS: Final = 16
_WARM_UP_S: Final = 1
_SNAPSHOT_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the profiler had counted at one moment, in nanoseconds of processor time."""

    process_ns: int
    loop_ns: int
    stages: Mapping[str, int]
    threads: Mapping[str, int]
    samples: int

    def since(self, before: Snapshot) -> Snapshot:
        """Return what was counted from then to now. A thread that has ended meanwhile counts as others."""
        return Snapshot(
            process_ns=self.process_ns - before.process_ns,
            loop_ns=self.loop_ns - before.loop_ns,
            stages={name: ns - before.stages.get(name, 0) for name, ns in self.stages.items()},
            threads={name: max(0, ns - before.threads.get(name, 0)) for name, ns in self.threads.items()},
            samples=self.samples - before.samples,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Microseconds of processor time for a request of a kind: the event loop's by stage, and that of other threads."""

    kind: str
    requests: int
    samples: int
    stages: Mapping[str, float]
    writer_us: float
    others_us: float
    total_us: float


def costs(kind: str, used: Snapshot, requests: int) -> StageCosts:
    """Return what each request took. What the loop used after the last sample is spread over the stages."""
    sampled_ns = sum(used.stages.values())
    scale = used.loop_ns / sampled_ns if sampled_ns else 0.0
    writer_ns = used.threads.get(WRITER, 0)
    return StageCosts(
        kind=kind,
        requests=requests,
        samples=used.samples,
        stages={name: used.stages.get(name, 0) * scale / 1e3 / requests for name in STAGES},
        writer_us=writer_ns / 1e3 / requests,
        others_us=max(0, used.process_ns - used.loop_ns - writer_ns) / 1e3 / requests,
        total_us=used.process_ns / 1e3 / requests,
    )


def measure_stages(
    upstream: Mapping[str, Provider], cores: Cores, folder: Path, guardrails: Sequence[str], *, seconds: int
) -> list[StageCosts]:
    """Drive a gateway that has the profiler in it with each kind of call."""
    place = folder / "stages"
    place.mkdir()
    snapshot = place / "snapshot.json"
    program = (sys.executable, str(PROGRAM), str(snapshot))
    found = []
    with our_gateway(upstream, cores, place, guardrails, program) as (served, _):
        for kind in (KINDS[name] for name in MEASURED):
            body = place / f"{kind.name}.json"
            body.write_bytes(kind.body())

            def measure(lasting: int, kind: Kind = kind, body: Path = body) -> StageCosts:
                before = _take(served.pid, snapshot)
                driven = drive(served.reach(kind), connections=CONNECTIONS, seconds=lasting, body=body, cores=cores)
                return costs(kind.name, _take(served.pid, snapshot).since(before), driven["requests"])

            patiently(measure, _WARM_UP_S)
            found.append(patiently(measure, seconds))
    return found


def stage_table(found: Sequence[StageCosts]) -> str:
    """Return the costs as a table, a column for each kind of call."""
    named = [
        *((name, [each.stages[name] for each in found]) for name in STAGES),
        ("store's writer thread", [each.writer_us for each in found]),
        ("other threads", [each.others_us for each in found]),
        ("all", [each.total_us for each in found]),
    ]
    heads = ["", "stage", *(head for each in found for head in (f"{each.kind} µs", "%"))]
    rows = [heads]
    for name, values in named:
        cells = [
            cell
            for value, each in zip(values, found, strict=True)
            for cell in (f"{value:,.1f}", f"{100 * value / each.total_us:.0f}")
        ]
        rows.append(["", name, *cells])
    counted = ", ".join(f"{each.kind} {each.requests:,} requests and {each.samples:,} samples" for each in found)
    return (
        f"processor time of the gateway for a request at {CONNECTIONS} connections, by stage\n\n"
        f"{aligned(rows)}\n\n{counted}"
    )


def _take(pid: int, path: Path) -> Snapshot:
    """Ask the profiler for a snapshot. Raises BenchmarkError when none comes."""
    before = _number(path)
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + _SNAPSHOT_TIMEOUT_S
    while _number(path) == before:
        if time.monotonic() > deadline:
            raise BenchmarkError("the gateway's profiler wrote no snapshot; it ended, or its event loop stands still")
        time.sleep(0.005)
    document = _read(path)
    return Snapshot(**{name: document[name] for name in ("process_ns", "loop_ns", "stages", "threads", "samples")})


def _number(path: Path) -> int:
    number: int = _read(path).get("number", 0)
    return number


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document
