"""The commands that read: whole in a pipe, fitted on a terminal, JSON on request, and harmless."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import time

import httpx
import pytest
from cli_shell import ANSI, UNSAFE, finish, gateway_process, make_shell, plain, read_until

from nemo_agents.admin import observe
from nemo_agents.admin.wire import FleetStatus, RoleStatus, SpikeStatus
from nemo_agents.cli.doctor import _readiness
from nemo_agents.cli.events import _further
from nemo_agents.cli.observe import _Since
from nemo_agents.cli.status import print_status
from nemo_agents.client import Client
from nemo_agents.secret import Secret

TABLES = (
    "status",
    "runs list",
    "logs",
    "doctor",
    "runs show run-of-two-steps",
    "plan fleet.toml",
)
SHORT_ID = re.compile(r"[\w-]{24}…")  # how a long run id that somebody chose is shown


def ids(result):
    return [call["request_id"] for call in result.json]


@pytest.mark.parametrize("command", TABLES)
def test_in_a_pipe_it_is_plain_on_a_terminal_it_fits_and_json_is_json(town, command):
    args = command.split()
    piped = town.shell.run(*args)
    assert (piped.code, piped.err) == (0, "")
    assert "\x1b" not in piped.out
    assert "…" not in SHORT_ID.sub("", piped.out.replace("OPENAI_API_KEY, …", ""))
    assert all(line == line.rstrip() for line in piped.out.splitlines())
    shown = town.shell.in_terminal(*args)
    assert shown.code == 0
    assert ANSI.search(shown.out)
    assert max(map(len, plain(shown.out).splitlines())) <= 100
    as_json = town.shell.run(*args, "--json")
    assert (as_json.code, as_json.err) == (0, "")
    assert as_json.json


def test_status_is_the_fleet_its_roles_and_their_limits(town):
    said = town.shell.run("status", "crew").out
    head, titles, *rows = said.splitlines()
    assert head.startswith("crew  ")
    assert re.search(r" of \$170/day · <1\u202f% · resets in \d+\u202f(h|min|s)$", head)
    assert " ".join(titles.split()) == "role state spend used resets rpm tpm last used models guardrails"
    cells = {row.split()[0]: row for row in rows}
    assert set(cells) == {"writer", "critic"}
    assert "active" in cells["writer"]
    assert "/30 " in cells["writer"]
    assert "/100k " in cells["critic"]
    assert "fast, gpt-4o-mini" in cells["writer"]
    assert cells["writer"].endswith("pii-filter")
    assert "░░░░░░░░░░  $0.000" in cells["writer"]  # next to nothing of $20 is not a piece of the bar
    fleet = town.shell.run("status", "crew", "--json").json[0]
    assert {role["role"] for role in fleet["roles"]} == set(cells)
    assert fleet["spent_nanos"] == sum(role["spent_nanos"] for role in fleet["roles"]) > 0
    assert "has no fleet nosuch" in town.shell.run("status", "nosuch").error()


def test_runs_list_and_its_filters(town):
    listed = town.shell.run("runs", "list").out
    assert "two steps" in listed
    row = next(line for line in listed.splitlines() if "two steps" in line)
    assert row.split()[:4] == ["run-of-two-steps", "ok", "two", "steps"]
    assert [run["run_id"] for run in town.shell.run("runs", "list", "--model", "fast", "--json").json] == [
        "run-of-two-steps"
    ]
    failed = town.shell.run("runs", "list", "--state", "failed", "--json").json
    assert [run["run_id"] for run in failed] == ["run-with-evil-texts"]
    assert town.shell.run("runs", "list", "--state", "lost").out == "No runs yet.\n"
    assert len(town.shell.run("runs", "list", "--limit", "1", "--json").json) == 1
    none = town.shell.run("runs", "list", "--fleet", "nosuch")
    assert (none.code, none.out) == (0, "No runs yet.\n")


def test_runs_show_is_a_tree_with_a_verdict(town):
    said = town.shell.run("runs", "show", "run-of-two-steps", "--prompts").out.splitlines()
    assert said[0].startswith("two steps  run-of-two-steps  ok")
    assert "2 calls" in said[1]
    assert said[2].startswith("OK: ")
    assert said[3].startswith("├── plan (writer)  ok")
    assert said[4].startswith("│   └── 200 fast → sandbox/")
    assert any("user: outline it" in line for line in said)
    assert any(line.startswith("└── critique (critic)  ok") for line in said)
    by_prefix = town.shell.run("runs", "show", "run-of", "--json").json
    assert by_prefix["run"]["run_id"] == "run-of-two-steps"
    both = town.shell.run("runs", "show", "run-of-two-steps", "--prompts", "--json").json
    assert both["contents"][0]["prompt"] == [{"role": "user", "content": "outline it"}]


def test_chosen_ids_are_shown_so_that_each_can_be_read_and_found(town):
    long = "chosen-by-a-long-program-name-7"
    for run in ("by-hand-1", "by-hand-10", long):
        assert town.ask("writer", f"in {run}", run=run) == 200
    listed = [line.split()[0] for line in town.shell.run("runs", "list").out.splitlines()]
    assert {"by-hand-1", "by-hand-10", f"{long[:24]}…"} <= set(listed)
    assert long in [run["run_id"] for run in town.shell.run("runs", "list", "--json").json]
    logged = town.shell.run("logs", "--limit", "3").out
    assert [word for word in ("by-hand-1 ", "by-hand-10 ", f"{long[:24]}… ") if word not in logged] == []
    exact = town.shell.run("runs", "show", "by-hand-1", "--json").json
    assert exact["run"]["run_id"] == "by-hand-1"  # though another begins so
    assert "there is no run 'by-hand-'" in town.shell.run("runs", "show", "by-hand-").error()
    assert {call["run_id"] for call in town.shell.run("logs", "--run", "by-hand-1", "--json").json} == {"by-hand-1"}
    assert town.shell.run("view", "by-hand-1", "--print").out.startswith(f"{town.url}/runs/by-hand-1?token=")


def test_a_run_that_is_not_there_is_one_line(town):
    for args in (
        ["runs", "show", "nosuch"],
        ["runs", "stop", "nosuch"],
        ["logs", "--run", "nosuch"],
        ["view", "nosuch"],
    ):
        said = town.shell.run(*args).error()
        assert "there is no run 'nosuch'" in said
        assert "`nemo-agents runs list`" in said


def test_logs_by_each_filter(town):
    logs = town.shell.run("logs", "--json")
    assert len(logs.json) >= 4
    newest_first = [call["started_us"] for call in logs.json]
    assert newest_first == sorted(newest_first, reverse=True)
    for flags, key, value in (
        (["--role", "critic"], "role", "critic"),
        (["--fleet", "crew"], "fleet", "crew"),
        (["--model", "fast"], "model_asked", "fast"),
        (["--status", "403"], "status", 403),
        (["--code", "model_not_allowed"], "code", "model_not_allowed"),
        (["--run", "run-of"], "run_id", "run-of-two-steps"),
    ):
        found = town.shell.run("logs", *flags, "--json").json
        assert found, flags
        assert {call[key] for call in found} == {value}
        assert len(found) < len(logs.json) or key == "fleet"
    assert len(ids(town.shell.run("logs", "--limit", "2", "--json"))) == 2
    assert ids(town.shell.run("logs", "--since", "1h", "--json")) == ids(logs)
    assert town.shell.run("logs", "--role", "nobody").out == "No calls match.\n"


def test_logs_fit_a_terminal_and_leave_nothing_out_of_a_pipe(town):
    whole = town.shell.run("logs").out.splitlines()
    titles = "UTC role run step model served by status code in out cost took first token request"
    assert " ".join(whole[0].split()) == titles
    request = town.shell.run("logs", "--json").json[0]["request_id"]
    assert whole[1].endswith(request)
    for columns in (80, 120):
        lines = plain(town.shell.in_terminal("logs", columns=columns).out).splitlines()
        assert max(map(len, lines)) <= columns
        assert len(lines) >= len(whole)  # a line a call, and what was left out
        assert "left out to fit: " in " ".join(lines)
    wide = plain(town.shell.in_terminal("logs", columns=200).out)
    assert "left out" not in wide


def test_tail_prints_calls_as_they_end(town):
    process = town.shell.start("runs", "tail", "--interval", "0.1", "--role", "critic")
    assert "Waiting for calls" in process.stderr.readline()
    town.ask("writer", "not for this tail", run="run-not-tailed", step="draft")
    town.ask("critic", "what now?", run="run-that-is-tailed", step="judge")
    line = read_until(process, "run-that")
    assert "critic  judge  200 gpt-4o-mini → sandbox" in line
    assert "run-not-" not in line
    ended = finish(process, signal.SIGINT)
    assert ended.code == 130
    assert "Traceback" not in ended.err


def test_tail_as_json(town):
    process = town.shell.start("runs", "tail", "--interval", "0.1", "--json")
    process.stderr.readline()
    town.ask("critic", "and now?", run="run-tailed-as-json", step="judge")
    call = json.loads(read_until(process, "run-tailed-as-json"))
    assert (call["run_id"], call["status"]) == ("run-tailed-as-json", 200)
    assert finish(process, signal.SIGTERM).code != 0


def test_stop_refuses_the_runs_next_call(town):
    assert town.ask("writer", "first", run="run-to-be-stopped") == 200
    stopped = town.shell.run("runs", "stop", "run-to-be")
    assert stopped.code == 0
    assert "run-to-be-stopped" in stopped.out
    assert town.ask("writer", "second", run="run-to-be-stopped") == 403
    shown = town.shell.run("runs", "show", "run-to-be-stopped").out
    assert "run_stopped" in shown


def test_calls_alike_are_one_line_on_a_terminal_and_all_lines_in_a_pipe(town):
    for number in range(6):
        assert town.ask("critic", f"question {number}", run="alike-run", step="loop") == 200
    assert town.shell.run("runs", "show", "alike-run").out.count("200 gpt-4o-mini") == 6
    shown = plain(town.shell.in_terminal("runs", "show", "alike-run").out)
    assert shown.count("200 gpt-4o-mini") == 1
    assert "6 calls" in next(line for line in shown.splitlines() if "200 gpt-4o-mini" in line)


def test_view_prints_an_address_that_signs_in(town):
    for args, path in ((["view", "--print"], "/runs"), (["view", "run-of", "--print"], "/runs/run-of-two-steps")):
        said = town.shell.run(*args)
        assert said.code == 0
        url = said.out.strip()
        assert url.startswith(f"{town.url}{path}?token=")
        with httpx.Client(follow_redirects=True, trust_env=False) as browser:
            page = browser.get(url)
        assert page.status_code == 200
        assert "token" not in str(page.url)


def test_doctor_finds_what_is_wrong(town, tmp_path):
    fine = town.shell.run("doctor")
    assert fine.code == 0
    assert f"ok    {town.home} is private and writable" in fine.out
    assert "every balance in the ledger adds up" in fine.out
    assert "ok    store and limiter are ready" in fine.out
    assert "fail" not in {line.split()[0] for line in fine.out.splitlines()}
    wrong_key = town.shell.given(NEMO_ADMIN_KEY="sk-of-somebody-else").run("doctor")
    assert wrong_key.code == 1
    assert "refuses" in wrong_key.out
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "admin.key").write_text("sk-admin-that-all-can-read")
    (home / "admin.key").chmod(0o644)
    alone = make_shell(tmp_path, NEMO_HOME=str(home), NEMO_GATEWAY_URL="http://127.0.0.1:9")
    open_home = alone.run("doctor")
    assert open_home.code == 1
    assert f"fail  {home / 'admin.key'} is open to others" in open_home.out
    assert f"→ chmod 600 {home / 'admin.key'}" in open_home.out
    assert "is private and writable" not in open_home.out
    assert "warn  no gateway at http://127.0.0.1:9" in open_home.out
    assert {finding["level"] for finding in alone.run("doctor", "--json").json} >= {"ok", "warn", "fail"}


def test_doctor_says_what_the_gateway_cannot_reach():
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/health/ready"
        fault = {"message": "The rates cannot be counted now.", "type": "service_unavailable", "code": "503"}
        return httpx.Response(503, json={"status": "not ready", "limiter": "store_unavailable", "error": fault})

    with Client("http://127.0.0.1:4141", Secret("k"), transport=httpx.MockTransport(answer)) as client:
        (finding,) = _readiness(client, "http://127.0.0.1:4141")
    assert finding.level == "fail"
    assert "The rates cannot be counted now." in finding.what
    assert "Redis" in finding.remedy


@pytest.mark.parametrize(
    "command",
    ["runs list", "runs show run-with-evil-texts --prompts", "logs", "status"],
)
def test_texts_of_strangers_do_not_control_the_terminal(town, command):
    piped = town.shell.run(*command.split()).out
    assert not UNSAFE.search(piped)
    assert not any(line.startswith("OK: 0 calls") for line in piped.splitlines())
    shown = town.shell.in_terminal(*command.split()).out
    assert not UNSAFE.search(plain(shown))
    as_json = town.shell.run(*command.split(), "--json").out
    assert not UNSAFE.search(as_json)


def test_texts_of_strangers_are_shown_with_marks_and_whole_in_json(town):
    shown = town.shell.run("runs", "show", "run-with-evil-texts", "--prompts").out
    assert "run ␛[2J␛]0;owned␇⟨U+202E⟩gpj.exe⟨U+2066⟩⟨U+009B⟩31m␊OK: 0 calls" in shown.splitlines()[0]
    told = town.shell.run("runs", "show", "run-with-evil-texts", "--json").json
    with Client(town.url, Secret((town.home / "admin.key").read_text().strip())) as client:
        detail = client.run(observe.run("run-with-evil-texts"))
    assert told["run"]["name"] == detail.run.name
    assert "\x1b[2J" in told["run"]["name"]


def test_a_refused_call_of_an_evil_model_name_is_harmless(town):
    assert town.ask("critic", "x", model="m\x1b[31m\u202e\n200 fine") in (400, 403, 404)
    out = town.shell.run("logs", "--limit", "3").out
    assert not UNSAFE.search(out)
    assert len(out.splitlines()) == 4


def test_a_reader_that_leaves_is_no_error(town):
    process = town.shell.start("logs", "--json", "--limit", "500")
    process.stdout.close()
    process.stdout = None
    err = process.communicate(timeout=60)[1]
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_a_narrow_encoding_loses_characters_and_nothing_else(town):
    said = town.shell.given(PYTHONIOENCODING="ascii").run("runs", "show", "run-of-two-steps")
    assert said.code == 0
    assert "plan (writer)" in said.out
    assert said.out.isascii()


# --- budgets, limits in shadow mode, alerts -----------------------------------------------------------------------
def admin(town, path, body):
    key = (town.home / "admin.key").read_text().strip()
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(town.url + path, json=body, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="session")
def trial(town):
    """A fleet with two budgets in all modes, rates of a model, and a run that limits in shadow mode let through."""
    further = [{"max_budget": 0.00001, "budget_duration": "1mo", "mode": "shadow", "alert_at": [0.5]}]
    admin(
        town,
        "/team/new",
        {
            "team_id": "trial",
            "max_budget": 5,
            "budget_duration": "1mo",
            "rpm_limit": 300,
            "metadata": {"nemo": {"managed": True}},
        },
    )
    made = admin(
        town,
        "/key/generate",
        {
            "key_alias": "trial/scout",
            "team_id": "trial",
            "models": ["gpt-4o-mini"],
            "max_budget": 1,
            "budget_duration": "1d",
            "rpm_limit": 1,
            "model_rpm_limit": {"gpt-4o-mini": 50},
            "metadata": {"nemo": {"role": "scout", "budgets": further, "shadow": ["rpm"]}},
        },
    )
    town.keys["scout"] = made["key"]
    for number in range(6):
        assert town.ask("scout", f"question {number}", run="trial-in-shadow", step="look") == 200
    process = town.shell.start("events", "--follow", "--interval", "0.1", "--fleet", "trial", "--json")
    assert "Waiting for alerts" in process.stderr.readline()
    told = [json.loads(read_until(process, "budget.")) for _ in range(2)]
    finish(process, signal.SIGINT)
    return told


def test_status_shows_every_budget_with_its_mode_and_what_limits_are_in_shadow(town, trial):
    head, rates, _, scout, month, model = town.shell.run("status", "trial").out.splitlines()
    assert " of $5/month · <1\u202f% · resets in " in head
    assert rates.strip() == "rpm 6/300 · tpm " + rates.rpartition("tpm ")[2]
    assert "6/1 shadow" in scout
    assert " of $1/day " in scout
    assert " of $0.00001/month shadow " in month
    assert "in " in month  # when it resets
    assert "of it gpt-4o-mini" in model
    assert "6/50 shadow" in model
    role = town.shell.run("status", "trial", "--json").json[0]["roles"][0]
    assert [(budget["name"], budget["mode"]) for budget in role["budgets"]] == [("day", "enforce"), ("month", "shadow")]


def test_a_spike_is_under_the_roles():
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    role = RoleStatus(
        role="writer",
        key_id="k",
        state="active",
        models=[],
        spent_nanos=0,
        held_nanos=0,
        budget_nanos=None,
        period=None,
        resets_at_us=None,
        alert_at=None,
        rpm=None,
        rpm_used=0,
        tpm=None,
        tpm_used=0,
        last_used_us=None,
        spike=SpikeStatus(hour_nanos=12_600_000_000, usual_nanos=3_000_000_000, factor=4.2),
    )
    fleet = FleetStatus(
        fleet="crew", spent_nanos=0, held_nanos=0, budget_nanos=None, period=None, resets_at_us=None, roles=[role]
    )
    print_status(Console(file=out, width=100, color_system=None), fleet)
    assert out.getvalue().splitlines()[-1] == "▲ writer: spike 4.2x: $12.60 in the last hour, usually $3"


def test_runs_and_logs_mark_what_limits_in_shadow_mode_would_have_refused(town, trial):
    shown = town.shell.run("runs", "show", "trial-in-shadow").out
    assert (
        "In shadow mode, the role's budget would have stopped this run at call 1; the role's rpm would have refused "
        "call 2 and 4 more calls." in shown.splitlines()
    )
    assert "◌ shadow: role rpm" in shown
    assert "would have been refused: " in shown
    logged = town.shell.run("logs", "--run", "trial-in-shadow").out.splitlines()
    assert sum("◌ role rpm" in line for line in logged) == 5
    other = town.shell.run("runs", "show", "run-of-two-steps").out
    assert "shadow" not in other


def test_events_are_followed_and_read(town, trial):
    assert [(event["kind"], event["role"], event["facts"]["mode"]) for event in trial] == [
        ("budget.alert", "scout", "shadow"),
        ("budget.exhausted", "scout", "shadow"),
    ]
    said = town.shell.run("events", "--fleet", "trial").out.splitlines()
    assert len(said) == 2
    assert said[1].endswith("(in shadow mode: nothing is refused).")
    assert "  budget.exhausted  trial  The budget of role scout is spent: " in said[1]
    shown = plain(town.shell.in_terminal("events", "--fleet", "trial", columns=60).out).splitlines()
    assert len(shown) > 2
    assert max(map(len, shown)) <= 60
    assert "the gateway has no fleet nosuch" in town.shell.run("events", "--fleet", "nosuch").error()
    assert [event["seq"] for event in town.shell.run("events", "--fleet", "trial", "--json").json] == [
        event["seq"] for event in trial
    ]


def test_following_events_outlives_a_restart_of_the_gateway(tmp_path):
    shell = make_shell(tmp_path, NEMO_HOME=str(tmp_path / "home"))
    with gateway_process(shell, tmp_path / "home") as (_, url):
        following = shell.given(NEMO_GATEWAY_URL=url).start("events", "--follow", "--interval", "0.1")
        assert following.stderr is not None
        assert "Waiting for alerts" in following.stderr.readline()
    try:
        assert following.stderr.readline().startswith("The gateway is away (no gateway at ")
        with gateway_process(shell, tmp_path / "home", "--port", url.rpartition(":")[2]):
            assert following.stderr.readline() == "The gateway is back.\n"
    finally:
        finish(following, signal.SIGINT)


def test_following_events_goes_on_after_the_last_one_and_says_once_that_the_gateway_is_away(capsys):
    answers = iter([httpx.Response(503, json={"error": {"message": "not now"}})] * 2)
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["after"])
        return next(answers, httpx.Response(200, json={"events": [], "next": 7}))

    with Client("http://127.0.0.1:4141", Secret("k"), transport=httpx.MockTransport(answer)) as client:
        assert _further(client, 7, None, pause_s=0).next == 7
    assert asked == ["7", "7", "7"]
    said = capsys.readouterr().err
    assert said.count("away") == 1
    assert said.endswith("The gateway is back.\n")


def test_ledger_verify_says_when_it_does_not_add_up(tmp_path):
    shell = make_shell(tmp_path, NEMO_HOME=str(tmp_path / "home"))
    with gateway_process(shell, tmp_path / "home") as (_, url):
        here = shell.given(NEMO_GATEWAY_URL=url)
        assert here.run("ledger", "verify").out == "Every balance in the ledger adds up.\n"
        with contextlib.closing(sqlite3.connect(tmp_path / "home" / "gateway.db")) as db, db:
            db.execute("INSERT INTO balances(kind, scope_id, period, posted_nanos) VALUES ('role', 'g', 'total', 5)")
        wrong = here.run("ledger", "verify")
        assert wrong.code == 1
        assert wrong.out.startswith("The balance of role g in total says $0.000000005 posted, its entries add up to $0")
        assert "keep a copy of its database" in wrong.err
        as_json = here.run("ledger", "verify", "--json")
        assert (as_json.code, len(as_json.json["problems"])) == (1, 1)
        assert here.run("doctor").code == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600)]
)
def test_since_is_that_long_before_now(text, seconds):
    before = time.time_ns() // 1000
    since = _Since().convert(text, None, None)
    after = time.time_ns() // 1000
    assert before <= since + seconds * 1_000_000 <= after


def test_since_longer_ago_than_there_was_a_clock_is_since_ever():
    assert _Since().convert("999999d", None, None) == 0
