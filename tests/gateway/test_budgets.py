"""Several budgets at once, budgets in shadow mode, caps lowered to what a budget leaves, and what nobody can price."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from faulty_provider import run_faulty_provider
from gateway_bench import INPUT_NANOS, OUTPUT_NANOS, Bench, Key, bench_for, gateway_at, refused

from nemo_agents.policy.pricing import input_tokens_bound

MESSAGES = [{"role": "user", "content": "hi"}]
BOUND_IN = input_tokens_bound({"messages": MESSAGES})
HOLD_NANOS = BOUND_IN * INPUT_NANOS + 50 * OUTPUT_NANOS  # of bench.chat
COST_NANOS = 31_000
ZONE = "Europe/Amsterdam"


def budget(nanos: int, duration: str | None = "1d", **fields: Any) -> dict[str, Any]:
    return {"max_budget": nanos / 1e9, "budget_duration": duration, **fields}


def uncapped(bench: Bench, key: Key, model: str = "faulty/ok", **body: Any) -> httpx.Response:
    """Ask without any cap on the answer."""
    headers = {**key.headers, **body.pop("headers", {})}
    return bench.http.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **body}, headers=headers)


def sent_caps(bench: Bench) -> list[int]:
    return [request["body"]["max_tokens"] for request in bench.sent()]


# --- several at once ------------------------------------------------------------------------------------------------
def test_every_budget_of_role_and_fleet_is_held_and_posted(bench: Bench):
    day, month = budget(10**9), budget(5 * 10**9, "1mo", tz=ZONE)
    bench.ok(
        "POST",
        "/team/new",
        {"team_id": bench.fleet, **budget(10**9, "7d"), "metadata": {"nemo": {"budgets": [budget(10**10, None)]}}},
    )
    key = bench.key(**day, metadata={"nemo": {"budgets": [month]}})
    waiting = bench.later(bench.chat, key, "faulty/slow-first-byte", headers={"x-nemo-run-id": "r"})
    bench.faulty.seen(at_least=1)
    assert bench.spent() == (0, 2 * HOLD_NANOS)  # the fleet's week, and its total
    bench.faulty.release()
    assert waiting.result().status_code == 200
    assert bench.spent() == (2 * COST_NANOS, 0)
    (status,) = [each for each in bench.ok("GET", "/nemo/status") if each["fleet"] == bench.fleet]
    of_role = {each["name"]: each["spent_nanos"] for each in status["roles"][0]["budgets"]}
    assert of_role == {"day": COST_NANOS, f"month {ZONE}": COST_NANOS}
    assert {each["name"]: each["spent_nanos"] for each in status["budgets"]} == {
        "week": COST_NANOS,
        "total": COST_NANOS,
    }


@pytest.mark.parametrize(
    ("role", "fleet", "scope", "called"),
    [
        ([budget(HOLD_NANOS), budget(10**9, "1mo")], [], "role", "role's budget per day"),
        ([budget(10**9), budget(HOLD_NANOS, "1mo")], [], "role", "role's budget per month"),
        (
            [budget(10**9)],
            [budget(10**9), budget(HOLD_NANOS, "1mo", tz=ZONE)],
            "fleet",
            f"fleet's budget per month {ZONE}",
        ),
        ([], [budget(HOLD_NANOS, "12h")], "fleet", "fleet's budget per 12h"),
    ],
)
def test_the_budget_that_is_spent_is_named(bench: Bench, role: Any, fleet: Any, scope: str, called: str):
    def fields(budgets: list[dict[str, Any]]) -> dict[str, Any]:
        first, *others = budgets or [{}]
        zone = {"tz": first["tz"]} if "tz" in first else {}
        first = {name: value for name, value in first.items() if name != "tz"}
        return {**first, "metadata": {"nemo": {**zone, "budgets": others}}}

    bench.ok("POST", "/team/new", {"team_id": bench.fleet, **fields(fleet)})
    key = bench.key(**fields(role))
    assert bench.chat(key).status_code == 200
    answer = bench.chat(key)
    error = refused(answer, 402, "budget_exhausted", scope=scope, limit="budget")
    assert f"The {called} does not allow this call" in error["message"]
    assert "resets_at" in error
    assert bench.row(answer)["scope"] == scope
    assert len(bench.sent()) == 1


def test_what_is_left_is_of_the_tightest_budget_that_is_enforced(bench: Bench):
    others = [budget(2 * 10**9, "7d"), budget(1, "1mo", mode="shadow")]
    key = bench.key(**budget(3 * 10**9), metadata={"nemo": {"budgets": others}})
    assert bench.chat(key).headers["x-nemo-budget-remaining"] == f"{2 - COST_NANOS / 1e9:.6f}"


# --- shadow ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_budget_in_shadow_mode_records_and_refuses_nothing(bench: Bench, stream: bool):
    shadow = budget(HOLD_NANOS, mode="shadow")
    key = bench.key(metadata={"nemo": {"budgets": [shadow]}})
    first, second = bench.chat(key, stream=stream), bench.chat(key, stream=stream)
    assert "x-nemo-shadow" not in first.headers
    assert bench.row(first)["shadow"] == []
    assert second.status_code == 200
    assert second.headers["x-nemo-shadow"] == "budget day"
    (shadowed,) = bench.row(second)["shadow"]
    assert (shadowed["code"], shadowed["scope"], shadowed["limit"]) == ("budget_exhausted", "role", "budget")
    assert "role's budget per day" in shadowed["message"]
    assert "x-nemo-budget-remaining" not in second.headers
    (status,) = [each for each in bench.ok("GET", "/nemo/status") if each["fleet"] == bench.fleet]
    (of_role,) = status["roles"][0]["budgets"]
    assert (of_role["mode"], of_role["spent_nanos"], of_role["held_nanos"]) == ("shadow", 2 * COST_NANOS, 0)


def test_what_no_budget_can_hold_passes_one_in_shadow_mode_and_is_told(unruly: Bench):
    shadow = {"nemo": {"budgets": [budget(10**9, mode="shadow")]}}
    key = unruly.key(models=("unpriced/*",), metadata=shadow)
    answer = unruly.chat(key, "unpriced/ok")
    assert answer.status_code == 200
    assert answer.headers["x-nemo-shadow"] == "model_not_priced"
    assert [each["code"] for each in unruly.row(answer)["shadow"]] == ["model_not_priced"]


# --- clamped caps ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", ["run", "role", "fleet"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_cap_that_the_caller_left_open_is_what_the_budget_leaves(bench: Bench, scope: str, stream: bool):
    """The provider itself then stops at the budget, and the caller is told where."""
    nanos, headers = (BOUND_IN * INPUT_NANOS + 9 * OUTPUT_NANOS + OUTPUT_NANOS // 2), {}
    if scope == "run":
        headers = {"x-nemo-run-id": "r", "x-nemo-run-budget": f"{nanos / 1e9:.9f}"}
    if scope == "fleet":
        bench.ok("POST", "/team/new", {"team_id": bench.fleet, **budget(nanos)})
    key = bench.key(**(budget(nanos) if scope == "role" else {}))
    answer = uncapped(bench, key, stream=stream, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-nemo-max-tokens-clamped"] == "9"
    assert sent_caps(bench) == [9]
    row = bench.row(answer)
    assert (row["finish_reason"], row["output_tokens"], row["attempts"]) == ("length", 9, 1)
    assert row["held_nanos"] == BOUND_IN * INPUT_NANOS + 9 * OUTPUT_NANOS <= nanos
    assert "max_tokens" not in bench.content(answer)["params"]  # what the caller sent is what is kept
    assert bench.spent() == (INPUT_NANOS + 9 * OUTPUT_NANOS, 0)


def test_a_cap_that_fits_is_left_as_it_would_be(bench: Bench):
    answer = uncapped(bench, bench.key(**budget(10**9)))
    assert "x-nemo-max-tokens-clamped" not in answer.headers
    assert sent_caps(bench) == [4096]


def test_a_cap_of_the_caller_is_the_caller_s(bench: Bench):
    key = bench.key(**budget(HOLD_NANOS - 1))
    refused(bench.chat(key), 402, "request_exceeds_budget")
    for field in ("max_tokens", "max_completion_tokens"):
        refused(uncapped(bench, key, **{field: 50}), 402, "request_exceeds_budget")
    assert bench.sent() == []


def test_several_answers_share_what_is_left(bench: Bench):
    n_bytes = len('"n":4,')
    key = bench.key(**budget((BOUND_IN + n_bytes) * INPUT_NANOS + 21 * OUTPUT_NANOS))
    answer = uncapped(bench, key, n=4)
    cap = sent_caps(bench)[0]
    assert answer.headers["x-nemo-max-tokens-clamped"] == str(cap)
    assert 5 <= cap <= 6
    assert bench.row(answer)["held_nanos"] == BOUND_IN * INPUT_NANOS + 4 * cap * OUTPUT_NANOS


def test_when_not_one_token_is_left_the_call_is_refused(bench: Bench):
    key = bench.key(**budget(BOUND_IN * INPUT_NANOS + OUTPUT_NANOS - 1))
    refused(uncapped(bench, key), 402, "request_exceeds_budget")
    assert bench.spent() == (0, 0)
    assert bench.sent() == []


def test_a_fallback_is_clamped_to_what_the_attempt_before_has_left(bench: Bench):
    for order, model in enumerate(("faulty/drop-before-head", "faulty/ok")):
        params = {"model": model, "order": order}
        bench.ok(
            "POST",
            "/model/new",
            {"model_name": "group", "litellm_params": params, "model_info": {"team_id": bench.fleet}},
        )
    first = BOUND_IN * INPUT_NANOS + 4096 * OUTPUT_NANOS
    key = bench.key(models=("group",), **budget(first + BOUND_IN * INPUT_NANOS + 7 * OUTPUT_NANOS))
    answer = uncapped(bench, key, "group")
    assert answer.status_code == 200
    assert answer.headers["x-nemo-max-tokens-clamped"] == "7"
    assert sent_caps(bench) == [4096, 7]
    rows = bench.row(answer)["attempt_rows"]
    assert [row["cost_nanos"] for row in rows] == [first, INPUT_NANOS + 7 * OUTPUT_NANOS]
    assert bench.spent() == (sum(row["cost_nanos"] for row in rows), 0)


def test_many_uncapped_calls_at_once_stay_within_the_budget(bench: Bench):
    nanos = 4 * (BOUND_IN * INPUT_NANOS + 4096 * OUTPUT_NANOS)
    key = bench.key(**budget(nanos))
    answers = [call.result() for call in [bench.later(uncapped, bench, key, "faulty/usage-missing") for _ in range(40)]]
    assert {answer.status_code for answer in answers} <= {200, 402}
    assert sum(answer.status_code == 200 for answer in answers) >= 4
    bench.all_over()
    posted, held = bench.spent()
    assert held == 0
    assert posted <= nanos


# --- what nobody can price ------------------------------------------------------------------------------------------
def fixed(bench: Bench, dollars: float, **fields: Any) -> Key:
    return bench.key(models=("unpriced/*", "faulty/*"), metadata={"nemo": {"price_per_request": dollars}}, **fields)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_price_per_request_stands_in_where_there_is_none(bench: Bench, stream: bool):
    key = fixed(bench, 0.0005, max_budget=0.0009)
    answer = bench.chat(key, "unpriced/ok", stream=stream)
    assert answer.status_code == 200
    row = bench.row(answer)
    assert (row["held_nanos"], row["cost_nanos"]) == (500_000, 500_000)
    assert bench.spent() == (500_000, 0)
    refused(bench.chat(key, "unpriced/ok"), 402, "budget_exhausted")
    assert bench.row(bench.chat(key))["cost_nanos"] == COST_NANOS  # a model with a price of its own is billed by that


def test_a_price_per_request_is_charged_without_any_usage_too(bench: Bench):
    answer = bench.chat(fixed(bench, 0.0005, max_budget=1), "unpriced/usage-missing")
    assert bench.row(answer)["cost_nanos"] == 500_000


def swap_budget(bench: Bench, key: Key, model: str, behaviour: str) -> httpx.Response:
    """Start a call whose first deployment hangs, declare a budget meanwhile, and let it fall back to `model`."""
    for order, name in enumerate((f"faulty/{behaviour}", model)):
        params = {"model": name, "order": order}
        bench.ok(
            "POST",
            "/model/new",
            {"model_name": "group", "litellm_params": params, "model_info": {"team_id": bench.fleet}},
        )
    waiting = bench.later(bench.chat, key, "group")
    bench.faulty.seen(at_least=1)
    bench.ok("POST", "/key/update", {"key": key.public_id, "max_budget": 1})
    answer: httpx.Response = waiting.result()
    return answer


@pytest.fixture
def hasty(tmp_path, shared_provider) -> Iterator[Bench]:
    """A gateway that does not wait long for a first byte."""
    with (
        gateway_at(tmp_path / "home", shared_provider, first_byte_timeout_s=1.0) as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        yield bench


def test_a_budget_that_appears_between_two_attempts_holds_for_the_second(hasty: Bench):
    """Nothing was budgeted when the call began, and its fallback has no price."""
    answer = swap_budget(hasty, hasty.key(models=("group",)), "unpriced/ok", "hang")
    refused(answer, 400, "model_not_priced")
    assert [request["model"] for request in hasty.sent()] == ["hang"]
    row = hasty.row(answer)
    first, second = row["attempt_rows"]
    assert first["cost_nanos"] == first["held_nanos"]
    assert second["cost_nanos"] == 0
    assert row["cost_nanos"] == first["held_nanos"]


def test_what_has_a_price_goes_on_under_a_budget_that_appears_between_two_attempts(hasty: Bench):
    answer = swap_budget(hasty, hasty.key(models=("group",)), "faulty/ok", "hang")
    assert answer.status_code == 200
    assert answer.headers["x-nemo-budget-remaining"] == f"{1 - (HOLD_NANOS + COST_NANOS) / 1e9:.6f}"


# --- beyond the hold ------------------------------------------------------------------------------------------------
@pytest.fixture
def unruly(tmp_path) -> Iterator[Bench]:
    """A gateway whose provider bills what was not held: it ignores caps or has no price. The books do not match."""
    with (
        run_faulty_provider("--many=3000") as provider,
        gateway_at(tmp_path / "home", provider, drain_timeout_s=0.0) as gateway,
        bench_for(gateway, provider, checked=False) as bench,
    ):
        yield bench


def events_of(bench: Bench, kind: str) -> list[dict[str, Any]]:
    """The stored events of a kind, once there is one."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [event for event in bench.ok("GET", "/nemo/events", after=0)["events"] if event["kind"] == kind]
        return bool(found)

    bench.until(there)
    return found


