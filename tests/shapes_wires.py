"""The wires of the shapes provider: requests read into `Asked`, replies written plain and as events.

Source of every shape: the API references of OpenAI (Chat Completions, Responses, Completions) and of Anthropic
(Messages), as the types of their own Python clients have them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from faulty_provider import CREATED, dumps
from shapes_replies import SIGNATURE, Asked, Call, Reply, Tool, quoted

Body = dict[str, Any]
_AUDIO = "UklGRiQAAABXQVZF"
_FINISH = {
    "chat": {"stop": "stop", "length": "length", "tools": "tool_calls"},
    "messages": {"stop": "end_turn", "length": "max_tokens", "tools": "tool_use"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What one request cost, in tokens; the parts of the input are disjoint."""

    plain: int
    cached: int
    written: int
    written_1h: int
    output: int
    reasoning: int

    @property
    def input(self) -> int:
        return self.plain + self.cached + self.written + self.written_1h


def words_of(value: Any) -> int:
    """Count the words of every text in a value: how long it is in this provider's tokens."""
    if isinstance(value, str):
        return len(value.split())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(words_of, parts))


def bill_of(asked: Asked, conversation: Any, replies: list[Reply]) -> Bill:
    return Bill(
        plain=words_of(conversation),
        cached=asked.cached,
        written=asked.written,
        written_1h=asked.written_1h,
        output=sum(reply.tokens for reply in replies),
        reasoning=sum(reply.reasoning_tokens for reply in replies),
    )


