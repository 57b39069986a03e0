"""AutoGen, AG2 Classic and AG2 through the gateway of nemo-agents.

    chat_model(role)   AutoGen 0.7      an OpenAIChatCompletionClient for AssistantAgent(model_client=...)
    llm_config(role)   AG2 Classic      a dict for autogen.AssistantAgent(llm_config=...); pyautogen 0.2 as well
    ag2_config(role)   AG2 1.x          an OpenAIConfig for ag2.Agent(config=...)

`tracer()` puts agents and tools of all three into the run; `run_task` and `refusals` bring back the types of refusals
that AutoGen's teams turn into text. A framework is imported when its function is called, never before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemo_agents_autogen.refused import refusals, run_task
from nemo_agents_autogen.tracing import Tracer, tracer
from nemo_agents_autogen.versions import FRAMEWORK, check_ag2, check_agentchat, check_classic

if TYPE_CHECKING:
    from ag2.config import OpenAIConfig

    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member
    from nemo_agents_autogen.agentchat import GatewayChatCompletionClient

__all__ = ["FRAMEWORK", "Tracer", "ag2_config", "chat_model", "llm_config", "refusals", "run_task", "tracer"]


def chat_model(
    role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None, **options: Any
) -> GatewayChatCompletionClient:
    """Return a model client of AutoGen 0.7 for a role: an `OpenAIChatCompletionClient` that speaks through the gateway.

    For AG2 Classic take `llm_config`, for AG2 1.x `ag2_config`. `model` is the role's first where none is named. Calls
    belong to the run and step that are current when they are made; where none is, because a runtime was started
    outside of any, to the place that `run` names, by default the one that is current now.

    `options` are what `OpenAIChatCompletionClient` takes for a request (`temperature`, `max_tokens`, `seed`, …), and
    `max_retries`, `timeout` (seconds), `add_name_prefixes`, `include_name_in_message` and `model_info`, which is
    otherwise filled from the gateway's list of models: one request when the client is made.

    Raises AdapterError when AutoGen is missing or of another version, DeclarationError for a model that the role may
    not use and for options that belong to the role, ProvisionError when the role has no known key.
    """
    check_agentchat()
    from nemo_agents_autogen.agentchat import make_client  # noqa: PLC0415 - imports the framework, which is optional

    return make_client(role, model=model, run=run, options=options)


def llm_config(
    role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None, **options: Any
) -> dict[str, Any]:
    """Return the `llm_config` of an agent of AG2 Classic (`autogen` 0.14) or pyautogen 0.2 for a role.

    It is a plain dict that survives deep copies and holds no key: the HTTP client in it puts the key into each request.
    Answers are not cached on disk (`cache_seed` is None), and the model's price is that of the gateway. The framework
    runs some calls in threads that lost the context, so make it inside the run, or name the run: see `chat_model`.

    `options` go into the entry of the model (`temperature`, `max_tokens`, `stream`, `max_retries`, `timeout`, …), but
    `cache_seed`, which stands beside it. Raises as `chat_model` does.
    """
    check_classic()
    from nemo_agents_autogen.classic import make_config  # noqa: PLC0415 - needs openai, which is slow to import

    return make_config(role, model=model, run=run, options=options)


def ag2_config(
    role: Member | AgentRole, *, model: str | None = None, run: Run | Step | None = None, **options: Any
) -> OpenAIConfig:
    """Return the `OpenAIConfig` of an agent of AG2 1.x for a role; it holds no key.

    `options` are further fields of `OpenAIConfig` (`streaming`, `temperature`, …). Raises as `chat_model` does.
    """
    check_ag2()
    from nemo_agents_autogen.ag2 import make_config  # noqa: PLC0415 - imports the framework, which is optional

    return make_config(role, model=model, run=run, options=options)
