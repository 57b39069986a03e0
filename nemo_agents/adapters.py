"""What the adapters of agent frameworks have in common: `nemo_agents_langchain` and its like are built on this.

An adapter makes a framework's own model object speak through the gateway, and its own callbacks feed the trace. It is
found by the entry point group `nemo_agents.adapters`; the core imports neither it nor any framework.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from nemo_agents import environment
from nemo_agents.admin.calls import Call, as_type, segment
from nemo_agents.client import Client
from nemo_agents.errors import AdapterError, DeclarationError, GatewayError, ProvisionError
from nemo_agents.policy.keys import mask_key
from nemo_agents.policy.routing import allowed
from nemo_agents.roles import AgentRole
from nemo_agents.secret import Secret
from nemo_agents.trace.member import Member
from nemo_agents.versions import fits

__all__ = [
    "GROUP",
    "KNOWN",
    "AdapterError",
    "Framework",
    "InstalledAdapter",
    "ModelFacts",
    "check_versions",
    "installed",
    "member_of",
    "model_facts",
    "model_of",
    "switch_off",
]

GROUP: Final = "nemo_agents.adapters"
KNOWN: Final[Mapping[str, str]] = {
    "autogen": "nemo-agents-autogen",
    "crewai": "nemo-agents-crewai",
    "google_adk": "nemo-agents-google-adk",
    "langchain": "nemo-agents-langchain",
}
"""The adapters of this project: name of the entry point, and distribution."""

_FACTS_TIMEOUT_S: Final = 5.0
# No price list says who can see; these families can. Anything else is asked for explicitly.
_SEES: Final = re.compile(r"(?:[\w.-]+/)*(?:gpt-4o|gpt-4\.1|gpt-5|o[134](?:-|$)|claude-|gemini-)")


# --- roles and models -----------------------------------------------------------------------------------------------
def member_of(role: Member | AgentRole) -> Member:
    """Return what an adapter was given as a role with its key.

    `fleet["researcher"]` is one; a bare AgentRole takes its key from `NEMO_KEY_<ROLE>` and the gateway from
    `NEMO_GATEWAY_URL`, each read when it is needed. Raises DeclarationError for anything else.
    """
    if isinstance(role, Member):
        return role
    if isinstance(role, AgentRole):
        name = role.name
        return Member(role=role, gateway_url=environment.gateway_url(os.environ), find_key=lambda: _key_of(name))
    raise DeclarationError(
        "is not a role",
        field="role",
        value=role,
        remedy='Give a role of a fleet, fleet["researcher"], or an AgentRole whose key is in the environment.',
    )


def _key_of(role: str) -> Secret:
    variable = environment.role_key_variable(role)
    text = os.environ.get(variable, "").strip()
    if text:
        return Secret(text, mask=mask_key(text))
    raise ProvisionError(
        f'no key for role {role}: set {variable}, or take the role from its fleet, fleet["{role}"], which knows the '
        "keys that `nemo-agents provision` has stored"
    )


def model_of(member: Member, model: str | None) -> str:
    """Return the model to ask for: the one named, by default the role's first.

    Raises DeclarationError for one that the role may not use, and where the role's first is a pattern.
    """
    models = member.role.models
    if model is None:
        model = models[0] if models else ""
        if model and "*" not in model:
            return model
        raise DeclarationError(
            f"the role {member.name} names no single model to take",
            field="model",
            value=None,
            remedy=f'Name one: model="...". The role may use {", ".join(models) or "any"}.',
        )
    if isinstance(model, str) and model and allowed(model, models):
        return model
    raise DeclarationError(
        f"the role {member.name} may not use this model",
        field="model",
        value=model,
        remedy=f"It may use {', '.join(models) or 'any'}.",
    )


# --- what a model can do --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What frameworks want to know of a model before they ask it.

    Sizes are tokens, prices nanos per million tokens; None is not known. The flags say what may be asked for through
    the gateway: all but `vision` are passed on to any provider, which may refuse; `vision` goes by the model's name.
    """

    context_tokens: int | None = None
    max_output_tokens: int | None = None
    vision: bool = False
    function_calling: bool = True
    json_output: bool = True
    structured_output: bool = True
    input_nanos_per_million: int | None = None
    output_nanos_per_million: int | None = None


