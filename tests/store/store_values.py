"""Short ways to say a call, its attempt, and their ends."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart
from nemo_agents.gateway.stores.sql import SqlStore
from nemo_agents.policy.ledger import BudgetScope, RunCaps, Settlement

T0 = 1_760_000_000_000_000
HOUR_US = 3_600_000_000
_numbers = itertools.count(1)


class Clock:
    """Microseconds that move when told to."""

    def __init__(self) -> None:
        self.now_us = T0

    def __call__(self) -> int:
        return self.now_us


def role_scope(limit: int | None = None, *, id: str = "g1", period: str = "2025-10-09") -> BudgetScope:  # noqa: A002 - the field's name
    return BudgetScope(kind="role", id=id, period=period, limit_nanos=limit)


def fleet_scope(limit: int | None = None, *, id: str = "crew", period: str = "2025-10-09") -> BudgetScope:  # noqa: A002 - the field's name
    return BudgetScope(kind="fleet", id=id, period=period, limit_nanos=limit)


def run_scope(limit: int | None = None, *, run_id: str = "run-one") -> BudgetScope:
    return BudgetScope(kind="run", id=f"crew/{run_id}", period="total", limit_nanos=limit)


def a_call(request_id: str | None = None, *, run_id: str | None = None, **more: Any) -> CallStart:
    request_id = request_id or f"req-{next(_numbers)}"
    values: dict[str, Any] = {
        "started_us": T0,
        "fleet": "crew",
        "role": "writer",
        "key_alias": "crew/writer",
        "key_id": "abcdefghij",
        "grant_id": "g1",
        "caps": RunCaps(),
        "endpoint": "/v1/chat/completions",
        "model_asked": "gpt-4o-mini",
    }
    return CallStart(
        request_id=request_id, run_id=run_id or request_id, grouped=run_id is not None, **{**values, **more}
    )


def an_attempt(hold_nanos: int = 100, *scopes: BudgetScope, n: int = 1, **more: Any) -> AttemptStart:
    values: dict[str, Any] = {
        "hold_id": f"hold-{next(_numbers)}",
        "model": "gpt-4o-mini",
        "provider": "openai",
        "reason": "first" if n == 1 else "fallback",
        "started_us": T0,
        "price_version": "p1",
        "expires_us": T0 + HOUR_US,
    }
    return AttemptStart(n=n, hold_nanos=hold_nanos, scopes=scopes, **{**values, **more})


def attempt_end(attempt: AttemptStart, kind: Any = "post", amount: int = 0, **more: Any) -> AttemptEnd:
    values: dict[str, Any] = {
        "ended_us": T0 + 1000,
        "status": 200,
        "error": None,
        "usage_source": "provider",
        "usage": {"input": 3, "output": 4},
    }
    return AttemptEnd(
        hold_id=attempt.hold_id,
        n=attempt.n,
        settlement=Settlement(kind=kind, amount_nanos=amount),
        **{**values, **more},
    )


def call_end(call: CallStart, state: Any = "ok", **more: Any) -> CallEnd:
    values: dict[str, Any] = {"ended_us": T0 + 1000, "status": 200 if state == "ok" else 502}
    if state == "ok":
        values |= {"model_served": "gpt-4o-mini", "provider": "openai", "input_tokens": 3, "output_tokens": 4}
        values |= {"cached_tokens": 1, "usage_source": "provider", "finish_reason": "stop", "cost_nanos": 0}
    return CallEnd(request_id=call.request_id, state=state, **{**values, **more})


def refusal(call: CallStart, code: str = "budget_exhausted", status: int = 402, **more: Any) -> CallEnd:
    values: dict[str, Any] = {"limit": "budget", "scope": "role", "error": f"refused: {code}"}
    return call_end(call, "refused", status=status, code=code, **{**values, **more})


async def rows(store: SqlStore, sql: str) -> list[tuple[Any, ...]]:
    """What a SELECT finds, after everything queued so far."""
    await store.flush()
    return await store._readers.read(lambda db: db.execute(sql).fetchall())


async def write(store: SqlStore, sql: str) -> None:
    """Write past the store, as a stranger would."""
    await store._writer.do(lambda books: books.db.execute(sql))


def empty(database: str) -> None:
    """Take everything out of a database but its tables, and everybody too."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        admin.execute("SET session_replication_role = replica")  # the ledger's trigger refuses this too
        admin.execute(
            "TRUNCATE attempts, balances, calls, changes, contents, deliveries, deployments, documents, entries,"
            " events, fleets, grants, messages, prunings, runs, secrets, spans, steps RESTART IDENTITY"
        )
