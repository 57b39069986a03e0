"""The plan: from a declaration, the gateway's side and the key store to exactly what has to change."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from admin_machine import GATEWAY
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.admin.wire import DeploymentRow, KeyRow, TeamRow
from nemo_agents.errors import ProvisionError
from nemo_agents.policy.periods import DURATION_OF
from nemo_agents.provision.plan import plan, plan_destroy
from nemo_agents.provision.render import done, plan_from_json, plan_to_json, plan_to_text, summary
from nemo_agents.provision.snapshot import Snapshot
from nemo_agents.provision.specs import (
    fleet_spec,
    group_spec,
    key_spec,
    live_key_spec,
    merged_metadata,
)
from nemo_agents.provision.stored import StoredKey
from nemo_agents.roles import BUILTIN_GUARDRAILS, PERIODS, AgentRole, Budget, FleetDeclaration, ModelGroup
from nemo_agents.rules import MODES, Loop, RateLimit
from nemo_agents.secret import Secret

SECRET = "sk-nemo-aaaaaaaaaa-THESECRETTHESECRET"
EMPTY = Snapshot(gateway_url=GATEWAY, fleet="crew")


def crew(**changes):
    fields = {
        "roles": [
            AgentRole(
                "researcher",
                models=["gpt-4o-mini"],
                rpm=120,
                tpm="100k",
                budget="$80/day",
                guardrails=["pii-filter"],
                tools=["web_search"],
            ),
            AgentRole("writer", models=["fast"], rpm=30, budget="$20/day"),
        ],
        "models": [ModelGroup("fast", ["openai/a", "gemini/b"])],
        "budget": "$170/day",
        **changes,
    }
    return FleetDeclaration("crew", **fields)


def row_of(fleet, name, *, token=None, metadata=None):
    spec = key_spec(fleet, fleet.role(name))
    meta = merged_metadata(metadata or {}, spec)
    return KeyRow(token=token or f"id-{name}", key_name="sk-…", metadata=meta, **spec.wire())


def live_of(fleet, **changes):
    spec = fleet_spec(fleet)
    team = TeamRow(team_id="crew", metadata=merged_metadata({}, spec), **spec.wire())
    rows = [row for group in fleet.models for row in group_spec("crew", group).deployments()]
    keys = tuple(row_of(fleet, role.name) for role in fleet.roles)
    return replace(EMPTY, **{"team": team, "keys": keys, "deployments": tuple(rows), **changes})


def stored(name, **changes):
    fields = {"role": name, "public_id": f"id-{name}", "secret": Secret(SECRET), "state": "active", **changes}
    return StoredKey(**fields)


KNOWN = (stored("researcher"), stored("writer"))


def by_name(made):
    return {change.name: change for change in made.changes}


def changed(made):
    return {change.name: change.action for change in made.changes if change.action != "keep"}


def test_an_empty_gateway_gets_everything_in_order():
    made = plan(crew(), EMPTY, ())
    assert [(change.action, change.kind, change.name) for change in made.changes] == [
        ("create", "fleet", "crew"),
        ("create", "models", "fast"),
        ("create", "role", "researcher"),
        ("create", "role", "writer"),
    ]
    assert not made.is_empty
    assert summary(made) == "4 to create. Worst case per day: $100 by roles, $170 by fleet."
    assert done(made) == "4 created"


def test_a_gateway_as_declared_needs_nothing():
    made = plan(crew(), live_of(crew()), KNOWN)
    assert changed(made) == {}
    assert made.is_empty
    assert all(change.note is None for change in made.changes)
    assert summary(made).startswith("Nothing to change.")


def test_an_update_says_what_was_and_what_will_be():
    wanted = crew(
        roles=[
            AgentRole("researcher", models=["gpt-4o"], rpm=60, budget=Budget("$8/week", alert_at=0.5)),
            crew().role("writer"),
        ]
    )
    made = plan(wanted, live_of(crew()), KNOWN)
    assert changed(made) == {"researcher": "update"}
    fields = {one.field: (one.old, one.new) for one in by_name(made)["researcher"].fields}
    assert fields == {
        "rpm": ("120", "60"),
        "tpm": ("100k", None),
        "budget": ("$80/day", "$8/week"),
        "alert_at": ("80%", "50%"),
        "models": ("gpt-4o-mini", "gpt-4o"),
        "guardrails": ("pii-filter", None),
        "tools": ("web_search", None),
    }
    assert by_name(made)["researcher"].drift is False
    assert "tpm: 100k → not set" in plan_to_text(made)


WATCHED = AgentRole(
    "watched",
    models=["gpt-4o", "gpt-4o-mini"],
    limits=RateLimit(rpm=60, mode="shadow"),
    tpm="1k",
    model_limits={"gpt-4o": RateLimit(rpm=10, max_parallel=2), "gpt-4o-mini": RateLimit(tpm=500, mode="shadow")},
    budget=["$5/day", Budget("$60/month", tz="Europe/Amsterdam", alert_at=[0.5, 0.9]), Budget("$1/12h", mode="shadow")],
    loop=Loop(3, within_s=30, mode="enforce"),
    price_per_request="$0.002",
)


def watched(**changes):
    return crew(roles=[WATCHED], models=[], max_parallel=40, shadow=["max_parallel"], **changes)


def test_a_plan_shows_budgets_and_limits_as_people_write_them():
    made = plan(watched(budget=["$170/day", Budget("$1/12h", mode="shadow")]), EMPTY, ())
    lines = plan_to_text(made).splitlines()
    assert lines[0] == "  + crew     fleet · 40 at once (shadow) · $170/day + $1/12h (shadow)"
    assert lines[1] == (
        "  + watched  60 rpm (shadow) · 1k tpm · gpt-4o 10 rpm 2 at once · gpt-4o-mini 500 tpm (shadow)"
        " · $5/day + $60/month (Europe/Amsterdam) + $1/12h (shadow) · loop 3 repeats in 30 s"
        " · $0.002/request if unpriced · gpt-4o, gpt-4o-mini"
    )
    assert summary(made) == (
        "2 to create. Worst case:\n    per day: $5 by roles, $170 by fleet\n    per month: $60 by roles\n"
        "  In shadow, so no cap: fleet $1/12h, watched $1/12h."
    )


def test_where_periods_differ_each_has_a_line_with_the_roles_it_is_of():
    two = [AgentRole("a", models=["m"], budget="$5/day"), AgentRole("b", models=["m"], budget="$60/month")]
    made = plan(crew(roles=two, models=[], budget=None), EMPTY, ())
    assert summary(made) == "3 to create. Worst case:\n    per day: $5 by a\n    per month: $60 by b"


def test_budgets_and_limits_on_the_wire():
    """LiteLLM's fields carry what they can enforce; a budget in shadow must not be one of them."""
    spec = key_spec(watched(), WATCHED)
    wire = spec.wire()
    assert (wire["max_budget"], wire["budget_duration"]) == (5.0, "1d")
    assert (wire["model_rpm_limit"], wire["model_tpm_limit"]) == ({"gpt-4o": 10}, {"gpt-4o-mini": 500})
    assert {key: value for key, value in spec.facts().items() if value is not None} == {
        "managed": True,
        "role": "watched",
        "alert_at": [0.8],
        "budgets": [
            {
                "max_budget": 60.0,
                "budget_duration": "1mo",
                "tz": "Europe/Amsterdam",
                "alert_at": [0.5, 0.9],
                "mode": "enforce",
            },
            {"max_budget": 1.0, "budget_duration": "12h", "alert_at": [0.8], "mode": "shadow"},
        ],
        "shadow": ["rpm"],
        "model_max_parallel": {"gpt-4o": 2},
        "model_shadow": ["gpt-4o-mini"],
        "loop": {"repeats": 3, "within_s": 30, "mode": "enforce"},
        "price_per_request": 0.002,
    }
    soft = key_spec(crew(), AgentRole("writer", models=["m"], budget=Budget("$5/day", mode="shadow")))
    assert soft.wire()["max_budget"] is None
    assert fleet_spec(watched()).facts()["max_parallel"] == 40


