"""Budgets, limits and loop rules as they travel: LiteLLM's fields, and `metadata.nemo` for what it has none for.

LiteLLM knows one budget of a key or team: `max_budget` with its `budget_duration`. That is the first enforced one,
and `tz` and `alert_at` in `metadata.nemo` belong to it. Every further budget, and every one in mode `shadow` (which
`max_budget` would enforce), is an entry of `metadata.nemo.budgets`. Dollars are JSON numbers, as in LiteLLM's fields.

Reading is strict about shapes and numbers; whether a duration and a time zone exist is what `check_budgets` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from nemo_agents.durations import UTC_NAME, follows_calendar, is_time_zone, period_name
from nemo_agents.money import nanos_from_wire, nanos_to_wire
from nemo_agents.policy.budgets import BudgetRule, LoopRule, Mode, ModelLimit
from nemo_agents.rules import BUDGETS_MAX, CACHE_TTL_S_MAX, LOOP_REPEATS_MAX, LOOP_WITHIN_S_MAX, RATES

__all__ = [
    "COUNT_MAX",
    "RATES",
    "RuleFault",
    "budget_facts",
    "cache_fact",
    "check_budgets",
    "first_budget",
    "loop_fact",
    "model_facts",
    "model_fields",
    "read_budgets",
    "read_cache_ttl_s",
    "read_loop",
    "read_max_parallel",
    "read_model_limits",
    "read_request_nanos",
    "read_shadow",
]

COUNT_MAX: Final = 10**12
_ENTRIES_MAX: Final = 100  # models with limits of their own
_NAME_MAX: Final = 256
_BUDGET_KEYS: Final = {"max_budget", "budget_duration", "tz", "alert_at", "mode"}
_LOOP_KEYS: Final = {"repeats", "within_s", "mode"}
_OFF: Final = "off"


class RuleFault(ValueError):  # noqa: N818 - a fault of a body, answered with 400
    """A field that cannot be meant: `field` is its path, the text what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"`{field}` {problem}")


# --- budgets ------------------------------------------------------------------------------------------------------
def first_budget(budgets: Sequence[BudgetRule]) -> BudgetRule | None:
    """Return the budget that LiteLLM's fields carry: the first, where it is enforced."""
    return budgets[0] if budgets and budgets[0].mode == "enforce" else None


def read_budgets(nanos: int | None, duration: str | None, nemo: Mapping[str, Any]) -> tuple[BudgetRule, ...]:
    """Return all budgets of a scope, that of LiteLLM's fields first. Raises RuleFault."""
    further = nemo.get("budgets") or ()
    if not isinstance(further, (list, tuple)) or len(further) >= BUDGETS_MAX:
        raise RuleFault("metadata.nemo.budgets", f"must be a list; a key or team has at most {BUDGETS_MAX} budgets.")
    rest = tuple(_budget(item, f"metadata.nemo.budgets[{n}]") for n, item in enumerate(further))
    tz, alert_at = _tz(nemo, "metadata.nemo"), _alert_at(nemo, "metadata.nemo")
    if nanos is not None:
        return (BudgetRule(amount_nanos=nanos, duration=duration, tz=tz, alert_at=alert_at), *rest)
    if any(rule.mode == "enforce" for rule in rest):
        raise RuleFault("metadata.nemo.budgets", "may enforce beside `max_budget` only: put the first budget there.")
    return rest


def check_budgets(budgets: Sequence[BudgetRule]) -> None:
    """Refuse what no clock knows, and two budgets that would be one. Raises RuleFault."""
    seen: set[tuple[str, str, str]] = set()
    first = first_budget(budgets)
    for n, rule in enumerate(budgets):
        in_list = f"metadata.nemo.budgets[{n - (first is not None)}]"
        at = "" if rule is first else f"{in_list}."
        try:
            name = period_name(rule.duration)
        except ValueError as error:
            raise RuleFault(f"{at}budget_duration", f"is {error}") from None
        zone = f"{at or 'metadata.nemo.'}tz"
        if not is_time_zone(rule.tz):
            raise RuleFault(zone, f"is not a time zone: {rule.tz[:100]!r}. Use a name such as Europe/Amsterdam.")
        if rule.tz != UTC_NAME and not follows_calendar(name):
            raise RuleFault(zone, f"says nothing: only day, week and month follow a calendar, not {name}.")
        if (name, rule.tz, rule.mode) in seen:
            raise RuleFault(in_list, "is a second budget of that period, time zone and mode: keep the lower one.")
        seen.add((name, rule.tz, rule.mode))


