"""Bring a database file up to date, or say in one line why it cannot be used.

The revision is read with the plain driver: when it is the head, neither Alembic nor SQLAlchemy is imported,
and a gateway starts without their half of a second. Nor does a new file need them: `migrations/head.sql` is
what the migrations make of an empty one (a test compares them).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nemo_agents.errors import SettingsError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Engine

__all__ = ["HEAD", "REVISIONS", "alembic_config", "bring_up_to_date", "engine_for", "head_sql", "upgrade"]

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005")
"""Every revision that this version knows, oldest first (a test compares them with `migrations/versions`)."""

HEAD: Final = REVISIONS[-1]

_HEAD_SQL: Final = Path(__file__).parent / "migrations" / "head.sql"

_QUICK_CHECK_MAX_BYTES = 64 * 1024 * 1024  # about 0.1 s; a larger file is checked by reading its schema only


def bring_up_to_date(path: Path) -> bool:
    """Create or upgrade the schema in `path`; say whether anything had to be done.

    Raises SettingsError, and leaves the file as it is, when it is not a database, belongs to something else,
    is damaged, or was written by a newer version.
    """
    try:
        revision = _revision(path)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    if revision == HEAD:
        return False
    if revision is not None and revision not in REVISIONS:
        raise SettingsError(
            f"{path} was written by a newer version of nemo-agents (schema {revision}, this version knows {HEAD}). "
            "Upgrade nemo-agents, or restore a backup of the file made before."
        )
    if revision is None:
        _create(path)
    else:
        upgrade(path)
    return True


def alembic_config(connection: Any) -> Config:
    """Return Alembic's configuration for our environment, bound to an open SQLAlchemy connection."""
    from alembic.config import Config  # noqa: PLC0415 - only a migration pays for this import

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def engine_for(path: Path) -> Engine:
    """Return an engine with SQLite's own transactions.

    The driver's implicit ones would commit before DDL, and an interrupted upgrade would stay half done.
    """
    from sqlalchemy import NullPool, create_engine, event  # noqa: PLC0415 - only a migration pays for this import

    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False),
        poolclass=NullPool,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def head_sql(path: Path) -> str:
    """Return the statements that make what is in a migrated file: the text that `migrations/head.sql` must have."""
    with closing(sqlite3.connect(path)) as db:
        made = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    stamp = f"INSERT INTO alembic_version(version_num) VALUES ('{HEAD}')"  # noqa: S608 - a constant of ours
    return "".join(f"{sql};\n" for sql in (*(sql for (sql,) in made), stamp))


def _revision(path: Path) -> str | None:
    if not path.exists() or path.stat().st_size == 0:
        return None
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return None
        if "alembic_version" not in tables or "entries" not in tables:
            raise SettingsError(
                f"{path} is a SQLite database of something else (no nemo-agents tables). Name another file."
            )
        if path.stat().st_size <= _QUICK_CHECK_MAX_BYTES:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise SettingsError(f"{path} is damaged ({' '.join(str(verdict).split())}). Restore a backup.")
        row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def _create(path: Path) -> None:
    """Make the tables of the head in an empty file, all or none."""
    statements = _HEAD_SQL.read_text(encoding="utf-8")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before there is a table: so the file can shrink in use
            db.executescript(f"BEGIN IMMEDIATE;\n{statements}\nCOMMIT;")
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


def upgrade(path: Path) -> None:
    """Run the migrations that a file still needs. Raises SettingsError."""
    from alembic import command  # noqa: PLC0415 - only a migration pays for this import
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - likewise

    engine = engine_for(path)
    try:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), "head")
    except SQLAlchemyError as error:
        raise _unusable(path, getattr(error, "orig", None) or error) from error
    finally:
        engine.dispose()


def _unusable(path: Path, error: BaseException) -> SettingsError:
    reason = " ".join(str(error).split())
    if "not a database" in reason:
        return SettingsError(f"{path} is not a SQLite database. Move it away, or name another file.")
    if "malformed" in reason:
        return SettingsError(f"{path} is damaged ({reason}). Restore a backup, or name another file.")
    return SettingsError(f"{path} cannot be used as the gateway's database: {reason}.")
