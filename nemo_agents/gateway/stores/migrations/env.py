"""Alembic's entry: runs the revisions on the connection that `stores.migrate` (or a test) hands in."""

from __future__ import annotations

from alembic import context

from nemo_agents.gateway.stores.schema import metadata

connection = context.config.attributes["connection"]
# SQLite has transactional DDL when the driver does not commit behind our back (see `migrate._engine`): a
# gateway that is killed while it upgrades finds the file as it was.
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
