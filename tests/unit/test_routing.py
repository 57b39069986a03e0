from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_agents.errors import Code
from nemo_agents.groups import Deployment as Declared
from nemo_agents.groups import ModelGroup
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import (
    Deployment,
    Options,
    Target,
    allowed,
    by_group,
    configured_deployments,
    duplicate_in,
    fallback_on,
    group_in,
    names_of,
    options_of,
    resolve,
)

OWNERS = {"gpt-4o": "openai", "claude-3-5-sonnet": "anthropic", "gemini-1.5-pro": "gemini"}
KEY_ENVS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}


def deployment(n, model, order=0):
    return Deployment(deployment_id=f"d{n}", fleet="crew", group="fast", model=model, order=order)


FAST = {
    "fast": [
        deployment(3, "gemini/gemini-1.5-pro", 2),
        deployment(1, "openai/o3-mini", 0),
        deployment(2, "claude-3-5-sonnet", 1),
    ]
}


def go(asked, *, groups=FAST, available=("openai", "anthropic", "gemini"), stand_in=None, key_envs=KEY_ENVS):
    return resolve(
        asked,
        groups=groups,
        provider_of=OWNERS.get,
        available=frozenset(available),
        stand_in=stand_in,
        key_env_of=key_envs,
    )


def places(targets):
    return [(target.provider, target.model) for target in targets]


def test_a_group_gives_its_deployments_in_order():
    assert go("fast") == (
        Target(provider="openai", model="o3-mini", deployment="d1", order=0),
        Target(provider="anthropic", model="claude-3-5-sonnet", deployment="d2", order=1),
        Target(provider="gemini", model="gemini-1.5-pro", deployment="d3", order=2),
    )


def test_a_target_has_what_its_deployment_says():
    said = replace(deployment(1, "openai/o3-mini", 7), weight=3, context_tokens=200_000)
    (target,) = go("fast", groups={"fast": [said]})
    assert (target.deployment, target.order, target.weight, target.context_tokens) == ("d1", 7, 3, 200_000)


def test_a_model_of_its_own_name_is_its_own_deployment():
    (target,) = go("gpt-4o")
    assert (target.deployment, target.order, target.weight, target.context_tokens) == ("openai/gpt-4o", 0, 1, None)


def test_a_model_is_named_with_its_provider_or_without():
    assert go("gpt-4o") == (Target(provider="openai", model="gpt-4o"),)
    assert go("openai/gpt-4o") == go("gpt-4o")
    assert places(go("openai/org/own-model")) == [("openai", "org/own-model")]


def test_a_group_hides_a_model_of_the_same_name():
    groups = {"gpt-4o": [deployment(1, "gemini/gemini-1.5-pro")]}
    assert places(go("gpt-4o", groups=groups)) == [("gemini", "gemini-1.5-pro")]
    assert places(go("openai/gpt-4o", groups=groups)) == [("openai", "gpt-4o")]


def test_a_provider_without_credentials_is_skipped_or_stood_in_for():
    skipped = go("fast", available=("anthropic",))
    assert places(skipped) == [("anthropic", "claude-3-5-sonnet")]
    assert places(go("fast", available=("gemini", "sandbox"), stand_in="sandbox")) == [
        ("sandbox", "openai/o3-mini"),
        ("sandbox", "anthropic/claude-3-5-sonnet"),
        ("gemini", "gemini-1.5-pro"),
    ]
    assert places(go("gpt-4o", available=(), stand_in="sandbox", key_envs={})) == [("sandbox", "openai/gpt-4o")]


def test_the_sandbox_is_addressed_by_name():
    for available, stand_in in ((("sandbox", "openai"), None), ((), "sandbox")):
        assert places(go("sandbox/gpt-4o", available=available, stand_in=stand_in)) == [("sandbox", "gpt-4o")]


