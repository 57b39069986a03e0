"""Responses.

Source of the shapes: OpenAI's API reference, as the types of their own Python client have them.
"""

from __future__ import annotations

from collections.abc import Iterator

from nemo_agents.testing.replies import SIGNATURE, Reply
from nemo_agents.testing.wires.base import CREATED, Bill, Body, halves, named_event
from nemo_agents.testing.wires.chat import function_of

__all__ = ["plain_responses", "responses_events"]


def _responses_items(reply: Reply) -> list[Body]:
    items: list[Body] = []
    if reply.thought:
        summary = [{"type": "summary_text", "text": reply.thought}]
        items.append({"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": SIGNATURE})
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for call in reply.calls:
        told = function_of(call)
        items.append(
            {"type": "function_call", "id": f"fc_{call.id}", "call_id": call.id, "status": "completed", **told}
        )
    return items


def plain_responses(body: Body, replies: list[Reply], bill: Bill) -> Body:
    """Return the whole answer."""
    (reply,) = replies
    cut = reply.finish == "length"
    return {
        "id": "resp_shapes",
        "object": "response",
        "created_at": CREATED,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        "output": _responses_items(reply),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "temperature": 1.0,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": bill.input,
            "input_tokens_details": {"cached_tokens": bill.cached, "cache_write_tokens": bill.written},
            "output_tokens": bill.output,
            "output_tokens_details": {"reasoning_tokens": bill.reasoning},
            "total_tokens": bill.input + bill.output,
        },
    }


def responses_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    """Yield the answer as server-sent events."""
    whole = plain_responses(body, replies, bill)
    began = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    events: list[Body] = [{"type": f"response.{state}", "response": began} for state in ("created", "in_progress")]
    for index, item in enumerate(whole["output"]):
        events += _item_events(index, item, replies[0])
    events.append({"type": f"response.{whole['status']}", "response": whole})
    for number, event in enumerate(events):
        yield named_event({**event, "sequence_number": number})


def _item_events(index: int, item: Body, reply: Reply) -> Iterator[Body]:
    at: Body = {"output_index": index, "item_id": item["id"]}
    empty: Body = {"message": {"content": []}, "reasoning": {"summary": []}, "function_call": {"arguments": ""}}
    yield {
        "type": "response.output_item.added",
        "output_index": index,
        "item": {**item, **empty[item["type"]], "status": "in_progress"},
    }
    match item["type"]:
        case "message":
            part = item["content"][0]
            at_part: Body = {**at, "content_index": 0}
            yield {"type": "response.content_part.added", **at_part, "part": {**part, "text": ""}}
            for piece in reply.pieces:
                yield {"type": "response.output_text.delta", **at_part, "delta": piece, "logprobs": []}
            yield {"type": "response.output_text.done", **at_part, "text": part["text"], "logprobs": []}
            yield {"type": "response.content_part.done", **at_part, "part": part}
        case "reasoning":
            at_part, part = {**at, "summary_index": 0}, item["summary"][0]
            yield {"type": "response.reasoning_summary_part.added", **at_part, "part": {**part, "text": ""}}
            yield {"type": "response.reasoning_summary_text.delta", **at_part, "delta": part["text"]}
            yield {"type": "response.reasoning_summary_text.done", **at_part, "text": part["text"]}
            yield {"type": "response.reasoning_summary_part.done", **at_part, "part": part}
        case "function_call":
            for half in halves(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", **at, "delta": half}
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}
