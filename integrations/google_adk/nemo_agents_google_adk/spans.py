"""Spans that begin in one callback and end in another, without being the current place in between."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, cast

from nemo_agents import Run
from nemo_agents.trace.context import enter

if TYPE_CHECKING:
    from nemo_agents.trace.context import Place
    from nemo_agents.trace.otlp import SpanKind
    from nemo_agents.trace.spans import Span

__all__ = ["close_span", "open_span", "run_of"]


def run_of(place: Place) -> Run:
    """Return the run that a step or span lies in; a run is its own."""
    while place.around is not None:
        place = place.around
    return cast("Run", place)


def open_span(kind: SpanKind, name: str, *, under: Place, role: str | None = None, input: object = None) -> Span:  # noqa: A002 - the attribute's name
    """Begin a span under a place, in whose context or thread the caller need not be.

    It is entered in a copy of the context: what is current for the caller stays current.
    """

    def begin() -> Span:
        enter(under)
        return run_of(under).span(kind, name, role=role, input=input).__enter__()

    return copy_context().run(begin)


def close_span(span: Span, *, output: object = None, error: BaseException | None = None) -> None:
    """End a span that `open_span` began."""
    span.output = output
    copy_context().run(span.__exit__, None if error is None else type(error), error, None)
