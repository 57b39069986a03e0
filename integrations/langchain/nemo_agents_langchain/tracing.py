"""A callback handler that draws agents, named chains, tools and retrievers into the run they belong to.

LangChain tells of every runnable it passes through; most are plumbing. A span is drawn for what carries a name that
somebody chose; the rest is transparent, so that a tool's parent is the agent and not four wrappers in between. Model
calls are in the gateway's log already: they are put under their agent by the id of their request.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook

from nemo_agents import Run, Step, current_run, current_step
from nemo_agents_langchain.shapes import plain, request_id_of

__all__ = ["RunTracer", "attach", "is_drawn"]

_OPEN_MAX: Final = 10_000  # runnables under way; a generator that was dropped half-read may never tell of its end
_INNER_NODES: Final = frozenset({"model", "tools", "agent"})  # the nodes of LangChain's own agents
_PLUMBING: Final = ("Runnable", "Channel", "_", "<", "lambda")
_SILENT_RUN_TYPES: Final = frozenset({"prompt", "parser"})
_HIDDEN_TAGS: Final = frozenset({"langsmith:hidden"})

Kind = Literal["agent", "chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What LangChain says about a chain that starts."""

    name: str
    run_type: str | None
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    in_node: bool
    """Whether it is started by a node of a graph directly."""
    has_messages: bool
    """Whether its input is a state with a list of messages."""

    @property
    def is_node(self) -> bool:
        """Whether it is a node of a graph; the metadata of one is inherited by all that runs inside it."""
        return self.metadata.get("langgraph_node") == self.name and any(t.startswith("graph:step:") for t in self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A runnable under way: its run and step, its own span if it has one, and the nearest span at or above it."""

    run: Run
    step: str | None
    span_id: str | None
    under: str | None
    is_node: bool = False
    messages: Sequence[BaseMessage] = ()


def is_drawn(seen: Seen) -> Kind | None:
    """Return the kind of span that a chain gets, None for plumbing."""
    named = bool(seen.name) and not seen.name.startswith(_PLUMBING)
    if not named or seen.run_type in _SILENT_RUN_TYPES or not _HIDDEN_TAGS.isdisjoint(seen.tags):
        return None
    if seen.is_node:
        # `tools`, `model` and middleware (`Summarization.before_model`) are LangChain's; other nodes are the user's.
        return None if seen.name in _INNER_NODES or "." in seen.name else "chain"
    if seen.in_node and any(tag.startswith("seq:step:") and tag != "seq:step:1" for tag in seen.tags):
        return None  # behind a node's work come its writers and the choice of the next node
    graph = seen.name == "LangGraph" or seen.metadata.get("lc_agent_name") == seen.name
    at_top = "ls_integration" in seen.metadata and "langgraph_node" not in seen.metadata
    return "agent" if graph or at_top or seen.has_messages else "chain"


class RunTracer(BaseCallbackHandler):
    """Opens and closes spans as LangChain tells what it does, and keeps the messages so far as the partial result.

    Without `run`, whatever starts while a run is current belongs to it, and all that it starts as well, on any thread.
    It never raises, and nothing waits for it.
    """

    run_inline = True  # in order and without a thread; no method here waits for anything

    def __init__(self, run: Run | Step | None = None) -> None:
        super().__init__()
        self._run: Run | None = run.run if isinstance(run, Step) else run
        self._step: str | None = run.label if isinstance(run, Step) else None
        self._lock = threading.Lock()
        self._open: dict[UUID, _Open] = {}

    def __repr__(self) -> str:
        return f"RunTracer({'the current run' if self._run is None else self._run.id})"

    @property
    def ignore_retry(self) -> bool:
        """Retries are seen in the gateway's log."""
        return True

    @property
    def ignore_custom_event(self) -> bool:
        """Events of the user's own are not drawn."""
        return True

    # --- agents and chains ---
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Draw an agent or a chain with a name, or note plumbing as such."""
        above = self._above(parent_run_id)
        if above is None:
            return
        seen = Seen(
            name=_name(serialized, kwargs),
            run_type=kwargs.get("run_type"),
            tags=tags or (),
            metadata=metadata or {},
            in_node=above.is_node,
            has_messages=isinstance(inputs, Mapping) and isinstance(inputs.get("messages"), list),
        )
        kind = is_drawn(seen)
        span_id = None
        if kind is not None:
            attributes = _attributes(seen.metadata)
            span_id = above.run.spans.open(
                kind, seen.name, parent_id=above.under, step=above.step, input=plain(inputs), attributes=attributes
            )
        self._note(run_id, above, span_id, is_node=seen.is_node)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Close the span of an agent or chain."""
        self._close(run_id, outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - likewise
        """Close the span of an agent or chain that failed."""
        self._fail(run_id, error)

    # --- tools and retrievers ---
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Draw a tool."""
        above = self._above(parent_run_id)
        if above is not None:
            name, given = _name(serialized, kwargs), plain(input_str if inputs is None else inputs)
            span_id = above.run.spans.open("tool", name or "tool", parent_id=above.under, step=above.step, input=given)
            self._note(run_id, above, span_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Close the span of a tool; one that told of its failure in its answer has failed."""
        if isinstance(output, ToolMessage):
            if output.status == "error":
                self._fail(run_id, str(output.content))
                return
            output = output.content
        self._close(run_id, output)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - likewise
        """Close the span of a tool that failed."""
        self._fail(run_id, error)

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Draw a retriever."""
        above = self._above(parent_run_id)
        if above is not None:
            name = _name(serialized, kwargs) or "retriever"
            span_id = above.run.spans.open("retriever", name, parent_id=above.under, step=above.step, input=query)
            self._note(run_id, above, span_id)

    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - likewise
        """Close the span of a retriever."""
        self._close(run_id, documents)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - likewise
        """Close the span of a retriever that failed."""
        self._fail(run_id, error)

    # --- model calls ---
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's signature
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,  # noqa: ARG002 - likewise
    ) -> None:
        """Keep the conversation that a model is asked to go on with."""
        above = self._above(parent_run_id)
        if above is None:
            return
        said = tuple(messages[0]) if messages else ()
        self._note(run_id, above, None, messages=said)
        if any(isinstance(message, (AIMessage, ToolMessage)) for message in said):
            above.run.partial(list(said), step=above.step)  # a question alone is no result yet

    def on_llm_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's signature
        prompts: list[str],  # noqa: ARG002 - likewise
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,  # noqa: ARG002 - likewise
    ) -> None:
        """Note where a completion belongs."""
        above = self._above(parent_run_id)
        if above is not None:
            self._note(run_id, above, None)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - likewise
        """Put a model call under its agent, and keep the conversation with its answer."""
        call = self._take(run_id)
        if call is None:
            return
        self._link(call, request_id_of(response))
        answers = [each for several in response.generations for each in several[:1]]
        if len(answers) == 1 and isinstance(answers[0], ChatGeneration):
            call.run.partial([*call.messages, answers[0].message], step=call.step)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - likewise
        """Put a model call that failed under its agent."""
        call = self._take(run_id)
        if call is not None:
            self._link(call, request_id_of(error))

    # --- what is under way ---
    def _above(self, parent_run_id: UUID | None) -> _Open | None:
        """Return what is around something that starts; None where it belongs to no run."""
        with self._lock:
            parent = None if parent_run_id is None else self._open.get(parent_run_id)
        run = parent.run if parent is not None else self._run or current_run()
        if run is None:
            return None
        here = current_step()
        step = here.label if here is not None and here.run is run else (parent.step if parent else self._step)
        # A step that was entered within an agent, by a tool say, is nearer than the agent's span.
        entered = parent is not None and step != parent.step
        under = None if parent is None or entered else parent.under
        return _Open(run=run, step=step, span_id=None, under=under, is_node=parent is not None and parent.is_node)

    def _note(
        self,
        run_id: UUID,
        above: _Open,
        span_id: str | None,
        *,
        is_node: bool = False,
        messages: Sequence[BaseMessage] = (),
    ) -> None:
        noted = _Open(
            run=above.run,
            step=above.step,
            span_id=span_id,
            under=span_id or above.under,
            is_node=is_node,
            messages=messages,
        )
        with self._lock:
            self._open[run_id] = noted
            if len(self._open) > _OPEN_MAX:
                del self._open[next(iter(self._open))]

    def _take(self, run_id: UUID) -> _Open | None:
        with self._lock:
            return self._open.pop(run_id, None)

    def _close(self, run_id: UUID, output: object) -> None:
        done = self._take(run_id)
        if done is not None and done.span_id is not None:
            done.run.spans.close(done.span_id, output=plain(output))

    def _fail(self, run_id: UUID, error: BaseException | str) -> None:
        done = self._take(run_id)
        if done is not None and done.span_id is not None:
            done.run.spans.close(done.span_id, error=None if _is_plain_end(error) else error)

    def _link(self, call: _Open, request_id: str | None) -> None:
        if call.under is not None and request_id is not None:
            call.run.spans.link(request_id, call.under)


def _name(serialized: Mapping[str, Any] | None, kwargs: Mapping[str, Any]) -> str:
    return str(kwargs.get("name") or (serialized or {}).get("name") or "")


def _attributes(metadata: Mapping[str, Any]) -> dict[str, str | int]:
    """Return what LangGraph says about the place of a span in its graph."""
    wanted = ("langgraph_node", "langgraph_step", "thread_id")
    return {name: metadata[name] for name in wanted if isinstance(metadata.get(name), (str, int))}


def _is_plain_end(error: BaseException | str) -> bool:
    """Whether this is no failure: a stream that was not read to its end, or a graph that waits for somebody."""
    return isinstance(error, GeneratorExit) or any(kind.__name__ == "GraphBubbleUp" for kind in type(error).__mro__)


# --- attached to everything -----------------------------------------------------------------------------------------
_OF_THE_PROCESS: Final = RunTracer()
# A default and not a value: every context sees it, also those of threads that were started before.
_ATTACHED: Final[ContextVar[Any]] = ContextVar("nemo_agents_langchain_tracer", default=_OF_THE_PROCESS)
_ATTACHING = threading.Lock()
_attached = False


def attach() -> RunTracer:
    """Have LangChain tell this process's handler about everything, once; return the handler.

    A handler of the same class that was given with `config=` takes its place.
    """
    global _attached  # noqa: PLW0603 - LangChain's list of hooks is the process's, and a hook cannot be taken back
    with _ATTACHING:
        if not _attached:
            register_configure_hook(_ATTACHED, inheritable=True, handle_class=RunTracer)
            _attached = True
    return _OF_THE_PROCESS
