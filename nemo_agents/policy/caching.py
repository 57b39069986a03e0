"""Which requests a cache of answers may serve, and when two of them are the same.

Exact match alone: two requests are the same when everything that a provider sees of them is, and both were made with
the same key as it stands now. A changed role begins anew, which is also how one empties its cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nemo_agents.policy.keys import Grant

__all__ = ["ANSWER_BYTES_MAX", "key_of", "may_read"]

ANSWER_BYTES_MAX: Final = 1 << 20
"""The largest answer that is kept."""

# Who asks and to which run it belongs; none of it changes the answer. The same names as in `policy.grouping`, and what
# providers take for their own accounts and routing.
_NOT_ASKED_FOR: Final = frozenset(
    {
        "metadata",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "litellm_metadata",
        "litellm_session_id",
        "litellm_trace_id",
        "session_id",
    }
)
_SANDBOX: Final = "nemo_sandbox"  # what it says is the answer
# Headers of a client that are passed on to a provider.
_HEADERS: Final = ("anthropic-beta", "anthropic-version")
# What the provider keeps, looks up or does by itself: its answer says more than the request, or does more than answer.
_OF_THE_PROVIDER: Final = (
    "store",
    "background",
    "previous_response_id",
    "conversation",
    "web_search_options",
    "mcp_servers",
    "container",
)
_CLIENT_TOOLS: Final = frozenset({None, "function", "custom"})
_encode = msgspec.json.Encoder(order="deterministic").encode


def key_of(
    grant: Grant,
    wire_name: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    guardrails: Sequence[str] = (),
) -> bytes | None:
    """Return what an answer is kept under: 32 bytes (SHA-256); None when it is neither looked for nor kept.

    `body` is what the guardrails left of the request, and `guardrails` are the names of those: two requests that differ
    in what was redacted get the same answer. `headers` have lower-case names. Two keys never share an answer, and
    neither do a stream and a plain answer: what is kept are the bytes that the client got.
    """
    if grant.cache_ttl_s is None or "no-store" in _directives(headers) or not _repeatable(body):
        return None
    if wire_name == "responses" and body.get("prompt") is not None:
        return None  # it is stored at the provider, who may change it, and brings tools that nobody sees here
    asked = {
        name: value
        for name, value in body.items()
        if name == _SANDBOX or (name not in _NOT_ASKED_FOR and not name.startswith("nemo_"))
    }
    passed = [headers.get(name) for name in _HEADERS]
    # A list, so that no part can be read as a piece of its neighbour.
    whole = [grant.grant_id, grant.updated_us, wire_name, list(guardrails), passed, asked]
    return hashlib.sha256(_encode(whole)).digest()


def may_read(headers: Mapping[str, str]) -> bool:
    """Say whether a kept answer will do; `cache-control: no-cache` or `max-age=0` asks for a new one (RFC 9111)."""
    return _directives(headers).isdisjoint({"no-cache", "no-store", "max-age=0"})


def _directives(headers: Mapping[str, str]) -> frozenset[str]:
    told = headers.get("cache-control")
    if told is None:
        return frozenset()
    return frozenset(part.strip().lower().replace(" ", "") for part in told.split(","))


def _repeatable(body: Mapping[str, Any]) -> bool:
    if any(body.get(name) for name in _OF_THE_PROVIDER):
        return False
    if not _are_clients(body.get("tools")):
        return False
    given = body.get("input")  # of the Responses wire: some of its items bring further tools
    if not isinstance(given, list):
        return True
    return all(not isinstance(item, Mapping) or _are_clients(item.get("tools")) for item in given)


def _are_clients(tools: object) -> bool:
    if not isinstance(tools, list):
        return True
    return all(not isinstance(tool, Mapping) or _is_clients(tool.get("type")) for tool in tools)


def _is_clients(kind: object) -> bool:
    """Say whether a tool is called by the client; others are the provider's own, such as its search of the web."""
    return kind is None or (isinstance(kind, str) and kind in _CLIENT_TOOLS)
