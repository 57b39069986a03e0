"""Which alerts are due, and what the events say: budgets at their thresholds, spend far above a role's usual.

A threshold is about what is *posted*: holds come back, so what they fill is no news. Each threshold of each budget
is told once a period. What was told covers every amount whose threshold was passed by then: a budget that is raised
tells again only when spend reaches a threshold that lies above what was spent at the last telling of it.

Money is integer nanos, time microseconds since the epoch (UTC).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Literal

import msgspec

from nemo_agents.admin.wire import EventRow, SpikeStatus
from nemo_agents.money import format_nanos
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused

__all__ = [
    "EVENT_KINDS",
    "HISTORY_DAYS",
    "HOUR_US",
    "Alert",
    "EventDraft",
    "Mark",
    "Owner",
    "SpikeRule",
    "SpikeTold",
    "budget_event",
    "budget_mark",
    "due",
    "exhausted_by",
    "overrun_event",
    "spike",
    "spike_due",
    "spike_event",
    "spike_level",
    "spike_told",
]

EVENT_KINDS: Final = ("budget.alert", "budget.exhausted", "budget.overrun", "spend.spike", "clock.stepped")
HOUR_US: Final = 3_600_000_000
HISTORY_DAYS: Final = 7
"""How far back a role's usual hour is looked for."""
_LEVEL_MAX: Final = 64

