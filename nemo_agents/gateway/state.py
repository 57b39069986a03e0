"""What a running gateway knows: the records that admission needs, in memory, with the store behind them.

The store is the truth. Every change goes to the store first and then into memory, so that a change is in force on the
next request and survives a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from msgspec import Struct

from nemo_agents.admin.wire import SpikeStatus
from nemo_agents.errors import Code
from nemo_agents.gateway.cache import AnswerCache
from nemo_agents.gateway.departure import Lookout
from nemo_agents.gateway.homefiles import HomeSecrets
from nemo_agents.gateway.keyring import KeyRing
from nemo_agents.gateway.limiter.base import Limiter
from nemo_agents.gateway.metrics import Metrics
from nemo_agents.gateway.ports import Provider
from nemo_agents.gateway.prices import PriceBook
from nemo_agents.gateway.priceupdates import DocumentPriceStore, FilePriceStore, PriceUpdates
from nemo_agents.gateway.providers import KEY_ENV_OF, ProviderConfig
from nemo_agents.gateway.retention import Retention
from nemo_agents.gateway.rim import Clock, Ids, chance
from nemo_agents.gateway.route import Router
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.standing import Standing, budgets_of, work_out
from nemo_agents.gateway.stores.base import FleetRecord, Store
from nemo_agents.gateway.tokenizer import InputBounds
from nemo_agents.policy.alerts import EventDraft
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused, RunCaps
from nemo_agents.policy.limits import WINDOW_US, RateScope
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import Deployment, Target, by_group, configured_deployments, names_of, resolve

__all__ = ["RUN_ALERT_AT", "CutOff", "Gateway", "InFlight", "Settled"]

RUN_ALERT_AT = (0.8,)


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


class Settled(Struct, frozen=True, kw_only=True):
    """A hold that was resolved: what it held, what was posted, and its scopes' balances with that in them."""

    request_id: str
    grant: Grant
    held_nanos: int
    posted_nanos: int
    balances: tuple[Balance, ...]


