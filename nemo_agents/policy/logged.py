"""What of a request the log may keep: everything but credentials.

A provider calls servers for a client, and the client shows it credentials for them. Where those stand: OpenAI API
reference, "Responses", tools of the type `mcp` (`authorization`, `headers`) and containers' `domain_secrets`;
Anthropic's API reference, "MCP connector" (`authorization_token`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["parts_without_credentials", "without_credentials"]

# OpenAI's remote MCP servers are tools, Anthropic's have a field of their own.
_SERVERS: Final = frozenset({"tools", "mcp_servers"})
_CREDENTIALS: Final = frozenset({"authorization", "authorization_token", "headers", "domain_secrets"})
# What stands within a tool and has credentials in it: more tools, or where the tool runs.
_NESTED: Final = frozenset({"tools", "environment", "container", "network_policy"})
_TELLING: Final = _CREDENTIALS | _NESTED


def without_credentials(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without what a client shows to the servers that a provider calls for it."""
    return {name: _without(value) if name in _SERVERS else value for name, value in params.items()}


def parts_without_credentials(parts: Iterable[Any]) -> list[Any]:
    """Return the parts of a prompt likewise: some items of the Responses wire bring tools."""
    return [
        part if not isinstance(part, dict) or _SERVERS.isdisjoint(part) else without_credentials(part) for part in parts
    ]


def _without(found: Any) -> Any:
    """Return a tool, a server, or a list of them without its credentials; what has none comes back as it is."""
    if isinstance(found, list):
        return [_without(one) for one in found]
    if not isinstance(found, dict) or _TELLING.isdisjoint(found):
        return found
    return {
        name: _without(value) if name in _NESTED else value for name, value in found.items() if name not in _CREDENTIALS
    }