@pytest.mark.parametrize(
    ("field", "by_hand"),
    [
        ("budget", lambda row: setattr(row, "max_budget", 9.0)),
        ("budget", lambda row: setattr(row, "budget_duration", "7d")),
        ("budget", lambda row: row.metadata["nemo"].update(tz="Asia/Kathmandu")),
        ("budget", lambda row: row.metadata["nemo"]["budgets"].pop()),
        ("budget", lambda row: row.metadata["nemo"]["budgets"][0].update(max_budget=61)),
        ("budget", lambda row: row.metadata["nemo"]["budgets"][0].update(tz="UTC")),
        ("budget", lambda row: row.metadata["nemo"]["budgets"][0].update(mode="shadow")),
        ("alert_at", lambda row: row.metadata["nemo"]["budgets"][0].update(alert_at=[0.5])),
        ("alert_at", lambda row: row.metadata["nemo"].update(alert_at=0.9)),
        ("rpm", lambda row: row.metadata["nemo"].update(shadow=["tpm"])),
        ("model_limits", lambda row: row.model_rpm_limit.update({"gpt-4o": 11})),
        ("model_limits", lambda row: row.metadata["nemo"].update(model_max_parallel={"gpt-4o": 3})),
        ("model_limits", lambda row: row.metadata["nemo"].update(model_shadow=["gpt-4o"])),
        ("loop", lambda row: row.metadata["nemo"].update(loop="off")),
        ("loop", lambda row: row.metadata["nemo"]["loop"].update(repeats=4)),
        ("price_per_request", lambda row: row.metadata["nemo"].update(price_per_request=0.003)),
        ("price_per_request", lambda row: row.metadata["nemo"].pop("price_per_request")),
        ("budget", lambda row: row.metadata["nemo"].update(budgets="garbage")),
        ("loop", lambda row: row.metadata["nemo"].update(loop=[])),
        ("model_limits", lambda row: row.metadata["nemo"].update(model_shadow=7)),
    ],
)
def test_any_part_of_a_key_that_another_hand_changed_is_drift(field, by_hand):
    live = live_of(watched())
    by_hand(live.keys[0])
    change = by_name(plan(watched(), live, (stored("watched"),)))["watched"]
    assert (change.action, change.drift) == ("update", True)
    assert field in {one.field for one in change.fields}


