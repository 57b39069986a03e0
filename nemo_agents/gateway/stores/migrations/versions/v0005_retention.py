"""What was deleted for its age, and by which day a message was referred to."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DAY_S = 86_400


def upgrade() -> None:
    op.add_column("messages", sa.Column("day", INT, server_default=sa.text("0"), nullable=False))
    messages = sa.table("messages", sa.column("day"))
    op.execute(messages.update().values(day=int(time.time()) // DAY_S))  # all that refers to them was written before
    op.create_index("ix_messages_day", "messages", ["day"], unique=False)
    op.create_table(
        "prunings",
        sa.Column("pruning", sa.Text(), nullable=False),
        *[sa.Column(name, INT, nullable=False) for name in ("at_us", "cut_us")],
        *[
            sa.Column(name, INT, server_default=sa.text("0"), nullable=False)
            for name in ("runs", "calls", "holds", "cost_nanos")
        ],
        sa.PrimaryKeyConstraint("pruning", name=op.f("pk_prunings")),
        sqlite_strict=True,
    )
    if op.get_bind().dialect.name == "postgresql":  # ordered by code point, as all texts are
        op.execute('ALTER TABLE prunings ALTER COLUMN pruning TYPE text COLLATE "C"')


def downgrade() -> None:
    op.drop_table("prunings")
    op.drop_index("ix_messages_day", table_name="messages")
    op.drop_column("messages", "day")
