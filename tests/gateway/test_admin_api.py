"""The admin API: LiteLLM's wire for keys, teams and models, who may call what, and what is never answered."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import httpx
import pytest
from gateway_bench import Bench, Key, refused

from nemo_agents.gateway.admin import ROUTES
from nemo_agents.gateway.admin.access import Access, AdminRoute
from nemo_agents.policy.keys import compose_key, parse_public_id


def fault(answer: httpx.Response, status: int, type_: str, param: str | None = None) -> dict[str, Any]:
    """Check an error in LiteLLM's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (type_, str(status))
    if param is not None:
        assert error["param"] == param
    return error


# --- who may call what --------------------------------------------------------------------------------------------
def call_as(bench: Bench, route: AdminRoute, headers: dict[str, str]) -> httpx.Response:
    path = route.path
    for name in ("key", "run_id", "request_id"):
        path = path.replace(f"{{{name}}}", "nothing-of-this-name")
    content = b"{}" if route.method == "POST" else None
    sent = {**headers, **({"content-type": "application/json"} if content else {})}
    return bench.http.request(route.method, path, content=content, headers=sent)


def route_id(route: AdminRoute) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", ROUTES, ids=route_id)
def test_every_route_asks_for_its_credential(bench: Bench, route: AdminRoute):
    key = bench.key()
    wrong = compose_key("abcdefghij", "A" * 32)
    near = bench.gateway.admin_key.reveal()[:-1]
    strangers = [{}, *({"authorization": f"Bearer {no}"} for no in ("x", wrong, near, near + "é"))]
    for headers in [{name: value.encode() for name, value in each.items()} for each in strangers]:
        answer = call_as(bench, route, headers)
        if route.access is Access.PUBLIC:
            assert answer.status_code == 200
        else:
            fault(answer, 401, "auth_error")
    as_key = call_as(bench, route, key.headers)
    if route.access is Access.ADMIN:
        fault(as_key, 403, "auth_error")
    else:
        assert as_key.status_code not in (401, 403)
    as_admin = call_as(bench, route, {"authorization": f"Bearer {bench.gateway.admin_key.reveal()}"})
    assert as_admin.status_code != 401
    assert as_admin.status_code < 500


