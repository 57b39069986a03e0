"""The commands over real HTTP on the loopback: what they print, what they end with, and that they keep secrets."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest
from admin_machine import AdminMachine
from click.testing import CliRunner

from nemo_agents.cli import provision as commands
from nemo_agents.errors import (
    AdminError,
    DeclarationError,
    GatewayUnreachable,
    ProvisionError,
    SettingsError,
    StalePlan,
)

ADMIN_KEY = "sk-admin-of-the-test"
FLEET = """
[fleet]
name = "crew"
budget = "$170/day"
[[models]]
name = "fast"
models = ["openai/a"]
[[roles]]
name = "researcher"
models = ["gpt-4o-mini"]
rpm = 120
tpm = "100k"
budget = "$80/day"
guardrails = ["pii-filter", "prompt-injection-detect"]
[[roles]]
name = "writer"
models = ["fast"]
rpm = 30
budget = "$20/day"
"""


class Handler(BaseHTTPRequestHandler):
    """The machine over HTTP."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer({})

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body):
        status, content = 401, {"error": {"message": "who are you", "type": "auth_error"}}
        if self.headers["authorization"] == f"Bearer {ADMIN_KEY}":
            url = urlsplit(self.path)
            status, content = self.server.machine.handle(self.command, url.path, dict(parse_qsl(url.query)), body)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args):
        pass