@dataclass(slots=True, kw_only=True)
class Gateway:
    """The gateway's state; one per process."""

    settings: Settings
    secrets: HomeSecrets
    store: Store
    keyring: KeyRing
    limiter: Limiter
    cache: AnswerCache  # answers that are given again, for roles that ask for it
    prices: PriceBook
    bounds: InputBounds
    providers: Mapping[str, Provider]
    provider_configs: Mapping[str, ProviderConfig]
    clock: Clock
    ids: Ids
    fleets: dict[str, FleetRecord] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    in_flight: set[InFlight] = field(default_factory=set)  # calls are in it from before their send, so as to be cut
    lookout: Lookout = field(default_factory=Lookout)  # has the clients of long calls watched
    applying: asyncio.Lock = field(default_factory=asyncio.Lock)  # what is in the store and here changes together
    catch_up: Callable[[], Awaitable[None]] | None = None  # apply what others have changed, where others can
    look: Callable[[], Awaitable[None]] | None = None  # the same for a request, which may have to wait its turn
    announce: Callable[[], None] | None = None  # tell others that something was changed, where they listen
    stale_after_ns: int | None = None  # on the monotonic clock: keys in memory are not to be trusted after it
    on_settled: Callable[[Settled], None] | None = None  # hears of every hold that was resolved
    on_refused: Callable[[HoldRefused], None] | None = None  # hears of every call that a budget has refused
    on_expired: Callable[[], None] | None = None  # hears that holds of lost calls were charged
    emit: Callable[[EventDraft], None] | None = None  # queues an event for the log, the stream and webhooks
    spikes: Mapping[str, SpikeStatus] = field(default_factory=dict)  # by grant id: those that spend far above usual
    event_streams: Counter[str] = field(
        default_factory=Counter
    )  # that are open, by the fleet of the key that opened them
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # set when streams of events are to end
    base_url: str = ""
    chance: Callable[[], float] = chance
    router: Router = field(init=False)  # chooses among deployments, by what this process learns of them
    price_updates: PriceUpdates = field(init=False)  # takes new tables of prices while calls are served
    stand_in: str | None = field(init=False)  # the provider that answers for those without credentials, if any
    retention: Retention = field(init=False)  # deletes what is old
    metrics: Metrics = field(init=False)  # what `/metrics` shows
    _available: frozenset[str] = field(init=False)
    _one_change: asyncio.Lock = field(default_factory=asyncio.Lock)
    configured: tuple[Deployment, ...] = field(init=False)  # those of groups in the configuration file
    _standings: dict[str, Standing] = field(default_factory=dict)
    _groups: dict[str | None, dict[str, list[Deployment]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note what follows from the providers, which stay as they are."""
        self.metrics = Metrics(self._is_known)
        self.retention = Retention(
            self.store,
            now_us=self.clock.now_us,
            new_id=self.ids.event_id,
            keep_runs_days=self.settings.keep_runs_days,
            keep_content_days=self.settings.keep_content_days,
        )
        self._available = frozenset(self.providers)
        self.stand_in = self._find_stand_in()
        self.configured = configured_deployments(self.settings.groups)
        self.router = Router(
            resolve=self.targets,
            groups=self.groups,
            context_tokens=self.prices.context_tokens,
            clock=self.clock,
            chance=self.chance,
            attempts=self.settings.max_attempts,
            retries=self.settings.retries,
        )
        shared = DocumentPriceStore(self.store) if self.settings.database else None
        self.price_updates = PriceUpdates(self.prices, shared or FilePriceStore(self.settings.home / "prices.json"))

    async def load(self) -> None:
        """Read everything that admission needs from the store, and rebuild the rate windows of the last minute."""
        for grant in await self.store.grants():
            self.keyring.put(grant)
        self.fleets = {fleet.fleet: fleet for fleet in await self.store.fleets()}
        self.deployments = {d.deployment_id: d for d in await self.store.deployments()}
        now_us = self.clock.now_us()
        await self.limiter.restore(now_us, await self.store.recent_use(now_us - WINDOW_US))

    @property
    def keys_are_stale(self) -> bool:
        """Whether what others changed is unknown for so long that no key in memory may be trusted."""
        return self.stale_after_ns is not None and time.monotonic_ns() > self.stale_after_ns

    # --- changes ------------------------------------------------------------------------------------------------
    @property
    def changing(self) -> AbstractAsyncContextManager[None]:
        """A context for a change that reads, then writes: one at a time, in all gateways that share the store.

        What others have changed before is known inside. Raises StoreUnavailable.
        """
        return self._change()

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        async with self._one_change, self.store.exclusive():
            if self.catch_up is not None:
                await self.catch_up()
            yield
        if self.announce is not None:
            self.announce()

    async def put_grant(self, grant: Grant) -> None:
        """Store a grant and put it in force; calls in flight of a blocked or revoked grant are cut."""
        async with self.applying:
            await self.store.put_grant(grant)
            self.take_grant(grant)

    def take_grant(self, grant: Grant) -> None:
        """Put a grant in force as the store has it."""
        self.keyring.put(grant)
        if grant.revoked_us is not None:
            self.cut(CutOff(Code.KEY_REVOKED, "The key was revoked."), lambda call: call.grant_id == grant.grant_id)
        elif grant.blocked:
            self.cut(CutOff(Code.KEY_BLOCKED, "The key was blocked."), lambda call: call.grant_id == grant.grant_id)

    async def put_fleet(self, fleet: FleetRecord) -> None:
        """Store a fleet and put it in force; calls in flight of a blocked fleet are cut."""
        async with self.applying:
            await self.store.put_fleet(fleet)
            self.take_fleet(fleet)

    def take_fleet(self, fleet: FleetRecord) -> None:
        """Put a fleet in force as the store has it."""
        self.fleets[fleet.fleet] = fleet
        if fleet.blocked:
            cut_off = CutOff(Code.KEY_BLOCKED, "The fleet was blocked.", scope="fleet")
            self.cut(cut_off, lambda call: call.fleet == fleet.fleet)

    async def delete_fleet(self, name: str) -> bool:
        """Remove a fleet's record; its keys and history stay."""
        async with self.applying:
            found = await self.store.delete_fleet(name)
            self.fleets.pop(name, None)
        return found

    async def put_deployment(self, deployment: Deployment) -> None:
        """Store a deployment and put it in force."""
        async with self.applying:
            await self.store.put_deployment(deployment)
            self.take_deployments([*self.deployments.values(), deployment])

    async def delete_deployment(self, deployment_id: str) -> bool:
        """Remove a deployment."""
        async with self.applying:
            found = await self.store.delete_deployment(deployment_id)
            self.take_deployments([d for d in self.deployments.values() if d.deployment_id != deployment_id])
        return found

    def take_deployments(self, deployments: Iterable[Deployment]) -> None:
        """Put these deployments in force, and no others."""
        self.deployments = {deployment.deployment_id: deployment for deployment in deployments}
        self._groups.clear()

    async def stop_run(self, fleet: str | None, run_id: str) -> bool:
        """Refuse every further call of a run and cut its calls in flight; say whether there is such a run."""
        found = await self.store.stop_run(fleet, run_id, self.clock.now_us())
        if found:
            self.cut_run(fleet, run_id)
        return found

    def cut_run(self, fleet: str | None, run_id: str) -> None:
        """Cut the calls in flight of a run that was stopped; `fleet` None means those of any fleet."""
        cut_off = CutOff(Code.RUN_STOPPED, "This run was stopped.", scope="run")
        self.cut(cut_off, lambda call: call.run_id == run_id and fleet in (None, call.fleet or ""))

    # --- calls in flight ----------------------------------------------------------------------------------------
    def cut(self, cut_off: CutOff, concerns: Callable[[InFlight], bool]) -> None:
        """Cut the calls in flight that this concerns."""
        for call in [call for call in self.in_flight if call.cut is None and concerns(call)]:
            call.cut = cut_off
            call.task.cancel()

    # --- views for admission ------------------------------------------------------------------------------------
    def rate_scopes(self, grant: Grant, now_us: int, model: str | None = None) -> tuple[RateScope, ...]:
        """Return the rate limits that a request of this grant counts against: role, fleet, and the model's of it."""
        standing = self._standing_of(grant, now_us)
        of_model = None
        if model is not None and standing.of_models:
            names = names_of(model, provider_of=self.prices.provider_of, groups=self.groups(grant.fleet))
            of_model = next((standing.of_models[name] for name in names if name in standing.of_models), None)
        return standing.rates if of_model is None else (*standing.rates, of_model)

    def budget_scopes(self, grant: Grant, *, run_id: str | None, caps: RunCaps, now_us: int) -> tuple[BudgetScope, ...]:
        """Return the budgets that a hold of this grant counts against, in the fixed order run, role, fleet."""
        budgets = self._standing_of(grant, now_us).budgets
        if run_id is None:
            return budgets
        name = f"{grant.fleet or ''}/{run_id}"
        run = BudgetScope(
            kind="run", id=name, period="total", limit_nanos=caps.budget_nanos, alert_at=RUN_ALERT_AT, name="run"
        )
        return (run, *budgets)

    def shadows(self, grant: Grant, now_us: int) -> tuple[BudgetScope, ...]:
        """Return the budgets of a grant and its fleet that record and never refuse."""
        return self._standing_of(grant, now_us).shadows

    def fleet_of(self, grant: Grant) -> FleetRecord | None:
        """Return the record of a grant's fleet; None for a grant without one, or a fleet without a record."""
        return self.fleets.get(grant.fleet) if grant.fleet else None

    def role_budgets(self, grant: Grant, *, now_us: int) -> tuple[BudgetScope, ...]:
        """Return the grant's own budgets in their current periods; the one that records where it has none."""
        return self._standing_of(grant, now_us).own

    def role_scope(self, grant: Grant, *, now_us: int) -> BudgetScope:
        """Return the first of the grant's own budgets in its current period."""
        return self.role_budgets(grant, now_us=now_us)[0]

    async def last_used(self) -> dict[str, int | None]:
        """Return when each grant was last used, by its id; the store alone knows."""
        return {grant.grant_id: grant.last_used_us for grant in await self.store.grants()}

    def fleet_budgets(self, name: str, *, now_us: int) -> tuple[BudgetScope, ...]:
        """Return the fleet's own budgets; without any, and without a record of it, its spend is still recorded."""
        fleet = self.fleets.get(name)
        rules = fleet.budgets if fleet is not None else ()
        return budgets_of("fleet", name, rules, now_us)

    def fleet_scope(self, name: str, *, now_us: int) -> BudgetScope:
        """Return the first of the fleet's own budgets in its current period."""
        return self.fleet_budgets(name, now_us=now_us)[0]

    def _standing_of(self, grant: Grant, now_us: int) -> Standing:
        """Return the scopes of a grant: worked out once, and again when grant or fleet change or a period ends."""
        fleet = self.fleet_of(grant)
        standing = self._standings.get(grant.grant_id)
        if standing is not None and standing.holds(grant, fleet, now_us):
            return standing
        standing = work_out(grant, fleet, self.settings, now_us)
        self._standings[grant.grant_id] = standing
        return standing

    def groups(self, fleet: str | None) -> Mapping[str, Sequence[Deployment]]:
        """Return the model groups that a fleet may use, deployments in their order.

        A group of the fleet's own goes before one of every fleet, and that before one of the configuration file.
        """
        known = self._groups.get(fleet)
        if known is None:
            known = self._groups[fleet] = {}
            provisioned = sorted(self.deployments.values(), key=lambda d: (d.order, d.deployment_id))
            of_all = [d for d in provisioned if d.fleet is None]
            own = [d for d in provisioned if d.fleet is not None and d.fleet == fleet]
            for source in (self.configured, of_all, own):
                known |= by_group(source)
        return known

    def targets(self, asked: str, fleet: str | None) -> tuple[Target, ...] | Refusal:
        """Return the deployments that can serve a model name, in the order of their declaration."""
        return resolve(
            asked,
            groups=self.groups(fleet),
            provider_of=self.prices.provider_of,
            available=self._available,
            stand_in=self.stand_in,
            key_env_of=KEY_ENV_OF,
        )

    def _is_known(self, provider: str, model: str) -> bool:
        """Say whether a model has a price or is declared: any other name may be of a caller's own making."""
        named = f"{provider}/{model}"
        return self.prices.price(provider, model) is not None or any(
            deployment.model == named for deployment in (*self.configured, *self.deployments.values())
        )

    def _find_stand_in(self) -> str | None:
        real = set(self.providers) - {"sandbox"}
        stands_in = self.settings.sandbox == "on" or (self.settings.sandbox == "auto" and not real)
        return "sandbox" if stands_in and "sandbox" in self.providers else None
