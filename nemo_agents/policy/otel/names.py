"""The one table of attribute names: what each convention calls what a span here has.

In each row the first name that a span has counts. The conventions, in the order of their precedence:

- the SDK's own `nemo.*`;
- OpenTelemetry's for generative AI (`gen_ai.*`, https://github.com/open-telemetry/semantic-conventions-genai, v0.1.0),
  with the names that releases before it had (`gen_ai.system`, `gen_ai.usage.prompt_tokens`, `gen_ai.prompt`, …);
- OpenInference (https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md);
- OpenLLMetry's (`traceloop.*`) and Google ADK's own (`gcp.vertex.agent.*`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from nemo_agents.policy.otel.values import SpanKind

__all__ = [
    "CONTENT",
    "CONTENT_PREFIXES",
    "INPUT",
    "INPUT_PREFIXES",
    "INPUT_TOKENS",
    "KINDS",
    "MODEL",
    "NAMES",
    "OUTPUT",
    "OUTPUT_PREFIXES",
    "OUTPUT_TOKENS",
    "REQUEST_ID",
    "RESPONSE_ID",
    "ROLE",
    "RUN_ID",
    "SPAN_KIND",
    "STEP",
    "TELLTALES",
]

RUN_ID: Final = "nemo.run.id"
STEP: Final = "nemo.step.name"
ROLE: Final = "nemo.role"
SPAN_KIND: Final = "nemo.span.kind"
REQUEST_ID: Final = "nemo.request.id"
RESPONSE_ID: Final = "gen_ai.response.id"

KINDS: Final[Mapping[str, Mapping[str, SpanKind]]] = MappingProxyType(
    {
        SPAN_KIND: {
            "agent": "agent",
            "task": "task",
            "tool": "tool",
            "chain": "chain",
            "retriever": "retriever",
            "guardrail": "guardrail",
            "llm": "llm",
            "other": "other",
        },
        "gen_ai.operation.name": {
            "chat": "llm",
            "text_completion": "llm",
            "generate_content": "llm",
            "embeddings": "llm",
            "fetch_response": "llm",
            "retrieval": "retriever",
            "execute_tool": "tool",
            "create_agent": "agent",
            "invoke_agent": "agent",
            "invoke_workflow": "chain",
            "plan": "task",
            "apply_guardrail": "guardrail",
        },
        "openinference.span.kind": {
            "LLM": "llm",
            "EMBEDDING": "llm",
            "CHAIN": "chain",
            "RETRIEVER": "retriever",
            "RERANKER": "retriever",
            "TOOL": "tool",
            "AGENT": "agent",
            "GUARDRAIL": "guardrail",
            "EVALUATOR": "other",
            "PROMPT": "other",
        },
        "traceloop.span.kind": {"workflow": "chain", "agent": "agent", "task": "task", "tool": "tool"},
        "llm.request.type": {"chat": "llm", "completion": "llm", "embedding": "llm"},
    }
)
"""By attribute, and by its value."""

TELLTALES: Final[tuple[tuple[str, SpanKind], ...]] = (
    (REQUEST_ID, "llm"),
    ("gen_ai.request.model", "llm"),
    ("llm.model_name", "llm"),
    ("gen_ai.tool.name", "tool"),
    ("tool.name", "tool"),
    ("gen_ai.agent.name", "agent"),
    ("agent.name", "agent"),
)
"""Attributes that tell the kind of a span by being there, where none says it."""

NAMES: Final[Mapping[SpanKind, tuple[str, ...]]] = MappingProxyType(
    {
        "agent": ("gen_ai.agent.name", "agent.name", "traceloop.entity.name"),
        "tool": ("gen_ai.tool.name", "tool.name", "traceloop.entity.name"),
        "task": ("traceloop.entity.name",),
        "chain": ("traceloop.entity.name",),
        "guardrail": ("gen_ai.guardrail.component.name",),
    }
)
"""What a span is called, by its kind; else it has its own name."""

MODEL: Final = (
    "gen_ai.response.model",
    "gen_ai.request.model",
    "llm.response.model_name",
    "llm.model_name",
    "llm.request.model_name",
)
INPUT_TOKENS: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
)
OUTPUT_TOKENS: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
)
INPUT: Final = (
    "input.value",
    "gen_ai.tool.call.arguments",
    "gen_ai.input.messages",
    "gen_ai.prompt",
    "tool.parameters",
    "traceloop.entity.input",
    "gcp.vertex.agent.tool_call_args",
    "gcp.vertex.agent.llm_request",
)
OUTPUT: Final = (
    "output.value",
    "gen_ai.tool.call.result",
    "gen_ai.output.messages",
    "gen_ai.completion",
    "traceloop.entity.output",
    "gcp.vertex.agent.tool_response",
    "gcp.vertex.agent.llm_response",
)
INPUT_PREFIXES: Final = ("llm.input_messages.", "gen_ai.prompt.")
"""Attributes that are a list, spread over many names: `llm.input_messages.0.message.role`."""
OUTPUT_PREFIXES: Final = ("llm.output_messages.", "gen_ai.completion.", "retrieval.documents.")

CONTENT: Final = frozenset(
    {
        *INPUT,
        *OUTPUT,
        "gen_ai.system_instructions",
        "gen_ai.tool.definitions",
        "gcp.vertex.agent.data",
        "input.mime_type",
        "output.mime_type",
    }
)
"""What is said, or goes with it: in the input and output, and nowhere else."""
CONTENT_PREFIXES: Final = (*INPUT_PREFIXES, *OUTPUT_PREFIXES, "llm.tools.", "llm.prompts.", "embedding.embeddings.")