def test_nothing_but_health_is_public_and_metrics_ask_for_themselves():
    assert {route.path for route in ROUTES if route.access is Access.PUBLIC} == {
        "/health/live",
        "/health/ready",
        "/metrics",  # tests/gateway/test_metrics_page.py
    }
    assert len({route_id(route) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("why", ["blocked", "expired", "revoked"])
def test_a_key_that_may_not_call_models_may_not_read_either(bench: Bench, why: str):
    key = bench.key(**({"duration": "0s"} if why == "expired" else {}))
    if why == "blocked":
        bench.ok("POST", "/key/block", {"key": key.public_id})
    elif why == "revoked":
        bench.ok("POST", "/key/delete", {"keys": [key.public_id]})
    fault(bench.http.get("/nemo/runs", headers=key.headers), 403, "auth_error")


def test_the_admin_key_is_no_virtual_key(bench: Bench):
    admin = Key(secret=bench.gateway.admin_key.reveal(), public_id="", fleet="")
    refused(bench.chat(admin), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [
        ("GET", "/no/such/path", 404, "not_found_error"),
        ("GET", "/key/generate", 405, "method_not_allowed"),
        ("POST", "/key/list", 405, "method_not_allowed"),
        ("GET", "/key/list/", 404, "not_found_error"),
    ],
)
def test_no_such_route(bench: Bench, method: str, path: str, status: int, type_: str):
    fault(bench.admin(method, path), status, type_)


# --- bodies that cannot be meant ----------------------------------------------------------------------------------
BAD_BODIES = [b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff", b'{"key": NaN}']


@pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "POST"], ids=route_id)
def test_a_body_that_is_no_object_is_refused_by_every_route(bench: Bench, route: AdminRoute):
    key = bench.key()
    path = route.path.replace("{key}", key.public_id).replace("{run_id}", "some-run")
    headers = {"authorization": f"Bearer {bench.gateway.admin_key.reveal()}", "content-type": "application/json"}
    if route.path.endswith("/report"):
        headers["authorization"] = f"Bearer {key.secret}"
    for content in BAD_BODIES:
        answer = bench.http.post(path, content=content, headers=headers)
        expected = 404 if route.path.endswith("/stop") else 422
        if route.path == "/nemo/prices" and content.startswith(b"["):
            expected = 400  # a list is a table there, and these are none
        assert answer.status_code == expected, (content[:12], answer.text)


def further(*budgets: Any, **fields: Any) -> dict[str, Any]:
    """A body with one more budget, a day's unless told otherwise."""
    one = {"max_budget": 1, "budget_duration": "1d", **fields}
    return {"metadata": {"nemo": {"budgets": list(budgets) or [one]}}}


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"max_budget": "much"}, 422, "max_budget"),
        ({"max_budget": -1}, 400, "max_budget"),
        ({"max_budget": True}, 422, "max_budget"),
        ({"max_budget": 1e12}, 400, "max_budget"),
        ({"budget_duration": "1fortnight"}, 400, "budget_duration"),
        ({"budget_duration": 1}, 422, "budget_duration"),
        ({"rpm_limit": 0}, 400, "rpm_limit"),
        ({"rpm_limit": -1}, 400, "rpm_limit"),
        ({"rpm_limit": "10"}, 422, "rpm_limit"),
        ({"rpm_limit": 1.5}, 422, "rpm_limit"),
        ({"tpm_limit": 10**30}, 400, "tpm_limit"),
        ({"max_parallel_requests": 0}, 400, "max_parallel_requests"),
        ({"models": "gpt"}, 422, "models"),
        ({"models": [1]}, 422, "models"),
        ({"guardrails": ["no-such"]}, 400, "guardrails"),
        ({"guardrails": "pii-filter"}, 422, "guardrails"),
        ({"metadata": []}, 422, "metadata"),
        ({"metadata": {"nemo": 1}}, 400, "metadata"),
        ({"metadata": {"nemo": {"tools": "x"}}}, 400, "metadata"),
        ({"metadata": {"nemo": {"alert_at": 2}}}, 400, "metadata"),
        ({"metadata": {"nemo": {"alert_at": True}}}, 400, "metadata"),
        ({"max_budget": 1, "metadata": {"nemo": {"alert_at": [0.8, 0.5]}}}, 400, "metadata.nemo.alert_at"),
        ({"metadata": {"nemo": {"alert_at": [0.5, 0.5]}}}, 400, "metadata.nemo.alert_at"),
        ({"metadata": {"nemo": {"alert_at": ["0.5"]}}}, 400, "metadata.nemo.alert_at"),
        (
            {"max_budget": 1, "budget_duration": "1d", "metadata": {"nemo": {"tz": "Mars/Base"}}},
            400,
            "metadata.nemo.tz",
        ),
        ({"max_budget": 1, "budget_duration": "12h", "metadata": {"nemo": {"tz": "Europe/Rome"}}}, 400, "calendar"),
        ({"max_budget": 1, "metadata": {"nemo": {"tz": "Europe/Rome"}}}, 400, "metadata.nemo.tz"),
        ({"metadata": {"nemo": {"tz": 1}}}, 400, "metadata.nemo.tz"),
        ({"budget_duration": "1d"}, 400, "budget_duration"),
        ({"soft_budget": 5}, 400, "soft_budget"),
        (further(), 400, "max_budget"),
        (further("x", mode="shadow"), 400, "metadata.nemo.budgets[0]"),
        (further(max_budget=-1, mode="shadow"), 400, "metadata.nemo.budgets[0].max_budget"),
        (further(max_budget="1", mode="shadow"), 400, "metadata.nemo.budgets[0].max_budget"),
        (further(max_budget=1e12, mode="shadow"), 400, "metadata.nemo.budgets[0].max_budget"),
        (further(max_budget=None, mode="shadow"), 400, "metadata.nemo.budgets[0].max_budget"),
        (further(budget_duration="2mo", mode="shadow"), 400, "metadata.nemo.budgets[0].budget_duration"),
        (further(budget_duration=7, mode="shadow"), 400, "metadata.nemo.budgets[0].budget_duration"),
        (further(tz="Europe/Roma", mode="shadow"), 400, "metadata.nemo.budgets[0].tz"),
        (further(alert_at=[0], mode="shadow"), 400, "metadata.nemo.budgets[0].alert_at"),
        (further(mode="soft"), 400, "metadata.nemo.budgets[0].mode"),
        (further(soft=True), 400, "metadata.nemo.budgets[0].soft"),
        ({"max_budget": 2, "budget_duration": "24h", **further()}, 400, "metadata.nemo.budgets[0]"),
        ({"metadata": {"nemo": {"budgets": {}, "shadow": "rpm"}}}, 400, "metadata.nemo.shadow"),
        ({"metadata": {"nemo": {"budgets": 3}}}, 400, "metadata.nemo.budgets"),
        (further(*({"max_budget": n, "mode": "shadow"} for n in range(1, 21))), 400, "at most 20"),
        ({"metadata": {"nemo": {"shadow": ["rps"]}}}, 400, "metadata.nemo.shadow"),
        ({"metadata": {"nemo": {"shadow": ["rpm", "rpm"]}}}, 400, "metadata.nemo.shadow"),
        ({"metadata": {"nemo": {"loop": "on"}}}, 400, "metadata.nemo.loop"),
        ({"metadata": {"nemo": {"loop": {"repeats": 1}}}}, 400, "metadata.nemo.loop.repeats"),
        ({"metadata": {"nemo": {"loop": {"within_s": 1.5}}}}, 400, "metadata.nemo.loop.within_s"),
        ({"metadata": {"nemo": {"loop": {"times": 9}}}}, 400, "metadata.nemo.loop.times"),
        ({"metadata": {"nemo": {"loop": {"mode": "off"}}}}, 400, "metadata.nemo.loop.mode"),
        ({"metadata": {"nemo": {"price_per_request": -1}}}, 400, "metadata.nemo.price_per_request"),
        ({"metadata": {"nemo": {"price_per_request": "1"}}}, 400, "metadata.nemo.price_per_request"),
        ({"model_rpm_limit": {"m": 0}}, 400, "model_rpm_limit"),
        ({"model_rpm_limit": {"m": 10**13}}, 400, "model_rpm_limit"),
        ({"model_rpm_limit": {"": 1}}, 400, "model_rpm_limit"),
        ({"model_rpm_limit": {"m": 1.5}}, 422, "model_rpm_limit"),
        ({"model_tpm_limit": [1]}, 422, "model_tpm_limit"),
        ({"metadata": {"nemo": {"model_max_parallel": {"m": True}}}}, 400, "metadata.nemo.model_max_parallel.m"),
        ({"metadata": {"nemo": {"model_max_parallel": 3}}}, 400, "metadata.nemo.model_max_parallel"),
        ({"metadata": {"nemo": {"model_shadow": ["m"]}}}, 400, "metadata.nemo.model_shadow"),
        ({"duration": "soon"}, 400, "duration"),
        ({"duration": "-1d"}, 400, "duration"),
        ({"key": "sk-mine"}, 400, "key"),
        ({"key_alias": 1}, 422, "key_alias"),
        ({"team_id": 1}, 422, "team_id"),
        ({"blocked": "yes"}, 422, "blocked"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_wrong_field_of_a_key_is_named_and_nothing_is_made(
    bench: Bench, fields: dict[str, Any], status: int, named: str
):
    before = bench.ok("GET", "/key/list", team_id=bench.fleet)["total_count"]
    answer = bench.admin("POST", "/key/generate", {"team_id": bench.fleet, **fields})
    error = fault(answer, status, "bad_request_error")
    assert named in error["message"] or named == error["param"]
    assert bench.ok("GET", "/key/list", team_id=bench.fleet)["total_count"] == before
    if "key" not in fields:
        key = bench.key()
        was = bench.ok("GET", "/key/info", key=key.public_id)
        fault(bench.admin("POST", "/key/update", {"key": key.public_id, **fields}), status, "bad_request_error")
        assert bench.ok("GET", "/key/info", key=key.public_id) == was


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"max_budget": -1}, 400),
        ({"rpm_limit": 0}, 400),
        ({"budget_duration": "x"}, 400),
        ({"models": [None]}, 422),
        ({"metadata": {"nemo": {"alert_at": 0}}}, 400),
        ({"metadata": {"nemo": {"max_parallel": 0}}}, 400),
        ({"metadata": {"nemo": {"max_parallel": "3"}}}, 400),
        ({"metadata": {"nemo": {"shadow": [1]}}}, 400),
        (further(), 400),
        (further(tz="Nowhere", mode="shadow"), 400),
        ({"metadata": {"nemo": []}}, 400),
        ({"soft_budget": 1}, 400),
        ({"budget_duration": "1d"}, 400),
        ({"blocked": 1}, 422),
    ],
)
def test_a_wrong_field_of_a_team_is_named(bench: Bench, fields: dict[str, Any], status: int):
    error = fault(bench.admin("POST", "/team/new", {"team_id": bench.fleet, **fields}), status, "bad_request_error")
    assert next(iter(fields)) in error["message"]
    fault(bench.admin("GET", "/team/info", team_id=bench.fleet), 404, "not_found_error")


