"""A plugin that draws agents and tools into the run they belong to, and keeps what they have made so far.

Model calls are in the gateway's log already: they carry the id of the span of their agent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from google.adk.agents import BaseAgent, LoopAgent, ParallelAgent, SequentialAgent
from google.adk.agents.callback_context import CallbackContext
from google.adk.agents.invocation_context import InvocationContext
from google.adk.events.event import Event
from google.adk.models.llm_request import LlmRequest
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.tools.base_tool import BaseTool
from google.adk.tools.tool_context import ToolContext
from google.genai import types

from nemo_agents.trace.context import enter, here, leave
from nemo_agents_google_adk.calling import about_to_call
from nemo_agents_google_adk.spans import close_span, open_span, run_of

if TYPE_CHECKING:
    from nemo_agents import Run, Step
    from nemo_agents.trace.context import Place
    from nemo_agents.trace.spans import Span

__all__ = ["RunTracer"]

_LOG: Final = logging.getLogger(__name__)
_INVOCATIONS_MAX: Final = 10_000  # under way at once; one whose events are dropped half-read may never be told to end
_CHAINS: Final = (LoopAgent, ParallelAgent, SequentialAgent)  # they call agents and no model

_P = ParamSpec("_P")


@dataclass(slots=True, kw_only=True)
class _Agent:
    """An agent at work, with the last text that it said."""

    name: str
    branch: str | None
    span: Span
    said: str | None = None


@dataclass(slots=True, kw_only=True)
class _Tool:
    """A tool at work. ADK tells a call by its context, which is kept so that its identity stays its own."""

    context: ToolContext
    span: Span
    token: Token[Place | None]


@dataclass(slots=True, kw_only=True)
class _Invocation:
    """One pass of a runner: where it belongs, what is at work in it, and what was said.

    `made` is in the order of its beginning; the texts in `streaming` are not complete. A pass inside a tool of another
    pass (`AgentTool`) adds to what that has made.
    """

    place: Place
    agents: list[_Agent] = field(default_factory=list)
    tools: dict[int, _Tool] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    streaming: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)

    def agent(self, name: str, branch: str | None) -> _Agent | None:
        """Return the agent of that name that began last, in that branch if there is one."""
        named = [agent for agent in reversed(self.agents) if agent.name == name]
        return next((agent for agent in named if agent.branch == branch), named[0] if named else None)

    def say(self, name: str, branch: str | None, text: str, *, goes_on: bool) -> None:
        """Keep what an agent says: a piece of a text that goes on, or the whole."""
        entry = self.streaming.pop((name, branch), None)
        if entry is None:
            entry = {"agent": name, "text": ""}
            self.made.append(entry)
        if goes_on:
            self.streaming[name, branch] = entry
        entry["text"] = entry["text"] + text if goes_on else text
        agent = self.agent(name, branch)
        if agent is not None:
            agent.said = entry["text"]


class RunTracer(BasePlugin):
    """Opens and closes spans as ADK tells what it does; it changes nothing and never makes an agent fail.

    The partial result of the step is what this pass of the runner has made, in order: `{"agent": name, "text": text}`
    for each text, one that broke off included, and `{"agent": name, "tool": name, "result": {...}}` for each tool.
    """

    def __init__(self, run: Run | Step | None = None, *, name: str = "nemo_agents") -> None:
        super().__init__(name=name)
        self._named = run
        self._made_at = here()
        self._lock = threading.Lock()
        self._open: dict[str, _Invocation] = {}

    # --- a pass of the runner ---
    async def before_run_callback(self, *, invocation_context: InvocationContext) -> None:
        """Take note of the place that this pass of the runner belongs to."""
        _safely(self._begin, invocation_context.invocation_id)

    async def after_run_callback(self, *, invocation_context: InvocationContext) -> None:
        """Close what is still open, as it is where a reader left early."""
        _safely(self._end, invocation_context.invocation_id, None)

    async def on_run_error_callback(self, *, invocation_context: InvocationContext, error: Exception) -> None:
        """Close what is still open."""
        _safely(self._end, invocation_context.invocation_id, error)

    async def on_event_callback(self, *, invocation_context: InvocationContext, event: Event) -> None:
        """Keep what an agent says, and what a tool gives it."""
        _safely(self._heard, invocation_context.invocation_id, event)

    # --- agents and their models ---
    async def before_agent_callback(self, *, agent: BaseAgent, callback_context: CallbackContext) -> None:
        """Open the span of an agent."""
        _safely(self._agent_begins, agent, callback_context)

    async def after_agent_callback(self, *, agent: BaseAgent, callback_context: CallbackContext) -> None:
        """Close the span of an agent."""
        _safely(self._agent_ends, agent, callback_context, None)

    async def on_agent_error_callback(
        self, *, agent: BaseAgent, callback_context: CallbackContext, error: Exception
    ) -> None:
        """Close the span of an agent that failed."""
        _safely(self._agent_ends, agent, callback_context, error)

    async def before_model_callback(
        self,
        *,
        callback_context: CallbackContext,
        llm_request: LlmRequest,  # noqa: ARG002 - ADK's signature
    ) -> None:
        """Put the call that follows under its agent."""
        _safely(self._model_begins, callback_context)

    # --- tools ---
    async def before_tool_callback(
        self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext
    ) -> None:
        """Open the span of a tool; what it calls itself lies inside it."""
        _safely(self._tool_begins, tool, tool_args, tool_context)

    async def after_tool_callback(
        self,
        *,
        tool: BaseTool,  # noqa: ARG002 - ADK's signature
        tool_args: dict[str, Any],  # noqa: ARG002 - likewise
        tool_context: ToolContext,
        result: Any,
    ) -> None:
        """Close the span of a tool."""
        _safely(self._tool_ends, tool_context, result, None)

    async def on_tool_error_callback(
        self,
        *,
        tool: BaseTool,  # noqa: ARG002 - ADK's signature
        tool_args: dict[str, Any],  # noqa: ARG002 - likewise
        tool_context: ToolContext,
        error: BaseException,
    ) -> None:
        """Close the span of a tool that failed or was cancelled."""
        _safely(self._tool_ends, tool_context, None, error)

    # --- what is done about it ---
    def _begin(self, invocation_id: str) -> None:
        around = here()
        place = around or self._named or self._made_at
        if self._named is not None and (around is None or around.run_id != self._named.run_id):
            place = self._named
        if place is None or place.over:
            return
        with self._lock:
            outer = [one for one in self._open.values() if any(tool.span is around for tool in one.tools.values())]
            self._open[invocation_id] = _Invocation(place=place, made=outer[0].made if outer else [])
            if len(self._open) > _INVOCATIONS_MAX:
                del self._open[next(iter(self._open))]

    def _end(self, invocation_id: str, error: BaseException | None) -> None:
        with self._lock:
            known = self._open.pop(invocation_id, None)
        if known is None:
            return
        for tool in reversed(known.tools.values()):
            close_span(tool.span, error=error)
        for agent in reversed(known.agents):
            close_span(agent.span, output=agent.said, error=error)

    def _heard(self, invocation_id: str, event: Event) -> None:
        known = self._open.get(invocation_id)
        if known is None or event.author == "user":
            return
        if text := _text(event.content):
            known.say(event.author, event.branch, text, goes_on=bool(event.partial))
        for part in [] if event.content is None else event.content.parts or []:
            answer = part.function_response
            if answer is not None and any(value is not None for value in (answer.response or {}).values()):
                known.made.append({"agent": event.author, "tool": answer.name, "result": answer.response})
        if known.made:
            run_of(known.place).partial([dict(made) for made in known.made], step=known.place.step_label)

    def _agent_begins(self, agent: BaseAgent, context: CallbackContext) -> None:
        known = self._open.get(context.invocation_id)
        if known is None:
            return
        above = None if agent.parent_agent is None else known.agent(agent.parent_agent.name, context.branch)
        role = getattr(getattr(agent, "model", None), "role", None)
        span = open_span(
            "chain" if isinstance(agent, _CHAINS) else "agent",
            agent.name,
            under=known.place if above is None else above.span,
            role=role if isinstance(role, str) else None,
            input=_text(context.user_content),
        )
        known.agents.append(_Agent(name=agent.name, branch=context.branch, span=span))

    def _agent_ends(self, agent: BaseAgent, context: CallbackContext, error: BaseException | None) -> None:
        known = self._open.get(context.invocation_id)
        at_work = None if known is None else known.agent(agent.name, context.branch)
        if known is None or at_work is None:
            return
        known.agents.remove(at_work)
        close_span(at_work.span, output=at_work.said, error=error)

    def _model_begins(self, context: CallbackContext) -> None:
        known = self._open.get(context.invocation_id)
        agent = None if known is None else known.agent(context.agent_name, context.branch)
        about_to_call(None if agent is None else agent.span)

    def _tool_begins(self, tool: BaseTool, arguments: dict[str, Any], context: ToolContext) -> None:
        known = self._open.get(context.invocation_id)
        if known is None:
            return
        agent = known.agent(context.agent_name, context.branch)
        span = open_span("tool", tool.name, under=known.place if agent is None else agent.span, input=arguments)
        known.tools[id(context)] = _Tool(context=context, span=span, token=enter(span))

    def _tool_ends(self, context: ToolContext, result: Any, error: BaseException | None) -> None:
        known = self._open.get(context.invocation_id)
        tool = None if known is None else known.tools.pop(id(context), None)
        if tool is not None:
            leave(tool.token)
            close_span(tool.span, output=result, error=error)


def _safely(tell: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
    """ADK stops an agent whose plugin raises; a trace is not worth that."""
    try:
        tell(*args, **kwargs)
    except Exception:  # noqa: BLE001 - telling about a run never breaks the run
        _LOG.warning("something about this run could not be noted", exc_info=True)


def _text(content: types.Content | None) -> str | None:
    """Return what a message says in words, without what the model only thought."""
    parts = [] if content is None else content.parts or []
    return "".join(part.text for part in parts if part.text and not part.thought) or None
