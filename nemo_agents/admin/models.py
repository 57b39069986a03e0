"""What a gateway can reach: `/nemo/models`. Prices are nanos per million tokens, contexts are tokens."""

from __future__ import annotations

from typing import Literal

import msgspec

from nemo_agents.admin.calls import Call, as_type, segment

__all__ = [
    "DeploymentRow",
    "GroupRow",
    "ModelRow",
    "ModelsView",
    "ProviderFinding",
    "ProviderModels",
    "ProviderRow",
    "check",
    "provider_models",
    "reachable",
]


class DeploymentRow(msgspec.Struct, kw_only=True):
    """One deployment of a model group; `lacks` says what to do before it can be reached, None when it can be."""

    model: str
    order: int
    weight: int
    lacks: str | None = None


class GroupRow(msgspec.Struct, kw_only=True):
    """A model group; `fleet` None is one of every fleet."""

    fleet: str | None
    name: str
    deployments: list[DeploymentRow]


class ProviderRow(msgspec.Struct, kw_only=True):
    """A provider. `credentials` are never told, only whether there are any; `lacks` says what to set where it needs it.

    `key_env` is the environment variable that the key is from.
    """

    name: str
    base_url: str
    wires: list[str]
    credentials: Literal["found", "none", "missing"]
    key_env: str | None = None
    lacks: str | None = None


class ModelsView(msgspec.Struct, kw_only=True):
    """The model groups and providers of a gateway. `stand_in` answers for every model whose provider is missing."""

    stand_in: str | None
    groups: list[GroupRow]
    providers: list[ProviderRow]


class ModelRow(msgspec.Struct, kw_only=True):
    """A model at a provider. `listed` says whether the provider itself names it, None when it was not asked.

    `input` and `output` are None while no price is known. `also_at` are the other reachable providers whose table has a
    model of this name; `bare_goes_to` is the provider that its bare name means.
    """

    model: str
    listed: bool | None
    input: int | None = None
    output: int | None = None
    context_tokens: int | None = None
    also_at: list[str] = []
    bare_goes_to: str | None = None


class ProviderModels(msgspec.Struct, kw_only=True):
    """The models of one provider; `note` says why the provider's own list is not in it, None when it is."""

    provider: ProviderRow
    note: str | None
    models: list[ModelRow]


class ProviderFinding(msgspec.Struct, kw_only=True):
    """What was found at a provider's base URL; `remedy` is empty when nothing needs to be done."""

    provider: str
    level: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


def reachable() -> Call[ModelsView]:
    """Read which model groups and providers the gateway has."""
    return Call(method="GET", path="/nemo/models", decode=as_type(ModelsView))


def provider_models(provider: str) -> Call[ProviderModels]:
    """Read the models of one provider; the gateway asks the provider for its list."""
    return Call(method="GET", path=f"/nemo/models/{segment(provider)}", decode=as_type(ProviderModels))


def check() -> Call[list[ProviderFinding]]:
    """Let the gateway ask every provider for its list of models, and say what it found."""
    return Call(method="GET", path="/nemo/providers/check", decode=as_type(list[ProviderFinding]))
