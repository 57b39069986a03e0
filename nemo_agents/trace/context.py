"""Where a call happens: the run, step or span that is current in this thread or task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from nemo_agents.errors import GatewayError

__all__ = ["Answer", "Place", "bind", "enter", "here", "inside", "leave"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one answer of the gateway said about itself.

    `sent` is the place of its request in the order of the run's requests, from 1. `cost_nanos` is None where
    the gateway did not say (streams, refusals); `error` is set where the answer was not a success, `in_stream`
    where it came inside an answer that had been seen as a success.
    """

    sent: int
    in_stream: bool = False
    request_id: str | None = None
    cost_nanos: int | None = None
    error: GatewayError | None = None


class Place(Protocol):
    """A run, a step of one, or a span in either, as the HTTP hooks see it."""

    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on; its headers go to no other."""

    @property
    def around(self) -> Place | None:
        """The place that this one lies in: a span's step, a step's run; None of a run."""

    @property
    def over(self) -> bool:
        """Whether the run has ended, so that no call can belong to it any more."""

    @property
    def run_id(self) -> str:
        """The id of the run."""

    @property
    def step_label(self) -> str | None:
        """The label of the step, None outside of any."""

    @property
    def role(self) -> str | None:
        """The role of the step, None where there is none."""

    @property
    def span_id(self) -> str:
        """The span that calls made here belong under: 16 hex digits."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made here."""

    def left_s(self) -> float | None:
        """Return the seconds until the step's deadline, 0 when it has passed; None when there is none."""

    def at(self, step: str | None) -> Place:
        """Return the step of this run with that label, or the run."""

    def sends(self) -> int:
        """Count a request that is about to go out, and return its number."""

    def saw(self, answer: Answer) -> None:
        """Take note of an answer."""


_PLACE: ContextVar[Place | None] = ContextVar("nemo_agents_place", default=None)


def here() -> Place | None:
    """Return the current run, step or span, None outside of any."""
    return _PLACE.get()


def enter(place: Place) -> Token[Place | None]:
    """Make a place the current one; `leave` undoes it."""
    return _PLACE.set(place)


def leave(token: Token[Place | None]) -> None:
    """Make the former place current again."""
    try:
        _PLACE.reset(token)
    except ValueError:
        # Entered in one context, left in another, as a generator-based fixture does: nothing to restore here.
        return


@contextmanager
def inside(place: Place) -> Iterator[None]:
    """Make a place the current one for the length of a block."""
    token = enter(place)
    try:
        yield
    finally:
        leave(token)


def bind(place: Place, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function with `place` current while it runs, whatever thread or task runs it."""
    if inspect.iscoroutinefunction(fn):

        @wraps(fn)
        async def run_in_place(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            with inside(place):
                return await fn(*args, **kwargs)

        return cast("Callable[_P, _R]", run_in_place)

    @wraps(fn)
    def call_in_place(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with inside(place):
            return fn(*args, **kwargs)

    return call_in_place