@pytest.mark.parametrize(
    "by_hand",
    [
        lambda team: team.metadata["nemo"].update(max_parallel=41),
        lambda team: team.metadata["nemo"].update(shadow=["tpm"]),
        lambda team: team.metadata["nemo"].update(budgets=[{"max_budget": 1, "mode": "shadow"}]),
    ],
)
def test_any_part_of_a_fleet_that_another_hand_changed_is_drift(by_hand):
    live = live_of(watched())
    by_hand(live.team)
    change = by_name(plan(watched(), live, (stored("watched"),)))["crew"]
    assert (change.action, change.drift) == ("update", True)


def test_another_period_or_time_zone_starts_its_count_at_nothing_and_the_plan_says_so():
    def notes(had, wants):
        had, wants = ([AgentRole("writer", models=["m"], budget=one)] for one in (had, wants))
        live = live_of(crew(roles=had, models=[]))
        return by_name(plan(crew(roles=wants, models=[]), live, (stored("writer"),)))["writer"].note

    def said(text):
        return f"another count for {text}: a new one, or the one it had"

    assert notes("$5/day", "$30/week") == said("$30/week")
    assert notes("$5/day", Budget("$5/day", tz="Asia/Kathmandu")) == said("$5/day (Asia/Kathmandu)")
    assert notes("$5/day", ["$5/day", "$60/month"]) == said("$60/month")
    assert notes("$5/day", ["$6/day"]) is None
    assert notes("$5/day", Budget("$5/day", mode="shadow")) is None
    assert notes("$5/30d", "$5/month") is None
    assert notes(["$5/day", "$60/month"], "$60/month") is None
    assert notes(None, "$5/day") is None


