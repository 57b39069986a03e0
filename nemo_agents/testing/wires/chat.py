"""Chat Completions and Completions.

Source of the shapes: OpenAI's API reference, as the types of their own Python client have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from nemo_agents.testing.replies import Call, Reply
from nemo_agents.testing.wires.base import CREATED, Bill, Body, data_event, halves

__all__ = ["chat_events", "completions_events", "function_of", "plain_chat", "plain_completions"]

_AUDIO: Final = "UklGRiQAAABXQVZF"
_FINISH: Final = {"stop": "stop", "length": "length", "tools": "tool_calls"}


def _usage(bill: Bill) -> Body:
    return {
        "prompt_tokens": bill.input,
        "completion_tokens": bill.output,
        "total_tokens": bill.input + bill.output,
        "prompt_tokens_details": {"cached_tokens": bill.cached, "cache_write_tokens": bill.written},
        "completion_tokens_details": {"reasoning_tokens": bill.reasoning},
    }


def _chat_envelope(body: Body, kind: str) -> Body:
    fingerprint = f"fp_{body['seed']}" if "seed" in body else "fp_shapes"
    base = {"id": "chatcmpl-shapes", "object": kind, "created": CREATED, "model": body["model"]}
    return {**base, "system_fingerprint": fingerprint}


def _logprobs(body: Body, pieces: list[str]) -> Body | None:
    if not body.get("logprobs"):
        return None
    rivals = [{"token": " no", "logprob": -3.5, "bytes": None}] * (body.get("top_logprobs") or 0)
    return {"content": [{"token": piece, "logprob": -0.25, "bytes": None, "top_logprobs": rivals} for piece in pieces]}


def function_of(call: Call) -> Body:
    """Return the name and the arguments of a call, as Chat Completions and Responses have them."""
    return {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}


def _chat_call(call: Call) -> Body:
    return {"id": call.id, "type": "function", "function": function_of(call)}


def plain_chat(body: Body, replies: list[Reply], bill: Bill) -> Body:
    """Return the whole answer."""
    choices = []
    for index, reply in enumerate(replies):
        message: Body = {"role": "assistant", "content": None if reply.calls else reply.text, "refusal": None}
        if reply.calls:
            message["tool_calls"] = [_chat_call(call) for call in reply.calls]
        if reply.thought:
            message["reasoning_content"] = reply.thought
        if "audio" in (body.get("modalities") or ()):
            spoken = {"id": "audio_1", "data": _AUDIO, "expires_at": CREATED + 3600, "transcript": reply.text}
            message |= {"audio": spoken, "content": None}
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": _logprobs(body, reply.pieces),
                "finish_reason": _FINISH[reply.finish],
            }
        )
    return {**_chat_envelope(body, "chat.completion"), "choices": choices, "usage": _usage(bill)}


def chat_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    """Yield the answer as server-sent events."""
    envelope = _chat_envelope(body, "chat.completion.chunk")

    def event(index: int, delta: Body, reason: str | None = None, logprobs: Body | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return data_event({**envelope, "choices": [choice], "usage": None})

    for index, reply in enumerate(replies):
        yield event(index, {"role": "assistant", "content": None if reply.calls else ""})
        if reply.thought:
            yield event(index, {"reasoning_content": reply.thought})
        for piece in reply.pieces:
            yield event(index, {"content": piece}, logprobs=_logprobs(body, [piece]))
        for number, call in enumerate(reply.calls):
            told = _chat_call(call)
            name, arguments = told["function"]["name"], told["function"]["arguments"]
            began = {**told, "index": number, "function": {"name": name, "arguments": ""}}
            yield event(index, {"tool_calls": [began]})
            for half in halves(arguments):
                yield event(index, {"tool_calls": [{"index": number, "function": {"arguments": half}}]})
        yield event(index, {}, _FINISH[reply.finish])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield data_event({**envelope, "choices": [], "usage": _usage(bill)})
    yield b"data: [DONE]\n\n"


def plain_completions(body: Body, replies: list[Reply], bill: Bill) -> Body:
    """Return the whole answer."""
    choices = [
        {"index": index, "text": reply.text, "logprobs": None, "finish_reason": reply.finish}
        for index, reply in enumerate(replies)
    ]
    base = {"id": "cmpl-shapes", "object": "text_completion", "created": CREATED, "model": body["model"]}
    return {**base, "choices": choices, "usage": _usage(bill)}


def completions_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    """Yield the answer as server-sent events."""
    envelope = {"id": "cmpl-shapes", "object": "text_completion", "created": CREATED, "model": body["model"]}
    for index, reply in enumerate(replies):
        for piece in reply.pieces:
            choice = {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
            yield data_event({**envelope, "choices": [choice], "usage": None})
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": reply.finish}
        yield data_event({**envelope, "choices": [choice], "usage": None})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield data_event({**envelope, "choices": [], "usage": _usage(bill)})
    yield b"data: [DONE]\n\n"
