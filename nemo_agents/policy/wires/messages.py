"""Messages: Anthropic's `POST /v1/messages`.

Source of fields, events and error types: Anthropic's API reference, as its Python client (`anthropic.types`) has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nemo_agents.policy.content import is_client_tool
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.requestsize import OUTPUT_TOKENS_MAX
from nemo_agents.policy.usage import Usage, usage_from_anthropic
from nemo_agents.policy.wires.base import PreparedCap, Tally, Wire, WireName
from nemo_agents.policy.wires.checks import bad, check_list, check_messages, check_stream, foreign_tools, function_name
from nemo_agents.policy.wires.envelope import refusal_facts
from nemo_agents.policy.wires.messages_tally import MessagesTally

__all__ = ["MESSAGES"]

_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STANDARD_TIERS: Final = frozenset({"default", "standard"})
_FOREIGN_CAPS: Final = ("max_completion_tokens", "max_output_tokens")


class _Messages:
    """See `Wire`."""

    name: WireName = "messages"
    path = "/v1/messages"
    upstream_path = "/messages"
    generates = True

    def check(self, body: Mapping[str, Any]) -> Refusal | None:
        refusal = check_messages(body)
        if refusal is not None:
            return refusal
        cap = body.get("max_tokens")
        if isinstance(cap, bool) or not isinstance(cap, int) or not 1 <= cap <= OUTPUT_TOKENS_MAX:
            return bad(
                f"`max_tokens` must be a whole number from 1 to {OUTPUT_TOKENS_MAX}: the Messages API has no default "
                "for the length of an answer.",
                "max_tokens",
            )
        return _check_system(body.get("system")) or check_stream(body) or check_list(body, "tools")

    def prompt(self, body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        system = body.get("system")
        first = [{"role": "system", "content": system}] if system else []
        return ("system", "messages"), [*first, *body["messages"]]

    def tools(self, body: Mapping[str, Any]) -> list[str | None]:
        # What the client runs has a name of its own. All other types run at Anthropic (web search and fetch, code
        # execution, tool search, MCP) or are sets of several tools, and no name stands for what they can do.
        names = [
            function_name(tool) if isinstance(tool, dict) and is_client_tool(tool.get("type")) else None
            for tool in body.get("tools") or ()
        ]
        return names + foreign_tools(body, "functions")

    def prepare(
        self, body: Mapping[str, Any], *, model: str, cap: PreparedCap, tier: str | None, stream: bool
    ) -> dict[str, Any]:
        del stream  # usage comes unasked
        ready = dict(body)
        ready["model"] = model
        ready["messages"] = _without_unsigned_thoughts(body["messages"])
        for name in _FOREIGN_CAPS:
            ready.pop(name, None)
        ready["max_tokens"] = cap.tokens
        if tier is not None:
            ready["service_tier"] = "standard_only" if tier in _STANDARD_TIERS else tier
        return ready

    def is_error(self, answer: Mapping[str, Any]) -> bool:
        return answer.get("type") == "error" or answer.get("error") is not None

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_from_anthropic(answer.get("usage"))

    def answer_of(self, answer: Mapping[str, Any]) -> tuple[object, str | None]:
        content, reason = answer.get("content"), answer.get("stop_reason")
        told = {"role": "assistant", "content": content} if isinstance(content, list) else None
        return told, reason if isinstance(reason, str) else None

    def tally(self, body: Mapping[str, Any], *, answers: int) -> Tally:
        del body, answers  # one answer, and nothing in its stream is hidden
        return MessagesTally()

    def error_body(self, refusal: Refusal, request_id: str) -> dict[str, Any]:
        kind = _ERROR_TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
        error = {"type": kind, "message": refusal.message, "param": refusal.param, "code": str(refusal.code)}
        return {"type": "error", "error": error | refusal_facts(refusal), "request_id": request_id}

    def stream_error(self, refusal: Refusal, request_id: str) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode(self.error_body(refusal, request_id)) + b"\n\n"


def _check_system(system: object) -> Refusal | None:
    if system is None or isinstance(system, str):
        return None
    if isinstance(system, list) and all(isinstance(block, dict) for block in system):
        return None
    return bad("`system` must be a text or a list of text blocks.", "system")


def _without_unsigned_thoughts(messages: list[Any]) -> list[Any]:
    """Leave out thoughts that bear no signature: they were written by another wire's model, and Anthropic refuses them.

    A conversation gets such when an earlier turn of it was answered by a translation.
    """
    return [_signed(message) if _thinks_unsigned(message) else message for message in messages]


def _thinks_unsigned(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(_is_unsigned(block) for block in content)


def _signed(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [block for block in message["content"] if not _is_unsigned(block)]}


def _is_unsigned(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and block.get("signature") == ""


MESSAGES: Final[Wire] = _Messages()
"""The wire of Claude's own API."""