@pytest.mark.parametrize(
    ("method", "path", "body", "params"),
    [
        ("POST", "/key/update", {"key": "nothing"}, {}),
        ("POST", "/key/block", {"key": "nothing"}, {}),
        ("POST", "/key/unblock", {"key": "nothing"}, {}),
        ("POST", "/key/delete", {"keys": ["nothing"]}, {}),
        ("POST", "/key/delete", {"key_aliases": ["nothing"]}, {}),
        ("POST", "/key/nothing/regenerate", {}, {}),
        ("GET", "/key/info", None, {"key": "nothing"}),
        ("POST", "/team/update", {"team_id": "nothing"}, {}),
        ("POST", "/team/update", {}, {}),
        ("POST", "/team/delete", {"team_ids": ["nothing"]}, {}),
        ("GET", "/team/info", None, {"team_id": "nothing"}),
        ("POST", "/model/delete", {"id": "nothing"}, {}),
        ("GET", "/nemo/runs/nothing", None, {}),
        ("POST", "/nemo/runs/nothing/stop", {}, {}),
        ("GET", "/nemo/calls/nothing", None, {}),
        ("GET", "/nemo/calls/nothing/content", None, {}),
    ],
)
def test_what_does_not_exist_is_404(bench: Bench, method: str, path: str, body: Any, params: dict[str, Any]):
    fault(bench.admin(method, path, body, **params), 404, "not_found_error")


