"""Messages.

Source of the shapes: Anthropic's API reference, as the types of their own Python client have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from nemo_agents.testing.replies import SIGNATURE, Reply
from nemo_agents.testing.wires.base import Bill, Body, halves, named_event

__all__ = ["messages_events", "plain_messages"]

_FINISH: Final = {"stop": "end_turn", "length": "max_tokens", "tools": "tool_use"}


def _blocks(reply: Reply) -> list[Body]:
    blocks: list[Body] = []
    if reply.thought:
        blocks.append({"type": "thinking", "thinking": reply.thought, "signature": SIGNATURE})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    blocks += [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in reply.calls]
    return blocks


def _messages_usage(bill: Bill, output: int) -> Body:
    return {
        "input_tokens": bill.plain,
        "cache_read_input_tokens": bill.cached,
        "cache_creation_input_tokens": bill.written + bill.written_1h,
        "cache_creation": {
            "ephemeral_5m_input_tokens": bill.written,
            "ephemeral_1h_input_tokens": bill.written_1h,
        },
        "output_tokens": output,
        "service_tier": "standard",
    }


def plain_messages(body: Body, replies: list[Reply], bill: Bill) -> Body:
    """Return the whole answer."""
    (reply,) = replies
    return {
        "id": "msg_shapes",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": _blocks(reply),
        "stop_reason": _FINISH[reply.finish],
        "stop_sequence": None,
        "usage": _messages_usage(bill, bill.output),
    }


def messages_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    """Yield the answer as server-sent events."""
    (reply,) = replies
    whole = plain_messages(body, replies, bill)
    began = {**whole, "content": [], "stop_reason": None, "usage": _messages_usage(bill, 1)}
    yield named_event({"type": "message_start", "message": began})
    yield named_event({"type": "ping"})
    empty: Body = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
    for index, block in enumerate(whole["content"]):
        start = {**block, **empty[block["type"]]}
        yield named_event({"type": "content_block_start", "index": index, "content_block": start})
        for delta in _block_deltas(block, reply):
            yield named_event({"type": "content_block_delta", "index": index, "delta": delta})
        yield named_event({"type": "content_block_stop", "index": index})
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield named_event({"type": "message_delta", "delta": end, "usage": {"output_tokens": bill.output}})
    yield named_event({"type": "message_stop"})


def _block_deltas(block: Body, reply: Reply) -> Iterator[Body]:
    match block["type"]:
        case "text":
            for piece in reply.pieces:
                yield {"type": "text_delta", "text": piece}
        case "thinking":
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
            yield {"type": "signature_delta", "signature": SIGNATURE}
        case "tool_use":
            for half in halves(json.dumps(block["input"], ensure_ascii=False)):
                yield {"type": "input_json_delta", "partial_json": half}
