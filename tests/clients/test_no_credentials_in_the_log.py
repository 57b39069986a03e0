"""What a client shows to servers that its provider calls reaches the provider, and stays out of the request log."""

from __future__ import annotations

import json
from typing import Any

from clients_bench import ClientsBench

CANARY = "mcp-canary-0123456789"
MCP: Any = {"type": "mcp", "server_label": "a", "server_url": "https://tools.example/"}
SHOWN: Any = {**MCP, "authorization": CANARY, "headers": {"authorization": f"Bearer {CANARY}"}}


def kept(bench: ClientsBench) -> Any:
    """What the log has of the one call, when its provider has seen the credential and the log has not."""
    assert CANARY in json.dumps(bench.sent()["body"])
    row = bench.row()
    content = bench.content(row)
    assert CANARY not in json.dumps([row, content])
    return content


def test_of_a_remote_server_among_openai_s_tools(bench: ClientsBench) -> None:
    bench.openai().responses.create(model="native/sense", input="hi", max_output_tokens=40, tools=[SHOWN])
    assert kept(bench)["params"]["tools"] == [MCP]


def test_of_one_that_an_item_of_the_input_brings(bench: ClientsBench) -> None:
    said: Any = {"role": "user", "content": "hi"}
    brought: Any = {"type": "additional_tools", "role": "developer", "tools": [SHOWN]}
    bench.openai().responses.create(model="native/sense", input=[said, brought], max_output_tokens=40)
    assert kept(bench)["prompt"] == [said, {**brought, "tools": [MCP]}]


def test_of_anthropic_s_servers(bench: ClientsBench) -> None:
    server: Any = {"type": "url", "url": "https://tools.example/", "name": "a"}
    shown: Any = {**server, "authorization_token": CANARY}
    bench.anthropic().beta.messages.create(
        model="native/sense",
        max_tokens=40,
        messages=[{"role": "user", "content": "hi"}],
        mcp_servers=[shown],
        betas=["mcp-client-2025-04-04"],
    )
    assert kept(bench)["params"]["mcp_servers"] == [server]
