"""Several budgets per role and fleet, shadow modes, events with their deliveries, documents, changes for replicas.

A budget of before becomes the only rule of its role or fleet. On PostgreSQL, texts are ordered by code point from
here on, as SQLite orders them, and the ledger refuses UPDATE and DELETE.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# What a key has that says nothing about loops: they are recorded, and refuse nothing.
DEFAULT_LOOP = json.dumps({"repeats": 8, "within_s": 60, "mode": "shadow"}, separators=(",", ":"))

APPEND_ONLY_FUNCTION = """
CREATE FUNCTION nemo_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'ledger entries are append-only'; END $$
"""
APPEND_ONLY = """
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
FOR EACH STATEMENT EXECUTE FUNCTION nemo_append_only()
"""


def upgrade() -> None:
    for table, key in (("grants", "grant_id"), ("fleets", "fleet")):
        op.add_column(table, sa.Column("budgets", sa.Text(), server_default=sa.text("'[]'"), nullable=False))
        op.add_column(table, sa.Column("shadow", sa.Text(), server_default=sa.text("'[]'"), nullable=False))
        _convert(table, key)
        for name in ("budget_nanos", "budget_duration", "alert_at"):
            op.drop_column(table, name)
    op.add_column("grants", sa.Column("model_limits", sa.Text(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("grants", sa.Column("loop", sa.Text(), nullable=True))
    op.execute(sa.text("UPDATE grants SET loop = :rule").bindparams(rule=DEFAULT_LOOP))
    op.add_column("grants", sa.Column("request_nanos", INT, nullable=True))
    op.add_column("fleets", sa.Column("max_parallel", INT, nullable=True))
    op.add_column("calls", sa.Column("shadow", sa.Text(), nullable=True))
    op.create_table(
        "events",
        sa.Column("seq", INT, nullable=False),
        sa.Column("once", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_us", INT, nullable=False),
        sa.Column("fleet", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sa.UniqueConstraint("once", name=op.f("uq_events_once")),
        sqlite_strict=True,
    )
    op.create_table(
        "deliveries",
        sa.Column("event_seq", INT, nullable=False),
        sa.Column("webhook", sa.Text(), nullable=False),
        sa.Column("attempts", INT, server_default=sa.text("0"), nullable=False),
        sa.Column("due_us", INT, nullable=True),
        sa.Column("done_us", INT, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("event_seq", "webhook", name=op.f("pk_deliveries")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["due_us"],
        unique=False,
        sqlite_where=sa.text("due_us IS NOT NULL"),
        postgresql_where=sa.text("due_us IS NOT NULL"),
    )
    op.create_table(
        "documents",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("updated_us", INT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_documents")),
        sqlite_strict=True,
    )
    op.create_table(
        "changes",
        sa.Column("seq", INT, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at_us", INT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_changes")),
        sqlite_strict=True,
    )
    if op.get_bind().dialect.name == "postgresql":
        _order_texts_by_code_point()
        op.execute(APPEND_ONLY_FUNCTION)
        op.execute(APPEND_ONLY)


def _convert(table: str, key: str) -> None:
    """Turn a budget into the only rule of its owner."""
    owners: Any = sa.table(
        table,
        sa.column(key),
        *(sa.column(name) for name in ("budget_nanos", "budget_duration", "alert_at", "budgets")),
    )
    had = sa.select(owners.c[key], owners.c.budget_nanos, owners.c.budget_duration, owners.c.alert_at)
    for owner, nanos, duration, alert_at in op.get_bind().execute(had.where(owners.c.budget_nanos.is_not(None))).all():
        rule = {
            "amount_nanos": nanos,
            "duration": duration,
            "tz": "UTC",
            "alert_at": [] if alert_at is None else [alert_at],
            "mode": "enforce",
        }
        told = json.dumps([rule], separators=(",", ":"))
        op.execute(owners.update().where(owners.c[key] == owner).values(budgets=told))


def _order_texts_by_code_point() -> None:
    texts = sa.text(
        "SELECT c.table_name, c.column_name FROM information_schema.columns c JOIN information_schema.tables t"
        " USING (table_schema, table_name) WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE'"
        " AND c.data_type = 'text' ORDER BY 1, 2"
    )
    columns: dict[str, list[str]] = {}
    for table, column in op.get_bind().execute(texts).all():
        columns.setdefault(table, []).append(column)
    for table, names in columns.items():
        changed = ", ".join(f'ALTER COLUMN {name} TYPE text COLLATE "C"' for name in names)
        op.execute(f"ALTER TABLE {table} {changed}")


def downgrade() -> None:
    """Refuse: several budgets do not fit into one. A backup of the time before has what it had."""
    raise NotImplementedError("revision 0002 is not taken back; restore a backup that was made before the upgrade")
