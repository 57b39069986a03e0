"""`provision` and `rotate` killed at every request that changes something, and repeated: no orphan, no double key."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest
from cli_shell import FLEET, finish, make_shell

from nemo_agents.admin import keys as key_calls
from nemo_agents.client import Client
from nemo_agents.provision import operate
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.provision.load import load_fleet
from nemo_agents.secret import Secret

CHANGES = 4  # that provisioning this fleet sends: the fleet, its model group, two keys


class Toll(ThreadingHTTPServer):
    """A relay to the gateway that kills whoever sends the n-th change, before or after the gateway has it."""

    daemon_threads = True

    def __init__(self, gateway_url):
        super().__init__(("127.0.0.1", 0), TollHandler)
        self.gateway = urlsplit(gateway_url).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.victim = None
        self.armed = threading.Event()
        self.kill_at = 0
        self.when = ""
        self.changes = 0

    def arm(self, start, *, at, when):
        """Start a process and kill it at its n-th change."""
        self.changes, self.kill_at, self.when = 0, at, when
        self.armed.clear()
        self.victim = start()
        self.armed.set()
        return finish(self.victim)


class TollHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.relay(kill=None)

    def do_POST(self):
        toll = self.server
        if not toll.kill_at:
            self.relay(kill=None)
            return
        assert toll.armed.wait(30)
        toll.changes += 1
        self.relay(kill=toll.when if toll.changes == toll.kill_at else None)

    def relay(self, *, kill):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if kill == "before":
            self.execute()
            return
        link = http.client.HTTPConnection(self.server.gateway, timeout=30)
        headers = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
        link.request(self.command, self.path, body or None, headers)
        answer = link.getresponse()
        content = answer.read()
        link.close()
        if kill == "after":
            self.execute()
            return
        self.send_response(answer.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def execute(self):
        self.server.victim.kill()
        self.close_connection = True

    def log_message(self, *_args):
        pass


@pytest.fixture
def toll(town):
    server = Toll(town.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Scene:
    """One fleet behind a toll."""

    def __init__(self, town, toll, folder, name):
        self.town, self.toll, self.name = town, toll, name
        self.file = folder / "fleet.toml"
        self.file.write_text(FLEET.replace('name = "crew"', f'name = "{name}"').replace('"fast"', f'"{name}-fast"'))
        self.admin_key = (town.home / "admin.key").read_text().strip()
        env = {"NEMO_HOME": str(folder / "home"), "NEMO_GATEWAY_URL": toll.url, "NEMO_ADMIN_KEY": self.admin_key}
        self.shell = make_shell(folder, **env)
        self.store = FileKeyStore(folder / "home" / "keys.json")

    def aliases(self):
        with Client(self.town.url, Secret(self.admin_key)) as client:
            return sorted(row.key_alias for row in client.run(key_calls.every(team_id=self.name)))

    def assert_whole(self):
        """One key a role, each with its secret here, and nothing that is neither."""
        assert self.aliases() == [f"{self.name}/critic", f"{self.name}/writer"]
        entries = self.store.entries(self.toll.url, self.name)
        assert [(entry.role, entry.state) for entry in entries] == [("critic", "active"), ("writer", "active")]
        for entry in entries:
            headers = {"authorization": f"Bearer {entry.secret.reveal()}"}
            assert httpx.get(f"{self.town.url}/v1/models", headers=headers, trust_env=False).status_code == 200
        with Client(self.toll.url, Secret(self.admin_key)) as client:
            assert client.run(operate.prepare(load_fleet(self.file), self.toll.url, self.store)).is_empty


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, CHANGES + 1))
def test_provision_killed_and_repeated(town, toll, tmp_path, at, when):
    scene = Scene(town, toll, tmp_path, f"killed-{when}-{at}")
    killed = toll.arm(lambda: scene.shell.start("provision", scene.file, "--yes"), at=at, when=when)
    assert (killed.code, toll.changes) == (-9, at)
    toll.kill_at = 0
    assert scene.shell.run("provision", scene.file, "--yes").code == 0
    scene.assert_whole()


def test_these_were_all_the_changes(town, toll, tmp_path):
    scene = Scene(town, toll, tmp_path, "not-killed")
    lived = toll.arm(lambda: scene.shell.start("provision", scene.file, "--yes"), at=CHANGES + 1, when="before")
    assert (lived.code, toll.changes) == (0, CHANGES)
    scene.assert_whole()


@pytest.mark.parametrize("when", ["before", "after"])
def test_rotate_killed_and_repeated(town, toll, tmp_path, when):
    scene = Scene(town, toll, tmp_path, f"rotated-{when}")
    assert scene.shell.run("provision", scene.file, "--yes").code == 0
    before = scene.store.secret(toll.url, scene.name, "writer")
    killed = toll.arm(lambda: scene.shell.start("rotate", scene.name, "writer"), at=1, when=when)
    assert killed.code == -9
    toll.kill_at = 0
    pending = scene.store.get(toll.url, scene.name, "writer")
    assert pending.state == "pending"
    assert scene.shell.run("rotate", scene.name, "writer").code == 0
    scene.assert_whole()
    after = scene.store.secret(toll.url, scene.name, "writer")
    assert before.reveal() != after.reveal() == pending.secret.reveal()
