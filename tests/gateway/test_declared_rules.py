"""What a fleet declares of budgets and limits, provisioned onto a real gateway: there as declared, and in force."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from gateway_bench import INPUT_NANOS, OUTPUT_NANOS, Bench, Key, refused

from nemo_agents import AgentRole, Budget, Fleet, Loop, RateLimit
from nemo_agents.money import NANOS_PER_DOLLAR

COST_NANOS = 11 * INPUT_NANOS + 10 * OUTPUT_NANOS  # of a call to faulty/ok


def role(name: str = "writer", **fields: Any) -> AgentRole:
    return AgentRole(name, **{"models": ["faulty/*"], **fields})


def dollars(nanos: int) -> Decimal:
    return Decimal(nanos) / NANOS_PER_DOLLAR


def provisioned(bench: Bench, *roles: AgentRole, **fields: Any) -> Fleet:
    fleet = bench.gateway.provision(Fleet(bench.fleet, roles=roles or [role()], **fields))
    assert bench.gateway.plan(fleet).is_empty
    return fleet


def key_of(bench: Bench, fleet: Fleet, name: str = "writer") -> Key:
    secret = fleet[name].key.reveal()
    return Key(secret=secret, public_id=secret.split("-")[2], fleet=bench.fleet)


def row_of(bench: Bench, key: Key) -> dict[str, Any]:
    row: dict[str, Any] = bench.ok("GET", "/key/info", key=key.public_id)["info"]
    return row


EVERYTHING = role(
    models=["faulty/*", "unpriced/ok"],
    rpm=600,
    tpm="1m",
    max_parallel=9,
    shadow=["tpm"],
    model_limits={"faulty/ok": RateLimit(rpm=500), "faulty/echo": RateLimit(max_parallel=3, mode="shadow")},
    budget=[
        "$5/12h",
        Budget("$60/month", tz="Europe/Amsterdam", alert_at=[0.5, 0.9]),
        Budget("$1/day", tz="Asia/Kathmandu", mode="shadow"),
    ],
    loop=Loop(4, within_s=30, mode="enforce"),
    price_per_request="$0.002",
)


def everything(bench: Bench) -> Fleet:
    return provisioned(bench, EVERYTHING, budget=["$9/week", "$90"], rpm=900, max_parallel=20, shadow=["max_parallel"])


def test_everything_that_can_be_declared_arrives_and_is_shown(bench: Bench):
    fleet = everything(bench)
    row = row_of(bench, key_of(bench, fleet))
    assert (row["max_budget"], row["budget_duration"]) == (5.0, "12h")
    assert (row["model_rpm_limit"], row["model_tpm_limit"]) == ({"faulty/ok": 500}, None)
    assert row["metadata"]["nemo"]["loop"] == {"repeats": 4, "within_s": 30, "mode": "enforce"}
    (listed,) = bench.ok("GET", "/key/list", team_id=bench.fleet, return_full_object="true")["keys"]
    assert listed == row
    team = bench.ok("GET", "/team/info", team_id=bench.fleet)["team_info"]
    assert (team["max_budget"], team["budget_duration"]) == (9.0, "7d")
    assert team["metadata"]["nemo"]["budgets"][0]["max_budget"] == 90.0
    assert (team["metadata"]["nemo"]["max_parallel"], team["metadata"]["nemo"]["shadow"]) == (20, ["max_parallel"])
    (status,) = [one for one in bench.ok("GET", "/nemo/status") if one["fleet"] == bench.fleet]
    assert [one["name"] for one in status["budgets"]] == ["week", "total"]
    (of_role,) = status["roles"]
    assert [(one["name"], one["mode"]) for one in of_role["budgets"]] == [
        ("12h", "enforce"),
        ("month Europe/Amsterdam", "enforce"),
        ("day Asia/Kathmandu", "shadow"),
    ]


@pytest.mark.parametrize(
    "by_hand",
    [
        {"max_budget": 6},
        {"budget_duration": "6h"},
        {"model_rpm_limit": {"faulty/ok": 501}},
        {"model_tpm_limit": {"faulty/ok": 7}},
        {"metadata": {"nemo": {"loop": "off"}}},
    ],
    ids=str,
)
def test_what_another_hand_changed_is_drift_and_is_put_right(bench: Bench, by_hand: dict[str, Any]):
    fleet = everything(bench)
    key = key_of(bench, fleet)
    if "metadata" in by_hand:
        nemo = row_of(bench, key)["metadata"]["nemo"]
        by_hand = {"metadata": {"nemo": {**nemo, **by_hand["metadata"]["nemo"]}}}
    bench.ok("POST", "/key/update", {"key": key.public_id, **by_hand})
    made = bench.gateway.plan(fleet)
    assert [(change.name, change.drift) for change in made.changes if change.action != "keep"] == [("writer", True)]
    provisioned(bench, EVERYTHING, budget=["$9/week", "$90"], rpm=900, max_parallel=20, shadow=["max_parallel"])


def test_a_rotation_keeps_every_rule_and_the_spend(bench: Bench):
    fleet = everything(bench)
    key = key_of(bench, fleet)
    assert bench.chat(key).status_code == 200
    before = row_of(bench, key)
    issued = bench.ok("POST", f"/key/{key.public_id}/regenerate", {"grace_period": "0s"})
    successor = Key(secret=issued["key"], public_id=issued["token"], fleet=bench.fleet)
    after = row_of(bench, successor)
    volatile = ("token", "key_name", "rotation_count", "updated_at", "last_active")
    assert {name: after[name] for name in after if name not in volatile} == {
        name: before[name] for name in before if name not in volatile
    }
    assert after["spend"] == pytest.approx(COST_NANOS / 1e9)
    refused(bench.chat(key), 403, "key_expired")
    assert bench.chat(successor).status_code == 200


def test_the_tighter_of_two_budgets_refuses(bench: Bench):
    tight = [dollars(COST_NANOS), Budget("$9", period="month", tz="Asia/Kathmandu")]
    one = provisioned(bench, role(budget=[Budget(tight[0], period="day"), tight[1]]))
    error = refused(bench.chat(key_of(bench, one)), 402, "request_exceeds_budget", scope="role")
    assert "day" in error["message"]
    other = provisioned(bench, role(budget=["$9/day", Budget(tight[0], period="month", tz="Asia/Kathmandu")]))
    error = refused(bench.chat(key_of(bench, other)), 402, "request_exceeds_budget", scope="role")
    assert "month" in error["message"]


def test_a_raised_budget_counts_at_the_next_call_and_a_lowered_one_too(bench: Bench):
    key = key_of(bench, provisioned(bench, role(budget="$5/day")))
    assert bench.chat(key).status_code == 200
    provisioned(bench, role(budget=Budget(dollars(COST_NANOS // 2), period="day")))  # below what is spent already
    error = refused(bench.chat(key), 402, "request_exceeds_budget", scope="role")
    assert "day" in error["message"]
    assert bench.spent("fleet") == (COST_NANOS, 0)
    provisioned(bench, role(budget="$6/day"))
    assert bench.chat(key).status_code == 200
    assert row_of(bench, key)["spend"] == pytest.approx(2 * COST_NANOS / 1e9)


def test_a_lowered_budget_that_a_call_would_fit_is_exhausted(bench: Bench):
    key = key_of(bench, provisioned(bench, role(budget="$5/day")))
    for _ in range(8):
        assert bench.chat(key).status_code == 200
    provisioned(bench, role(budget=Budget(dollars(6 * COST_NANOS), period="day")))
    error = refused(bench.chat(key), 402, "budget_exhausted", scope="role")
    assert error["resets_at"] is not None


def test_a_changed_period_is_told_of_before_it_is_applied(bench: Bench):
    key = key_of(bench, provisioned(bench, role(budget="$5/day")))
    assert bench.chat(key).status_code == 200
    wanted = Fleet(bench.fleet, roles=[role(budget="$5/week")])
    (change,) = [one for one in bench.gateway.plan(wanted).changes if one.action != "keep"]
    assert change.note == "another count for $5/week: a new one, or the one it had"
    provisioned(bench, role(budget="$5/week"))
    assert row_of(bench, key)["spend"] == 0.0
    provisioned(bench, role(budget="$5/day"))  # back within the day: that count goes on
    assert row_of(bench, key)["spend"] == pytest.approx(COST_NANOS / 1e9)


def test_a_budget_in_shadow_is_counted_and_never_refuses(bench: Bench):
    watched = Budget(dollars(COST_NANOS // 2), period="day", mode="shadow")
    key = key_of(bench, provisioned(bench, role(budget=watched)))
    for _ in range(3):
        assert bench.chat(key).status_code == 200
    (status,) = [one for one in bench.ok("GET", "/nemo/status") if one["fleet"] == bench.fleet]
    (shown,) = status["roles"][0]["budgets"]
    assert (shown["mode"], shown["spent_nanos"], shown["amount_nanos"]) == ("shadow", 3 * COST_NANOS, COST_NANOS // 2)


def test_a_limit_of_one_model_leaves_the_others_alone(bench: Bench):
    limits = {"faulty/ok": RateLimit(rpm=1), "faulty/echo": RateLimit(rpm=1, mode="shadow")}
    key = key_of(bench, provisioned(bench, role(model_limits=limits)))
    assert bench.chat(key).status_code == 200
    refused(bench.chat(key), 429, "rate_limit_exceeded", limit="rpm")
    assert [bench.chat(key, "faulty/echo").status_code for _ in range(3)] == [200, 200, 200]


def test_a_rate_in_shadow_never_refuses(bench: Bench):
    key = key_of(bench, provisioned(bench, role(limits=RateLimit(rpm=1, mode="shadow")), rpm=2, shadow=["rpm"]))
    assert [bench.chat(key).status_code for _ in range(4)] == [200] * 4


def test_an_unpriced_model_costs_what_the_role_says(bench: Bench):
    key = key_of(
        bench, provisioned(bench, role(models=["unpriced/ok"], budget="$0.005/day", price_per_request="$0.002"))
    )
    assert [bench.chat(key, "unpriced/ok").status_code for _ in range(3)] == [200, 200, 402]
    assert row_of(bench, key)["spend"] == pytest.approx(0.004)
