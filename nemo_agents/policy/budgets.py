"""What a role or a fleet may spend and how a run may repeat itself, as rules: values that declarations become.

A scope may have several budgets at once, each with its own period, time zone, alerts and mode. A rule in mode
`shadow` is evaluated and recorded like any other, and never refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from typing import Literal

from nemo_agents.durations import UTC_NAME
from nemo_agents.policy.ledger import BudgetScope, ScopeKind
from nemo_agents.policy.periods import period_at, period_name

__all__ = ["UTC_NAME", "BudgetRule", "LoopRule", "Mode", "ModelLimit", "budget_scope", "recording_scope"]

Mode = Literal["enforce", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """Money per period. `duration` is LiteLLM's text (`1d`, `7d`, `1mo`, `12h`; None for a budget that never resets).

    `tz` is an IANA time zone by whose calendar days, weeks and months begin. `alert_at` are the fractions of the
    amount, above 0 and up to 1 in rising order, at which an alert fires, once a period.
    """

    amount_nanos: int
    duration: str | None = None
    tz: str = UTC_NAME
    alert_at: tuple[float, ...] = ()
    mode: Mode = "enforce"

    @property
    def name(self) -> str:
        """What people call it: `day`, `12h`, `month Europe/Amsterdam`."""
        name = period_name(self.duration)
        return name if self.tz == UTC_NAME else f"{name} {self.tz}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimit:
    """Rates of one model (as the caller names it) within a role; None does not limit.

    In mode `shadow` all of them are counted and recorded, and never refuse.
    """

    model: str
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    mode: Mode = "enforce"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRule:
    """The same request `repeats` times within `within_s` seconds of one run is a loop: that one is refused."""

    repeats: int = 8
    within_s: int = 60
    mode: Mode = "shadow"


def budget_scope(kind: ScopeKind, scope_id: str, rule: BudgetRule, now_us: int, tz: tzinfo) -> BudgetScope:
    """Return what a hold of now counts against under this rule; `tz` is the zone that `rule.tz` names.

    The same days of two zones are different periods, so that two budgets of a scope never share a balance by
    accident; two rules with one duration and zone do share one, and the lower amount binds.
    """
    period = period_at(rule.duration, now_us, tz=tz)
    of_zone = "" if rule.tz == UTC_NAME or period.resets_us is None else f"[{rule.tz}]"
    return BudgetScope(
        kind=kind,
        id=scope_id,
        period=period.id + of_zone,
        limit_nanos=rule.amount_nanos,
        resets_at_us=period.resets_us,
        mode=rule.mode,
        alert_at=rule.alert_at,
        name=rule.name,
    )


def recording_scope(kind: ScopeKind, scope_id: str) -> BudgetScope:
    """Return the scope by which spend without any budget is recorded: all of it, for ever."""
    return BudgetScope(kind=kind, id=scope_id, period="total", limit_nanos=None)
