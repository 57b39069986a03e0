"""Declarations: what they accept, what they store, and what they refuse with which words."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.errors import DeclarationError
from nemo_agents.roles import (
    BUILTIN_GUARDRAILS,
    PERIODS,
    AgentRole,
    Budget,
    FleetDeclaration,
    Guardrail,
    ModelGroup,
    RateLimit,
    format_count,
    parse_count,
)


def role(name="writer", **fields):
    return AgentRole(name, **{"models": ["gpt-4o-mini"], **fields})


def fleet(**fields):
    return FleetDeclaration("crew", **{"roles": [role()], **fields})


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (120, 120),
        ("120", 120),
        ("100k", 100_000),
        ("1.5k", 1_500),
        ("2m", 2_000_000),
        (100_000, 100_000),
        ("1_000", 1000),
    ],
)
def test_counts_are_read_as_people_write_them(written, count):
    assert parse_count(written, field="rpm") == count


@pytest.mark.parametrize("written", [0, -1, True, 1.5, "", "k", "1.0005k", "-5", "1e3", "10 000", None, "²", 10**13])
def test_what_is_no_count_is_refused(written):
    with pytest.raises(DeclarationError):
        parse_count(written, field="rpm")


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=10**12))
def test_a_count_survives_being_written(count):
    assert parse_count(format_count(count), field="rpm") == count


@pytest.mark.parametrize(
    ("budget", "nanos", "period"),
    [
        (Budget("$20/day"), 20 * 10**9, "day"),
        (Budget(amount="$20", period="day"), 20 * 10**9, "day"),
        (Budget("$5"), 5 * 10**9, "total"),
        (Budget("$5/total"), 5 * 10**9, "total"),
        (Budget("0.05/week"), 5 * 10**7, "week"),
        (Budget(7, period="month"), 7 * 10**9, "month"),
        (Budget(Decimal("0.5")), 5 * 10**8, "total"),
        (Budget("$1,000/day", period="day"), 1000 * 10**9, "day"),
    ],
)
def test_budgets_are_read_as_people_write_them(budget, nanos, period):
    assert (budget.amount_nanos, budget.period, budget.alert_at) == (nanos, period, 0.8)


def test_a_budget_reads_as_it_is_written():
    assert str(Budget("$20/day")) == "$20/day"
    assert str(Budget("$0.5")) == "$0.50/total"


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=10**18), st.sampled_from(PERIODS))
def test_a_budget_survives_being_written(nanos, period):
    budget = Budget(Decimal(nanos) / 10**9, period=period)
    assert budget.amount_nanos == nanos
    assert Budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Budget("$-1/day"), "budget"),
        (lambda: Budget("$20/fortnight"), "budget.period"),
        (lambda: Budget("$20/"), "budget.period"),
        (lambda: Budget("$20/day", period="week"), "budget"),
        (lambda: Budget(20.0), "budget"),
        (lambda: Budget("nan"), "budget"),
        (lambda: Budget("inf/day"), "budget"),
        (lambda: Budget("$0/day"), "budget"),
        (lambda: Budget(True), "budget"),
        (lambda: Budget(None), "budget"),
        (lambda: Budget("twenty"), "budget"),
        (lambda: Budget("$20", alert_at=0), "budget.alert_at"),
        (lambda: Budget("$20", alert_at=1.1), "budget.alert_at"),
        (lambda: Budget("$20", alert_at=float("nan")), "budget.alert_at"),
        (lambda: Budget("$20", alert_at=True), "budget.alert_at"),
        (lambda: Budget("$20", alert_at="0.8"), "budget.alert_at"),
        (lambda: RateLimit(rpm=0), "rpm"),
        (lambda: ModelGroup("Fast", ["a"]), "models.name"),
        (lambda: ModelGroup("fast", []), "models[fast].models"),
        (lambda: ModelGroup("fast", ["a", "a"]), "models[fast].models"),
        (lambda: ModelGroup("fast", "gpt-4o"), "models[fast].models"),
        (lambda: ModelGroup("fast", [" "]), "models[fast].models"),
        (lambda: Guardrail("pii"), "guardrails"),
        (lambda: Guardrail("pii-filter", mode="shadow"), "guardrails[pii-filter].mode"),
        (lambda: role(name="Writer"), "roles.name"),
        (lambda: role(name="a" * 64), "roles.name"),
        (lambda: role(name="writer\n"), "roles.name"),
        (lambda: role(name=3), "roles.name"),
        (lambda: role(models=[]), "roles[writer].models"),
        (lambda: role(models=[1]), "roles[writer].models"),
        (lambda: role(rpm=0), "roles[writer].rpm"),
        (lambda: role(tpm="fast"), "roles[writer].tpm"),
        (lambda: role(max_parallel=-1), "roles[writer].max_parallel"),
        (lambda: role(rpm=1, limits=RateLimit(rpm=1)), "roles[writer].rpm"),
        (lambda: role(limits={"rpm": 1}), "roles[writer].limits"),
        (lambda: role(budget="$-1/day"), "roles[writer].budget"),
        (lambda: role(budget="$1/year"), "roles[writer].budget.period"),
        (lambda: role(budget=1.5), "roles[writer].budget"),
        (lambda: role(guardrails=["pii"]), "roles[writer].guardrails"),
        (lambda: role(guardrails=["pii-filter", "pii-filter"]), "roles[writer].guardrails"),
        (lambda: role(guardrails="pii-filter"), "roles[writer].guardrails"),
        (lambda: role(tools=["a", "a"]), "roles[writer].tools"),
        (lambda: role(tools="search"), "roles[writer].tools"),
        (lambda: role(description=1), "roles[writer].description"),
        (lambda: fleet(roles=[]), "roles"),
        (lambda: fleet(roles=[role(), role()]), "roles"),
        (lambda: fleet(roles=["writer"]), "roles"),
        (lambda: fleet(models=[ModelGroup("a", ["x"]), ModelGroup("a", ["y"])]), "models"),
        (lambda: fleet(models=[ModelGroup("a", ["b"]), ModelGroup("b", ["a"])]), "models[a].models"),
        (lambda: fleet(models=[ModelGroup("a", ["a"])]), "models[a].models"),
        (lambda: fleet(budget="$1/year"), "fleet.budget.period"),
        (lambda: fleet(rpm=0), "fleet.rpm"),
        (lambda: fleet(guardrails=["none"]), "fleet.guardrails"),
        (lambda: FleetDeclaration("Crew", roles=[role()]), "fleet.name"),
        (lambda: fleet().role("riter"), "roles"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_its_field(make, field):
    with pytest.raises(DeclarationError) as caught:
        make()
    assert caught.value.field == field
    assert caught.value.remedy.endswith((".", "]."))


def test_an_unknown_guardrail_is_met_with_the_nearest():
    with pytest.raises(DeclarationError, match='Did you mean "pii-filter"'):
        Guardrail("pii-filtre")
    assert BUILTIN_GUARDRAILS == ("pii-filter", "prompt-injection-detect")


def test_declarations_that_mean_the_same_are_equal():
    one = role(rpm="1k", budget="$20/day", guardrails=["pii-filter"], tools=["b", "a"])
    two = role(
        limits=RateLimit(rpm=1000),
        budget=Budget(20, period="day"),
        guardrails=[Guardrail("pii-filter")],
        tools=("a", "b"),
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one.limits == RateLimit(rpm=1000)


def test_no_tools_and_any_tool_are_not_the_same():
    assert role(tools=[]) != role(tools=None)


def test_a_subclass_of_a_fleet_equals_the_plain_declaration():
    class Running(FleetDeclaration):
        pass

    one, two = fleet(), Running("crew", roles=[role()])
    assert one == two
    assert two == one
    assert hash(one) == hash(two)
    assert one != fleet(rpm=1)


def test_the_order_of_roles_says_nothing():
    assert fleet(roles=[role("a"), role("b")]) == fleet(roles=[role("b"), role("a")])


def test_declarations_do_not_change():
    for value in (fleet(), role(), Budget("$1"), ModelGroup("a", ["b"]), RateLimit(rpm=1), Guardrail("pii-filter")):
        for one in fields(value):
            with pytest.raises(FrozenInstanceError):
                setattr(value, one.name, 3)


def test_a_fleet_finds_its_roles():
    crew = fleet(roles=[role("a"), role("b")])
    assert [found.name for found in crew] == ["a", "b"]
    assert crew.role("b") is crew.roles[1]


def test_a_fleets_guardrails_come_before_a_roles_own_and_once():
    guarded = role(guardrails=["prompt-injection-detect", "pii-filter"])
    crew = fleet(roles=[guarded], guardrails=["pii-filter"])
    assert [str(one) for one in crew.effective_guardrails(guarded)] == ["pii-filter", "prompt-injection-detect"]


def test_the_worst_case_adds_up_per_period():
    crew = fleet(
        roles=[role("a", budget="$1/day"), role("b", budget="$2/day"), role("c", budget="$9"), role("d")],
        budget="$50/month",
    )
    assert [(one.period, one.roles_nanos, one.fleet_nanos) for one in crew.worst_case()] == [
        ("day", 3 * 10**9, None),
        ("month", 0, 50 * 10**9),
        ("total", 9 * 10**9, None),
    ]
    assert crew.worst_case()[0].uncapped == ("d",)
    assert fleet().worst_case() == ()
