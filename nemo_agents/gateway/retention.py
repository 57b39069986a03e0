"""How long the log is kept: what the settings say, and what an operator asks for.

One pruning goes on at a time in a process. It goes on in the background, in small pieces; whoever asked for it waits as
long as a request may take, and asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from nemo_agents.admin.wire import LogSize, Pruned
from nemo_agents.gateway.outages import Outage
from nemo_agents.gateway.stores.base import PruneOrder, Store, StoreUnavailable

__all__ = ["DAY_S", "PruneWish", "Retention", "RetentionBusy"]

DAY_S: Final = 86_400
_FIRST_AFTER_S: Final = 300.0  # a start has other things to do
_EVERY_S: Final = 6 * 3600.0
_log = structlog.get_logger("nemo_agents.gateway")


class RetentionBusy(Exception):  # noqa: N818 - answered with 409
    """Another pruning goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWish:
    """What is to be deleted, by its age; `vacuum`: then give what is free back to the machine."""

    older_than_s: int
    contents_only: bool = False
    vacuum: bool = False


class Retention:
    """Prunes one store. `keep_runs_days` and `keep_content_days` are 0 where things are kept for ever."""

    def __init__(
        self,
        store: Store,
        *,
        now_us: Callable[[], int],
        new_id: Callable[[], str],
        keep_runs_days: int,
        keep_content_days: int,
    ) -> None:
        self._store = store
        self._now_us = now_us
        self._new_id = new_id
        self._keep_runs_days = keep_runs_days
        self._keep_content_days = keep_content_days
        self._wish: PruneWish | None = None
        self._job: asyncio.Task[None] | None = None
        self._pruned = Pruned()

    async def foresee(self, wish: PruneWish) -> Pruned:
        """Return what would be deleted. Raises StoreUnavailable."""
        return await self._store.prunable(self._order(wish))

    async def prune(self, wish: PruneWish, *, within_s: float) -> Pruned:
        """Begin what is wished, or go along with it where it goes on already; return what has been deleted by then.

        Raises StoreUnavailable, and RetentionBusy while something else is being deleted.
        """
        if self._job is None:
            self._pruned, self._wish = Pruned(), wish
            self._job = asyncio.create_task(self._do(wish))
        elif self._wish != wish:
            raise RetentionBusy
        job = self._job
        await asyncio.wait({job}, timeout=within_s)
        if not job.done():
            return msgspec.structs.replace(self._pruned, done=False)
        if self._job is job:
            self._job = None
        job.result()
        return self._pruned

    async def size(self) -> LogSize:
        """Return how large the log is, and how long what is in it is kept. Raises StoreUnavailable."""
        size = await self._store.log_size()
        size.keep_runs_days = self._keep_runs_days or None
        size.keep_content_days = self._keep_content_days or None
        return size

    async def keep(self) -> None:
        """Delete what the settings say, every few hours, until cancelled; then end whatever goes on."""
        outage = Outage(_log, "the log cannot be pruned")
        pause_s = _FIRST_AFTER_S
        try:
            while True:
                await asyncio.sleep(pause_s)
                pause_s = _EVERY_S
                try:
                    await self.keep_once()
                    outage.over()
                except RetentionBusy:
                    pause_s = _FIRST_AFTER_S
                except StoreUnavailable as error:
                    outage.met(error)
                    pause_s = _FIRST_AFTER_S
                except Exception:  # noqa: BLE001 - the next time may go well, and calls are served in any case
                    _log.exception("the log cannot be pruned")
        finally:
            if self._job is not None:
                self._job.cancel()
                with contextlib.suppress(asyncio.CancelledError, StoreUnavailable):
                    await self._job

    async def keep_once(self) -> None:
        """Delete what the settings say. Raises StoreUnavailable, and RetentionBusy."""
        for days, contents_only in ((self._keep_runs_days, False), (self._keep_content_days, True)):
            if not days:
                continue
            pruned = await self.prune(PruneWish(older_than_s=days * DAY_S, contents_only=contents_only), within_s=1e9)
            if pruned != Pruned():
                _log.info("the log was pruned", keep_days=days, **_told(pruned))

    def _order(self, wish: PruneWish) -> PruneOrder:
        cut_us = self._now_us() - wish.older_than_s * 1_000_000
        return PruneOrder(pruning=self._new_id(), cut_us=cut_us, contents_only=wish.contents_only)

    async def _do(self, wish: PruneWish) -> None:
        async for piece in self._store.prune(self._order(wish)):
            self._pruned.add(piece)
        if wish.vacuum:
            async for freed in self._store.vacuum():
                self._pruned.add(Pruned(bytes=freed))


def _told(pruned: Pruned) -> dict[str, int]:
    return {name: count for name, count in msgspec.structs.asdict(pruned).items() if name != "done" and count}
