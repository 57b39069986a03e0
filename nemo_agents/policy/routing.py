"""Which deployments can serve a model name, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from nemo_agents.errors import Code
from nemo_agents.groups import FallbackOn, ModelGroup, Strategy
from nemo_agents.policy.refusal import Refusal

__all__ = [
    "SANDBOX",
    "Deployment",
    "Options",
    "Target",
    "allowed",
    "by_group",
    "configured_deployments",
    "duplicate_in",
    "fallback_on",
    "group_in",
    "names_of",
    "options_of",
    "resolve",
]

SANDBOX: Final = "sandbox"
"""The built-in provider that needs no credentials; `sandbox/<model>` addresses it."""

_NO_KEYS: Final[Mapping[str, str]] = {}
_NEXT_MAY_SUCCEED: Final = frozenset({408, 409, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the deployments of a model group are chosen from, and what a failure may lead to.

    `retries` None leaves it to the gateway's setting, for a group of one deployment; others fall back instead.
    """

    strategy: Strategy = "order"
    retries: int | None = None
    fallback_on: tuple[FallbackOn, ...] = ()


_USUAL: Final = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One deployment of a model group; `fleet` None: a group of every fleet. Lower `order` (its tier) is tried first.

    `context_tokens` is how long a prompt may be, None where nobody said. `options` are the group's: all its
    deployments say the same, and the first one counts. `applied` is provisioning's mark, which means nothing here.
    """

    deployment_id: str
    fleet: str | None
    group: str
    model: str  # provider/model
    order: int = 0
    weight: int = 1
    context_tokens: int | None = None
    options: Options = _USUAL
    applied: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place to send a request to, in the provider's own name for the model.

    For the sandbox as stand-in `model` is `provider/model`, what it stands for. `deployment` is the id of the
    deployment in its group, or `provider/model` where the model was asked for by its own name.
    """

    provider: str
    model: str
    deployment: str = ""
    order: int = 0
    weight: int = 1
    context_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.deployment:
            object.__setattr__(self, "deployment", f"{self.provider}/{self.model}")


@dataclass(frozen=True, slots=True)
class _Missing:
    """Why a name leads nowhere, as a sentence."""

    why: str


def resolve(
    asked: str,
    *,
    groups: Mapping[str, Sequence[Deployment]],
    provider_of: Callable[[str], str | None],
    available: frozenset[str],
    stand_in: str | None,
    key_env_of: Mapping[str, str] = _NO_KEYS,
) -> tuple[Target, ...] | Refusal:
    """Return where a request may go, in the order to try; a refusal when there is no such place.

    `asked` is a model group, `provider/model`, or a model's bare name whose provider `provider_of` knows.
    `available` are the providers that can be called. A provider that is not is replaced by `stand_in` (the
    sandbox) where there is one, else skipped. `key_env_of` names the environment variable of a provider's
    key, for the message alone.
    """
    deployments = groups.get(asked)
    if deployments is None:
        place = _place(asked, provider_of, available, stand_in, key_env_of)
        if isinstance(place, _Missing):
            return _not_found(asked, [place.why], group=False)
        return _by_name(*place)
    targets: list[Target] = []
    missing: list[str] = []
    for one in sorted(deployments, key=lambda deployment: deployment.order):
        place = _place(one.model, provider_of, available, stand_in, key_env_of)
        if isinstance(place, _Missing):
            missing.append(place.why)
            continue
        targets.append(
            Target(
                provider=place[0],
                model=place[1],
                deployment=one.deployment_id,
                order=one.order,
                weight=one.weight,
                context_tokens=one.context_tokens,
            )
        )
    return tuple(targets) or _not_found(asked, missing, group=True)


@lru_cache(maxsize=1024)
def _by_name(provider: str, model: str) -> tuple[Target, ...]:
    """Return where a model is asked for by its own name: the same value each time, which is then told by identity."""
    return (Target(provider=provider, model=model),)


def configured_deployments(groups: Iterable[ModelGroup]) -> tuple[Deployment, ...]:
    """Return the deployments of groups that are declared for every fleet, in their order."""
    return tuple(
        Deployment(
            deployment_id=f"config/{group.name}/{n}",
            fleet=None,
            group=group.name,
            model=one.model,
            order=one.tier or 0,
            weight=one.weight,
            context_tokens=one.context_tokens,
            options=Options(strategy=group.strategy, retries=group.retries, fallback_on=group.fallback_on),
        )
        for group in groups
        for n, one in enumerate(group.deployments, start=1)
    )


def by_group(deployments: Iterable[Deployment]) -> dict[str, list[Deployment]]:
    """Return deployments by the name of their group, in the order in which they come."""
    found: dict[str, list[Deployment]] = {}
    for one in deployments:
        found.setdefault(one.group, []).append(one)
    return found


def options_of(deployments: Sequence[Deployment] | None) -> Options:
    """Return the options of a group by its deployments, in their order; the usual ones for a model of its own name."""
    return deployments[0].options if deployments else _USUAL


