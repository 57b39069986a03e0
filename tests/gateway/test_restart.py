"""What survives a restart on the same home, and what keeps a gateway from starting: one line each."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty_provider import FaultyProvider
from gateway_bench import Bench, Key, bench_for, gateway_at, refused

from nemo_agents.errors import SettingsError
from nemo_agents.testing import LocalGateway, running_gateway


def cannot_start(home: Path, **settings: Any) -> str:
    """Start a gateway that must not start; return the one line that it says."""
    with (
        pytest.raises(SettingsError) as caught,
        running_gateway(home, settings={"sandbox": "off", **settings}),
    ):
        raise AssertionError("it started")
    text = str(caught.value)
    assert "\n" not in text
    return text


def info_of(bench: Bench, key: Key) -> dict[str, Any]:
    """What is said of a key, but for when it was last used, which is kept to the second only."""
    row: dict[str, Any] = bench.ok("GET", "/key/info", key=key.public_id)["info"]
    return {name: value for name, value in row.items() if name != "last_active"}


def test_keys_money_rates_and_stops_survive(tmp_path: Path, shared_provider: FaultyProvider):
    home = tmp_path / "home"
    with gateway_at(home, shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        fleet = bench.fleet
        bench.ok("POST", "/team/new", {"team_id": fleet, "max_budget": 0.0005, "rpm_limit": 100})
        params = {"model": "faulty/ok"}
        bench.ok(
            "POST",
            "/model/new",
            {"model_name": "group", "litellm_params": params, "model_info": {"team_id": fleet, "id": "d"}},
        )
        key = bench.key(models=("faulty/*", "group"), rpm_limit=6, tpm_limit=10_000)
        capped = bench.key(max_budget=0.0002)
        blocked, revoked, rotated = bench.key(), bench.key(), bench.key()
        bench.ok("POST", "/key/block", {"key": blocked.public_id})
        bench.ok("POST", "/key/delete", {"keys": [revoked.public_id]})
        successor = bench.ok("POST", f"/key/{rotated.public_id}/regenerate", {"grace_period": "0s"})
        assert bench.chat(key, headers={"x-nemo-run-id": "stopped"}).status_code == 200
        bench.ok("POST", "/nemo/runs/stopped/stop")
        assert bench.chat(key, headers={"x-nemo-run-id": "counted", "x-nemo-run-max-calls": "1"}).status_code == 200
        assert bench.chat(capped).status_code == 200
        assert bench.chat(capped).status_code == 200
        spent = bench.spent()
        rows = bench.logs()
        infos = [info_of(bench, each) for each in (key, capped, blocked)]
        admin_key = gateway.admin_key.reveal()
        before = bench.http.get("/v1/models", headers=key.headers).headers
    with gateway_at(home, shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        bench.fleet = fleet
        assert gateway.admin_key.reveal() == admin_key
        assert bench.logs() == rows
        assert bench.spent() == spent
        assert [info_of(bench, each) for each in (key, capped, blocked)] == infos
        after = bench.http.get("/v1/models", headers=key.headers)
        for name in ("x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"):
            assert after.headers[name] == before[name]
        assert after.headers["x-ratelimit-remaining-requests"] == "4"
        assert after.json()["data"][0]["id"] == "group"
        refused(bench.chat(blocked), 403, "key_blocked")
        refused(bench.chat(revoked), 403, "key_revoked")
        refused(bench.chat(rotated), 403, "key_expired")
        refused(bench.chat(capped), 402, "budget_exhausted", scope="role")
        refused(bench.chat(key, headers={"x-nemo-run-id": "stopped"}), 403, "run_stopped", limit="stopped")
        refused(bench.chat(key, headers={"x-nemo-run-id": "counted"}), 403, "run_stopped", limit="max_calls")
        assert bench.chat(key, "group").status_code == 200
        refused(bench.chat(key, max_tokens=300), 402, "request_exceeds_budget", scope="fleet")
        refused(bench.chat(key), 429, "rate_limit_exceeded", limit="rpm", scope="role")
        assert bench.ok("GET", "/key/info", key=successor["token"])["key"] == successor["token"]


KILLED = """
import sys
from pathlib import Path
from faulty_provider import FaultyProvider
from gateway_bench import gateway_at

with gateway_at(Path(sys.argv[1]), FaultyProvider(root=sys.argv[2], pid=0)) as gateway:
    print(gateway.url, flush=True)
    sys.stdin.read()
