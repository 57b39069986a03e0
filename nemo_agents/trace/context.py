"""Where a call happens: the run or step that is current in this thread or task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Protocol

from nemo_agents.errors import GatewayError

__all__ = ["Answer", "Place", "enter", "here", "inside", "leave"]


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
    """A run, or a step of one, as the HTTP hooks see it."""

    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on; its headers go to no other."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made here."""

    def at(self, step: str | None) -> Place:
        """Return the step of this run with that label, or the run."""

    def sends(self) -> int:
        """Count a request that is about to go out, and return its number."""

    def saw(self, answer: Answer) -> None:
        """Take note of an answer."""


_PLACE: ContextVar[Place | None] = ContextVar("nemo_agents_place", default=None)


def here() -> Place | None:
    """Return the current run or step, None outside of any."""
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
