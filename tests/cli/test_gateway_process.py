"""`nemo-agents gateway` as a process: how it starts, what it makes, how it ends, and what it says when it cannot."""

from __future__ import annotations

import signal
import socket
import sqlite3
import stat
from pathlib import Path

import httpx
import pytest
from cli_shell import finish, gateway_process

from nemo_agents.cli import COMMANDS
from nemo_agents.errors import ExitCode


def get(url: str, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(url, headers=headers, trust_env=False)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_when_it_has_said_so_and_a_signal_ends_it_with_0(shell, tmp_path, number):
    home = tmp_path / "deep" / "home"
    with gateway_process(shell, home) as (process, url):
        assert get(f"{url}/health/live").json() == {"status": "alive"}
        ended = finish(process, number)
    assert (ended.code, ended.err) == (0, "")
    assert "stopped" in ended.out
    with socket.socket() as again:  # the port is free
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(url.rpartition(":")[2])))


def test_the_first_start_makes_secrets_that_only_the_owner_reads(shell, tmp_path):
    home = tmp_path / "home"
    made = ("admin.key", "pepper", "viewer.token")
    with gateway_process(shell, home) as (_, url):
        assert mode_of(home) == 0o700
        assert [mode_of(home / name) for name in (*made, "gateway.db")] == [0o600] * 4
        secrets = [(home / name).read_text().strip() for name in made]
        assert len(set(secrets)) == 3
        assert get(f"{url}/nemo/info", secrets[0]).status_code == 200
        assert get(f"{url}/nemo/info", "sk-wrong").status_code == 401
    with gateway_process(shell, home):
        assert [(home / name).read_text().strip() for name in made] == secrets


def test_an_admin_key_from_the_environment_replaces_the_generated_one(shell, tmp_path):
    home = tmp_path / "home"
    with gateway_process(shell.given(NEMO_ADMIN_KEY="sk-of-the-operator"), home) as (_, url):
        assert get(f"{url}/nemo/info", "sk-of-the-operator").status_code == 200
        assert not (home / "admin.key").exists()
        here = shell.given(NEMO_GATEWAY_URL=url)
        assert "admin.key does not exist" in here.run("status").error()
        assert here.given(NEMO_ADMIN_KEY="sk-of-the-operator").run("status").code == 0


def test_a_home_or_a_port_in_use_is_one_line(shell, tmp_path):
    home = tmp_path / "home"
    with gateway_process(shell, home) as (process, url):
        second = shell.run("gateway", "--port", "0", "--home", home).error()
        assert f"in use by another gateway (process {process.pid})" in second
        port = url.rpartition(":")[2]
        taken = shell.run("gateway", "--port", port, "--home", tmp_path / "other").error()
        assert f"cannot listen on 127.0.0.1:{port}" in taken
        assert "--port" in taken
        assert get(f"{url}/health/live").status_code == 200  # the first one minds neither


def test_what_keeps_it_from_starting_is_one_line(shell, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    home, config = tmp_path / "file" / "home", tmp_path / "gateway.toml"
    assert str(home) in shell.run("gateway", "--port", "0", "--home", home).error()
    config.write_text("")
    unwritable = shell.run("gateway", "--port", "0", "--home", home, "--config", config).error()
    assert str(home) in unwritable
    assert "--home" in unwritable
    config.write_text("[gateway]\nprot = 4141\n")
    unknown = shell.run("gateway", "--config", config).error()
    assert all(part in unknown for part in (str(config), "`prot`", "port"))
    config.write_text('[gateway]\nport = "4141"\n')
    assert (
        "`port` in [gateway] is '4141'; it must be a whole number" in shell.run("gateway", "--config", config).error()
    )
    config.write_text("[gateway\n")
    assert "cannot be read as TOML" in shell.run("gateway", "--config", config).error()
    missing = tmp_path / "nowhere.toml"
    assert f"{missing}: no such configuration file" in shell.run("gateway", "--config", missing).error()


def test_a_database_of_a_newer_version_is_left_alone(shell, tmp_path):
    home = tmp_path / "home"
    with gateway_process(shell, home):
        pass
    with sqlite3.connect(home / "gateway.db") as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    said = shell.run("gateway", "--port", "0", "--home", home).error()
    assert "newer version of nemo-agents (schema 9999" in said
    with sqlite3.connect(home / "gateway.db") as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    db.close()


def test_secrets_that_others_can_read_are_refused(shell, tmp_path):
    home = tmp_path / "home"
    with gateway_process(shell, home):
        pass
    (home / "pepper").chmod(0o644)
    assert f"chmod 600 {home / 'pepper'}" in shell.run("gateway", "--port", "0", "--home", home).error()


@pytest.mark.parametrize("command", ["status", "logs", "view", "runs list", "runs show last", "runs stop abcdef"])
def test_without_a_gateway_a_command_says_how_to_start_one(shell, command):
    with socket.socket() as taken:  # bound and not listening: nobody answers there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        nobody = shell.given(NEMO_GATEWAY_URL=url, NEMO_ADMIN_KEY="sk-admin-of-nobody")
        said = nobody.run(*command.split()).error()
    assert said.startswith(f"error: no gateway at {url}: ")
    assert "`nemo-agents gateway`" in said


@pytest.mark.parametrize("url", ["http://[::1", "localhost:4141", "ftp://127.0.0.1"])
def test_what_is_no_address_is_told_so(shell, url):
    said = shell.given(NEMO_ADMIN_KEY="sk-admin-of-nobody").run("status", "--gateway", url).error()
    assert url in said
    assert "http://127.0.0.1:4141" in said


@pytest.mark.parametrize("key", ["schlüssel", "two words", "line\nfeed"])
def test_what_cannot_be_an_admin_key_is_not_sent_and_not_shown(shell, key):
    said = shell.given(NEMO_ADMIN_KEY=key).run("status").error()
    assert "NEMO_ADMIN_KEY" in said
    assert key.splitlines()[0] not in said


def test_usage_errors_end_with_2(shell):
    for args in (["nosuch"], ["gateway", "--port", "70000"], ["runs", "list", "--since", "yesterday"], ["rotate"]):
        ended = shell.run(*args)
        assert (ended.code, ended.out) == (ExitCode.USAGE, "")
        assert "Usage: nemo-agents" in ended.err
    assert set(COMMANDS) >= {"gateway", "provision", "status", "runs", "logs", "view", "doctor", "demo"}
