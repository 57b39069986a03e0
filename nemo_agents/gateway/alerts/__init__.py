"""Alerts: budgets at their thresholds, spend far above the usual, and where they go: the log, the stream, webhooks.

`server.py` makes them once the gateway is built, and runs them while it listens:

    alerts = Alerts.of(gateway, environ)   # checks `[webhooks.<name>]` and secrets; raises SettingsError
    alerts.start()                         # sets the hooks below; begins to watch, look out and deliver
    gateway.stopping.set()                 # at the stop: streams of events end
    await alerts.stop()                    # once every call has ended, with the store still open

The data plane calls `gateway.on_settled` after a settlement that moved money and `gateway.on_refused` when a hold was
refused for good, the sweeper `gateway.on_expired`, each where it is not None: none does I/O or waits, and what is
remembered is bounded. Whoever notices something else tells it with `gateway.emit(EventDraft(…))`, which only queues it.
"""

from __future__ import annotations

from nemo_agents.gateway.alerts.alerts import Alerts

__all__ = ["Alerts"]
