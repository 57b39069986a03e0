"""The tables of the gateway's store, as SQLAlchemy metadata that migrations are compared with.

Only migrations import this module: the data plane and the readers speak SQL to the driver, so that a start
needs no SQLAlchemy. Money is integer nanos, time integer microseconds since the epoch (UTC), booleans are 0
and 1, lists and objects are JSON text. SQLite tables are STRICT: a float never becomes money by accident.

`runs.fleet` is empty for calls of keys without a fleet. `calls`, `attempts`, `steps`, `spans` and `contents` are
clustered by run, so that opening a run is one range read however interleaved the writes were.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = ["metadata"]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_INT = BigInteger().with_variant(Integer, "sqlite")
_STRICT: dict[str, Any] = {"sqlite_strict": True}
_CLUSTERED: dict[str, Any] = {"sqlite_strict": True, "sqlite_with_rowid": False}


def _int(name: str, *, null: bool = False, key: bool = False) -> Column[int]:
    return Column(name, _INT, nullable=null, primary_key=key)


def _sum(name: str) -> Column[int]:
    return Column(name, _INT, nullable=False, server_default=text("0"))


def _text(name: str, *, null: bool = False, key: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null, primary_key=key)


def _list(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=text("'[]'"))


def _blob(name: str, *, null: bool = False, key: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=null, primary_key=key)


balances = Table(
    "balances",
    metadata,
    _int("id", key=True),
    _text("kind"),
    _text("scope_id"),
    _text("period"),
    _sum("posted_nanos"),
    _sum("held_nanos"),
    UniqueConstraint("kind", "scope_id", "period"),
    CheckConstraint("posted_nanos >= 0", name="posted"),
    CheckConstraint("held_nanos >= 0", name="held"),
    **_STRICT,
)

# Append-only (triggers refuse UPDATE and DELETE). `slot` is 0 for the hold, 1 for its one resolution, 2 for
# the one correction of an expired hold: the primary key is what makes a hold resolve at most once.
entries = Table(
    "entries",
    metadata,
    _text("hold_id", key=True),
    _int("slot", key=True),
    _text("kind"),
    _text("request_id"),
    _int("attempt"),
    _int("amount_nanos"),
    _text("balances"),
    _text("price_version", null=True),
    _text("usage", null=True),
    _text("usage_source", null=True),
    _int("expires_us", null=True),
    _int("at_us"),
    CheckConstraint("kind = 'correct' OR amount_nanos >= 0", name="amount"),
    CheckConstraint(
        "slot = CASE kind WHEN 'hold' THEN 0 WHEN 'post' THEN 1 WHEN 'void' THEN 1 WHEN 'expire' THEN 1"
        " WHEN 'correct' THEN 2 ELSE -1 END",
        name="slot",
    ),
    **_CLUSTERED,
)

runs = Table(
    "runs",
    metadata,
    _int("run", key=True),
    _text("run_id"),
    _text("fleet"),
    _int("grouped"),
    _text("name"),
    _text("state"),
    _int("started_us"),
    _int("last_us"),
    _text("reported_state", null=True),
    _int("ended_us", null=True),
    _text("error", null=True),
    _text("stopped_by", null=True),
    _sum("stop_reported"),
    _int("stopped_us", null=True),
    _int("budget_nanos", null=True),
    _int("max_calls", null=True),
    _sum("admitted"),
    _sum("last_seq"),
    _sum("open_calls"),
    _text("outcome", null=True),
    _sum("outcome_seq"),
    _sum("calls"),
    _sum("errors"),
    _sum("input_tokens"),
    _sum("output_tokens"),
    _sum("cached_tokens"),
    _sum("cost_nanos"),
    _text("roles"),
    _text("models"),
    _text("trace_id", null=True),
    _sum("traced"),
    UniqueConstraint("run_id", "fleet"),
    Index("ix_runs_started", "started_us"),
    Index("ix_runs_fleet", "fleet", "started_us"),
    Index("ix_runs_state", "state", "started_us"),
    Index(
        "ix_runs_grouped",
        "started_us",
        sqlite_where=text("grouped = 1"),
        postgresql_where=text("grouped = 1"),
    ),
    Index(
        "ix_runs_trace",
        "trace_id",
        "fleet",
        sqlite_where=text("trace_id IS NOT NULL"),
        postgresql_where=text("trace_id IS NOT NULL"),
    ),
    **_STRICT,
)

steps = Table(
    "steps",
    metadata,
    _int("run", key=True),
    _int("seq", key=True),
    _text("step"),
    _text("parent", null=True),
    _text("role", null=True),
    _text("state"),
    _text("reported_state", null=True),
    _int("started_us"),
    _int("last_us"),
    _int("ended_us", null=True),
    _text("error", null=True),
    _sum("open_calls"),
    _text("outcome", null=True),
    _sum("outcome_seq"),
    _sum("calls"),
    _sum("errors"),
    _sum("input_tokens"),
    _sum("output_tokens"),
    _sum("cached_tokens"),
    _sum("cost_nanos"),
    **_CLUSTERED,
)

calls = Table(
    "calls",
    metadata,
    _int("run", key=True),
    _int("seq", key=True),
    _text("request_id"),
    _int("step", null=True),
    _text("role", null=True),
    _text("key_alias", null=True),
    _text("key_id", null=True),
    _text("grant_id", null=True),
    _text("endpoint"),
    _int("stream"),
    _text("model_asked", null=True),
    _text("model_served", null=True),
    _text("provider", null=True),
    _text("state"),
    _int("status", null=True),
    _text("code", null=True),
    _text("error", null=True),
    _text("limit_name", null=True),
    _text("scope", null=True),
    _int("started_us"),
    _int("ended_us", null=True),
    _int("ttft_us", null=True),
    _int("input_tokens", null=True),
    _int("output_tokens", null=True),
    _int("cached_tokens", null=True),
    _int("cost_nanos", null=True),
    _sum("held_nanos"),
    _text("usage_source", null=True),
    _text("finish_reason", null=True),
    _sum("attempts"),
    _text("guardrails"),
    _blob("answer", null=True),
    _text("shadow", null=True),
    _text("parent_span", null=True),
    UniqueConstraint("request_id"),
    Index("ix_calls_started", "started_us"),
    **_CLUSTERED,
)

# `settled` is NULL while the hold is open, then post, void, expire or correct.
attempts = Table(
    "attempts",
    metadata,
    _int("run", key=True),
    _int("seq", key=True),
    _int("n", key=True),
    _text("hold_id"),
    _text("model"),
    _text("provider"),
    _text("reason"),
    _int("started_us"),
    _int("ended_us", null=True),
    _int("status", null=True),
    _text("error", null=True),
    _int("held_nanos"),
    _text("balances"),
    _text("price_version", null=True),
    _int("expires_us"),
    _text("settled", null=True),
    _int("cost_nanos", null=True),
    _sum("wait_ms"),
    Index(
        "ix_attempts_open",
        "expires_us",
        sqlite_where=text("settled IS NULL"),
        postgresql_where=text("settled IS NULL"),
    ),
    **_CLUSTERED,
)

# What OpenTelemetry and the SDK tell of agents, tasks and tools. `input` and `output` are hashes of messages.
spans = Table(
    "spans",
    metadata,
    _int("run", key=True),
    _text("span_id", key=True),
    _text("parent_id", null=True),
    _text("kind"),
    _text("name"),
    _text("step", null=True),
    _text("role", null=True),
    _text("state"),
    _int("started_us"),
    _int("ended_us", null=True),
    _text("error", null=True),
    _text("request_id", null=True),
    _text("model", null=True),
    _int("input_tokens", null=True),
    _int("output_tokens", null=True),
    _text("attributes"),
    _blob("input", null=True),
    _blob("output", null=True),
    **_CLUSTERED,
)

# Each message is kept once, by its BLAKE2b-16 hash, compressed; a call keeps hashes (16 bytes each): a list of
# those that it sent in `contents`, beside which lists of calls need not read, and the answer's in its own row.
# `day` (since the epoch) is one on which it was written or referred to, so that what nothing refers to any more is
# found without reading all that is left.
messages = Table(
    "messages",
    metadata,
    _blob("hash", key=True),
    _blob("body"),
    _sum("day"),
    Index("ix_messages_day", "day"),
    **_CLUSTERED,
)

contents = Table(
    "contents",
    metadata,
    _int("run", key=True),
    _int("seq", key=True),
    _blob("prompt", null=True),
    _blob("params", null=True),
    **_CLUSTERED,
)

grants = Table(
    "grants",
    metadata,
    _text("grant_id", key=True),
    _text("alias", null=True),
    _text("fleet", null=True),
    _text("role", null=True),
    _text("models"),
    _int("rpm", null=True),
    _int("tpm", null=True),
    _int("max_parallel", null=True),
    _text("guardrails"),
    _text("tools", null=True),
    _text("metadata"),
    _int("blocked"),
    _int("created_us"),
    _int("updated_us"),
    _int("expires_us", null=True),
    _int("revoked_us", null=True),
    _int("last_used_us", null=True),
    _list("budgets"),
    _list("shadow"),
    _list("model_limits"),
    _text("loop", null=True),
    _int("request_nanos", null=True),
    _int("cache_ttl_s", null=True),
    **_STRICT,
)

secrets = Table(
    "secrets",
    metadata,
    _text("public_id", key=True),
    _text("grant_id"),
    _blob("digest"),
    _int("created_us"),
    _int("expires_us", null=True),
    _int("revoked_us", null=True),
    Index("ix_secrets_grant", "grant_id"),
    **_STRICT,
)

fleets = Table(
    "fleets",
    metadata,
    _text("fleet", key=True),
    _int("rpm", null=True),
    _int("tpm", null=True),
    _text("models"),
    _text("metadata"),
    _int("blocked"),
    _int("created_us"),
    _int("updated_us"),
    _list("budgets"),
    _list("shadow"),
    _int("max_parallel", null=True),
    **_STRICT,
)

deployments = Table(
    "deployments",
    metadata,
    _text("deployment_id", key=True),
    _text("fleet", null=True),
    _text("group_name"),
    _text("model"),
    _int("order_no"),
    _int("weight"),
    _int("context_tokens", null=True),
    Column("options", Text, nullable=False, server_default=text("'{}'")),
    _text("applied", null=True),
    **_STRICT,
)

# `once` names what an event tells, so that it is told once. `seq` rises in the order of storing.
events = Table(
    "events",
    metadata,
    _int("seq", key=True),
    _text("once"),
    _text("event_id"),
    _text("kind"),
    _int("at_us"),
    _text("fleet", null=True),
    _text("role", null=True),
    _text("message"),
    _text("facts"),
    UniqueConstraint("once"),
    **_STRICT,
)

# `due_us` is NULL once nothing is to be tried any more: it was done (`done_us`), or given up (`error` says why).
deliveries = Table(
    "deliveries",
    metadata,
    _int("event_seq", key=True),
    _text("webhook", key=True),
    _sum("attempts"),
    _int("due_us", null=True),
    _int("done_us", null=True),
    _text("error", null=True),
    Index(
        "ix_deliveries_due",
        "due_us",
        sqlite_where=text("due_us IS NOT NULL"),
        postgresql_where=text("due_us IS NOT NULL"),
    ),
    **_CLUSTERED,
)

documents = Table("documents", metadata, _text("name", key=True), _blob("body"), _int("updated_us"), **_STRICT)

# What replicas have to hear of each other. Where nobody shares the store, nothing is written here.
changes = Table("changes", metadata, _int("seq", key=True), _text("kind"), _text("id"), _int("at_us"), **_STRICT)

# What was deleted for its age: ledger entries outlive their calls, and the audit wants to know how many may do so.
prunings = Table(
    "prunings",
    metadata,
    _text("pruning", key=True),
    _int("at_us"),
    _int("cut_us"),
    _sum("runs"),
    _sum("calls"),
    _sum("holds"),
    _sum("cost_nanos"),
    **_STRICT,
)
