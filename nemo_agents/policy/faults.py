"""How an attempt can fail, and what a provider's own refusal was about.

Providers say "too long" and "not allowed" in many words. Codes are asked first, where there is one that means nothing
else; then the message, by sentences that the providers are known to write. A sentence is looked for in the error's
own message alone, for some providers repeat the prompt elsewhere in the body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["Fault", "FaultKind", "kind_of_refusal"]

FaultKind = Literal["context_window", "content_filter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How an attempt failed, as far as it matters for what comes next.

    `status` is the provider's HTTP status, None when there was none (not connected, timed out, broken off, no answer
    in what came). `sent` says whether anything may have reached the provider. `kind` says what a provider's own 400 was
    about, where that is known. `retry_after_ms` is the provider's own word on when to come back.
    """

    status: int | None
    kind: FaultKind | None = None
    timed_out: bool = False
    retry_after_ms: int | None = None
    sent: bool = True


_REFUSALS: Final = frozenset({400, 403, 413, 422})
_MESSAGE_MAX: Final = 2_000  # characters of a message that are read: the sentence comes first, an echo after it

_CODES: Final[Mapping[str, FaultKind]] = {
    # OpenAI, https://platform.openai.com/docs/guides/error-codes; Azure, OpenRouter, Groq and DeepSeek use it too.
    "context_length_exceeded": "context_window",
    # Anthropic's stop reason of the same meaning, https://docs.anthropic.com/en/api/errors; z.ai answers it as a code.
    "model_context_window_exceeded": "context_window",
    # Azure OpenAI, https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter: `error.code`, and
    # below it `error.innererror.code`.
    "content_filter": "content_filter",
    "responsibleaipolicyviolation": "content_filter",
    # OpenAI, for images and for what its moderation stops.
    "content_policy_violation": "content_filter",
    # Google's Gemini, https://ai.google.dev/api/generate-content#BlockReason.
    "prohibited_content": "content_filter",
}
_OTHERWISE: Final = frozenset({"string_above_max_length"})  # OpenAI: one field is too long, not the prompt

_TOO_LONG: Final = (
    # OpenAI, Azure, DeepSeek, vLLM: "This model's maximum context length is 8192 tokens. However, you requested …";
    # OpenRouter: "This endpoint's maximum context length is …".
    r"maximum context length (?:is|of) \d",
    # OpenAI's Responses API: "Your input exceeds the context window of this model."
    r"exceeds the context window",
    # Anthropic: "prompt is too long: 213462 tokens > 200000 maximum".
    r"prompt is too long",
    # Anthropic: "input length and `max_tokens` exceed context limit: 188059 + 20000 > 200000, decrease input length …".
    r"exceed context limit",
    # Gemini: "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)."
    r"input token count\b.{0,40}\bexceeds the maximum number of tokens allowed",
    # Mistral: "Prompt contains 40046 tokens and 0 draft tokens, too large for model with 32768 maximum context length".
    r"too large for model with \d+ maximum context length",
    # vLLM: "The decoder prompt (length 5951) is longer than the maximum model length of 4096."
    r"longer than the maximum model length",
    # Groq: "Please reduce the length of the messages or completion."
    r"reduce the length of the messages",
    # xAI: "This model's maximum prompt length is 131072 but the request contains 537812 tokens."
    r"maximum prompt length is \d",
    # Together: "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193."
    r"`inputs` tokens \+ `max_new_tokens` must be",
    # llama.cpp: "the request exceeds the available context size, try increasing it".
    r"exceeds the available context size",
)
_NOT_ALLOWED: Final = (
    # OpenAI's reasoning models: "Invalid prompt: your prompt was flagged as potentially violating our usage policy."
    # Its code, `invalid_prompt`, is also that of prompts which are malformed.
    r"flagged as potentially violating (?:our|openai's) usage policy",
    # OpenAI's images: "Your request was rejected as a result of our safety system."
    r"rejected as a result of our safety system",
    # Azure: "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    r"content management policy",
    # Anthropic: "Output blocked by content filtering policy".
    r"blocked by content filtering policy",
    # DeepSeek: "Content Exists Risk".
    r"^content exists risk",
    # xAI, with status 403: "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_…".
    r"^content violates usage guidelines",
)
_SENTENCES: Final[tuple[tuple[re.Pattern[str], FaultKind], ...]] = (
    (re.compile("|".join(_TOO_LONG), re.IGNORECASE), "context_window"),
    (re.compile("|".join(_NOT_ALLOWED), re.IGNORECASE), "content_filter"),
)


def kind_of_refusal(status: int | None, body: object) -> FaultKind | None:
    """Say what a provider's refusal was about, by its status and decoded body; None for any other failure.

    Too many tokens a minute, which Groq answers with 413 and OpenAI with 429, is a limit and no refusal of this kind.
    """
    if status not in _REFUSALS:
        return None
    for error in _errors(body):
        codes = {str(code).lower() for code in _codes(error)}
        if codes & _OTHERWISE:
            return None
        for code in sorted(codes & _CODES.keys()):
            return _CODES[code]
        message = error.get("message")
        if isinstance(message, str):
            for pattern, kind in _SENTENCES:
                if pattern.search(message[:_MESSAGE_MAX]):
                    return kind
    return None


def _errors(body: object) -> Iterator[Mapping[str, Any]]:
    """Yield the error objects of a body: `{"error": {…}}`, that in a list (Gemini), a bare one (Mistral, vLLM)."""
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, dict):
        return
    error = body.get("error")
    if isinstance(error, dict):
        yield error
    elif isinstance(error, str):  # xAI: {"code": "…", "error": "the message"}
        yield {"code": body.get("code"), "message": error}
    elif "message" in body:
        yield body


def _codes(error: Mapping[str, Any]) -> Iterator[Any]:
    inner = error.get("innererror")
    for place in (error, inner if isinstance(inner, dict) else {}):
        for name in ("code", "type", "status"):
            yield place.get(name)
