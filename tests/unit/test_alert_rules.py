"""Which alerts are due, when spend is a spike, and what a webhook's configuration and signature must be."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.admin.wire import EventRow
from nemo_agents.errors import SettingsError
from nemo_agents.gateway.alerts.destinations import read_destinations
from nemo_agents.gateway.alerts.signing import read_secrets, signature_headers
from nemo_agents.gateway.alerts.webhooks import retry_delay_us
from nemo_agents.policy.alerts import (
    EVENT_KINDS,
    HOUR_US,
    Owner,
    SpikeRule,
    SpikeTold,
    budget_event,
    budget_mark,
    due,
    exhausted_by,
    spike,
    spike_due,
    spike_event,
    spike_level,
    spike_told,
)
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused

DOLLAR = 1_000_000_000
DAY = BudgetScope(
    kind="role",
    id="g_1",
    period="2026-11-24",
    limit_nanos=10 * DOLLAR,
    resets_at_us=1_795_564_800_000_000,
    alert_at=(0.5, 0.8),
    name="day",
)
OWNER = Owner(name="writer", fleet="crew", role="writer")


def at(posted: int, scope: BudgetScope = DAY, *, held: int = 0) -> Balance:
    return Balance(scope=scope, posted_nanos=posted, held_nanos=held)


def told_of(alerts):
    return {alert.mark: alert.through_nanos for alert in alerts}


def names(alerts):
    return [(alert.mark.event, alert.mark.threshold) for alert in alerts]


def stored(draft, seq=1):
    return EventRow(
        seq=seq, event_id="evt_1", kind=draft.kind, at_us=5, message=draft.message, facts=draft.facts, fleet=draft.fleet
    )


# --- budgets ------------------------------------------------------------------------------------------------------
def test_each_threshold_is_due_when_it_is_reached_to_the_nano():
    assert due([at(5 * DOLLAR - 1)], {}) == ()
    assert names(due([at(5 * DOLLAR)], {})) == [("budget.alert", 0.5)]
    assert names(due([at(8 * DOLLAR)], {})) == [("budget.alert", 0.5), ("budget.alert", 0.8)]
    assert names(due([at(10 * DOLLAR)], {}))[-1] == ("budget.exhausted", 1.0)
    tenth = replace(DAY, limit_nanos=30, alert_at=(0.1,))  # 0.1 * 30 is above 3 in binary fractions
    assert names(due([at(3, tenth)], {})) == [("budget.alert", 0.1)]


def test_holds_and_scopes_without_a_budget_are_no_news():
    assert due([at(0, held=10 * DOLLAR)], {}) == ()
    assert due([at(99 * DOLLAR, replace(DAY, limit_nanos=None))], {}) == ()
    assert due([at(0, replace(DAY, limit_nanos=0))], {}) == ()


def test_a_budget_in_shadow_mode_is_told_apart_from_the_one_that_refuses():
    shadow = replace(DAY, mode="shadow", limit_nanos=4 * DOLLAR)
    alerts = due([at(5 * DOLLAR), at(5 * DOLLAR, shadow)], {})
    assert [(alert.mark.mode, *name) for alert, name in zip(alerts, names(alerts), strict=True)] == [
        ("enforce", "budget.alert", 0.5),
        ("shadow", "budget.alert", 0.5),
        ("shadow", "budget.alert", 0.8),
        ("shadow", "budget.exhausted", 1.0),
    ]
    assert "in shadow mode: nothing is refused" in budget_event(alerts[-1], OWNER).message


@given(
    steps=st.lists(st.integers(0, 3 * DOLLAR), max_size=30),
    alert_at=st.lists(st.sampled_from((0.1, 0.25, 0.5, 0.8, 0.95, 1.0)), max_size=4, unique=True),
)
def test_however_spend_grows_every_threshold_it_reaches_is_told_once(steps, alert_at):
    scope = replace(DAY, alert_at=tuple(alert_at))
    told, seen, posted = {}, [], 0
    for step in steps:
        posted += step
        alerts = due([at(posted, scope)], told)
        seen += names(alerts)
        told |= told_of(alerts)
        assert due([at(posted, scope)], told) == ()
    wanted = {("budget.alert", t) for t in alert_at if posted and posted * 100 >= round(t * 100) * 10 * DOLLAR}
    wanted |= {("budget.exhausted", 1.0)} if posted >= 10 * DOLLAR else set()
    assert len(seen) == len(set(seen))
    assert set(seen) == wanted


def test_a_new_period_begins_anew():
    told = told_of(due([at(9 * DOLLAR)], {}))
    assert due([at(9 * DOLLAR)], told) == ()
    assert len(due([at(9 * DOLLAR, replace(DAY, period="2026-11-25"))], told)) == 2


def test_a_raised_budget_tells_again_only_at_thresholds_above_what_was_spent_at_the_telling():
    told = told_of(due([at(9 * DOLLAR)], {}))
    little_more = replace(DAY, limit_nanos=11 * DOLLAR)  # 80 % of it is $8.80, which was passed at the telling
    assert due([at(9 * DOLLAR, little_more)], told) == ()
    double = replace(DAY, limit_nanos=20 * DOLLAR)
    assert due([at(9 * DOLLAR, double)], told) == ()
    assert names(due([at(10 * DOLLAR, double)], told)) == [("budget.alert", 0.5)]
    assert names(due([at(16 * DOLLAR, double)], told)) == [("budget.alert", 0.5), ("budget.alert", 0.8)]
    lowered = replace(DAY, limit_nanos=9 * DOLLAR)
    assert names(due([at(9 * DOLLAR, lowered)], told)) == [("budget.exhausted", 1.0)]


def test_what_an_event_has_told_can_be_read_back_from_it():
    for alert in due([at(10 * DOLLAR)], {}):
        assert budget_mark(stored(budget_event(alert, OWNER))) == (alert.mark, alert.through_nanos)
    other = EventRow(event_id="evt_2", kind="budget.alert", at_us=0, message="", facts={"scope": "role"})
    assert budget_mark(other) is None
    assert budget_mark(EventRow(event_id="evt_3", kind="clock.stepped", at_us=0, message="")) is None


def test_an_event_is_named_by_scope_period_mode_threshold_and_amount():
    variants = [
        DAY,
        replace(DAY, id="g_2"),
        replace(DAY, kind="fleet"),
        replace(DAY, period="2026-W48"),
        replace(DAY, mode="shadow"),
        replace(DAY, limit_nanos=9 * DOLLAR),
    ]
    drafts = [budget_event(alert, OWNER) for scope in variants for alert in due([at(10 * DOLLAR, scope)], {})]
    assert len({draft.once for draft in drafts}) == len(drafts) == 3 * len(variants)
    again = budget_event(due([at(10 * DOLLAR + 5)], {})[0], replace(OWNER, name="renamed"))
    assert again.once == drafts[0].once


def test_a_message_says_whose_budget_how_much_and_what_of_it():
    alert, exhausted = (due([at(8 * DOLLAR)], {})[1], due([at(10 * DOLLAR)], {})[2])
    assert budget_event(alert, OWNER).message == (
        "The budget of role writer has reached 80%: spent $8 of $10 per day (80%)."
    )
    assert budget_event(exhausted, OWNER).message == "The budget of role writer is spent: $10 of $10 per day (100%)."
    refused = due([at(9 * DOLLAR)], told_of(due([at(9 * DOLLAR)], {})), refused=[DAY])
    assert budget_event(refused[0], OWNER).message == (
        "The budget of role writer has refused a call, too little is left: spent $9 of $10 per day (90%)."
    )


def test_a_refusal_counts_as_exhausted_where_waiting_for_calls_in_flight_does_not_help():
    def refused(posted, held, needed):
        return exhausted_by(HoldRefused(balance=at(posted, held=held), needed_nanos=needed))

    assert refused(9 * DOLLAR, 0, 2 * DOLLAR) == (DAY,)
    assert refused(5 * DOLLAR, 4 * DOLLAR, 2 * DOLLAR) == ()  # calls in flight hold the rest
    assert refused(0, 0, 11 * DOLLAR) == ()  # larger than the whole
    other = replace(DAY, kind="fleet", id="crew")
    both = HoldRefused(
        balance=at(0),
        needed_nanos=DOLLAR,
        balances=(at(0), at(10 * DOLLAR, other), at(99 * DOLLAR, replace(DAY, limit_nanos=None))),
    )
    assert exhausted_by(both) == (other,)


def test_a_refusal_is_told_once_and_being_spent_afterwards_is_no_news():
    first = due([at(9 * DOLLAR)], {}, refused=[DAY])
    told = told_of(first)
    assert names(first)[-1] == ("budget.exhausted", 1.0)
    assert due([at(9 * DOLLAR)], told, refused=[DAY]) == ()
    assert due([at(10 * DOLLAR)], told) == ()


# --- spikes -------------------------------------------------------------------------------------------------------
RULE = SpikeRule()
HISTORY = st.lists(st.integers(0, 100 * DOLLAR), max_size=168)


@given(hour=st.integers(0, 10**15), history=st.lists(st.integers(0, 10**12), max_size=5))
def test_without_a_history_nothing_is_a_spike(hour, history):
    assert spike(hour, history, RULE) is None


@given(hour=st.integers(0, DOLLAR - 1), history=HISTORY)
def test_small_sums_are_no_spike(hour, history):
    assert spike(hour, history, RULE) is None


@given(hour=st.integers(0, 10**15), history=HISTORY)
def test_a_spike_is_at_least_the_factor_times_the_usual_and_the_usual_lies_within_the_history(hour, history):
    found = spike(hour, history, RULE)
    if found is None:
        return
    assert hour >= 3 * found.usual_nanos >= 3
    active = [nanos for nanos in history if nanos]
    assert min(active) <= found.usual_nanos <= max(active)
    assert spike_level(found, RULE) >= 1
    assert spike(hour, [*history, 0, 0, 0], RULE) == found  # quiet hours change nothing


@given(hour=st.integers(DOLLAR, 10**12), more=st.integers(0, 10**12), history=HISTORY)
def test_more_spend_never_ends_a_spike(hour, more, history):
    if spike(hour, history, RULE) is not None:
        assert spike(hour + more, history, RULE) is not None


@given(usual=st.integers(1, 10**12), hours=st.integers(6, 168), hour=st.integers(DOLLAR, 10**14))
def test_with_a_steady_history_it_is_exactly_the_factor_that_decides(usual, hours, hour):
    found = spike(hour, [usual] * hours, RULE)
    assert (found is not None) == (hour >= 3 * usual)
    if found is not None:
        level = spike_level(found, RULE)
        assert usual * 3**level <= hour or level == 64
        assert hour < usual * 3 ** (level + 1)


def test_one_spike_in_the_history_does_not_make_the_next_one_usual():
    history = [3 * DOLLAR] * 9 + [500 * DOLLAR]
    found = spike(13 * DOLLAR, history, RULE)
    assert (found.usual_nanos, found.factor, found.hour_nanos) == (3 * DOLLAR, 4.3, 13 * DOLLAR)
    assert spike(8 * DOLLAR, history, RULE) is None  # and it is over by itself
    assert spike(10**15, history, replace(RULE, factor=0)) is None


def test_a_spike_is_told_once_an_hour_and_again_when_it_rises_a_level():
    told = SpikeTold(at_us=10 * HOUR_US, level=1)
    assert spike_due(1, 0, None)
    assert not spike_due(1, 11 * HOUR_US - 1, told)
    assert spike_due(1, 11 * HOUR_US, told)
    assert spike_due(2, 10 * HOUR_US + 1, told)
    found = spike(13 * DOLLAR, [3 * DOLLAR] * 6, RULE)
    draft = spike_event(found, 1, OWNER, grant_id="g_1", now_us=10 * HOUR_US)
    assert draft.message == "Role writer has spent $13 in the last hour, 4.3 times its usual $3."
    assert spike_told(stored(draft)) == ("g_1", SpikeTold(at_us=5, level=1))
    assert spike_event(found, 2, OWNER, grant_id="g_1", now_us=10 * HOUR_US).once != draft.once
    assert spike_event(found, 1, OWNER, grant_id="g_1", now_us=11 * HOUR_US - 1).once == draft.once


# --- webhooks: signature, retries, configuration ------------------------------------------------------------------
def test_the_signature_is_that_of_standard_webhooks():
    """The values are those that the Standard Webhooks libraries test themselves with."""
    headers = signature_headers(
        read_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp_s=1_614_265_330,
        body=b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_a_secret_is_replaced_both_sign():
    keys = [secrets.token_bytes(24), secrets.token_bytes(64)]
    both = read_secrets(" ".join("whsec_" + base64.b64encode(key).decode() for key in keys))
    signed = signature_headers(both, event_id="evt_1", timestamp_s=7, body=b"{}")["webhook-signature"].split(" ")
    assert signed == [
        "v1," + base64.b64encode(hmac.new(key, b"evt_1.7.{}", hashlib.sha256).digest()).decode() for key in keys
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("c2VjcmV0LW9mLXRoZS13ZWJob29r", "does not begin with whsec_"),
        ("whsec_not*base64", "something else than base64"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "has 23 bytes"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "has 65 bytes"),
    ],
)
def test_a_secret_that_cannot_be_one_is_refused_without_being_shown(text, said):
    with pytest.raises(ValueError, match=said.replace("*", r"\*")) as raised:
        read_secrets(text)
    assert text == "" or text.removeprefix("whsec_") not in str(raised.value)


@given(failures=st.integers(1, 1000), dice=st.floats(0, 1))
def test_retries_come_less_and_less_often_and_at_least_every_hour_and_a_half(failures, dice):
    delay = retry_delay_us(failures, dice)
    assert 2_500_000 <= delay <= 5_400_000_000
    assert retry_delay_us(failures + 1, dice) >= delay


SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
GOOD = {"url": "https://alerts.example.com/nemo", "secret_env": "OPS_SECRET"}


def read(**table):
    return read_destinations(
        {"ops": {**GOOD, **table}}, {"OPS_SECRET": SECRET, "BAD": "hunter2"}, source="gateway.toml"
    )


def test_a_webhook_gets_every_kind_of_event_unless_told_otherwise():
    (ops,) = read()
    assert (ops.name, ops.url, ops.events, ops.timeout_s) == ("ops", GOOD["url"], frozenset(EVENT_KINDS), 10)
    (ops,) = read(events=["spend.spike"], timeout_s=2)
    assert (ops.events, ops.timeout_s) == (frozenset({"spend.spike"}), 2.0)
    assert SECRET not in repr(ops)
    assert GOOD["url"] not in repr(ops)
    assert SECRET.removeprefix("whsec_") not in repr(ops)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"url": None}, "`url` must be an address"),
        ({"url": "ftp://alerts.example.com"}, "`url` must be an address"),
        ({"url": "/nemo"}, "`url` must be an address"),
        ({"url": 7}, "`url` must be an address"),
        ({"url": "https://me:hunter2@alerts.example.com"}, "`url` must have no user name or password"),
        ({"secret_env": None}, "`secret_env` must name the environment variable"),
        ({"secret_env": SECRET}, "`secret_env` must name the environment variable"),
        ({"secret_env": "NOT_SET"}, "the environment variable NOT_SET that `secret_env` names is not set"),
        ({"secret_env": "BAD"}, "the secret in the environment variable BAD does not begin with whsec_"),
        ({"events": []}, "`events` must be a list out of budget.alert, "),
        ({"events": ["budget.gone"]}, "`events` must be a list out of budget.alert, "),
        ({"events": "budget.alert"}, "`events` must be a list out of budget.alert, "),
        ({"timeout_s": 0}, "`timeout_s` must be a number of seconds above 0 and up to 30"),
        ({"timeout_s": True}, "`timeout_s` must be a number of seconds above 0 and up to 30"),
        ({"timeout_s": 31}, "`timeout_s` must be a number of seconds above 0 and up to 30"),
        ({"secret": SECRET}, "unknown field `secret`; known are url, secret_env, events, timeout_s"),
    ],
)
def test_a_webhook_that_cannot_be_meant_is_refused_by_file_and_field_without_its_secrets(table, said):
    with pytest.raises(SettingsError) as raised:
        read(**table)
    assert str(raised.value).startswith("gateway.toml: [webhooks.ops]")
    assert said in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_webhook_s_name_is_a_short_word_and_its_value_a_table():
    with pytest.raises(SettingsError, match="a name is 1 to 63 characters"):
        read_destinations({"Ops Team": GOOD}, {}, source="gateway.toml")
    with pytest.raises(SettingsError, match="must be a table"):
        read_destinations({"ops": "https://alerts.example.com"}, {}, source="gateway.toml")
