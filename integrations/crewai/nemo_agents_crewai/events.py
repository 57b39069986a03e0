"""crewAI's events, read into what a span says."""

# ruff: noqa: ARG001 - every reader takes what every handler of crewAI takes: the source and the event

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from crewai import events as crewai_events

if TYPE_CHECKING:
    from nemo_agents.trace.spans import SpanKind

__all__ = ["BEGINNINGS", "ENDINGS", "Beginning", "Ending", "Subject", "begin", "end"]

_NAME_LENGTH_MAX: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an event is about, told in the same words when it begins and when it ends."""

    kind: SpanKind
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a span says when it opens. `inside` are subjects that it can lie in, the nearest first.

    What is `hidden` has no span of its own: what happens in it belongs to what it lies in.
    """

    subject: Subject
    name: str
    input: Any = None
    llm: object = None
    inside: tuple[Subject, ...] = ()
    hidden: bool = False
    attributes: Mapping[str, str | int | float | bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a span says when it closes. `made` is what there is to show for it: a task's output, what a tool gave."""

    subject: Subject
    output: Any = None
    error: BaseException | str | None = None
    made: Any = None
    llm: object = None


def begin(source: Any, event: Any) -> Beginning:
    """Return what an event of `BEGINNINGS` says."""
    return BEGINNINGS[type(event)](source, event)


def end(source: Any, event: Any) -> Ending:
    """Return what an event of `ENDINGS` says."""
    return ENDINGS[type(event)](source, event)


# --- crews and flows ------------------------------------------------------------------------------------------------
def _crew(source: Any) -> Subject:
    return Subject(kind="chain", id=f"crew:{source.id}")


def _crew_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_crew(source), name=_short(event.crew_name or "crew"), input=event.inputs, llm=_first_llm(source)
    )


def _crew_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_crew(source), output=_raw(getattr(event, "output", None)), error=_error(event))


def _flow(source: Any) -> Subject:
    return Subject(kind="chain", id=f"flow:{id(source)}")


def _flow_begins(source: Any, event: Any) -> Beginning:
    # crewAI runs each agent as a flow, whose events it asks itself to keep quiet about.
    hidden = bool(getattr(source, "suppress_flow_events", False))
    return Beginning(subject=_flow(source), name=_short(event.flow_name), input=event.inputs, hidden=hidden)


def _flow_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_flow(source), output=_raw(getattr(event, "result", None)), error=_error(event))


def _method(source: Any, event: Any) -> Subject:
    return Subject(kind="chain", id=f"flow:{id(source)}:{event.method_name}")


def _method_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_method(source, event), name=_short(event.method_name), input=event.params, inside=(_flow(source),)
    )


def _method_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_method(source, event), output=_raw(getattr(event, "result", None)), error=_error(event))


# --- tasks and agents -----------------------------------------------------------------------------------------------
def _task(task_id: object) -> Subject:
    return Subject(kind="task", id=str(task_id))


def _task_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_task(source.id),
        name=_short(source.name or source.description),
        input=source.description,
        llm=getattr(source.agent, "llm", None),
    )


def _task_ends(source: Any, event: Any) -> Ending:
    output = getattr(event, "output", None)
    return Ending(
        subject=_task(source.id),
        output=_raw(output),
        error=_error(event),
        made=output,
        llm=getattr(source.agent, "llm", None),
    )


def _agent(agent_id: object, task_id: object) -> Subject:
    return Subject(kind="agent", id=f"{agent_id}:{task_id}")


def _agent_begins(source: Any, event: Any) -> Beginning:
    task_id = getattr(event.task, "id", None)
    return Beginning(
        subject=_agent(event.agent.id, task_id),
        name=_short(event.agent.role),
        input=event.task_prompt,
        llm=getattr(event.agent, "llm", None),
        inside=(_task(task_id),),
    )


def _agent_ends(source: Any, event: Any) -> Ending:
    return Ending(
        subject=_agent(event.agent.id, getattr(event.task, "id", None)),
        output=getattr(event, "output", None),
        error=_error(event),
    )


def _lone_agent(source: Any) -> Subject:
    return Subject(kind="agent", id=f"{getattr(source, 'id', id(source))}:alone")


def _lone_agent_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_lone_agent(source),
        name=_short(event.agent_info.get("role") or "agent"),
        input=event.messages,
        llm=getattr(source, "llm", None),
    )


def _lone_agent_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_lone_agent(source), output=getattr(event, "output", None), error=_error(event))


# --- tools, searches, guardrails ------------------------------------------------------------------------------------
def _tool(event: Any) -> Subject:
    return Subject(kind="tool", id=f"{event.agent_id or event.agent_key}:{event.tool_name}")


def _tool_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_tool(event),
        name=_short(event.tool_name),
        input=event.tool_args,
        llm=getattr(event.agent or source, "llm", None),
        inside=(_agent(event.agent_id, event.task_id), _task(event.task_id)),
    )


