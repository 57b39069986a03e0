"""Rules on the wire: what is written is read back, and nothing that JSON can say does more than be refused by name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.durations import time_zones
from nemo_agents.policy.budgets import BudgetRule, LoopRule, ModelLimit
from nemo_agents.policy.rulewire import (
    RuleFault,
    budget_facts,
    check_budgets,
    first_budget,
    loop_fact,
    model_facts,
    model_fields,
    read_budgets,
    read_loop,
    read_max_parallel,
    read_model_limits,
    read_request_nanos,
    read_shadow,
)

quickly = settings(deadline=None)  # a busy machine is not a failure
modes = st.sampled_from(["enforce", "shadow"])
alerts = st.lists(st.floats(0.001, 1), unique=True, max_size=3).map(lambda found: tuple(sorted(found)))
calendar = st.tuples(st.sampled_from(["1d", "7d", "1mo"]), st.sampled_from(["UTC", *sorted(time_zones())[::97]]))
spans = st.tuples(st.sampled_from([None, "12h", "90m", "10d", "7s"]), st.just("UTC"))
rules = st.builds(
    lambda micros, when, alert_at, mode: BudgetRule(
        amount_nanos=micros * 1000, duration=when[0], tz=when[1], alert_at=alert_at, mode=mode
    ),
    st.integers(0, 10**12),
    calendar | spans,
    alerts,
    modes,
)
several = st.lists(rules, max_size=6, unique_by=lambda rule: (rule.duration, rule.tz, rule.mode)).map(
    lambda found: tuple(sorted(found, key=lambda rule: rule.mode))
)
counts = st.none() | st.integers(1, 10**12)
limits = st.lists(
    st.builds(ModelLimit, model=st.sampled_from("abcdef"), rpm=st.integers(1, 9), tpm=counts, mode=modes),
    unique_by=lambda limit: limit.model,
).map(lambda found: tuple(sorted(found, key=lambda limit: limit.model)))
loops = st.none() | st.builds(LoopRule, repeats=st.integers(2, 100), within_s=st.integers(1, 3600), mode=modes)
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
KNOWN = (
    "budgets", "tz", "alert_at", "shadow", "max_parallel", "model_max_parallel", "model_shadow", "loop",
    "price_per_request", "max_budget", "budget_duration", "mode", "repeats", "within_s",
)  # fmt: skip
entries = st.dictionaries(st.sampled_from(KNOWN), json, max_size=4)
nemo = st.dictionaries(st.sampled_from(KNOWN), json | entries | st.lists(entries, max_size=2), max_size=6)


def fault_of(read):
    try:
        read()
    except RuleFault as fault:
        return fault
    return None


def over_the_wire(value):
    return msgspec.json.decode(msgspec.json.encode(value))


@quickly
@given(several)
def test_budgets_come_back_as_they_went(budgets):
    check_budgets(budgets)
    first = first_budget(budgets)
    facts = over_the_wire(budget_facts(budgets))
    amount, duration = (None, None) if first is None else (first.amount_nanos, first.duration)
    assert read_budgets(amount, duration, facts) == budgets
    assert first is None or first.mode == "enforce"
    assert all(rule.mode == "shadow" for rule in budgets) == (first is None)


@quickly
@given(limits)
def test_limits_by_model_come_back_as_they_went(found):
    fields, facts = over_the_wire(model_fields(found)), over_the_wire(model_facts(found))
    assert read_model_limits(fields["model_rpm_limit"], fields["model_tpm_limit"], facts) == found


@quickly
@given(loops)
def test_a_loop_rule_comes_back_as_it_went(rule):
    assert read_loop({"loop": over_the_wire(loop_fact(rule))}) == rule


@quickly
@given(nemo, json)
def test_whatever_json_says_is_read_or_refused_with_its_path(found, by_model):
    readers = (
        lambda: check_budgets(read_budgets(None, None, found)),
        lambda: check_budgets(read_budgets(1, "1d", found)),
        lambda: read_model_limits(by_model, found.get("loop"), found),
        lambda: read_shadow(found),
        lambda: read_loop(found),
        lambda: read_max_parallel(found),
        lambda: read_request_nanos(found),
    )
    for read in readers:
        fault = fault_of(read)
        if fault is not None:
            assert fault.field.startswith(("metadata.nemo.", "model_rpm_limit", "model_tpm_limit", "budget_duration"))
            assert str(fault) == f"`{fault.field}` {fault.problem}"


@pytest.mark.parametrize(
    ("budgets", "field"),
    [
        ([BudgetRule(amount_nanos=1, duration="2w")], "budget_duration"),
        ([BudgetRule(amount_nanos=1, duration="1d", tz="Mars/Base")], "metadata.nemo.tz"),
        ([BudgetRule(amount_nanos=1, duration="12h", tz="Asia/Tokyo")], "metadata.nemo.tz"),
        ([BudgetRule(amount_nanos=1, tz="Asia/Tokyo")], "metadata.nemo.tz"),
        (
            [BudgetRule(amount_nanos=1, duration="1d"), BudgetRule(amount_nanos=2, duration="24h")],
            "metadata.nemo.budgets[0]",
        ),
        (
            [BudgetRule(amount_nanos=1, mode="shadow"), BudgetRule(amount_nanos=2, mode="shadow")],
            "metadata.nemo.budgets[1]",
        ),
    ],
)
def test_what_no_clock_knows_is_refused_at_its_place(budgets, field):
    with pytest.raises(RuleFault) as caught:
        check_budgets(budgets)
    assert caught.value.field == field
