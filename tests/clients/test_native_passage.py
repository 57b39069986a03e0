"""What a provider says in a wire of its own reaches the client byte for byte, plain and streamed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from clients_bench import ClientsBench

ASKED = "What is the weather in Paris, and is it warmer than 7 degrees?"
MESSAGES = [{"role": "user", "content": ASKED}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": MESSAGES,
        "max_tokens": 40,
        "n": 2,
        "logprobs": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/responses": {"input": ASKED, "max_output_tokens": 40},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 40},
    "/v1/completions": {"prompt": ASKED, "max_tokens": 40, "stream_options": {"include_usage": True}},
}
TOOLS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
    "/v1/responses": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
    "/v1/messages": [{"name": "weather", "input_schema": SCHEMA}],
}


def both(bench: ClientsBench, path: str, model: str, body: dict[str, Any]) -> tuple[httpx.Response, httpx.Response]:
    """Ask through the gateway, and then the provider itself as the gateway has."""
    headers = {"authorization": f"Bearer {bench.key()}"}
    through = bench.http.post(path, json={**body, "model": f"native/{model}"}, headers=headers)
    bench.settle()
    relayed = bench.sent()["body"]
    bench.check()
    bench.provider.reset()
    bench.exact = False  # what follows is asked behind the gateway's back, and was paid before
    direct = bench.http.post(f"{bench.provider.root}{path}", json=relayed)
    bench.provider.reset()
    return through, direct


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["sense", "thinker"])
@pytest.mark.parametrize("path", BODIES)
def test_an_answer(bench: ClientsBench, path: str, model: str, stream: bool):
    body = {**BODIES[path], "stream": stream}
    if not stream:
        body.pop("stream_options", None)
    through, direct = both(bench, path, model, body)
    assert through.status_code == direct.status_code == 200
    assert through.content == direct.content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", TOOLS)
def test_calls_of_tools(bench: ClientsBench, path: str, stream: bool):
    body = {**BODIES[path], "tools": TOOLS[path], "stream": stream}
    if not stream:
        body.pop("stream_options", None)
    through, direct = both(bench, path, "parallel", body)
    assert b"Paris" in direct.content
    assert through.content == direct.content


@pytest.mark.parametrize("path", BODIES)
def test_a_refusal_of_the_providers_is_told_in_the_wire_of_the_client(bench: ClientsBench, path: str):
    headers = {"authorization": f"Bearer {bench.key()}"}
    answer = bench.http.post(path, json={**BODIES[path], "model": "native/unreadable"}, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].count("Unsupported value") == 1
    assert (answer.json().get("type") == "error") is (path == "/v1/messages")
