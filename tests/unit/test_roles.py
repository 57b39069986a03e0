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
    Loop,
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
        (Budget("$5/12h"), 5 * 10**9, "12h"),
        (Budget("$5/720m"), 5 * 10**9, "12h"),
        (Budget("$5/90m"), 5 * 10**9, "90m"),
        (Budget("$5/24h", period="1d"), 5 * 10**9, "day"),
        (Budget("$5/7d"), 5 * 10**9, "week"),
        (Budget("$5", period="30d"), 5 * 10**9, "month"),
        (Budget("$5/720h"), 5 * 10**9, "720h"),
        (Budget("$5/10d"), 5 * 10**9, "10d"),
    ],
)
def test_budgets_are_read_as_people_write_them(budget, nanos, period):
    assert (budget.amount_nanos, budget.period) == (nanos, period)
    assert (budget.tz, budget.alert_at, budget.mode) == ("UTC", (0.8,), "enforce")


def test_a_budget_reads_as_it_is_written():
    assert str(Budget("$20/day")) == "$20/day"
    assert str(Budget("$0.5")) == "$0.50/total"
    assert str(Budget("$60/month", tz="Europe/Amsterdam")) == "$60/month (Europe/Amsterdam)"
    assert str(Budget("$5/12h", mode="shadow")) == "$5/12h (shadow)"
    assert str(Budget("$5/day", tz="Asia/Kathmandu", mode="shadow")) == "$5/day (Asia/Kathmandu, shadow)"


@pytest.mark.parametrize(
    ("written", "stored"),
    [(0.5, (0.5,)), (1, (1.0,)), ([0.8, 0.5, 0.8], (0.5, 0.8)), ((0.9,), (0.9,)), ({0.2, 0.1}, (0.1, 0.2)), ([], ())],
)
def test_alerts_are_a_number_or_several_in_rising_order(written, stored):
    assert Budget("$5/day", alert_at=written).alert_at == stored


def test_an_unknown_time_zone_is_met_with_the_nearest():
    with pytest.raises(DeclarationError, match='Did you mean "Europe/Amsterdam"') as caught:
        role(budget=Budget("$5/day", tz="Europe/Amsterdm"))
    assert caught.value.field == "budget.tz"


@pytest.mark.parametrize(
    "zone",
    ["", "europe/amsterdam", "localtime", "posixrules", "right/UTC", "../x", "Europe", "A" * 300, "UTC\0", 1, None],
)
def test_what_is_no_time_zone_everywhere_is_refused(zone):
    with pytest.raises(DeclarationError) as caught:
        Budget("$5/day", tz=zone)
    assert caught.value.field == "budget.tz"


@pytest.mark.parametrize("period", ["total", "12h", "10d"])
def test_a_period_without_a_calendar_has_no_time_zone(period):
    with pytest.raises(DeclarationError, match="follows no calendar") as caught:
        Budget("$5", period=period, tz="Europe/Amsterdam")
    assert caught.value.field == "budget.tz"


def test_several_budgets_have_one_order_however_they_are_written():
    month = Budget("$60/month", tz="Europe/Amsterdam")
    soft = Budget("$1/12h", mode="shadow")
    one = role(budget=[soft, "$90", month, "$5/day", "$2/6h"])
    assert [str(budget) for budget in one.budgets] == [
        "$2/6h",
        "$5/day",
        "$60/month (Europe/Amsterdam)",
        "$90/total",
        "$1/12h (shadow)",
    ]
    assert one == role(budget=("$2/6h", "$90/total", soft, "$5/24h", month))
    assert role(budget=["$5/day"]) == role(budget="$5/day")
    assert role().budgets == role(budget=[]).budgets == ()
    assert fleet(budget=["$60/month", "$5/day"]).budgets == (Budget("$5/day"), Budget("$60/month"))


def test_a_budget_of_one_period_may_be_enforced_and_a_lower_one_watched():
    both = role(budget=["$5/day", Budget("$4/day", mode="shadow"), Budget("$5/day", tz="Asia/Kathmandu")])
    assert len(both.budgets) == 3


def test_rates_in_shadow_have_one_form_however_they_are_written():
    one = role(rpm=60, tpm="1k", shadow=["tpm", "rpm"])
    assert one.shadow == ("rpm", "tpm")
    assert one == role(limits=RateLimit(rpm=60, tpm=1000, mode="shadow"))
    mixed = role(limits=RateLimit(rpm=60, mode="shadow"), max_parallel=2, tpm=5, shadow=["tpm"])
    assert mixed.shadow == ("rpm", "tpm")
    assert fleet(rpm=1, max_parallel=4, shadow=("max_parallel",)).shadow == ("max_parallel",)


def test_limits_by_model_are_those_of_models_that_the_role_may_use():
    limits = {"gpt-4o": RateLimit(rpm=10), "faulty/ok": RateLimit(max_parallel=2, mode="shadow")}
    one = role(models=["gpt-4o", "faulty/*"], model_limits=limits)
    assert one.model_limits == (
        ("faulty/ok", RateLimit(max_parallel=2, mode="shadow")),
        ("gpt-4o", RateLimit(rpm=10)),
    )
    assert hash(one) == hash(role(models=["gpt-4o", "faulty/*"], model_limits=dict(reversed(limits.items()))))
    with pytest.raises(DeclarationError, match='Did you mean "gpt-4o"'):
        role(models=["gpt-4o"], model_limits={"gpt-4": RateLimit(rpm=1)})


