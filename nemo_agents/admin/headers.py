"""Names of the headers that the SDK and the gateway exchange; one table for both sides."""

from __future__ import annotations

from typing import Final

__all__ = ["REQUEST_ID", "RUN_ALIASES", "RUN_ID", "STEP"]

# Request: which run and step a call belongs to, and the run's own caps.
RUN_ID: Final = "x-nemo-run-id"
RUN_NAME: Final = "x-nemo-run-name"
STEP: Final = "x-nemo-step"
PARENT_STEP: Final = "x-nemo-parent-step"
RUN_BUDGET: Final = "x-nemo-run-budget"  # dollars, e.g. "0.50"
RUN_MAX_CALLS: Final = "x-nemo-run-max-calls"
TRACEPARENT: Final = "traceparent"

# Request: how long the client waits, so that no attempt begins that nobody would hear of.
TIMEOUT_MS: Final = "x-nemo-timeout-ms"
STAINLESS_READ_TIMEOUT_S: Final = "x-stainless-read-timeout"  # sent by OpenAI's and Anthropic's clients

# Other products' grouping headers, understood unchanged, in this order of precedence.
RUN_ALIASES: Final = (
    "x-litellm-session-id",
    "x-litellm-trace-id",
    "helicone-session-id",
    "x-portkey-trace-id",
    "x-merge-trace-id",
)

# Response, on every answer.
REQUEST_ID: Final = "x-nemo-request-id"
OPENAI_REQUEST_ID: Final = "x-request-id"  # the same again, where OpenAI's clients look for it
ANTHROPIC_REQUEST_ID: Final = "request-id"  # and where Anthropic's do
REQUEST_COST: Final = "x-nemo-request-cost"  # dollars; absent when unknown, never 0 for unknown
LATENCY_MS: Final = "x-nemo-latency-ms"
PROVIDER: Final = "x-nemo-provider"
ATTEMPTS: Final = "x-nemo-attempts"
CACHE: Final = "x-nemo-cache"  # `hit` or `miss`, where the role has its answers kept
GUARDRAILS_APPLIED: Final = "x-nemo-guardrails-applied"
BUDGET_REMAINING: Final = "x-nemo-budget-remaining"  # dollars left in the tightest budget
BUDGET_WARNING: Final = "x-nemo-budget-warning"  # set when a budget is past alert_at
SHADOW: Final = "x-nemo-shadow"  # what would have refused and is in mode shadow: `rpm, budget day`
MAX_TOKENS_CLAMPED: Final = "x-nemo-max-tokens-clamped"  # tokens: all that the budget leaves room for
ERROR_CODE: Final = "x-nemo-error-code"  # error.code again, for clients that lose the body
SHOULD_RETRY: Final = "x-should-retry"
RETRY_AFTER: Final = "retry-after"
RETRY_AFTER_MS: Final = "retry-after-ms"
