"""Model groups as they are declared: a model name of the fleet's own, and the deployments behind it.

The constructors accept what people write and store one normal form, so that two declarations that mean the same
compare equal. What cannot be meant raises DeclarationError with the field's path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from nemo_agents.checks import items, put, refuse_twice, slug
from nemo_agents.errors import DeclarationError
from nemo_agents.rules import did_you_mean, parse_count

__all__ = [
    "FALLBACKS",
    "RETRIES_MAX",
    "STRATEGIES",
    "TIER_MAX",
    "WEIGHT_MAX",
    "Deployment",
    "FallbackOn",
    "ModelGroup",
    "Strategy",
    "check_groups",
    "group_from_table",
]

Strategy = Literal["order", "weighted", "least-busy", "lowest-latency", "lowest-cost"]
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
FallbackOn = Literal["context-window", "content-filter"]
FALLBACKS: Final[tuple[FallbackOn, ...]] = get_args(FallbackOn)
TIER_MAX: Final = 9_999
WEIGHT_MAX: Final = 10_000
RETRIES_MAX: Final = 10

_GROUP_KEYS: Final = ("name", "models", "strategy", "retries", "fallback_on")
_DEPLOYMENT_KEYS: Final = ("model", "tier", "weight", "context_tokens")


@dataclass(frozen=True, slots=True, init=False)
class Deployment:
    """A model of a group: `Deployment("openai/o3-mini", tier=0, weight=3, context_tokens=200_000)`.

    `model` is `provider/model`, or a bare model name whose provider the gateway knows. Those of a lower `tier` are
    asked first; None leaves that to the group. `weight` is its share of the calls under the strategies `weighted` and
    `least-busy`. `context_tokens` is how long a prompt may be, in tokens; None is what the table of prices knows.
    """

    model: str
    tier: int | None
    weight: int
    context_tokens: int | None

    def __init__(
        self, model: str, *, tier: int | None = None, weight: int = 1, context_tokens: int | str | None = None
    ) -> None:
        if not isinstance(model, str) or not model.strip() or model != model.strip() or "*" in model:
            remedy = 'Write it as a text: "openai/gpt-4o-mini".'
            raise DeclarationError("is not the name of a model", field="deployment.model", value=model, remedy=remedy)
        at = f"deployment[{model}]"
        put(self, "model", model)
        put(self, "tier", None if tier is None else _whole(tier, f"{at}.tier", 0, TIER_MAX))
        put(self, "weight", _whole(weight, f"{at}.weight", 1, WEIGHT_MAX))
        field = f"{at}.context_tokens"
        put(self, "context_tokens", None if context_tokens is None else parse_count(context_tokens, field=field))


@dataclass(frozen=True, slots=True, init=False)
class ModelGroup:
    """A model name of the fleet's own and the models behind it, each a text or a Deployment.

    Under the strategy `order`, the usual one, they are asked one after the other. The others, `weighted`, `least-busy`,
    `lowest-latency` and `lowest-cost`, choose among those of one tier, and all are of one tier unless tiers are given.
    `retries` is how often a deployment is asked again before the next tier is (None: the gateway's setting for a group
    of one, not at all for others, where the next deployment is the retry). `fallback_on` are refusals of the request
    after which the next one is asked too: `context-window` and `content-filter`.
    """

    name: str
    deployments: tuple[Deployment, ...]
    strategy: Strategy
    retries: int | None
    fallback_on: tuple[FallbackOn, ...]

    def __init__(
        self,
        name: str,
        models: Sequence[str | Deployment],
        *,
        strategy: str = "order",
        retries: int | None = None,
        fallback_on: Iterable[str] = (),
    ) -> None:
        put(self, "name", slug(name, "models.name"))
        at = f"models[{name}]"
        put(self, "strategy", _one_of(strategy, STRATEGIES, f"{at}.strategy", "strategy", "The strategies are"))
        put(self, "deployments", _in_normal_form(_members(models, name, f"{at}.models"), self.strategy))
        field = f"{at}.retries"
        put(self, "retries", None if retries is None else _whole(retries, field, 0, RETRIES_MAX))
        put(self, "fallback_on", _fallbacks(fallback_on, f"{at}.fallback_on"))

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, in the order of the deployments."""
        return tuple(deployment.model for deployment in self.deployments)


def check_groups(groups: Iterable[ModelGroup]) -> None:
    """Refuse a group that holds a group, whether that closes a circle or not. Raises DeclarationError."""
    found = tuple(groups)
    names = {group.name for group in found}
    for group in found:
        for model in group.models:
            if model in names:
                raise _holds_a_group(model, f"models[{group.name}].models")