@pytest.mark.parametrize(
    ("asked", "available", "said"),
    [
        ("gpt-5o", ("openai",), "no model group and no known model has the name gpt-5o"),
        ("gpt-4o", (), "provider openai has no credentials: set OPENAI_API_KEY"),
        ("openai/gpt-4o", (), "provider openai has no credentials: set OPENAI_API_KEY"),
        ("bedrock/x", (), "add [providers.bedrock]"),
        ("openai/", ("openai",), "not of the form provider/model"),
        ("/gpt-4o", ("openai",), "not of the form provider/model"),
        ("sandbox/gpt-4o", (), "provider sandbox is not configured"),
    ],
)
def test_a_refusal_says_what_is_missing(asked, available, said):
    refusal = go(asked, available=available)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code, refusal.param) == (404, Code.MODEL_NOT_FOUND, "model")
    assert refusal.retry_after_ms is None
    assert said in refusal.message


def test_a_group_that_cannot_be_served_names_every_reason_once():
    refusal = go("fast", available=())
    assert isinstance(refusal, Refusal)
    for variable in KEY_ENVS.values():
        assert refusal.message.count(variable) == 1
    empty = go("none", groups={"none": []})
    assert isinstance(empty, Refusal)
    assert "has no deployments" in empty.message


def test_a_strange_name_is_not_repeated_in_full():
    refusal = go("x\r\n" + "y" * 5000)
    assert isinstance(refusal, Refusal)
    assert len(refusal.message) < 400
    assert refusal.message.isprintable()


@pytest.mark.parametrize(
    ("asked", "entry", "verdict"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("openai/gpt-4o", "openai/gpt-4o", True),
        ("openai/gpt-4o", "gpt-4o", True),
        ("gpt-4o", "openai/gpt-4o", True),
        ("anything/at-all", "*", True),
        ("openai/gpt-4o", "openai/*", True),
        ("anthropic/claude", "openai/*", False),
        ("openai/gpt-4o", "gpt-4*", True),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("openai/gpt-4o", "anthropic/gpt-4o", False),
        ("openai", "openai/*", False),
        ("", "openai/gpt-4o", False),
        ("openai/", "gpt-4o", False),
        ("gpt-4", "gpt.4", False),
    ],
)
def test_allow_list_entries(asked, entry, verdict):
    assert allowed(asked, [entry]) is verdict
    assert allowed(asked, ["other", entry]) is verdict


def test_an_empty_allow_list_allows_all():
    assert allowed("anything", [])


def test_a_bare_name_is_its_own_providers():
    """Where the provider of a bare name is known, an entry for another provider does not let it pass."""
    assert allowed("gpt-4o", ["openai/*"], provider_of=OWNERS.get)
    assert allowed("gpt-4o", ["openai/gpt-4o"], provider_of=OWNERS.get)
    assert not allowed("gpt-4o", ["azure/gpt-4o"], provider_of=OWNERS.get)
    assert not allowed("unknown", ["openai/*"], provider_of=OWNERS.get)


