"""The providers that are known: where each one is, which wires it speaks, and where its key is looked for.

Every fact is from the provider's own documentation; the page is named beside it, as of November 2026. What a page does
not promise is not in a provider's wires: the gateway then translates into Chat Completions, which all of them speak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nemo_agents.gateway.providers.config import COMMON_WIRES, Auth, MaxTokensField
from nemo_agents.policy.wires.base import WireName

__all__ = ["COMPROMISED_LITELLM", "KEY_ENV_OF", "KNOWN", "LITELLM", "LOCAL", "Known", "Local", "what_to_set"]

LITELLM: Final = "litellm"
"""The provider that calls the package of this name, for whatever has no OpenAI-compatible endpoint."""

COMPROMISED_LITELLM: Final = ("1.82.7", "1.82.8", "1.107.")
"""How the versions of LiteLLM begin that must not be on any machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A provider that needs no configuration beside its credentials.

    `base_url` may have fields in braces: `region` (AWS), `location`, `host` and `project` (Google), `endpoint`
    (Azure). `further_envs` are the variables that are needed beside the key. The other fields are those of
    ProviderConfig.
    """

    base_url: str
    key_envs: tuple[str, ...]
    wires: frozenset[WireName] = COMMON_WIRES
    max_tokens_field: MaxTokensField = "max_tokens"
    auth: Auth = "bearer"
    further_envs: tuple[str, ...] = ()
    priced_as: str | None = None
    lists_models: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A server on the own machine, found by asking; it bills nobody.

    `owner` is what its model list says in `owned_by`, where its port is one that other programs like as well.
    """

    base_url: str
    wires: frozenset[WireName]
    owner: str | None = None


def _wires(*names: WireName) -> frozenset[WireName]:
    return frozenset(names)


