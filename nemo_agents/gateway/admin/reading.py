"""The store as the viewer sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nemo_agents.admin import wire
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.status import fleet_statuses
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.viewer.reader import ReadFailed

__all__ = ["StoreReader"]


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise ReadFailed(str(error)) from error


class StoreReader:
    """Implements the viewer's `Reader` over the gateway's store."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def list_runs(
        self,
        *,
        fleet: str | None,
        role: str | None,
        model: str | None,
        state: str | None,
        status: int | None,
        since_us: int | None,
        before: str | None,
        limit: int,
    ) -> wire.RunPage:
        """Return a page of runs, newest first."""
        where = LogFilter(fleet=fleet, role=role, model=model, state=state, status=status, since_us=since_us)
        with _readable():
            return await self._gateway.store.runs(where, before=before, limit=limit)

    async def get_run(self, run_id: str) -> wire.RunDetail | None:
        """Return one run."""
        with _readable():
            return await self._gateway.store.run(run_id, fleet=None)

    async def list_calls(
        self,
        *,
        run_id: str | None,
        role: str | None,
        model: str | None,
        status: int | None,
        before: str | None,
        limit: int,
    ) -> wire.LogPage:
        """Return a page of the request log, newest first."""
        where = LogFilter(run_id=run_id, role=role, model=model, status=status)
        with _readable():
            return await self._gateway.store.calls(where, before=before, limit=limit)

    async def get_contents(self, ids: Sequence[str]) -> dict[str, wire.CallContent]:
        """Return what these calls said."""
        with _readable():
            return await self._gateway.store.contents(ids)

    async def get_span_texts(self, run: wire.RunRow, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        """Return what these spans of a run took and gave."""
        with _readable():
            return await self._gateway.store.span_contents(run.fleet or "", run.run_id, ids)

    async def fleet_status(self) -> list[wire.FleetStatus]:
        """Return every fleet with its roles as they are now."""
        with _readable():
            return await fleet_statuses(self._gateway)

    async def latest_events(self, limit: int) -> list[wire.EventRow]:
        """Return the latest events of all fleets, oldest first."""
        with _readable():
            return list(await self._gateway.store.events(after=-1, limit=limit))
