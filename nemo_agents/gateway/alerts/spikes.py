"""The look-out for spend spikes: once a minute, each role's last hour against its own usual hour."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

import structlog

from nemo_agents.admin.wire import SpikeStatus
from nemo_agents.gateway.alerts.outlet import History, Outlet
from nemo_agents.gateway.outages import Outage
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy.alerts import (
    HISTORY_DAYS,
    HOUR_US,
    Owner,
    SpikeRule,
    spike,
    spike_due,
    spike_event,
    spike_level,
)

__all__ = ["Spikes"]

EVERY_S = 60.0
_READ_AGAIN = 2  # closed hours: a call that began in one of them may have been settled since
_log = structlog.get_logger("nemo_agents.gateway")


class Spikes:
    """Finds spikes and keeps `gateway.spikes`; one that is over disappears by itself."""

    def __init__(
        self,
        gateway: Gateway,
        outlet: Outlet,
        history: History,
        *,
        rule: SpikeRule,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._gateway = gateway
        self._outlet = outlet
        self._history = history
        self._rule = rule
        self._sleep = sleep
        self._hours: dict[int, dict[str, int]] = {}  # closed hours: what each grant spent
        self._read_until_us = 0

    async def run(self) -> None:
        """Look once a minute, until cancelled."""
        outage = Outage(_log, "spend spikes cannot be looked for")
        while self._rule.factor:
            try:
                await self.look()
                outage.over()
            except StoreUnavailable as error:
                outage.met(error)
            except Exception:  # noqa: BLE001 - whatever it came upon, the next look must come
                _log.exception("spend spikes cannot be looked for")
            await self._sleep(EVERY_S)

    async def look(self) -> None:
        """Compare every role's last hour with its usual one, and tell what is new. Raises StoreUnavailable."""
        now_us = self._gateway.clock.now_us()
        await self._read_closed_hours(now_us)
        last: defaultdict[str, int] = defaultdict(int)
        for spent in await self._gateway.store.spend_by_hour(now_us - HOUR_US, now_us):
            last[spent.grant_id] += spent.cost_nanos
        grants = {g.grant_id: g for g in self._gateway.keyring.grants() if g.revoked_us is None}
        found: dict[str, SpikeStatus] = {}
        for grant_id, nanos in last.items():
            one = spike(nanos, self._of(grant_id, until_us=now_us - HOUR_US), self._rule)
            if one is not None and grant_id in grants:
                found[grant_id] = one
        self._gateway.spikes = found
        if not any(self._due(grant_id, one, now_us) for grant_id, one in found.items()):
            return
        await self._history.catch_up()
        for grant_id, one in found.items():
            if self._due(grant_id, one, now_us):
                grant = grants[grant_id]
                owner = Owner(name=grant.role or grant.alias or grant_id, fleet=grant.fleet, role=grant.role)
                level = spike_level(one, self._rule)
                await self._outlet.publish(spike_event(one, level, owner, grant_id=grant_id, now_us=now_us))

    def _due(self, grant_id: str, found: SpikeStatus, now_us: int) -> bool:
        return spike_due(spike_level(found, self._rule), now_us, self._history.spikes.get(grant_id))

    def _of(self, grant_id: str, *, until_us: int) -> list[int]:
        """Return what a grant spent in each closed hour that ended by then."""
        return [of.get(grant_id, 0) for hour_us, of in self._hours.items() if hour_us + HOUR_US <= until_us]

    async def _read_closed_hours(self, now_us: int) -> None:
        """Bring the closed hours of the last seven days up to date: all at first, later the last two again."""
        open_us = now_us // HOUR_US * HOUR_US
        first_us = open_us - HISTORY_DAYS * 24 * HOUR_US
        since_us = max(first_us, min(self._read_until_us, open_us) - _READ_AGAIN * HOUR_US)
        spent = await self._gateway.store.spend_by_hour(since_us, open_us)
        self._hours = {hour_us: of for hour_us, of in self._hours.items() if first_us <= hour_us < since_us}
        for one in spent:
            self._hours.setdefault(one.hour_us, {})[one.grant_id] = one.cost_nanos
        self._read_until_us = open_us
