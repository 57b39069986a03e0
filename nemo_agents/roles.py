"""Declarations that validate themselves: roles, model groups and the fleet that holds them.

Every constructor accepts what people write (`"$20/day"`, `"100k"`, lists) and stores one normal form, so
that two declarations that mean the same compare equal. What cannot be meant raises DeclarationError with the
field's path.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar, cast

from nemo_agents.errors import DeclarationError
from nemo_agents.money import NANOS_PER_DOLLAR, parse_dollars

__all__ = [
    "BUILTIN_GUARDRAILS",
    "PERIODS",
    "AgentRole",
    "Budget",
    "Exposure",
    "FleetDeclaration",
    "Guardrail",
    "ModelGroup",
    "Period",
    "RateLimit",
    "did_you_mean",
    "format_count",
    "parse_count",
]

Period = Literal["day", "week", "month", "total"]
PERIODS: Final[tuple[Period, ...]] = ("day", "week", "month", "total")
BUILTIN_GUARDRAILS: Final = ("pii-filter", "prompt-injection-detect")

_SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_COUNT = re.compile(r"([0-9][0-9_,]*)(?:\.([0-9]+))?\s*([kKmM]?)")
_COUNT_MAX = 10**12
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}
_BUDGET_REMEDY = 'Write an amount and a period: "$20/day"; the periods are day, week, month and total.'
_COUNT_REMEDY = 'Write a whole number above 0 such as 120, "100k" or "1.5k", or leave it out for no limit.'

_T = TypeVar("_T")


def did_you_mean(word: str, known: Iterable[str], what: str) -> str:
    """Return the sentence that lists what is known, led by the closest match."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    lead = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{lead}{what}: {', '.join(names) or 'none'}."


def parse_count(value: object, *, field: str) -> int:
    """Return a positive whole number written as `120`, `"120"`, `"100k"`, `"1.5k"` or `"2m"`.

    Raises DeclarationError for anything else, zero and booleans included.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DeclarationError("is not a count", field=field, value=value, remedy=_COUNT_REMEDY)
    number = value if isinstance(value, int) else _count_from_text(value)
    if number is None or not 0 < number <= _COUNT_MAX:
        raise DeclarationError("is not a count", field=field, value=value, remedy=_COUNT_REMEDY)
    return number


def format_count(count: int) -> str:
    """Write a count as people do, without losing a digit: `100k`, `1.5k`, `2m`, `1234`."""
    for unit, scale in (("m", 1_000_000), ("k", 1_000)):
        if count >= scale and count % (scale // 10) == 0:
            whole, tenths = divmod(count // (scale // 10), 10)
            return f"{whole}.{tenths}{unit}" if tenths else f"{whole}{unit}"
    return str(count)


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Money per period: `Budget("$20/day")`, `Budget(amount="$20", period="day", alert_at=0.8)`.

    `amount_nanos` is in nanos; `period` is `day`, `week`, `month` or `total` (never starts anew, the
    default); `alert_at` is the fraction of the amount, above 0 and up to 1, past which the gateway warns.
    """

    amount_nanos: int
    period: Period
    alert_at: float

    def __init__(self, amount: str | int | Decimal, *, period: str | None = None, alert_at: float = 0.8) -> None:
        text_amount, text_period = _split_budget(amount)
        if period is not None and text_period is not None and period != text_period:
            raise DeclarationError(
                f"says two periods, {text_period} and {period}",
                field="budget",
                value=amount,
                remedy="Keep one of them.",
            )
        _set(self, "amount_nanos", _amount(text_amount))
        _set(self, "period", _period(period if period is not None else text_period))
        _set(self, "alert_at", _fraction(alert_at))

    @classmethod
    def of(cls, value: Budget | str | Decimal | int) -> Budget:
        """Return the budget that a text stands for; a budget stands for itself. Raises DeclarationError."""
        return value if isinstance(value, Budget) else cls(value)

    def __str__(self) -> str:
        return f"{_exact_dollars(self.amount_nanos)}/{self.period}"


@dataclass(frozen=True, slots=True, init=False)
class RateLimit:
    """Requests and tokens per minute, and requests at the same time; None does not limit."""

    rpm: int | None
    tpm: int | None
    max_parallel: int | None

    def __init__(
        self,
        *,
        rpm: int | str | None = None,
        tpm: int | str | None = None,
        max_parallel: int | str | None = None,
    ) -> None:
        _set(self, "rpm", _optional_count(rpm, "rpm"))
        _set(self, "tpm", _optional_count(tpm, "tpm"))
        _set(self, "max_parallel", _optional_count(max_parallel, "max_parallel"))


@dataclass(frozen=True, slots=True, init=False)
class ModelGroup:
    """A model name of the fleet's own and the models behind it, tried in this order.

    A model is `provider/model` or a bare model name whose provider the gateway knows.
    """

    name: str
    models: tuple[str, ...]

    def __init__(self, name: str, models: Sequence[str]) -> None:
        _set(self, "name", _slug(name, "models.name"))
        _set(self, "models", _names(models, f"models[{name}].models", what="model", may_be_empty=False))


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
        _set(self, "name", name)
        _set(self, "mode", mode)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, init=False)