def group_in(wanted: Deployment, others: Iterable[Deployment]) -> str | None:
    """Return the group that a deployment would make a group hold, itself or another one; None where it holds none.

    A group holds models only. `others` are all deployments that there are; those of other fleets do not count.
    """
    if wanted.model == wanted.group:
        return wanted.group
    for other in others:
        if None in (wanted.fleet, other.fleet) or other.fleet == wanted.fleet:
            if other.group == wanted.model:
                return other.group
            if other.model == wanted.group and other.deployment_id != wanted.deployment_id:
                return wanted.group
    return None


def duplicate_in(wanted: Deployment, others: Iterable[Deployment]) -> str | None:
    """Return the id of the deployment that has the same model in the same group already; None where there is none."""
    for other in others:
        same = (other.fleet, other.group, other.model) == (wanted.fleet, wanted.group, wanted.model)
        if same and other.deployment_id != wanted.deployment_id:
            return other.deployment_id
    return None


def _place(
    model: str,
    provider_of: Callable[[str], str | None],
    available: frozenset[str],
    stand_in: str | None,
    key_env_of: Mapping[str, str],
) -> tuple[str, str] | _Missing:
    provider, slash, name = model.partition("/")
    if not slash:
        known = provider_of(model)
        if known is None:
            return _Missing(f"no model group and no known model has the name {_shown(model)}")
        provider, name = known, model
    if not name or not provider:
        return _Missing(f"{_shown(model)} is not of the form provider/model")
    if "*" in model:
        return _Missing(f"{_shown(model)} is a pattern and no model")
    if provider in available:
        return provider, name
    if stand_in is not None:
        return stand_in, name if provider == stand_in else f"{provider}/{name}"
    if provider in key_env_of:
        return _Missing(f"provider {provider} has no credentials: set {key_env_of[provider]}")
    return _Missing(
        f"provider {_shown(provider)} is not configured: add [providers.{_shown(provider)}] with its "
        f"base_url to the gateway's configuration"
    )


def _not_found(asked: str, missing: Sequence[str], *, group: bool) -> Refusal:
    shown = _shown(asked)
    reasons = "; ".join(dict.fromkeys(missing))
    if not group:
        message = f"The model {shown} cannot be served: {reasons}."
    elif missing:
        message = f"No deployment of the model group {shown} can be used: {reasons}."
    else:
        message = f"The model group {shown} has no deployments. Add one and provision again."
    return Refusal(status=404, code=Code.MODEL_NOT_FOUND, message=message, param="model")


def _shown(name: str) -> str:
    """Return a name from a request as an error may repeat it: printable and not long."""
    text = "".join(character if character.isprintable() else "?" for character in name[:100])
    return text if len(name) <= 100 else text + "…"


def allowed(
    asked: str,
    allow_list: Sequence[str],
    *,
    provider_of: Callable[[str], str | None] | None = None,
    groups: Container[str] = (),
) -> bool:
    """Say whether a model or group may be asked for; an empty list allows every one, as LiteLLM's does.

    An entry is an exact name, the same model with or without its provider, or a beginning followed by `*`.
    With `provider_of` a bare name, asked for or in the list, means the model of the provider that it goes to: it
    matches `provider/*`, and not the same name at another provider, which may be another model at another price.
    `groups` are the names of model groups. One that is a model's name as well means the group: whoever may ask for it
    may not ask for the model behind the group's back, and neither the other way round.
    """
    if not allow_list:
        return True
    if not asked:
        return False
    if asked in allow_list:
        return True
    names = names_of(asked, provider_of=provider_of, groups=groups)
    return any(_matches(names, entry, strict=provider_of is not None) for entry in allow_list)


def names_of(
    asked: str, *, provider_of: Callable[[str], str | None] | None, groups: Container[str] = ()
) -> tuple[str, ...]:
    """Return the names of what is asked for: that one, then the same model with its provider, or without.

    A model group has one name. Without `provider_of` every provider's model is taken for the one of its bare name.
    """
    if asked in groups:
        return (asked,)
    provider, slash, bare = asked.partition("/")
    if slash and provider and bare:
        if bare not in groups and (provider_of is None or provider_of(bare) == provider):
            return asked, bare
    elif provider_of is not None and (known := provider_of(asked)) is not None:
        return asked, f"{known}/{asked}"
    return (asked,)


def _matches(names: Sequence[str], entry: str, *, strict: bool) -> bool:
    """`names` is what was asked for, then the same model named otherwise: with its provider, or without."""
    if entry == "*":
        return True
    if entry.endswith("*"):
        return any(name.startswith(entry[:-1]) for name in names)
    if entry in names:
        return True
    _, slash, model = entry.partition("/")
    return not strict and bool(slash) and model == names[0] and "/" not in model


def fallback_on(status: int | None) -> bool:
    """Say whether an attempt that ended so may be followed by one at the next target.

    `status` is the provider's HTTP status, None when there was none: not connected, or timed out. A 400, 401, 403
    or 404 is about the request or its credentials, and says the same thing everywhere or hides a mistake in the
    configuration. Nobody asks once the client has seen any output.
    """
    return status is None or status in _NEXT_MAY_SUCCEED or status >= 500