def test_a_body_must_say_that_it_is_json(bench: Bench):
    """A form of a strange web page cannot say so without the browser asking first."""
    headers = {"authorization": f"Bearer {bench.gateway.admin_key.reveal()}", "content-type": "text/plain"}
    fault(bench.http.post("/key/generate", content=b"{}", headers=headers), 400, "bad_request_error")


def test_a_large_body_is_413(bench: Bench):
    answer = bench.admin("POST", "/key/generate", {"metadata": {"x": "y" * (3 << 20)}})
    fault(answer, 413, "bad_request_error")


# --- keys ---------------------------------------------------------------------------------------------------------
FIELDS = {
    "models": ["faulty/ok", "faulty/echo"],
    "max_budget": 12.5,
    "budget_duration": "1d",
    "rpm_limit": 10,
    "tpm_limit": 1000,
    "max_parallel_requests": 3,
    "guardrails": ["pii-filter"],
    "metadata": {"nemo": {"role": "r", "tools": ["t"], "alert_at": 0.5}, "mine": [1, {"a": None}]},
}


def secrets_in(answer: Any, *keys: Key) -> bool:
    text = json.dumps(answer)
    return any(key.secret in text or key.secret[-20:-6] in text for key in keys)


def test_a_key_as_it_was_asked_for(bench: Bench):
    made = bench.ok("POST", "/key/generate", {"key_alias": f"{bench.fleet}-a", "team_id": bench.fleet, **FIELDS})
    assert made["key"].startswith("sk-nemo-")
    assert made["token"] == made["token_id"] == parse_public_id(made["key"])
    info = bench.ok("GET", "/key/info", key=made["token"])
    assert info["key"] == made["token"]
    row = info["info"]
    assert {name: row[name] for name in FIELDS} == FIELDS
    expected = {
        "token": made["token"],
        "key_alias": f"{bench.fleet}-a",
        "team_id": bench.fleet,
        "spend": 0.0,
        "blocked": False,
        "expires": None,
        "last_active": None,
        "rotation_count": 0,
    }
    assert {name: row[name] for name in expected} == expected
    assert datetime.fromisoformat(row["budget_reset_at"]) > datetime.fromisoformat(row["created_at"])
    key = Key(secret=made["key"], public_id=made["token"], fleet=bench.fleet)
    assert bench.chat(key).status_code == 200
    row = bench.ok("GET", "/key/info", key=made["token"])["info"]
    assert row["spend"] == pytest.approx(0.000031, abs=1e-12)
    assert row["last_active"] is not None


def test_an_update_is_a_merge_patch(bench: Bench):
    key = bench.key(**FIELDS)

    def now() -> dict[str, Any]:
        row: dict[str, Any] = bench.ok("GET", "/key/info", key=key.public_id)["info"]
        return row

    was = now()
    bench.ok("POST", "/key/update", {"key": key.public_id, "rpm_limit": 20})
    assert {**was, "rpm_limit": 20, "updated_at": now()["updated_at"]} == now()
    cleared = dict.fromkeys(("max_budget", "budget_duration", "rpm_limit", "tpm_limit", "max_parallel_requests"))
    bench.ok("POST", "/key/update", {"key": key.public_id, **cleared, "models": None, "guardrails": None})
    assert {name: now()[name] for name in cleared} == cleared
    assert (now()["models"], now()["guardrails"]) == ([], [])
    bench.ok("POST", "/key/update", {"key": key.public_id, "metadata": {"nemo": {"role": "other"}}})
    assert now()["metadata"] == {"nemo": {"role": "other"}}
    assert now()["key_alias"] == was["key_alias"]
    assert bench.row(bench.chat(key, "faulty/echo"))["role"] == "other"