@pytest.mark.parametrize(
    ("asked", "entry", "verdict"),
    [
        ("openai/gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "openai/gpt-4o", True),
        ("openai/gpt-4o", "openai/gpt-4o", True),
        ("openai/gpt-4o", "gpt-4*", True),
        ("together/gpt-4o", "gpt-4o", False),
        ("ollama/gpt-4o", "gpt-4o", False),
        ("together/gpt-4o", "gpt-4*", False),
        ("together/gpt-4o", "together/gpt-4o", True),
        ("together/gpt-4o", "together/*", True),
        ("together/openai/gpt-4o", "openai/gpt-4o", False),
        ("together/openai/gpt-4o", "openai/*", False),
        ("openai/own-model", "own-model", False),
        ("own-model", "own-model", True),
    ],
)
def test_a_bare_entry_is_its_own_providers(asked, entry, verdict):
    """An entry without a provider does not open the same name at another provider, where it may be dearer."""
    assert allowed(asked, [entry], provider_of=OWNERS.get) is verdict
    assert allowed(asked, ["other", entry], provider_of=OWNERS.get) is verdict


@pytest.mark.parametrize(
    ("asked", "entry", "verdict"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("openai/gpt-4o", "gpt-4o", False),
        ("gpt-4o", "openai/gpt-4o", False),
        ("gpt-4o", "openai/*", False),
        ("openai/gpt-4o", "openai/gpt-4o", True),
        ("openai/gpt-4o", "openai/*", True),
    ],
)
def test_a_group_with_a_models_name_is_the_group_alone(asked, entry, verdict):
    """Neither is the model behind the group to be had for the group's name, nor the group for the model's."""
    assert allowed(asked, [entry], provider_of=OWNERS.get, groups={"gpt-4o"}) is verdict
    assert allowed(asked, [entry], provider_of=OWNERS.get, groups={"other"})


def test_a_model_has_two_names_and_a_group_one():
    assert names_of("gpt-4o", provider_of=OWNERS.get) == ("gpt-4o", "openai/gpt-4o")
    assert names_of("openai/gpt-4o", provider_of=OWNERS.get) == ("openai/gpt-4o", "gpt-4o")
    assert names_of("gpt-4o", provider_of=OWNERS.get, groups={"gpt-4o"}) == ("gpt-4o",)
    assert names_of("openai/gpt-4o", provider_of=OWNERS.get, groups={"gpt-4o"}) == ("openai/gpt-4o",)
    assert names_of("unknown", provider_of=OWNERS.get) == ("unknown",)


@pytest.mark.parametrize("status", [None, 408, 409, 429, 500, 502, 503, 504, 529])
def test_what_another_target_may_cure(status):
    assert fallback_on(status)


@pytest.mark.parametrize("status", [200, 202, 204, 302, 400, 401, 402, 403, 404, 413, 422])
def test_what_no_other_target_cures(status):
    assert not fallback_on(status)


# --- groups ------------------------------------------------------------------------------------------------------
def test_groups_of_the_configuration_are_deployments_of_every_fleet():
    group = ModelGroup(
        "fast",
        [Declared("openai/a", weight=3), Declared("gemini/b", tier=1, context_tokens="1m")],
        strategy="weighted",
        retries=2,
        fallback_on=["content-filter"],
    )
    options = Options(strategy="weighted", retries=2, fallback_on=("content-filter",))
    first, second = configured_deployments([group])
    common = {"fleet": None, "group": "fast", "options": options}
    assert first == Deployment(deployment_id="config/fast/1", model="openai/a", weight=3, **common)
    assert second == Deployment(
        deployment_id="config/fast/2", model="gemini/b", order=1, context_tokens=1_000_000, **common
    )
    assert by_group([first, second]) == {"fast": [first, second]}
    assert options_of([second, first]) == options
    assert options_of(None) == options_of([]) == Options()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (deployment(9, "fast"), "fast"),
        (replace(deployment(9, "fast"), group="slow"), "fast"),
        (replace(deployment(9, "fast"), group="slow", fleet=None), "fast"),
        (replace(deployment(9, "fast"), group="slow", fleet="other"), None),
        (replace(deployment(9, "openai/x"), group="claude-3-5-sonnet"), "claude-3-5-sonnet"),
        (replace(deployment(9, "openai/x"), group="claude-3-5-sonnet", fleet="other"), None),
        (deployment(9, "openai/x"), None),
    ],
)
def test_a_group_holds_no_group(wanted, found):
    """Not itself, not another one of its fleet or of all, and no group takes the name of a model in one."""
    assert group_in(wanted, FAST["fast"]) == found


def test_a_group_holds_a_model_once():
    assert duplicate_in(deployment(9, "openai/o3-mini"), FAST["fast"]) == "d1"
    assert duplicate_in(deployment(1, "openai/o3-mini"), FAST["fast"]) is None  # itself, as it was
    assert duplicate_in(replace(deployment(9, "openai/o3-mini"), fleet=None), FAST["fast"]) is None
    assert duplicate_in(replace(deployment(9, "openai/o3-mini"), group="slow"), FAST["fast"]) is None
