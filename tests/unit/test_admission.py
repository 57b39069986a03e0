"""What a role's tools may be, what a spent budget or run is told, and what budgets in shadow mode would have said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.admission import (
    budget_name,
    budget_refusal,
    check_tools,
    other_models,
    past_alert,
    run_refusal,
    shadow_budgets,
)
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused, RunRefused
from nemo_agents.policy.pricing import PROVIDER_TOOL_FIELDS, content_boundable
from nemo_agents.policy.wires.chat import CHAT


def grant(tools):
    return Grant(grant_id="g", alias="researcher", role="researcher", fleet="crew", tools=tools, secrets=())


def checked(body, role):
    return check_tools(body, CHAT.tools(body), role)


def function(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("field", PROVIDER_TOOL_FIELDS)
@pytest.mark.parametrize("value", [{}, [], 0, False, {"a": 1}], ids=repr)
def test_a_provider_s_own_tool_is_one_that_the_role_does_not_declare(field, value):
    """Also an empty object switches it on, and none of them can be declared: they have no name of the role's."""
    for tools in ((), ("search",), (field,)):
        refusal = checked({"tools": [], field: value}, grant(tools))
        assert refusal is not None
        assert (refusal.status, refusal.code, refusal.param) == (403, "tool_not_allowed", field)
        assert field in refusal.message
    assert checked({field: None}, grant(("search",))) is None
    assert checked({field: value}, grant(None)) is None
    assert content_boundable({field: value}) == field


@pytest.mark.parametrize(
    ("offered", "passes"),
    [
        ({}, True),
        ({"tools": None, "functions": None}, True),
        ({"tools": []}, True),
        ({"tools": [function("search")]}, True),
        ({"tools": [{"function": {"name": "search"}}]}, True),
        ({"functions": [{"name": "search"}]}, True),
        ({"tools": [function("search"), function("shell")]}, False),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"tools": [{"type": "web_search", "function": {"name": "search"}}]}, False),
        ({"tools": [{"type": None, "function": {"name": "search"}}]}, False),
        ({"tools": ["search"]}, False),
        ({"functions": ["search"]}, False),
    ],
)
def test_tools_are_those_that_the_role_declares(offered, passes):
    refusal = checked(offered, grant(("search",)))
    assert (refusal is None) is passes
    if refusal is not None:
        assert (refusal.status, refusal.code, refusal.param) == (403, "tool_not_allowed", "tools")
    assert checked(offered, grant(None)) is None


@pytest.mark.parametrize("field", ["models", "fallbacks"])
def test_further_models_are_named_by_the_field_that_names_them(field):
    assert other_models({"model": "m", field: ["another"]}) == field
    assert other_models({"model": "m", field: None}) is None


@pytest.mark.parametrize(("max_calls", "words"), [(1, "its one call"), (2, "all of its 2 calls")])
def test_a_run_that_has_used_its_calls_is_told_so_in_good_grammar(max_calls, words):
    refusal = run_refusal(RunRefused(why="max_calls", max_calls=max_calls))
    assert refusal.message == f"This run has used {words}. Start a new run to go on."
    assert (refusal.status, refusal.code, refusal.limit) == (403, "run_stopped", "max_calls")


DAY_US, MONTH_US = 86_400_000_000, 30 * 86_400_000_000


def budget(limit, *, posted=0, held=0, kind="role", name="day", resets_at_us=DAY_US, mode="enforce", alert_at=()):
    scope = BudgetScope(
        kind=kind,
        id=kind,
        period=name,
        limit_nanos=limit,
        resets_at_us=resets_at_us,
        mode=mode,
        alert_at=alert_at,
        name=name,
    )
    return Balance(scope=scope, posted_nanos=posted, held_nanos=held)


def refusal_of(needed, *balances):
    first = next(balance for balance in balances if not balance.takes(needed))
    return budget_refusal(HoldRefused(balance=first, needed_nanos=needed, balances=balances))


@pytest.mark.parametrize(
    ("name", "resets_at_us", "called"),
    [
        ("day", DAY_US, "role's budget per day"),
        ("12h", DAY_US, "role's budget per 12h"),
        ("month Europe/Amsterdam", MONTH_US, "role's budget per month Europe/Amsterdam"),
        ("total", None, "role's budget"),
    ],
)
def test_a_refusal_names_the_budget(name, resets_at_us, called):
    balance = budget(100, posted=100, name=name, resets_at_us=resets_at_us)
    assert budget_name(balance.scope) == called
    assert f"The {called} does not allow this call" in refusal_of(10, balance).message


