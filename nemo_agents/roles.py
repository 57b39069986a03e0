"""Declarations that validate themselves: roles, model groups and the fleet that holds them.

Every constructor accepts what people write (`"$20/day"`, `"100k"`, lists) and stores one normal form, so
that two declarations that mean the same compare equal. What cannot be meant raises DeclarationError with the
field's path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, TypeVar

from nemo_agents.checks import items, names_of, put, refuse_twice, slug
from nemo_agents.durations import period_order
from nemo_agents.errors import DeclarationError
from nemo_agents.groups import Deployment, ModelGroup, check_groups
from nemo_agents.rules import (
    PERIODS,
    RATES,
    Budget,
    Loop,
    RateLimit,
    budgets_of,
    cache_ttl,
    did_you_mean,
    format_count,
    parse_count,
    request_price,
    shadow_of,
)

__all__ = [
    "BUILTIN_GUARDRAILS",
    "PERIODS",
    "AgentRole",
    "Budget",
    "Deployment",
    "Exposure",
    "FleetDeclaration",
    "Guardrail",
    "Loop",
    "ModelGroup",
    "RateLimit",
    "did_you_mean",
    "format_count",
    "parse_count",
]

BUILTIN_GUARDRAILS: Final = ("pii-filter", "prompt-injection-detect")

_USUAL_LOOP: Final = Loop()

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, init=False)
class Guardrail:
    """A named check on requests and answers. The one mode that can be declared now is `enforce`."""

    name: str
    mode: Literal["enforce"]

    def __init__(self, name: str, mode: str = "enforce") -> None:
        if not isinstance(name, str) or name not in BUILTIN_GUARDRAILS:
            raise DeclarationError(
                "is not a guardrail of the gateway",
                field="guardrails",
                value=name,
                remedy=did_you_mean(str(name), BUILTIN_GUARDRAILS, "The guardrails are"),
            )
        if mode != "enforce":
            raise DeclarationError(
                "is not a mode that can be declared",
                field=f"guardrails[{name}].mode",
                value=mode,
                remedy='Use mode="enforce", or leave the guardrail out.',
            )
        put(self, "name", name)
        put(self, "mode", mode)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, init=False)
class AgentRole:
    """A kind of agent: its models, how fast and for how much it may call them, its guardrails and tools.

    `models` are models or model groups of the fleet; the first is the role's usual one. `budget=` takes one budget or
    a list of them, which `budgets` has in their normal order. `shadow` names the rates (`rpm`, `tpm`, `max_parallel`)
    that record and never refuse; `limits=RateLimit(...)` says rates and mode at once. `model_limits` are rates of
    single models, below the role's own. `loop` says what a loop is (None: nothing is). `price_per_request_nanos` is
    what a request costs at models whose price is not known; `price_per_request=` takes it in dollars. `cache_ttl_s` is
    for how many seconds the same request gets the same answer without a provider being asked (None: never); `cache=`
    takes it as a time, too: `cache="10m"`. `tools` None allows any tool, a list only those. The order of guardrails is
    the order in which they run.
    """

    name: str
    models: tuple[str, ...]
    rpm: int | None
    tpm: int | None
    max_parallel: int | None
    shadow: tuple[str, ...]
    model_limits: tuple[tuple[str, RateLimit], ...]
    budgets: tuple[Budget, ...]
    loop: Loop | None
    price_per_request_nanos: int | None
    cache_ttl_s: int | None
    guardrails: tuple[Guardrail, ...]
    tools: tuple[str, ...] | None
    description: str

    def __init__(
        self,
        name: str,
        *,
        models: Sequence[str],
        rpm: int | str | None = None,
        tpm: int | str | None = None,
        max_parallel: int | str | None = None,
        limits: RateLimit | None = None,
        shadow: Iterable[str] = (),
        model_limits: Mapping[str, RateLimit] | None = None,
        budget: Budget | str | Sequence[Budget | str] | None = None,
        loop: Loop | Literal["off"] | None = _USUAL_LOOP,
        price_per_request: str | Decimal | int | None = None,
        cache: str | int | None = None,
        guardrails: Sequence[Guardrail | str] = (),
        tools: Sequence[str] | None = None,
        description: str = "",
    ) -> None:
        put(self, "name", slug(name, "roles.name"))
        at = f"roles[{name}]"
        put(self, "models", names_of(models, f"{at}.models", what="model", may_be_empty=False))
        counts = _limits({"rpm": rpm, "tpm": tpm, "max_parallel": max_parallel}, limits, at)
        for field, count in counts.items():
            put(self, field, count)
        put(self, "shadow", _shadow(shadow, counts, limits, at))
        put(self, "model_limits", _model_limits(model_limits, self.models, at))
        put(self, "budgets", budgets_of(budget, at))
        put(self, "loop", _loop(loop, at))
        put(self, "price_per_request_nanos", request_price(price_per_request, f"{at}.price_per_request"))
        put(self, "cache_ttl_s", cache_ttl(cache, f"{at}.cache"))
        put(self, "guardrails", _guardrails(guardrails, at))
        # A tool list is a set: its order means nothing, so the normal form has one order.
        named = None if tools is None else names_of(tools, f"{at}.tools", what="tool", may_be_empty=True)
        put(self, "tools", None if named is None else tuple(sorted(named)))
        if not isinstance(description, str):
            raise DeclarationError(
                "is not a text",
                field=f"{at}.description",
                value=description,
                remedy="Write a sentence, or leave it out.",
            )
        put(self, "description", description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """The most that can be spent in one period: the sum of the roles' budgets, and the fleet's own.

    Budgets in shadow hold nothing and do not count. `fleet_nanos` is None when the fleet has no budget for this
    period. `of` names the roles of that sum, `elsewhere` those that only budgets of other periods hold, `uncapped`
    those that none of their own holds, so that only the fleet's does.
    """

    period: str
    roles_nanos: int
    fleet_nanos: int | None
    elsewhere: tuple[str, ...] = ()
    uncapped: tuple[str, ...] = ()
    of: tuple[str, ...] = ()


@dataclass(frozen=True, init=False, eq=False)
class FleetDeclaration:
    """A named set of roles with model groups, and with budgets, limits and guardrails above the roles' own.

    Declarations are equal when they mean the same: the order of roles and of groups does not count, nor does
    the class, so that a subclass which adds behaviour equals the plain declaration.
    """

    __slots__ = ("budgets", "guardrails", "max_parallel", "models", "name", "roles", "rpm", "shadow", "tpm")

    name: str
    roles: tuple[AgentRole, ...]
    models: tuple[ModelGroup, ...]
    budgets: tuple[Budget, ...]
    rpm: int | None
    tpm: int | None
    max_parallel: int | None
    shadow: tuple[str, ...]
    guardrails: tuple[Guardrail, ...]

    def __init__(
        self,
        name: str,
        *,
        roles: Sequence[AgentRole],
        models: Sequence[ModelGroup] = (),
        budget: Budget | str | Sequence[Budget | str] | None = None,
        rpm: int | str | None = None,
        tpm: int | str | None = None,
        max_parallel: int | str | None = None,
        shadow: Iterable[str] = (),
        guardrails: Sequence[Guardrail | str] = (),
    ) -> None:
        put(self, "name", slug(name, "fleet.name"))
        put(self, "roles", _members(roles, AgentRole, "roles"))
        put(self, "models", _members(models, ModelGroup, "models"))
        if not self.roles:
            raise DeclarationError(
                "declares no role",
                field="roles",
                value=roles,
                remedy="Declare at least one AgentRole; `nemo-agents destroy` removes a fleet.",
            )
        check_groups(self.models)
        put(self, "budgets", budgets_of(budget, "fleet"))
        counts = _limits({"rpm": rpm, "tpm": tpm, "max_parallel": max_parallel}, None, "fleet")
        for field, count in counts.items():
            put(self, field, count)
        put(self, "shadow", shadow_of(shadow, counts, "fleet"))
        put(self, "guardrails", _guardrails(guardrails, "fleet"))

    def __iter__(self) -> Iterator[AgentRole]:
        return iter(self.roles)

    def __eq__(self, other: object) -> bool:
        return self._meaning() == other._meaning() if isinstance(other, FleetDeclaration) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._meaning())

    def role(self, name: str) -> AgentRole:
        """Return the role of this name. Raises DeclarationError when the fleet has none."""
        for role in self.roles:
            if role.name == name:
                return role
        raise DeclarationError(
            f"the fleet {self.name} has no such role",
            field="roles",
            value=name,
            remedy=did_you_mean(str(name), (role.name for role in self.roles), "Its roles are"),
        )

    def effective_guardrails(self, role: AgentRole) -> tuple[Guardrail, ...]:
        """Return the guardrails that a role's calls pass: the fleet's, then the role's own, each once."""
        return tuple(dict.fromkeys((*self.guardrails, *role.guardrails)))

    def worst_case(self) -> tuple[Exposure, ...]:
        """Return the most that the fleet can spend, one entry per period that an enforced budget speaks of.

        Where a scope has two budgets of one period, in different time zones, the lower one counts.
        """
        held = {role.name: _enforced(role.budgets) for role in self.roles}
        of_fleet = _enforced(self.budgets)
        uncapped = tuple(name for name, by_period in held.items() if not by_period)
        periods = sorted({period for found in (*held.values(), of_fleet) for period in found}, key=_period_key)
        return tuple(
            Exposure(
                period=period,
                roles_nanos=sum(found[period] for found in held.values() if period in found),
                fleet_nanos=of_fleet.get(period),
                elsewhere=tuple(name for name, found in held.items() if found and period not in found),
                uncapped=uncapped,
                of=tuple(name for name, found in held.items() if period in found),
            )
            for period in periods
        )

    def in_shadow(self) -> tuple[str, ...]:
        """Return the budgets that hold nothing, each with whose it is: `fleet $100/month`, `writer $5/day`."""
        owners = [("fleet", self.budgets), *((role.name, role.budgets) for role in self.roles)]
        return tuple(
            f"{name} {str(budget).replace(' (shadow)', '').replace(', shadow)', ')')}"
            for name, budgets in owners
            for budget in budgets
            if budget.mode == "shadow"
        )

    def _meaning(self) -> tuple[object, ...]:
        roles, models = frozenset(self.roles), frozenset(self.models)
        rates = (self.rpm, self.tpm, self.max_parallel, self.shadow)
        return (self.name, roles, models, self.budgets, rates, self.guardrails)


