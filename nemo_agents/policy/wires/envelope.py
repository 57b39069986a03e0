"""How a refusal is told to clients of OpenAI's wires, and what beyond OpenAI's fields every wire tells."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from nemo_agents.policy.refusal import Refusal

__all__ = ["openai_error", "openai_stream_error", "refusal_facts"]

_TYPES: Final = {
    401: "authentication_error",
    402: "budget_exceeded",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def refusal_facts(refusal: Refusal) -> dict[str, Any]:
    """Return what helps to decide what to do next: `scope`, `limit`, `resets_at`, `retry_after_ms`, `attempts`."""
    facts: dict[str, Any] = {}
    if refusal.scope is not None:
        facts["scope"] = refusal.scope
    if refusal.limit is not None:
        facts["limit"] = refusal.limit
    if refusal.resets_at_us is not None:
        facts["resets_at"] = datetime.fromtimestamp(refusal.resets_at_us / 1e6, tz=UTC).isoformat()
    if refusal.retry_after_ms is not None:
        facts["retry_after_ms"] = refusal.retry_after_ms
    if refusal.attempts:
        facts["attempts"] = [asdict(tried) for tried in refusal.attempts]
    return facts


def openai_error(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """Return the OpenAI error envelope: `{"error": {"message", "type", "param", "code", …}, "request_id"}`."""
    kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": str(refusal.code)}
    return {"error": error | refusal_facts(refusal), "request_id": request_id}


def openai_stream_error(refusal: Refusal, request_id: str) -> bytes:
    """Return the event that ends a broken stream of chat or text completions, as OpenAI's clients raise it."""
    return b"data: " + msgspec.json.encode(openai_error(refusal, request_id)) + b"\n\n"
