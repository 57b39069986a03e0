"""Show a plan: text for people, JSON for programs and for a later `apply`. Neither holds a secret."""

from __future__ import annotations

from typing import Any

import msgspec

from nemo_agents.errors import ProvisionError
from nemo_agents.money import format_nanos
from nemo_agents.provision.plan import SYMBOLS, Action, Change, Plan
from nemo_agents.provision.specs import FleetSpec, GroupSpec, KeySpec, Spec
from nemo_agents.provision.texts import budget_texts, cache_text, loop_text, model_limit_text, rate_texts
from nemo_agents.roles import Exposure

__all__ = ["done", "line_of", "plan_from_json", "plan_to_json", "plan_to_text", "summary"]

_FORMAT = 3
# What is counted, as the plan says it and as the account of it says it.
_VERBS: tuple[tuple[Action, str, str], ...] = (
    ("create", "to create", "created"),
    ("update", "to update", "updated"),
    ("rotate", "to rotate", "rotated"),
    ("revoke", "to revoke", "revoked"),
)
_WHAT = {"fleet": "fleet", "models": "model group", "role": ""}


def plan_to_text(plan: Plan) -> str:
    """Return the plan as lines: a sign, the name and what it is or how it changes, then the sum of it."""
    width = max((len(change.name) for change in plan.changes), default=0)
    lines = [line for change in plan.changes for line in line_of(change, width)]
    lines.extend(
        f"  ! {conflict.role:<{width}}  the alias {conflict.alias} belongs to a key not managed here; "
        f"`nemo-agents adopt {plan.fleet} {conflict.role} {conflict.public_id}` takes it over"
        for conflict in plan.conflicts
    )
    return "\n".join([*lines, f"  {summary(plan)}"])


def line_of(change: Change, width: int) -> list[str]:
    """Return the lines of one change; `width` is that of the longest name."""
    parts = [_details(change)]
    if change.drift:
        parts.append("[drift: changed by another hand]")
    if change.note:
        parts.append(f"({change.note})")
    text = "  ".join(part for part in parts if part)
    lines = [f"  {SYMBOLS[change.action]} {change.name:<{width}}  {text}".rstrip()]
    indent = " " * (width + 6)
    if change.action in ("update", "rotate") or (change.action == "create" and change.fields):
        lines.extend(
            f"{indent}{field.field}: {field.old or 'not set'} → {field.new or 'not set'}" for field in change.fields
        )
    return lines


def summary(plan: Plan) -> str:
    """Return the last line: `7 to create.` and then `Worst case per day: $135 by roles, $170 by fleet.`.

    Where budgets of several periods are declared, each period has a line of its own, indented under it.
    It counts the lines above it: the fleet, its model groups and its roles alike.
    """
    counts = [f"{plan.count(action)} {verb}" for action, verb, _ in _VERBS if plan.count(action)]
    if plan.conflicts:
        counts.append(f"{len(plan.conflicts)} in conflict")
    lead = f"{', '.join(counts)}." if counts else "Nothing to change."
    shadow = [f"In shadow, so no cap: {', '.join(plan.in_shadow)}."] if plan.in_shadow else []
    uncapped = sorted({role for item in plan.exposure for role in item.uncapped})
    alone = [f"Without a budget of their own: {', '.join(uncapped)}."] if uncapped else []
    if len(plan.exposure) > 1:
        head, *periods = [f"{lead} Worst case:", *(f"    {_when(item)}: {_amounts(item)}" for item in plan.exposure)]
        rest = " ".join([*alone, *shadow])
        return "\n".join([head, *periods, *([f"  {rest}"] if rest else [])])
    worst = [f"Worst case {_when(item)}: {_amounts(item)}." for item in plan.exposure]
    return " ".join([lead, *worst, *alone, *shadow])


def done(plan: Plan) -> str:
    """Return what a plan has come to once it is performed, counted as in its summary: `7 created`."""
    return ", ".join(f"{plan.count(action)} {verb}" for action, _, verb in _VERBS if plan.count(action))


def plan_to_json(plan: Plan) -> str:
    """Return the plan as JSON that `plan_from_json` reads back to an equal plan."""
    value: dict[str, Any] = {"format": _FORMAT, "empty": plan.is_empty, "summary": summary(plan)}
    value["plan"] = msgspec.to_builtins(plan)
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def plan_from_json(text: str | bytes) -> Plan:
    """Read a plan that `plan_to_json` wrote. Raises ProvisionError for anything else."""
    try:
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.DecodeError as error:
        raise ProvisionError(f"this is not a plan: {error}. Make one with `nemo-agents plan --out FILE`.") from None
    if document.format != _FORMAT:
        raise ProvisionError(
            f"this plan was made by another version of nemo-agents (format {document.format}). Make it again."
        )
    return document.plan


class _Document(msgspec.Struct):
    format: int
    plan: Plan


def _details(change: Change) -> str:
    if change.action == "revoke" or change.spec is None:
        return _WHAT[change.kind] or (f"key {change.public_id}" if change.public_id else "")
    return " · ".join(_facts(change.spec))


def _facts(spec: Spec) -> list[str]:
    match spec:
        case FleetSpec():
            return ["fleet", *_limits(spec)]
        case GroupSpec():
            return ["model group", *spec.facts()]
        case KeySpec():
            facts = [*_limits(spec), ", ".join(spec.models)]
            if spec.cache_ttl_s is not None:
                facts.append(f"cache {cache_text(spec.cache_ttl_s)}")
            if spec.guardrails:
                facts.append(", ".join(spec.guardrails))
            if spec.tools is not None:
                facts.append(f"tools {', '.join(spec.tools) or 'none'}")
            return facts


def _limits(spec: FleetSpec | KeySpec) -> list[str]:
    rates = rate_texts(spec, spec.shadow)
    units = (("rpm", "rpm"), ("tpm", "tpm"), ("max_parallel", "at once"))
    found = [_with_unit(text, unit) for rate, unit in units if (text := rates[rate])]
    budgets = budget_texts(spec.budgets)["budget"]
    if isinstance(spec, FleetSpec):
        return [*found, *([budgets] if budgets else [])]
    found.extend(model_limit_text(limit) for limit in spec.model_limits)
    found.append(budgets or "no budget of its own")
    loop = loop_text(spec.loop)
    if loop:
        found.append(f"loop {loop}")
    if spec.request_nanos is not None:
        found.append(f"{format_nanos(spec.request_nanos)}/request if unpriced")
    return found


def _with_unit(rate: str, unit: str) -> str:
    """Put the unit after the number: `60 rpm (shadow)`."""
    number, space, note = rate.partition(" ")
    return f"{number} {unit}{space}{note}"


def _when(item: Exposure) -> str:
    return "in total" if item.period == "total" else f"per {item.period}"


def _amounts(item: Exposure) -> str:
    parts = []
    if item.roles_nanos:
        whose = ", ".join(item.of) if item.elsewhere and item.of else "roles"
        parts.append(f"{format_nanos(item.roles_nanos)} by {whose}")
    if item.fleet_nanos is not None:
        parts.append(f"{format_nanos(item.fleet_nanos)} by fleet")
    return ", ".join(parts) or "$0 by roles"
