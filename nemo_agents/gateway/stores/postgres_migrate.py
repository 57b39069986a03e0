"""Bring a PostgreSQL database up to date, or say in one line why it cannot be used.

Gateways that start at the same moment migrate one after the other: the first makes the tables, the others find them.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import psycopg

from nemo_agents.environment import DATABASE_PASSWORD
from nemo_agents.errors import SettingsError
from nemo_agents.gateway.stores.migrate import HEAD, REVISIONS, alembic_config
from nemo_agents.gateway.stores.postgres_books import lock_number
from nemo_agents.gateway.stores.postgres_connection import Address

__all__ = ["bring_up_to_date"]

_PATIENCE_S: Final = 600.0
"""A migration of a large database takes its time, and the gateways that start meanwhile wait for it."""
_LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"
_TABLES: Final = (
    "SELECT c.relname FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
)


def _patient(address: Address) -> psycopg.Connection:
    return address.connect(idle_s=_PATIENCE_S, lock_s=_PATIENCE_S, statement_s=_PATIENCE_S)


def bring_up_to_date(address: Address) -> None:
    """Create or upgrade the tables. Raises SettingsError, without the password in it."""
    try:
        with _patient(address) as connection:
            _check_server(connection, address)
            with connection.transaction():
                connection.execute(_LOCK, [lock_number("*migrate")])
                if _needs_upgrade(connection, address):
                    _upgrade(address)
    except psycopg.Error as error:
        _refuse(address, error)


def _check_server(connection: psycopg.Connection, address: Address) -> None:
    (version,) = connection.execute("SELECT current_setting('server_version_num')::int").fetchone() or (0,)
    (encoding,) = connection.execute("SHOW server_encoding").fetchone() or ("",)
    (read_only,) = connection.execute("SHOW transaction_read_only").fetchone() or ("",)
    if version < _VERSION_MIN:
        raise SettingsError(
            f"The server of {address.label} is PostgreSQL {version // 10000}; "
            f"nemo-agents needs {_VERSION_MIN // 10000} or later."
        )
    if encoding != "UTF8":
        raise SettingsError(f"{address.label} has the encoding {encoding}. Make a database with ENCODING 'UTF8'.")
    if read_only == "on":
        raise SettingsError(f"{address.label} is read only (a standby?). Name the server that can be written.")


_VERSION_MIN: Final = 130000


def _needs_upgrade(connection: psycopg.Connection, address: Address) -> bool:
    (schema,) = connection.execute("SELECT current_schema()").fetchone() or (None,)
    if schema is None:
        raise SettingsError(f"{address.label} has no schema on its search path. Create one, or name another database.")
    tables = {name for (name,) in connection.execute(_TABLES)}
    if not tables:
        return True
    if "alembic_version" not in tables or "entries" not in tables:
        raise SettingsError(
            f"{address.label} is a database of something else (no nemo-agents tables). Name an empty one."
        )
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    revision = row[0] if row else ""
    if revision not in REVISIONS:
        raise SettingsError(
            f"{address.label} was written by a newer version of nemo-agents (schema {revision}, this version knows "
            f"{HEAD}). Upgrade nemo-agents, or restore a backup that was made before."
        )
    return bool(revision != HEAD)


def _upgrade(address: Address) -> None:
    from alembic import command  # noqa: PLC0415 - only a migration pays for this import
    from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - likewise
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - likewise

    def connect() -> Any:
        connection = _patient(address)
        connection.autocommit = False
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), "head")
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        _refuse(address, cause if isinstance(cause, Exception) else error)
    finally:
        engine.dispose()


def _refuse(address: Address, error: Exception) -> NoReturn:
    reason = address.hide(str(error))
    remedy = f" Set the right one in {DATABASE_PASSWORD}." if "password" in reason else ""
    raise SettingsError(f"{address.label} cannot be used as the gateway's database: {reason}.{remedy}") from None
