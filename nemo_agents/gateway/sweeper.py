"""What a gateway does every few seconds: close holds past their time, and look at the clocks."""

from __future__ import annotations

import asyncio
import time

import structlog

from nemo_agents.gateway.outages import Outage
from nemo_agents.gateway.rim import ClockSteps, SharedClock
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy.alerts import EventDraft

__all__ = ["read_shared_clock", "sweep"]

_EVERY_S = 4.0  # a hold is closed within five seconds of its time
_READINGS = 3
_MACHINE = "this machine"
_log = structlog.get_logger("nemo_agents.gateway")


async def sweep(gateway: Gateway) -> None:
    """Sweep until cancelled; a store that is down now will be swept later."""
    machine, database = ClockSteps(), ClockSteps()
    no_clocks, no_sweep = Outage(_log, "the clocks cannot be compared"), Outage(_log, "sweep failed")
    while True:
        try:
            await _look_at_clocks(gateway, machine, database)
            no_clocks.over()
        except StoreUnavailable as error:
            no_clocks.met(error)
        except Exception:  # noqa: BLE001 - the sweeper goes on, whatever one look came upon
            _log.exception("the clocks cannot be compared")
        await asyncio.sleep(_EVERY_S)
        try:
            expired = await gateway.store.sweep(gateway.clock.now_us())
            no_sweep.over()
        except StoreUnavailable as error:
            no_sweep.met(error)
            continue
        except Exception:  # noqa: BLE001 - as above
            _log.exception("sweep failed")
            continue
        if expired:
            _log.warning("holds expired", count=expired)
            if gateway.on_expired is not None:
                gateway.on_expired()


async def read_shared_clock(gateway: Gateway) -> int | None:
    """Let the gateway's clock follow that of the shared store; return its time less the monotonic clock's.

    The reading that took least is the nearest. None where the store has no clock of its own. Raises StoreUnavailable.
    """
    clock, best = gateway.clock, None
    if not isinstance(clock, SharedClock):
        return None
    for _ in range(_READINGS):
        asked_ns = time.monotonic_ns()
        theirs_us = await gateway.store.now_us()
        answered_ns = time.monotonic_ns()
        if theirs_us is None:
            return None
        if best is None or answered_ns - asked_ns < best[2] - best[1]:
            best = theirs_us, asked_ns, answered_ns
    assert best is not None
    theirs_us, asked_ns, answered_ns = best
    clock.follow(theirs_us, asked_ns=asked_ns, answered_ns=answered_ns)
    return theirs_us - (asked_ns + answered_ns) // 2000


async def _look_at_clocks(gateway: Gateway, machine: ClockSteps, database: ClockSteps) -> None:
    step_us = machine.look(time.time_ns() // 1000, time.monotonic_ns() // 1000)
    if step_us is not None:
        _report(gateway, _MACHINE, step_us)
    offset_us = await read_shared_clock(gateway)
    step_us = None if offset_us is None else database.look(offset_us, 0)
    if step_us is not None:
        _report(gateway, "the database", step_us)


def _report(gateway: Gateway, whose: str, step_us: int) -> None:
    """Log that a clock was set, and tell it as an event."""
    if whose == _MACHINE and isinstance(gateway.clock, SharedClock):
        follows = "Periods follow the database's clock, and are as they were."
    elif step_us > 0:
        follows = "Periods follow it."
    else:
        follows = "Periods that have ended stay ended: they follow the clock as it was."
    way = "forward" if step_us > 0 else "back"
    message = f"The clock of {whose} was set {way} by {abs(step_us) / 1e6:.0f} s. {follows}"
    _log.warning("clock stepped", whose=whose, step_s=step_us / 1e6)
    if gateway.emit is not None:
        once = f"clock.stepped {gateway.ids.event_id()}"
        facts = {"clock": whose, "step_us": step_us}
        gateway.emit(EventDraft(kind="clock.stepped", once=once, message=message, facts=facts))
