"""Budgets, limits and loop rules as people read them in a plan."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_agents.durations import UTC_NAME, period_name
from nemo_agents.money import format_nanos
from nemo_agents.policy.budgets import BudgetRule, LoopRule, ModelLimit
from nemo_agents.rules import RATES, format_count

__all__ = ["budget_text", "budget_texts", "cache_text", "loop_text", "model_limit_text", "period_text", "rate_texts"]


_UNITS_S = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def budget_text(rule: BudgetRule) -> str:
    """Write a budget as people do: `$20/day`, `$60/month (Europe/Amsterdam, shadow)`; `$20/2w` if it is not ours."""
    notes = [*([rule.tz] if rule.tz != UTC_NAME else []), *(["shadow"] if rule.mode == "shadow" else [])]
    written = f"{format_nanos(rule.amount_nanos)}/{period_text(rule.duration)}"
    return f"{written} ({', '.join(notes)})" if notes else written


def loop_text(rule: LoopRule | None) -> str | None:
    """Write a loop rule as people do; None for the usual one."""
    if rule is None:
        return "off"
    if rule == LoopRule():
        return None
    return f"{rule.repeats} repeats in {rule.within_s} s{_in_shadow(rule.mode == 'shadow')}"


def cache_text(ttl_s: int | None) -> str | None:
    """Write how long answers are given again, in the largest unit that fits: `10m`; None for never."""
    if ttl_s is None:
        return None
    unit, seconds = next((unit, size) for unit, size in _UNITS_S if ttl_s % size == 0)
    return f"{ttl_s // seconds}{unit}"


def budget_texts(budgets: Sequence[BudgetRule]) -> dict[str, str | None]:
    """Write budgets and their alerts: `$5/day + $60/month`, `80%`, `80% of $5/day; none of $60/month`."""
    alerts = [", ".join(f"{at * 100:g}%" for at in rule.alert_at) or "none" for rule in budgets]
    alike = len(set(alerts)) == 1
    by_budget = [f"{alert} of {budget_text(rule)}" for rule, alert in zip(budgets, alerts, strict=True)]
    return {
        "budget": " + ".join(budget_text(rule) for rule in budgets) or None,
        "alert_at": (alerts[0] if alerts[0] != "none" else None) if alike else "; ".join(by_budget) or None,
    }


def rate_texts(limits: object, shadow: Sequence[str]) -> dict[str, str | None]:
    """Write the rates that something has as attributes, by name: `60 (shadow)`; None for none."""
    found: dict[str, int | None] = {rate: getattr(limits, rate) for rate in RATES}
    return {
        rate: None if count is None else f"{format_count(count)}{_in_shadow(rate in shadow)}"
        for rate, count in found.items()
    }


def model_limit_text(limit: ModelLimit) -> str:
    """Write the limits of a model: `gpt-4o 10 rpm 2 at once (shadow)`."""
    units = (("rpm", "rpm"), ("tpm", "tpm"), ("max_parallel", "at once"))
    found = [f"{format_count(getattr(limit, rate))} {unit}" for rate, unit in units if getattr(limit, rate) is not None]
    return f"{limit.model} {' '.join(found)}{_in_shadow(limit.mode == 'shadow')}"


def _in_shadow(yes: bool) -> str:  # noqa: FBT001 - a word or nothing, of one value
    return " (shadow)" if yes else ""


def period_text(duration: str | None) -> str:
    """Return what people call a period; a duration of another gateway that is none of ours stays as it is."""
    try:
        return period_name(duration)
    except ValueError:
        return str(duration)
