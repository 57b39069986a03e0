"""Agents and tools of AutoGen and AG2 as spans of a run, and the messages so far as its partial result."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from nemo_agents import Run
from nemo_agents.errors import DeclarationError
from nemo_agents.trace import context
from nemo_agents_autogen.versions import check_ag2, check_agentchat, check_classic

if TYPE_CHECKING:
    from ag2.middleware.base import MiddlewareFactory

    from nemo_agents import Step
    from nemo_agents.trace.context import Place
    from nemo_agents.trace.otlp import SpanKind
    from nemo_agents.trace.spans import Span

__all__ = ["Tracer", "run_of", "tracer"]

_A = TypeVar("_A")


def tracer(run: Run | Step | None = None) -> Tracer:
    """Return what puts agents and their tools into a run, by its method `agent`.

    Spans belong to the run that is current when something happens; where none is, to the one that `run` names, by
    default the one that is current now; where there is none at all, nothing is told. Raises AdapterError when the
    framework of an agent is of a version that this adapter does not know.
    """
    return Tracer(run)


class Tracer:
    """Sees the agents that are given to it. One may be shared by agents, teams, threads and runs."""

    def __init__(self, run: Run | Step | None = None) -> None:
        self._elsewhere = run or context.here()
        self._lock = threading.Lock()
        self._said: WeakKeyDictionary[Run, list[dict[str, str]]] = WeakKeyDictionary()

    def agent(self, agent: _A) -> _A:
        """Return the agent so that its turns and its tools are spans.

        AutoGen 0.7: an agent of the same name around it, for `agent.run` and for teams; it is dumped as the agent
        itself. AG2 Classic and AG2 1.x: the agent itself. Give an agent of AG2 Classic when its functions have been
        registered; its model client keeps the run in asynchronous chats then, too. Raises DeclarationError for
        anything else.
        """
        framework = _framework_of(agent)
        if framework == "autogen_agentchat":
            check_agentchat()
            from nemo_agents_autogen.traced_agentchat import (  # noqa: PLC0415 - imports the framework
                TracedAgent,
            )

            return TracedAgent(agent, self)  # type: ignore[return-value, arg-type] # stands for the agent
        if framework == "autogen":
            check_classic()
            from nemo_agents_autogen.traced_classic import trace_agent  # noqa: PLC0415 - imports the framework

            trace_agent(cast("Any", agent), self)
            return agent
        if framework == "ag2":
            agent.add_middleware(self.middleware(agent.name))  # type: ignore[attr-defined] # an ag2.Agent
            return agent
        raise DeclarationError(
            "this is no agent of AutoGen or AG2",
            field="agent",
            value=agent,
            remedy="Give an autogen_agentchat agent, an autogen.ConversableAgent or an ag2.Agent.",
        )

    def middleware(self, name: str = "agent") -> MiddlewareFactory:
        """Return the middleware for `ag2.Agent(name, middleware=[...])` of AG2 1.x, which is not told the name."""
        check_ag2()
        from nemo_agents_autogen.traced_ag2 import middleware_of  # noqa: PLC0415 - imports the framework

        return middleware_of(self, name)

    @contextmanager
    def span(self, kind: SpanKind, name: str, *, input: object) -> Iterator[Span | None]:  # noqa: A002 - as Run.span
        """Open a span in the place that what happens now belongs to; None where that is none."""
        place = self._place()
        run = None if place is None else run_of(place)
        if place is None or run is None:
            yield None
            return
        with context.inside(place), run.span(kind, name, input=input) as span:
            yield span

    def said(self, source: str, content: str) -> None:
        """Take note of a message: the messages of a run so far are its partial result."""
        place = self._place()
        run = None if place is None else run_of(place)
        if place is None or run is None:
            return
        with self._lock, context.inside(place):
            messages = self._said.setdefault(run, [])
            messages.append({"source": source, "content": content})
            run.partial(list(messages))

    def _place(self) -> Place | None:
        for place in (context.here(), self._elsewhere):
            if place is not None and not place.over:
                return place
        return None


def run_of(place: Place) -> Run | None:
    """Return the run that a place lies in."""
    around: Place | None = place
    while around is not None and not isinstance(around, Run):
        around = around.around
    return around


def _framework_of(agent: object) -> str | None:
    """Return the framework whose agent this is: a class that is defined there is among those it comes from."""
    for base in type(agent).__mro__:
        package = base.__module__.partition(".")[0]
        if package in ("autogen_agentchat", "autogen", "ag2") and package in sys.modules:
            return package
    return None
