"""The sandbox's answers on OpenAI's wire: completions, streams of events, embeddings, errors."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from array import array
from collections.abc import Iterator
from math import sqrt
from typing import Any, Final

from nemo_agents.gateway.sandbox.replies import Choice, Reply
from nemo_agents.gateway.sandbox.request import ChatRequest, EmbeddingRequest
from nemo_agents.gateway.sandbox.tokens import count, dump

__all__ = ["completion", "embedding_head", "embedding_row", "error_body", "events"]

_PIECE: Final = 24  # characters of text or arguments in one event
_WORDS: Final = re.compile(r"\S{1,24}\s*|\s+")
_DIMENSIONS: Final = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
_ERROR_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error"}


def completion(request: ChatRequest, reply: Reply, *, created: int) -> bytes:
    """Return a whole chat completion as JSON."""
    head = _head(request, "chat.completion", created)
    choices = [_whole(request, index, choice) for index, choice in enumerate(reply.choices)]
    usage = {} if reply.usage is None else {"usage": reply.usage}
    return dump({**head, "choices": choices, **usage}).encode("utf-8", "replace")


def events(request: ChatRequest, reply: Reply, *, created: int) -> Iterator[bytes]:
    """Give a chat completion as server-sent events, one at a time."""
    head = _head(request, "chat.completion.chunk", created)
    usage_field = {"usage": None} if request.include_usage else {}

    def event(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**head, "choices": [choice], **usage_field})

    for index, choice in enumerate(reply.choices):
        for delta in _deltas(request, index, choice):
            yield event(index, delta)
        yield event(index, {}, choice.finish_reason)
    if request.include_usage and reply.usage is not None:
        yield _event({**head, "choices": [], "usage": reply.usage})
    yield b"data: [DONE]\n\n"


def embedding_head(request: EmbeddingRequest) -> dict[str, Any]:
    """Return all of an embeddings answer but its rows."""
    tokens = sum(count(item) if isinstance(item, str) else len(item) for item in request.inputs)
    return {
        "object": "list",
        "model": request.model.rpartition("/")[2],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "system_fingerprint": "sandbox",
    }


def embedding_row(request: EmbeddingRequest, index: int) -> dict[str, Any]:
    """Return one row: a unit vector in which texts that share words are nearer to each other."""
    dimensions = request.dimensions or _DIMENSIONS.get(request.model.rpartition("/")[2], 768)
    numbers = array("f", _vector(request.inputs[index], dimensions))
    value = base64.b64encode(_little_endian(numbers)).decode() if request.base64 else numbers.tolist()
    return {"object": "embedding", "index": index, "embedding": value}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """Return OpenAI's error envelope."""
    if status == 429:
        kind, code = "requests", code or "rate_limit_exceeded"
    else:
        kind = _ERROR_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return dump({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode("utf-8", "replace")


def _head(request: ChatRequest, kind: str, created: int) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request.digest[:24]}",
        "object": kind,
        "created": created,
        "model": request.short_model,
        "service_tier": "default",
        "system_fingerprint": "sandbox",
    }


def _whole(request: ChatRequest, index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": _call_id(request, index, number),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(choice.calls)
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}


def _deltas(request: ChatRequest, index: int, choice: Choice) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None if choice.text is None else "", "refusal": None}
    for piece in _pieces(choice.text or ""):
        yield {"content": piece}
    for number, call in enumerate(choice.calls):
        start = {
            "index": number,
            "id": _call_id(request, index, number),
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        yield {"tool_calls": [start]}
        for at in range(0, len(call.arguments), _PIECE):
            piece = call.arguments[at : at + _PIECE]
            yield {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}


def _call_id(request: ChatRequest, index: int, number: int) -> str:
    return "call_" + hashlib.sha256(f"{request.digest}/{index}/{number}".encode()).hexdigest()[:24]


def _pieces(text: str) -> Iterator[str]:
    piece = ""
    for match in _WORDS.finditer(text):
        if piece and len(piece) + len(match[0]) > _PIECE:
            yield piece
            piece = ""
        piece += match[0]
    if piece:
        yield piece


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + dump(value).encode("utf-8", "replace") + b"\n\n"


def _vector(item: str | tuple[int, ...], dimensions: int) -> list[float]:
    """Hash features into places with signs, over a faint noise of the whole text, and bring it to length 1."""
    words = item.lower().split() if isinstance(item, str) else [str(token) for token in item]
    whole = item.encode("utf-8", "replace") if isinstance(item, str) else repr(item).encode()
    vector = [(byte - 127.5) / 4000 for byte in hashlib.shake_256(whole).digest(dimensions)]
    for word in words:
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=16).digest()
        for at in range(0, 16, 4):
            number = int.from_bytes(digest[at : at + 4], "big")
            vector[(number >> 1) % dimensions] += 1.0 if number & 1 else -1.0
    length = sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]


def _little_endian(numbers: array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()
