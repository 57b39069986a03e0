"""AG2 1.x: the `OpenAIConfig` that its agents take."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nemo_agents.adapters import AdapterError, member_of, model_of
from nemo_agents.errors import DeclarationError
from nemo_agents.trace.context import here
from nemo_agents_autogen.options import refuse_connection_options, take_timing
from nemo_agents_autogen.wire import AsyncKeyedHttp, Retrying

try:
    from ag2.config.openai import OpenAIConfig
except ImportError as exc:
    raise AdapterError(
        f"the installed ag2 cannot use the installed openai ({exc}): a release of ag2 wants one major version of it. "
        "Run: pip install 'ag2[openai]>=1.0.3,<2'"
    ) from exc

if TYPE_CHECKING:
    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member

__all__ = ["make_config"]


def make_config(
    role: Member | AgentRole, *, model: str | None, run: Run | Step | None, options: dict[str, Any]
) -> OpenAIConfig:
    """Return the `OpenAIConfig` of a role; see `nemo_agents_autogen.ag2_config`."""
    refuse_connection_options("ag2_config", options)
    unknown = sorted(options.keys() - {field.name for field in fields(OpenAIConfig)})
    if unknown:
        raise DeclarationError(
            "OpenAIConfig of the installed ag2 has no such field",
            field=unknown[0],
            value=options[unknown[0]],
            remedy="Look at the fields of ag2.config.OpenAIConfig.",
        )
    member = member_of(role)
    chosen = model_of(member, model)
    retries, timeout_s = take_timing(options)
    if timeout_s is not None:
        options["timeout"] = timeout_s
    http_client: Any = AsyncKeyedHttp(  # typed by ag2 for the library of openai 3 alone
        member, member.async_http_client(run=run), Retrying(max_retries=retries, made_at=run or here())
    )
    return OpenAIConfig(
        model=chosen,
        api_key=member.key_stand_in,
        base_url=member.base_url,
        max_retries=0,  # the HTTP client is the one place that retries
        http_client=http_client,
        **options,
    )
