"""What of a request's parameters the log may keep: everything but credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["without_credentials"]

_SERVERS: Final = (
    "tools",
    "mcp_servers",
)  # OpenAI's remote MCP servers are tools, Anthropic's have a field of their own
_CREDENTIALS: Final = frozenset({"authorization", "authorization_token", "headers"})


def without_credentials(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without what a client shows to the servers that a provider calls for it."""
    return {name: _each(value) if name in _SERVERS else value for name, value in params.items()}


def _each(servers: Any) -> Any:
    return [_without(one) for one in servers] if isinstance(servers, list) else servers


def _without(server: Any) -> Any:
    if not isinstance(server, dict) or _CREDENTIALS.isdisjoint(server):
        return server
    return {name: value for name, value in server.items() if name not in _CREDENTIALS}
