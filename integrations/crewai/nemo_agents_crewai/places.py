"""Where the model calls of a crew belong: in the current run and step, under the span of the agent that makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from crewai.events.event_bus import crewai_event_bus
from crewai.events.event_context import get_current_parent_id

from nemo_agents.trace import context, propagate
from nemo_agents_crewai import tracing

if TYPE_CHECKING:
    from nemo_agents.trace.context import Answer, Place
    from nemo_agents_crewai.seats import Seat
    from nemo_agents_crewai.tracing import RunListener

__all__ = ["inside_span", "settle"]

SETTLE_TIMEOUT_S: Final = 1.0


class _Inside:
    """A place whose calls belong under the span that stands for an event of crewAI's.

    crewAI tells its listeners on other threads, so the span may not be open yet when a call goes out; the call is then
    put under it as soon as both are known.
    """

    def __init__(self, place: Place, listener: RunListener, event_id: str) -> None:
        self._place = place
        self._listener = listener
        self._event_id = event_id
        self._told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    @property
    def around(self) -> Place:
        return self._place

    @property
    def span_id(self) -> str:
        return self._listener.span_of(self._event_id, self._place.run_id) or self._place.span_id

    def headers(self) -> Mapping[str, str]:
        span_id = self._listener.span_of(self._event_id, self._place.run_id)
        self._told = span_id is not None
        headers = self._place.headers()
        return headers if span_id is None else propagate.under_span(headers, span_id)

    def at(self, step: str | None) -> Any:
        return _Inside(self._place.at(step), self._listener, self._event_id)

    def saw(self, answer: Answer) -> None:
        self._place.saw(answer)
        if answer.request_id is not None and not self._told:
            self._listener.link(answer.request_id, self._event_id)


@contextmanager
def inside_span(seat: Seat) -> Iterator[None]:
    """Make the calls in the block part of what crewAI is doing: of the agent, or whatever else asks its model."""
    place = context.here() or seat.run
    event_id = get_current_parent_id()
    listener = tracing.attached()
    if place is None or place.over or event_id is None or listener is None:
        yield
        return
    # It gives on what it does not say itself, and so is a Place.
    with context.inside(cast("Place", _Inside(place, listener, event_id))):
        yield


def settle() -> None:
    """Wait, a second at most, until what crewAI has told so far is in the run: a run that stops keeps what it has."""
    if tracing.attached() is not None:
        crewai_event_bus.flush(SETTLE_TIMEOUT_S)
