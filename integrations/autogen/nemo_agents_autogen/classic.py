"""AG2 Classic (`autogen` 0.14) and pyautogen 0.2: the dict that their agents take as `llm_config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemo_agents.adapters import member_of, model_facts, model_of
from nemo_agents.trace.context import here
from nemo_agents_autogen.options import refuse_connection_options, take_timing
from nemo_agents_autogen.wire import KeyedHttp, Retrying

if TYPE_CHECKING:
    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member

__all__ = ["make_config", "price_of"]

_NANOS_PER_MILLION_IN_DOLLARS_PER_THOUSAND = 10**12


def make_config(
    role: Member | AgentRole, *, model: str | None, run: Run | Step | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the `llm_config` of a role; see `nemo_agents_autogen.llm_config`."""
    refuse_connection_options("llm_config", options)
    member = member_of(role)
    chosen = model_of(member, model)
    facts = model_facts(member, chosen)
    cache_seed = options.pop("cache_seed", None)
    retries, timeout_s = take_timing(options)
    entry: dict[str, Any] = {
        "model": chosen,
        "api_type": "openai",
        "api_key": member.key_stand_in,
        "base_url": member.base_url,
        "max_retries": 0,  # the HTTP client is the one place that retries
        "http_client": KeyedHttp(
            member, member.http_client(run=run), Retrying(max_retries=retries, made_at=run or here())
        ),
        **options,
    }
    if timeout_s is not None:
        entry["timeout"] = timeout_s
    price = price_of(facts.input_nanos_per_million, facts.output_nanos_per_million)
    if price is not None:
        entry.setdefault("price", price)
    return {"config_list": [entry], "cache_seed": cache_seed}


def price_of(input_nanos_per_million: int | None, output_nanos_per_million: int | None) -> list[float] | None:
    """Return the price as AutoGen has it: dollars per thousand tokens in and out; None where it is not known.

    https://docs.ag2.ai/latest/docs/user-guide/advanced-concepts/llm-configuration-deep-dive/
    """
    if input_nanos_per_million is None or output_nanos_per_million is None:
        return None
    return [
        nanos / _NANOS_PER_MILLION_IN_DOLLARS_PER_THOUSAND
        for nanos in (input_nanos_per_million, output_nanos_per_million)
    ]
