"""AutoGen 0.7: an agent around an agent, which makes its turns and its tools spans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autogen_agentchat.agents import BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import (
    BaseAgentEvent,
    BaseChatMessage,
    ToolCallExecutionEvent,
    ToolCallRequestEvent,
)
from autogen_core import CancellationToken, ComponentModel

from nemo_agents import current_run
from nemo_agents.trace.context import inside

if TYPE_CHECKING:
    from nemo_agents import Run
    from nemo_agents_autogen.tracing import Tracer

__all__ = ["TracedAgent"]

_Item = BaseAgentEvent | BaseChatMessage | Response


class TracedAgent(BaseChatAgent):
    """Stands for an agent in teams and in `run`: the same name, the same answers, the same dump."""

    def __init__(self, agent: BaseChatAgent, tracer: Tracer) -> None:
        super().__init__(agent.name, agent.description)
        self.__agent = agent
        self.__tracer = tracer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__agent.name!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.__agent, name)

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        """The types of messages that the agent produces."""
        return self.__agent.produced_message_types

    async def on_messages(self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken) -> Response:
        """Handle messages and return the response."""
        response: Response | None = None
        async for item in self.on_messages_stream(messages, cancellation_token):
            if isinstance(item, Response):
                response = item
        if response is None:
            raise RuntimeError(f"the agent {self.name} ended without a response")
        return response

    async def on_messages_stream(
        self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken
    ) -> AsyncGenerator[_Item, None]:
        """Handle messages inside a span; what the agent gives is passed on as it comes."""
        stream = self.__agent.on_messages_stream(messages, cancellation_token)
        with self.__tracer.span("agent", self.name, input=_text_of(messages)) as span:
            if span is None:
                async for item in stream:
                    yield item
                return
            tools = _Tools(current_run(), self.__tracer)
            async for item in stream:
                tools.saw(item)
                if isinstance(item, Response):
                    span.output = item.chat_message.to_text()
                    self.__tracer.said(self.name, item.chat_message.to_text())
                with inside(span.around):  # who reads this stream is not in the agent's span
                    yield item

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        """Reset the agent."""
        await self.__agent.on_reset(cancellation_token)

    async def on_pause(self, cancellation_token: CancellationToken) -> None:
        """Pause the agent."""
        await self.__agent.on_pause(cancellation_token)

    async def on_resume(self, cancellation_token: CancellationToken) -> None:
        """Resume the agent."""
        await self.__agent.on_resume(cancellation_token)

    async def save_state(self) -> Mapping[str, Any]:
        """Return the agent's state."""
        return await self.__agent.save_state()

    async def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the agent's state."""
        await self.__agent.load_state(state)

    async def close(self) -> None:
        """Release what the agent holds."""
        await self.__agent.close()

    def dump_component(self) -> ComponentModel:
        """Dump the agent itself: spans are of a process, not of a configuration."""
        return self.__agent.dump_component()


class _Tools:
    """The tools that one turn of an agent called: a span from the request to the result of each."""

    def __init__(self, run: Run | None, tracer: Tracer) -> None:
        self._run = run
        self._tracer = tracer
        self._open: dict[str, str] = {}

    def saw(self, item: _Item) -> None:
        """Open and close spans as the events say. What is still open when the run ends, the run closes."""
        if self._run is None:
            return
        if isinstance(item, ToolCallRequestEvent):
            for call in item.content:
                self._open[call.id] = self._run.spans.open("tool", call.name, input=call.arguments)
        elif isinstance(item, ToolCallExecutionEvent):
            for result in item.content:
                span_id = self._open.pop(result.call_id, None)
                if span_id is not None:
                    error = result.content if result.is_error else None
                    self._run.spans.close(span_id, output=result.content, error=error)
                self._tracer.said(result.name, result.content)


def _text_of(messages: Sequence[BaseChatMessage]) -> str:
    return "\n".join(f"{message.source}: {message.to_text()}" for message in messages)
