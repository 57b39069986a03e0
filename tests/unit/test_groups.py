"""Model groups as they are declared: in Python, in a fleet file, and in the gateway's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_agents.errors import DeclarationError, SettingsError
from nemo_agents.gateway.settings import load_settings
from nemo_agents.groups import STRATEGIES, Deployment, ModelGroup, check_groups, group_from_table
from nemo_agents.provision.load import load_fleet
from nemo_agents.roles import AgentRole, FleetDeclaration


def tiers(group: ModelGroup) -> list[tuple[str, int | None]]:
    return [(one.model, one.tier) for one in group.deployments]


def test_a_plain_list_is_one_after_the_other():
    group = ModelGroup("fast", ["b", "a"])
    assert tiers(group) == [("b", 0), ("a", 1)]
    assert (group.strategy, group.retries, group.fallback_on, group.models) == ("order", None, (), ("b", "a"))


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_a_plain_list_is_one_tier_where_something_else_chooses(strategy):
    assert tiers(ModelGroup("fast", ["b", "a"], strategy=strategy)) == [("a", 0), ("b", 0)]


def test_tiers_count_by_their_order_alone():
    listed: list[Any] = [Deployment("c", tier=7), Deployment("a", tier=2), "d", Deployment("b", tier=7)]
    assert tiers(ModelGroup("fast", listed, strategy="weighted")) == [("d", 0), ("a", 1), ("b", 2), ("c", 2)]
    assert tiers(ModelGroup("fast", listed)) == [("d", 0), ("a", 1), ("c", 2), ("b", 3)]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (ModelGroup("f", ["a", "b"]), ModelGroup("f", [Deployment("a", tier=0), Deployment("b", tier=4)]), True),
        (ModelGroup("f", ["a", "b"]), ModelGroup("f", ["b", "a"]), False),
        (ModelGroup("f", ["a", "b"], strategy="weighted"), ModelGroup("f", ["b", "a"], strategy="weighted"), True),
        (ModelGroup("f", ["a"]), ModelGroup("f", ["a"], retries=1), False),
        (ModelGroup("f", ["a"]), ModelGroup("f", [Deployment("a", context_tokens="8k")]), False),
        (
            ModelGroup("f", ["a"], fallback_on=["content-filter", "context-window"]),
            ModelGroup("f", ["a"], fallback_on=("context-window", "content-filter")),
            True,
        ),
    ],
)
def test_groups_are_equal_when_they_mean_the_same(one, other, alike):
    assert (one == other) is alike
    assert (hash(one) == hash(other)) is alike


@pytest.mark.parametrize(
    ("make", "field", "said"),
    [
        (lambda: ModelGroup("fast", ["a"], strategy="wieghted"), "models[fast].strategy", 'Did you mean "weighted"?'),
        (lambda: ModelGroup("fast", ["a"], strategy=None), "models[fast].strategy", "The strategies are"),
        (lambda: ModelGroup("fast", ["a"], retries=-1), "models[fast].retries", "from 0 to 10"),
        (lambda: ModelGroup("fast", ["a"], retries=True), "models[fast].retries", "from 0 to 10"),
        (lambda: ModelGroup("fast", ["a"], retries=11), "models[fast].retries", "from 0 to 10"),
        (lambda: ModelGroup("fast", ["a"], fallback_on="content-filter"), "models[fast].fallback_on", "Write a list"),
        (lambda: ModelGroup("fast", ["a"], fallback_on=["filter"]), "models[fast].fallback_on", "content-filter"),
        (lambda: ModelGroup("fast", ["a", Deployment("a", weight=2)]), "models[fast].models", "Remove or rename"),
        (lambda: ModelGroup("fast", ["openai/*"]), "models[fast].models", "openai/gpt-4o-mini"),
        (lambda: ModelGroup("fast", ["fast"]), "models[fast].models", "List the models themselves"),
        (lambda: ModelGroup("fast", [Deployment("fast")]), "models[fast].models", "List the models themselves"),
        (lambda: ModelGroup("fast", [3]), "models[fast].models", "Deployment("),
        (lambda: Deployment("a", weight=0), "deployment[a].weight", "from 1 to 10000"),
        (lambda: Deployment("a", weight=-2), "deployment[a].weight", "from 1 to 10000"),
        (lambda: Deployment("a", weight=1.5), "deployment[a].weight", "from 1 to 10000"),
        (lambda: Deployment("a", tier=-1), "deployment[a].tier", "from 0"),
        (lambda: Deployment("a", context_tokens=0), "deployment[a].context_tokens", "whole number"),
        (lambda: Deployment(" a"), "deployment.model", "text"),
        (lambda: Deployment(""), "deployment.model", "text"),
        (lambda: check_groups([ModelGroup("a", ["b"]), ModelGroup("b", ["c"])]), "models[a].models", "themselves"),
        (lambda: check_groups([ModelGroup("a", ["b"]), ModelGroup("b", ["a"])]), "models[a].models", "themselves"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(make, field, said):
    with pytest.raises(DeclarationError) as caught:
        make()
    assert caught.value.field == field
    assert said in str(caught.value)


FLEET = """
[fleet]
name = "crew"

