"""LangChain on a nemo-agents gateway: models with a role's key, and a handler that draws its agents into the run.

    from nemo_agents_langchain import chat_model

    with fleet.run("answer a question") as run, run.step("research", role="researcher"):
        agent = create_agent(chat_model(fleet["researcher"]), tools=[web_search], name="researcher")
        agent.invoke({"messages": [("user", "What is a CRDT?")]})

LangChain is imported at the first use, not with this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nemo_agents.adapters import check_versions, member_of, model_of

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member
    from nemo_agents_langchain.tracing import RunTracer

__all__ = ["FRAMEWORK", "chat_model", "embeddings", "tracer"]

FRAMEWORK: Final[Mapping[str, str]] = {"langchain-openai": ">=1.0,<2"}
"""The distributions that this adapter works with, and the versions of each."""


def chat_model(
    role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None, **options: Any
) -> ChatOpenAI:
    """Return a `ChatOpenAI` that speaks through the gateway with this role's key.

    `model` is one of the role's, by default its first. A call belongs to the run and step that are current when it is
    made; where none is (a thread that lost the context), to `run`, by default the run or step that is current now.
    `options` are ChatOpenAI's own; `max_retries` and `timeout` (seconds) go to the client that does the waiting.

    Refusals are the errors of `nemo_agents.errors`, raised once. From the first call on, LangChain's agents, chains,
    tools and retrievers are spans of the run that is current; see `tracer`.

    Raises AdapterError when LangChain is missing or too old or new, DeclarationError for a model that the role may not
    use and for an option that would lead past the gateway, ProvisionError when the role has no known key.
    """
    check_versions("langchain", FRAMEWORK)
    member = member_of(role)
    name = model_of(member, model)
    from nemo_agents_langchain import models, tracing  # noqa: PLC0415 - these import LangChain

    tracing.attach()
    return models.chat(member, name, run=run, options=options)


def embeddings(
    role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None, **options: Any
) -> OpenAIEmbeddings:
    """Return an `OpenAIEmbeddings` that speaks through the gateway with this role's key; see `chat_model`.

    It sends text and not tokens, so that guardrails can read it, and no tokenizer is downloaded.
    """
    check_versions("langchain", FRAMEWORK)
    member = member_of(role)
    name = model_of(member, model)
    from nemo_agents_langchain import models, tracing  # noqa: PLC0415 - these import LangChain

    tracing.attach()
    return models.embedder(member, name, run=run, options=options)


def tracer(run: Run | Step | None = None) -> RunTracer:
    """Return the callback handler that draws what LangChain does into a run.

    Without `run` it is the one of this process, which follows the current run and is attached to every call of
    LangChain from now on, without `config=`. With `run` it is a handler for that run or step alone, for threads that
    lost the context: `agent.invoke(..., config={"callbacks": [tracer(run)]})`.

    Raises AdapterError when LangChain is missing or too old or new.
    """
    check_versions("langchain", FRAMEWORK)
    from nemo_agents_langchain import tracing  # noqa: PLC0415 - it imports LangChain

    attached = tracing.attach()
    return attached if run is None else tracing.RunTracer(run)