def _enforced(budgets: Iterable[Budget]) -> dict[str, int]:
    """Return the amount that binds in each period."""
    found: dict[str, int] = {}
    for budget in budgets:
        if budget.mode == "enforce":
            found[budget.period] = min(budget.amount_nanos, found.get(budget.period, budget.amount_nanos))
    return found


def _period_key(name: str) -> tuple[float, str]:
    return period_order(name), name


def _members(value: object, kind: type[_T], field: str) -> tuple[_T, ...]:
    members = items(value, field)
    for member in members:
        if not isinstance(member, kind):
            remedy = f"Put {kind.__name__}(...) values in the list."
            raise DeclarationError(f"is not {kind.__name__}", field=field, value=member, remedy=remedy)
    refuse_twice([member.name for member in members], field, "role" if field == "roles" else "model group")
    return tuple(members)


def _limits(given: Mapping[str, object], limits: object, at: str) -> dict[str, int | None]:
    if limits is not None and not isinstance(limits, RateLimit):
        remedy = "Write limits=RateLimit(rpm=..., tpm=...)."
        raise DeclarationError("is not a RateLimit", field=f"{at}.limits", value=limits, remedy=remedy)
    found: dict[str, int | None] = {}
    for field, value in given.items():
        within: int | None = getattr(limits, field, None)
        if value is not None and within is not None:
            raise DeclarationError(
                "is given twice",
                field=f"{at}.{field}",
                value=value,
                remedy=f"Keep {field}= or limits=, not both.",
            )
        found[field] = within if value is None else parse_count(value, field=f"{at}.{field}")
    return found


