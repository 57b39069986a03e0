"""Fields of admin bodies, read strictly: what cannot be meant is refused with the field's name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nemo_agents.gateway.admin.faults import AdminFault, bad
from nemo_agents.gateway.admin.json import decode
from nemo_agents.money import nanos_from_wire
from nemo_agents.policy.guardrails import BUILTIN
from nemo_agents.policy.periods import period_at

__all__ = ["check_period", "iso", "parse_alert_at", "parse_budget", "parse_fields", "parse_guardrails", "parse_limit"]

_MAX_LIMIT = 10**12


def parse_fields(raw: bytes, shape: type[Any]) -> Any:
    """Read a body into a shape; 422 with the path of the field that does not fit."""
    try:
        return decode(raw, shape)
    except ValueError as error:
        raise AdminFault(422, str(error), "bad_request_error") from None


def parse_limit(value: int | None, wire: str) -> int | None:
    """Return a limit per minute, or None for no limit."""
    if value is not None and not 1 <= value <= _MAX_LIMIT:
        raise bad(f"`{wire}` must be a whole number of at least 1, or null for no limit.", wire)
    return value


def parse_budget(value: float | None) -> int | None:
    """Return a budget in nanos from JSON dollars, or None for no budget."""
    try:
        return None if value is None else nanos_from_wire(value)
    except ValueError as error:
        raise bad(f"`max_budget`: {error}.", "max_budget") from None


def parse_alert_at(ours: Mapping[str, Any]) -> float | None:
    """Return the alert threshold in `metadata.nemo`: a fraction of the budget, or None for no alert."""
    alert_at = ours.get("alert_at")
    if alert_at is not None and not (type(alert_at) in (int, float) and 0 < alert_at <= 1):
        raise bad("`metadata.nemo.alert_at` must be a fraction above 0 and up to 1.", "metadata")
    return alert_at


def parse_guardrails(names: list[str]) -> tuple[str, ...]:
    """Return guardrail names, each of which exists: an unknown one would silently not run."""
    for name in names:
        if name not in BUILTIN:
            raise bad(f"No guardrail is named {name[:100]!r}; there are {', '.join(BUILTIN)}.", "guardrails")
    return tuple(names)


def check_period(duration: str | None) -> None:
    """Refuse a budget duration that has no period."""
    try:
        period_at(duration, 0)
    except ValueError as error:
        raise bad(f"`budget_duration`: {error}.", "budget_duration") from None


def iso(at_us: int | None) -> str | None:
    """Write a time as RFC 3339 in UTC."""
    return None if at_us is None else datetime.fromtimestamp(at_us / 1e6, tz=UTC).isoformat()
