"""The span of the agent that asks a model, on its way from the tracer to the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from nemo_agents.trace.context import inside

if TYPE_CHECKING:
    from nemo_agents.trace.context import Place

__all__ = ["about_to_call", "in_span"]

_T = TypeVar("_T")

_ASKING: ContextVar[Place | None] = ContextVar("nemo_agents_google_adk_asking", default=None)


def about_to_call(span: Place | None) -> None:
    """Say which span the next model call of this task belongs under; ADK calls the model right behind that hook."""
    _ASKING.set(span)


async def in_span(answers: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    """Yield a model's answers; while one is awaited, the span named by `about_to_call` is the current place.

    Never across a yield: an async generator runs in the context of whoever drives it, so the place would stay current
    in code that only reads events, and for ever where a reader leaves early.
    """
    span = _ASKING.get()
    _ASKING.set(None)
    async with aclosing(answers):
        while True:
            with nullcontext() if span is None else inside(span):
                try:
                    answer = await anext(answers)
                except StopAsyncIteration:
                    return
            yield answer
