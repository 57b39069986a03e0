"""A provider that answers with the bytes it was given, in the pieces it was given, and what such answers look like."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS = "text/event-stream"
JSON = "application/json"
INPUT_TOKENS, OUTPUT_TOKENS = 11, 7


@dataclass(kw_only=True)
class Provider:
    """What it answers next, until told otherwise, and how often it was asked."""

    base_url: str = ""
    content_type: str = JSON
    pieces: Sequence[bytes] = ()
    bodies: list[Any] = field(default_factory=list)

    def says(self, *pieces: bytes, content_type: str = EVENTS) -> None:
        """Answer with these bytes; `bodies` begins anew."""
        self.pieces, self.content_type = pieces, content_type
        self.bodies.clear()


@contextmanager
def running_provider() -> Iterator[Provider]:
    """Run one on a thread."""
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            provider.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", provider.content_type)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in (*provider.pieces, b""):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    provider.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- chat completions -------------------------------------------------------------------------------------------------
CHAT_USAGE = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": 18}


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def named(value: Any) -> bytes:
    return f"event: {value['type']}\n".encode() + data(value)


def chat(message: dict[str, Any]) -> bytes:
    """Return a whole chat completion with this message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**head, "choices": [choice], "usage": CHAT_USAGE}).encode()


def chat_stream(*deltas: dict[str, Any], done: bool = True) -> list[bytes]:
    """Return the events of a chat completion whose deltas these are."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    steps = [{"role": "assistant", "content": ""}, *deltas]
    events = [data({**head, "choices": [{"index": 0, "delta": step, "finish_reason": None}]}) for step in steps]
    events.append(data({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    events.append(data({**head, "choices": [], "usage": CHAT_USAGE}))
    return [*events, b"data: [DONE]\n\n"] if done else events


def chat_call(name: str, arguments: str = '{"a": "secret-arguments"}', **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def chat_call_deltas(names: Sequence[str], arguments: Sequence[str], index: int = 0) -> list[dict[str, Any]]:
    """Return a call in pieces: first those of its name, then those of its arguments."""
    pieces = [{"function": {"name": piece, "arguments": ""}} for piece in names]
    pieces += [{"function": {"arguments": piece}} for piece in arguments]
    pieces[0] |= {"id": f"call_{index}", "type": "function"}
    return [{"tool_calls": [{"index": index, **piece}]} for piece in pieces]


# --- responses --------------------------------------------------------------------------------------------------------
RESPONSES_USAGE = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "total_tokens": 18}
TEXT_ITEM = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}


def response_item(name: str, kind: str = "function_call") -> dict[str, Any]:
    said = "input" if kind == "custom_tool_call" else "arguments"
    return {"id": "fc_1", "type": kind, "call_id": "call_1", "name": name, said: '{"a": "secret-arguments"}'}


def response(*items: dict[str, Any]) -> dict[str, Any]:
    head = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "error": None, "model": "m"}
    return {**head, "output": list(items), "usage": RESPONSES_USAGE}


def response_stream(*items: dict[str, Any]) -> list[bytes]:
    """Return the events of a response of these items."""
    begun = {**response(), "status": "in_progress", "usage": None}
    told = [{"type": "response.created", "response": begun}]
    for index, item in enumerate(items):
        where = {"output_index": index, "item_id": item.get("id", "msg_1")}
        bare = {name: value for name, value in item.items() if name not in ("arguments", "input", "content")}
        told.append({"type": "response.output_item.added", "output_index": index, "item": bare})
        if item["type"] == "message":
            text = item["content"][0]["text"]
            told.append({"type": "response.output_text.delta", **where, "content_index": 0, "delta": text})
        elif "arguments" in item:
            step = (
                "response.function_call_arguments" if item["type"] == "function_call" else "response.mcp_call_arguments"
            )
            told.append({"type": f"{step}.delta", **where, "delta": item["arguments"]})
        told.append({"type": "response.output_item.done", "output_index": index, "item": item})
    told.append({"type": "response.completed", "response": response(*items)})
    return [named({**event, "sequence_number": n}) for n, event in enumerate(told)]


# --- messages ---------------------------------------------------------------------------------------------------------
MESSAGES_USAGE = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
TEXT_BLOCK = {"type": "text", "text": "Let me see."}


def block(name: str, kind: str = "tool_use") -> dict[str, Any]:
    return {"type": kind, "id": "toolu_1", "name": name, "input": {"a": "secret-arguments"}}


def message(*blocks: dict[str, Any]) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    return {**head, "content": list(blocks), "stop_reason": "end_turn", "stop_sequence": None, "usage": MESSAGES_USAGE}


def message_stream(*blocks: dict[str, Any]) -> list[bytes]:
    """Return the events of a message of these blocks."""
    begun = {**message(), "stop_reason": None, "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1}}
    told: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    for index, each in enumerate(blocks):
        text = each["type"] == "text"
        start = {**each, "text": ""} if text else {**each, "input": {}}
        piece = {"type": "text_delta", "text": each["text"]} if text else {}
        piece = piece or {"type": "input_json_delta", "partial_json": json.dumps(each["input"])}
        told.append({"type": "content_block_start", "index": index, "content_block": start})
        told.append({"type": "content_block_delta", "index": index, "delta": piece})
        told.append({"type": "content_block_stop", "index": index})
    told.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": MESSAGES_USAGE})
    told.append({"type": "message_stop"})
    return [named(event) for event in told]
