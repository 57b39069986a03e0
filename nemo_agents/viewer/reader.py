"""What the viewer needs of whoever keeps the runs: seven reads, no writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nemo_agents.admin import wire

__all__ = ["ReadFailed", "Reader"]


class ReadFailed(Exception):  # noqa: N818 - a condition, answered with 503
    """The store cannot be read now. The text is shown to nobody; the page says what to do."""


class Reader(Protocol):
    """Reads of the request log. Conditions that are None do not restrict; `limit` is at least 1.

    `before` is the `next` of an earlier page. Every method may raise ReadFailed; the two lists raise ValueError
    for a cursor that they never gave. Times are integer microseconds since the epoch (UTC).
    """

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
        """Return a page of runs, newest first; `role`, `model` and `status` match by any call of a run."""

    async def get_run(self, run_id: str) -> wire.RunDetail | None:
        """Return one run by its id, a prefix that only it has, or `last`; None when there is no such run."""

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
        """Return a page of the request log, newest first. `model` matches the model asked for or served."""

    async def get_contents(self, ids: Sequence[str]) -> dict[str, wire.CallContent]:
        """Return what these calls said, by request id; a call whose content was not kept is absent."""

    async def get_span_texts(self, run: wire.RunRow, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        """Return what these spans of a run took and gave, by span id; absent where it was not kept."""

    async def fleet_status(self) -> list[wire.FleetStatus]:
        """Return every fleet with its roles as they are now."""

    async def latest_events(self, limit: int) -> list[wire.EventRow]:
        """Return the latest events of all fleets, oldest first."""
