"""Spans of a run, the span that a call was made in, and the trace that a run is found by."""

from __future__ import annotations

import hashlib
import re

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
CHUNK = 1000


def upgrade() -> None:
    op.add_column("runs", sa.Column("trace_id", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("traced", INT, server_default=sa.text("0"), nullable=False))
    op.add_column("calls", sa.Column("parent_span", sa.Text(), nullable=True))
    op.create_table(
        "spans",
        sa.Column("run", INT, nullable=False),
        sa.Column("span_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_us", INT, nullable=False),
        sa.Column("ended_us", INT, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("input_tokens", INT, nullable=True),
        sa.Column("output_tokens", INT, nullable=True),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("input", sa.LargeBinary(), nullable=True),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("run", "span_id", name=op.f("pk_spans")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":  # ordered by code point, as all texts are
        texts = ("span_id", "parent_id", "kind", "name", "step", "role", "state", "error", "request_id", "model")
        for table, names in (("runs", ("trace_id",)), ("calls", ("parent_span",)), ("spans", (*texts, "attributes"))):
            op.execute(f"ALTER TABLE {table} " + ", ".join(f'ALTER COLUMN {n} TYPE text COLLATE "C"' for n in names))
    _find_traces()
    op.create_index(
        "ix_runs_trace",
        "runs",
        ["trace_id", "fleet"],
        unique=False,
        sqlite_where=sa.text("trace_id IS NOT NULL"),
        postgresql_where=sa.text("trace_id IS NOT NULL"),
    )


def _find_traces() -> None:
    """Note the trace of every run that there is: what the SDK's calls in it have said in `traceparent`."""
    runs = sa.table("runs", sa.column("run"), sa.column("run_id"), sa.column("fleet"), sa.column("trace_id"))
    change = runs.update().where(runs.c.run == sa.bindparam("number")).values(trace_id=sa.bindparam("trace"))
    db, last = op.get_bind(), -1
    while True:
        page = sa.select(runs.c.run, runs.c.run_id, runs.c.fleet).where(runs.c.run > last, sa.text("grouped = 1"))
        found = db.execute(page.order_by(runs.c.run).limit(CHUNK)).all()
        if not found:
            return
        db.execute(change, [{"number": run, "trace": _trace_of(run_id, fleet)} for run, run_id, fleet in found])
        last = found[-1][0]


def _trace_of(run_id: str, fleet: str) -> str:
    owner, dot, told = ("", "", run_id) if fleet or "." not in run_id else run_id.partition(".")
    trace = told if TRACE_ID.fullmatch(told) else hashlib.sha256(told.encode()).hexdigest()[:32]
    return f"{owner}{dot}{trace}"


def downgrade() -> None:
    op.drop_index("ix_runs_trace", table_name="runs")
    op.drop_table("spans")
    op.drop_column("calls", "parent_span")
    op.drop_column("runs", "traced")
    op.drop_column("runs", "trace_id")
