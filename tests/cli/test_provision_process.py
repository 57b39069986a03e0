"""Provisioning as a person and a pipeline meet it: plan, ask, apply, check; keys and their life; refused files."""

from __future__ import annotations

import json
import re
import stat
import zlib

import httpx
import pytest
from cli_shell import FLEET, make_shell, plain

from nemo_agents.admin import keys as key_calls
from nemo_agents.client import Client
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.secret import Secret


@pytest.fixture
def crew(town, tmp_path):
    """A fleet of its own on the session's gateway, with a key store of its own."""
    return Crew(town, tmp_path, f"crew-{zlib.crc32(str(tmp_path).encode()):08x}")


class Crew:
    def __init__(self, town, folder, name):
        self.url = town.url
        self.name = name
        self.home = folder / "home"
        self.file = folder / "fleet.toml"
        self.admin_key = (town.home / "admin.key").read_text().strip()
        self.shell = make_shell(
            folder, NEMO_HOME=str(self.home), NEMO_GATEWAY_URL=town.url, NEMO_ADMIN_KEY=self.admin_key
        )
        self.declare(FLEET)

    def declare(self, text):
        self.file.write_text(
            text.replace('name = "crew"', f'name = "{self.name}"').replace('"fast"', f'"{self.name}-m"')
        )

    def run(self, *args, **options):
        return self.shell.run(*args, **options)

    def provision(self):
        done = self.run("provision", self.file, "--yes")
        assert done.code == 0, done
        return done

    def admin(self):
        return Client(self.url, Secret(self.admin_key))

    def live(self):
        with self.admin() as client:
            return {row.key_alias: row for row in client.run(key_calls.every(team_id=self.name))}

    def export(self, *options):
        return self.run("keys", "export", self.file, *options, secret=True)

    def secret(self, role):
        found = FileKeyStore(self.home / "keys.json").secret(self.url, self.name, role)
        return found.reveal()

    def models(self, secret):
        url = f"{self.url}/v1/models"
        return httpx.get(url, headers={"authorization": f"Bearer {secret}"}, trust_env=False)

    def status_of(self, secret):
        return self.models(secret).status_code

    def said_to(self, secret):
        return self.models(secret).json()["error"]["message"]


