"""Runs over HTTP: caps, the stop switch, what the SDK reports, and that a key sees its own fleet alone."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from gateway_bench import Bench, Key, refused

from nemo_agents import AgentRole, BudgetExceeded, Fleet, Run, RunStopped
from nemo_agents.admin.wire import RunDetail
from nemo_agents.viewer.verdict import why

RUN_ID = "the-run"


def grouped(run_id: str = RUN_ID, **more: str) -> dict[str, str]:
    return {
        "x-nemo-run-id": run_id,
        **{f"x-nemo-{name.replace('_', '-')}": value for name, value in more.items()},
    }


def as_key(bench: Bench, key: Key, path: str, **params: Any) -> Any:
    answer = bench.http.get(path, headers=key.headers, params=params)
    return answer.json() if answer.status_code == 200 else answer.status_code


# --- caps ---------------------------------------------------------------------------------------------------------
def test_a_run_ends_with_its_calls(bench: Bench):
    key = bench.key()
    for _ in range(2):
        assert bench.chat(key, headers=grouped(run_max_calls="2")).status_code == 200
    answer = bench.chat(key, headers=grouped(run_max_calls="2"))
    refused(answer, 403, "run_stopped", scope="run", limit="max_calls")
    refused(bench.chat(key, headers=grouped()), 403, "run_stopped", limit="max_calls")
    refused(bench.chat(key, headers=grouped(run_max_calls="100")), 403, "run_stopped", limit="max_calls")
    assert bench.chat(key, headers=grouped("another")).status_code == 200
    detail = bench.ok("GET", f"/nemo/runs/{RUN_ID}", fleet=bench.fleet)
    expected = {"state": "stopped", "calls": 5, "errors": 3, "max_calls": 2, "cost_nanos": 62_000}
    assert {name: detail["run"][name] for name in expected} == expected
    assert detail["run"]["stopped_by"]["kind"] == "max_calls"
    assert [call["seq"] for call in detail["calls"]] == [1, 2, 3, 4, 5]


def test_a_call_cap_holds_against_callers_at_once(bench: Bench):
    key = bench.key()
    calls = [bench.later(bench.chat, key, headers=grouped(run_max_calls="7")) for _ in range(40)]
    statuses = [call.result().status_code for call in calls]
    assert sorted(statuses) == [200] * 7 + [403] * 33
    assert len(bench.sent()) == 7


def test_a_run_s_caps_are_lowered_and_never_raised(bench: Bench):
    key = bench.key()
    assert bench.chat(key, headers=grouped(run_budget="0.00019")).status_code == 200
    for later in (grouped(run_budget="100"), grouped()):
        refused(bench.chat(key, headers=later), 402, "budget_exhausted", scope="run")
    assert len(bench.sent()) == 1
    assert bench.chat(key, headers=grouped("another", run_budget="100")).status_code == 200
    refused(
        bench.chat(key, headers=grouped("another", run_budget="0.00019")),
        402,
        "budget_exhausted",
        scope="run",
    )


def test_a_run_belongs_to_its_fleet(bench: Bench):
    """The same id in another fleet is another run: nobody joins, spends or stops a stranger's."""
    mine, other = bench.key(), bench.key(fleet=f"{bench.fleet}-other")
    assert bench.chat(mine, headers=grouped(run_max_calls="1")).status_code == 200
    assert bench.chat(other, headers=grouped()).status_code == 200
    refused(bench.chat(mine, headers=grouped()), 403, "run_stopped")
    bench.ok("POST", f"/nemo/runs/{RUN_ID}/stop", fleet=f"{bench.fleet}-other")
    refused(bench.chat(other, headers=grouped()), 403, "run_stopped", limit="stopped")
    run = bench.ok("GET", f"/nemo/runs/{RUN_ID}", fleet=bench.fleet)["run"]
    assert (run["fleet"], run["calls"], run["stopped_by"]["kind"]) == (bench.fleet, 2, "max_calls")


