"""Measure the gateway, every check on, beside LiteLLM's proxy, Portkey's gateway and nginx as a plain proxy.

All stand before the same mock providers, take turns on the same core, and are driven by the same load, round after
round; the figures are medians, and ratios compare the same round. At the end: where in the gateway a request's
processor time goes. Peers are installed into `benchmarks/.peers`; one that cannot be is reported, and the rest goes
on. Nothing leaves the loopback interface once they are there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from contenders import MOCK, OURS, PEERS, PROXY, Contender, mock_alone, nginx_proxy, our_gateway
from facts import machine_facts
from load import NoAnswerYetError, Sample, Target, drive, patiently, sample
from machine import BenchmarkError, Cores, choose_cores, memory_mb, wait_until_idle
from peerreport import Missing, as_json, rows, table
from run import require_tools
from stages import measure_stages, stage_table
from tokens import first_token_sample
from workloads import KINDS, Kind, Provider, prove, providers

PARTS = (*KINDS, "stages")
GUARDRAILS = "pii-filter,prompt-injection-detect"
# A server that is full answers late, not wrongly.
TIMEOUT_S = 60
WARM_UP_S = 1


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by comma (default %(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="whom, by comma; empty for none (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a sample (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each cell (default %(default)s)")
    parser.add_argument("--connections", default="1,16,64,256", help="numbers of connections (default %(default)s)")
    parser.add_argument("--long-connections", default="16", help="the same for `long` (default %(default)s)")
    parser.add_argument("--guardrails", default=GUARDRAILS, help="of the gateway's key, by comma (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON, not the tables")
    chosen = parser.parse_args(argv)
    for name, known in (("parts", PARTS), ("peers", tuple(PEERS))):
        given = [each for each in getattr(chosen, name).split(",") if each]
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"--{name}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
        setattr(chosen, name, given)
    for name in ("connections", "long_connections"):
        try:
            setattr(chosen, name, [int(text) for text in getattr(chosen, name).split(",")])
        except ValueError:
            parser.error(f"--{name.replace('_', '-')} takes whole numbers by comma, such as 1,16,64")
    if min(chosen.seconds, chosen.rounds, *chosen.connections, *chosen.long_connections) < 1:
        parser.error("--seconds, --rounds and numbers of connections start at 1")
    chosen.guardrails = [name for name in chosen.guardrails.split(",") if name]
    return chosen


@dataclass(slots=True, kw_only=True)
class Bench:
    """One run: who is driven where, what came of it, and what did not."""

    cores: Cores
    folder: Path
    seconds: int
    upstream: dict[str, Provider]
    running: list[int] = field(default_factory=list)  # the servers' processes
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)

    def body(self, kind: Kind) -> Path:
        """Return the file with the request of a kind."""
        path = self.folder / f"{kind.name}.json"
        if not path.exists():
            path.write_bytes(kind.body())
        return path

    def warm_up(self, contender: Contender, kind: Kind) -> None:
        """See that a server answers a kind as it should, and drive it for a moment; a peer that fails is left out."""
        target = contender.reach(kind)
        try:
            prove(target, kind, self.body(kind).read_bytes())
        except BenchmarkError as error:
            self._leave_out(contender, error, kind)
            return
        with suppress(NoAnswerYetError):
            if kind.name != "paced":
                self._drive(target, kind)

    def take(self, contender: Contender, kind: Kind, connections: int, round_number: int) -> None:
        """Take one sample; a peer that fails is left out of that cell from then on."""
        if any(self._covers(each, contender, kind, connections) for each in self.missing):
            return
        if not wait_until_idle(self.running):
            tell("a server works on long after its clients have left; this sample may be disturbed")
        try:
            taken = patiently(
                lambda seconds: self._sample(contender, kind, connections, round_number, seconds), self.seconds
            )
        except BenchmarkError as error:
            self._leave_out(contender, error, kind, connections)
        else:
            self.samples.setdefault(kind.name, []).append(taken)

    def _sample(self, contender: Contender, kind: Kind, connections: int, round_number: int, seconds: int) -> Sample:
        take = first_token_sample if kind.name == "paced" else _throughput_sample
        return take(
            contender.reach(kind),
            mock_pid=self.upstream[kind.provider].pid,
            connections=connections,
            round_number=round_number,
            seconds=seconds,
            body=self.body(kind),
            cores=self.cores,
        )

    def _drive(self, target: Target, kind: Kind) -> None:
        drive(
            target,
            connections=4,
            seconds=WARM_UP_S,
            body=self.body(kind),
            cores=self.cores,
            timeout_s=TIMEOUT_S,
        )

    def _leave_out(self, contender: Contender, error: Exception, kind: Kind, connections: int | None = None) -> None:
        if contender.name not in PEERS:
            raise error
        tell(f"{contender.name}: {error}")
        self.missing.append(Missing(target=contender.name, why=str(error), kind=kind.name, connections=connections))

    def _covers(self, missing: Missing, contender: Contender, kind: Kind, connections: int) -> bool:
        return (
            missing.target == contender.name
            and missing.kind == kind.name
            and missing.connections in {None, connections}
        )


def _throughput_sample(target: Target, **how: Any) -> Sample:
    return sample(target, **how, timeout_s=TIMEOUT_S)


def compare(chosen: argparse.Namespace, bench: Bench) -> tuple[list[str], dict[str, Any]]:
    """Drive everybody in turn; return the tables and the figures."""
    kinds = [KINDS[name] for name in chosen.parts if name in KINDS]
    if not kinds:
        return [], {}
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        everybody = [mock_alone(bench.upstream)]
        everybody.append(stack.enter_context(nginx_proxy(bench.upstream, bench.cores, bench.folder)))
        served, facts["idle_mb"] = stack.enter_context(
            our_gateway(bench.upstream, bench.cores, bench.folder, chosen.guardrails)
        )
        everybody.append(served)
        for name in chosen.peers:
            tell(f"starting {name}")
            try:
                everybody.append(stack.enter_context(PEERS[name](bench.upstream, bench.cores, bench.folder)))
            except BenchmarkError as error:
                bench.missing.append(Missing(target=name, why=str(error)))
        facts["versions"] = {name: version for each in everybody for name, version in each.versions.items()}
        bench.running = [each.pid for each in everybody]
        for kind in kinds:
            for each in everybody:
                bench.warm_up(each, kind)
        cells = [(kind, many) for kind in kinds for many in _connections(chosen, kind)]
        tell(f"{len(cells) * len(everybody) * chosen.rounds} samples, about {chosen.seconds} s each")
        for number in range(1, chosen.rounds + 1):
            for kind, many in cells:
                tell(f"round {number} of {chosen.rounds}: {kind.name} at {many}")
                for each in everybody:
                    bench.take(each, kind, many, number)
        facts["peak_mb"] = {each.name: memory_mb(each.pid, peak=True) for each in everybody if _lives(each)}
    tables = {kind: rows(bench.samples[kind.name], mock=MOCK, proxy=PROXY, ours=OURS) for kind in kinds}
    facts["kinds"] = as_json((kind.name, bench.samples[kind.name], found) for kind, found in tables.items())
    facts["missing"] = [asdict(each) for each in bench.missing]
    texts = [f"{kind.title} ({kind.name})\n\n{table(found)}" for kind, found in tables.items()]
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in facts["peak_mb"].items())
    texts.append(f"peak memory in MB: {peaks}; the gateway before its first request {facts['idle_mb']:.0f}")
    texts += [str(each) for each in bench.missing]
    return texts, facts


def _connections(chosen: argparse.Namespace, kind: Kind) -> Sequence[int]:
    many: Sequence[int] = chosen.long_connections if kind.name == "long" else chosen.connections
    return many


def _lives(contender: Contender) -> bool:
    return Path(f"/proc/{contender.pid}").exists()


def benchmark(chosen: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the parts and return their tables and everything measured."""
    cores = choose_cores()
    tell(f"servers on core {cores.server}, load on {cores.load_list}")
    with providers(cores, folder) as upstream:
        bench = Bench(cores=cores, folder=folder, seconds=chosen.seconds, upstream=upstream)
        texts, facts = compare(chosen, bench)
        if "stages" in chosen.parts:
            tell("stages")
            found = measure_stages(
                bench.upstream, cores, folder, chosen.guardrails, seconds=chosen.seconds * chosen.rounds
            )
            facts["stages"] = [asdict(each) for each in found]
            texts.append(stage_table(found))
    facts["versions"] = machine_facts() | facts.get("versions", {})
    texts.append(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
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