class AgentRole:
    """A kind of agent: its models, how fast and for how much it may call them, its guardrails and tools.

    `models` are models or model groups of the fleet; the first is the role's usual one. `tools` None allows
    any tool, a list only those. The order of guardrails is the order in which they run.
    """

    name: str
    models: tuple[str, ...]
    rpm: int | None
    tpm: int | None
    max_parallel: int | None
    budget: Budget | None
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
        budget: Budget | str | None = None,
        guardrails: Sequence[Guardrail | str] = (),
        tools: Sequence[str] | None = None,
        description: str = "",
    ) -> None:
        _set(self, "name", _slug(name, "roles.name"))
        at = f"roles[{name}]"
        _set(self, "models", _names(models, f"{at}.models", what="model", may_be_empty=False))
        given = {"rpm": rpm, "tpm": tpm, "max_parallel": max_parallel}
        for field, count in _limits(given, limits, at).items():
            _set(self, field, count)
        _set(self, "budget", _budget(budget, at))
        _set(self, "guardrails", _guardrails(guardrails, at))
        # A tool list is a set: its order means nothing, so the normal form has one order.
        named = None if tools is None else _names(tools, f"{at}.tools", what="tool", may_be_empty=True)
        _set(self, "tools", None if named is None else tuple(sorted(named)))
        if not isinstance(description, str):
            raise DeclarationError(
                "is not a text",
                field=f"{at}.description",
                value=description,
                remedy="Write a sentence, or leave it out.",
            )
        _set(self, "description", description)

    @property
    def limits(self) -> RateLimit:
        """The role's rate limits as one value."""
        return RateLimit(rpm=self.rpm, tpm=self.tpm, max_parallel=self.max_parallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """The most that can be spent in one period: the sum of the roles' budgets, and the fleet's own.

    `fleet_nanos` is None when the fleet has no budget for this period. `uncapped` names the roles that have
    no budget at all, so that only the fleet's holds them.
    """

    period: Period
    roles_nanos: int
    fleet_nanos: int | None
    uncapped: tuple[str, ...] = ()


@dataclass(frozen=True, init=False, eq=False)
class FleetDeclaration:
    """A named set of roles with model groups, and with a budget, limits and guardrails above the roles' own.

    Declarations are equal when they mean the same: the order of roles and of groups does not count, nor does
    the class, so that a subclass which adds behaviour equals the plain declaration.
    """

    __slots__ = ("budget", "guardrails", "models", "name", "roles", "rpm", "tpm")

    name: str
    roles: tuple[AgentRole, ...]
    models: tuple[ModelGroup, ...]
    budget: Budget | None
    rpm: int | None
    tpm: int | None
    guardrails: tuple[Guardrail, ...]

    def __init__(
        self,
        name: str,
        *,
        roles: Sequence[AgentRole],
        models: Sequence[ModelGroup] = (),
        budget: Budget | str | None = None,
        rpm: int | str | None = None,
        tpm: int | str | None = None,
        guardrails: Sequence[Guardrail | str] = (),
    ) -> None:
        _set(self, "name", _slug(name, "fleet.name"))
        _set(self, "roles", _members(roles, AgentRole, "roles"))
        _set(self, "models", _members(models, ModelGroup, "models"))
        if not self.roles:
            raise DeclarationError(
                "declares no role",
                field="roles",
                value=roles,
                remedy="Declare at least one AgentRole; `nemo-agents destroy` removes a fleet.",
            )
        _check_groups(self.models)
        _set(self, "budget", _budget(budget, "fleet"))
        _set(self, "rpm", _optional_count(rpm, "fleet.rpm"))
        _set(self, "tpm", _optional_count(tpm, "fleet.tpm"))
        _set(self, "guardrails", _guardrails(guardrails, "fleet"))

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
        """Return the most that the fleet can spend, one entry per period that a budget speaks of."""
        uncapped = tuple(role.name for role in self.roles if role.budget is None)
        budgets = [role.budget for role in self.roles if role.budget is not None]
        found = []
        for period in PERIODS:
            by_roles = [budget.amount_nanos for budget in budgets if budget.period == period]
            by_fleet = self.budget.amount_nanos if self.budget and self.budget.period == period else None
            if by_roles or by_fleet is not None:
                found.append(
                    Exposure(period=period, roles_nanos=sum(by_roles), fleet_nanos=by_fleet, uncapped=uncapped)
                )
        return tuple(found)

    def _meaning(self) -> tuple[object, ...]:
        roles, models = frozenset(self.roles), frozenset(self.models)
        return (self.name, roles, models, self.budget, self.rpm, self.tpm, self.guardrails)


def _set(owner: object, field: str, value: object) -> None:
    object.__setattr__(owner, field, value)


def _count_from_text(text: str) -> int | None:
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        return None
    digits = match[1].replace("_", "").replace(",", "")
    scaled = Decimal(f"{digits}.{match[2] or 0}") * _SCALE[match[3].lower()]
    return int(scaled) if scaled == scaled.to_integral_value() else None


def _optional_count(value: object, field: str) -> int | None:
    return None if value is None else parse_count(value, field=field)


def _split_budget(value: object) -> tuple[str | int | Decimal, str | None]:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        problem = "is money as a float, which cannot be exact" if isinstance(value, float) else "is not a budget"
        raise DeclarationError(problem, field="budget", value=value, remedy=_BUDGET_REMEDY)
    if not isinstance(value, str):
        return value, None
    amount, slash, period = value.partition("/")
    return amount.strip(), period.strip() if slash else None


def _amount(value: str | int | Decimal) -> int:
    try:
        nanos = parse_dollars(value)
    except ValueError as error:
        raise DeclarationError(str(error), field="budget", value=value, remedy=_BUDGET_REMEDY) from None
    if nanos == 0:
        remedy = "Give it an amount above 0; to stop a role, `nemo-agents block` its key."
        raise DeclarationError("allows nothing", field="budget", value=value, remedy=remedy)
    return nanos


def _period(value: object) -> Period:
    if value is None:
        return "total"
    if value not in PERIODS:
        raise DeclarationError("is not a period", field="budget.period", value=value, remedy=_BUDGET_REMEDY)
    return value


def _fraction(value: object) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 < value <= 1
    if not fits:
        raise DeclarationError(
            "is not a fraction of the budget",
            field="budget.alert_at",
            value=value,
            remedy="Write a number above 0 and up to 1, such as 0.8.",
        )
    return float(cast("float", value))


def _exact_dollars(nanos: int) -> str:
    whole, rest = divmod(nanos, NANOS_PER_DOLLAR)
    digits = f"{rest:09d}".rstrip("0")
    return f"${whole:,}.{digits:0<2}" if digits else f"${whole:,}"


def _slug(value: object, field: str) -> str:
    if isinstance(value, str) and _SLUG.fullmatch(value):
        return value
    raise DeclarationError(
        "is not a name",
        field=field,
        value=value,
        remedy="A name is small letters, digits and hyphens, starts with a letter, and has 63 at most.",
    )


def _sequence(value: object, field: str) -> Sequence[Any]:
    # A text is a sequence of letters; nobody means that.
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DeclarationError("is not a list", field=field, value=value, remedy="Write a list: [...].")
    return value


def _names(value: object, field: str, *, what: str, may_be_empty: bool) -> tuple[str, ...]:
    names = _sequence(value, field)
    if not names and not may_be_empty:
        raise DeclarationError("is empty", field=field, value=value, remedy=f"Name at least one {what}.")
    for name in names:
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise DeclarationError(
                f"is not the name of a {what}",
                field=field,
                value=name,
                remedy=f"Write the {what}'s name as a text.",
            )
    _refuse_twice(names, field, what)
    return tuple(names)


def _refuse_twice(names: Sequence[str], field: str, what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DeclarationError(
                f"names the same {what} twice",
                field=field,
                value=name,
                remedy="Remove or rename one of the two.",
            )
        seen.add(name)


def _members(value: object, kind: type[_T], field: str) -> tuple[_T, ...]:
    members = _sequence(value, field)
    for member in members:
        if not isinstance(member, kind):
            remedy = f"Put {kind.__name__}(...) values in the list."
            raise DeclarationError(f"is not {kind.__name__}", field=field, value=member, remedy=remedy)
    _refuse_twice([member.name for member in members], field, "role" if field == "roles" else "model group")
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


def _budget(value: object, at: str) -> Budget | None:
    if value is None:
        return None
    try:
        return Budget.of(cast("Budget | str", value))
    except DeclarationError as error:
        raise _below(error, at) from None


def _guardrails(value: object, at: str) -> tuple[Guardrail, ...]:
    found: list[Guardrail] = []
    for item in _sequence(value, f"{at}.guardrails"):
        try:
            found.append(item if isinstance(item, Guardrail) else Guardrail(item))
        except DeclarationError as error:
            raise _below(error, at) from None
    _refuse_twice([guardrail.name for guardrail in found], f"{at}.guardrails", "guardrail")
    return tuple(found)


def _below(error: DeclarationError, at: str) -> DeclarationError:
    return DeclarationError(error.problem, field=f"{at}.{error.field}", value=error.value, remedy=error.remedy)


def _check_groups(groups: tuple[ModelGroup, ...]) -> None:
    names = {group.name for group in groups}
    for group in groups:
        for model in group.models:
            if model in names:
                raise DeclarationError(
                    "is a model group, and a group holds models only",
                    field=f"models[{group.name}].models",
                    value=model,
                    remedy="List the models themselves.",
                )