class _Listed(msgspec.Struct):
    """The part of a model in `GET /v1/models/<name>` that is read here."""

    id: str
    nemo: dict[str, Any] = {}


def model_facts(member: Member, model: str) -> ModelFacts:
    """Ask the gateway, with the role's key, what is known of a model or model group.

    A gateway that does not answer or does not say leaves the defaults: an adapter must be usable before its gateway
    is up. Raises ProvisionError when the role has no known key.
    """
    key = member.key
    call = Call(method="GET", path=f"/v1/models/{segment(model)}", decode=as_type(_Listed))
    try:
        with Client(member.gateway_url, key, timeout_s=_FACTS_TIMEOUT_S) as client:
            told = client.run(call).nemo
    except GatewayError:
        told = {}
    return ModelFacts(
        context_tokens=_number(told.get("context_tokens")),
        max_output_tokens=_number(told.get("max_output_tokens")),
        vision=_flag(told.get("vision"), usual=bool(_SEES.match(model))),
        function_calling=_flag(told.get("function_calling")),
        json_output=_flag(told.get("json_output")),
        structured_output=_flag(told.get("structured_output")),
        input_nanos_per_million=_number(told.get("input_nanos_per_million")),
        output_nanos_per_million=_number(told.get("output_nanos_per_million")),
    )


def _flag(value: object, *, usual: bool = True) -> bool:
    return value if isinstance(value, bool) else usual


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# --- frameworks and their versions ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A distribution that an adapter works with: the range it knows, and what was found (None: not installed)."""

    distribution: str
    wanted: str
    found: str | None

    @property
    def fits(self) -> bool:
        """Whether a version that the adapter knows is installed."""
        try:
            return self.found is not None and fits(self.found, self.wanted)
        except ValueError:
            return False


def check_versions(adapter: str, wanted: Mapping[str, str]) -> None:
    """Say whether every distribution is installed in the range that the adapter knows.

    Raises AdapterError with what is installed, what is needed, and the command that installs it.
    """
    looked_at = [_framework(distribution, range_) for distribution, range_ in wanted.items()]
    lacking = [each for each in looked_at if not each.fits]
    if not lacking:
        return
    found = ", ".join(
        f"{each.distribution} {each.found}" if each.found else f"no {each.distribution}" for each in lacking
    )
    needed = " and ".join(f"{each.distribution} {each.wanted}" for each in lacking)
    command = " ".join(f"'{each.distribution}{each.wanted}'" for each in lacking)
    raise AdapterError(f"{adapter} needs {needed}; installed: {found}. Run: pip install {command}")


def switch_off(environ_defaults: Mapping[str, str]) -> None:
    """Set variables that keep a framework from calling home, unless the user has set them."""
    for name, value in environ_defaults.items():
        os.environ.setdefault(name, value)


def _framework(distribution: str, wanted: str) -> Framework:
    try:
        found: str | None = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        found = None
    return Framework(distribution=distribution, wanted=wanted, found=found)


# --- adapters -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledAdapter:
    """An adapter found by its entry point. `problem` says why its module could not be loaded, else None.

    `frameworks` are the distributions it can work with; where there are several it may need but one of them.
    """

    name: str
    module: str
    distribution: str | None
    version: str | None
    frameworks: tuple[Framework, ...] = ()
    problem: str | None = None


def installed() -> list[InstalledAdapter]:
    """Return the adapters that are installed, by name. Loads their modules, which load no framework."""
    points = importlib.metadata.entry_points(group=GROUP)
    return [_adapter(points[name]) for name in sorted(points.names)]


def _adapter(point: importlib.metadata.EntryPoint) -> InstalledAdapter:
    found = InstalledAdapter(
        name=point.name,
        module=point.value,
        distribution=point.dist.name if point.dist is not None else None,
        version=point.dist.version if point.dist is not None else None,
    )
    try:
        wanted: Mapping[str, str] = importlib.import_module(point.module).FRAMEWORK
        frameworks = tuple(_framework(str(name), str(range_)) for name, range_ in wanted.items())
    except Exception as exc:  # noqa: BLE001 - whatever is wrong with one adapter, the others are told about
        return replace(found, problem=f"{type(exc).__name__}: {exc}")
    return replace(found, frameworks=frameworks)
