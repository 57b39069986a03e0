"""Model groups through a plan: what it shows, what it does, what another hand did, and never an empty group."""

from __future__ import annotations

import msgspec
import pytest
from admin_machine import GATEWAY, AdminMachine, Killed, MemoryStore, drive
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.admin.wire import DeploymentRow
from nemo_agents.groups import STRATEGIES, Deployment, ModelGroup
from nemo_agents.provision import operate
from nemo_agents.provision.apply import apply
from nemo_agents.provision.groupspec import group_spec, live_group_spec, live_groups
from nemo_agents.provision.render import plan_from_json, plan_to_json, plan_to_text
from nemo_agents.roles import AgentRole, FleetDeclaration

FULL = ModelGroup(
    "fast",
    [Deployment("openai/a", weight=3, context_tokens="200k"), "openai/b", Deployment("gemini/c", tier=1)],
    strategy="weighted",
    retries=2,
    fallback_on=["context-window"],
)


def crew(*groups: ModelGroup) -> FleetDeclaration:
    return FleetDeclaration("crew", roles=[AgentRole("writer", models=["fast"])], models=groups)


class World:
    """A gateway that remembers which models a group had after every call."""

    def __init__(self):
        self.machine = AdminMachine()
        self.store = MemoryStore()

    def run(self, flow, **kill):
        return drive(flow, self.machine, **kill)

    def plan(self, *groups):
        return self.run(operate.prepare(crew(*groups), GATEWAY, self.store))

    def provision(self, *groups, **kill):
        return self.run(apply(self.plan(*groups), self.store), **kill)

    def change_of(self, *groups):
        return next(change for change in self.plan(*groups).changes if change.kind == "models")

    @property
    def rows(self):
        return self.machine.deployments

    def is_as(self, *groups):
        assert self.plan(*groups).is_empty
        rows = [msgspec.convert(row, DeploymentRow) for row in self.rows.values()]
        found = live_groups(rows)
        assert {name: live_group_spec("crew", name, of) for name, of in found.items()} == {
            group.name: group_spec("crew", group) for group in groups
        }


@pytest.fixture
def world():
    return World()


def test_a_group_arrives_on_litellm_s_wire_with_ours_beside_it(world):
    world.provision(FULL)
    rows = {row["litellm_params"]["model"]: row for row in world.rows.values()}
    marks = {row["model_info"].pop("nemo_applied") for row in rows.values()}
    assert len(marks) == 1
    ours = {"nemo_strategy": "weighted", "nemo_retries": 2, "nemo_fallback_on": ["context-window"]}
    assert rows["openai/a"] == {
        "model_name": "fast",
        "litellm_params": {"model": "openai/a", "order": 1, "weight": 3},
        "model_info": {"id": "crew/fast/1", "team_id": "crew", "nemo_context_tokens": 200_000, **ours},
    }
    assert rows["openai/b"]["litellm_params"] == {"model": "openai/b", "order": 1, "weight": 1}
    assert rows["gemini/c"]["litellm_params"] == {"model": "gemini/c", "order": 2, "weight": 1}
    world.is_as(FULL)


def test_a_plan_shows_a_group_and_every_change_of_it(world):
    assert "weighted · openai/a (weight 3, 200k tokens), openai/b; then gemini/c · 2 retries" in plan_to_text(
        world.plan(FULL)
    )
    world.provision(ModelGroup("fast", ["openai/a", "openai/b", "gemini/c"]))
    change = world.change_of(FULL)
    assert change.action == "update"
    assert not change.drift
    assert {(one.field, one.old, one.new) for one in change.fields} == {
        (
            "models",
            "openai/a, openai/b, gemini/c",
            "openai/a (weight 3, 200k tokens), openai/b; then gemini/c",
        ),
        ("strategy", None, "weighted"),
        ("retries", None, "2"),
        ("fallback_on", None, "context-window"),
    }


def test_a_plan_of_groups_survives_json(world):
    made = world.plan(FULL)
    assert plan_from_json(plan_to_json(made)) == made
    world.run(apply(plan_from_json(plan_to_json(made)), world.store))
    world.is_as(FULL)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda rows: rows["crew/fast/1"]["litellm_params"].update(weight=9),
        lambda rows: rows["crew/fast/2"]["litellm_params"].update(order=7),
        lambda rows: [row["model_info"].update(nemo_strategy="order") for row in rows.values()],
        lambda rows: rows["crew/fast/1"]["model_info"].update(nemo_context_tokens=1),
        lambda rows: rows.pop("crew/fast/3"),
    ],
)
def test_another_hand_s_change_is_drift_and_is_put_right(world, tamper):
    world.provision(FULL)
    tamper(world.rows)
    change = world.change_of(FULL)
    assert (change.action, change.drift) == ("update", True)
    world.provision(FULL)
    world.is_as(FULL)


