"""What a grant is counted against: its rates, its budgets and its fleet's, each period once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.standing import work_out
from nemo_agents.gateway.stores.base import FleetRecord
from nemo_agents.policy.budgets import BudgetRule, ModelLimit
from nemo_agents.policy.keys import Grant

NOON = 1_795_521_600_000_000  # 2026-11-24 12:00 UTC
HOUR = 3_600_000_000
GRANT = Grant(grant_id="g", alias="a", role="researcher", fleet="crew")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


def rule(amount, duration="1d", **fields):
    return BudgetRule(amount_nanos=amount, duration=duration, **fields)


def names(scopes):
    return [(scope.kind, scope.name, scope.limit_nanos, scope.mode) for scope in scopes]


def test_own_budgets_come_first_and_in_their_order_and_then_the_fleet_s(settings):
    grant = replace(GRANT, budgets=(rule(10), rule(100, "1mo", tz="Europe/Amsterdam")))
    fleet = FleetRecord(fleet="crew", budgets=(rule(50, "7d"), rule(900, None)))
    standing = work_out(grant, fleet, settings, NOON)
    assert names(standing.budgets) == [
        ("role", "day", 10, "enforce"),
        ("role", "month Europe/Amsterdam", 100, "enforce"),
        ("fleet", "week", 50, "enforce"),
        ("fleet", "total", 900, "enforce"),
    ]
    assert standing.own == standing.budgets[:2]
    assert standing.until_us == NOON + 12 * HOUR  # when the first of its periods ends
    assert standing.holds(grant, fleet, NOON + 12 * HOUR - 1)
    assert not standing.holds(grant, fleet, NOON + 12 * HOUR)
    assert not standing.holds(replace(grant), fleet, NOON)


def test_spend_without_a_budget_is_recorded(settings):
    assert names(work_out(GRANT, None, settings, NOON).budgets) == [
        ("role", "total", None, "enforce"),
        ("fleet", "total", None, "enforce"),
    ]
    alone = replace(GRANT, fleet=None)
    assert names(work_out(alone, None, settings, NOON).budgets) == [("role", "total", None, "enforce")]


def test_budgets_that_share_a_balance_are_held_once_by_the_one_that_binds(settings):
    """A hold twice in one balance would take twice the money; the looser one is still looked at in shadow mode."""
    day, lower, shadow = rule(10), rule(7, "24h"), rule(5, mode="shadow")
    standing = work_out(replace(GRANT, budgets=(shadow, day, lower)), None, settings, NOON)
    assert names(standing.own) == [("role", "day", 7, "enforce")]
    assert names(standing.shadows) == [("role", "day", 5, "shadow")]
    other_zone = rule(5, tz="Asia/Kathmandu")
    standing = work_out(replace(GRANT, budgets=(day, other_zone)), None, settings, NOON)
    assert len({scope.period for scope in standing.own}) == 2


def test_rates_of_role_fleet_and_model(settings):
    limits = (ModelLimit(model="gpt-4o", rpm=2), ModelLimit(model="o3", tpm=9, mode="shadow"))
    grant = replace(GRANT, rpm=5, shadow=("rpm",), model_limits=limits)
    fleet = FleetRecord(fleet="crew", max_parallel=9)
    standing = work_out(grant, fleet, settings, NOON)
    role, of_fleet = standing.rates
    assert (role.kind, role.id, role.rpm, role.tpm, role.shadow) == ("role", "g", 5, settings.default_tpm, {"rpm"})
    assert (of_fleet.kind, of_fleet.id, of_fleet.rpm, of_fleet.max_parallel) == ("fleet", "crew", None, 9)
    model = standing.of_models["gpt-4o"]
    assert (model.kind, model.id, model.rpm, model.fleet) == ("model", "g/gpt-4o", 2, "crew")
    assert model.shadow == frozenset()  # a role's own limits may be in shadow mode, and a model's enforced
    assert standing.of_models["o3"].shadow == {"rpm", "tpm", "max_parallel"}
    assert [scope.kind for scope in work_out(GRANT, FleetRecord(fleet="crew"), settings, NOON).rates] == ["role"]


def test_a_limit_of_nothing_is_a_limit(settings):
    (role,) = work_out(replace(GRANT, rpm=0, tpm=0), None, settings, NOON).rates
    assert (role.rpm, role.tpm) == (0, 0)
