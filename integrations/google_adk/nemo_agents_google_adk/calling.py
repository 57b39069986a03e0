"""The span of the agent that asks a model, on its way from the tracer to the model, and what asks under it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_agents.trace.context import inside

if TYPE_CHECKING:
    from google.adk.models.llm_request import LlmRequest
    from google.adk.models.llm_response import LlmResponse

    from nemo_agents.trace.context import Place

__all__ = ["OfTheGateway", "about_to_call"]

_T = TypeVar("_T")

_ASKING: ContextVar[Place | None] = ContextVar("nemo_agents_google_adk_asking", default=None)


def about_to_call(span: Place | None) -> None:
    """Say which span the next model call of this task belongs under; ADK calls the model right behind that hook."""
    _ASKING.set(span)


async def _in_span(answers: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
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


class OfTheGateway:
    """What the models of this package have in common, beside ADK's own class of each.

    A deep copy shares the client, as a copy does: connections cannot be copied.
    """

    async def generate_content_async(
        self: Any,
        llm_request: LlmRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - ADK's signature
    ) -> AsyncGenerator[LlmResponse, None]:
        """Ask the gateway; the call lies under the span of the agent that asks."""
        async for answer in _in_span(super().generate_content_async(llm_request, stream)):
            yield answer

    def __deepcopy__(self: Any, memo: dict[int, Any] | None = None) -> Any:
        return self.model_copy()
