"""The frameworks that have an adapter: one call of each, bare and through its adapter.

Frameworks are imported by name where they are used: none is a dependency of the benchmarks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from nemo_agents.trace.member import Member

PROMPT: Final = "One sentence about boats."
Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What both sides are made of: the role, one of its models, and the headers that put a call into the run."""

    member: Member
    model: str
    headers: dict[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        """What any of OpenAI's clients takes."""
        return {
            "base_url": self.member.base_url,
            "api_key": self.member.key.reveal(),
            "default_headers": self.headers,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A framework's call. `adapter` is the package that is measured, None for the SDK's own client."""

    name: str
    framework: str
    adapter: str | None
    imports: tuple[str, ...]
    bare: Callable[[Role], Call]
    ours: Callable[[Role], Call]


def _openai_call(client: Any, model: str) -> Call:
    messages = [{"role": "user", "content": PROMPT}]
    return lambda: client.chat.completions.create(model=model, messages=messages)


def _openai(role: Role) -> Call:
    return _openai_call(import_module("openai").OpenAI(**role.settings), role.model)


def _member(role: Role) -> Call:
    return _openai_call(role.member.openai(), role.model)


def _chat_openai(role: Role) -> Any:
    make = import_module("langchain_openai").ChatOpenAI
    return make(model=role.model, use_responses_api=False, **role.settings)


def _langchain(role: Role) -> Call:
    model = _chat_openai(role)
    return lambda: model.invoke(PROMPT)


def _langchain_ours(role: Role) -> Call:
    model = import_module("nemo_agents_langchain").chat_model(role.member)
    return lambda: model.invoke(PROMPT)


def _agent_call(model: Any) -> Call:
    def look_up(topic: str) -> str:
        """Look a topic up."""
        return f"{topic} float"

    agent = import_module("langchain.agents").create_agent(model, tools=[look_up], name="bench")
    return lambda: agent.invoke({"messages": [("user", PROMPT)]})


def _langchain_agent(role: Role) -> Call:
    return _agent_call(_chat_openai(role))


def _langchain_agent_ours(role: Role) -> Call:
    return _agent_call(import_module("nemo_agents_langchain").chat_model(role.member))


def _crewai(role: Role) -> Call:
    model = import_module("crewai").LLM(model=role.model, custom_openai=True, **role.settings)
    return lambda: model.call(PROMPT)


def _crewai_ours(role: Role) -> Call:
    adapter = import_module("nemo_agents_crewai")
    adapter.tracer()
    model = adapter.chat_model(role.member)
    return lambda: model.call(PROMPT)


def _awaited(work: Callable[[], Awaitable[object]]) -> Call:
    """Return a call that awaits in one event loop, as a program that is written for one would."""
    loop = asyncio.new_event_loop()

    async def once() -> object:
        return await work()

    return lambda: loop.run_until_complete(once())


def _agentchat_call(model: Any) -> Call:
    message = import_module("autogen_core.models").UserMessage(content=PROMPT, source="user")
    return _awaited(lambda: model.create([message]))


def _agentchat(role: Role) -> Call:
    make = import_module("autogen_ext.models.openai").OpenAIChatCompletionClient
    return _agentchat_call(make(model=role.model, **role.settings))


def _agentchat_ours(role: Role) -> Call:
    return _agentchat_call(import_module("nemo_agents_autogen").chat_model(role.member))


def _adk_call(model: Any) -> Call:
    types = import_module("google.genai.types")
    request = import_module("google.adk.models.llm_request").LlmRequest(
        model=model.model, contents=[types.Content(role="user", parts=[types.Part(text=PROMPT)])]
    )

    async def answer() -> object:
        return [each async for each in model.generate_content_async(request)]

    return _awaited(answer)


def _adk(role: Role) -> Call:
    client = import_module("openai").AsyncOpenAI(**role.settings)
    return _adk_call(import_module("google.adk.integrations.openai").OpenAILlm(model=role.model, client=client))


def _adk_ours(role: Role) -> Call:
    return _adk_call(import_module("nemo_agents_google_adk").chat_model(role.member))


CONTENDERS: Final = (
    Contender(name="openai", framework="openai", adapter=None, imports=(), bare=_openai, ours=_member),
    Contender(
        name="langchain",
        framework="langchain-openai",
        adapter="nemo_agents_langchain",
        imports=("langchain_openai",),
        bare=_langchain,
        ours=_langchain_ours,
    ),
    Contender(
        name="langchain-agent",
        framework="langchain",
        adapter="nemo_agents_langchain",
        imports=("langchain.agents",),
        bare=_langchain_agent,
        ours=_langchain_agent_ours,
    ),
    Contender(
        name="crewai",
        framework="crewai",
        adapter="nemo_agents_crewai",
        imports=("crewai",),
        bare=_crewai,
        ours=_crewai_ours,
    ),
    Contender(
        name="autogen-agentchat",
        framework="autogen-ext",
        adapter="nemo_agents_autogen",
        imports=("autogen_ext.models.openai",),
        bare=_agentchat,
        ours=_agentchat_ours,
    ),
    Contender(
        name="google-adk",
        framework="google-adk",
        adapter="nemo_agents_google_adk",
        imports=("google.adk.integrations.openai",),
        bare=_adk,
        ours=_adk_ours,
    ),
)