class Terminal:
    """What a person has: a shell with an environment, a folder, and a gateway."""

    def __init__(self, machine, url, folder):
        self.machine = machine
        self.url = url
        self.home = folder / "home"
        self.fleet = folder / "fleet.toml"
        self.fleet.write_text(FLEET)
        self.env = {"NEMO_GATEWAY_URL": url, "NEMO_HOME": str(self.home), "NEMO_ADMIN_KEY": ADMIN_KEY}

    def run(self, name, *args, stdin=None, **env):
        command = getattr(commands, name)
        result = CliRunner().invoke(
            command, [str(arg) for arg in args], env={**self.env, **env}, input=stdin, catch_exceptions=True
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def secrets(self):
        return [secret for key in self.machine.keys for secret in key.secrets]


@pytest.fixture
def terminal(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.machine = AdminMachine()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Terminal(server.machine, f"http://127.0.0.1:{server.server_port}", tmp_path)
    server.shutdown()
    thread.join()
    server.server_close()


def test_provision_shows_the_plan_and_performs_it(terminal):
    result = terminal.run("provision", terminal.fleet, "--yes")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:5] == [
        "  + crew        fleet · $170/day",
        "  + fast        model group · openai/a",
        "  + researcher  120 rpm · 100k tpm · $80/day · gpt-4o-mini · pii-filter, prompt-injection-detect",
        "  + writer      30 rpm · $20/day · fast",
        "  4 to create. Worst case per day: $100 by roles, $170 by fleet.",
    ]
    assert result.stdout.splitlines()[5].startswith(f"  Done: 4 created at {terminal.url}. ")
    assert len(terminal.machine.live()) == 2
    assert terminal.run("check", terminal.fleet).exit_code == 0
    again = terminal.run("provision", terminal.fleet)  # nothing to ask about
    assert again.exit_code == 0
    assert "Nothing to change." in again.stdout


def test_without_a_terminal_nothing_is_done_unless_told_so(terminal):
    result = terminal.run("provision", terminal.fleet)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert terminal.machine.keys == []


def test_only_planning_changes_nothing(terminal):
    for args in (("provision", terminal.fleet, "--plan"), ("plan", terminal.fleet)):
        assert "4 to create" in terminal.run(*args).stdout
    assert terminal.machine.keys == []
    assert not terminal.home.exists()


def test_check_ends_with_3_when_there_is_something_to_do(terminal):
    assert terminal.run("check", terminal.fleet).exit_code == 3
    terminal.run("provision", terminal.fleet, "--yes")
    terminal.machine.live_of("crew/writer").row["rpm_limit"] = 31
    result = terminal.run("check", terminal.fleet, "--json")
    assert result.exit_code == 3
    changes = json.loads(result.stdout)["plan"]["changes"]
    assert [(one["name"], one["drift"]) for one in changes if one["action"] != "keep"] == [("writer", True)]


def test_a_plan_file_is_applied_once_and_only_to_its_gateway(terminal, tmp_path):
    file = tmp_path / "plan.json"
    terminal.run("plan", terminal.fleet, "--out", file)
    with pytest.raises(ProvisionError, match="was made for"):
        terminal.run("apply", file, "--yes", "--gateway", "http://127.0.0.1:1")
    assert terminal.run("apply", file, "--yes").exit_code == 0
    assert len(terminal.machine.live()) == 2
    with pytest.raises(StalePlan):
        terminal.run("apply", file, "--yes")


def test_secrets_are_shown_by_export_and_by_nothing_else(terminal):
    shown = [
        terminal.run("provision", terminal.fleet, "--yes", "--json").output,
        terminal.run("plan", terminal.fleet).output,
        terminal.run("rotate", terminal.fleet, "writer", "--grace", "1h").output,
        terminal.run("rotate", "crew", "researcher", "--now").output,
        terminal.run("block", "crew", "writer").output,
        terminal.run("unblock", terminal.fleet, "writer").output,
    ]
    assert len(terminal.secrets()) == 4
    for text in shown:
        assert not any(secret in text for secret in terminal.secrets())
        assert ADMIN_KEY not in text
    lines = terminal.run("keys", "export", "crew").stdout.splitlines()
    newest = {alias: terminal.machine.live_of(f"crew/{alias}").secrets[-1] for alias in ("researcher", "writer")}
    assert lines == [f"NEMO_KEY_RESEARCHER={newest['researcher']}", f"NEMO_KEY_WRITER={newest['writer']}"]
    one = terminal.run("keys", "export", terminal.fleet, "--role", "writer", "--format", "json")
    assert json.loads(one.stdout) == {"writer": newest["writer"]}


def test_json_of_provision_is_one_document(terminal):
    made = json.loads(terminal.run("provision", terminal.fleet, "--yes", "--json").stdout)
    assert made["empty"] is False
    assert json.loads(terminal.run("provision", terminal.fleet, "--yes", "--json").stdout)["empty"] is True


@pytest.mark.parametrize("command", ["plan", "check", "provision"])
def test_what_a_fleet_file_prints_is_no_part_of_the_json(terminal, tmp_path, command):
    file = tmp_path / "talks.py"
    file.write_text(
        "from nemo_agents import AgentRole, Fleet\n"
        "print('I am being read')\n"
        "fleet = Fleet('talks', roles=[AgentRole('writer', models=['gpt-4o-mini'])])\n"
    )
    options = ["--yes"] if command == "provision" else []
    result = terminal.run(command, file, "--json", *options)
    assert json.loads(result.stdout)["plan"]["fleet"] == "talks"
    assert result.stderr == "I am being read\n"


def test_adopt_and_forget_and_revoke(terminal):
    terminal.run("provision", terminal.fleet, "--yes")
    terminal.run("forget", "crew", "writer")
    with pytest.raises(ProvisionError, match="nemo-agents adopt crew writer"):
        terminal.run("provision", terminal.fleet, "--yes")
    assert "rotate crew writer" in terminal.run("adopt", terminal.fleet, "writer", "crew/writer").stdout
    assert terminal.run("check", terminal.fleet).exit_code == 0
    assert terminal.run("revoke", "crew", "writer").exit_code == 2
    assert terminal.run("revoke", "crew", "writer", "--yes").exit_code == 0
    assert terminal.run("check", terminal.fleet).exit_code == 3


def test_destroy_removes_what_provision_made(terminal):
    terminal.run("provision", terminal.fleet, "--yes")
    assert terminal.run("destroy", "crew", "--yes").exit_code == 0
    assert (terminal.machine.live(), terminal.machine.teams, terminal.machine.deployments) == ([], {}, {})
    with pytest.raises(ProvisionError, match="no key for fleet crew"):
        terminal.run("keys", "export", "crew")


def test_export_names_the_gateways_that_it_has_a_key_for(terminal):
    terminal.run("provision", terminal.fleet, "--yes")
    with pytest.raises(ProvisionError, match=f"It has one for {terminal.url}: name the gateway with --gateway"):
        terminal.run("keys", "export", "crew", "--role", "writer", "--gateway", "http://127.0.0.1:9")
    with pytest.raises(ProvisionError, match="`nemo-agents provision` first"):
        terminal.run("keys", "export", "crew", "--role", "nobody", "--gateway", "http://127.0.0.1:9")


def test_a_fleet_and_a_role_that_are_not_there_are_an_error(terminal):
    terminal.run("provision", terminal.fleet, "--yes")
    with pytest.raises(ProvisionError, match=f"there is no fleet nope at {terminal.url}"):
        terminal.run("destroy", "nope", "--yes")
    for fleet, role in (("crew", "nope"), ("nope", "writer")):
        with pytest.raises(ProvisionError, match=f"has no key of role {role} in a fleet {fleet}"):
            terminal.run("forget", fleet, role)
    assert terminal.run("check", terminal.fleet).exit_code == 0


def test_a_key_that_is_gone_from_the_gateway_can_be_forgotten(terminal):
    terminal.run("provision", terminal.fleet, "--yes")
    key = terminal.machine.live_of("crew/writer")
    terminal.machine.keys.remove(key)
    assert "the gateway has no such key" in terminal.run("forget", "crew", "writer").stdout
    with pytest.raises(ProvisionError, match="has no key of role writer"):
        terminal.run("forget", "crew", "writer")


def test_the_admin_key_is_looked_for_in_the_home_and_its_absence_says_where(terminal):
    with pytest.raises(SettingsError) as caught:
        terminal.run("check", terminal.fleet, NEMO_ADMIN_KEY="")
    assert "NEMO_ADMIN_KEY" in str(caught.value)
    assert str(terminal.home / "admin.key") in str(caught.value)
    terminal.home.mkdir()
    (terminal.home / "admin.key").write_text(ADMIN_KEY + "\n")
    assert terminal.run("check", terminal.fleet, NEMO_ADMIN_KEY="").exit_code == 3


def test_a_wrong_admin_key_a_silent_gateway_and_a_bad_file_are_told_apart(terminal):
    with pytest.raises(AdminError, match="is the admin key right"):
        terminal.run("check", terminal.fleet, NEMO_ADMIN_KEY="sk-wrong-wrong-wrong")
    with pytest.raises(GatewayUnreachable, match="nemo-agents gateway"):
        terminal.run("check", terminal.fleet, "--gateway", "http://127.0.0.1:1")
    terminal.fleet.write_text("[fleet]\n")
    with pytest.raises(DeclarationError, match=r"fleet\.toml: fleet\.name: is missing"):
        terminal.run("check", terminal.fleet)
