"""Which stage of a request a stack of functions belongs to: the innermost function that says so decides.

The table names the gateway's rooms, and single functions where a room has several stages. What is not named belongs to
whoever called it. `tests/tooling/test_benchmark_stages.py` finds names that no longer exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

READ: Final = "read and parse"
KEY: Final = "key"
ADMIT: Final = "model, RPM, TPM"
GUARD: Final = "guardrails"
ROUTE: Final = "route"
QUOTE: Final = "quote"
HOLD: Final = "hold, on the loop"
WRITE_UP: Final = "provider: write"
READ_UP: Final = "provider: read"
SETTLE: Final = "settle and log, on the loop"
ANSWER: Final = "answer"
ELSEWHERE: Final = "event loop and the rest"
STAGES: Final = (READ, KEY, ADMIT, GUARD, ROUTE, QUOTE, HOLD, WRITE_UP, READ_UP, SETTLE, ANSWER, ELSEWHERE)

MODULES: Final = {
    "uvicorn.protocols": READ,
    "nemo_agents.gateway.onewrite": ANSWER,
    "nemo_agents.gateway.answers": ANSWER,
    "nemo_agents.gateway.streaming": ANSWER,
    "nemo_agents.gateway.keyring": KEY,
    "nemo_agents.gateway.limiter": ADMIT,
    "nemo_agents.gateway.route": ROUTE,
    "nemo_agents.gateway.ways": ROUTE,
    "nemo_agents.gateway.quote": QUOTE,
    "nemo_agents.gateway.prices": QUOTE,
    "nemo_agents.gateway.stores.writer": HOLD,
    "nemo_agents.gateway.stores.hold": HOLD,
    "nemo_agents.gateway.upstream": WRITE_UP,
    "nemo_agents.policy.keys": KEY,
    "nemo_agents.policy.rates": ADMIT,
    "nemo_agents.policy.grouping": ADMIT,
    "nemo_agents.policy.routing": ROUTE,
    "nemo_agents.policy.failover": ROUTE,
    "nemo_agents.policy.loops": ADMIT,
    "nemo_agents.policy.guardrails": GUARD,
    "nemo_agents.policy.requestsize": QUOTE,
    "nemo_agents.policy.settlement": SETTLE,
    "nemo_agents.policy.usage": SETTLE,
    "nemo_agents.policy.sse": ANSWER,
    "nemo_agents.policy.stream": ANSWER,
}
"""Stages of whole rooms: a module and all below it."""

FUNCTIONS: Final = {
    ("uvicorn.protocols", "send"): ANSWER,
    ("uvicorn.protocols", "on_response_complete"): ANSWER,
    ("nemo_agents.gateway", "decode_headers"): READ,
    ("nemo_agents.gateway", "_read_body"): READ,
    ("nemo_agents.gateway", "_decode"): READ,
    ("nemo_agents.gateway", "_authenticate"): KEY,
    ("nemo_agents.gateway", "_check_again"): KEY,
    ("nemo_agents.gateway", "_check_still_good"): KEY,
    ("nemo_agents.gateway", "_admit"): ADMIT,
    ("nemo_agents.gateway", "_guard"): GUARD,
    ("nemo_agents.gateway", "ask_of"): QUOTE,
    ("nemo_agents.gateway.attempt", "prepare"): QUOTE,
    ("nemo_agents.gateway", "_hold"): HOLD,
    ("nemo_agents.gateway", "_try_hold"): HOLD,
    ("nemo_agents.gateway", "call_start"): HOLD,
    ("nemo_agents.gateway.stores", "open_call"): HOLD,
    ("nemo_agents.gateway.stores", "close_call"): SETTLE,
    ("nemo_agents.gateway.stores.writer", "keep"): SETTLE,
    ("nemo_agents.gateway.attempt", "upstream_body"): WRITE_UP,
    ("nemo_agents.gateway", "_send"): WRITE_UP,
    ("nemo_agents.gateway.upstream", "read_all"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "data_received"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "on_header"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "on_headers_complete"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "on_body"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "on_message_complete"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "_finish"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "received"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "received_head"): READ_UP,
    ("nemo_agents.gateway.upstream.connection", "__anext__"): READ_UP,
    ("nemo_agents.gateway", "_relay_plain"): READ_UP,
    ("nemo_agents.gateway.attempt", "settled"): SETTLE,
    ("nemo_agents.gateway", "_close"): SETTLE,
    ("nemo_agents.gateway", "call_end"): SETTLE,
    ("nemo_agents.gateway", "common_headers"): ANSWER,
    ("nemo_agents.gateway", "answer"): ANSWER,
    ("nemo_agents.gateway", "deliver"): ANSWER,
}
"""Stages of functions, in a module or below it; they go before the stage of the room."""


def stage_of_function(module: str, function: str) -> str | None:
    """Return the stage that one function is known for, or None."""
    above = [module]
    while "." in above[-1]:
        above.append(above[-1].rpartition(".")[0])
    for name in above:
        if (stage := FUNCTIONS.get((name, function))) is not None:
            return stage
    return next((MODULES[name] for name in above if name in MODULES), None)


def stage_of(stack: Iterable[tuple[str, str]]) -> str:
    """Return the stage of a stack of (module, function), the innermost first."""
    for module, function in stack:
        if (stage := stage_of_function(module, function)) is not None:
            return stage
    return ELSEWHERE
