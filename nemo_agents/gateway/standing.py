"""What one grant is counted against, as it follows from its record and its fleet's until a period ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo

from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.stores.base import FleetRecord
from nemo_agents.policy.budgets import BudgetRule, budget_scope, recording_scope
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import BudgetScope
from nemo_agents.policy.limits import RateScope
from nemo_agents.policy.rulewire import RATES

__all__ = ["Standing", "budgets_of", "work_out"]

_ALL_RATES = frozenset({"rpm", "tpm", "max_parallel"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The scopes of one grant. `budgets` is what a hold counts against: its own, then its fleet's.

    `shadows` are all that record and never refuse, also those that share their balance with a budget that does.
    """

    grant: Grant
    fleet: FleetRecord | None
    since_us: int
    until_us: int | None
    rates: tuple[RateScope, ...]
    of_models: Mapping[str, RateScope]
    own: tuple[BudgetScope, ...]
    budgets: tuple[BudgetScope, ...]
    shadows: tuple[BudgetScope, ...]

    def holds(self, grant: Grant, fleet: FleetRecord | None, now_us: int) -> bool:
        """Say whether it still is what would be worked out now."""
        same = self.grant is grant and self.fleet is fleet
        return same and self.since_us <= now_us and (self.until_us is None or now_us < self.until_us)


def work_out(grant: Grant, fleet: FleetRecord | None, settings: Settings, now_us: int) -> Standing:
    """Return the scopes of a grant, now. Its fleet's spend is recorded even without a record of the fleet."""
    own = _scopes("role", grant.grant_id, grant.budgets, now_us)
    above: tuple[BudgetScope, ...] = ()
    if grant.fleet is not None:
        above = _scopes("fleet", grant.fleet, fleet.budgets if fleet else (), now_us)
    ends = [scope.resets_at_us for scope in (*own, *above) if scope.resets_at_us is not None]
    return Standing(
        grant=grant,
        fleet=fleet,
        since_us=now_us,
        until_us=min(ends, default=None),
        rates=_rates(grant, fleet, settings),
        of_models={limit.model: scope for limit, scope in zip(grant.model_limits, _of_models(grant), strict=True)},
        own=_apart(own),
        budgets=(*_apart(own), *_apart(above)),
        shadows=tuple([scope for scope in (*own, *above) if scope.mode == "shadow"]),
    )


def budgets_of(
    kind: Literal["role", "fleet"], scope_id: str, rules: Sequence[BudgetRule], now_us: int
) -> tuple[BudgetScope, ...]:
    """Return the budgets of a scope in their current periods; without any, the one that records its spend."""
    return _apart(_scopes(kind, scope_id, rules, now_us))


def _scopes(
    kind: Literal["role", "fleet"], scope_id: str, rules: Sequence[BudgetRule], now_us: int
) -> tuple[BudgetScope, ...]:
    if not rules:
        return (recording_scope(kind, scope_id),)
    return tuple([budget_scope(kind, scope_id, rule, now_us, ZoneInfo(rule.tz)) for rule in rules])


def _apart(scopes: Sequence[BudgetScope]) -> tuple[BudgetScope, ...]:
    """Return one scope for each period: of those that share a balance, the one that binds."""
    binding: dict[str, BudgetScope] = {}
    for scope in scopes:
        known = binding.get(scope.period)
        if known is None or _strictness(scope) < _strictness(known):
            binding[scope.period] = scope
    return tuple(binding.values())


def _strictness(scope: BudgetScope) -> tuple[bool, int]:
    return scope.mode == "shadow", scope.limit_nanos or 0


def _rates(grant: Grant, fleet: FleetRecord | None, settings: Settings) -> tuple[RateScope, ...]:
    """Return the rates of the role and, where it has any, of its fleet. A role without gets the gateway's ceiling."""
    rates = [
        RateScope(
            kind="role",
            id=grant.grant_id,
            rpm=settings.default_rpm if grant.rpm is None else grant.rpm,
            tpm=settings.default_tpm if grant.tpm is None else grant.tpm,
            max_parallel=grant.max_parallel,
            name=grant.role or grant.alias,
            shadow=frozenset(grant.shadow),
            fleet=grant.fleet,
        )
    ]
    if fleet is not None and (fleet.rpm, fleet.tpm, fleet.max_parallel) != (None, None, None):
        rates.append(
            RateScope(
                kind="fleet",
                id=fleet.fleet,
                rpm=fleet.rpm,
                tpm=fleet.tpm,
                max_parallel=fleet.max_parallel,
                name=fleet.fleet,
                shadow=frozenset(fleet.shadow),
                fleet=fleet.fleet,
            )
        )
    return tuple(rates)


def _of_models(grant: Grant) -> list[RateScope]:
    return [
        RateScope(
            kind="model",
            id=f"{grant.grant_id}/{limit.model}",
            rpm=limit.rpm,
            tpm=limit.tpm,
            max_parallel=limit.max_parallel,
            name=f"{grant.role or grant.alias}, {limit.model}",
            shadow=frozenset(RATES if limit.mode == "shadow" else ()),
            fleet=grant.fleet,
        )
        for limit in grant.model_limits
    ]