def test_plan_apply_and_nothing_to_do(crew):
    first = crew.provision()
    assert [line.split()[0] for line in first.out.splitlines()[:4]] == ["+", "+", "+", "+"]
    assert "4 to create. Worst case per day: $30 by roles, $170 by fleet." in first.out
    assert f"Done: 4 created at {crew.url}. Keys are in {crew.home / 'keys.json'}." in first.out
    before = crew.live()
    again = crew.run("provision", crew.file)  # without --yes: there is nothing to ask
    assert (again.code, again.err) == (0, "")
    assert "Nothing to change." in again.out
    assert crew.live() == before
    check = crew.run("check", crew.file)
    assert check.code == 0
    assert stat.S_IMODE((crew.home / "keys.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(crew.home.stat().st_mode) == 0o700


def test_check_shows_another_hand_and_a_changed_file(crew):
    crew.provision()
    row = crew.live()[f"{crew.name}/writer"]
    with crew.admin() as client:
        client.run(key_calls.update(row.token, {"rpm_limit": 31}))
    drifted = crew.run("check", crew.file)
    assert drifted.code == 3
    assert "drift" in drifted.out
    assert "rpm: 31 → 30" in drifted.out
    crew.provision()
    assert crew.run("check", crew.file).code == 0
    crew.declare(FLEET.replace("rpm = 30", "rpm = 32"))
    pending = crew.run("check", crew.file)
    assert pending.code == 3
    assert "drift" not in pending.out
    assert "rpm: 30 → 32" in pending.out
    assert crew.run("check", crew.file, "--json").json["empty"] is False


def test_a_kept_plan_is_applied_and_a_stale_one_refused(crew, tmp_path):
    kept, stale = tmp_path / "plan.json", tmp_path / "stale.json"
    assert crew.run("plan", crew.file, "--out", kept).code == 0
    assert crew.run("plan", crew.file, "--out", stale).code == 0
    assert crew.live() == {}
    assert crew.run("apply", kept).code == 2  # nobody to ask
    assert crew.run("apply", kept, "--yes").code == 0
    assert len(crew.live()) == 2
    before = crew.live()
    assert "changed after the plan was made" in crew.run("apply", stale, "--yes").error()
    assert crew.live() == before
    stale.write_text("{}")
    assert "not a plan" in crew.run("apply", stale, "--yes").error()
    assert str(tmp_path / "none") in crew.run("apply", tmp_path / "none", "--yes").error()


def test_without_a_terminal_it_does_not_ask_and_on_one_it_obeys(crew):
    refused = crew.run("provision", crew.file)
    assert refused.code == 2
    assert "--yes" in refused.err
    no = crew.shell.in_terminal("provision", crew.file, typed="n\n")
    assert no.code == 1
    assert "not confirmed, so nothing was changed" in no.out
    assert crew.live() == {}
    yes = crew.shell.in_terminal("provision", crew.file, typed="y\n")
    assert yes.code == 0
    assert "\x1b[32m  + " in yes.out
    assert "Apply this plan?" in yes.out
    assert len(crew.live()) == 2


def test_a_long_plan_is_continued_under_its_details(crew):
    crew.declare(FLEET.replace('["pii-filter"]', '["pii-filter", "prompt-injection-detect"]'))
    lines = plain(crew.shell.in_terminal("plan", crew.file, columns=72).out).splitlines()
    assert all(len(line) <= 72 for line in lines)
    writer = next(number for number, line in enumerate(lines) if line.startswith("  + writer"))
    details_at = lines[writer].index("30 rpm")
    assert lines[writer + 1][:details_at].isspace()
    assert "prompt-injection-detect" in lines[writer] + lines[writer + 1]


def test_a_rotated_key_overlaps_and_now_ends_it(crew):
    crew.provision()
    old = crew.secret("writer")
    said = crew.run("rotate", crew.name, "writer", "--grace", "1h")
    assert said.code == 0
    new = crew.secret("writer")
    assert new != old
    assert [crew.status_of(key) for key in (old, new)] == [200, 200]
    assert crew.run("rotate", crew.name, "writer", "--now").code == 0
    newest = crew.secret("writer")
    assert [crew.status_of(key) for key in (new, newest)] == [403, 200]
    assert crew.said_to(new) == (
        f"The key of {crew.name}/writer was replaced by a rotation. "
        "Use the new secret: `nemo-agents keys export` prints it."
    )
    assert len(crew.live()) == 2
    assert "is not a duration" in crew.run("rotate", crew.name, "writer", "--grace", "soon").error()
    assert "has no key" in crew.run("rotate", crew.name, "nobody").error()
    assert crew.run("check", crew.file).code == 0


def test_block_unblock_revoke(crew):
    crew.provision()
    key = crew.secret("writer")
    assert "unblock" in crew.run("block", crew.name, "writer").out
    assert crew.status_of(key) == 403
    assert "it is blocked" in crew.run("plan", crew.file).out
    assert "blocked" in crew.run("status", crew.name).out
    assert crew.run("unblock", crew.file, "writer").code == 0
    assert crew.status_of(key) == 200
    assert crew.run("revoke", crew.name, "writer").code == 2
    assert crew.run("revoke", crew.name, "writer", "--yes").code == 0
    assert crew.status_of(key) == 403
    assert list(crew.live()) == [f"{crew.name}/critic"]
    crew.provision()
    assert crew.status_of(crew.secret("writer")) == 200


def test_adopt_forget_destroy(crew):
    crew.provision()
    key = crew.secret("writer")
    assert crew.run("forget", crew.name, "writer").code == 0
    assert crew.status_of(key) == 200
    taken = crew.run("provision", crew.file, "--yes").error()
    assert f"nemo-agents adopt {crew.name} writer" in taken
    assert crew.run("adopt", crew.name, "writer", f"{crew.name}/writer").code == 0
    assert crew.run("check", crew.file).code == 0
    assert "has no key" in crew.run("keys", "export", crew.name, "--role", "writer").error()
    assert crew.run("rotate", crew.name, "writer").code == 0
    assert crew.status_of(crew.secret("writer")) == 200
    critic = crew.secret("critic")
    assert crew.run("destroy", crew.name).code == 2
    assert crew.run("destroy", crew.name, "--yes").code == 0
    assert crew.live() == {}
    assert crew.status_of(critic) == 403
    assert json.loads((crew.home / "keys.json").read_text())["keys"] == []
    assert f"there is no fleet {crew.name} at {crew.url}" in crew.run("destroy", crew.name, "--yes").error()


def test_keys_export_is_what_a_shell_and_a_program_read(crew):
    crew.provision()
    exported = crew.export()
    lines = dict(line.split("=", 1) for line in exported.out.splitlines())
    assert set(lines) == {"NEMO_KEY_WRITER", "NEMO_KEY_CRITIC"}
    assert [crew.status_of(key) for key in lines.values()] == [200, 200]
    assert crew.export("--format", "json").json == {
        "critic": lines["NEMO_KEY_CRITIC"],
        "writer": lines["NEMO_KEY_WRITER"],
    }
    assert crew.export("--role", "critic").out == f"NEMO_KEY_CRITIC={lines['NEMO_KEY_CRITIC']}\n"


def test_two_provisionings_at_once_do_not_mix(crew):
    crew.home.mkdir(mode=0o700)
    with FileKeyStore(crew.home / "keys.json").exclusively():
        assert "another nemo-agents" in crew.run("provision", crew.file, "--yes").error()
    assert crew.live() == {}


def test_a_folder_in_the_place_of_the_key_store_is_one_line(crew):
    (crew.home / "keys.json").mkdir(mode=0o700, parents=True)
    for args in (("provision", crew.file, "--yes"), ("plan", crew.file), ("keys", "export", crew.name)):
        assert f"the key store {crew.home / 'keys.json'} is not a file" in crew.run(*args).error()
    assert crew.live() == {}


def test_a_fleet_or_role_that_is_not_there_is_one_line(crew):
    crew.provision()
    assert f"there is no fleet nope at {crew.url}" in crew.run("destroy", "nope").error()
    said = crew.run("forget", crew.name, "nope").error()
    assert f"has no key of role nope in a fleet {crew.name}" in said
    assert crew.run("check", crew.file).code == 0


def test_a_name_on_the_gateway_cannot_forge_a_line_of_the_plan(crew):
    crew.provision()
    evil = "x\n  = all is well\x1b[8m"
    row = crew.live()[f"{crew.name}/critic"]
    mark = {**row.metadata, "nemo": {**row.metadata["nemo"], "role": evil}}
    with crew.admin() as client:
        client.run(key_calls.update(row.token, {"metadata": mark}))
    said = crew.run("plan", crew.file)
    assert "  = all is well" not in said.out.splitlines()
    assert "\x1b" not in said.out
    assert "\x1b[8m" not in crew.shell.in_terminal("plan", crew.file).out


SEVERAL = """
budget = ["$20/day", { amount = "$60/month", tz = "Europe/Amsterdam" }, { amount = "$1/12h", mode = "shadow" }]
shadow = ["rpm"]
loop = "off"
"""


def test_budgets_and_limits_are_shown_as_people_write_them_and_stay(crew):
    crew.file.write_text(crew.file.read_text().replace('budget = "$20/day"', SEVERAL, 1))
    said = crew.run("provision", crew.file, "--yes").out
    assert "30 rpm (shadow) · $20/day + $60/month (Europe/Amsterdam) + $1/12h (shadow) · loop off" in said
    assert " Worst case:\n    per day: $30 by roles, $170 by fleet\n    per month: $60 by writer\n" in said
    assert "In shadow, so no cap: writer $1/12h." in said
    assert crew.run("check", crew.file).code == 0
    assert crew.run("rotate", crew.file, "writer").code == 0
    assert crew.run("check", crew.file).code == 0
    crew.file.write_text(crew.file.read_text().replace('"$20/day"', '"$20/week"', 1))
    changed = crew.run("check", crew.file)
    assert changed.code == 3
    assert "budget: $20/day + $60/month (Europe/Amsterdam)" in changed.out
    assert "(another count for $20/week: a new one, or the one it had)" in changed.out
    spec = next(one for one in crew.run("plan", crew.file, "--json").json["plan"]["changes"] if one["name"] == "writer")
    assert [(one["duration"], one["tz"], one["mode"]) for one in spec["spec"]["budgets"]] == [
        ("7d", "UTC", "enforce"),
        ("1mo", "Europe/Amsterdam", "enforce"),
        ("12h", "UTC", "shadow"),
    ]


BAD = {
    "a negative budget": ('budget = "$20/day"', 'budget = "-$20/day"', "roles[writer].budget", "-$20"),
    "an unknown period": ('budget = "$20/day"', 'budget = "$20/fortnight"', "budget", "fortnight"),
    "a time zone that is none": (
        'budget = "$20/day"',
        'budget = { amount = "$20/day", tz = "Europe/Amsterdm" }',
        "roles[writer].budget.tz",
        'Did you mean "Europe/Amsterdam"',
    ),
    "two budgets of one day": (
        'budget = "$20/day"',
        'budget = ["$20/day", "$9/24h"]',
        "roles[writer].budget",
        "$9/day",
    ),
    "a shadow of nothing": ("rpm = 30", 'shadow = ["rpm"]', "roles[writer].shadow", "rpm"),
    "a loop of one": ("rpm = 30", "loop = { repeats = 1 }", "roles[writer].loop.repeats", "1"),
    "a role twice": ('name = "critic"', 'name = "writer"', "roles", "writer"),
    "an unknown guardrail": ('["pii-filter"]', '["pii-filtre"]', "guardrails", "pii-filtre"),
    "no requests a minute": ("rpm = 30", "rpm = 0", "rpm", "0"),
    "a name that is no slug": ('name = "writer"', 'name = "The Writer"', "name", "The Writer"),
    "an unknown key": ("rpm = 30", "rps = 30", "roles[writer].rps", "rps"),
    "an unknown table": ("[fleet]", "[team]\n[fleet]", "team", "team"),
    "no fleet": ("[fleet]", "[[models]]", "fleet", "None"),
    "a syntax error": ("rpm = 30", "rpm = = 30", "line", "fleet.toml"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_fleet_file_that_cannot_be_meant_is_one_line(shell, tmp_path, case):
    right, wrong, field, value = BAD[case]
    file = tmp_path / "fleet.toml"
    file.write_text(FLEET.replace(right, wrong, 1))
    said = shell.run("plan", file).error()
    assert said.startswith(f"error: {file}: ")
    assert field in said
    assert value in said
    assert re.search(r"\(got .*\)\. [A-Z].+", said), said  # what was found, and then what would be right


TWO = """from nemo_agents import AgentRole, Fleet
a = Fleet("a", roles=[AgentRole("r", models=["m"])])
b = Fleet("b", roles=[AgentRole("r", models=["m"])])
"""
PYTHON = {
    "no fleet": ("x = 1\n", "declares no fleet"),
    "two fleets": (TWO, "declares 2 fleets"),
    "a syntax error": ("fleet = Fleet(\n", "is not valid Python"),
    "an exception": ("raise RuntimeError('first\\nsecond')\n", "RuntimeError"),
    "an exit": ("import sys\nsys.exit(0)\n", "raised an exception"),
    "a bad role": (
        'from nemo_agents import AgentRole\nrole = AgentRole("r", models=["m"], budget="$-1/day")\n',
        "line 2",
    ),
}


@pytest.mark.parametrize("case", PYTHON)
def test_a_python_fleet_file_that_cannot_be_meant_is_one_line(shell, tmp_path, case):
    text, problem = PYTHON[case]
    file = tmp_path / "fleet.py"
    file.write_text(text)
    said = shell.run("provision", file, "--yes").error()
    assert said.startswith(f"error: {file}: ")
    assert problem in said


def test_a_file_that_is_not_there_or_no_fleet_file_is_one_line(shell, tmp_path):
    said = shell.run("plan", tmp_path / "nowhere.toml").error()
    assert "nowhere.toml" in said
    assert "No such file" in said
    (tmp_path / "fleet.yaml").write_text("fleet: crew")
    assert "ends in .py or .toml" in shell.run("plan", tmp_path / "fleet.yaml").error()