def test_a_run_crosses_the_roles_of_its_fleet(bench: Bench):
    keys = [bench.key(metadata={"nemo": {"role": role}}) for role in ("planner", "writer")]
    for key, step in zip(keys, ("plan", "write"), strict=True):
        bench.chat(key, headers=grouped(step=step, parent_step="root", run_name="a%20run"))
    detail = bench.ok("GET", f"/nemo/runs/{RUN_ID}", fleet=bench.fleet)
    assert detail["run"]["name"] == "a run"
    assert detail["run"]["roles"] == ["planner", "writer"]
    assert [(step["step"], step["parent"], step["role"]) for step in detail["steps"]] == [
        ("plan", "root", "planner"),
        ("write", "root", "writer"),
    ]
    assert [(call["step"], call["role"]) for call in detail["calls"]] == [
        ("plan", "planner"),
        ("write", "writer"),
    ]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-litellm-session-id": "s-1"}, {}),
        ({"x-litellm-trace-id": "s-1"}, {}),
        ({"x-acme-session-id": "s-1"}, {}),
        ({"helicone-session-id": "s-1"}, {}),
        ({}, {"metadata": {"session_id": "s-1"}}),
        ({}, {"litellm_session_id": "s-1"}),
        ({"x-nemo-run-id": "s-1", "x-litellm-session-id": "s-2"}, {"metadata": {"session_id": "s-3"}}),
    ],
)
def test_the_grouping_of_others_is_understood(bench: Bench, headers: dict[str, str], body: dict[str, Any]):
    answer = bench.chat(bench.key(), headers=headers, **body)
    assert answer.headers["x-nemo-run-id"] == "s-1"
    assert bench.row(answer)["run_id"] == "s-1"


