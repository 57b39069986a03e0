"""The bench of these tests: a gateway in a process of its own (`faults_process`), before the faulty provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
from faulty_provider import FaultyProvider
from gateway_bench import PRICE, PROVIDER_KEY, Bench, settings_for

from nemo_agents.secret import Secret

MIB = 1 << 20
NO_NAME = ".".join(["x" * 60] * 5) + ".invalid"  # no resolver is asked for a name so long
TIMEOUT_S = 0.4  # of everything that a provider can be late with, at this gateway


@dataclass(kw_only=True)
class WatchedGateway:
    """The handle of such a process, which can stand in a bench."""

    url: str
    admin_key: Secret
    home: Path
    process: subprocess.Popen[str] = field(repr=False)

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return read_line(self.process)

    def measure(self) -> dict[str, Any]:
        return self.ask("measure")

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Measure until something has become true; return that measurement."""
        deadline = time.monotonic() + 20
        while not condition(found := self.measure()):
            assert time.monotonic() < deadline, f"it did not come true: {found}"
        return found

    def state(self, group: str, model: str) -> str:
        """How a group's deployment of one of the faulty provider's models stands."""
        state: str = self.ask("deployments").get(f"{group}/faulty/{model}", {"state": "ready"})["state"]
        return state

    def advance(self, seconds: float) -> None:
        """Move the gateway's clock."""
        self.ask(f"advance {seconds}")


def read_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the gateway's process ended with {process.wait()}"
    found: dict[str, Any] = json.loads(line)
    return found


def providers_before(faulty: FaultyProvider) -> dict[str, dict[str, Any]]:
    """The faulty provider, and the same one where no connection comes about."""
    tls_port = faulty.tls_root.rpartition(":")[2]
    return {
        "faulty": {"base_url": faulty.base_url, "api_key_env": "FAULTY_API_KEY"},
        "refused": {"base_url": "http://127.0.0.1:9/v1"},
        "nowhere": {"base_url": f"https://{NO_NAME}/v1"},
        "metadata": {"base_url": "https://169.254.169.254/v1"},
        "speaks-no-tls": {"base_url": faulty.base_url.replace("http:", "https:")},
        "wants-tls": {"base_url": f"http://127.0.0.1:{tls_port}/v1"},
        "untrusted": {"base_url": f"{faulty.tls_root}/v1"},
    }


@contextmanager
def watched_gateway(home: Path, faulty: FaultyProvider, **changes: Any) -> Iterator[WatchedGateway]:
    """Run a gateway whose providers have little time."""
    settings = settings_for(faulty, **{"providers": providers_before(faulty), **short(TIMEOUT_S), **changes})
    names = [*settings["prices"], *(f"{name}/ok" for name in settings["providers"])]
    settings["prices"] = dict.fromkeys(names, PRICE)
    with running_process(home, settings) as gateway:
        yield gateway


def short(timeout_s: float) -> dict[str, Any]:
    """Settings in which everything has to happen soon, and a failed attempt may be followed by one more."""
    waits = ("first_byte_timeout_s", "first_token_timeout_s", "idle_timeout_s")
    return {"port": 0, "retries": 1, "heartbeat_s": 0, **dict.fromkeys(waits, timeout_s)}


@contextmanager
def running_process(home: Path, settings: Mapping[str, Any]) -> Iterator[WatchedGateway]:
    root = Path(__file__).parents[2]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "FAULTY_API_KEY": PROVIDER_KEY}
    command = [sys.executable, str(Path(__file__).with_name("faults_process.py")), str(home)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, **pipes) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            first = read_line(process)
            yield WatchedGateway(url=first["url"], admin_key=Secret(first["admin_key"]), home=home, process=process)
            process.stdin.close()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


@dataclass(kw_only=True)
class FaultBench(Bench):
    """The bench of the gateway's tests, before a gateway in a process of its own."""

    gateway: WatchedGateway  # type: ignore[assignment]
    groups: list[str] = field(default_factory=list)
    threads: ClassVar[int] = 16

    def all_over(self) -> None:
        self.gateway.until(lambda found: not found["in_flight"])

    def group(self, *models: str, retries: int | None = None) -> str:
        """Declare a group of the test's fleet whose deployments are asked in this order; return its name."""
        name = f"{self.fleet}-{len(self.groups)}"
        self.groups.append(name)
        options = {} if retries is None else {"nemo_retries": retries}
        for order, model in enumerate(models):
            params = {"model": model, "order": order}
            info = {"id": f"{name}/{model}", "team_id": self.fleet, **options}
            self.ok("POST", "/model/new", {"model_name": name, "litellm_params": params, "model_info": info})
        return name


@contextmanager
def fault_bench(gateway: WatchedGateway, faulty: FaultyProvider) -> Iterator[FaultBench]:
    """A bench whose books are checked at the end."""
    faulty.reset()
    with (
        httpx.Client(
            base_url=gateway.url, trust_env=False, verify=False, timeout=30, limits=httpx.Limits(max_connections=None)
        ) as http,
        ThreadPoolExecutor(FaultBench.threads) as pool,
    ):
        ready = FaultBench(gateway=gateway, faulty=faulty, http=http, pool=pool)
        posted_before = ready.posted()
        yield ready
        ready.check_books(posted_before)