# --- reading ---------------------------------------------------------------------------------------------------------
def text_of(content: Any) -> str:
    """Return the text of a content, whichever wire's parts it is made of."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return " ".join(text_of(part.get("text") or part.get("content")) for part in parts if isinstance(part, dict))


def _last_user_text(messages: list[Body]) -> str:
    texts = [text_of(each.get("content")) for each in messages if each.get("role") == "user"]
    return next((text for text in reversed(texts) if text), "")


def _results(messages: list[Body], is_result: Callable[[Body], bool], field: str = "content") -> tuple[str, ...]:
    """Return the results of tools that stand at the very end."""
    found: list[str] = []
    for message in reversed(messages):
        if not is_result(message):
            break
        found.append(text_of(message.get(field)))
    return tuple(reversed(found))


def _choice(choice: Any) -> str:
    if isinstance(choice, dict):
        inner = choice.get("function") or choice.get("custom") or choice
        return str(inner.get("name") or choice.get("type") or "auto")
    return "any" if choice == "required" else str(choice or "auto")


def _schema(form: Body, text: str) -> Body | None:
    """Return what an answer must fit; for JSON of any form, that is an object with what the text names in quotes."""
    if form.get("type") == "json_object":
        return {"type": "object", "properties": {name: {"type": "string"} for name in quoted(text)}}
    schema: Body | None = form.get("schema")
    return schema


def _cache_of(behaviour: str) -> dict[str, Any]:
    return {"cached": 4, "written": 3} if behaviour == "thinker" else {}


def read_chat(body: Body, behaviour: str) -> tuple[Asked, Any]:
    messages = body["messages"]
    form = body.get("response_format") or {}
    stops, text = body.get("stop") or [], _last_user_text(messages)
    asked = Asked(
        behaviour=behaviour,
        text=text,
        tools=tuple(
            Tool(name=tool["function"]["name"], schema=tool["function"].get("parameters") or {"type": "object"})
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        ),
        choice=_choice(body.get("tool_choice")),
        schema=_schema(form.get("json_schema") or form, text),
        results=_results(messages, lambda each: each.get("role") == "tool"),
        cap=body.get("max_completion_tokens") or body.get("max_tokens"),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        answers=body.get("n") or 1,
        **_cache_of(behaviour),
    )
    return asked, messages


def read_responses(body: Body, behaviour: str) -> tuple[Asked, Any]:
    given = body.get("input") or ""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    form, text = (body.get("text") or {}).get("format") or {}, _last_user_text(items)
    asked = Asked(
        behaviour=behaviour,
        text=text,
        tools=tuple(
            Tool(name=tool["name"], schema=tool.get("parameters") or {"type": "object"})
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        ),
        choice=_choice(body.get("tool_choice")),
        schema=_schema(form, text),
        results=_results(items, lambda each: each.get("type") == "function_call_output", "output"),
        cap=body.get("max_output_tokens"),
        **_cache_of(behaviour),
    )
    return asked, [body.get("instructions"), items]


def read_messages(body: Body, behaviour: str) -> tuple[Asked, Any]:
    messages = body["messages"]
    last = messages[-1].get("content")
    blocks = last if isinstance(last, list) else []
    form = (body.get("output_config") or {}).get("format") or {}
    cache = {"written_1h": 2, **_cache_of(behaviour)} if behaviour == "thinker" else {}
    asked = Asked(
        behaviour=behaviour,
        text=_last_user_text(messages),
        tools=tuple(
            Tool(name=tool["name"], schema=tool["input_schema"]) for tool in body.get("tools") or () if "name" in tool
        ),
        choice=_choice(body.get("tool_choice")),
        schema=form.get("schema"),
        results=tuple(text_of(block.get("content")) for block in blocks if block.get("type") == "tool_result"),
        cap=body["max_tokens"],
        stops=tuple(body.get("stop_sequences") or ()),
        **cache,
    )
    return asked, [body.get("system"), messages]


def read_completions(body: Body, behaviour: str) -> tuple[Asked, Any]:
    prompt, stops = body.get("prompt"), body.get("stop") or []
    asked = Asked(
        behaviour=behaviour,
        text=prompt if isinstance(prompt, str) else "",
        cap=body.get("max_tokens"),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        answers=body.get("n") or 1,
    )
    return asked, prompt


# --- chat completions and completions --------------------------------------------------------------------------------
def openai_usage(bill: Bill) -> Body:
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


def _chat_call(call: Call) -> Body:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
    }


def plain_chat(body: Body, replies: list[Reply], bill: Bill) -> Body:
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
                "finish_reason": _FINISH["chat"][reply.finish],
            }
        )
    return {**_chat_envelope(body, "chat.completion"), "choices": choices, "usage": openai_usage(bill)}


def chat_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    envelope = _chat_envelope(body, "chat.completion.chunk")

    def event(index: int, delta: Body, reason: str | None = None, logprobs: Body | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _data({**envelope, "choices": [choice], "usage": None})

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
            for half in _halves(arguments):
                yield event(index, {"tool_calls": [{"index": number, "function": {"arguments": half}}]})
        yield event(index, {}, _FINISH["chat"][reply.finish])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _data({**envelope, "choices": [], "usage": openai_usage(bill)})
    yield b"data: [DONE]\n\n"


def plain_completions(body: Body, replies: list[Reply], bill: Bill) -> Body:
    choices = [
        {"index": index, "text": reply.text, "logprobs": None, "finish_reason": reply.finish}
        for index, reply in enumerate(replies)
    ]
    base = {"id": "cmpl-shapes", "object": "text_completion", "created": CREATED, "model": body["model"]}
    return {**base, "choices": choices, "usage": openai_usage(bill)}


def completions_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    envelope = {"id": "cmpl-shapes", "object": "text_completion", "created": CREATED, "model": body["model"]}
    for index, reply in enumerate(replies):
        for piece in reply.pieces:
            choice = {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
            yield _data({**envelope, "choices": [choice], "usage": None})
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": reply.finish}
        yield _data({**envelope, "choices": [choice], "usage": None})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _data({**envelope, "choices": [], "usage": openai_usage(bill)})
    yield b"data: [DONE]\n\n"


# --- responses -------------------------------------------------------------------------------------------------------
def _responses_items(reply: Reply) -> list[Body]:
    items: list[Body] = []
    if reply.thought:
        summary = [{"type": "summary_text", "text": reply.thought}]
        items.append({"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": SIGNATURE})
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for call in reply.calls:
        told = _chat_call(call)["function"]
        items.append(
            {"type": "function_call", "id": f"fc_{call.id}", "call_id": call.id, "status": "completed", **told}
        )
    return items


def plain_responses(body: Body, replies: list[Reply], bill: Bill) -> Body:
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
    whole = plain_responses(body, replies, bill)
    began = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    events: list[Body] = [{"type": f"response.{state}", "response": began} for state in ("created", "in_progress")]
    for index, item in enumerate(whole["output"]):
        events += _item_events(index, item, replies[0])
    events.append({"type": f"response.{whole['status']}", "response": whole})
    for number, event in enumerate(events):
        yield _named({**event, "sequence_number": number})


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
            for half in _halves(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", **at, "delta": half}
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


# --- messages --------------------------------------------------------------------------------------------------------
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
    (reply,) = replies
    return {
        "id": "msg_shapes",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": _blocks(reply),
        "stop_reason": _FINISH["messages"][reply.finish],
        "stop_sequence": None,
        "usage": _messages_usage(bill, bill.output),
    }


def messages_events(body: Body, replies: list[Reply], bill: Bill) -> Iterator[bytes]:
    (reply,) = replies
    whole = plain_messages(body, replies, bill)
    began = {**whole, "content": [], "stop_reason": None, "usage": _messages_usage(bill, 1)}
    yield _named({"type": "message_start", "message": began})
    yield _named({"type": "ping"})
    empty: Body = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
    for index, block in enumerate(whole["content"]):
        start = {**block, **empty[block["type"]]}
        yield _named({"type": "content_block_start", "index": index, "content_block": start})
        for delta in _block_deltas(block, reply):
            yield _named({"type": "content_block_delta", "index": index, "delta": delta})
        yield _named({"type": "content_block_stop", "index": index})
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _named({"type": "message_delta", "delta": end, "usage": {"output_tokens": bill.output}})
    yield _named({"type": "message_stop"})


def _block_deltas(block: Body, reply: Reply) -> Iterator[Body]:
    match block["type"]:
        case "text":
            for piece in reply.pieces:
                yield {"type": "text_delta", "text": piece}
        case "thinking":
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
            yield {"type": "signature_delta", "signature": SIGNATURE}
        case "tool_use":
            for half in _halves(json.dumps(block["input"], ensure_ascii=False)):
                yield {"type": "input_json_delta", "partial_json": half}


# --- errors, and the table -------------------------------------------------------------------------------------------
def openai_error(status: int, message: str) -> Body:
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def anthropic_error(status: int, message: str) -> Body:
    kinds = {429: "rate_limit_error", 529: "overloaded_error", 401: "authentication_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_shapes"}


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _data(value: Body) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def _named(value: Body) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + dumps(value) + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How one wire is read and written."""

    read: Callable[[Body, str], tuple[Asked, Any]]
    plain: Callable[[Body, list[Reply], Bill], Body]
    events: Callable[[Body, list[Reply], Bill], Iterator[bytes]]
    error: Callable[[int, str], Body] = openai_error
    stream_error: Callable[[Body], bytes] = _data


SHAPES: dict[str, Shape] = {
    "/v1/chat/completions": Shape(read=read_chat, plain=plain_chat, events=chat_events),
    "/v1/completions": Shape(read=read_completions, plain=plain_completions, events=completions_events),
    "/v1/responses": Shape(
        read=read_responses,
        plain=plain_responses,
        events=responses_events,
        stream_error=lambda body: _named({"type": "error", "sequence_number": 99, **body}),  # nested, as it comes
    ),
    "/v1/messages": Shape(
        read=read_messages,
        plain=plain_messages,
        events=messages_events,
        error=anthropic_error,
        stream_error=_named,
    ),
}
