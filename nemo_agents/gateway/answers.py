"""Bytes and headers of the data plane's answers; what a refusal says is told by the wire of the request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol

import msgspec

from nemo_agents.admin import headers as h
from nemo_agents.policy.refusal import Refusal

__all__ = ["LINE", "Headers", "Line", "Send", "json_head", "refusal_headers", "send_json", "start_stream"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[str, str]

LINE: Final = "nemo.line"
"""The ASGI extension under which the gateway's own HTTP server offers a `Line`; other servers have none."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")


class Line(Protocol):
    """The client's connection, beside ASGI's messages, for one request."""

    @property
    def blocked(self) -> bool:
        """Whether what is sent now would have to wait for the client to read."""

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Write a whole answer at once; False when that cannot be done now, and nothing was written.

        `head` are header lines, each with its line break. Who has gone gets nothing, and that is well.
        """


def refusal_headers(refusal: Refusal) -> Headers:
    """Return the headers that tell a client whether and when to come back; OpenAI's clients obey them."""
    headers = {h.ERROR_CODE: str(refusal.code)}
    if refusal.retry_after_ms is not None:
        headers[h.RETRY_AFTER] = str(-(-refusal.retry_after_ms // 1000))
        headers[h.RETRY_AFTER_MS] = str(refusal.retry_after_ms)
    elif refusal.scope != "provider":  # a provider's own 429 may be cured by waiting, it only does not say how long
        headers[h.SHOULD_RETRY] = "false"
    return headers


def json_head(content: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the header lines of an answer in JSON, for a `Line`."""
    lines = [f"{name}: {value}\r\n" for name, value in _clean(headers).items()]
    start = f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
    return (start + "".join(lines)).encode("latin-1", "replace")


async def send_json(send: Send, status: int, body: object, headers: Mapping[str, str]) -> None:
    """Answer with JSON; `body` may be bytes that are JSON already."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    base = {"content-type": "application/json", "content-length": str(len(content))}
    await send({"type": "http.response.start", "status": status, "headers": _encode({**base, **headers})})
    await send({"type": "http.response.body", "body": content})


async def start_stream(send: Send, headers: Mapping[str, str]) -> None:
    """Begin an event stream."""
    base = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
    await send({"type": "http.response.start", "status": 200, "headers": _encode({**base, **headers})})


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in _clean(headers).items()]


def _clean(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers whose values may be sent: a label may hold any character, and a header must never split."""
    if "".join(headers.values()).isprintable():
        return headers
    return {name: _CONTROL.sub(" ", value) for name, value in headers.items()}