KNOWN: Final[Mapping[str, Known]] = {
    # "API Reference", OpenAI
    "openai": Known(
        base_url="https://api.openai.com/v1",
        key_envs=("OPENAI_API_KEY",),
        wires=_wires("chat", "responses", "completions", "embeddings"),
        max_tokens_field="max_completion_tokens",
    ),
    # "Azure OpenAI in Microsoft Foundry Models v1 API": no `api-version`, the model is the deployment's name
    "azure": Known(
        base_url="{endpoint}/openai/v1",
        key_envs=("AZURE_OPENAI_API_KEY",),
        further_envs=("AZURE_OPENAI_ENDPOINT",),
        wires=_wires("chat", "responses", "completions", "embeddings"),
        max_tokens_field="max_completion_tokens",
        auth="api-key",
    ),
    # "OpenAI SDK compatibility" and "Messages", Claude API
    "anthropic": Known(
        base_url="https://api.anthropic.com/v1",
        key_envs=("ANTHROPIC_API_KEY",),
        wires=_wires("chat", "messages"),
        auth="anthropic",
    ),
    # "OpenAI compatibility", Gemini API
    "gemini": Known(
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_envs=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    # "OpenAI Compatibility", GroqDocs: text completions are among what is not supported
    "groq": Known(
        base_url="https://api.groq.com/openai/v1",
        key_envs=("GROQ_API_KEY",),
        wires=_wires("chat", "responses"),
        max_tokens_field="max_completion_tokens",
    ),
    # "API Specs", Mistral AI: completions are fill-in-the-middle only, under another path
    "mistral": Known(base_url="https://api.mistral.ai/v1", key_envs=("MISTRAL_API_KEY",)),
    # "Your First API Call", DeepSeek API Docs: completions only at /beta, messages only at /anthropic
    "deepseek": Known(
        base_url="https://api.deepseek.com/v1",
        key_envs=("DEEPSEEK_API_KEY",),
        wires=_wires("chat"),
    ),
    # "Comparison with Chat Completions API", xAI Docs
    "xai": Known(
        base_url="https://api.x.ai/v1",
        key_envs=("XAI_API_KEY",),
        wires=_wires("chat", "responses"),
        max_tokens_field="max_completion_tokens",
    ),
    # "OpenAI compatibility", Together AI; the domain was together.xyz before
    "together": Known(
        base_url="https://api.together.ai/v1",
        key_envs=("TOGETHER_API_KEY",),
        wires=_wires("chat", "completions", "embeddings"),
    ),
    # "OpenAI compatibility" and "Responses API", Fireworks AI Docs
    "fireworks": Known(
        base_url="https://api.fireworks.ai/inference/v1",
        key_envs=("FIREWORKS_API_KEY",),
        wires=_wires("chat", "responses", "completions", "embeddings"),
    ),
    # "API Reference", OpenRouter; its Responses API calls itself a beta
    "openrouter": Known(
        base_url="https://openrouter.ai/api/v1",
        key_envs=("OPENROUTER_API_KEY",),
        wires=_wires("chat", "responses", "messages", "completions", "embeddings"),
    ),
    # "Using Cohere models via the OpenAI SDK", Cohere Docs
    "cohere": Known(
        base_url="https://api.cohere.ai/compatibility/v1",
        key_envs=("COHERE_API_KEY", "CO_API_KEY"),
        lists_models=False,
    ),
    # "OpenAI Compatibility", Perplexity: the paths begin at the host
    "perplexity": Known(
        base_url="https://api.perplexity.ai",
        key_envs=("PERPLEXITY_API_KEY",),
        wires=_wires("chat"),
        lists_models=False,
    ),
    # "Invoke a model with the OpenAI Chat Completions API", Amazon Bedrock User Guide
    "bedrock": Known(
        base_url="https://bedrock-runtime.{region}.amazonaws.com/openai/v1",
        key_envs=("AWS_BEARER_TOKEN_BEDROCK",),
        further_envs=("AWS_REGION",),
        wires=_wires("chat"),
        max_tokens_field="max_completion_tokens",
        priced_as="aws",
        lists_models=False,
    ),
    # "Call Vertex AI models by using the OpenAI library" and "Authenticate", Google Cloud: models are `google/…`
    "vertex": Known(
        base_url="https://{host}/v1/projects/{project}/locations/{location}/endpoints/openapi",
        key_envs=("GOOGLE_APPLICATION_CREDENTIALS",),
        further_envs=("GOOGLE_CLOUD_PROJECT",),
        wires=_wires("chat"),
        auth="google",
        priced_as="gemini",
        lists_models=False,
    ),
}

LOCAL: Final[Mapping[str, Local]] = {
    # "OpenAI compatibility" and "Anthropic compatibility", Ollama; responses need 0.13.3, so they are translated
    "ollama": Local(
        base_url="http://127.0.0.1:11434/v1",
        wires=_wires("chat", "completions", "embeddings"),
    ),
    # "OpenAI-Compatible Server", vLLM
    "vllm": Local(
        base_url="http://127.0.0.1:8000/v1",
        wires=_wires("chat", "responses", "completions", "embeddings"),
        owner="vllm",
    ),
    # "OpenAI Compatible Endpoints", LM Studio
    "lmstudio": Local(
        base_url="http://127.0.0.1:1234/v1",
        wires=_wires("chat", "responses", "completions", "embeddings"),
    ),
    # "LLaMA.cpp HTTP Server", llama.cpp
    "llamacpp": Local(
        base_url="http://127.0.0.1:8080/v1",
        wires=_wires("chat", "completions", "embeddings"),
        owner="llamacpp",
    ),
}

KEY_ENV_OF: Final[Mapping[str, str]] = {name: known.key_envs[0] for name, known in KNOWN.items()}
"""The environment variable of each known provider's key, for messages."""


def what_to_set(name: str) -> str:
    """Return what a provider that is not there lacks, as an order: `set OPENAI_API_KEY`."""
    known = KNOWN.get(name)
    if known is not None:
        return f"set {' and '.join((known.key_envs[0], *known.further_envs))}"
    if name in LOCAL:
        return f"start it on {LOCAL[name].base_url}, or add [providers.{name}] with its base_url"
    if name == LITELLM:
        return "install nemo-agents[litellm] and add [providers.litellm]"
    return f"add [providers.{name}] with its base_url to the gateway's configuration"
