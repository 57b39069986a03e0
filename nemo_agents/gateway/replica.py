"""One gateway of several that share a store: what the others change is known here within a fraction of a second.

The store keeps a list of changes. Each gateway asks for what is new in it five times a second, takes the named records
anew from the store, and cuts the calls in flight that may not go on. One that has not reached the store for half a
minute no longer knows which keys are good, and refuses all of them until it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import defaultdict
from collections.abc import Sequence

import structlog

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import Change, StoreUnavailable

__all__ = ["Replica"]

POLL_S = 0.2
_POLL_TIMEOUT_S = 5.0
LOOK_EVERY_S = 0.02
TRUST_S = 30.0
"""How long keys in memory are trusted while the store cannot be asked about them."""
_PEPPER_CHECK = "pepper-check"
_ADMIN_KEY_CHECK = "admin-key-check"
_log = structlog.get_logger("nemo_agents.gateway")


class Replica:
    """Keeps what one gateway has in memory as the shared store has it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._position: int | None = None
        self._woken = asyncio.Event()
        self._lost = False
        self._refreshing: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None
        self._looked_s = 0.0

    async def join(self) -> None:
        """Take the place in the list of changes, before anything is loaded, and become what the gateway asks.

        Raises SettingsError when this gateway has another pepper than those before it; another admin key is logged.
        """
        await self._check_pepper()
        await self._check_admin_key()
        await self.catch_up()
        self._gateway.catch_up = self.catch_up
        self._gateway.look = self.look

    def wake(self) -> None:
        """Look at once: somebody said that there is something new."""
        self._woken.set()

    async def follow(self) -> None:
        """Keep up with the others, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                async with asyncio.timeout(_POLL_TIMEOUT_S):
                    await self.catch_up()
            except (StoreUnavailable, TimeoutError) as error:
                self._report_loss(str(error) or "no answer in time")
            except Exception:  # noqa: BLE001 - whatever it is, the others go on changing things: ask again
                _log.exception("changes of other gateways cannot be read")
            else:
                self._lost = False

    async def look(self) -> None:
        """Apply what was changed before this was called: once for all who ask meanwhile. Raises StoreUnavailable.

        For a key that nobody here knows. Guessed ones cost the store no more than a look each `LOOK_EVERY_S`.
        """
        look = self._next_look
        if look is None:
            look = self._next_look = asyncio.create_task(self._look_in_turn())
            look.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be that nobody waits
        await asyncio.shield(look)

    async def _look_in_turn(self) -> None:
        await asyncio.sleep(self._looked_s + LOOK_EVERY_S - time.monotonic())
        self._next_look = None  # what was changed from now on, this look may miss
        self._looked_s = time.monotonic()
        try:
            async with asyncio.timeout(_POLL_TIMEOUT_S):
                await self.catch_up()
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None

    async def catch_up(self) -> None:
        """Put in force what was changed since the last look. Raises StoreUnavailable."""
        gateway = self._gateway
        async with gateway.applying:
            asked_ns = time.monotonic_ns()
            position, changes = await gateway.store.changes(self._position)
            await self._apply(changes)
            self._position = position
            gateway.stale_after_ns = asked_ns + int(TRUST_S * 1e9)

    async def _apply(self, changes: Sequence[Change]) -> None:
        gateway, store = self._gateway, self._gateway.store
        changed: defaultdict[str, set[str]] = defaultdict(set)
        for change in changes:
            changed[change.kind].add(change.id)
        if changed["fleet"]:
            fleets = {fleet.fleet: fleet for fleet in await store.fleets()}
            for name in changed["fleet"]:
                if name in fleets:
                    gateway.take_fleet(fleets[name])
                else:
                    gateway.fleets.pop(name, None)
        if changed["grant"]:
            for grant in await store.grants():
                if grant.grant_id in changed["grant"]:
                    gateway.take_grant(grant)
        if changed["deployment"]:
            gateway.take_deployments(await store.deployments())
        if changed["document"]:
            self._refreshing = asyncio.create_task(self._refresh_prices())  # reading a table takes its time
        for run in changed["run"]:
            fleet, _, run_id = run.rpartition("/")
            gateway.cut_run(fleet, run_id)

    async def _refresh_prices(self) -> None:
        try:
            await self._gateway.price_updates.refresh()
        except Exception as error:  # noqa: BLE001 - it looks again by itself, later
            _log.warning("a new table of prices cannot be read", error=str(error)[:300])

    def _report_loss(self, error: str) -> None:
        """Say once that the store cannot be asked; it is asked on."""
        if not self._lost:
            _log.error("the database cannot be asked for changes", error=error, keys_trusted_for_s=TRUST_S)
        self._lost = True

    async def _check_pepper(self) -> None:
        gateway = self._gateway
        pepper = gateway.secrets.pepper.reveal().encode()
        check = hmac.new(pepper, b"nemo-agents: the pepper of every gateway here", hashlib.sha256).hexdigest().encode()
        async with gateway.store.exclusive():
            kept = await gateway.store.document(_PEPPER_CHECK)
            if kept is None:
                await gateway.store.put_document(_PEPPER_CHECK, check)
            elif not hmac.compare_digest(kept, check):
                raise SettingsError(
                    "this gateway's pepper is not that of the gateways that share its database, so it would know none "
                    "of their keys. Give it the pepper of the first one: its NEMO_PEPPER, or the file `pepper` in its "
                    f"home, which belongs in {gateway.settings.home} here."
                )

    async def _check_admin_key(self) -> None:
        """Warn when the gateway that started before this one has another admin key; it may be about to get the new one.

        What is kept is keyed with the pepper, so that the database alone does not help to test guesses.
        """
        gateway = self._gateway
        told = b"nemo-agents: the admin key " + gateway.secrets.admin_key.reveal().encode()
        check = hmac.new(gateway.secrets.pepper.reveal().encode(), told, hashlib.sha256).hexdigest().encode()
        async with gateway.store.exclusive():
            kept = await gateway.store.document(_ADMIN_KEY_CHECK)
            if kept is not None and hmac.compare_digest(kept, check):
                return
            await gateway.store.put_document(_ADMIN_KEY_CHECK, check)
        if kept is not None:
            _log.warning(
                "this gateway's admin key is not that of the gateway which started before it with the same database: "
                "admin calls will be refused by some of them. Give all of them the same NEMO_ADMIN_KEY, unless it is "
                "being replaced, one gateway after the other"
            )