BudgetAlert = Literal["budget.alert", "budget.exhausted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """An event before it is stored. `once` names what it tells: the store takes one event of a name."""

    kind: str
    once: str
    message: str
    fleet: str | None = None
    role: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose budget it is. `name` is the role's, the fleet's or the run's."""

    name: str
    fleet: str | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One threshold of one budget in one period: what is told once. `threshold` is 1 for `budget.exhausted`."""

    event: BudgetAlert
    kind: str
    id: str
    period: str
    mode: str
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert that is due. `refused` says that a call was refused although the amount is not all spent."""

    mark: Mark
    balance: Balance
    refused: bool = False

    @property
    def limit_nanos(self) -> int:
        """The budget's amount."""
        return self.balance.scope.limit_nanos or 0

    @property
    def through_nanos(self) -> int:
        """The spend that this alert covers: no threshold up to it is told again under the same mark."""
        return max(_level(self.mark.threshold, self.limit_nanos), self.balance.posted_nanos)


def due(
    balances: Sequence[Balance], told: Mapping[Mark, int], *, refused: Collection[BudgetScope] = ()
) -> tuple[Alert, ...]:
    """Return the alerts that these balances call for, in their order, lower thresholds first.

    `told` is, for each mark, the spend that was covered when it was told. `refused` are the budgets that have refused
    a call: there is too little left in them, which counts as exhausted.
    """
    found: list[Alert] = []
    for balance in balances:
        scope = balance.scope
        limit, posted = scope.limit_nanos, balance.posted_nanos
        if limit is None:
            continue
        for threshold in sorted(set(scope.alert_at)):
            alert = Alert(mark=_mark("budget.alert", scope, threshold), balance=balance)
            if posted and posted >= _level(threshold, limit) > told.get(alert.mark, -1):
                found.append(alert)
        spent = 0 < posted >= limit
        alert = Alert(mark=_mark("budget.exhausted", scope, 1.0), balance=balance, refused=not spent)
        if (spent or scope in refused) and limit > told.get(alert.mark, -1):
            found.append(alert)
    return tuple(found)


def exhausted_by(refused: HoldRefused) -> tuple[BudgetScope, ...]:
    """Return the budgets that have too little left for a hold which they once could have taken.

    One that only calls in flight fill is not among them, nor one that the hold is larger than as a whole.
    """
    needed = refused.needed_nanos
    return tuple(
        [
            balance.scope
            for balance in refused.balances or (refused.balance,)
            if (limit := balance.scope.guard_nanos) is not None and needed <= limit < balance.posted_nanos + needed
        ]
    )


def budget_event(alert: Alert, owner: Owner) -> EventDraft:
    """Return what is told about a budget."""
    scope, spent, limit = alert.balance.scope, alert.balance.posted_nanos, alert.limit_nanos
    per = "" if scope.kind == "run" or scope.resets_at_us is None else f" per {scope.name}"
    shadow = " (in shadow mode: nothing is refused)" if scope.mode == "shadow" else ""
    share = f" ({spent * 100 // limit}%)" if limit else ""
    what = f"The budget of {scope.kind} {owner.name}"
    of = f"{format_nanos(spent)} of {format_nanos(limit)}{per}"
    if alert.mark.event == "budget.alert":
        message = f"{what} has reached {alert.mark.threshold * 100:g}%: spent {of}{share}{shadow}."
    elif alert.refused:
        message = f"{what} has refused a call, too little is left: spent {of}{share}."
    else:
        message = f"{what} is spent: {of}{share}{shadow}."
    mark = alert.mark
    return EventDraft(
        kind=mark.event,
        once=_name(mark.event, mark.kind, mark.id, mark.period, mark.mode, mark.threshold, limit),
        message=message,
        fleet=owner.fleet,
        role=owner.role,
        facts={
            "scope": scope.kind,
            "scope_id": scope.id,
            "name": owner.name,
            "budget": scope.name,
            "mode": scope.mode,
            "period": scope.period,
            "threshold": mark.threshold,
            "amount_nanos": limit,
            "spent_nanos": spent,
            "resets_at_us": scope.resets_at_us,
        },
    )


def budget_mark(event: EventRow) -> tuple[Mark, int] | None:
    """Read back what an event of `budget_event` has told: its mark, and the spend that it covers. None for others."""
    if event.kind not in ("budget.alert", "budget.exhausted"):
        return None
    facts = event.facts
    try:
        mark = Mark(
            event="budget.alert" if event.kind == "budget.alert" else "budget.exhausted",
            kind=facts["scope"],
            id=facts["scope_id"],
            period=facts["period"],
            mode=facts["mode"],
            threshold=float(facts["threshold"]),
        )
        return mark, max(_level(mark.threshold, facts["amount_nanos"]), facts["spent_nanos"])
    except (KeyError, TypeError, ValueError):
        return None


def overrun_event(
    *, request_id: str, fleet: str | None, role: str | None, held_nanos: int, posted_nanos: int
) -> EventDraft:
    """Return what is told about a call that cost more than was held for it: a wrong price, or a provider's surprise."""
    return EventDraft(
        kind="budget.overrun",
        once=_name("budget.overrun", request_id),
        message=(
            f"Call {request_id} cost {format_nanos(posted_nanos)}, more than the {format_nanos(held_nanos)} that were "
            "held for it. It is recorded in full. Compare the model's price with the provider's bill."
        ),
        fleet=fleet,
        role=role,
        facts={"request_id": request_id, "held_nanos": held_nanos, "posted_nanos": posted_nanos},
    )


# --- spend far above the usual ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeRule:
    """When an hour's spend is a spike: from `factor` times the usual on, and from `least_nanos` on.

    Below `least_hours` hours with spend in the last seven days nothing is usual yet. A factor of 0 finds no spikes.
    """

    factor: float = 3.0
    least_nanos: int = 1_000_000_000
    least_hours: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeTold:
    """The last spike of a role that was told: when, and at which level."""

    at_us: int
    level: int


def spike(hour_nanos: int, history: Sequence[int], rule: SpikeRule) -> SpikeStatus | None:
    """Compare an hour's spend with the role's own usual hour: the median of those hours in which it spent anything.

    `history` is the spend of earlier hours, which do not overlap this one. The median, because one spike among the
    hours must not make the next one usual.
    """
    active = sorted(nanos for nanos in history if nanos > 0)
    if not rule.factor or hour_nanos < rule.least_nanos or len(active) < max(1, rule.least_hours):
        return None
    half = len(active) // 2
    usual = active[half] if len(active) % 2 else (active[half - 1] + active[half]) // 2
    if hour_nanos < usual * Fraction(rule.factor):
        return None
    return SpikeStatus(hour_nanos=hour_nanos, usual_nanos=usual, factor=round(hour_nanos / usual, 1))


def spike_level(found: SpikeStatus, rule: SpikeRule) -> int:
    """Return how many times over the factor is reached: 1 from the factor on, 2 from its square on."""
    level, bound = 0, found.usual_nanos * Fraction(rule.factor)
    while found.hour_nanos >= bound and level < _LEVEL_MAX:
        level, bound = level + 1, bound * Fraction(rule.factor)
    return level


def spike_due(level: int, now_us: int, told: SpikeTold | None) -> bool:
    """Say whether a spike is to be told: an hour after the last one, or at once when it has risen a level."""
    return told is None or now_us - told.at_us >= HOUR_US or level > told.level


def spike_event(found: SpikeStatus, level: int, owner: Owner, *, grant_id: str, now_us: int) -> EventDraft:
    """Return what is told about a role's spike; `grant_id` names whose, for roles come and go by name."""
    return EventDraft(
        kind="spend.spike",
        once=_name("spend.spike", grant_id, now_us // HOUR_US, level),
        message=(
            f"Role {owner.name} has spent {format_nanos(found.hour_nanos)} in the last hour, {found.factor:g} times "
            f"its usual {format_nanos(found.usual_nanos)}."
        ),
        fleet=owner.fleet,
        role=owner.role,
        facts={
            "grant_id": grant_id,
            "hour_nanos": found.hour_nanos,
            "usual_nanos": found.usual_nanos,
            "factor": found.factor,
            "level": level,
        },
    )


def spike_told(event: EventRow) -> tuple[str, SpikeTold] | None:
    """Read back what an event of `spike_event` has told: the grant, and when at which level. None for others."""
    grant_id, level = event.facts.get("grant_id"), event.facts.get("level")
    if event.kind != "spend.spike" or not isinstance(grant_id, str) or not isinstance(level, int):
        return None
    return grant_id, SpikeTold(at_us=event.at_us, level=level)


def _mark(event: BudgetAlert, scope: BudgetScope, threshold: float) -> Mark:
    return Mark(event=event, kind=scope.kind, id=scope.id, period=scope.period, mode=scope.mode, threshold=threshold)


def _level(threshold: float, limit_nanos: int) -> int:
    """Return the spend at which a threshold is reached; the fraction counts as it is written, 0.1 as a tenth."""
    return math.ceil(Fraction(str(threshold)) * limit_nanos)


def _name(*parts: object) -> str:
    """Return parts as one name that no other parts have."""
    return msgspec.json.encode(parts).decode()