def budget_facts(budgets: Sequence[BudgetRule]) -> dict[str, Any]:
    """Return what `metadata.nemo` says of the budgets; None where it says nothing."""
    first = first_budget(budgets)
    rest = budgets if first is None else budgets[1:]
    return {
        "tz": None if first is None or first.tz == UTC_NAME else first.tz,
        "alert_at": None if first is None or not first.alert_at else list(first.alert_at),
        "budgets": [_budget_entry(rule) for rule in rest] or None,
    }


def _budget(item: Any, at: str) -> BudgetRule:
    known = _object(item, at, _BUDGET_KEYS)
    duration = known.get("budget_duration")
    if duration is not None and not isinstance(duration, str):
        raise RuleFault(f"{at}.budget_duration", "must be a text such as 1d, or null for never.")
    return BudgetRule(
        amount_nanos=_nanos(known.get("max_budget"), f"{at}.max_budget"),
        duration=duration,
        tz=_tz(known, at),
        alert_at=_alert_at(known, at),
        mode=_mode(known, at, "enforce"),
    )


def _budget_entry(rule: BudgetRule) -> dict[str, Any]:
    entry: dict[str, Any] = {"max_budget": nanos_to_wire(rule.amount_nanos), "budget_duration": rule.duration}
    if rule.tz != UTC_NAME:
        entry["tz"] = rule.tz
    return {**entry, "alert_at": list(rule.alert_at), "mode": rule.mode}


def _alert_at(found: Mapping[str, Any], at: str) -> tuple[float, ...]:
    value = found.get("alert_at")
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    numbers = tuple(float(one) for one in values if type(one) in (int, float) and 0 < one <= 1)
    if len(numbers) < len(values) or any(a >= b for a, b in pairwise(numbers)):
        raise RuleFault(f"{at}.alert_at", "must be a fraction above 0 and up to 1, or a rising list of such.")
    return numbers


def _tz(found: Mapping[str, Any], at: str) -> str:
    value = found.get("tz")
    if value is not None and not isinstance(value, str):
        raise RuleFault(f"{at}.tz", "must be the name of a time zone, such as Europe/Amsterdam.")
    return value or UTC_NAME


def _nanos(value: Any, at: str) -> int:
    try:
        return nanos_from_wire(value)
    except ValueError as error:
        raise RuleFault(at, f"is {error}.") from None


def _mode(found: Mapping[str, Any], at: str, default: Mode) -> Mode:
    value = found.get("mode")
    if value is None:
        return default
    if value == "enforce":
        return "enforce"
    if value == "shadow":
        return "shadow"
    raise RuleFault(f"{at}.mode", "must be enforce or shadow.")