def test_loops_are_watched_unless_it_is_said_otherwise():
    assert role().loop == Loop() == Loop(8, within_s=60, mode="shadow")
    assert role(loop="off").loop is None
    assert role(loop=None) == role(loop="off") != role()
    assert role(loop=Loop(3, mode="enforce")).loop == Loop(repeats=3, within_s=60, mode="enforce")


def test_a_price_per_request_is_in_nanos_and_may_be_nothing():
    assert role(price_per_request="$0.002").price_per_request_nanos == 2_000_000
    assert role(price_per_request="$0").price_per_request_nanos == 0
    assert role().price_per_request_nanos is None


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
        (lambda: Budget("$20", alert_at=[0.5, 2]), "budget.alert_at"),
        (lambda: Budget("$20", alert_at=["0.8"]), "budget.alert_at"),
        (lambda: Budget("$20", alert_at=None), "budget.alert_at"),
        (lambda: Budget("$20/day", mode="soft"), "budget.mode"),
        (lambda: Budget("$20/2w"), "budget.period"),
        (lambda: Budget("$20/0h"), "budget.period"),
        (lambda: Budget("$20/1.5h"), "budget.period"),
        (lambda: Budget("$20", period=7), "budget.period"),
        (lambda: RateLimit(rpm=0), "rpm"),
        (lambda: RateLimit(rpm=1, mode="on"), "mode"),
        (lambda: Loop(1), "loop.repeats"),
        (lambda: Loop(101), "loop.repeats"),
        (lambda: Loop(True), "loop.repeats"),
        (lambda: Loop(2.5), "loop.repeats"),
        (lambda: Loop(within_s=0), "loop.within_s"),
        (lambda: Loop(within_s=3601), "loop.within_s"),
        (lambda: Loop(mode="off"), "loop.mode"),
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
        (lambda: role(budget=["$1/day", "$2/year"]), "roles[writer].budget[1].period"),
        (lambda: role(budget=["$1/day", 1.5]), "roles[writer].budget[1]"),
        (lambda: role(budget=[f"$1/{hours}h" for hours in range(1, 22)]), "roles[writer].budget"),
        (lambda: role(budget=["$1/day", "$2/24h"]), "roles[writer].budget"),
        (lambda: role(budget=["$1", "$2/total"]), "roles[writer].budget"),
        (lambda: role(shadow=["rpm"]), "roles[writer].shadow"),
        (lambda: role(rpm=1, shadow=["rps"]), "roles[writer].shadow"),
        (lambda: role(rpm=1, shadow="rpm"), "roles[writer].shadow"),
        (lambda: role(rpm=1, shadow=True), "roles[writer].shadow"),
        (lambda: role(rpm=1, shadow=[["rpm"]]), "roles[writer].shadow"),
        (lambda: role(model_limits={"gpt-4o": RateLimit(rpm=1)}), "roles[writer].model_limits"),
        (lambda: role(model_limits={"gpt-4o-mini": RateLimit()}), "roles[writer].model_limits[gpt-4o-mini]"),
        (lambda: role(model_limits={"gpt-4o-mini": 5}), "roles[writer].model_limits[gpt-4o-mini]"),
        (lambda: role(model_limits=RateLimit(rpm=1)), "roles[writer].model_limits"),
        (lambda: role(loop=8), "roles[writer].loop"),
        (lambda: role(loop=True), "roles[writer].loop"),
        (lambda: role(price_per_request=0.002), "roles[writer].price_per_request"),
        (lambda: role(price_per_request="-$1"), "roles[writer].price_per_request"),
        (lambda: role(price_per_request=True), "roles[writer].price_per_request"),
        (lambda: fleet(budget=["$1/day", "$3/day"]), "fleet.budget"),
        (lambda: fleet(max_parallel=0), "fleet.max_parallel"),
        (lambda: fleet(shadow=["tpm"]), "fleet.shadow"),
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
    for value in (
        fleet(),
        role(),
        Budget("$1"),
        ModelGroup("a", ["b"]),
        RateLimit(rpm=1),
        Loop(),
        Guardrail("pii-filter"),
    ):
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


def test_the_worst_case_counts_each_period_and_no_shadow():
    """A role with a budget per month may spend it in one day: the sum per day must not pass for all."""
    crew = fleet(
        roles=[
            role("a", budget=["$1/day", "$20/month", Budget("$0.50/day", mode="shadow")]),
            role("b", budget=["$2/day", Budget("$3/day", tz="Asia/Kathmandu")]),
            role("c", budget="$9/month"),
            role("d", budget=Budget("$5/12h", mode="shadow")),
        ],
        budget=["$4/6h", Budget("$100/month", tz="Asia/Kathmandu", mode="shadow")],
    )
    assert [
        (one.period, one.roles_nanos, one.fleet_nanos, one.elsewhere, one.uncapped) for one in crew.worst_case()
    ] == [
        ("6h", 0, 4 * 10**9, ("a", "b", "c"), ("d",)),
        ("day", 3 * 10**9, None, ("c",), ("d",)),
        ("month", 29 * 10**9, None, ("b",), ("d",)),
    ]
    assert crew.in_shadow() == ("fleet $100/month (Asia/Kathmandu)", "a $0.50/day", "d $5/12h")
