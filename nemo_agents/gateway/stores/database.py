"""What the store's statements need of a database, whichever it is.

The statements are written once, in the SQL that SQLite and PostgreSQL share, with `?` and `:name` for parameters.
`sqlite3.Connection` is nearly all of it; another driver is fitted to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct

from nemo_agents.policy.ledger import BudgetScope

__all__ = ["CommitUnknown", "Cursor", "Database", "Dialect", "SqliteDatabase", "Touches"]

Parameters = Sequence[Any] | Mapping[str, Any]


class CommitUnknown(Exception):  # noqa: N818 - a condition, told to callers as StoreUnavailable
    """The connection was lost between the COMMIT and the answer to it: the transaction may have been committed."""


class Cursor(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """Return the next row, None after the last."""

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """One connection."""

    @property
    def in_transaction(self) -> bool:
        """Whether there is something to commit or to take back."""

    def execute(self, sql: str, parameters: Parameters = ..., /) -> Cursor:
        """Run a statement now, after all that were put off."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Run a statement once for each row of parameters."""

    def later(self, sql: str, parameters: Sequence[Any], /) -> object:
        """Run a write whose answer nobody needs, at the latest before the COMMIT.

        Writes that are put off keep their order for any one row.
        """

    def touch(self, sql: str, parameters: Sequence[Any], likely: int | None, /) -> int:
        """Run a write and return how many rows it changed.

        `likely` is what the caller knows it to be; a connection that puts writes off takes its word, and fails the
        transaction if it was wrong.
        """

    def close(self) -> None:
        """Close the connection; what was not committed is taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a driver tells its errors apart."""

    errors: tuple[type[Exception], ...]  # all of the driver's own
    is_outage: Callable[[BaseException], bool]  # the database is unavailable, rather than a statement wrong
    may_retry: Callable[[BaseException], bool]  # nothing was written, and another try may well succeed
    too_slow: Callable[[BaseException], bool]  # nothing was written, for it took too long: less may go through
    refused: Callable[[Exception], str | None]  # in words, that a record breaks a rule of its table; else None


class Touches(Struct, frozen=True, kw_only=True):
    """What an operation will read and write, as far as its caller knows.

    Where several gateways share a database, an operation locks its shard (everything of one fleet) and `topics`
    first, and what it names here is read in one go. A `fleet` of None is looked up by `request_id`. What is not
    `lasting` may be forgotten by a server that crashes in the same second.
    """

    fleet: str | None = None
    request_id: str | None = None
    run_id: str | None = None
    scopes: tuple[BudgetScope, ...] = ()
    topics: tuple[str, ...] = ()
    lasting: bool = True


class SqliteDatabase(sqlite3.Connection):
    """SQLite: nothing is put off, since nothing is far."""

    later = sqlite3.Connection.execute

    def touch(self, sql: str, parameters: Sequence[Any], likely: int | None, /) -> int:  # noqa: ARG002 - it knows
        """Run a write and return how many rows it changed."""
        return self.execute(sql, parameters).rowcount