def test_another_tools_metadata_lifts_no_limit(bench: Bench):
    """LiteLLM's own update of metadata replaces all of it."""
    nemo = {
        "loop": "off",
        "shadow": ["rpm"],
        "budgets": [{"max_budget": 1, "budget_duration": "12h", "mode": "shadow"}],
    }
    key = bench.key(rpm_limit=1, model_rpm_limit={"faulty/ok": 1}, metadata={"nemo": nemo})
    bench.ok("POST", "/team/new", {"team_id": bench.fleet, "metadata": {"nemo": {"max_parallel": 3}}})
    bench.ok("POST", "/key/update", {"key": key.public_id, "metadata": {"mine": 1}})
    bench.ok("POST", "/team/update", {"team_id": bench.fleet, "metadata": None})
    row = bench.ok("GET", "/key/info", key=key.public_id)["info"]
    assert row["metadata"] == {"mine": 1, "nemo": nemo}
    assert row["model_rpm_limit"] == {"faulty/ok": 1}
    team = bench.ok("GET", "/team/info", team_id=bench.fleet)["team_info"]
    assert team["metadata"] == {"nemo": {"max_parallel": 3}}
    bench.ok("POST", "/key/update", {"key": key.public_id, "metadata": {"nemo": {}}, "model_rpm_limit": None})
    row = bench.ok("GET", "/key/info", key=key.public_id)["info"]
    assert (row["metadata"], row["model_rpm_limit"], row["max_budget"]) == ({"nemo": {}}, None, None)


def test_a_budget_that_is_changed_alone_keeps_its_zone_and_the_others_stay(bench: Bench):
    month = {"max_budget": 60.0, "budget_duration": "1mo", "alert_at": [0.5], "mode": "enforce"}
    nemo = {"tz": "Asia/Kathmandu", "alert_at": [0.5, 0.9], "budgets": [month]}
    key = bench.key(max_budget=5.0, budget_duration="1d", metadata={"nemo": nemo})
    bench.ok("POST", "/key/update", {"key": key.public_id, "max_budget": 6.0})
    row = bench.ok("GET", "/key/info", key=key.public_id)["info"]
    assert (row["max_budget"], row["budget_duration"], row["metadata"]) == (6.0, "1d", {"nemo": nemo})
    resets = datetime.fromisoformat(row["budget_reset_at"])
    assert (resets.hour, resets.minute) == (18, 15)  # midnight at 5:45 east
    fault(bench.admin("POST", "/key/update", {"key": key.public_id, "max_budget": None}), 400, "bad_request_error")
    fault(
        bench.admin("POST", "/key/update", {"key": key.public_id, "budget_duration": "12h"}), 400, "bad_request_error"
    )
    bench.ok("POST", "/key/update", {"key": key.public_id, "max_budget": None, "metadata": {"nemo": {}}})
    assert bench.ok("GET", "/key/info", key=key.public_id)["info"]["max_budget"] is None


def test_a_change_is_in_force_on_the_next_request(bench: Bench):
    key = bench.key(rpm_limit=1)
    assert bench.chat(key).status_code == 200
    refused(bench.chat(key), 429, "rate_limit_exceeded")
    bench.ok("POST", "/key/update", {"key": key.public_id, "rpm_limit": 3})
    assert bench.chat(key).status_code == 200
    bench.ok("POST", "/key/update", {"key": key.public_id, "models": ["faulty/echo"], "rpm_limit": None})
    refused(bench.chat(key), 403, "model_not_allowed")
    bench.ok("POST", "/key/update", {"key": key.public_id, "models": ["faulty/*"], "max_budget": 0.00001})
    refused(bench.chat(key), 402, "request_exceeds_budget")