def test_a_live_budget_of_another_writing_or_order_is_the_same():
    live = live_of(watched())
    row = live.keys[0]
    month, soft = row.metadata["nemo"]["budgets"]
    row.max_budget, row.budget_duration = 60.0, "30d"
    row.metadata["nemo"] |= {
        "tz": "Europe/Amsterdam",
        "alert_at": [0.5, 0.9],
        "budgets": [{**soft, "budget_duration": "720m"}, {**month, "max_budget": 5, "budget_duration": "24h"}],
    }
    row.metadata["nemo"]["budgets"][1] |= {"tz": None, "alert_at": 0.8}
    assert plan(watched(), live, (stored("watched"),)).is_empty


def test_a_change_by_another_hand_is_drift():
    live = live_of(crew())
    live.keys[0].rpm_limit = 9
    live.team.max_budget = 1.0
    made = plan(crew(), live, KNOWN)
    assert changed(made) == {"researcher": "update", "crew": "update"}
    assert by_name(made)["researcher"].drift
    assert by_name(made)["crew"].drift
    assert "drift" in plan_to_text(made)


def test_a_hand_that_did_what_is_declared_now_leaves_nothing_to_do():
    live = live_of(crew())
    live.keys[1].rpm_limit = 31
    wanted = crew(roles=[crew().role("researcher"), AgentRole("writer", models=["fast"], rpm=31, budget="$20/day")])
    assert plan(wanted, live, KNOWN).is_empty


def test_spend_and_use_are_no_change():
    live = live_of(crew())
    before = live.fingerprint
    for row in live.keys:
        row.spend, row.last_active, row.blocked = 3.5, "2026-01-01T00:00:00Z", True
    live.team.spend = 9.0
    assert live.fingerprint == before
    assert plan(crew(), live, KNOWN).is_empty
    live.keys[0].metadata["team"] = "red"
    assert live.fingerprint != before


def test_a_key_that_is_declared_no_more_is_revoked():
    wanted = crew(roles=[crew().role("writer")], models=[])
    made = plan(wanted, live_of(crew()), KNOWN)
    assert changed(made) == {"researcher": "revoke", "fast": "revoke"}
    assert [change.name for change in made.changes][-2:] == ["researcher", "fast"]


def test_a_second_key_of_one_role_is_revoked_and_the_right_one_stays():
    fleet = crew()
    twin = row_of(fleet, "writer", token="id-twin")
    twin.key_alias = "crew/writer-old"
    made = plan(fleet, live_of(fleet, keys=(twin, *live_of(fleet).keys)), KNOWN)
    (revoked,) = [change for change in made.changes if change.action == "revoke"]
    assert revoked.public_id == "id-twin"


@pytest.mark.parametrize("metadata", [{}, {"nemo": {"managed": False, "role": "writer"}}, {"nemo": "odd"}])
def test_a_key_without_our_mark_is_a_conflict_and_never_touched(metadata):
    fleet = crew()
    live = live_of(fleet)
    live.keys[1].metadata = metadata
    made = plan(fleet, live, KNOWN)
    assert [(one.role, one.alias, one.public_id) for one in made.conflicts] == [("writer", "crew/writer", "id-writer")]
    assert "writer" not in by_name(made)
    assert not made.is_empty
    assert "nemo-agents adopt crew writer id-writer" in plan_to_text(made)


def test_a_foreign_key_in_the_fleet_is_left_alone():
    foreign = KeyRow(token="id-x", key_name="", key_alias="crew/other", team_id="crew")
    live = live_of(crew(), keys=(*live_of(crew()).keys, foreign))
    assert plan(crew(), live, KNOWN).is_empty
    assert [(change.action, change.kind) for change in plan_destroy(live).changes][-1] == ("keep", "fleet")


def test_a_live_key_whose_secret_is_elsewhere_is_kept_with_a_note():
    made = plan(crew(), live_of(crew()), (stored("researcher"), stored("writer", public_id="id-other")))
    assert made.is_empty
    assert "not in this key store" in by_name(made)["writer"].note
    assert by_name(made)["researcher"].note is None