def test_a_trace_is_a_run(bench: Bench):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = bench.chat(bench.key(), headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert answer.headers["x-nemo-run-id"] == trace


# --- stop ---------------------------------------------------------------------------------------------------------
def test_a_stopped_run_takes_no_further_call(bench: Bench):
    key = bench.key()
    bench.chat(key, headers=grouped())
    assert bench.ok("POST", f"/nemo/runs/{RUN_ID}/stop", fleet=bench.fleet) == {
        "run_id": RUN_ID,
        "stopped": True,
    }
    answer = bench.chat(key, headers=grouped())
    refused(answer, 403, "run_stopped", scope="run", limit="stopped")
    bench.ok("POST", f"/nemo/runs/{RUN_ID}/stop", fleet=bench.fleet)
    run = bench.ok("GET", f"/nemo/runs/{RUN_ID}", fleet=bench.fleet)["run"]
    assert (run["state"], run["stopped_by"]["kind"]) == ("stopped", "stopped")
    assert bench.chat(key).status_code == 200


# --- a key sees its own fleet alone -------------------------------------------------------------------------------
def test_a_key_sees_the_runs_calls_and_contents_of_its_own_fleet_alone(bench: Bench):
    mine, other = bench.key(), bench.key(fleet=f"{bench.fleet}-other")
    own = bench.chat(mine, headers=grouped("mine"), text="my words")
    theirs = bench.chat(other, headers=grouped("theirs"), text="their words")
    own_id, their_id = (answer.headers["x-nemo-request-id"] for answer in (own, theirs))
    assert [run["run_id"] for run in as_key(bench, mine, "/nemo/runs")["runs"]] == ["mine"]
    assert [call["request_id"] for call in as_key(bench, mine, "/nemo/logs")["calls"]] == [own_id]
    assert [fleet["fleet"] for fleet in as_key(bench, mine, "/nemo/status")] == [bench.fleet]
    assert as_key(bench, mine, "/nemo/runs/mine")["run"]["run_id"] == "mine"
    assert as_key(bench, mine, f"/nemo/calls/{own_id}")["request_id"] == own_id
    assert as_key(bench, mine, f"/nemo/calls/{own_id}/content")["prompt"][0]["content"] == "my words"
    for path in ("/nemo/runs/theirs", f"/nemo/calls/{their_id}", f"/nemo/calls/{their_id}/content"):
        assert as_key(bench, mine, path, fleet=other.fleet) == 404
    for path, what in (("/nemo/runs", "runs"), ("/nemo/logs", "calls")):
        found = as_key(bench, mine, path, fleet=other.fleet, run_id="theirs")
        assert found[what] == []
    assert as_key(bench, mine, "/nemo/runs/last")["run"]["run_id"] == "mine"
    assert bench.http.post("/nemo/runs/mine/stop", headers=mine.headers).status_code == 403


def test_keys_without_a_fleet_see_nothing_of_one_another(bench: Bench):
    def alone() -> Key:
        made = bench.ok("POST", "/key/generate", {"models": ["faulty/*"]})
        return Key(secret=made["key"], public_id=made["token"], fleet="")

    mine, other = alone(), alone()
    answer = bench.chat(other, headers=grouped("private-run-of-another"), text="secret words")
    assert answer.status_code == 200
    assert as_key(bench, mine, "/nemo/runs")["runs"] == []
    assert as_key(bench, mine, "/nemo/logs")["calls"] == []
    assert as_key(bench, mine, "/nemo/status") == []
    for path in (
        "runs/private-run-of-another",
        "runs/last",
        f"calls/{answer.headers['x-nemo-request-id']}/content",
    ):
        assert as_key(bench, mine, f"/nemo/{path}") == 404
    assert bench.http.get("/key/info", headers=mine.headers).json()["key"] == mine.public_id


# --- reports ------------------------------------------------------------------------------------------------------
REPORT: dict[str, Any] = {
    "name": "answer",
    "state": "ok",
    "started_us": 1_760_000_000_000_000,
    "ended_us": 1_760_000_001_000_000,
    "steps": [{"step": "plan", "role": "planner", "state": "ok", "started_us": 1_760_000_000_000_000}],
}


def report(bench: Bench, key: Key, body: Any, run_id: str = RUN_ID) -> Any:
    return bench.http.post(f"/nemo/runs/{run_id}/report", json=body, headers=key.headers)


def test_a_report_gives_a_run_its_name_and_end(bench: Bench):
    key = bench.key()
    bench.chat(key, headers=grouped(step="plan"))
    row = report(bench, key, REPORT).json()
    expected = {"run_id": RUN_ID, "fleet": bench.fleet, "name": "answer", "state": "ok", "calls": 1}
    assert {name: row[name] for name in expected} == expected
    assert row["cost_nanos"] == 31_000
    assert row["ended_us"] == REPORT["ended_us"]


def test_a_report_may_cap_a_run_before_its_first_call(bench: Bench):
    key = bench.key()
    assert report(bench, key, {**REPORT, "state": "running", "ended_us": None, "max_calls": 1}).status_code == 200
    assert bench.chat(key, headers=grouped()).status_code == 200
    refused(bench.chat(key, headers=grouped()), 403, "run_stopped", limit="max_calls")


@pytest.mark.parametrize(
    "change",
    [
        {"state": "excellent"},
        {"state": 1},
        {"started_us": "now"},
        {"started_us": 2**63},
        {"started_us": -(2**70)},
        {"started_us": -5},
        {"ended_us": 9 * 10**18},
        {"steps": [{"step": "plan", "started_us": 1_760_000_000}]},
        {"name": None},
        {"steps": {}},
        {"steps": [{"step": "plan"}]},
        {"steps": [{"step": "plan", "started_us": 1, "state": "odd"}]},
        {"budget_nanos": "1"},
        {"max_calls": 2**64},
    ],
    ids=str,
)
def test_a_report_that_cannot_be_meant(bench: Bench, change: dict[str, Any]):
    key = bench.key()
    answer = report(bench, key, {**REPORT, **change})
    assert answer.status_code == 422, answer.text
    assert as_key(bench, key, "/nemo/runs")["runs"] == []


def test_a_report_is_of_the_fleet_of_its_key(bench: Bench):
    mine, other = bench.key(), bench.key(fleet=f"{bench.fleet}-other")
    bench.chat(mine, headers=grouped())
    assert report(bench, other, {**REPORT, "name": "stolen"}).json()["calls"] == 0
    assert as_key(bench, mine, f"/nemo/runs/{RUN_ID}")["run"]["name"] == RUN_ID
    assert bench.admin("POST", f"/nemo/runs/{RUN_ID}/report", REPORT).status_code == 403
    assert report(bench, mine, REPORT, run_id="a%20b").status_code == 400


# --- pages and filters --------------------------------------------------------------------------------------------
def test_the_log_comes_in_pages_newest_first(bench: Bench):
    key = bench.key()
    ids = [bench.chat(key).headers["x-nemo-request-id"] for _ in range(5)]
    seen: list[str] = []
    before: dict[str, str] = {}
    for size in (2, 2, 1):
        page = bench.ok("GET", "/nemo/logs", fleet=bench.fleet, limit=2, **before)
        assert len(page["calls"]) == size
        seen += [call["request_id"] for call in page["calls"]]
        before = {"before": page["next"]}
    assert seen == ids[::-1]
    assert page["next"] is None


def test_the_log_can_be_narrowed(bench: Bench):
    key = bench.key(metadata={"nemo": {"role": "asker"}})
    bench.chat(key, headers=grouped())
    bench.chat(key, "faulty/error-500")
    bench.chat(key, "elsewhere/ok")

    def count(**where: Any) -> int:
        return len(bench.ok("GET", "/nemo/logs", fleet=bench.fleet, **where)["calls"])

    assert count() == 3
    assert count(status=200) == count(run_id=RUN_ID) == count(model="faulty/ok") == count(state="ok") == 1
    assert count(code="model_not_allowed") == count(status=403) == 1
    assert count(role="asker") == 3
    assert count(role="nobody") == count(since_us=10**16) == 0


@pytest.mark.parametrize("path", ["/nemo/logs", "/nemo/runs"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "x"),
        ("since_us", "-1"),
        ("since_us", "9" * 30),
        ("limit", "x"),
        ("before", "x"),
        ("before", "1.2.3"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_named(bench: Bench, path: str, name: str, value: str):
    answer = bench.admin("GET", path, **{name: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name


# --- the SDK over all of it ---------------------------------------------------------------------------------------
def test_a_declared_fleet_runs_and_stops_at_its_budget(bench: Bench):
    declared = Fleet(
        bench.fleet,
        budget="$1",
        roles=[
            AgentRole("planner", models=["faulty/*"], budget="$0.0005"),
            AgentRole("writer", models=["faulty/ok"], rpm=100, guardrails=["pii-filter"]),
        ],
    )
    fleet = bench.gateway.provision(declared)
    assert bench.gateway.plan(declared).is_empty
    ask: dict[str, Any] = {
        "messages": [{"role": "user", "content": "mail ann@example.com"}],
        "max_tokens": 50,
    }
    with fleet.run("a run", max_calls=50) as run:
        with run.step("write", role="writer") as step:
            step.openai().chat.completions.create(model="faulty/ok", **ask)
        with run.step("plan", role="planner") as step:
            for _ in range(50):
                step.openai().chat.completions.create(model="faulty/ok", **ask)
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert (run.stopped_by.kind, run.stopped_by.scope, run.stopped_by.step) == ("budget", "role", "plan")
    assert "ann@example.com" not in str(bench.sent()[0])
    detail = bench.ok("GET", f"/nemo/runs/{run.id}", fleet=bench.fleet)
    assert detail["run"]["state"] == "stopped"
    assert detail["run"]["stopped_by"]["scope"] == "role"
    assert [step["step"] for step in detail["steps"]] == ["write", "plan"]
    assert run.cost.nanos == detail["run"]["cost_nanos"] == bench.spent()[0]


def seen_alike(bench: Bench, run: Run) -> dict[str, Any]:
    """What the SDK says of a run that has ended is what the gateway says of it, alone and in the list."""
    row = bench.ok("GET", f"/nemo/runs/{run.id}", fleet=bench.fleet)["run"]
    assert [row] == bench.ok("GET", "/nemo/runs", fleet=bench.fleet, run_id=run.id)["runs"]
    assert (run.state, run.calls, run.cost_nanos) == (row["state"], row["calls"], row["cost_nanos"])
    assert (run.stopped_by and msgspec.to_builtins(run.stopped_by)) == row["stopped_by"]
    return row


def test_a_run_that_went_on_after_a_refusal_has_recovered_here_and_there(bench: Bench):
    roles = [AgentRole("poor", models=["faulty/*"], budget="$0.0001"), AgentRole("rich", models=["faulty/*"])]
    fleet = bench.gateway.provision(Fleet(bench.fleet, roles=roles))
    ask: dict[str, Any] = {"model": "faulty/ok", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    with fleet.run("a run") as run:
        with run.step("poor", role="poor") as step, contextlib.suppress(BudgetExceeded):
            step.openai().chat.completions.create(**ask)
        assert run.stopped_by is not None
        with run.step("rich", role="rich") as step:
            step.openai().chat.completions.create(**ask)
    row = seen_alike(bench, run)
    assert (row["state"], row["errors"], row["stopped_by"]) == ("recovered", 1, None)


def test_a_run_that_is_stopped_by_hand_in_the_middle_of_a_call_names_it(bench: Bench):
    fleet = bench.gateway.provision(Fleet(bench.fleet, roles=[AgentRole("a", models=["faulty/*"])]))
    ask: dict[str, Any] = {"model": "faulty/stepped", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with fleet.run("a run") as run, run.step("s", role="a") as step:
        for _ in step.openai().chat.completions.create(**ask):
            bench.ok("POST", f"/nemo/runs/{run.id}/stop", fleet=bench.fleet)
    row = seen_alike(bench, run)
    assert (row["state"], row["stopped_by"]["kind"], row["stopped_by"]["step"]) == ("stopped", "stopped", "s")
    detail = bench.ok("GET", f"/nemo/runs/{run.id}", fleet=bench.fleet)
    assert why(msgspec.convert(detail, RunDetail)).text == "Stopped by hand during step 1 s, call 1 (cut)."


def test_a_run_that_nobody_reports_names_the_call_that_its_stop_cut(bench: Bench):
    key, headers = bench.key(), grouped(step="s")
    asked = {"model": "faulty/stepped", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    sent = {**key.headers, **headers}
    with bench.http.stream("POST", "/v1/chat/completions", json=asked, headers=sent) as answer:
        parts = answer.iter_text()
        next(parts)
        bench.ok("POST", f"/nemo/runs/{RUN_ID}/stop", fleet=bench.fleet)
        assert "run_stopped" in "".join(parts)
    refused(bench.chat(key, headers=headers), 403, "run_stopped", limit="stopped")
    detail = bench.ok("GET", f"/nemo/runs/{RUN_ID}", fleet=bench.fleet)
    told = "Stopped by hand during step 1 s, call 1 (cut); 1 later call was refused."
    assert why(msgspec.convert(detail, RunDetail)).text == told
    assert detail["run"]["stopped_by"]["request_id"] == answer.headers["x-nemo-request-id"]


def test_a_run_that_is_stopped_by_hand_ends_in_the_sdk(bench: Bench):
    fleet = bench.gateway.provision(Fleet(bench.fleet, roles=[AgentRole("a", models=["faulty/*"])]))
    ask: dict[str, Any] = {
        "model": "faulty/ok",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 50,
    }

    def stopped_between_two_calls() -> None:
        with fleet.run("a run", on_stop="raise") as run, run.step("s", role="a") as step:
            client = step.openai()
            client.chat.completions.create(**ask)
            bench.ok("POST", f"/nemo/runs/{run.id}/stop", fleet=bench.fleet)
            client.chat.completions.create(**ask)

    with pytest.raises(RunStopped):
        stopped_between_two_calls()
    assert [row["code"] for row in bench.logs()] == [None, "run_stopped"]
