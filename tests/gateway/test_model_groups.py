"""Model groups over HTTP: declared on LiteLLM's wire or in the configuration, chosen from, and fallen back in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_provider import FaultyProvider
from gateway_bench import Bench, Key, bench_for, gateway_at, refused

from nemo_agents.groups import Deployment, ModelGroup
from nemo_agents.testing import LocalGateway

CONFIGURED = (
    ModelGroup("configured", ["faulty/error-500", "faulty/ok"]),
    ModelGroup("hidden", ["faulty/error-500"]),
    ModelGroup("sized", [Deployment("faulty/echo", context_tokens=20), Deployment("faulty/ok", tier=1)]),
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, shared_provider: FaultyProvider) -> Iterator[LocalGateway]:
    home: Path = tmp_path_factory.mktemp("groups") / "home"
    with gateway_at(home, shared_provider, groups=CONFIGURED, max_attempts=3) as running:
        yield running


@pytest.fixture
def bench(gateway: LocalGateway, shared_provider: FaultyProvider) -> Iterator[Bench]:
    with bench_for(gateway, shared_provider) as ready:
        yield ready


def row(bench: Bench, model: str, *, group: str = "group", named: str | None = None, **fields: Any) -> dict[str, Any]:
    params = {"model": model, **{key: value for key, value in fields.items() if not key.startswith("nemo_")}}
    ours = {key: value for key, value in fields.items() if key.startswith("nemo_")}
    info = {"team_id": bench.fleet, **({"id": f"{bench.fleet}-{named}"} if named else {}), **ours}
    return {"model_name": group, "litellm_params": params, "model_info": info}


def declare(bench: Bench, *rows: dict[str, Any]) -> Key:
    for one in rows:
        bench.ok("POST", "/model/new", one)
    return bench.key(models=("group",))


def attempts_of(bench: Bench, answer: Any) -> list[tuple[str, str]]:
    return [(one["model"], one["reason"]) for one in bench.row(answer)["attempt_rows"]]


# --- the wire
def test_what_was_said_comes_back(bench: Bench):
    ours = {
        "nemo_strategy": "least-busy",
        "nemo_retries": 2,
        "nemo_fallback_on": ["context-window", "content-filter"],
        "nemo_context_tokens": 200_000,
        "nemo_applied": "5e1f",
    }
    said = row(bench, "faulty/ok", named="d1", order=2, weight=3, **ours)
    assert bench.ok("POST", "/model/new", said) == said
    assert said in bench.ok("GET", "/model/info")["data"]
    plain = row(bench, "faulty/echo", named="d2", order=0, weight=1)
    assert bench.ok("POST", "/model/new", plain) == plain


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"nemo_strategy": "fastest"}, "nemo_strategy` must be one of order, weighted"),
        ({"nemo_strategy": ["order"]}, "nemo_strategy"),
        ({"nemo_retries": -1}, "nemo_retries"),
        ({"nemo_retries": True}, "nemo_retries"),
        ({"nemo_retries": 11}, "from 0 to 10"),
        ({"nemo_fallback_on": ["timeout"]}, "nemo_fallback_on` must be a list out of context-window"),
        ({"nemo_fallback_on": "context-window"}, "nemo_fallback_on"),
        ({"nemo_context_tokens": 0}, "nemo_context_tokens"),
        ({"nemo_context_tokens": "200k"}, "nemo_context_tokens"),
        ({"nemo_applied": 3}, "nemo_applied"),
        ({"nemo_stratgy": "order"}, "nemo_stratgy` is not known"),
        ({"weight": 0}, "weight"),
        ({"weight": -1}, "weight"),
        ({"order": 10_001}, "order"),
    ],
)
def test_what_cannot_be_meant_is_refused(bench: Bench, fields: dict[str, Any], named: str):
    answer = bench.admin("POST", "/model/new", row(bench, "faulty/ok", **fields))
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_a_group_holds_models_only_and_each_once(bench: Bench):
    declare(bench, row(bench, "faulty/ok", named="d1"), row(bench, "house-model", named="d2"))
    refusals = [
        row(bench, "group"),  # itself
        row(bench, "group", group="other"),
        row(bench, "configured", group="other"),
        row(bench, "faulty/ok", group="house-model"),
        row(bench, "faulty/ok"),
    ]
    said = [bench.admin("POST", "/model/new", one) for one in refusals]
    assert [answer.status_code for answer in said] == [400] * 5
    messages = [answer.json()["error"]["message"] for answer in said]
    assert all("List the models themselves" in message for message in messages[:4])
    assert f"as deployment {bench.fleet}-d1" in messages[4]
    bench.ok("POST", "/model/new", row(bench, "faulty/ok", named="d1", weight=2))  # itself, changed
    bench.ok("POST", "/model/new", row(bench, "faulty/ok", group="other"))


# --- the configuration file
def test_a_configured_group_is_every_fleet_s(bench: Bench):
    for fleet in (bench.fleet, f"{bench.fleet}-b"):
        key = bench.key(models=("configured",), fleet=fleet)
        answer = bench.chat(key, "configured")
        assert answer.status_code == 200
        assert attempts_of(bench, answer)[-1][0] == "ok"
    listed = {one["model_info"]["id"]: one["model_name"] for one in bench.ok("GET", "/model/info")["data"]}
    assert (listed["config/configured/1"], listed["config/configured/2"]) == ("configured", "configured")
    answer = bench.admin("POST", "/model/delete", {"id": "config/configured/1"})
    assert (answer.status_code, "configuration file" in answer.json()["error"]["message"]) == (400, True)


def test_a_fleet_s_own_group_goes_before_the_configured_one(bench: Bench):
    bench.ok("POST", "/model/new", row(bench, "faulty/ok", group="hidden", named="own"))
    assert bench.chat(bench.key(models=("hidden",)), "hidden").status_code == 200
    other = bench.key(models=("hidden",), fleet=f"{bench.fleet}-b")
    refused(bench.chat(other, "hidden"), 502, "upstream_error")
    bench.ok("POST", "/model/delete", {"id": f"{bench.fleet}-own"})
    refused(bench.chat(bench.key(models=("hidden",)), "hidden"), 502, "upstream_error")


# --- choice
def test_calls_are_shared_by_weight(bench: Bench):
    group = {"nemo_strategy": "weighted"}
    key = declare(
        bench, row(bench, "faulty/ok", weight=9, **group), row(bench, "faulty/echo", order=0, weight=1, **group)
    )
    asked = Counter(bench.row(bench.chat(key, "group"))["model_served"] for _ in range(60))
    assert set(asked) == {"ok", "echo"}  # one of them never comes once in five hundred runs of this test
    assert asked["ok"] > asked["echo"]


def test_the_cheapest_for_this_request_is_asked(bench: Bench):
    group = {"nemo_strategy": "lowest-cost"}
    key = declare(bench, row(bench, "unpriced/echo", **group), row(bench, "faulty/ok", **group))
    assert bench.row(bench.chat(key, "group"))["model_served"] == "ok"


def test_a_prompt_that_is_too_long_for_one_goes_to_another(bench: Bench):
    key = bench.key(models=("sized",))
    assert bench.row(bench.chat(key, "sized", text="hi"))["model_served"] == "echo"
    assert bench.row(bench.chat(key, "sized", text="hi there " * 100))["model_served"] == "ok"


# --- failover
@pytest.mark.parametrize(
    ("failing", "kind"), [("faulty/too-long", "context-window"), ("faulty/not-allowed", "content-filter")]
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_refusal_of_the_request_falls_back_where_the_group_says_so(
    bench: Bench, failing: str, kind: str, stream: bool
):
    ours = {"nemo_fallback_on": [kind]}
    key = declare(bench, row(bench, failing, order=1, **ours), row(bench, "faulty/ok", order=2, **ours))
    answer = bench.chat(key, "group", stream=stream)
    assert answer.status_code == 200
    assert attempts_of(bench, answer) == [(failing.partition("/")[2], "first"), ("ok", "fallback")]


@pytest.mark.parametrize("failing", ["faulty/too-long", "faulty/not-allowed"])
def test_a_refusal_of_the_request_is_passed_on_where_it_does_not(bench: Bench, failing: str):
    key = declare(bench, row(bench, failing, order=1), row(bench, "faulty/ok", order=2))
    answer = bench.chat(key, "group")
    assert answer.status_code == 400
    assert len(bench.sent()) == 1


def test_a_group_that_says_so_asks_the_same_again_before_the_next_tier(bench: Bench):
    ours = {"nemo_retries": 1}
    key = declare(bench, row(bench, "faulty/error-503", order=1, **ours), row(bench, "faulty/ok", order=2, **ours))
    answer = bench.chat(key, "group")
    assert attempts_of(bench, answer) == [("error-503", "first"), ("error-503", "retry"), ("ok", "fallback")]
    rows = bench.row(answer)["attempt_rows"]
    assert [one["wait_ms"] for one in rows][::2] == [0, 0]
    assert 125 <= rows[1]["wait_ms"] <= 250
    assert rows[1]["started_us"] - rows[0]["started_us"] >= rows[1]["wait_ms"] * 1000
    assert bench.spent() == (rows[2]["cost_nanos"], 0)


def test_attempts_end_with_the_setting(bench: Bench):
    models = ("error-500", "error-503", "proxy-500", "ok")
    key = declare(bench, *(row(bench, f"faulty/{model}", order=n) for n, model in enumerate(models)))
    answer = bench.chat(key, "group")
    refused(answer, 502, "upstream_error")
    assert answer.headers["x-nemo-attempts"] == "3"


def test_a_deployment_that_fails_cools_down_and_is_asked_last(bench: Bench):
    key = declare(bench, row(bench, "faulty/error-500", order=1), row(bench, "faulty/ok", order=2))
    seen = [[model for model, _ in attempts_of(bench, bench.chat(key, "group"))] for _ in range(7)]
    assert seen == [["error-500", "ok"]] * 5 + [["ok"]] * 2


def test_a_429_keeps_later_calls_away_as_long_as_it_says(bench: Bench):
    key = declare(bench, row(bench, "faulty/rate-limited", order=1), row(bench, "faulty/ok", order=2))
    seen = [[model for model, _ in attempts_of(bench, bench.chat(key, "group"))] for _ in range(2)]
    assert seen == [["rate-limited", "ok"], ["ok"]]


# --- what a role may use
def test_a_list_of_models_does_not_name_a_group_for_a_model_of_its_name(bench: Bench):
    """A group may have a model's name; who may use that model by its provider is not told of the group."""
    bench.ok("POST", "/model/new", row(bench, "faulty/ok", group="gpt-4o"))
    listed = [
        [model["id"] for model in bench.http.get("/v1/models", headers=bench.key(models=models).headers).json()["data"]]
        for models in (("gpt-4o",), ("openai/gpt-4o",))
    ]
    assert listed == [["gpt-4o"], ["openai/gpt-4o"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
    ],
)
def test_a_tool_is_refused_in_the_spelling_of_another_wire(bench: Bench, path: str, body: dict[str, Any]):
    key = bench.key(metadata={"nemo": {"tools": ["search"]}})
    asked = {"model": "faulty/ok", "functions": [{"name": "shell"}], **body}
    answer = bench.http.post(path, json=asked, headers=key.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tool_not_allowed")