def test_a_key_that_vanished_is_made_again_and_called_drift():
    live = live_of(crew())
    made = plan(crew(), replace(live, keys=live.keys[1:]), KNOWN)
    assert changed(made) == {"researcher": "create"}
    assert by_name(made)["researcher"].drift


@pytest.mark.parametrize(
    ("entry", "action"),
    [
        (stored("writer", state="pending"), "create"),
        (stored("writer", state="pending", public_id="id-new", previous_id="id-writer"), "rotate"),
        (stored("writer", state="pending", previous_id="id-old"), "rotate"),
        (stored("writer", state="pending", public_id="id-new", previous_id="id-older"), "keep"),
    ],
)
def test_what_was_interrupted_is_finished(entry, action):
    made = plan(crew(), live_of(crew()), (stored("researcher"), entry))
    assert by_name(made)["writer"].action == action


def test_a_model_group_is_compared_in_its_order():
    wanted = crew(models=[ModelGroup("fast", ["gemini/b", "openai/a"])])
    made = plan(wanted, live_of(crew()), KNOWN)
    assert changed(made) == {"fast": "update"}
    assert summary(made).startswith("1 to update.")
    assert done(made) == "1 updated"


def test_a_blocked_key_is_told_of():
    live = live_of(crew())
    live.keys[1].blocked = True
    assert by_name(plan(crew(), live, KNOWN))["writer"].note == "it is blocked"


def test_a_fleet_of_another_hand_is_taken_over_in_the_open():
    live = live_of(crew())
    live.team.metadata = {"owner": "ops"}
    made = plan(crew(), live, KNOWN)
    assert changed(made) == {"crew": "update"}
    assert "takes it over" in by_name(made)["crew"].note


def test_the_fleets_guardrails_are_the_roles_too():
    made = plan(crew(guardrails=["prompt-injection-detect"]), EMPTY, ())
    assert by_name(made)["researcher"].spec.guardrails == ("prompt-injection-detect", "pii-filter")
    assert by_name(made)["writer"].spec.guardrails == ("prompt-injection-detect",)


def test_destroy_revokes_then_removes():
    made = plan_destroy(live_of(crew()))
    assert [(change.action, change.kind) for change in made.changes] == [
        ("revoke", "role"),
        ("revoke", "role"),
        ("revoke", "models"),
        ("revoke", "fleet"),
    ]
    assert (summary(made), done(made)) == ("4 to revoke.", "4 revoked")
    assert plan_destroy(EMPTY).is_empty


def test_the_summary_counts_the_lines_above_it():
    wanted = crew(models=[ModelGroup("fast", ["gemini/b"]), ModelGroup("slow", ["openai/c"])], budget="$9/day")
    made = plan(wanted, live_of(crew(), keys=()), ())
    lines = plan_to_text(made).splitlines()
    signs = [line[2] for line in lines if line[2:3] in "+~" and line[3:4] == " "]
    assert summary(made).startswith(f"{signs.count('+')} to create, {signs.count('~')} to update.")
    assert done(made) == "3 created, 2 updated"


def test_a_live_amount_that_is_none_is_an_error_with_its_owner():
    live = live_of(crew())
    live.keys[0].max_budget = -1.0
    with pytest.raises(ProvisionError, match="crew/researcher"):
        plan(crew(), live, KNOWN)


def test_an_alien_deployment_row_is_shown_and_replaced():
    alien = DeploymentRow(model_name="fast", litellm_params={}, model_info={"id": "crew/fast/1"})
    made = plan(crew(), live_of(crew(), deployments=(alien,)), KNOWN)
    assert changed(made) == {"fast": "update"}


def test_a_plan_holds_no_secret():
    entry = stored(
        "writer", state="pending", public_id="id-new", previous_id="id-writer", previous_secret=Secret(SECRET)
    )
    made = plan(crew(), live_of(crew()), (stored("researcher"), entry))
    for shown in (plan_to_text(made), plan_to_json(made), repr(made), repr(entry)):
        assert SECRET not in shown


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 3}', '{"format": 3, "plan": {"changes": 3}}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ProvisionError, match="not a plan"):
        plan_from_json(text)