"""


def test_calls_in_flight_of_a_killed_gateway_are_charged_at_their_hold(tmp_path: Path, shared_provider: FaultyProvider):
    """Nobody knows what they cost, so they are taken to have cost all that they may; nothing stays held."""
    home, shown = tmp_path / "home", {"authorization": ""}
    shared_provider.reset()
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home), shared_provider.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with (
            httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30) as http,
            ThreadPoolExecutor() as pool,
        ):
            shown["authorization"] = f"Bearer {(home / 'admin.key').read_text().strip()}"
            body = {"team_id": "killed", "models": ["faulty/*"], "max_budget": 1}
            key = http.post("/key/generate", json=body, headers=shown).json()["key"]
            headers = {"authorization": f"Bearer {key}"}
            asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}

            def ask(model: str, stream: bool) -> httpx.Response:
                return http.post(
                    "/v1/chat/completions", json={"model": model, "stream": stream, **asked}, headers=headers
                )

            done = ask("faulty/ok", False).headers["x-nemo-request-id"]
            calls = [pool.submit(ask, "faulty/hang", stream) for stream in (False, True)]
            shared_provider.seen(at_least=3)
            process.kill()
            for call in calls:
                assert isinstance(call.exception(), httpx.TransportError)
    with gateway_at(home, shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        assert bench.spent(scope="killed") == (31_000 + 2 * 164_000, 0)
        first, *others = bench.logs("killed")
        assert (first["request_id"], first["state"], first["cost_nanos"]) == (done, "ok", 31_000)
        for row in others:
            assert (row["state"], row["usage_source"], row["cost_nanos"]) == ("abandoned", "hold", 164_000)


def test_a_second_gateway_on_the_same_home_is_refused(tmp_path: Path, shared_gateway: LocalGateway):
    text = cannot_start(shared_gateway.home)
    assert str(shared_gateway.home) in text
    assert str(os.getpid()) in text


def test_a_taken_port_is_named(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = cannot_start(tmp_path / "home", port=port)
    assert f"127.0.0.1:{port}" in text
    assert "--port" in text


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path, shared_provider: FaultyProvider):
    home = tmp_path / "home"
    with gateway_at(home, shared_provider):
        pass
    with closing(sqlite3.connect(home / "gateway.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num='9999'")
    before = (home / "gateway.db").read_bytes()
    text = cannot_start(home)
    assert "newer" in text
    assert str(home / "gateway.db") in text
    assert (home / "gateway.db").read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "gateway.db").write_bytes(content)
    assert str(home / "gateway.db") in cannot_start(home)
    assert (home / "gateway.db").read_bytes() == content


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path):
    """Also for the superuser, who may write anywhere: the home lies below a file."""
    (tmp_path / "file").write_text("")
    text = cannot_start(tmp_path / "file" / "home")
    assert str(tmp_path / "file" / "home") in text
    assert "--home" in text


@pytest.mark.parametrize("name", ["admin.key", "pepper", "viewer.token"])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, shared_provider: FaultyProvider, name: str):
    home = tmp_path / "home"
    with gateway_at(home, shared_provider):
        pass
    secret = (home / name).read_text().strip()
    (home / name).chmod(0o644)
    text = cannot_start(home)
    assert f"chmod 600 {home / name}" in text
    assert secret not in text
    (home / name).chmod(0o600)
    (home / name).write_text("")
    assert "empty" in cannot_start(home)


def test_a_home_is_private(tmp_path: Path, shared_provider: FaultyProvider):
    home = tmp_path / "home"
    with gateway_at(home, shared_provider):
        assert home.stat().st_mode & 0o077 == 0
        for file in home.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file


def test_another_pepper_knows_no_key(tmp_path: Path, shared_provider: FaultyProvider):
    """A stolen or swapped database confirms no key without the pepper that lies beside it."""
    home = tmp_path / "home"
    with gateway_at(home, shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        key = bench.key()
        assert bench.chat(key).status_code == 200
    (home / "pepper").write_text("another pepper, as long as a pepper is\n")
    with gateway_at(home, shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        refused(bench.chat(key), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": 70_000}, "port"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"providers": {"x": {}}}, "base_url"),
        ({"providers": {"x": {"base_url": "http://example.com/v1"}}}, "x"),
        ({"prices": {"a/b": {"input_per_mtok": -1, "output_per_mtok": 1}}}, "a/b"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, settings: dict[str, Any], named: str):
    assert named in cannot_start(tmp_path / "home", **settings)
