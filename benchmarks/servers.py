"""The servers that are compared: an nginx as the provider, an nginx before it, and the gateway.

What the benchmark knows of the gateway (command, configuration, admin API) stands below LIMITS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from load import Target
from machine import BenchmarkError, Cores, free_port, memory_mb, running, tail, wait_for_port

PATH = "/v1/chat/completions"
ANSWER_BYTES = 1024


def model_of(provider: str) -> str:
    """Return the model that is asked for where a provider is meant."""
    return f"{provider}/gpt-bench"


def request_body() -> bytes:
    """Return the chat completion that every request asks for, about 1 KB."""
    question = "Compare state-based and operation-based replicated data types for a shared text editor. " * 9
    messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": question}]
    return json.dumps({"model": model_of("mock"), "messages": messages, "max_tokens": 256}).encode()


def answer_body() -> str:
    """Return the provider's answer, of ANSWER_BYTES, with its usage."""
    answer = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ""},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 180, "completion_tokens": 150, "total_tokens": 330},
    }
    empty = len(json.dumps(answer))
    words = "state merges by a least upper bound and operations need causal delivery " * 20
    return json.dumps(answer).replace('"content": ""', f'"content": "{words[: ANSWER_BYTES - empty]}"')


def nginx_program() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchmarkError("nginx was not found; .ci/install-system bench installs what is needed")
    return found


