"""ADK's `OpenAILlm` as a role of a fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from google.adk.integrations.openai import OpenAILlm
from openai import AsyncOpenAI
from pydantic import Field

from nemo_agents.adapters import member_of, model_of
from nemo_agents.errors import DeclarationError
from nemo_agents_google_adk.calling import OfTheGateway

if TYPE_CHECKING:
    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member

__all__ = ["GatewayLlm", "make_model"]

_OF_THE_ROLE: Final = frozenset({"api_key", "base_url", "client", "model", "role"})


class GatewayLlm(OfTheGateway, OpenAILlm):
    """ADK's `OpenAILlm` with the key of a role; `role` is its name.

    The client with the key in it is no part of what is shown, dumped or written down. A copy shares it, a deep copy
    as well: connections cannot be copied.
    """

    client: AsyncOpenAI | None = Field(default=None, exclude=True, repr=False)
    role: str | None = None


def make_model(
    role: Member | AgentRole,
    *,
    model: str | None,
    run: Run | Step | None,
    max_retries: int,
    timeout_s: float | None,
    options: Mapping[str, Any],
) -> GatewayLlm:
    """Return the model; see `nemo_agents_google_adk.chat_model`."""
    member = member_of(role)
    _check_options(options)
    return GatewayLlm(
        model=model_of(member, model),
        role=member.name,
        base_url=member.base_url,  # the client's counts; this one is for those who read a dump
        client=member.async_openai(max_retries=max_retries, timeout_s=timeout_s, run=run),
        **options,
    )


def _check_options(options: Mapping[str, Any]) -> None:
    """ADK would drop an option that it does not know without a word."""
    known = sorted(set(GatewayLlm.model_fields) - _OF_THE_ROLE)
    for name, value in options.items():
        if name not in known:
            what = "belongs to the role" if name in _OF_THE_ROLE else "is no option of ADK's OpenAILlm"
            raise DeclarationError(
                what,
                field=name,
                value="a value that is not shown" if name == "api_key" else value,
                remedy=f"The options are {', '.join(known)}; what changes from agent to agent goes into "
                "LlmAgent(generate_content_config=...).",
            )
