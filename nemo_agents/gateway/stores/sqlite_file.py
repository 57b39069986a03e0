"""The database file: who may open it, and with which settings."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.stores.database import Dialect, SqliteDatabase

__all__ = ["SQLITE", "FileLock", "check_writable", "connect_reader", "connect_writer", "prepare"]

# Primary result codes that speak of the file or the machine, not of the statement (sqlite.org/rescode.html).
_OUTAGE: Final = frozenset({3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 22, 26})


def _is_outage(error: BaseException) -> bool:
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, OSError)
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _OUTAGE


SQLITE: Final = Dialect(
    errors=(sqlite3.Error,),
    is_outage=_is_outage,
    may_retry=lambda _: False,
    too_slow=lambda _: False,
    refused=lambda error: str(error) if isinstance(error, sqlite3.IntegrityError) else None,
)


def _as_it_is(value: Any) -> Any:
    return value


# The driver looks for protocols on every parameter that is NULL or bytes, and finds none, at the price of several
# exceptions each. It knows what to do with both; an adapter that adapts nothing says so at once.
for _kind in (type(None), bytes):
    sqlite3.register_adapter(_kind, _as_it_is)


class FileLock:
    """Keeps a second gateway away from the same database: the ledger has exactly one writer.

    The operating system lets go of the lock when the process ends, however it ends. The file beside the
    database holds the process id of the owner, for people.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self.path = database.with_name(database.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise SettingsError that names the file and the process that has it."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SettingsError(f"{self.path} cannot be written: {error.strerror}.") from error
        try:
            _lock(descriptor)
        except OSError as error:
            holder = _read(descriptor) or "unknown"
            os.close(descriptor)
            raise SettingsError(
                f"{self._database} is in use by another gateway (process {holder}). "
                "Stop that one, or start this one with another --home."
            ) from error
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock. The file stays: removing it would race with the next owner."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 32).decode(errors="replace").strip()


def prepare(path: Path) -> None:
    """Make sure that the folder (0700) and the file (0600) exist and belong to nobody else's eyes.

    Raises SettingsError. SQLite gives its side files the mode of the database.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"The folder {path.parent} cannot be made: {error.strerror}.") from error
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}.") from error


def check_writable(path: Path) -> None:
    """Raise SettingsError when the database cannot be written (read-only medium, locked by a stranger)."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=2.0)) as db:
            db.execute("PRAGMA journal_mode=WAL").fetchone()
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise SettingsError(f"{path} cannot be written: {' '.join(str(error).split())}.") from error


def connect_writer(path: Path, *, durability: Literal["process", "power"], busy_timeout_s: float) -> SqliteDatabase:
    """Open the one connection that writes; it never creates the file.

    `process` survives a crash of the gateway (WAL, synchronous NORMAL); `power` also the loss of power right
    after a commit (synchronous FULL: one fsync per group commit). See
    sqlite.org/pragma.html#pragma_synchronous.
    """
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=busy_timeout_s,
        check_same_thread=False,
        cached_statements=256,
        factory=SqliteDatabase,
    )
    try:
        db.execute("PRAGMA journal_mode=WAL").fetchone()
        db.execute(f"PRAGMA synchronous={'FULL' if durability == 'power' else 'NORMAL'}")
        db.execute("PRAGMA journal_size_limit=67108864")
        db.execute("PRAGMA cache_size=-16384")
        # The small tables that a statement over several balances needs cost a multiple when they may become files.
        db.execute("PRAGMA temp_store=MEMORY")
        # Four times the default: a page that changes often is copied into the database less often.
        db.execute("PRAGMA wal_autocheckpoint=4000")
    except BaseException:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> SqliteDatabase:
    """Open a connection that cannot write."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=2.0,
        check_same_thread=False,
        factory=SqliteDatabase,
    )
    db.execute("PRAGMA query_only=ON")
    return db


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # far behind the process id, which others want to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
