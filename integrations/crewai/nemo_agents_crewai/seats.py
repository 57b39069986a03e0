"""Whose model an LLM is, and for which run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from nemo_agents import Run, Step
    from nemo_agents.trace.member import Member

__all__ = ["Seat", "seat_of"]


class Seat:
    """A role and the run that calls belong to where none is current; copies of a model share it."""

    __slots__ = ("member", "run")

    def __init__(self, member: Member, run: Run | Step | None) -> None:
        self.member = member
        self.run = run

    def __repr__(self) -> str:
        return f"Seat({self.member.name!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model with a role's client is not pickled; make it where it is used: chat_model(role)")


def seat_of(llm: object) -> Seat | None:
    """Return whose model this is; None for a model that no role stands for."""
    seat = getattr(llm, "seat", None)
    return seat if isinstance(seat, Seat) else None
