"""How long a key's answers are given again, how long was waited before an attempt, the options of model groups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("grants", sa.Column("cache_ttl_s", INT, nullable=True))
    op.add_column("attempts", sa.Column("wait_ms", INT, server_default=sa.text("0"), nullable=False))
    op.add_column("deployments", sa.Column("context_tokens", INT, nullable=True))
    op.add_column("deployments", sa.Column("options", sa.Text(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("deployments", sa.Column("applied", sa.Text(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":  # ordered by code point, as all texts are
        changed = ", ".join(f'ALTER COLUMN {name} TYPE text COLLATE "C"' for name in ("options", "applied"))
        op.execute(f"ALTER TABLE deployments {changed}")


def downgrade() -> None:
    op.drop_column("deployments", "applied")
    op.drop_column("deployments", "options")
    op.drop_column("deployments", "context_tokens")
    op.drop_column("attempts", "wait_ms")
    op.drop_column("grants", "cache_ttl_s")
