"""LangChain's own suite for chat models, run with its OpenAI integration against a gateway.

Run by `test_frameworks.py` in an environment of its own. NEMO_URL and NEMO_KEY say where the gateway is.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

Detail = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]
DETAILS: list[Detail] = ["reasoning_output", "cache_read_input"]


class _ThroughTheGateway(ChatModelIntegrationTests):
    """What the integration can do behind the gateway; the rest of the suite's switches are as they come."""

    provider = "native"
    responses_api = False

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": f"{self.provider}/sense",
            "base_url": f"{os.environ['NEMO_URL']}/v1",
            "api_key": os.environ["NEMO_KEY"],
            "max_retries": 0,
            "stream_usage": True,
            "use_responses_api": self.responses_api,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "thinker"  # a model group

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Detail]]:
        return {"invoke": DETAILS, "stream": DETAILS}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._ask_thinker(stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._ask_thinker(stream=stream)

    def _ask_thinker(self, *, stream: bool) -> AIMessage:
        model = ChatOpenAI(**{**self.chat_model_params, "model": f"{self.provider}/thinker"})
        if not stream:
            return model.invoke("How much is six times seven?")
        first, *rest = model.stream("How much is six times seven?")
        return sum(rest, start=first)


class TestChatCompletions(_ThroughTheGateway):
    """Chat completions."""


class TestResponses(_ThroughTheGateway):
    """The Responses API, served by the provider."""

    responses_api = True


class TestTranslatedResponses(_ThroughTheGateway):
    """The Responses API, retold as chat completions."""

    provider = "chatonly"
    responses_api = True