def test_a_change_of_the_declaration_is_no_drift_whatever_was_written(world):
    world.provision(FULL)
    world.provision(ModelGroup("fast", ["openai/a", "openai/b"]))
    fewer = ModelGroup("fast", ["openai/a"])
    world.provision(fewer)  # nothing of it is written but that one is gone
    world.is_as(fewer)
    change = world.change_of(ModelGroup("fast", ["openai/z"]))
    assert (change.action, change.drift) == ("update", False)


def test_a_group_of_before_marks_is_no_drift(world):
    world.provision(ModelGroup("fast", ["openai/a", "openai/b"]))
    for row in world.rows.values():
        del row["model_info"]["nemo_applied"]
    assert world.change_of(ModelGroup("fast", ["openai/a", "openai/b"])).action == "keep"
    assert not world.change_of(ModelGroup("fast", ["openai/b"])).drift


def test_deployments_that_do_not_agree_about_their_group_are_put_right(world):
    """As a killed apply leaves them."""
    world.provision(FULL)
    del world.rows["crew/fast/2"]["model_info"]["nemo_strategy"]
    change = world.change_of(FULL)
    assert (change.action, change.drift) == ("update", False)
    assert [one.field for one in change.fields] == ["options"]
    world.provision(FULL)
    world.is_as(FULL)


def test_what_nobody_can_mean_is_shown_and_replaced(world):
    world.provision(FULL)
    world.rows["crew/fast/1"]["model_info"] |= {
        "nemo_strategy": ["x"],
        "nemo_retries": True,
        "nemo_fallback_on": "all",
        "nemo_context_tokens": "much",
    }
    assert world.change_of(FULL).action == "update"
    world.provision(FULL)
    world.is_as(FULL)


def test_a_change_of_what_is_ours_alone_makes_a_plan_stale(world):
    world.provision(FULL)
    made = world.plan(replace_strategy("least-busy"))
    world.rows["crew/fast/1"]["model_info"]["nemo_retries"] = 5
    with pytest.raises(Exception, match="changed after the plan was made"):
        world.run(apply(made, world.store))


def replace_strategy(strategy):
    return ModelGroup("fast", FULL.deployments, strategy=strategy)


def test_a_group_whose_name_becomes_a_model_s_goes_first_and_comes_last(world):
    """A gateway refuses a group that holds a group, also in between."""
    world.provision(ModelGroup("gpt-4o", ["gemini/x"]))
    names = [(change.action, change.name) for change in world.plan(ModelGroup("cheap", ["gpt-4o"])).changes]
    assert names.index(("revoke", "gpt-4o")) < names.index(("create", "cheap"))
    world.provision(ModelGroup("cheap", ["gpt-4o"]))
    wanted = [ModelGroup("aaa", ["gemini/x"]), ModelGroup("cheap", ["openai/y"])]
    names = [(change.action, change.name) for change in world.plan(*wanted).changes]
    assert names.index(("update", "cheap")) < names.index(("create", "aaa"))


GROUPS = st.builds(
    lambda models, strategy, retries: ModelGroup("fast", models, strategy=strategy, retries=retries),
    st.lists(
        st.builds(Deployment, st.sampled_from("abcde"), tier=st.integers(0, 2), weight=st.integers(1, 2)),
        min_size=1,
        max_size=4,
        unique_by=lambda one: one.model,
    ),
    st.sampled_from(STRATEGIES),
    st.none() | st.integers(0, 2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(GROUPS, min_size=2, max_size=3), st.integers(1, 12), st.booleans())
def test_a_group_is_never_empty_nor_has_a_model_twice_and_ends_as_declared(wanted, n, after):
    """Through any changes, the last of them killed at some call and begun again."""
    world = World()
    first, *others = wanted
    world.provision(first)
    watched = Watched(world.machine)
    world.machine.deployments = watched
    for group in others:
        watched.least = len(watched)
        only = [row["litellm_params"]["model"] for row in watched.values()]
        world.provision(group)
        world.is_as(group)
        assert watched.least > 0 or only == list(group.models)
    try:
        world.provision(first, kill=(n, after))
    except Killed:
        world.provision(first)
    world.is_as(first)
    assert not watched.twice


class Watched(dict):
    """The deployments of a gateway, which notices the fewest that there were, and a model that is there twice."""

    def __init__(self, machine):
        super().__init__(machine.deployments)
        self.least = len(self)
        self.twice = False

    def __setitem__(self, name, row):
        super().__setitem__(name, row)
        models = [one["litellm_params"]["model"] for one in self.values()]
        self.twice = self.twice or len(set(models)) < len(models)

    def pop(self, name, *default):
        row = super().pop(name, *default)
        self.least = min(self.least, len(self))
        return row


def test_a_member_of_one_is_changed_in_place():
    """There is no other way: LiteLLM's `/model/new` with an id that exists is refused."""
    world = World()
    world.provision(ModelGroup("fast", ["openai/a"]))
    world.machine.calls.clear()
    world.provision(ModelGroup("fast", ["openai/a"], retries=1))
    assert [call for call in world.machine.calls if call.startswith("POST")] == [
        "POST /model/delete",
        "POST /model/new",
    ]
