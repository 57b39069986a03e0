"""What alerts have told: `/nemo/events`."""

from __future__ import annotations

from nemo_agents.admin.calls import Call, as_type, query_of
from nemo_agents.admin.wire import EventPage

__all__ = ["events"]


def events(*, after: int | None = None, limit: int | None = None, fleet: str | None = None) -> Call[EventPage]:
    """Read a page of events in the order of storing: those after `after`, by default the latest ones."""
    query = query_of(after=after, limit=limit, fleet=fleet)
    return Call(method="GET", path="/nemo/events", query=query, decode=as_type(EventPage))
