"""Bytes and headers of the data plane's answers: refusals, errors, and the headers that every answer carries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from nemo_agents.admin import headers as h
from nemo_agents.policy.refusal import Refusal

__all__ = ["Headers", "Send", "error_body", "refusal_headers", "send_json", "start_stream", "stream_error"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[str, str]

_TYPES = {
    401: "authentication_error",
    402: "budget_exceeded",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def error_body(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """Return the OpenAI error envelope, with what beyond OpenAI's fields helps to decide what to do next."""
    kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": kind,
        "param": refusal.param,
        "code": str(refusal.code),
    }
    if refusal.scope is not None:
        error["scope"] = refusal.scope
    if refusal.limit is not None:
        error["limit"] = refusal.limit
    if refusal.resets_at_us is not None:
        error["resets_at"] = datetime.fromtimestamp(refusal.resets_at_us / 1e6, tz=UTC).isoformat()
    if refusal.retry_after_ms is not None:
        error["retry_after_ms"] = refusal.retry_after_ms
    return {"error": error, "request_id": request_id}


def refusal_headers(refusal: Refusal) -> Headers:
    """Return the headers that tell a client whether and when to come back; OpenAI's clients obey them."""
    headers = {h.ERROR_CODE: str(refusal.code)}
    if refusal.retry_after_ms is not None:
        headers[h.RETRY_AFTER] = str(-(-refusal.retry_after_ms // 1000))
        headers[h.RETRY_AFTER_MS] = str(refusal.retry_after_ms)
    elif refusal.scope != "provider":  # a provider's own 429 may be cured by waiting, it only does not say how long
        headers[h.SHOULD_RETRY] = "false"
    return headers


async def send_json(send: Send, status: int, body: object, headers: Mapping[str, str]) -> None:
    """Answer with JSON; `body` may be bytes that are JSON already."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": _encode(
                {"content-type": "application/json", "content-length": str(len(content)), **headers}.items()
            ),
        }
    )
    await send({"type": "http.response.body", "body": content})


async def start_stream(send: Send, headers: Mapping[str, str]) -> None:
    """Begin an event stream."""
    base = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
    await send({"type": "http.response.start", "status": 200, "headers": _encode({**base, **headers}.items())})


def stream_error(refusal: Refusal, request_id: str) -> bytes:
    """Return the event that ends a broken stream, in the form that OpenAI's clients raise."""
    return b"data: " + msgspec.json.encode(error_body(refusal, request_id)) + b"\n\n"


def _encode(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    # latin-1 with replacement: a label may hold any character, and a header must never split.
    return [
        (name.encode("ascii"), value.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace"))
        for name, value in headers
    ]
