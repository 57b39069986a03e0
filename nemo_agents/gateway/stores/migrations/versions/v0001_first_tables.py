"""The first tables: ledger, request log, runs, contents, keys, fleets, deployments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
REAL: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")

# Corrections are new entries: what is written in the ledger stays.
APPEND_ONLY = """
CREATE TRIGGER entries_no_{verb} BEFORE {verb} ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END
"""


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("run", INT, nullable=False),
        sa.Column("seq", INT, nullable=False),
        sa.Column("n", INT, nullable=False),
        sa.Column("hold_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("started_us", INT, nullable=False),
        sa.Column("ended_us", INT, nullable=True),
        sa.Column("status", INT, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("held_nanos", INT, nullable=False),
        sa.Column("balances", sa.Text(), nullable=False),
        sa.Column("price_version", sa.Text(), nullable=True),
        sa.Column("expires_us", INT, nullable=False),
        sa.Column("settled", sa.Text(), nullable=True),
        sa.Column("cost_nanos", INT, nullable=True),
        sa.PrimaryKeyConstraint("run", "seq", "n", name=op.f("pk_attempts")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_attempts_open",
        "attempts",
        ["expires_us"],
        unique=False,
        sqlite_where=sa.text("settled IS NULL"),
        postgresql_where=sa.text("settled IS NULL"),
    )
    op.create_table(
        "balances",
        sa.Column("id", INT, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("posted_nanos", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("held_nanos", INT, server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("held_nanos >= 0", name=op.f("ck_balances_held")),
        sa.CheckConstraint("posted_nanos >= 0", name=op.f("ck_balances_posted")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_balances")),
        sa.UniqueConstraint("kind", "scope_id", "period", name=op.f("uq_balances_kind_scope_id_period")),
        sqlite_strict=True,
    )
    op.create_table(
        "calls",
        sa.Column("run", INT, nullable=False),
        sa.Column("seq", INT, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("step", INT, nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("key_alias", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("grant_id", sa.Text(), nullable=True),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("stream", INT, nullable=False),
        sa.Column("model_asked", sa.Text(), nullable=True),
        sa.Column("model_served", sa.Text(), nullable=True),
        sa.Column("provider", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", INT, nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("limit_name", sa.Text(), nullable=True),
        sa.Column("scope", sa.Text(), nullable=True),
        sa.Column("started_us", INT, nullable=False),
        sa.Column("ended_us", INT, nullable=True),
        sa.Column("ttft_us", INT, nullable=True),
        sa.Column("input_tokens", INT, nullable=True),
        sa.Column("output_tokens", INT, nullable=True),
        sa.Column("cached_tokens", INT, nullable=True),
        sa.Column("cost_nanos", INT, nullable=True),
        sa.Column("held_nanos", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("usage_source", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("attempts", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("guardrails", sa.Text(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("run", "seq", name=op.f("pk_calls")),
        sa.UniqueConstraint("request_id", name=op.f("uq_calls_request_id")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_calls_started", "calls", ["started_us"], unique=False)
    op.create_table(
        "contents",
        sa.Column("run", INT, nullable=False),
        sa.Column("seq", INT, nullable=False),
        sa.Column("prompt", sa.LargeBinary(), nullable=True),
        sa.Column("params", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("run", "seq", name=op.f("pk_contents")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "deployments",
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("fleet", sa.Text(), nullable=True),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("order_no", INT, nullable=False),
        sa.Column("weight", INT, nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", name=op.f("pk_deployments")),
        sqlite_strict=True,
    )
    op.create_table(
        "entries",
        sa.Column("hold_id", sa.Text(), nullable=False),
        sa.Column("slot", INT, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("attempt", INT, nullable=False),
        sa.Column("amount_nanos", INT, nullable=False),
        sa.Column("balances", sa.Text(), nullable=False),
        sa.Column("price_version", sa.Text(), nullable=True),
        sa.Column("usage", sa.Text(), nullable=True),
        sa.Column("usage_source", sa.Text(), nullable=True),
        sa.Column("expires_us", INT, nullable=True),
        sa.Column("at_us", INT, nullable=False),
        sa.CheckConstraint("kind = 'correct' OR amount_nanos >= 0", name=op.f("ck_entries_amount")),
        sa.CheckConstraint(
            "slot = CASE kind WHEN 'hold' THEN 0 WHEN 'post' THEN 1 WHEN 'void' THEN 1 WHEN 'expire' THEN 1"
            " WHEN 'correct' THEN 2 ELSE -1 END",
            name=op.f("ck_entries_slot"),
        ),
        sa.PrimaryKeyConstraint("hold_id", "slot", name=op.f("pk_entries")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "fleets",
        sa.Column("fleet", sa.Text(), nullable=False),
        sa.Column("budget_nanos", INT, nullable=True),
        sa.Column("budget_duration", sa.Text(), nullable=True),
        sa.Column("alert_at", REAL, nullable=True),
        sa.Column("rpm", INT, nullable=True),
        sa.Column("tpm", INT, nullable=True),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("blocked", INT, nullable=False),
        sa.Column("created_us", INT, nullable=False),
        sa.Column("updated_us", INT, nullable=False),
        sa.PrimaryKeyConstraint("fleet", name=op.f("pk_fleets")),
        sqlite_strict=True,
    )
    op.create_table(
        "grants",
        sa.Column("grant_id", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=True),
        sa.Column("fleet", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("rpm", INT, nullable=True),
        sa.Column("tpm", INT, nullable=True),
        sa.Column("max_parallel", INT, nullable=True),
        sa.Column("budget_nanos", INT, nullable=True),
        sa.Column("budget_duration", sa.Text(), nullable=True),
        sa.Column("alert_at", REAL, nullable=True),
        sa.Column("guardrails", sa.Text(), nullable=False),
        sa.Column("tools", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("blocked", INT, nullable=False),
        sa.Column("created_us", INT, nullable=False),
        sa.Column("updated_us", INT, nullable=False),
        sa.Column("expires_us", INT, nullable=True),
        sa.Column("revoked_us", INT, nullable=True),
        sa.Column("last_used_us", INT, nullable=True),
        sa.PrimaryKeyConstraint("grant_id", name=op.f("pk_grants")),
        sqlite_strict=True,
    )
    op.create_table(
        "messages",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_messages")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("run", INT, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("fleet", sa.Text(), nullable=False),
        sa.Column("grouped", INT, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_us", INT, nullable=False),
        sa.Column("last_us", INT, nullable=False),
        sa.Column("reported_state", sa.Text(), nullable=True),
        sa.Column("ended_us", INT, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("stopped_by", sa.Text(), nullable=True),
        sa.Column("stop_reported", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("stopped_us", INT, nullable=True),
        sa.Column("budget_nanos", INT, nullable=True),
        sa.Column("max_calls", INT, nullable=True),
        sa.Column("admitted", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("last_seq", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("open_calls", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("outcome_seq", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("calls", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("errors", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("cached_tokens", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("cost_nanos", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_runs")),
        sa.UniqueConstraint("run_id", "fleet", name=op.f("uq_runs_run_id_fleet")),
        sqlite_strict=True,
    )
    op.create_index("ix_runs_fleet", "runs", ["fleet", "started_us"], unique=False)
    op.create_index(
        "ix_runs_grouped",
        "runs",
        ["started_us"],
        unique=False,
        sqlite_where=sa.text("grouped = 1"),
        postgresql_where=sa.text("grouped = 1"),
    )
    op.create_index("ix_runs_started", "runs", ["started_us"], unique=False)
    op.create_index("ix_runs_state", "runs", ["state", "started_us"], unique=False)
    op.create_table(
        "secrets",
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("grant_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_us", INT, nullable=False),
        sa.Column("expires_us", INT, nullable=True),
        sa.Column("revoked_us", INT, nullable=True),
        sa.PrimaryKeyConstraint("public_id", name=op.f("pk_secrets")),
        sqlite_strict=True,
    )
    op.create_index("ix_secrets_grant", "secrets", ["grant_id"], unique=False)
    op.create_table(
        "steps",
        sa.Column("run", INT, nullable=False),
        sa.Column("seq", INT, nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reported_state", sa.Text(), nullable=True),
        sa.Column("started_us", INT, nullable=False),
        sa.Column("last_us", INT, nullable=False),
        sa.Column("ended_us", INT, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("open_calls", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("outcome_seq", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("calls", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("errors", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("cached_tokens", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("cost_nanos", INT, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("run", "seq", name=op.f("pk_steps")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(APPEND_ONLY.format(verb=verb))


def downgrade() -> None:
    """Refuse: there is nothing before the first tables."""
    raise NotImplementedError("the first revision has no predecessor; remove the database file instead")