def test_of_several_spent_budgets_the_one_is_told_that_keeps_the_call_out_for_longest():
    """A client that waits until `resets_at` gets through: an earlier reset would only meet the other budget."""
    day, month = budget(100, posted=95), budget(900, posted=895, kind="fleet", name="month", resets_at_us=MONTH_US)
    total = budget(1000, posted=995, kind="run", name="total", resets_at_us=None)
    refusal = refusal_of(10, day, month)
    assert (refusal.code, refusal.scope, refusal.resets_at_us) == ("budget_exhausted", "fleet", MONTH_US)
    refusal = refusal_of(10, total, day, month)
    assert (refusal.code, refusal.scope, refusal.resets_at_us) == ("budget_exhausted", "run", None)


def test_what_calls_in_flight_hold_comes_back_and_what_is_spent_does_not():
    held, spent = budget(100, held=95), budget(900, posted=895, kind="fleet", name="month", resets_at_us=MONTH_US)
    refusal = refusal_of(10, held)
    assert (refusal.code, refusal.retry_after_ms) == ("budget_held", 1000)
    refusal = refusal_of(10, held, spent)
    assert (refusal.code, refusal.scope, refusal.retry_after_ms) == ("budget_exhausted", "fleet", None)
    refusal = refusal_of(101, held, spent)
    assert (refusal.code, refusal.scope) == ("request_exceeds_budget", "role")


@given(
    st.lists(
        st.builds(
            budget,
            st.integers(0, 50),
            posted=st.integers(0, 60),
            held=st.integers(0, 60),
            kind=st.sampled_from(["run", "role", "fleet"]),
            name=st.sampled_from(["day", "month", "total"]),
            resets_at_us=st.sampled_from([None, DAY_US, MONTH_US]),
            mode=st.sampled_from(["enforce", "shadow"]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 60),
)
def test_the_cure_that_a_refusal_names_cures_it(balances, needed):
    """When what it says has happened, no budget refuses any more; a budget in shadow mode is never what refused."""
    if all(balance.takes(needed) for balance in balances):
        return
    refusal = refusal_of(needed, *balances)
    enforced = [balance for balance in balances if balance.scope.mode == "enforce"]
    if refusal.code == "budget_held":
        cured = [Balance(scope=b.scope, posted_nanos=b.posted_nanos, held_nanos=0) for b in enforced]
    elif refusal.resets_at_us is not None:
        cured = [
            Balance(scope=b.scope, posted_nanos=0, held_nanos=0)
            for b in enforced
            if b.scope.resets_at_us is not None and b.scope.resets_at_us <= refusal.resets_at_us
        ]
        lasting = [b for b in enforced if b.scope.resets_at_us is None or b.scope.resets_at_us > refusal.resets_at_us]
        cured += [Balance(scope=b.scope, posted_nanos=b.posted_nanos, held_nanos=0) for b in lasting]
    else:
        assert refusal.code in {"budget_exhausted", "request_exceeds_budget"}
        assert refusal.retry_after_ms is None
        return
    assert all(balance.takes(needed) for balance in cured)


def test_shadow_budgets_are_told_of_only_once_they_would_have_refused():
    enforced, under, over = budget(1000, held=90), budget(100, held=100, mode="shadow"), budget(99, mode="shadow")
    after = [Balance(scope=b.scope, posted_nanos=10, held_nanos=90) for b in (enforced, under)]
    assert shadow_budgets([under.scope], after) == []
    ((scope, refusal),) = shadow_budgets([under.scope, over.scope], after)
    assert scope is over.scope  # it has no balance of its own: it shares that of the others of its day
    assert (refusal.code, refusal.scope, refusal.limit) == ("budget_exhausted", "role", "budget")
    assert "role's budget per day, in shadow mode" in refusal.message
    other = budget(1, name="week", mode="shadow")
    assert shadow_budgets([other.scope], after) == []


def test_a_budget_in_shadow_mode_guards_nothing():
    balance = budget(100, posted=500, mode="shadow")
    assert balance.takes(10**9)
    assert balance.left_nanos is None
    assert budget(100, posted=30, held=20).left_nanos == 50
    assert budget(100, posted=130).left_nanos == 0


def test_a_warning_names_the_period_where_a_scope_has_several_budgets():
    day, month = budget(100, posted=83, alert_at=(0.5, 0.8)), budget(100, posted=60, kind="fleet", alert_at=(0.9,))
    assert past_alert([day, month]) == "role 83%"
    week = budget(200, posted=190, name="week", alert_at=(0.9,))
    assert past_alert([day, week, month]) == "role day 83%, role week 95%"
    assert past_alert([budget(100, posted=49, alert_at=(0.5, 0.8))]) is None
