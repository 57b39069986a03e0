"""ADK's `LiteLlm` as a role of a fleet."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from google.adk.models.lite_llm import LiteLlm, LiteLLMClient

from nemo_agents.adapters import member_of, model_of
from nemo_agents.errors import DeclarationError
from nemo_agents_google_adk.calling import OfTheGateway
from nemo_agents_google_adk.errors import error_behind

if TYPE_CHECKING:
    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.clients import AsyncGatewayOpenAI, GatewayOpenAI
    from nemo_agents.trace.member import Member

__all__ = ["GatewayLiteLlm", "make_model"]

_PREFIX: Final = "openai/"  # makes litellm speak OpenAI's protocol for whatever name follows
_OF_THE_ROLE: Final = frozenset(
    {
        "api_base",
        "api_key",
        "base_url",
        "client",
        "custom_llm_provider",
        "fallbacks",
        "llm_client",
        "max_retries",
        "num_retries",
        "role",
    }
)


class GatewayLiteLlm(OfTheGateway, LiteLlm):
    """ADK's `LiteLlm` with the key of a role; `role` is its name. The key is in the client alone."""

    role: str | None = None


class _GatewayClient(LiteLLMClient):
    """Has litellm speak through the role's own clients, which know run and step, wait, and raise typed errors."""

    def __init__(self, asynchronous: AsyncGatewayOpenAI, blocking: GatewayOpenAI) -> None:
        super().__init__()
        self._asynchronous = asynchronous
        self._blocking = blocking

    async def acompletion(self, model: Any, messages: Any, tools: Any, **options: Any) -> Any:
        """Ask the gateway; a refusal is raised as the error that it is, and not as litellm's."""
        around = sys.exception()
        try:
            answer = await super().acompletion(model, messages, tools, **_through(self._asynchronous, options))
        except Exception as exc:
            error = error_behind(exc, around)
            if error is None:
                raise
        else:
            return _typed_stream(answer) if options.get("stream") else answer
        raise error  # outside the handler, where it would get litellm's as its context and be a ring

    def completion(
        self,
        model: Any,
        messages: Any,
        tools: Any,
        stream: bool = False,  # noqa: FBT001, FBT002 - ADK's signature
        **options: Any,
    ) -> Any:
        """Ask the gateway, blocking; a refusal is raised as the error that it is, and not as litellm's."""
        around = sys.exception()
        try:
            return super().completion(model, messages, tools, stream, **_through(self._blocking, options))
        except Exception as exc:
            error = error_behind(exc, around)
            if error is None:
                raise
        raise error  # outside the handler, where it would get litellm's as its context and be a ring


def make_model(
    role: Member | AgentRole,
    *,
    model: str | None,
    run: Run | Step | None,
    max_retries: int,
    timeout_s: float | None,
    options: Mapping[str, Any],
) -> GatewayLiteLlm:
    """Return the model; see `nemo_agents_google_adk.lite_llm`."""
    member = member_of(role)
    for name in sorted(_OF_THE_ROLE & options.keys()):
        raise DeclarationError(
            "belongs to the role",
            field=name,
            value="a value that is not shown" if name == "api_key" else options[name],
            remedy="Leave it out: key, gateway and retries are the role's. max_retries= and timeout_s= are options of "
            "lite_llm itself.",
        )
    client = _GatewayClient(
        member.async_openai(max_retries=max_retries, timeout_s=timeout_s, run=run),
        member.openai(max_retries=max_retries, timeout_s=timeout_s, run=run),
    )
    if timeout_s is not None:
        options = {"timeout": timeout_s, **options}  # litellm's own of 6000 s would replace the client's
    return GatewayLiteLlm(model=_PREFIX + model_of(member, model), llm_client=client, role=member.name, **options)


def _through(client: AsyncGatewayOpenAI | GatewayOpenAI, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return litellm's options of a request that this client shall send and nothing shall repeat."""
    kept = {name: value for name, value in options.items() if name not in ("num_retries", "role")}
    # litellm writes its number of retries into the client: it must be the one that the client has.
    return {**kept, "client": client, "max_retries": client.max_retries}


async def _typed_stream(chunks: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    while True:
        around = sys.exception()
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except Exception as exc:
            error = error_behind(exc, around)
            if error is None:
                raise
        else:
            yield chunk
            continue
        raise error  # outside the handler, where it would get litellm's as its context and be a ring