[[models]]
name = "fast"
models = ["openai/a", { model = "gemini/b", tier = 1, weight = 3, context_tokens = "1m" }]
strategy = "least-busy"
retries = 2
fallback_on = ["context-window"]

[[roles]]
name = "writer"
models = ["fast"]
"""


def test_a_fleet_file_says_all_of_it(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET, encoding="utf-8")
    models = ["openai/a", Deployment("gemini/b", tier=1, weight=3, context_tokens=1_000_000)]
    group = ModelGroup("fast", models, strategy="least-busy", retries=2, fallback_on=["context-window"])
    assert load_fleet(path) == FleetDeclaration("crew", roles=[AgentRole("writer", models=["fast"])], models=[group])


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ("weight = 3", "weight = 0", "models[fast].models[1].weight"),
        ("weight = 3", "wieght = 3", "models[fast].models[1].wieght"),
        ("model = ", "name = ", "models[fast].models[1].name"),
        ("retries", "retry", "models[fast].retry"),
        ('name = "fast"\n', "", "models[0].name"),
    ],
)
def test_a_fleet_file_names_the_place_of_a_mistake(tmp_path, before, after, field):
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.replace(before, after), encoding="utf-8")
    with pytest.raises(DeclarationError) as caught:
        load_fleet(path)
    assert caught.value.field == field
    assert str(path) in str(caught.value)


def test_a_table_needs_its_models():
    with pytest.raises(DeclarationError, match=r"models\[fast\]\.models: is missing"):
        group_from_table("fast", {})
    with pytest.raises(DeclarationError, match=r"models\[fast\]\.models\[0\]\.model: is missing"):
        group_from_table("fast", {"models": [{"weight": 2}]})


# --- gateway.toml ------------------------------------------------------------------------------------------------
def settings_of(tmp_path, text):
    (tmp_path / "gateway.toml").write_text(text, encoding="utf-8")
    return load_settings(tmp_path)


def test_the_gateway_s_configuration_has_groups_of_every_fleet(tmp_path):
    found = settings_of(
        tmp_path,
        '[groups.fast]\nmodels = ["openai/a", {model = "gemini/b", weight = 2}]\nstrategy = "weighted"\n'
        '[groups.deep]\nmodels = ["openai/c"]\nfallback_on = ["content-filter"]\n',
    )
    assert found.groups == (
        ModelGroup("fast", ["openai/a", Deployment("gemini/b", weight=2)], strategy="weighted"),
        ModelGroup("deep", ["openai/c"], fallback_on=["content-filter"]),
    )
    assert (found.max_attempts, found.retries) == (4, 1)
    assert load_settings(tmp_path / "nowhere").groups == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups = 3", "[groups] must be tables"),
        ("[groups]\nfast = 3", "[groups] must be tables"),
        ('[groups.fast]\nstrategy = "order"', "[groups.fast] models: is missing"),
        ('[groups.fast]\nmodels = ["a"]\nstrategy = "odrer"', "[groups.fast] strategy: is not a strategy"),
        ('[groups.fast]\nmodels = [{model = "a", weight = 0}]', "[groups.fast] models[0].weight"),
        ('[groups.fast]\nmodels = ["a"]\nname = "b"', "[groups.fast] name: the table is named already"),
        ('[groups.Fast]\nmodels = ["a"]', "is not a name (got 'Fast')"),
        ('[groups.fast]\nmodels = ["deep"]\n[groups.deep]\nmodels = ["a"]', "[groups.fast] models: is a model group"),
        ('[groups.fast]\nmodels = ["fast"]', "[groups.fast] models: is a model group"),
        ('[groups.fast]\nmodels = ["a", "a"]', "names the same model twice"),
        ("[gateway]\nmax_attempts = 0", "max_attempts must be at least 1"),
        ("[gateway]\nretries = 11", "retries must be between 0 and 10"),
        ("[gateway]\nretries = -1", "retries must be between 0 and 10"),
    ],
)
def test_a_mistake_in_a_group_is_told_in_the_words_of_the_file(tmp_path, text, said):
    with pytest.raises(SettingsError) as caught:
        settings_of(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
