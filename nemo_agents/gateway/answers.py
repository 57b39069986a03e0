"""Bytes and headers of the data plane's answers; what a refusal says is told by the wire of the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import msgspec

from nemo_agents.admin import headers as h
from nemo_agents.policy.refusal import Refusal

__all__ = ["Headers", "Send", "refusal_headers", "send_json", "start_stream"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[str, str]


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


def _encode(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    # latin-1 with replacement: a label may hold any character, and a header must never split.
    return [
        (name.encode("ascii"), value.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace"))
        for name, value in headers
    ]
