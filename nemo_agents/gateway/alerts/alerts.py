"""The alerts of one gateway, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import httpx
import structlog

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.alerts.destinations import Destination, read_destinations
from nemo_agents.gateway.alerts.outlet import History, Outlet
from nemo_agents.gateway.alerts.spikes import Spikes
from nemo_agents.gateway.alerts.watch import Watch
from nemo_agents.gateway.alerts.webhooks import Webhooks, make_client
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.alerts import EventDraft, SpikeRule

__all__ = ["Alerts"]

_LAST_WRITE_S = 2.0
_log = structlog.get_logger("nemo_agents.gateway")


class Alerts:
    """The watch over budgets, the look-out for spikes, and the deliveries to webhooks."""

    def __init__(
        self,
        gateway: Gateway,
        destinations: Sequence[Destination],
        *,
        client: httpx.AsyncClient | None = None,
        spike_rule: SpikeRule | None = None,
    ) -> None:
        self._gateway = gateway
        self._client = client or make_client()
        rule = spike_rule or SpikeRule(factor=gateway.settings.spike_factor)
        if 0 < rule.factor <= 1:
            raise SettingsError(
                f"spike_factor is {rule.factor:g}; it must be more than 1 (times the usual), or 0 for no alerts"
            )
        now_us = gateway.clock.now_us
        self.webhooks = Webhooks(gateway.store, destinations, now_us=now_us, client=self._client)
        history = History(gateway.store)
        self.outlet = Outlet(
            gateway.store,
            history,
            now_us=now_us,
            new_event_id=gateway.ids.event_id,
            wanted={each.name: each.events for each in destinations},
            stored=self.webhooks.wake,
        )
        self.watch = Watch(gateway, self.outlet, history)
        self.spikes = Spikes(gateway, self.outlet, history, rule=rule)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def of(cls, gateway: Gateway, environ: Mapping[str, str]) -> Alerts:
        """Return the alerts of a gateway as its settings have them. Raises SettingsError."""
        source = str(gateway.settings.source or "the gateway's settings")
        return cls(gateway, read_destinations(gateway.settings.webhooks, environ, source=source))

    def start(self) -> None:
        """Listen to what the gateway does, and begin to watch, look out and deliver."""
        gateway = self._gateway
        gateway.on_settled, gateway.on_refused = self.watch.settled, self.watch.refused
        gateway.on_expired, gateway.emit = self.watch.everything, self.emit
        self._tasks = [
            asyncio.create_task(part.run(), name=type(part).__name__)
            for part in (self.watch, self.spikes, self.webhooks)
        ]

    def emit(self, draft: EventDraft) -> None:
        """Queue an event that somebody else noticed; it is stored within about a second."""
        self.outlet.emit(draft)
        self.watch.wake()

    async def stop(self) -> None:
        """End the streams of events and the tasks, and tell what is still untold; the store must be open."""
        self._gateway.stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_WRITE_S):
                await self.watch.look() if self._tasks else None
        except Exception as error:  # noqa: BLE001 - the next start looks at every budget
            _log.warning("budgets were not looked at a last time", error=repr(error))
        with contextlib.suppress(Exception):
            await self._client.aclose()
