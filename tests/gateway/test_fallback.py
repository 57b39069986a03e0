"""Model groups: the next deployment after a failure, one hold for each attempt, and every attempt in the log."""

from __future__ import annotations

from typing import Any

import pytest
from faulty_provider import TEXT
from gateway_bench import INPUT_NANOS, OUTPUT_NANOS, Bench, Key, refused

COST = INPUT_NANOS + len(TEXT.split()) * OUTPUT_NANOS


def group(bench: Bench, *models: str, **fields: Any) -> Key:
    """Declare a model group of the test's fleet and return a key that may use it."""
    for order, model in enumerate(models):
        bench.ok(
            "POST",
            "/model/new",
            {
                "model_name": "group",
                "litellm_params": {"model": model, "order": order},
                "model_info": {"team_id": bench.fleet},
            },
        )
    return bench.key(models=("group",), **fields)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("failing", "status", "charged"),
    [
        ("faulty/error-500", 500, False),
        ("faulty/error-503", 503, False),
        ("faulty/timeout-408", 408, False),
        ("faulty/proxy-500", 500, True),
        ("faulty/proxy-503", 503, True),
        ("faulty/proxy-408", 408, True),
        ("faulty/proxy-json-503", 503, True),
        ("faulty/rate-limited", 429, False),
        ("faulty/drop-before-head", None, True),
        ("faulty/not-json", None, True),
        ("faulty/error-200", None, True),
        ("down/ok", None, False),
    ],
)
def test_the_next_deployment_answers(bench: Bench, failing: str, status: int | None, charged: bool, stream: bool):
    key = group(bench, failing, "faulty/ok")
    answer = bench.chat(key, "group", stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-nemo-attempts"] == "2"
    assert answer.headers["x-nemo-provider"] == "faulty"
    row = bench.row(answer)
    first, second = row["attempt_rows"]
    assert first["cost_nanos"] == (first["held_nanos"] if charged else 0)
    expected = {"n": 1, "model": failing.split("/")[1], "provider": failing.split("/", maxsplit=1)[0], "status": status}
    assert {name: first[name] for name in expected} == expected
    assert first["reason"] == "first"
    assert first["error"]
    expected = {"n": 2, "model": "ok", "reason": "fallback", "status": 200, "error": None, "cost_nanos": COST}
    assert {name: second[name] for name in expected} == expected
    expected = {
        "state": "ok",
        "attempts": 2,
        "model_asked": "group",
        "model_served": "ok",
        "provider": "faulty",
    }
    assert {name: row[name] for name in expected} == expected
    assert row["cost_nanos"] == first["cost_nanos"] + COST
    assert bench.spent() == (row["cost_nanos"], 0)


def test_a_plain_body_that_breaks_falls_back_for_nobody_has_seen_it(bench: Bench):
    answer = bench.chat(group(bench, "faulty/drop-mid-body", "faulty/ok"), "group")
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    row = bench.row(answer)
    assert [attempt["model"] for attempt in row["attempt_rows"]] == ["drop-mid-body", "ok"]
    assert row["cost_nanos"] == row["attempt_rows"][0]["held_nanos"] + COST


def test_nothing_falls_back_after_visible_output(bench: Bench):
    answer = bench.chat(group(bench, "faulty/drop-mid-stream", "faulty/ok"), "group", stream=True)
    assert answer.headers["x-nemo-attempts"] == "1"
    assert "upstream_error" in answer.text
    assert [request["model"] for request in bench.sent()] == ["drop-mid-stream"]


@pytest.mark.parametrize(("model", "status"), [("faulty/bad-request", 400), ("faulty/unauthorized", 502)])
def test_what_would_fail_anywhere_does_not_fall_back(bench: Bench, model: str, status: int):
    answer = bench.chat(group(bench, model, "faulty/ok"), "group")
    assert answer.status_code == status
    assert len(bench.sent()) == 1


def test_the_order_of_deployments_is_the_order_of_attempts(bench: Bench):
    key = group(bench, "faulty/error-500", "down/ok", "faulty/drop-before-head", "faulty/ok")
    answer = bench.chat(key, "group")
    assert answer.headers["x-nemo-attempts"] == "4"
    rows = bench.row(answer)["attempt_rows"]
    assert [row["model"] for row in rows] == ["error-500", "ok", "drop-before-head", "ok"]
    assert [row["reason"] for row in rows] == ["first", "fallback", "fallback", "fallback"]
    assert [row["n"] for row in rows] == [1, 2, 3, 4]


def test_when_all_have_failed_the_last_one_speaks(bench: Bench):
    key = group(bench, "faulty/rate-limited", "faulty/error-500", "down/ok")
    answer = bench.chat(key, "group")
    error = refused(answer, 502, "upstream_error")
    assert "3 attempts" in error["message"]
    assert answer.headers["x-nemo-attempts"] == "3"
    row = bench.row(answer)
    assert (row["state"], row["attempts"], row["cost_nanos"]) == ("failed", 3, 0)
    assert all(attempt["cost_nanos"] == 0 for attempt in row["attempt_rows"])
    other = bench.key(models=("group",), fleet=f"{bench.fleet}-b")
    refused(bench.chat(other, "group"), 404, "model_not_found")  # a group belongs to its fleet


def test_an_attempt_holds_at_its_own_price_one_after_another(bench: Bench):
    """A budget with room for one hold is enough for two attempts, the first of which cost nothing."""
    key = group(bench, "faulty/error-500", "faulty/ok", max_budget=0.000164)
    answer = bench.chat(key, "group")
    assert answer.status_code == 200
    assert [row["held_nanos"] for row in bench.row(answer)["attempt_rows"]] == [164_000, 164_000]


def test_a_fallback_that_no_budget_can_hold_is_refused(bench: Bench):
    key = group(bench, "faulty/drop-before-head", "faulty/ok", max_budget=0.0003)
    answer = bench.chat(key, "group")
    refused(answer, 402, "budget_exhausted", scope="role")
    row = bench.row(answer)
    assert (row["state"], row["status"], row["attempts"]) == ("refused", 402, 1)
    assert row["cost_nanos"] == row["attempt_rows"][0]["held_nanos"] == 164_000
    assert bench.spent() == (164_000, 0)
    assert [request["model"] for request in bench.sent()] == ["drop-before-head"]


def test_a_deployment_without_a_price_is_passed_over_under_a_budget(bench: Bench):
    key = group(bench, "unpriced/ok", "faulty/ok", max_budget=1)
    answer = bench.chat(key, "group")
    assert answer.status_code == 200
    assert answer.headers["x-nemo-attempts"] == "1"
    assert answer.headers["x-nemo-provider"] == "faulty"


def test_a_fallback_under_a_run_s_older_cap_is_held_too(bench: Bench):
    """The cap came with the run's first call; the second leaves it out, and its fallback has no price."""
    key = group(bench, "faulty/error-500", "unpriced/ok")
    assert bench.chat(key, "group", headers={"x-nemo-run-id": "r", "x-nemo-run-budget": "1"}).status_code == 502
    answer = bench.chat(key, "group", headers={"x-nemo-run-id": "r"})
    refused(answer, 400, "model_not_priced")
    assert bench.row(answer)["cost_nanos"] == 0
    assert [request["model"] for request in bench.sent()] == ["error-500", "error-500"]


def test_what_a_run_s_older_cap_cannot_hold_is_passed_over_for_what_it_can(bench: Bench):
    key = group(bench, "unpriced/ok", "faulty/ok")
    assert bench.chat(key, "group", headers={"x-nemo-run-id": "r", "x-nemo-run-budget": "1"}).status_code == 200
    answer = bench.chat(key, "group", headers={"x-nemo-run-id": "r"})
    assert answer.status_code == 200
    assert answer.headers["x-nemo-provider"] == "faulty"
    row = bench.row(answer)
    first, second = row["attempt_rows"]
    assert (first["provider"], first["cost_nanos"], second["cost_nanos"]) == ("unpriced", 0, COST)
    assert "No price is known" in first["error"]
    assert (row["state"], row["cost_nanos"]) == ("ok", COST)
    assert len(bench.sent()) == 2  # one for each call: nothing was sent to what has no price


def test_when_no_target_of_a_group_can_be_held_the_call_is_refused(bench: Bench):
    priced = group(bench, "faulty/ok")
    run = {"x-nemo-run-id": "r", "x-nemo-run-budget": "1"}
    assert bench.chat(priced, "group", headers=run).status_code == 200
    models = ("unpriced/ok", "unpriced/echo")
    for order, model in enumerate(models):
        params = {"model": model, "order": order}
        info = {"team_id": bench.fleet}
        bench.ok("POST", "/model/new", {"model_name": "dear", "litellm_params": params, "model_info": info})
    answer = bench.chat(bench.key(models=("dear",)), "dear", headers={"x-nemo-run-id": "r"})
    refused(answer, 400, "model_not_priced")
    row = bench.row(answer)
    assert (row["state"], row["status"], row["cost_nanos"]) == ("refused", 400, 0)
    assert [attempt["model"] for attempt in row["attempt_rows"]] == ["ok", "echo"]
    assert len(bench.sent()) == 1


@pytest.mark.parametrize(
    ("then", "known"),
    [((), 0), (("faulty/error-500",), 0), (("down/ok",), 0), (("faulty/ok",), 1 + len(TEXT.split()))],
)
def test_the_minute_s_tokens_of_an_attempt_that_may_have_been_served_stay_counted(
    bench: Bench, then: tuple[str, ...], known: int
):
    """Whatever comes of the attempts after it."""
    limit = 100_000

    def used_by(key: Key) -> int:
        headers = bench.http.get("/v1/models", headers=key.headers).headers
        return limit - int(headers["x-ratelimit-remaining-tokens"])

    alone = bench.key(tpm_limit=limit)
    bench.chat(alone, "faulty/drop-before-head")
    key = group(bench, "faulty/drop-before-head", *then, tpm_limit=limit)
    bench.chat(key, "group")
    bench.all_over()
    assert used_by(key) == used_by(alone) + known > 50


def test_the_minute_s_tokens_of_attempts_that_cost_nothing_are_given_back(bench: Bench):
    key = group(bench, "faulty/error-500", "down/ok", "faulty/rate-limited", tpm_limit=1000)
    bench.chat(key, "group")
    bench.all_over()
    assert bench.http.get("/v1/models", headers=key.headers).headers["x-ratelimit-remaining-tokens"] == "1000"


def test_a_group_is_allowed_by_its_name_alone(bench: Bench):
    key = group(bench, "faulty/ok")
    refused(bench.chat(key, "faulty/ok"), 403, "model_not_allowed")
    assert [model["id"] for model in bench.http.get("/v1/models", headers=key.headers).json()["data"]] == ["group"]
    refused(bench.chat(bench.key(models=("faulty/*",)), "group"), 403, "model_not_allowed")