def test_a_plan_of_another_format_is_refused():
    text = plan_to_json(plan(crew(), EMPTY, ())).replace('"format": 3', '"format": 1')
    with pytest.raises(ProvisionError, match="another version"):
        plan_from_json(text)


quickly = settings(max_examples=40, deadline=None)  # a slow machine is no failure
names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
counts = st.none() | st.integers(1, 10**9)
zones = st.sampled_from(["UTC", "Europe/Amsterdam", "Asia/Kathmandu"])
modes = st.sampled_from(MODES)
periods = st.sampled_from([*PERIODS, "12h", "90m", "10d"])
alerts = st.lists(st.floats(0.01, 1), max_size=3)


def a_budget(nanos, period, tz, alert_at, mode):
    tz = tz if period in ("day", "week", "month") else "UTC"
    return Budget(f"{nanos // 10**9}.{nanos % 10**9:09d}", period=period, tz=tz, alert_at=alert_at, mode=mode)


budgets = st.lists(
    st.builds(a_budget, st.integers(1, 10**16), periods, zones, alerts, modes),
    max_size=4,
    unique_by=lambda budget: (budget.period, budget.tz, budget.mode),
)
limits = st.builds(RateLimit, rpm=st.integers(1, 99), tpm=counts, max_parallel=counts, mode=modes)
loops = st.none() | st.builds(Loop, st.integers(2, 100), within_s=st.integers(1, 3600), mode=modes)


def a_role(name, models, limit, n, **fields):
    return AgentRole(name, models=models, limits=limit, model_limits=dict.fromkeys(models[:n], limit), **fields)


roles = st.builds(
    a_role,
    names,
    st.lists(names, min_size=1, max_size=3, unique=True),
    limits,
    st.integers(0, 3),
    budget=budgets,
    loop=loops,
    price_per_request=st.none() | st.integers(0, 10**6).map(lambda micros: Decimal(micros) / 10**6),
    guardrails=st.lists(st.sampled_from(BUILTIN_GUARDRAILS), unique=True),
    tools=st.none() | st.lists(names, unique=True, max_size=3),
)
fleets = st.builds(
    lambda **fields: FleetDeclaration("crew", **fields),
    roles=st.lists(roles, min_size=1, max_size=4, unique_by=lambda role: role.name),
    budget=budgets,
    rpm=st.integers(1, 10**9),
    tpm=counts,
    max_parallel=counts,
    shadow=st.sampled_from([(), ("rpm",)]),
    guardrails=st.lists(st.sampled_from(BUILTIN_GUARDRAILS), unique=True),
)


@quickly
@given(fleets)
def test_a_plan_survives_json(fleet):
    made = plan(fleet, EMPTY, ())
    assert plan_from_json(plan_to_json(made)) == made


@quickly
@given(fleets)
def test_what_was_applied_needs_no_second_plan(fleet):
    entries = tuple(stored(role.name) for role in fleet.roles)
    assert plan(fleet, live_of(fleet), entries).is_empty


@quickly
@given(fleets)
def test_a_key_says_on_the_wire_what_was_declared(fleet):
    for role in fleet.roles:
        row = row_of(fleet, role.name)
        assert live_key_spec(row, role.name) == key_spec(fleet, role)
        first = next((budget for budget in role.budgets if budget.mode == "enforce"), None)
        assert (row.max_budget is None) == (first is None)
        assert row.budget_duration == (None if first is None else DURATION_OF.get(first.period, first.period))


@quickly
@given(fleets, fleets)
def test_a_plan_changes_exactly_what_differs(have, want):
    made = plan(want, live_of(have), tuple(stored(role.name) for role in have.roles))
    actions = {change.name: change.action for change in made.changes if change.kind == "role"}
    for role in want.roles:
        if role.name not in {one.name for one in have.roles}:
            assert actions[role.name] == "create"
        else:
            same = key_spec(want, role) == key_spec(have, have.role(role.name))
            assert actions[role.name] == ("keep" if same else "update")
    for role in have.roles:
        if role.name not in {one.name for one in want.roles}:
            assert actions[role.name] == "revoke"
    assert not any(change.drift for change in made.changes)
