"""Which models a crew would call besides those of its roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nemo_agents.errors import DeclarationError
from nemo_agents_crewai.seats import seat_of

if TYPE_CHECKING:
    from crewai import Crew

__all__ = ["check"]


def check(crew: Crew) -> None:
    """Raise DeclarationError for a crew that would call a model that no role stands for."""
    found = list(_strays(crew))
    if found:
        raise DeclarationError(
            "would call models past the gateway",
            field=f"crew {crew.name or ''}".rstrip(),
            value=", ".join(found),
            remedy="Give models as chat_model(role) and embedders as embedder(role).",
        )


def _strays(crew: Any) -> Iterator[str]:
    if crew.planning and seat_of(crew.planning_llm) is None:
        yield "planning_llm"
    for name in ("manager_llm", "function_calling_llm", "chat_llm"):
        if _is_stray(getattr(crew, name, None)):
            yield name
    if (crew.memory is True or _knows(crew)) and crew.embedder is None:
        yield "embedder"
    for agent in _agents(crew):
        yield from (f"{stray} of the agent {agent.role.strip()}" for stray in _strays_of(agent, crew))


def _strays_of(agent: Any, crew: Any) -> Iterator[str]:
    if seat_of(agent.llm) is None:
        yield "llm"
    if _is_stray(getattr(agent, "function_calling_llm", None)):
        yield "function_calling_llm"
    embeds = getattr(agent, "memory", None) is True or _knows(agent)
    if embeds and getattr(agent, "embedder", None) is None and crew.embedder is None:
        yield "embedder"


def _agents(crew: Any) -> list[Any]:
    """Return everyone who works in the crew, each once: also those that only a task names."""
    everyone = [*crew.agents, *(task.agent for task in crew.tasks), crew.manager_agent]
    return list({id(agent): agent for agent in everyone if agent is not None}.values())


def _is_stray(llm: object) -> bool:
    return llm is not None and seat_of(llm) is None


def _knows(owner: Any) -> bool:
    return bool(getattr(owner, "knowledge_sources", None))
