"""AG2 Classic, or pyautogen 0.2 where that is installed, passes the suite of every adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_agents_autogen import llm_config, tracer
from pydantic import BaseModel
from shapes import distribution_of, needs

from nemo_agents.testing.conformance import Adapter, ConformanceSuite

needs("classic")

import autogen  # noqa: E402 - skipped before

IS_014 = distribution_of("classic") == "autogen"
BOTH = {"sync", "async", "tools", "spans"}


class ClassicUnderTest(Adapter):
    name = framework = distribution_of("classic") or "autogen"
    # pyautogen 0.2 counts the tokens of a stream with a tokenizer from the network, and knows no forms of answers.
    shapes = frozenset(BOTH | {"stream", "structured", "threads"} if IS_014 else BOTH)

    def model(self, member: Any, *, run: Any = None, **options: Any) -> object:
        return llm_config(member, run=run, **options)

    def ask(self, member: Any, text: str, *, run: Any = None) -> str:
        return self._chat(self._assistant(member, run), text)

    async def ask_async(self, member: Any, text: str, *, run: Any = None) -> str:
        assistant, user = self._assistant(member, run), self._user()
        result = await user.a_initiate_chat(assistant, message=text, max_turns=1, silent=True)
        return str(result.chat_history[-1]["content"])

    def stream(self, member: Any, text: str, *, run: Any = None) -> str:
        return self._chat(self._assistant(member, run, stream=True), text)

    def use_tool(self, member: Any, text: str, tool: Callable[..., Any], *, run: Any = None) -> str:
        assistant, user = self._assistant(member, run), self._user()
        autogen.register_function(tool, caller=assistant, executor=user, description=tool.__doc__ or "")
        trace = tracer(run)
        for agent in (assistant, user):
            trace.agent(agent)
        result = user.initiate_chat(assistant, message=text, max_turns=2, silent=True)
        return str(result.chat_history[-1]["content"])

    def structured(self, member: Any, text: str, schema: type[BaseModel], *, run: Any = None) -> BaseModel:
        return schema.model_validate_json(self._chat(self._assistant(member, run, response_format=schema), text))

    def in_thread(self, member: Any, text: str, *, run: Any) -> str:
        """`run` of AG2 Classic holds the chat on a thread of its own, which does not have the context."""
        response = self._assistant(member, run).run(message=text, max_turns=1, user_input=False)
        response.process(_Quiet())
        return str(response.messages[-1]["content"])

    def _assistant(self, member: Any, run: Any, **options: Any) -> Any:
        return autogen.AssistantAgent("assistant", llm_config=llm_config(member, run=run, **options))

    def _user(self) -> Any:
        return autogen.UserProxyAgent("user", human_input_mode="NEVER", code_execution_config=False)

    def _chat(self, assistant: Any, text: str) -> str:
        result = self._user().initiate_chat(assistant, message=text, max_turns=1, silent=True)
        return str(result.chat_history[-1]["content"])


class _Quiet:
    """A processor of events that shows nothing and lets errors through."""

    def process(self, response: Any) -> None:
        for event in response.events:
            if getattr(event, "type", "") == "error":
                raise event.content.error


class TestClassic(ConformanceSuite):
    adapter = ClassicUnderTest()