def _tool_ends(source: Any, event: Any) -> Ending:
    failure = getattr(event, "failure", None)
    output = _raw(getattr(event, "output", None))
    return Ending(
        subject=_tool(event),
        output=output,
        error=_error(event) or (None if failure is None else str(failure)),
        made=None if output is None else {"tool": event.tool_name, "input": event.tool_args, "output": output},
        llm=getattr(event.agent or source, "llm", None),
    )


def _search(kind_of_store: str, event: Any) -> Subject:
    return Subject(kind="retriever", id=f"{kind_of_store}:{event.agent_id}:{event.task_id}")


def _memory_begins(source: Any, event: Any) -> Beginning:
    return Beginning(subject=_search("memory", event), name="memory", input=event.query, inside=(_task(event.task_id),))


def _memory_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_search("memory", event), output=_raw(getattr(event, "results", None)), error=_error(event))


def _knowledge_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_search("knowledge", event),
        name="knowledge",
        input=event.task_prompt,
        llm=getattr(source, "llm", None),
        inside=(_task(event.task_id),),
    )


def _knowledge_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_search("knowledge", event), output=getattr(event, "query", None), error=_error(event))


def _guardrail(event: Any) -> Subject:
    return Subject(kind="guardrail", id=str(event.task_id))


def _guardrail_begins(source: Any, event: Any) -> Beginning:
    return Beginning(
        subject=_guardrail(event),
        name=_short(str(event.guardrail_name or event.guardrail_type or "guardrail")),
        inside=(_task(event.task_id),),
        attributes={"crewai.guardrail.retry_count": event.retry_count},
    )


def _guardrail_ends(source: Any, event: Any) -> Ending:
    return Ending(subject=_guardrail(event), output=_raw(event.result), error=_error(event))


# Releases differ in whether a failed flow has an event of its own.
_FLOW_FAILED: Final = getattr(crewai_events, "FlowFailedEvent", None)

BEGINNINGS: Final[Mapping[type[Any], Callable[[Any, Any], Beginning]]] = {
    crewai_events.CrewKickoffStartedEvent: _crew_begins,
    crewai_events.FlowStartedEvent: _flow_begins,
    crewai_events.MethodExecutionStartedEvent: _method_begins,
    crewai_events.TaskStartedEvent: _task_begins,
    crewai_events.AgentExecutionStartedEvent: _agent_begins,
    crewai_events.LiteAgentExecutionStartedEvent: _lone_agent_begins,
    crewai_events.ToolUsageStartedEvent: _tool_begins,
    crewai_events.MemoryQueryStartedEvent: _memory_begins,
    crewai_events.KnowledgeQueryStartedEvent: _knowledge_begins,
    crewai_events.LLMGuardrailStartedEvent: _guardrail_begins,
}
ENDINGS: Final[Mapping[type[Any], Callable[[Any, Any], Ending]]] = {
    crewai_events.CrewKickoffCompletedEvent: _crew_ends,
    crewai_events.CrewKickoffFailedEvent: _crew_ends,
    crewai_events.FlowFinishedEvent: _flow_ends,
    crewai_events.MethodExecutionFinishedEvent: _method_ends,
    crewai_events.MethodExecutionFailedEvent: _method_ends,
    crewai_events.TaskCompletedEvent: _task_ends,
    crewai_events.TaskFailedEvent: _task_ends,
    crewai_events.AgentExecutionCompletedEvent: _agent_ends,
    crewai_events.AgentExecutionErrorEvent: _agent_ends,
    crewai_events.LiteAgentExecutionCompletedEvent: _lone_agent_ends,
    crewai_events.LiteAgentExecutionErrorEvent: _lone_agent_ends,
    crewai_events.ToolUsageFinishedEvent: _tool_ends,
    crewai_events.ToolUsageErrorEvent: _tool_ends,
    crewai_events.MemoryQueryCompletedEvent: _memory_ends,
    crewai_events.MemoryQueryFailedEvent: _memory_ends,
    crewai_events.KnowledgeQueryCompletedEvent: _knowledge_ends,
    crewai_events.KnowledgeQueryFailedEvent: _knowledge_ends,
    crewai_events.LLMGuardrailCompletedEvent: _guardrail_ends,
    **({} if _FLOW_FAILED is None else {_FLOW_FAILED: _flow_ends}),
}


# --- texts ----------------------------------------------------------------------------------------------------------
def _error(event: Any) -> BaseException | str | None:
    error = getattr(event, "error", None)
    return error if error is None or isinstance(error, BaseException) else str(error)


def _raw(output: Any) -> Any:
    """Return the text of an output of a task or crew, and any other output as it is."""
    return getattr(output, "raw", output)


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _NAME_LENGTH_MAX else line[: _NAME_LENGTH_MAX - 1] + "…"


def _first_llm(crew: Any) -> object:
    return next((agent.llm for agent in crew.agents), None)