# --- rates --------------------------------------------------------------------------------------------------------
def read_shadow(nemo: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the rates that are recorded and never refuse, in the order of RATES. Raises RuleFault."""
    value = nemo.get("shadow")
    if value is None:
        return ()
    if not isinstance(value, list) or any(one not in RATES for one in value) or len(set(value)) < len(value):
        raise RuleFault("metadata.nemo.shadow", f"must be a list out of {', '.join(RATES)}.")
    return tuple(rate for rate in RATES if rate in value)


def read_max_parallel(nemo: Mapping[str, Any]) -> int | None:
    """Return a fleet's calls at the same time, for which LiteLLM's team has no field. Raises RuleFault."""
    value = nemo.get("max_parallel")
    return None if value is None else _count(value, "metadata.nemo.max_parallel")


def read_model_limits(
    rpm: Mapping[str, Any] | None, tpm: Mapping[str, Any] | None, nemo: Mapping[str, Any]
) -> tuple[ModelLimit, ...]:
    """Return limits by model, sorted by its name. `rpm` and `tpm` are LiteLLM's maps. Raises RuleFault."""
    counts = {
        "rpm": _counts(rpm or {}, "model_rpm_limit"),
        "tpm": _counts(tpm or {}, "model_tpm_limit"),
        "max_parallel": _counts(nemo.get("model_max_parallel") or {}, "metadata.nemo.model_max_parallel"),
    }
    names = sorted({name for found in counts.values() for name in found})
    shadow = nemo.get("model_shadow") or []
    if not isinstance(shadow, list) or any(not isinstance(name, str) or name not in names for name in shadow):
        raise RuleFault("metadata.nemo.model_shadow", "must be a list of models that have limits of their own.")
    return tuple(
        ModelLimit(
            model=name,
            mode="shadow" if name in shadow else "enforce",
            **{rate: found.get(name) for rate, found in counts.items()},
        )
        for name in names
    )


def model_fields(limits: Iterable[ModelLimit]) -> dict[str, dict[str, int] | None]:
    """Return LiteLLM's maps; None for one that is empty."""
    limits = tuple(limits)
    return {f"model_{rate}_limit": _by_model(limits, rate) for rate in ("rpm", "tpm")}


def model_facts(limits: Iterable[ModelLimit]) -> dict[str, Any]:
    """Return what `metadata.nemo` says of limits by model; None where it says nothing."""
    limits = tuple(limits)
    return {
        "model_max_parallel": _by_model(limits, "max_parallel"),
        "model_shadow": [limit.model for limit in limits if limit.mode == "shadow"] or None,
    }


def _by_model(limits: Sequence[ModelLimit], rate: str) -> dict[str, int] | None:
    found = {limit.model: getattr(limit, rate) for limit in limits}
    return {model: count for model, count in found.items() if count is not None} or None


def _counts(found: Any, at: str) -> dict[str, int]:
    if not isinstance(found, Mapping) or len(found) > _ENTRIES_MAX:
        raise RuleFault(at, f"must be an object of at most {_ENTRIES_MAX} models and their limits.")
    for name in found:
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_MAX or not name.isprintable():
            raise RuleFault(at, f"must name each model in at most {_NAME_MAX} printable characters.")
    return {name: _count(value, f"{at}.{name}") for name, value in found.items()}


def _count(value: Any, at: str) -> int:
    if type(value) is not int or not 1 <= value <= COUNT_MAX:
        raise RuleFault(at, "must be a whole number of at least 1.")
    return value


# --- loops and prices ---------------------------------------------------------------------------------------------
def read_loop(nemo: Mapping[str, Any]) -> LoopRule | None:
    """Return the loop rule; None when it is off. Raises RuleFault."""
    at, value = "metadata.nemo.loop", nemo.get("loop")
    if value == _OFF:
        return None
    found = {} if value is None else _object(value, at, _LOOP_KEYS)
    default = LoopRule()
    return LoopRule(
        repeats=_whole(found.get("repeats", default.repeats), f"{at}.repeats", 2, LOOP_REPEATS_MAX),
        within_s=_whole(found.get("within_s", default.within_s), f"{at}.within_s", 1, LOOP_WITHIN_S_MAX),
        mode=_mode(found, at, default.mode),
    )


def loop_fact(rule: LoopRule | None) -> dict[str, Any] | str | None:
    """Return what `metadata.nemo.loop` says; None for the usual rule."""
    if rule is None:
        return _OFF
    if rule == LoopRule():
        return None
    return {"repeats": rule.repeats, "within_s": rule.within_s, "mode": rule.mode}


def read_request_nanos(nemo: Mapping[str, Any]) -> int | None:
    """Return the price of a request for models that have none. Raises RuleFault."""
    value = nemo.get("price_per_request")
    return None if value is None else _nanos(value, "metadata.nemo.price_per_request")


# --- answers ------------------------------------------------------------------------------------------------------
def read_cache_ttl_s(nemo: Mapping[str, Any]) -> int | None:
    """Return for how many seconds answers are given again; None for never. Raises RuleFault."""
    at, value = "metadata.nemo.cache", nemo.get("cache")
    if value is None:
        return None
    return _whole(_object(value, at, {"ttl_s"}).get("ttl_s"), f"{at}.ttl_s", 1, CACHE_TTL_S_MAX)


def cache_fact(ttl_s: int | None) -> dict[str, Any] | None:
    """Return what `metadata.nemo.cache` says; None for no cache."""
    return None if ttl_s is None else {"ttl_s": ttl_s}


def _object(value: Any, at: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RuleFault(at, "must be an object.")
    for key in value:
        if key not in known:
            raise RuleFault(f"{at}.{str(key)[:100]}", f"is not known; known are {', '.join(sorted(known))}.")
    return value


def _whole(value: Any, at: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise RuleFault(at, f"must be a whole number from {least} to {most}.")
    return value
