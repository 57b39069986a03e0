"""LangChain's own models of OpenAI's protocol, made with the gateway's clients.

The clients are given whole (`client`, `root_client` and their awaiting twins are public fields of ChatOpenAI) rather
than as HTTP clients beneath LangChain's: so there is one policy for retries, refusals are typed, an async model
survives several event loops, and a proxy from the environment cannot come in between.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from nemo_agents import Run, Step
from nemo_agents.errors import DeclarationError
from nemo_agents.trace.clients import AsyncGatewayOpenAI, GatewayOpenAI
from nemo_agents.trace.member import Member

__all__ = ["chat", "embedder"]

_RETRIES: Final = 2

_OURS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("api_key", "openai_api_key"), "The role has a key; choose another role instead."),
    **dict.fromkeys(
        ("base_url", "openai_api_base", "openai_proxy"),
        "The gateway's address comes with the fleet, or from NEMO_GATEWAY_URL for a role alone.",
    ),
    **dict.fromkeys(
        ("client", "async_client", "root_client", "root_async_client", "http_client", "http_async_client"),
        "The clients are those of the gateway; make a ChatOpenAI yourself to use others.",
    ),
    **dict.fromkeys(("model_name",), "Say model=."),
}
"""Options that would lead past the gateway, and what to do instead."""

_Client = TypeVar("_Client", GatewayOpenAI, AsyncGatewayOpenAI)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clients:
    sync: GatewayOpenAI
    asynchronous: AsyncGatewayOpenAI


def chat(member: Member, model: str, *, run: Run | Step | None, options: Mapping[str, Any]) -> ChatOpenAI:
    """Return the role's ChatOpenAI; see `nemo_agents_langchain.chat_model`."""
    rest = dict(options)
    clients = _clients(member, run, rest)
    # LangChain warns for each streamed structured answer that it leaves the headers out: nothing its caller can mend.
    warnings.filterwarnings("ignore", message="Cannot currently include response headers", category=UserWarning)
    defaults: dict[str, Any] = {
        # With a base URL of one's own LangChain asks for no usage in streams, and then shows none.
        "stream_usage": True,
        # Names such as gpt-5-pro would go to the Responses API by themselves, which not every deployment has.
        "use_responses_api": False,
        # The headers carry the request's id, by which the tracer puts the call under the agent that made it.
        "include_response_headers": True,
    }
    return ChatOpenAI(
        model=model,
        base_url=member.base_url,
        api_key=SecretStr(member.key_stand_in),
        client=clients.sync.chat.completions,
        async_client=clients.asynchronous.chat.completions,
        root_client=clients.sync,
        root_async_client=clients.asynchronous,
        max_retries=0,
        **{**defaults, **rest},
    )


def embedder(member: Member, model: str, *, run: Run | Step | None, options: Mapping[str, Any]) -> OpenAIEmbeddings:
    """Return the role's OpenAIEmbeddings; see `nemo_agents_langchain.embeddings`."""
    rest = dict(options)
    clients = _clients(member, run, rest)
    return OpenAIEmbeddings(
        model=model,
        base_url=member.base_url,
        api_key=SecretStr(member.key_stand_in),
        client=clients.sync.embeddings,
        async_client=clients.asynchronous.embeddings,
        max_retries=0,
        **{"check_embedding_ctx_length": False, **rest},
    )


def _clients(member: Member, run: Run | Step | None, options: dict[str, Any]) -> _Clients:
    """Return the role's clients, and take out of the options what is theirs."""
    for name, remedy in _OURS.items():
        if name in options:
            raise DeclarationError(
                "the adapter sets this option itself", field=name, value=type(options[name]).__name__, remedy=remedy
            )
    retries = options.pop("max_retries", None)
    timeout_s = _seconds(options.pop("timeout", options.pop("request_timeout", None)))
    max_retries = _RETRIES if retries is None else retries
    headers, query = options.pop("default_headers", None), options.pop("default_query", None)

    def with_extras(client: _Client) -> _Client:
        return client.with_options(default_headers=headers, default_query=query) if headers or query else client

    return _Clients(
        sync=with_extras(member.openai(max_retries=max_retries, timeout_s=timeout_s, run=run)),
        asynchronous=with_extras(member.async_openai(max_retries=max_retries, timeout_s=timeout_s, run=run)),
    )


def _seconds(timeout: object) -> float | None:
    if timeout is None or (isinstance(timeout, (int, float)) and not isinstance(timeout, bool)):
        return None if timeout is None else float(timeout)
    raise DeclarationError(
        "a timeout is a number of seconds",
        field="timeout",
        value=timeout,
        remedy="For example timeout=30; a step's own deadline is run.step(..., timeout_s=30).",
    )
