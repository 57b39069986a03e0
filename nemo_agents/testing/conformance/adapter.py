"""What the author of an adapter writes so that the suite can drive a framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel

from nemo_agents.trace.member import Member
from nemo_agents.trace.run import Run
from nemo_agents.trace.step import Step

__all__ = ["SHAPES", "Adapter", "Shape", "Where"]

Shape = Literal["sync", "async", "stream", "tools", "structured", "threads", "spans"]
SHAPES: tuple[Shape, ...] = ("sync", "async", "stream", "tools", "structured", "threads", "spans")
Where: TypeAlias = Run | Step | None


class Adapter(ABC):
    """A framework behind an adapter, as the suite drives it.

    `name` is a row of the report, `framework` the distribution whose version it names. Of the methods only those of
    `shapes` are called: `ask` of `sync`, `ask_async` of `async`, `stream` of `stream`, `use_tool` of `tools`,
    `structured` of `structured`, `in_thread` of `threads`. A framework that is asynchronous alone writes any of them as
    `async def`; the suite runs them to their end.

    Every method makes new objects of the framework with the adapter's `chat_model(member, run=run)`, says `text`, and
    returns what the agent answered in the end. Nothing is caught: what the framework raises is what a user gets. With
    the shape `spans` they also attach the adapter's `tracer(run)`. Where `run` is None, the call belongs to the run
    and step that are current; else to the one it names, whatever is current.
    """

    name: ClassVar[str]
    framework: ClassVar[str]
    shapes: ClassVar[frozenset[str]]

    @abstractmethod
    def model(self, member: Member, *, run: Where = None, **options: Any) -> object:
        """Return what `chat_model(member, run=run, **options)` gives; nothing is asked of it."""

    def ask(self, member: Member, text: str, *, run: Where = None) -> Any:
        """Let an agent or model without tools answer, blocking."""
        raise NotImplementedError(self._missing("ask", "sync"))

    async def ask_async(self, member: Member, text: str, *, run: Where = None) -> str:
        """Let an agent or model without tools answer, in this event loop."""
        raise NotImplementedError(self._missing("ask_async", "async"))

    def stream(self, member: Member, text: str, *, run: Where = None) -> Any:
        """Let an agent or model answer as a stream, and return its pieces joined."""
        raise NotImplementedError(self._missing("stream", "stream"))

    def use_tool(self, member: Member, text: str, tool: Callable[..., Any], *, run: Where = None) -> Any:
        """Let an agent with one tool answer; `tool` is a plain function with types and a docstring."""
        raise NotImplementedError(self._missing("use_tool", "tools"))

    def structured(self, member: Member, text: str, schema: type[BaseModel], *, run: Where = None) -> Any:
        """Let an agent or model answer in this form, and return it as a value of `schema`."""
        raise NotImplementedError(self._missing("structured", "structured"))

    def in_thread(self, member: Member, text: str, *, run: Where) -> Any:
        """As `ask`, but through the executor or runtime that the framework owns, started before the run is known."""
        raise NotImplementedError(self._missing("in_thread", "threads"))

    def _missing(self, method: str, shape: Shape) -> str:
        return f"{type(self).__name__} has the shape {shape!r} and no {method}(): write it, or take the shape out"
