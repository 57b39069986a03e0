"""What the request log keeps of a request: everything but the credentials that a client shows to servers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from nemo_agents.policy.logged import parts_without_credentials, without_credentials

CANARY = "canary-0123"
MCP = {"type": "mcp", "server_label": "a", "server_url": "https://tools.example/"}
SHOWN = {**MCP, "authorization": CANARY, "headers": {"x-key": CANARY}}
FUNCTION = {
    "type": "function",
    "name": "fetch",
    "parameters": {"type": "object", "properties": {"headers": {"type": "object"}, "authorization": {}}},
}
SECRETS = {"type": "allowlist", "allowed_domains": ["a.example"], "domain_secrets": [{"name": "k", "value": CANARY}]}


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"tools": [FUNCTION, SHOWN]}, {"tools": [FUNCTION, MCP]}),
        (
            {"mcp_servers": [{"type": "url", "name": "a", "url": "https://x/", "authorization_token": CANARY}]},
            {"mcp_servers": [{"type": "url", "name": "a", "url": "https://x/"}]},
        ),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION, SHOWN]}]},
            {"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION, MCP]}]},
        ),
        (
            {"tools": [{"type": "shell", "environment": {"type": "container_auto", "network_policy": SECRETS}}]},
            {
                "tools": [
                    {
                        "type": "shell",
                        "environment": {
                            "type": "container_auto",
                            "network_policy": {"type": "allowlist", "allowed_domains": ["a.example"]},
                        },
                    }
                ]
            },
        ),
        (
            {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "network_policy": SECRETS}}]},
            {
                "tools": [
                    {
                        "type": "code_interpreter",
                        "container": {
                            "type": "auto",
                            "network_policy": {"type": "allowlist", "allowed_domains": ["a.example"]},
                        },
                    }
                ]
            },
        ),
    ],
    ids=["mcp", "anthropic's mcp", "namespace", "shell", "code interpreter"],
)
def test_credentials_are_left_out_and_nothing_else(params: dict[str, Any], kept: dict[str, Any]) -> None:
    asked = {"temperature": 0.5, "metadata": {"headers": "ours"}, **params}
    before = copy.deepcopy(asked)
    assert without_credentials(asked) == {"temperature": 0.5, "metadata": {"headers": "ours"}, **kept}
    assert asked == before  # a provider still gets all of it


@pytest.mark.parametrize("item", ["additional_tools", "tool_search_output"])
def test_items_of_the_input_that_bring_tools_show_none_either(item: str) -> None:
    said = {"role": "user", "content": "What are `headers`?", "headers": "mine"}
    assert parts_without_credentials([said, {"type": item, "tools": [SHOWN, FUNCTION]}, "text"]) == [
        said,
        {"type": item, "tools": [MCP, FUNCTION]},
        "text",
    ]


@pytest.mark.parametrize("odd", [None, "x", 1, [], [None, "x", 1, []], {"authorization": CANARY}])
def test_odd_tools_are_kept_as_they_are_without_credentials(odd: Any) -> None:
    kept = without_credentials({"tools": odd})["tools"]
    assert kept == ({} if isinstance(odd, dict) else odd)
    assert CANARY not in json.dumps(kept)
