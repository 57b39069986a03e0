"""crewAI's OpenAI model with a role's client inside.

The key stays in that client: the model's own `api_key` is a stand-in, so no repr, dump, event or checkpoint has it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from crewai.llms.providers.openai.completion import OpenAICompletion
from pydantic import Field, PrivateAttr

from nemo_agents.adapters import AdapterError, model_facts
from nemo_agents.errors import DeclarationError, NemoError
from nemo_agents_crewai import places, refusals
from nemo_agents_crewai.seats import Seat

if TYPE_CHECKING:
    from nemo_agents import Run, Step
    from nemo_agents.adapters import ModelFacts
    from nemo_agents.trace.clients import AsyncGatewayOpenAI, GatewayOpenAI
    from nemo_agents.trace.member import Member

__all__ = ["GatewayLLM", "gateway_llm"]

# Options that choose an address, a credential or a transport: those are the role's.
_OURS: Final = frozenset(
    {
        "api_base",
        "api_key",
        "base_url",
        "client_params",
        "custom_openai",
        "default_headers",
        "default_query",
        "interceptor",
        "is_litellm",
        "organization",
        "project",
        "provider",
        "seat",
    }
)

# What crewAI leaves free of a context window for its own estimate of tokens to be wrong in.
_WINDOW_SHARE: Final = 0.85

# The methods as they are written. BaseLLM wraps each in a retry on rate limits that waits 1, 2 and 4 seconds whatever
# `retry-after` says; the role's client has waited as it says already.
_CALL: Final = inspect.unwrap(OpenAICompletion.call)
_ACALL: Final = inspect.unwrap(OpenAICompletion.acall)
_FACTORIES: Final = ("_build_sync_client", "_build_async_client")


class _CalledOnce:
    """`call` and `acall` as crewAI's model has them, with refusals as what crewAI does not try again.

    They are here and not in the model class because BaseLLM wraps what a subclass defines itself.
    """

    def call(  # noqa: PLR0917 - crewAI's signature
        self: Any,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: Any = None,
    ) -> Any:
        """Ask the model; see `crewai.BaseLLM.call`. Raises the errors of `nemo_agents.errors`."""
        refusals.give_back_retries(from_agent)
        try:
            with places.inside_span(self.seat):
                return _CALL(
                    self, messages, tools, callbacks, available_functions, from_task, from_agent, response_model
                )
        except NemoError as error:
            places.settle()
            if (told := refusals.final(error, from_agent)) is error:
                raise
            raise told from error

    async def acall(  # noqa: PLR0917 - crewAI's signature
        self: Any,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: Any = None,
    ) -> Any:
        """Ask the model; see `crewai.BaseLLM.acall`. Raises the errors of `nemo_agents.errors`."""
        refusals.give_back_retries(from_agent)
        try:
            with places.inside_span(self.seat):
                return await _ACALL(
                    self, messages, tools, callbacks, available_functions, from_task, from_agent, response_model
                )
        except NemoError as error:
            await asyncio.to_thread(places.settle)
            if (told := refusals.final(error, from_agent)) is error:
                raise
            raise told from error


class GatewayLLM(_CalledOnce, OpenAICompletion):
    """What `chat_model` returns."""

    seat: Seat = Field(exclude=True, repr=False)

    _facts: ModelFacts | None = PrivateAttr(default=None)

    def _build_sync_client(self) -> GatewayOpenAI:
        return self.seat.member.openai(max_retries=self.max_retries, timeout_s=self.timeout, run=self.seat.run)

    def _build_async_client(self) -> AsyncGatewayOpenAI:
        return self.seat.member.async_openai(max_retries=self.max_retries, timeout_s=self.timeout, run=self.seat.run)

    def get_context_window_size(self) -> int:
        """Return how many tokens a conversation may have before crewAI summarises it."""
        tokens = self._known().context_tokens
        return super().get_context_window_size() if tokens is None else int(tokens * _WINDOW_SHARE)

    def supports_function_calling(self) -> bool:
        """Say whether the model calls tools natively."""
        return self._known().function_calling

    def supports_multimodal(self) -> bool:
        """Say whether the model sees images."""
        return self._known().vision

    def _known(self) -> ModelFacts:
        if self._facts is None:
            self._facts = model_facts(self.seat.member, self.model)
        return self._facts


def gateway_llm(member: Member, model: str, run: Run | Step | None, options: Mapping[str, Any]) -> GatewayLLM:
    """Return the LLM of a role. Raises DeclarationError for an option that is the role's to decide."""
    for name in sorted(_OURS & options.keys()):
        raise DeclarationError(
            "is not an option of chat_model: address, key and transport are those of the role",
            field=name,
            value="…",  # it may be a key
            remedy="Leave it out, or make a crewai.LLM(...) of your own.",
        )
    if missing := [name for name in _FACTORIES if not callable(getattr(OpenAICompletion, name, None))]:
        raise AdapterError(
            f"this release of crewAI makes its clients in another way ({', '.join(missing)} is gone), and a model "
            "would lead past the gateway. Look for a newer nemo-agents-crewai, or install an older crewai."
        )
    fixed: dict[str, Any] = {
        "model": model,
        "provider": "openai",
        "api_key": member.key_stand_in,
        "base_url": member.base_url,
        "seat": Seat(member, run),
    }
    if "custom_openai" in OpenAICompletion.model_fields:
        fixed["custom_openai"] = True  # no switch to another API because of what a model is called
    return GatewayLLM(**fixed, **options)
