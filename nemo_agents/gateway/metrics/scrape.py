"""What the gateway is like at the moment of a scrape: calls in flight, holds, budgets, the store, the cache.

Money and holds are read from the store, and shown again for a few seconds: many scrapes are no load, and a store that
is away is one sample that says so instead of a page that fails.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from zoneinfo import ZoneInfo

from nemo_agents import __version__
from nemo_agents.gateway.metrics.counters import OTHER
from nemo_agents.gateway.metrics.families import Family, Sample
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.money import NANOS_PER_DOLLAR
from nemo_agents.policy.budgets import BudgetRule, budget_scope
from nemo_agents.policy.ledger import Balance, BudgetScope, ScopeKind

__all__ = ["Scraper"]

_KEEP_S: Final = 5.0
_BUDGETS_MAX: Final = 1000
_DEPLOYMENTS_MAX: Final = 200


class Scraper:
    """Gathers the families of a gateway. `clock_s` never goes back."""

    def __init__(self, gateway: Gateway, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock_s = clock_s
        self._started_s = clock_s()
        self._stored: tuple[Family, ...] = ()
        self._stored_until_s = 0.0

    async def families(self) -> list[Family]:
        """Return everything that the page shows."""
        gateway = self._gateway
        stored = await self._from_store()
        return [
            *gateway.metrics.families(),
            *stored,
            self._in_flight(),
            _gauge("nemo_store_backlog", "Operations that wait to be written to the store.", gateway.store.backlog),
            *self._cache(),
            *self._deployments(),
            _gauge("nemo_uptime_seconds", "Since this gateway started.", self._clock_s() - self._started_s),
            Family(
                name="nemo_build_info",
                kind="gauge",
                help="The version of nemo-agents, and of Python.",
                labels=("version", "python"),
                samples=(Sample(labels=(__version__, platform.python_version()), value=1),),
            ),
        ]

    # --- from the store -----------------------------------------------------------------------------------------
    async def _from_store(self) -> tuple[Family, ...]:
        if self._clock_s() < self._stored_until_s:
            return self._stored
        try:
            self._stored = (_up(is_up=True), *await self._holds(), *await self._budgets())
        except StoreUnavailable:
            self._stored = (_up(is_up=False),)
        self._stored_until_s = self._clock_s() + _KEEP_S
        return self._stored

    async def _holds(self) -> tuple[Family, Family]:
        count, nanos = await self._gateway.store.open_holds()
        shared = " All gateways that share the store show the same."
        return (
            _gauge("nemo_open_holds", f"Holds of calls that have not ended.{shared}", count),
            _gauge("nemo_held_dollars", f"What those hold.{shared}", nanos / NANOS_PER_DOLLAR),
        )

    async def _budgets(self) -> tuple[Family, Family]:
        found = list(self._budget_scopes())[:_BUDGETS_MAX]
        balances = await self._gateway.store.balances([scope for _, scope in found])
        limits, lefts = [], []
        for (owner, scope), balance in zip(found, balances, strict=True):
            labels = (*owner, scope.name, scope.mode)
            limits.append(Sample(labels=labels, value=(scope.limit_nanos or 0) / NANOS_PER_DOLLAR))
            lefts.append(Sample(labels=labels, value=_left_nanos(balance) / NANOS_PER_DOLLAR))
        names = ("fleet", "role", "budget", "mode")
        return (
            Family(
                name="nemo_budget_dollars",
                kind="gauge",
                help="Budgets in their current periods; a fleet's own has no role.",
                labels=names,
                samples=tuple(limits),
            ),
            Family(
                name="nemo_budget_left_dollars",
                kind="gauge",
                help="What of them is neither spent nor held; below 0 where more was spent than they allow.",
                labels=names,
                samples=tuple(lefts),
            ),
        )

    def _budget_scopes(self) -> Iterator[tuple[tuple[str, str], BudgetScope]]:
        """Yield every budget with the fleet and the role whose it is."""
        gateway = self._gateway
        now_us = gateway.clock.now_us()
        for name, fleet in gateway.fleets.items():
            for scope in _scopes("fleet", name, fleet.budgets, now_us):
                yield (name, ""), scope
        for grant in gateway.keyring.grants():
            if grant.revoked_us is None:
                owner = (grant.fleet or "", grant.role or grant.alias or grant.grant_id)
                for scope in _scopes("role", grant.grant_id, grant.budgets, now_us):
                    yield owner, scope

    # --- of this process ----------------------------------------------------------------------------------------
    def _in_flight(self) -> Family:
        counts = Counter(self._gateway.metrics.role(call.fleet, "")[0] for call in self._gateway.in_flight)
        return Family(
            name="nemo_calls_in_flight",
            kind="gauge",
            help="Calls that have been admitted and have not ended.",
            labels=("fleet",),
            samples=tuple(Sample(labels=(fleet,), value=count) for fleet, count in counts.items()),
        )

    def _cache(self) -> list[Family]:
        kept = self._gateway.cache.kept
        if kept is None:
            return []
        return [
            _gauge("nemo_cache_answers", "Answers in the cache of this process.", kept[0]),
            _gauge("nemo_cache_bytes", "What those take.", kept[1]),
        ]

    def _deployments(self) -> tuple[Family, Family]:
        """Return what is known of deployments: of those that are declared, and of models that count by their name."""
        gateway = self._gateway
        now_us = gateway.clock.now_us()
        cooling: list[Sample] = []
        in_flight: list[Sample] = []
        for state in gateway.router.snapshot():
            known = gateway.metrics.model(state.provider, state.model, real=False)[1] != OTHER
            if (known or state.deployment in gateway.deployments) and len(cooling) < _DEPLOYMENTS_MAX:
                labels = (state.deployment, state.provider, state.model)
                left_us = max(0, (state.cooling_until_us or now_us) - now_us)
                cooling.append(Sample(labels=labels, value=left_us / 1e6))
                in_flight.append(Sample(labels=labels, value=state.in_flight))
        names = ("deployment", "provider", "model")
        return (
            Family(
                name="nemo_deployment_cooldown_seconds",
                kind="gauge",
                help="For how long a deployment is still left out of every pick; 0 when it is not.",
                labels=names,
                samples=tuple(cooling),
            ),
            Family(
                name="nemo_deployment_calls_in_flight",
                kind="gauge",
                help="Attempts that are under way at a deployment.",
                labels=names,
                samples=tuple(in_flight),
            ),
        )


def _scopes(kind: ScopeKind, owner: str, rules: Iterable[BudgetRule], now_us: int) -> Iterator[BudgetScope]:
    for rule in rules:
        yield budget_scope(kind, owner, rule, now_us, ZoneInfo(rule.tz))


def _left_nanos(balance: Balance) -> int:
    return (balance.scope.limit_nanos or 0) - balance.posted_nanos - balance.held_nanos


def _up(*, is_up: bool) -> Family:
    return _gauge("nemo_store_up", "Whether the store could be read just now; no call is sent without it.", int(is_up))


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name=name, kind="gauge", help=text, samples=(Sample(labels=(), value=value),))
