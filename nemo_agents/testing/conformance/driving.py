"""How the suite drives an adapter: one way after the other, and what it makes of the exceptions that come back."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import pytest

from nemo_agents.errors import NemoError
from nemo_agents.testing.conformance.adapter import Adapter, Where
from nemo_agents.trace.member import Member

__all__ = ["WAYS", "Lookup", "done", "error_behind", "is_async", "refusal", "say"]

WAYS: Final = ("sync", "async", "stream", "tools")
"""The shapes in which an adapter can be asked for an answer; refusals are tried in each of them."""
_CAUSES_MAX: Final = 16

_E = TypeVar("_E", bound=NemoError)


class Lookup:
    """A tool that counts its calls: `tool` is the plain function that frameworks are given."""

    def __init__(self) -> None:
        self.cities: list[str] = []

        def lookup(city: str) -> str:
            """Tell the weather of a city.

            Args:
                city: The name of the city.

            """
            self.cities.append(city)
            return f"9 degrees in {city}"

        self.tool = lookup


def is_async(method: Callable[..., Any]) -> bool:
    """Whether a method of an adapter is written as `async def`."""
    return inspect.iscoroutinefunction(method)


def done(value: Any) -> Any:
    """Return a value, or what an awaitable comes to, in an event loop of its own."""
    if not inspect.isawaitable(value):
        return value

    async def finish() -> Any:
        return await value

    return asyncio.run(finish())


def say(adapter: Adapter, way: str, member: Member, text: str, *, run: Where = None) -> str:
    """Ask in one way, and return what the agent says in the end. What the framework raises is let through."""
    asking: Mapping[str, Callable[[], Any]] = {
        "sync": lambda: adapter.ask(member, text, run=run),
        "async": lambda: adapter.ask_async(member, text, run=run),
        "stream": lambda: adapter.stream(member, text, run=run),
        "tools": lambda: adapter.use_tool(member, text, Lookup().tool, run=run),
    }
    answer = done(asking[way]())
    if not isinstance(answer, str):
        pytest.fail(f"{adapter.name}, {way}: the answer is {type(answer).__name__} and not the text of it")
    return answer


def error_behind(exc: BaseException, kind: type[_E]) -> _E | None:
    """Return the error of this kind that an exception is, or that it was raised from; groups are looked through."""
    cause: BaseException | None = exc
    for _ in range(_CAUSES_MAX):
        if cause is None:
            return None
        if isinstance(cause, kind):
            return cause
        if isinstance(cause, BaseExceptionGroup):
            found = [error_behind(member, kind) for member in cause.exceptions]
            return next((error for error in found if error is not None), None)
        cause = cause.__cause__
    return None


def refusal(kind: type[_E], act: Callable[[], object]) -> tuple[_E, BaseException]:
    """Return the error of this kind that comes out of `act`, and the exception that a user would catch."""
    try:
        answer = act()
    except Exception as exc:
        if (error := error_behind(exc, kind)) is not None:
            return error, exc
        chain: list[str] = []
        cause = exc.__cause__
        while cause is not None and len(chain) < _CAUSES_MAX:
            chain.append(type(cause).__name__)
            cause = cause.__cause__
        raised = " from ".join([f"{type(exc).__name__}: {str(exc)[:300]}", *chain])
        raise AssertionError(
            f"{kind.__name__} was to come, itself or as a cause (`raise ... from`), and this came: {raised}"
        ) from exc
    raise AssertionError(f"{kind.__name__} was to come; the framework raised nothing and answered {answer!r}")