def test_changes_at_the_same_time_do_not_undo_one_another(bench: Bench):
    """A block that an update of something else took back would be a key that goes on."""
    key = bench.key()
    for rpm in range(1, 11):
        changes = [
            bench.later(bench.ok, "POST", "/key/update", {"key": key.public_id, "rpm_limit": rpm}),
            bench.later(bench.ok, "POST", "/key/block", {"key": key.public_id}),
            bench.later(bench.ok, "POST", "/key/update", {"key": key.public_id, "tpm_limit": rpm}),
        ]
        for change in changes:
            change.result()
        row = bench.ok("GET", "/key/info", key=key.public_id)["info"]
        assert (row["blocked"], row["rpm_limit"], row["tpm_limit"]) == (True, rpm, rpm)
        bench.ok("POST", "/key/unblock", {"key": key.public_id})


def test_two_keys_never_get_one_alias(bench: Bench):
    body = {"key_alias": f"{bench.fleet}-one", "team_id": bench.fleet}
    answers = [bench.later(bench.admin, "POST", "/key/generate", body) for _ in range(8)]
    assert sorted(answer.result().status_code for answer in answers) == [200] + [400] * 7


def test_the_same_key_again_changes_nothing(bench: Bench):
    fields = {
        "key_alias": f"{bench.fleet}-a",
        "team_id": bench.fleet,
        "key": compose_key("b" * 10, bench.fleet.replace("-", "x").ljust(32, "A")[:32]),
    }
    first = bench.ok("POST", "/key/generate", fields)
    again = bench.ok("POST", "/key/generate", fields)
    assert first == again
    assert bench.ok("GET", "/key/list", team_id=bench.fleet)["total_count"] == 1
    taken = {**fields, "key_alias": f"{bench.fleet}-b"}
    fault(bench.admin("POST", "/key/generate", taken), 400, "bad_request_error", "key")
    alias = {"key_alias": f"{bench.fleet}-a", "team_id": bench.fleet}
    fault(bench.admin("POST", "/key/generate", alias), 400, "bad_request_error", "key_alias")
    other_secret = {**fields, "key": compose_key("b" * 10, "Z" * 32)}
    fault(bench.admin("POST", "/key/generate", other_secret), 400, "bad_request_error", "key")
    bench.ok("POST", "/key/delete", {"keys": [first["token"]]})
    fault(bench.admin("POST", "/key/generate", fields), 400, "bad_request_error", "key")
    bench.ok("POST", "/key/generate", alias)  # the alias is free again, the secret is used up


def test_keys_are_listed_by_page_by_fleet_and_by_alias(bench: Bench):
    keys = [bench.key() for _ in range(5)]
    seen = []
    for page in (1, 2, 3):
        answer = bench.ok("GET", "/key/list", team_id=bench.fleet, page=page, size=2)
        assert (answer["total_count"], answer["current_page"], answer["total_pages"]) == (5, page, 3)
        seen += answer["keys"]
    assert seen == [key.public_id for key in keys]
    (row,) = bench.ok("GET", "/key/list", team_id=bench.fleet, size=1, return_full_object="true")["keys"]
    assert row["token"] == keys[0].public_id
    (found,) = bench.ok("GET", "/key/list", key_alias=row["key_alias"])["keys"]
    assert found == keys[0].public_id
    for bad in ("0", "-1", "x", "1" * 30):
        fault(bench.admin("GET", "/key/list", page=bad), 400, "bad_request_error", "page")


def test_a_deleted_key_is_gone_and_its_spend_is_not(bench: Bench):
    keys = [bench.key() for _ in range(3)]
    bench.chat(keys[0])
    spent = bench.spent()
    answer = bench.ok("POST", "/key/delete", {"keys": [keys[0].public_id, keys[1].secret, "nothing"]})
    assert answer == {"deleted_keys": [keys[0].public_id, keys[1].public_id]}
    fault(bench.admin("GET", "/key/info", key=keys[0].public_id), 404, "not_found_error")
    fault(bench.admin("POST", "/key/delete", {"keys": [keys[0].public_id]}), 404, "not_found_error")
    fault(bench.admin("POST", "/key/delete", {}), 400, "bad_request_error", "keys")
    assert bench.ok("GET", "/key/list", team_id=bench.fleet)["keys"] == [keys[2].public_id]
    assert bench.spent() == spent
    alias = bench.ok("GET", "/key/info", key=keys[2].public_id)["info"]["key_alias"]
    assert bench.ok("POST", "/key/delete", {"key_aliases": [alias]}) == {"deleted_keys": [alias]}