def _shadow(value: object, counts: dict[str, int | None], limits: RateLimit | None, at: str) -> tuple[str, ...]:
    named = shadow_of(value, counts, at)
    if limits is None or limits.mode == "enforce":
        return named
    return tuple(rate for rate in RATES if rate in named or getattr(limits, rate) is not None)


def _model_limits(value: object, models: tuple[str, ...], at: str) -> tuple[tuple[str, RateLimit], ...]:
    if value is None:
        return ()
    field, remedy = f"{at}.model_limits", 'Write model_limits={"gpt-4o": RateLimit(rpm=10)}.'
    if not isinstance(value, Mapping):
        raise DeclarationError("is not a mapping of models to limits", field=field, value=value, remedy=remedy)
    for model, limit in value.items():
        if not isinstance(limit, RateLimit):
            raise DeclarationError("is not a RateLimit", field=f"{field}[{model}]", value=limit, remedy=remedy)
        if (limit.rpm, limit.tpm, limit.max_parallel) == (None, None, None):
            raise DeclarationError("limits nothing", field=f"{field}[{model}]", value=limit, remedy=remedy)
        if not isinstance(model, str) or not _may_use(model, models):
            remedy = did_you_mean(str(model), models, "Its models are")
            raise DeclarationError("is not a model of the role", field=field, value=model, remedy=remedy)
    return tuple(sorted(value.items()))


def _may_use(model: str, models: tuple[str, ...]) -> bool:
    return any(model == entry or (entry.endswith("*") and model.startswith(entry[:-1])) for entry in models)


def _loop(value: object, at: str) -> Loop | None:
    if value is None or value == "off":
        return None
    if not isinstance(value, Loop):
        remedy = 'Write loop=Loop(repeats=8, within_s=60, mode="enforce"), or loop="off".'
        raise DeclarationError("is not a Loop", field=f"{at}.loop", value=value, remedy=remedy)
    return value


def _guardrails(value: object, at: str) -> tuple[Guardrail, ...]:
    found: list[Guardrail] = []
    for item in items(value, f"{at}.guardrails"):
        try:
            found.append(item if isinstance(item, Guardrail) else Guardrail(item))
        except DeclarationError as error:
            raise _below(error, at) from None
    refuse_twice([guardrail.name for guardrail in found], f"{at}.guardrails", "guardrail")
    return tuple(found)


def _below(error: DeclarationError, at: str) -> DeclarationError:
    return DeclarationError(error.problem, field=f"{at}.{error.field}", value=error.value, remedy=error.remedy)