def test_a_stream_that_runs_away_is_cut_when_it_has_cost_what_was_held(unruly: Bench):
    key = unruly.key(**budget(10**9))
    answer = unruly.chat(key, "faulty/ignores-cap", stream=True)
    assert answer.status_code == 200
    last = answer.text.rstrip().rsplit("\n\n", 1)[-1]
    assert "upstream_error" in last
    assert "the stream was cut" in last
    row = unruly.row(answer)
    assert (row["state"], row["status"], row["code"]) == ("failed", 502, "upstream_error")
    reached = -(-HOLD_NANOS // OUTPUT_NANOS)  # tokens
    assert row["held_nanos"] == HOLD_NANOS
    assert row["cost_nanos"] >= HOLD_NANOS
    pieces = answer.text.count('"content":" w')
    assert reached - 1 <= pieces < 3000
    assert row["cost_nanos"] == max(HOLD_NANOS, (pieces + 1) * OUTPUT_NANOS)
    assert unruly.spent() == (row["cost_nanos"], 0)
    unruly.all_over()
    assert unruly.faulty.seen(finished=True)["requests"][0]["chunks"] < 3000
    assert unruly.ok("GET", "/nemo/ledger/verify") == {"problems": []}


@pytest.mark.parametrize(
    ("model", "n"), [("empty-finish-reason", 1), ("second-runs-on", 2), ("usage-running-ignores-cap", 1)]
)
def test_nothing_that_a_runaway_says_of_itself_keeps_it_from_being_cut(unruly: Bench, model: str, n: int):
    """Neither a finish reason that is none, nor one of another choice, nor what it says that it has used."""
    key = unruly.key(**budget(10**9))
    answer = unruly.chat(key, f"faulty/{model}", stream=True, n=n)
    assert "the stream was cut" in answer.text
    row = unruly.row(answer)
    assert (row["state"], row["status"], row["usage_source"]) == ("failed", 502, "hold")
    made = answer.text.count('"content":" w') + n  # the first piece of every answer has no blank before it
    told = INPUT_NANOS if model.startswith("usage-running") else 0
    assert row["cost_nanos"] == max(row["held_nanos"], made * OUTPUT_NANOS + told)
    unruly.all_over()
    assert unruly.faulty.seen(finished=True)["requests"][0]["chunks"] < 3000
    assert unruly.ok("GET", "/nemo/ledger/verify") == {"problems": []}


def test_an_answer_that_costs_more_than_its_hold_is_posted_in_full_and_blocks_its_budget(unruly: Bench):
    """A plain answer comes at once: what it cost is the truth, whatever was held, and nothing more fits."""
    cost = INPUT_NANOS + 3000 * OUTPUT_NANOS
    key = unruly.key(**budget(cost - 1))
    answer = unruly.chat(key, "faulty/ignores-cap")
    assert answer.status_code == 200
    assert unruly.row(answer)["cost_nanos"] == cost
    assert unruly.spent() == (cost, 0)
    (event,) = events_of(unruly, "budget.overrun")
    assert (event["facts"]["held_nanos"], event["facts"]["posted_nanos"]) == (HOLD_NANOS, cost)
    for body in ({}, {"max_tokens": 1}):
        refused(unruly.chat(key, **body), 402, "budget_exhausted", scope="role")
    refused(uncapped(unruly, key), 402, "budget_exhausted", scope="role")
    unruly.ok("POST", "/key/update", {"key": key.public_id, "max_budget": (cost + HOLD_NANOS) / 1e9})
    assert unruly.chat(key).status_code == 200
    assert unruly.ok("GET", "/nemo/ledger/verify") == {"problems": []}
