"""Fields of admin bodies, read strictly: what cannot be meant is refused with the field's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from nemo_agents.gateway.admin.faults import AdminFault, bad
from nemo_agents.gateway.admin.json import decode
from nemo_agents.money import nanos_from_wire
from nemo_agents.policy.budgets import BudgetRule, ModelLimit
from nemo_agents.policy.guardrails import BUILTIN
from nemo_agents.policy.rulewire import (
    COUNT_MAX,
    RuleFault,
    check_budgets,
    first_budget,
    model_fields,
    read_budgets,
    read_model_limits,
)

__all__ = [
    "iso",
    "keep_ours",
    "ours_of",
    "parse_budget",
    "parse_budgets",
    "parse_fields",
    "parse_guardrails",
    "parse_limit",
    "parse_model_limits",
    "parse_ours",
    "refuse_soft_budget",
]

_T = TypeVar("_T")


def parse_fields(raw: bytes, shape: type[Any]) -> Any:
    """Read a body into a shape; 422 with the path of the field that does not fit."""
    try:
        return decode(raw, shape)
    except ValueError as error:
        raise AdminFault(422, str(error), "bad_request_error") from None


def parse_limit(value: int | None, wire: str) -> int | None:
    """Return a limit per minute, or None for no limit."""
    if value is not None and not 1 <= value <= COUNT_MAX:
        raise bad(f"`{wire}` must be a whole number of at least 1, or null for no limit.", wire)
    return value


def parse_budget(value: float | None) -> int | None:
    """Return a budget in nanos from JSON dollars, or None for no budget."""
    try:
        return None if value is None else nanos_from_wire(value)
    except ValueError as error:
        raise bad(f"`max_budget`: {error}.", "max_budget") from None


def parse_budgets(
    former: Sequence[BudgetRule],
    max_budget: float | None | UnsetType,
    duration: str | None | UnsetType,
    ours: Mapping[str, Any],
) -> tuple[BudgetRule, ...]:
    """Return the budgets after a change: what the fields leave out stays as it was, the rest is in `metadata.nemo`."""
    first = first_budget(former)
    nanos = first.amount_nanos if first is not None else None
    if max_budget is not UNSET:
        nanos = parse_budget(max_budget)
    if nanos is None and duration not in (UNSET, None, ""):
        raise bad("`budget_duration` is that of `max_budget`, and there is none.", "budget_duration")
    lasts = first.duration if first is not None else None
    if duration is not UNSET:
        lasts = duration or None
    with _named():
        budgets = read_budgets(nanos, lasts if nanos is not None else None, ours)
        check_budgets(budgets)
    return budgets


def parse_model_limits(
    former: Sequence[ModelLimit],
    rpm: dict[str, Any] | None | UnsetType,
    tpm: dict[str, Any] | None | UnsetType,
    ours: Mapping[str, Any],
) -> tuple[ModelLimit, ...]:
    """Return limits by model after a change: what the fields leave out stays, the rest is in `metadata.nemo`."""
    had = model_fields(former)
    with _named():
        return read_model_limits(
            had["model_rpm_limit"] if rpm is UNSET else rpm, had["model_tpm_limit"] if tpm is UNSET else tpm, ours
        )


def parse_ours(read: Callable[[Mapping[str, Any]], _T], ours: Mapping[str, Any]) -> _T:
    """Return what `read` finds in `metadata.nemo`; 400 with its path when it cannot be meant."""
    with _named():
        return read(ours)


def ours_of(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the gateway's own part of a row's metadata."""
    ours = metadata.get("nemo", {})
    if not isinstance(ours, dict):
        raise bad("`metadata.nemo` must be an object.", "metadata")
    return ours


def keep_ours(metadata: dict[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """Return new metadata with the former `nemo` part where it has none.

    Another tool's metadata says nothing of limits that LiteLLM does not know, and must not lift them.
    """
    return {**metadata, "nemo": former["nemo"]} if "nemo" not in metadata and "nemo" in former else metadata


def refuse_soft_budget(value: object) -> None:
    """Refuse LiteLLM's `soft_budget`, which would pass unseen, with what to write for it."""
    if value is not UNSET and value is not None:
        remedy = '{"max_budget": 5, "budget_duration": "1d", "alert_at": [1.0], "mode": "shadow"}'
        raise bad(f"`soft_budget` is not known: put a budget in shadow into `metadata.nemo.budgets`: {remedy}.")


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuleFault as fault:
        raise bad(str(fault), fault.field.partition(".")[0]) from None


def parse_guardrails(names: list[str]) -> tuple[str, ...]:
    """Return guardrail names, each of which exists: an unknown one would silently not run."""
    for name in names:
        if name not in BUILTIN:
            raise bad(f"No guardrail is named {name[:100]!r}; there are {', '.join(BUILTIN)}.", "guardrails")
    return tuple(names)


def iso(at_us: int | None) -> str | None:
    """Write a time as RFC 3339 in UTC."""
    return None if at_us is None else datetime.fromtimestamp(at_us / 1e6, tz=UTC).isoformat()
