"""The page on running several gateways does what it says, command by command."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from faulty_provider import FaultyProvider
from replica_stack import configuration, free_ports, fresh_database, until
from services import Service

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-replicas.md"
BY_HAND = PAGE.read_text(encoding="utf-8").split("## By hand")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^\$ (.*)$", BY_HAND, re.MULTILINE)
PORTS = ("4141", "4142", "4143")


@contextmanager
def started(command: str, folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run one of the page's gateways in a terminal of its own, as far as a program can."""
    program, *words = shlex.split(command)
    assert program == "nemo-agents"
    with subprocess.Popen(
        [sys.executable, "-m", "nemo_agents", *words],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        try:
            assert process.stdout is not None
            printed = ""
            for line in process.stdout:
                printed += line
                if "listening on" in line:
                    break
            assert "listening on" in printed, printed
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


@pytest.fixture
def secrets() -> dict[str, str]:
    """What the page's first command puts into the environment."""
    export, *gateways = COMMANDS
    assert len(gateways) == len(PORTS)
    shown = subprocess.run(["sh", "-c", f"{export} && env"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("NEMO_"))
    names = ("NEMO_PEPPER", "NEMO_ADMIN_KEY", "NEMO_VIEWER_TOKEN")
    assert set(names) <= set(found)
    return {name: found[name] for name in names}


def test_three_commands_make_three_gateways_that_are_one(
    tmp_path: Path, provider: FaultyProvider, postgres_server: Service, redis_server: Service, secrets: dict[str, str]
):
    redis_server.ensure()
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1", **secrets}
    env |= {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with fresh_database(postgres_server) as database:
        commands = []
        for port, line in zip(PORTS, COMMANDS[1:], strict=True):
            assert f"--port {port} " in line
            home = tmp_path / line.split("--home ")[1].split()[0]
            home.mkdir(mode=0o700)
            (home / "gateway.toml").write_text(configuration(provider.base_url), encoding="utf-8")
            here = line.replace(f"--port {port}", f"--port {ports[port]}")
            here = re.sub(r"postgresql://\S+", database, here)
            commands.append(re.sub(r"redis://\S+", f"redis://127.0.0.1:{redis_server.port}/0", here))
        urls = [f"http://127.0.0.1:{port}" for port in ports.values()]
        with (
            started(commands[0], tmp_path, env) as first,
            started(commands[1], tmp_path, env),
            started(commands[2], tmp_path, env),
            httpx.Client(trust_env=False, timeout=30) as http,
        ):
            assert [http.get(f"{url}/health/ready").status_code for url in urls] == [200] * 3
            admin = {"authorization": f"Bearer {secrets['NEMO_ADMIN_KEY']}"}
            asked = {"team_id": "by-hand", "models": ["faulty/*"], "max_budget": 1.0}
            key = http.post(f"{urls[0]}/key/generate", json=asked, headers=admin).json()["key"]

            def chat(url: str) -> int:
                body = {"model": "faulty/ok", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
                answer = http.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
                return answer.status_code

            assert [chat(url) for url in urls] == [200] * 3
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
            assert [chat(url) for url in urls[1:]] == [200] * 2
            with started(commands[0], tmp_path, env):  # the rolling restart
                until(lambda: chat(urls[0]) == 200, "it is back", timeout_s=10)
                verified = http.get(f"{urls[0]}/nemo/ledger/verify", headers=admin).json()
                assert verified == {"problems": []}
                (fleet,) = http.get(f"{urls[2]}/nemo/status", headers=admin).json()
                assert fleet["spent_nanos"] == 6 * (5 * 1_000_000 + 1_000)


def test_a_replica_with_another_pepper_does_not_start(
    tmp_path: Path, postgres_server: Service, redis_server: Service, secrets: dict[str, str]
):
    redis_server.ensure()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1", **secrets}
    env |= {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with fresh_database(postgres_server) as database:
        on = f"--database {database} --cache redis://127.0.0.1:{redis_server.port}/0 --port 0"
        with started(f"nemo-agents gateway --home one {on}", tmp_path, env):
            stranger = subprocess.run(
                [sys.executable, "-m", "nemo_agents", "gateway", "--home", "two", *on.split()],
                cwd=tmp_path,
                env={**env, "NEMO_PEPPER": "quite another pepper, as long as it must be"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=30,
                check=False,
            )
    assert stranger.returncode == 1
    (line,) = stranger.stderr.splitlines()
    assert "NEMO_PEPPER" in line