def test_a_rotated_key_overlaps_with_its_successor(bench: Bench):
    key = bench.key(max_budget=1)
    bench.chat(key)
    made = bench.ok("POST", f"/key/{key.public_id}/regenerate", {"grace_period": "1h"})
    successor = Key(secret=made["key"], public_id=made["token"], fleet=bench.fleet)
    assert successor.public_id != key.public_id
    assert made["rotation_count"] == 1
    for each in (key, successor):
        assert bench.chat(each).status_code == 200
        assert bench.ok("GET", "/key/info", key=each.public_id)["info"]["spend"] > 0
    assert bench.spent() == (3 * 31_000, 0)
    assert [row["key_id"] for row in bench.logs()] == [key.public_id, key.public_id, successor.public_id]
    bench.ok("POST", f"/key/{successor.public_id}/regenerate", {"grace_period": "0s"})
    for each in (key, successor):
        refused(bench.chat(each), 403, "key_expired")
    (listed,) = bench.ok("GET", "/key/list", team_id=bench.fleet)["keys"]
    assert listed not in (key.public_id, successor.public_id)


def test_a_rotation_with_a_chosen_key_can_be_said_twice(bench: Bench):
    key = bench.key()
    chosen = compose_key(key.public_id[::-1], "C" * 32)
    body = {"new_key": chosen, "grace_period": "24h"}
    first = bench.ok("POST", f"/key/{key.public_id}/regenerate", body)
    assert first == bench.ok("POST", f"/key/{key.public_id}/regenerate", body)
    assert first["rotation_count"] == 1
    other = bench.key()
    fault(bench.admin("POST", f"/key/{other.public_id}/regenerate", body), 400, "bad_request_error", "new_key")
    for bad in ({"new_key": "sk-x"}, {"grace_period": "soon"}):
        fault(bench.admin("POST", f"/key/{key.public_id}/regenerate", bad), 400, "bad_request_error")


def test_a_secret_is_in_no_answer_but_that_of_its_making(bench: Bench):
    key = bench.key(guardrails=["pii-filter"])
    chat = bench.chat(key, headers={"x-nemo-run-id": f"run-of-{bench.fleet}"})
    request_id, run_id = chat.headers["x-nemo-request-id"], f"run-of-{bench.fleet}"
    answers: list[Any] = [
        bench.ok("GET", "/key/info", key=key.secret),
        bench.ok("GET", "/key/list", return_full_object="true", team_id=bench.fleet),
        bench.ok("POST", "/key/update", {"key": key.secret, "rpm_limit": 100}),
        bench.ok("POST", "/key/block", {"key": key.secret}),
        bench.ok("POST", "/key/unblock", {"key": key.secret}),
        bench.ok("GET", "/nemo/status"),
        bench.ok("GET", "/nemo/info"),
        bench.ok("GET", "/nemo/logs", fleet=bench.fleet),
        bench.ok("GET", f"/nemo/runs/{run_id}"),
        bench.ok("GET", f"/nemo/calls/{request_id}"),
        bench.ok("GET", f"/nemo/calls/{request_id}/content"),
        bench.http.get("/key/info", headers=key.headers).json(),
        dict(chat.headers),
        bench.ok("POST", f"/key/{key.public_id}/regenerate", {"grace_period": "1h"}),
        bench.admin("POST", "/key/nothing/regenerate", {"new_key": key.secret}).json(),
        bench.admin("POST", "/key/generate", {"key": key.secret, "key_alias": "x"}).json(),
        bench.ok("POST", "/key/delete", {"keys": [key.secret]}),
        bench.chat(key).json(),
    ]
    for answer in answers:
        assert not secrets_in(answer, key), answer
    admin, viewer = bench.gateway.admin_key.reveal(), bench.gateway.running.secrets.viewer_token.reveal()
    assert not any(secret in json.dumps(answers) for secret in (admin, viewer))
    for file in bench.gateway.home.glob("gateway.db*"):
        assert key.secret[19:].encode() not in file.read_bytes()


def test_a_key_looks_at_itself_alone(bench: Bench):
    mine, other = bench.key(), bench.key()
    own = bench.http.get("/key/info", headers=mine.headers).json()
    assert own["key"] == mine.public_id
    assert bench.http.get("/key/info", params={"key": mine.public_id}, headers=mine.headers).json() == own
    answer = bench.http.get("/key/info", params={"key": other.public_id}, headers=mine.headers)
    fault(answer, 403, "auth_error")
    fault(bench.admin("GET", "/key/info"), 400, "bad_request_error", "key")