def group_from_table(name: object, table: Mapping[str, Any]) -> ModelGroup:
    """Return the group that a TOML table says, without its name. Raises DeclarationError."""
    at = f"models[{name}]"
    _known(table, _GROUP_KEYS, at)
    if "models" not in table:
        raise DeclarationError("is missing", field=f"{at}.models", value=None, remedy="Add models = [...] to it.")
    fields = {key: value for key, value in table.items() if key not in ("name", "models")}
    models = table["models"]
    if isinstance(models, list):
        models = [_deployment(item, n, at) for n, item in enumerate(models)]
    return ModelGroup(cast("str", name), models, **fields)


def _deployment(item: Any, n: int, at: str) -> Any:
    if not isinstance(item, Mapping):
        return item
    field = f"{at}.models[{n}]"
    _known(item, _DEPLOYMENT_KEYS, field)
    if "model" not in item:
        raise DeclarationError("is missing", field=f"{field}.model", value=None, remedy="Add model = ... to it.")
    try:
        return Deployment(**item)
    except DeclarationError as error:
        name = f"{field}.{error.field.rpartition('.')[2]}"
        raise DeclarationError(error.problem, field=name, value=error.value, remedy=error.remedy) from None


def _known(table: Mapping[str, Any], known: tuple[str, ...], at: str) -> None:
    for key in table:
        if key not in known:
            remedy = did_you_mean(key, known, "Known are")
            raise DeclarationError("is not a known key", field=f"{at}.{key}", value=key, remedy=remedy)


def _members(models: object, group: str, field: str) -> list[Deployment]:
    listed = items(models, field)
    if not listed:
        raise DeclarationError("is empty", field=field, value=models, remedy="Name at least one model.")
    found: list[Deployment] = []
    for item in listed:
        if not isinstance(item, (str, Deployment)):
            remedy = 'Write "openai/gpt-4o-mini", or Deployment("openai/gpt-4o-mini", weight=3).'
            raise DeclarationError("is neither a model nor a Deployment", field=field, value=item, remedy=remedy)
        try:
            found.append(item if isinstance(item, Deployment) else Deployment(item))
        except DeclarationError as error:
            raise DeclarationError(error.problem, field=field, value=error.value, remedy=error.remedy) from None
    refuse_twice([one.model for one in found], field, "model")
    if any(one.model == group for one in found):
        raise _holds_a_group(group, field)
    return found


def _holds_a_group(model: str, field: str) -> DeclarationError:
    return DeclarationError(
        "is a model group, and a group holds models only",
        field=field,
        value=model,
        remedy="List the models themselves, as provider/model.",
    )


def _in_normal_form(members: list[Deployment], strategy: Strategy) -> tuple[Deployment, ...]:
    """Return the deployments with tiers from 0 without gaps, in the one order that means the same.

    One that says no tier is of the first. Under `order` each is a tier of its own, in the order of tiers and then of
    the list. Under the other strategies the order within a tier means nothing.
    """
    if strategy == "order":
        ordered = sorted(members, key=lambda one: one.tier or 0)
        return tuple(_in_tier(one, n) for n, one in enumerate(ordered))
    tiers = sorted({one.tier or 0 for one in members})
    ranked = [_in_tier(one, tiers.index(one.tier or 0)) for one in members]
    return tuple(sorted(ranked, key=lambda one: (one.tier, one.model)))


def _in_tier(deployment: Deployment, tier: int) -> Deployment:
    """Return a deployment in another tier."""
    return Deployment(deployment.model, tier=tier, weight=deployment.weight, context_tokens=deployment.context_tokens)


def _fallbacks(value: object, field: str) -> tuple[FallbackOn, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        remedy = f'Write a list: fallback_on=["{FALLBACKS[0]}"].'
        raise DeclarationError("is not a list", field=field, value=value, remedy=remedy)
    named = {_one_of(item, FALLBACKS, field, "refusal to fall back on", "There are") for item in value}
    return tuple(one for one in FALLBACKS if one in named)


def _one_of(value: object, known: tuple[str, ...], field: str, what: str, lead: str) -> str:
    if isinstance(value, str) and value in known:
        return value
    article = "an" if what[0] in "aeiou" else "a"
    remedy = did_you_mean(str(value), known, lead)
    raise DeclarationError(f"is not {article} {what}", field=field, value=value, remedy=remedy)


def _whole(value: object, field: str, least: int, most: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    remedy = f"Write a whole number from {least} to {most}, or leave it out."
    raise DeclarationError("is not such a number", field=field, value=value, remedy=remedy)
