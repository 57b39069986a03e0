"""AG2 1.x: a middleware that makes turns and tools spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ag2.events import DataInput, TextInput, ToolErrorEvent
from ag2.middleware import BaseMiddleware, Middleware

from nemo_agents import current_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ag2.annotations import Context
    from ag2.events import BaseEvent, ModelResponse, ToolCallEvent
    from ag2.middleware import AgentTurn, LLMCall, ToolExecution
    from ag2.middleware.base import MiddlewareFactory

    from nemo_agents_autogen.tracing import Tracer

__all__ = ["TracingMiddleware", "middleware_of"]


class TracingMiddleware(BaseMiddleware):
    """A turn of an agent and each execution of a tool are spans; what a model said is the partial result."""

    def __init__(self, event: BaseEvent, context: Context, *, tracer: Tracer, name: str) -> None:
        super().__init__(event, context)
        self._tracer = tracer
        self._name = name

    async def on_turn(self, call_next: AgentTurn, event: BaseEvent, context: Context) -> ModelResponse:
        """Open a span for the turn."""
        with self._tracer.span("agent", self._name, input=_text_of(event)) as span:
            response = await call_next(event, context)
            if span is not None:
                span.output = response.content
            return response

    async def on_llm_call(self, call_next: LLMCall, events: Sequence[BaseEvent], context: Context) -> ModelResponse:
        """Keep what the model said as the partial result."""
        response = await call_next(events, context)
        if response.content:
            self._tracer.said(self._name, response.content)
        return response

    async def on_tool_execution(self, call_next: ToolExecution, event: ToolCallEvent, context: Context) -> Any:
        """Open a span for the execution of a tool."""
        with self._tracer.span("tool", event.name, input=event.arguments) as span:
            result = await call_next(event, context)
            told = _text_of(getattr(result, "result", None))
            if told:
                self._tracer.said(event.name, told)
            if span is not None:
                span.output = told
                run = current_run()
                if run is not None and isinstance(result, ToolErrorEvent):  # the model is told of it; the turn goes on
                    run.spans.close(span.id, output=told, error=result.error)
            return result


def middleware_of(tracer: Tracer, name: str) -> MiddlewareFactory:
    """Return the middleware of a tracer for the agent of that name."""
    return Middleware(TracingMiddleware, tracer=tracer, name=name)


def _text_of(thing: Any) -> str | None:
    """Return the texts of a request or a result; data as it shows itself, and nothing of files."""
    parts = getattr(thing, "parts", None)
    if not parts:
        return None
    texts = [part.content if isinstance(part, TextInput) else str(part.data) for part in parts if _is_shown(part)]
    return "\n".join(texts)


def _is_shown(part: Any) -> bool:
    return isinstance(part, (TextInput, DataInput))  # `|` of two events is a condition of AG2's, and no union