# --- fleets and deployments ---------------------------------------------------------------------------------------
def test_a_team_as_it_was_asked_for(bench: Bench):
    fields = {
        "max_budget": 5.0,
        "budget_duration": "7d",
        "rpm_limit": 7,
        "tpm_limit": 700,
        "metadata": {"nemo": {"alert_at": 0.9}, "x": 1},
    }
    row = bench.ok("POST", "/team/new", {"team_id": bench.fleet, "team_alias": bench.fleet, **fields})
    assert {name: row[name] for name in fields} == fields
    key = bench.key()
    bench.chat(key)
    info = bench.ok("GET", "/team/info", team_id=bench.fleet)
    assert info["team_id"] == bench.fleet
    assert [each["token"] for each in info["keys"]] == [key.public_id]
    assert info["team_info"]["spend"] == pytest.approx(0.000031, abs=1e-12)
    assert info["team_info"]["budget_reset_at"] is not None
    assert [team for team in bench.ok("GET", "/team/list") if team["team_id"] == bench.fleet] == [info["team_info"]]
    bench.ok("POST", "/team/update", {"team_id": bench.fleet, "max_budget": None})
    after = bench.ok("GET", "/team/info", team_id=bench.fleet)["team_info"]
    cleared = {"max_budget": None, "budget_duration": None, "budget_reset_at": None, "spend": 0.0}  # of no period
    assert {**info["team_info"], **cleared, "updated_at": after["updated_at"]} == after
    fault(bench.admin("POST", "/team/new", {"team_id": bench.fleet}), 400, "bad_request_error", "team_id")
    fault(bench.admin("POST", "/team/new", {}), 400, "bad_request_error", "team_id")


def test_a_fleet_s_limits_bind_all_of_its_keys(bench: Bench):
    bench.ok("POST", "/team/new", {"team_id": bench.fleet, "tpm_limit": 60})
    one, two = bench.key(), bench.key()
    assert bench.chat(one, max_tokens=30).status_code == 200
    refused(bench.chat(two, max_tokens=50), 429, "rate_limit_exceeded", limit="tpm", scope="fleet")


def test_a_deleted_team_takes_its_keys_with_it(bench: Bench):
    """As at LiteLLM. Left alive they would go on without the fleet's budget."""
    bench.ok("POST", "/team/new", {"team_id": bench.fleet, "max_budget": 1})
    key, other = bench.key(), bench.key(fleet=f"{bench.fleet}-other")
    bench.chat(key)
    assert bench.ok("POST", "/team/delete", {"team_ids": [bench.fleet]}) == {"deleted_teams": [bench.fleet]}
    refused(bench.chat(key), 403, "key_revoked")
    assert bench.chat(other).status_code == 200
    assert [row["status"] for row in bench.logs()] == [200, 403]
    assert bench.spent() == (31_000, 0)


def test_deployments_as_they_were_asked_for(bench: Bench):
    made = bench.ok(
        "POST",
        "/model/new",
        {
            "model_name": f"{bench.fleet}-group",
            "litellm_params": {"model": "faulty/ok", "order": 2, "weight": 3},
            "model_info": {"id": f"{bench.fleet}-d1", "team_id": bench.fleet},
        },
    )
    assert made in bench.ok("GET", "/model/info")["data"]
    assert made["litellm_params"] == {"model": "faulty/ok", "order": 2, "weight": 3}
    assert made["model_info"] == {"id": f"{bench.fleet}-d1", "team_id": bench.fleet}
    bench.ok("POST", "/model/delete", {"id": f"{bench.fleet}-d1"})
    assert made not in bench.ok("GET", "/model/info")["data"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"litellm_params": {"model": "faulty/ok", "api_base": "http://127.0.0.1"}}, "addresses"),
        ({"litellm_params": {"model": "faulty/ok", "api_key": "sk-x"}}, "credentials"),
        ({"litellm_params": {}}, "litellm_params.model"),
        ({"litellm_params": {"model": 1}}, "litellm_params.model"),
        ({"litellm_params": {"model": "faulty/ok", "order": -1}}, "order"),
        ({"litellm_params": {"model": "faulty/ok", "weight": True}}, "weight"),
        ({"model_info": {"id": 1}}, "model_info"),
        ({"model_info": {"team_id": []}}, "model_info"),
        ({"model_name": ""}, "model_name"),
    ],
)
def test_a_deployment_that_cannot_be_meant(bench: Bench, change: dict[str, Any], named: str):
    body = {"model_name": f"{bench.fleet}-group", "litellm_params": {"model": "faulty/ok"}, **change}
    error = fault(bench.admin("POST", "/model/new", body), 400, "bad_request_error")
    assert named in error["message"]
    assert "sk-x" not in error["message"]
