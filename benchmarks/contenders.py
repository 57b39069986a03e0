"""The servers of the comparison, each before the same providers: mock alone, plain proxy, gateway, LiteLLM, Portkey."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import peerinstall
from load import Target
from machine import Cores, free_port, running, wait_for_port
from servers import gateway_before, model_of
from workloads import CHAT, Kind, Provider, plain_proxies

MOCK: Final = "mock alone"
PROXY: Final = "nginx proxy"
OURS: Final = "gateway"
LITELLM: Final = "LiteLLM"
PORTKEY: Final = "Portkey"
LOOPBACK: Final = Path(__file__).with_name("loopback.cjs")
# LiteLLM imports for half a minute on a busy core.
_START_TIMEOUT_S: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server that is driven: its name, its process, and how each kind of call reaches it."""

    name: str
    pid: int
    reach: Callable[[Kind], Target]
    versions: Mapping[str, str]


def mock_alone(upstream: Mapping[str, Provider]) -> Contender:
    """Return the providers themselves: what no server between can be faster than."""

    def reach(kind: Kind) -> Target:
        provider = upstream[kind.provider]
        return Target(name=MOCK, url=provider.base_url + CHAT, pid=provider.pid)

    return Contender(name=MOCK, pid=upstream["mock"].pid, reach=reach, versions={})


@contextmanager
def nginx_proxy(upstream: Mapping[str, Provider], cores: Cores, folder: Path) -> Iterator[Contender]:
    """Run the floor for anything between client and provider on one core."""
    with plain_proxies(upstream, cores, folder) as (port, pid):

        def reach(kind: Kind) -> Target:
            return Target(name=PROXY, url=f"http://127.0.0.1:{port}/{kind.provider}{CHAT}", pid=pid)

        yield Contender(name=PROXY, pid=pid, reach=reach, versions={})


@contextmanager
def our_gateway(
    upstream: Mapping[str, Provider],
    cores: Cores,
    folder: Path,
    guardrails: Sequence[str],
    program: Sequence[str] = (),
) -> Iterator[tuple[Contender, float]]:
    """Run the gateway with every check on; yield it and its memory in MB before the first request."""
    bases = {name: provider.base_url for name, provider in upstream.items()}
    with gateway_before(bases, cores, folder, guardrails, name=OURS, program=program) as (target, idle_mb):
        yield Contender(name=OURS, pid=target.pid, reach=lambda _: target, versions={}), idle_mb


@contextmanager
def litellm(upstream: Mapping[str, Provider], cores: Cores, folder: Path) -> Iterator[Contender]:
    """Run LiteLLM's proxy with its one key and without a database. Raises BenchmarkError when that cannot be.

    It checks the key and finds the model. Its virtual keys, budgets and log need a database and Prisma's engine, which
    is in no package: it does less than the gateway here, and is the faster for it.
    """
    installed = peerinstall.litellm()
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    home = folder / "litellm"
    home.mkdir(mode=0o700)
    config = {
        "model_list": [
            {
                "model_name": model_of(name),
                "litellm_params": {"model": "openai/gpt-bench", "api_base": provider.base_url, "api_key": "none"},
            }
            for name, provider in upstream.items()
        ],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    path = home / "config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    # Its own advice for production: no debug log, and no table of prices from the network.
    env = _plain_environment(home) | {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    options = ("--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    with _started((*installed.command, *options), port, cores, home, env) as process:
        target = Target(name=LITELLM, url=f"http://127.0.0.1:{port}/v1{CHAT}", pid=process.pid, key=key)
        yield Contender(name=LITELLM, pid=process.pid, reach=lambda _: target, versions=installed.versions)


@contextmanager
def portkey(upstream: Mapping[str, Provider], cores: Cores, folder: Path) -> Iterator[Contender]:
    """Run Portkey's gateway. Raises BenchmarkError when that cannot be.

    It checks nothing: where to send a call stands in its headers.
    """
    installed = peerinstall.portkey()
    port = free_port()
    home = folder / "portkey"
    home.mkdir(mode=0o700)
    node, *program = installed.command
    argv = (node, "--require", str(LOOPBACK), *program, f"--port={port}", "--headless")
    with _started(argv, port, cores, home, _plain_environment(home) | {"NODE_ENV": "production"}) as process:
        target = Target(name=PORTKEY, url=f"http://127.0.0.1:{port}/v1{CHAT}", pid=process.pid)

        def reach(kind: Kind) -> Target:
            where = ("x-portkey-custom-host", upstream[kind.provider].base_url)
            return replace(target, headers=(("x-portkey-provider", "openai"), where))

        yield Contender(name=PORTKEY, pid=process.pid, reach=reach, versions=installed.versions)


PEERS: Final = {LITELLM: litellm, PORTKEY: portkey}


@contextmanager
def _started(
    argv: Sequence[str], port: int, cores: Cores, home: Path, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    log = home / "log"
    with running(argv, cores=str(cores.server), log=log, env=env) as process:
        wait_for_port(port, process, log, timeout_s=_START_TIMEOUT_S)
        yield process


def _plain_environment(home: Path) -> dict[str, str]:
    """Return an environment without anybody's keys, proxies and settings."""
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "LANG": "C.UTF-8"}
