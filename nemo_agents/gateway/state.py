"""What a running gateway knows: the records that admission needs, in memory, with the store behind them.

The store is the truth. Every change goes to the store first and then into memory, so that a change is in force on the
next request and survives a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_agents.errors import Code
from nemo_agents.gateway.homefiles import HomeSecrets
from nemo_agents.gateway.keyring import KeyRing
from nemo_agents.gateway.ports import Provider
from nemo_agents.gateway.prices import PriceBook
from nemo_agents.gateway.providers import KEY_ENV_OF, ProviderConfig
from nemo_agents.gateway.rim import Clock, Ids
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.stores.base import FleetRecord, Store
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import BudgetScope, RunCaps
from nemo_agents.policy.limits import WINDOW_US, RateScope, RateWindows
from nemo_agents.policy.periods import period_at
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import Deployment, Target, resolve

__all__ = ["CutOff", "Gateway", "InFlight"]


class CutOff(Exception):  # noqa: N818 - an event, not a fault
    """A call in flight was cut: its run was stopped, its key blocked or revoked, or the gateway is stopping."""

    def __init__(self, code: Code, message: str, *, scope: str | None = "key", status: int = 403) -> None:
        self.code = code
        self.status = status
        self.message = message
        self.scope = scope
        super().__init__(message)


@dataclass(slots=True, eq=False)
class InFlight:
    """One call that has been sent and has not ended."""

    grant_id: str
    fleet: str | None
    run_id: str
    task: asyncio.Task[object]
    cut: CutOff | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """The scopes of one grant, as they follow from these very records until the first of its periods ends."""

    grant: Grant
    fleet: FleetRecord | None
    since_us: int
    until_us: int | None
    rates: tuple[RateScope, ...]
    budgets: tuple[BudgetScope, ...]

    def holds(self, grant: Grant, fleet: FleetRecord | None, now_us: int) -> bool:
        """Say whether it still is what would be worked out now."""
        same = self.grant is grant and self.fleet is fleet
        return same and self.since_us <= now_us and (self.until_us is None or now_us < self.until_us)


@dataclass(slots=True, kw_only=True)
class Gateway:
    """The gateway's state; one per process."""

    settings: Settings
    secrets: HomeSecrets
    store: Store
    keyring: KeyRing
    windows: RateWindows
    prices: PriceBook
    providers: Mapping[str, Provider]
    provider_configs: Mapping[str, ProviderConfig]
    clock: Clock
    ids: Ids
    fleets: dict[str, FleetRecord] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    in_flight: set[InFlight] = field(default_factory=set)  # calls are in it from before their send, so as to be cut
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # a change reads, then writes: one at a time
    base_url: str = ""
    stand_in: str | None = field(init=False)  # the provider that answers for those without credentials, if any
    _available: frozenset[str] = field(init=False)
    _standings: dict[str, _Standing] = field(default_factory=dict)
    _groups: dict[str | None, dict[str, list[Deployment]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note what follows from the providers, which stay as they are."""
        self._available = frozenset(self.providers)
        self.stand_in = self._find_stand_in()

    async def load(self) -> None:
        """Read everything that admission needs from the store, and rebuild the rate windows of the last minute."""
        for grant in await self.store.grants():
            self.keyring.put(grant)
        self.fleets = {fleet.fleet: fleet for fleet in await self.store.fleets()}
        self.deployments = {d.deployment_id: d for d in await self.store.deployments()}
        now_us = self.clock.now_us()
        self.windows.restore(now_us, await self.store.recent_use(now_us - WINDOW_US))

    # --- changes ------------------------------------------------------------------------------------------------
    async def put_grant(self, grant: Grant) -> None:
        """Store a grant and put it in force; calls in flight of a blocked or revoked grant are cut."""
        await self.store.put_grant(grant)
        self.keyring.put(grant)
        if grant.revoked_us is not None:
            self.cut(CutOff(Code.KEY_REVOKED, "The key was revoked."), lambda call: call.grant_id == grant.grant_id)
        elif grant.blocked:
            self.cut(CutOff(Code.KEY_BLOCKED, "The key was blocked."), lambda call: call.grant_id == grant.grant_id)

    async def put_fleet(self, fleet: FleetRecord) -> None:
        """Store a fleet and put it in force; calls in flight of a blocked fleet are cut."""
        await self.store.put_fleet(fleet)
        self.fleets[fleet.fleet] = fleet
        if fleet.blocked:
            cut_off = CutOff(Code.KEY_BLOCKED, "The fleet was blocked.", scope="fleet")
            self.cut(cut_off, lambda call: call.fleet == fleet.fleet)

    async def delete_fleet(self, name: str) -> bool:
        """Remove a fleet's record; its keys and history stay."""
        found = await self.store.delete_fleet(name)
        self.fleets.pop(name, None)
        return found

    async def put_deployment(self, deployment: Deployment) -> None:
        """Store a deployment and put it in force."""
        await self.store.put_deployment(deployment)
        self.deployments[deployment.deployment_id] = deployment
        self._groups.clear()

    async def delete_deployment(self, deployment_id: str) -> bool:
        """Remove a deployment."""
        found = await self.store.delete_deployment(deployment_id)
        self.deployments.pop(deployment_id, None)
        self._groups.clear()
        return found

    async def stop_run(self, fleet: str | None, run_id: str) -> bool:
        """Refuse every further call of a run and cut its calls in flight; say whether there is such a run."""
        found = await self.store.stop_run(fleet, run_id, self.clock.now_us())
        if found:
            cut_off = CutOff(Code.RUN_STOPPED, "This run was stopped.", scope="run")
            self.cut(cut_off, lambda call: call.run_id == run_id and fleet in (None, call.fleet or ""))
        return found

    # --- calls in flight ----------------------------------------------------------------------------------------
    def cut(self, cut_off: CutOff, concerns: Callable[[InFlight], bool]) -> None:
        """Cut the calls in flight that this concerns."""
        for call in [call for call in self.in_flight if call.cut is None and concerns(call)]:
            call.cut = cut_off
            call.task.cancel()

    # --- views for admission ------------------------------------------------------------------------------------
    def rate_scopes(self, grant: Grant, now_us: int) -> tuple[RateScope, ...]:
        """Return the rate limits that a request of this grant counts against, the role's first."""
        return self._standing_of(grant, now_us).rates

    def budget_scopes(self, grant: Grant, *, run_id: str | None, caps: RunCaps, now_us: int) -> tuple[BudgetScope, ...]:
        """Return the budgets that a hold of this grant counts against, in the fixed order run, role, fleet."""
        budgets = self._standing_of(grant, now_us).budgets
        if run_id is None:
            return budgets
        name = f"{grant.fleet or ''}/{run_id}"
        return (BudgetScope(kind="run", id=name, period="total", limit_nanos=caps.budget_nanos), *budgets)

    def fleet_of(self, grant: Grant) -> FleetRecord | None:
        """Return the record of a grant's fleet; None for a grant without one, or a fleet without a record."""
        return self.fleets.get(grant.fleet) if grant.fleet else None

    def role_scope(self, grant: Grant, *, now_us: int) -> BudgetScope:
        """Return the grant's own budget in its current period."""
        return self._standing_of(grant, now_us).budgets[0]

    async def last_used(self) -> dict[str, int | None]:
        """Return when each grant was last used, by its id; the store alone knows."""
        return {grant.grant_id: grant.last_used_us for grant in await self.store.grants()}

    def fleet_scope(self, name: str, *, now_us: int) -> BudgetScope:
        """Return the fleet's own budget; without a record of the fleet its spend is still recorded."""
        fleet = self.fleets.get(name, FleetRecord(fleet=name))
        period = period_at(fleet.budget_duration, now_us)
        return BudgetScope(
            kind="fleet",
            id=name,
            period=period.id,
            limit_nanos=fleet.budget_nanos,
            resets_at_us=period.resets_us,
        )

    def _standing_of(self, grant: Grant, now_us: int) -> _Standing:
        """Return the scopes of a grant: worked out once, and again when grant or fleet change or a period ends."""
        fleet = self.fleet_of(grant)
        standing = self._standings.get(grant.grant_id)
        if standing is not None and standing.holds(grant, fleet, now_us):
            return standing
        standing = self._work_out(grant, fleet, now_us)
        self._standings[grant.grant_id] = standing
        return standing

    def _work_out(self, grant: Grant, fleet: FleetRecord | None, now_us: int) -> _Standing:
        rates = [
            RateScope(
                kind="role",
                id=grant.grant_id,
                rpm=grant.rpm,
                tpm=grant.tpm,
                max_parallel=grant.max_parallel,
                name=grant.role or grant.alias,
            )
        ]
        if fleet is not None and (fleet.rpm is not None or fleet.tpm is not None):
            rates.append(RateScope(kind="fleet", id=fleet.fleet, rpm=fleet.rpm, tpm=fleet.tpm, name=fleet.fleet))
        period = period_at(grant.budget_duration, now_us)
        budgets = [
            BudgetScope(
                kind="role",
                id=grant.grant_id,
                period=period.id,
                limit_nanos=grant.budget_nanos,
                resets_at_us=period.resets_us,
            )
        ]
        if grant.fleet is not None:
            budgets.append(self.fleet_scope(grant.fleet, now_us=now_us))
        ends = [scope.resets_at_us for scope in budgets if scope.resets_at_us is not None]
        return _Standing(
            grant=grant,
            fleet=fleet,
            since_us=now_us,
            until_us=min(ends, default=None),
            rates=tuple(rates),
            budgets=tuple(budgets),
        )

    def alert_thresholds(self, grant: Grant) -> dict[str, float | None]:
        """Return at which fraction of each budget a warning is due."""
        fleet = self.fleet_of(grant)
        return {"run": 0.8, "role": grant.alert_at, "fleet": fleet.alert_at if fleet else None}

    def groups(self, fleet: str | None) -> Mapping[str, Sequence[Deployment]]:
        """Return the model groups that a fleet may use, deployments in their order."""
        known = self._groups.get(fleet)
        if known is None:
            known = self._groups[fleet] = {}
            for deployment in sorted(self.deployments.values(), key=lambda d: d.order):
                if deployment.fleet in (None, fleet):
                    known.setdefault(deployment.group, []).append(deployment)
        return known

    def targets(self, asked: str, fleet: str | None) -> Sequence[Target] | Refusal:
        """Return the deployments that can serve a model name, in the order to try."""
        return resolve(
            asked,
            groups=self.groups(fleet),
            provider_of=self.prices.provider_of,
            available=self._available,
            stand_in=self.stand_in,
            key_env_of=KEY_ENV_OF,
        )

    def _find_stand_in(self) -> str | None:
        real = set(self.providers) - {"sandbox"}
        stands_in = self.settings.sandbox == "on" or (self.settings.sandbox == "auto" and not real)
        return "sandbox" if stands_in and "sandbox" in self.providers else None
