"""Google's Agent Development Kit through the gateway of nemo-agents.

    chat_model(role)   ADK's OpenAILlm, for LlmAgent(model=...); needs no litellm
    lite_llm(role)     ADK's LiteLlm, for those who build on it
    tracer()           a plugin for App(plugins=[...]) and runners: agents and tools in the run
    error_behind(exc)  the gateway's error that an exception of litellm stands for

    agent = LlmAgent(name="researcher", model=chat_model(fleet["researcher"]), tools=[web_search])
    runner = InMemoryRunner(app=App(name="crew", root_agent=agent, plugins=[tracer()]))

ADK is imported when one of them is called, never before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nemo_agents.adapters import check_versions, switch_off
from nemo_agents_google_adk.errors import error_behind

if TYPE_CHECKING:
    from nemo_agents import AgentRole, Run, Step
    from nemo_agents.trace.member import Member
    from nemo_agents_google_adk.lite import GatewayLiteLlm
    from nemo_agents_google_adk.native import GatewayLlm
    from nemo_agents_google_adk.tracing import RunTracer

__all__ = ["FRAMEWORK", "LITELLM", "chat_model", "error_behind", "lite_llm", "tracer"]

FRAMEWORK: Final[Mapping[str, str]] = {"google-adk": ">=2.10,<3"}
LITELLM: Final[Mapping[str, str]] = {"litellm": ">=1.84,<1.106.3"}  # the range that ADK itself allows

# litellm fetches its table of prices from the network when it is imported; its own copy does.
_QUIET: Final[Mapping[str, str]] = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def chat_model(
    role: Member | AgentRole,
    *,
    model: str | None = None,
    run: Run | Step | None = None,
    max_retries: int = 2,
    timeout_s: float | None = None,
    **options: Any,
) -> GatewayLlm:
    """Return a model for `LlmAgent(model=...)`: ADK's own `OpenAILlm`, with the role's key at the gateway.

    `model` is the role's first where none is named. Calls belong to the run and step that are current when they are
    made; where none is, because a runner was started outside of any, to the place that `run` names, by default the one
    that is current now. `max_retries` is how often a refusal that waiting cures is waited out, `timeout_s` how many
    seconds an answer may take.

    `options` are the fields of `OpenAILlm`, which is `max_tokens`: the most an answer may have where the agent's
    `generate_content_config` does not say. ADK sends its default of 4096 with every call, and the gateway holds the
    price of that many tokens until the answer is there; models that reason count their reasoning in.

    Raises AdapterError when ADK is missing or of another version, DeclarationError for a model that the role may not
    use and for options that are no field of the model, ProvisionError when the role has no known key.
    """
    check_versions("google_adk", FRAMEWORK)
    from nemo_agents_google_adk.native import make_model  # noqa: PLC0415 - imports the framework, which is optional

    return make_model(role, model=model, run=run, max_retries=max_retries, timeout_s=timeout_s, options=options)


def lite_llm(
    role: Member | AgentRole,
    *,
    model: str | None = None,
    run: Run | Step | None = None,
    max_retries: int = 2,
    timeout_s: float | None = None,
    **options: Any,
) -> GatewayLiteLlm:
    """Return a model for `LlmAgent(model=...)`: ADK's own `LiteLlm`, with the role's key at the gateway.

    Every model goes to the gateway under its own name, whatever provider litellm would take it for. `options` are what
    `LiteLlm` takes for each request (`temperature`, `max_tokens`, …); litellm's own retries are off. Everything else is
    as in `chat_model`, and so are the errors raised; AdapterError also when litellm is missing.
    """
    check_versions("google_adk", {**FRAMEWORK, **LITELLM})
    switch_off(_QUIET)
    from nemo_agents_google_adk.lite import make_model  # noqa: PLC0415 - imports the framework, which is optional

    return make_model(role, model=model, run=run, max_retries=max_retries, timeout_s=timeout_s, options=options)


def tracer(run: Run | Step | None = None) -> RunTracer:
    """Return a plugin for `App(plugins=[...])` and for runners that tells a run about agents and tools.

    Each agent and each tool becomes a span, model calls lie under their agent, and what agents and tools have made so
    far is the partial result of the step or run. Without `run`, things belong to the run that is current when they
    happen, and where none is, to the one that was current here. Raises AdapterError when ADK is missing or of another
    version.
    """
    check_versions("google_adk", FRAMEWORK)
    from nemo_agents_google_adk.tracing import RunTracer  # noqa: PLC0415 - imports the framework, which is optional

    return RunTracer(run)
