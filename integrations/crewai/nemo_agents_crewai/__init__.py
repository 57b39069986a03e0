"""CrewAI on a nemo-agents gateway: an `LLM` with a role's key, and an event listener that tells the run what happens.

    from nemo_agents_crewai import chat_model, tracer

    tracer()
    with fleet.run("answer") as run, run.step("research", role="researcher"):
        agent = Agent(role="Researcher", goal="…", backstory="…", llm=chat_model(fleet["researcher"]))
        print(agent.kickoff("What is a CRDT?").raw)

crewAI itself is imported when something here is used for the first time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nemo_agents.adapters import check_versions, member_of, model_of, switch_off

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crewai import Crew

    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member
    from nemo_agents_crewai.llm import GatewayLLM
    from nemo_agents_crewai.tracing import RunListener

__all__ = ["FRAMEWORK", "chat_model", "check_crew", "embedder", "tracer"]

FRAMEWORK: Final[Mapping[str, str]] = {"crewai": ">=1.15,<2"}

# crewAI reads both at every use. What the program or its environment has set stays.
_QUIET: Final = {"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false"}

# Importing this package is enough, whichever of the two is imported first.
switch_off(_QUIET)


def chat_model(
    role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None, **options: Any
) -> GatewayLLM:
    """Return an LLM for `Agent(llm=…)`, `Crew(manager_llm=…)` and wherever else crewAI takes one.

    It is crewAI's own `OpenAICompletion` (what `crewai.LLM(model="gpt-4o")` gives) with the role's key. `model` is by
    default the role's first. Its calls belong to the run and step that are current when they are made; where none is,
    to `run`, by default what is current now. `options` are those of `crewai.LLM`, such as `temperature` or `stream`;
    `max_retries` (2) and `timeout` (seconds) go to the client, which alone retries.

    A refusal of the gateway costs one request and leaves the crew as a typed error of `nemo_agents.errors`. Raises
    AdapterError when crewAI is missing or of another version, DeclarationError for a model that the role may not use
    and for an option that would lead past the gateway, ProvisionError when the role has no known key.
    """
    _ready()
    from nemo_agents_crewai import llm  # noqa: PLC0415 - imports crewAI, which is slow and may be missing

    member = member_of(role)
    return llm.gateway_llm(member, model_of(member, model), run, options)


def tracer(run: Run | None = None) -> RunListener:
    """Return the listener on crewAI's event bus that records crews, tasks, agents and tools as spans of a run.

    `run` is the run to record, by default whichever is current when something happens. There is one listener per
    process, so calling this again does no harm. Outputs of finished tasks become the result of a run that is stopped.
    Raises AdapterError when crewAI is missing or of another version.
    """
    _ready()
    from nemo_agents_crewai import tracing  # noqa: PLC0415 - imports crewAI, which is slow and may be missing

    return tracing.listener(run)


def embedder(role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None) -> dict[str, Any]:
    """Return what `Crew(embedder=…)` and `Agent(embedder=…)` take, so that memory and knowledge embed as this role.

    Raises as `chat_model` does.
    """
    _ready()
    from nemo_agents_crewai import embedding  # noqa: PLC0415 - imports crewAI, which is slow and may be missing

    member = member_of(role)
    return embedding.config(member, model_of(member, model), run)


def check_crew(crew: Crew) -> None:
    """Raise DeclarationError when a crew would call a model that no role stands for; it names every such place.

    crewAI falls back to OpenAI's own address where nothing is given: planning without `planning_llm`, memory and
    knowledge without `embedder`.
    """
    _ready()
    from nemo_agents_crewai import crews  # noqa: PLC0415 - imports crewAI, which is slow and may be missing

    crews.check(crew)


def _ready() -> None:
    check_versions("crewai", FRAMEWORK)
    switch_off(_QUIET)