@contextmanager
def run_nginx(name: str, server: str, *, cores: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Run an nginx with one worker and the given blocks; yield its port and process id."""
    port = free_port()
    place = folder / name
    place.mkdir()
    temporary = "\n".join(
        f"    {kind}_temp_path {place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Without this, workers of a root's nginx are nobody and cannot enter the scratch folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config = place / "nginx.conf"
    config.write_text(
        f"""{user}
daemon off;
worker_processes 1;
pid {place}/pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    tcp_nodelay on;
{temporary}
{server.replace("@LISTEN@", f"listen 127.0.0.1:{port};")}
}}
""",
        encoding="utf-8",
    )
    argv = (nginx_program(), "-p", str(place), "-e", "stderr", "-c", str(config))
    with running(argv, cores=cores, log=place / "log") as process:
        wait_for_port(port, process, place / "log")
        yield port, process.pid


@contextmanager
def mock(cores: Cores, folder: Path) -> Iterator[Target]:
    """Run the provider: every request gets the same answer from memory."""
    server = f"""
    server {{
        @LISTEN@
        default_type application/json;
        location / {{ return 200 '{answer_body()}'; }}
    }}"""
    with run_nginx("mock", server, cores=cores.load_list, folder=folder) as (port, pid):
        yield Target(name="mock alone", url=f"http://127.0.0.1:{port}{PATH}", pid=pid)


@contextmanager
def plain_proxy(upstream: Target, cores: Cores, folder: Path) -> Iterator[Target]:
    """Run nginx as a reverse proxy that checks nothing, with its connections to the mock kept."""
    address = upstream.url.removeprefix("http://").removesuffix(PATH)
    server = f"""
    upstream mock {{ server {address}; keepalive 128; keepalive_requests 1000000000; }}
    server {{
        @LISTEN@
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}"""
    with run_nginx("proxy", server, cores=str(cores.server), folder=folder) as (port, pid):
        yield Target(name="nginx proxy", url=f"http://127.0.0.1:{port}{PATH}", pid=pid)


# Limits that are checked on every request and never reached: a refusal would end the benchmark.
LIMITS = {
    "rpm_limit": 1_000_000_000,
    "tpm_limit": 1_000_000_000_000,
    "max_budget": 1_000_000.0,
    "budget_duration": "1d",
}
READY_S = 30.0


@contextmanager
def _launched(
    providers: Mapping[str, str],
    cores: Cores,
    home: Path,
    flags: Sequence[str] = (),
    program: Sequence[str] = (),
) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """Run a gateway with fresh data; yield its address, its process and the seconds until it lived."""
    home.mkdir(mode=0o700)
    config = home / "gateway.toml"
    tables = [
        f'[providers.{name}]\nbase_url = "{base_url}"\n\n'
        f'[prices."{model_of(name)}"]\ninput_per_mtok = "0.15"\noutput_per_mtok = "0.60"\n'
        for name, base_url in providers.items()
    ]
    config.write_text("\n".join(['[gateway]\nsandbox = "off"\n', *tables]), encoding="utf-8")
    program = program or (str(Path(sys.executable).with_name("nemo-agents")),)
    argv = (*program, "gateway", "--port", "0", "--home", str(home), "--config", str(config), *flags)
    env = {name: value for name, value in os.environ.items() if not name.startswith("NEMO_")}
    log = home.with_suffix(".log")
    started = time.monotonic()
    with running(argv, cores=str(cores.server), log=log, env=env | {"PYTHONUNBUFFERED": "1"}) as process:
        while True:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8", errors="replace")):
                url = found[0]
                try:
                    if httpx.get(f"{url}/health/live", timeout=1.0).is_success:
                        break
                except httpx.TransportError:
                    pass  # it has printed its address and does not listen yet
            if process.poll() is not None or time.monotonic() - started > READY_S:
                raise BenchmarkError(f"the gateway did not start:\n{tail(log)}")
            time.sleep(0.005)
        yield url, process, time.monotonic() - started


def _provision(url: str, home: Path, models: Sequence[str], guardrails: Sequence[str]) -> str:
    """Create a fleet and a key with limits and budgets at both, and return the key's secret."""
    admin = (home / "admin.key").read_text(encoding="utf-8").strip()
    limits = {"models": list(models), **LIMITS}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {admin}"}, timeout=10.0) as client:
        for path, wish in (
            ("/team/new", {"team_id": "bench", "team_alias": "bench", **limits}),
            (
                "/key/generate",
                {"key_alias": "bench", "team_id": "bench", "guardrails": list(guardrails), **limits},
            ),
        ):
            answer = client.post(path, json=wish)
            if not answer.is_success:
                raise BenchmarkError(f"{path} answered {answer.status_code}: {answer.text[:300]}")
    secret: str = answer.json()["key"]
    return secret


@contextmanager
def gateway_before(
    providers: Mapping[str, str],
    cores: Cores,
    folder: Path,
    guardrails: Sequence[str],
    *,
    name: str = "gateway",
    flags: Sequence[str] = (),
    program: Sequence[str] = (),
) -> Iterator[tuple[Target, float]]:
    """Run the gateway, every check on, before some providers (name: base URL); yield it and its idle memory in MB.

    `program` stands in for the command `nemo-agents`. The target's URL is that of the gateway's chat completions.
    """
    home = folder / name.replace(" ", "-")
    with _launched(providers, cores, home, flags, program) as (url, process, _):
        idle_mb = memory_mb(process.pid, peak=False)
        key = _provision(url, home, [model_of(provider) for provider in providers], guardrails)
        yield Target(name=name, url=f"{url}{PATH}", pid=process.pid, key=key), idle_mb


@contextmanager
def gateway(
    upstream: Target,
    cores: Cores,
    folder: Path,
    guardrails: Sequence[str],
    *,
    name: str = "gateway",
    flags: Sequence[str] = (),
) -> Iterator[tuple[Target, float]]:
    """Run the gateway with every check on before the mock; yield it and its memory in MB before the first request."""
    with gateway_before(_mock_alone(upstream), cores, folder, guardrails, name=name, flags=flags) as served:
        yield served


def start_seconds(upstream: Target, cores: Cores, folder: Path, times: int) -> list[float]:
    """Return how long the gateway takes from its command until `/health/live` answers, with fresh data."""
    found = []
    for number in range(times):
        with _launched(_mock_alone(upstream), cores, folder / f"start-{number}") as (_, _, seconds):
            found.append(seconds)
    return found


def _mock_alone(upstream: Target) -> dict[str, str]:
    return {"mock": upstream.url.removesuffix("/chat/completions")}
