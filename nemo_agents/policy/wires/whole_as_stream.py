"""A whole answer told as a stream: for a provider that did not stream, when the client has been told that one comes.

Sources: OpenAI API reference, "Chat Completions, streaming", "Responses, streaming events"; Anthropic's API reference,
"Streaming messages". Each piece of the answer comes in one event, which clients put together as they do many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from nemo_agents.policy.wires.base import Translation, WireName
from nemo_agents.policy.wires.chat import wants_usage
from nemo_agents.policy.wires.responses_events import TERMINAL, sse

__all__ = ["as_stream"]

_DONE: Final = b"data: [DONE]\n\n"


def as_stream(
    answer: Mapping[str, Any], body: Mapping[str, Any], *, wire: WireName, translation: Translation | None
) -> bytes:
    """Return the events that say what an answer says, to their end.

    `body` is the client's request and `wire` the client's; with a `translation` the answer is a chat completion.
    """
    if translation is not None:
        told = translation.stream(body)
        events = b"".join([told.feed(chunk) for chunk in _chat_chunks(answer, usage=True)])
        return events + told.end()
    if wire == "messages":
        return b"".join([sse(event) for event in _message_events(answer)])
    if wire == "responses":
        return b"".join([sse(event) for event in _response_events(answer)])
    return b"".join([_data(chunk) for chunk in _chat_chunks(answer, usage=wants_usage(body))]) + _DONE


def _data(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


# --- Chat Completions, and the legacy completions, whose chunks look like their answers ------------------------------
def _chat_chunks(answer: Mapping[str, Any], *, usage: bool) -> Iterator[dict[str, Any]]:
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    if answer.get("object") == "chat.completion":
        head["object"] = "chat.completion.chunk"
    choices = answer.get("choices")
    yield {**head, "choices": [_delta(each) for each in choices] if isinstance(choices, list) else []}
    if usage and answer.get("usage") is not None:
        yield {**head, "choices": [], "usage": answer["usage"]}


def _delta(choice: Any) -> Any:
    """Return a choice as a piece of a stream: its message is the delta, and its calls of tools are numbered."""
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        return choice
    delta, calls = dict(choice["message"]), choice["message"].get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [{"index": n, **call} if isinstance(call, dict) else call for n, call in enumerate(calls)]
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": delta}


# --- Responses --------------------------------------------------------------------------------------------------------
def _response_events(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield its beginning and its end, which holds all of it."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "sequence_number": 0, "response": begun}
    last = f"response.{answer.get('status')}"
    yield {"type": last if last in TERMINAL else "response.completed", "sequence_number": 1, "response": answer}


# --- Messages ---------------------------------------------------------------------------------------------------------
def _message_events(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    content = answer.get("content")
    yield {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None, "stop_sequence": None}}
    for index, block in enumerate(content if isinstance(content, list) else ()):
        start, deltas = _in_pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": answer.get("stop_reason"), "stop_sequence": answer.get("stop_sequence")}
    yield {"type": "message_delta", "delta": delta, "usage": answer.get("usage")}
    yield {"type": "message_stop"}


def _in_pieces(block: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Return how a block starts, and what follows; of a kind that has no pieces, all of it is in its start."""
    if isinstance(block, dict):
        match block:
            case {"type": "text", "text": str(text)}:
                return {**block, "text": ""}, [{"type": "text_delta", "text": text}]
            case {"type": "thinking", "thinking": str(text)}:
                thought, signature = {"type": "thinking_delta", "thinking": text}, block.get("signature")
                signed = [{"type": "signature_delta", "signature": signature}] if isinstance(signature, str) else []
                return {**block, "thinking": "", "signature": ""}, [thought, *signed]
            case {"type": str(kind), "input": dict(given)} if kind.endswith("tool_use"):
                told = msgspec.json.encode(given).decode()
                return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": told}]
    return block, []
