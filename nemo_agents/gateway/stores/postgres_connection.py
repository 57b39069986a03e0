"""Connections to PostgreSQL, fitted to what the store's statements need.

Statements come in the SQL that both databases share, and are translated once each. Writes whose answer nobody needs
are put off and sent together: the rows that go into one table as one statement, the rest in one pipeline, so that a
batch of operations takes a few round trips however many it has. See `Database.later` for the order.

No call waits for ever: the server is told to give up after `STATEMENT_S`, and a server that says nothing for
`ANSWER_S` (frozen, or behind a network that swallows everything) counts as lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown

from nemo_agents.gateway.stores.database import CommitUnknown, Cursor, Dialect, Parameters
from nemo_agents.gateway.stores.postgres_pipeline import Pipeline, Statement
from nemo_agents.secret import Secret

__all__ = ["POSTGRES", "Address", "Conflict", "PostgresDatabase", "translate"]

CONNECT_S: Final = 2
LOCK_S: Final = 3.0
STATEMENT_S: Final = 5.0
IDLE_S: Final = 2.0
"""How long a gateway may be silent within a transaction before the server ends it: others wait for its locks."""
ANSWER_S: Final = 6.0

# Conditions of the server or the way to it (postgresql.org/docs/current/errcodes-appendix.html): connection, resources,
# intervention, system, configuration and internal errors, authentication, a database that is gone, read only, a lock
# that was not to be had, a transaction that was ended for being idle.
_OUTAGE_CLASSES: Final = frozenset({"08", "28", "53", "57", "58", "F0", "XX"})
_OUTAGES: Final = frozenset({"25006", "25P03", "25P04", "3D000", "55P03"})
_CONFLICTS: Final = frozenset({"40001", "40P01"})
_UNPREPARED: Final = "26000"  # somebody has ended what was prepared: it is prepared anew
_SLOW: Final = frozenset({"57014", "25P03"})  # a statement that took too long, or what came before one
_LOST: Final = frozenset({"57P01", "57P02", "57P05", "25P03"})  # the server ended the connection, and may take another


class Conflict(Exception):  # noqa: N818 - a condition
    """What the transaction had read was changed by somebody else who did not take its lock; it was taken back."""


class NotConnected(psycopg.OperationalError):
    """No connection could be made."""


class Silence(psycopg.OperationalError):
    """The server did not answer in time, and the connection was given up."""


# --- addresses -------------------------------------------------------------------------------------------------


class Address:
    """Where the database is, and how to get in. Only `connect` sees the password."""

    def __init__(self, conninfo: str, password: Secret | None) -> None:
        parts = conninfo_to_dict(conninfo)
        told = parts.pop("password", None)
        self._password = password or (Secret(str(told)) if told else None)
        self._parts: dict[str, Any] = {
            "connect_timeout": CONNECT_S,
            "application_name": "nemo-agents",
            "keepalives": 1,
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": int(ANSWER_S * 1000),
            # Of several hosts, the one that can write: after a fail-over the first may lead to a standby. Readers
            # want it as well, since a standby may not have yet what its client has just written.
            "target_session_attrs": "read-write",
            **parts,
            "client_encoding": "UTF8",
        }
        self.label = f"{parts.get('dbname') or 'the default database'} at {parts.get('host') or 'the local server'}"
        if parts.get("port"):
            self.label += f":{parts['port']}"

    def hide(self, text: str) -> str:
        """Return an error's text in one line, without the password."""
        line = " ".join(text.split())
        password = self._password.reveal() if self._password is not None else ""
        return line.replace(password, "…") if password else line

    def connect(
        self,
        *,
        idle_s: float = IDLE_S,
        lock_s: float = LOCK_S,
        statement_s: float = STATEMENT_S,
        by_index: bool = False,
    ) -> psycopg.Connection:
        """Open a connection in which nothing takes for ever. Raises psycopg.Error, without the password in it.

        `by_index` is for one that never means to read a whole table: its plans are prepared, perhaps while a table is
        still empty, and are kept as it grows.
        """
        password = {} if self._password is None else {"password": self._password.reveal()}
        try:
            connection = _Connection.connect(make_conninfo(**self._parts, **password), autocommit=True)
        except psycopg.OperationalError as error:
            raise NotConnected(self.hide(str(error))) from None
        try:
            connection.adapters.register_dumper(int, Int8Dumper)
            connection.adapters.register_dumper(str, _Text)
            settings = {
                "default_transaction_isolation": "read committed",
                "statement_timeout": f"{statement_s * 1000:.0f}",
                "lock_timeout": f"{lock_s * 1000:.0f}",
                "idle_in_transaction_session_timeout": f"{idle_s * 1000:.0f}",
            }
            if by_index:
                connection.prepare_threshold = None  # else the driver ends all that was prepared with each ROLLBACK
                settings |= {"enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
            connection.patience_s = statement_s + (ANSWER_S - STATEMENT_S)
            chosen = ", ".join(f"set_config('{name}', %s, false)" for name in settings)
            connection.execute(f"SELECT {chosen}", list(settings.values()))
        except BaseException:
            connection.close()
            raise
        return connection


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait for ever."""

    patience_s: float = ANSWER_S

    def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:  # noqa: ARG002 - ours is shorter
        """Wait for an answer; when there is none in time, the connection is lost."""
        return super().wait(_impatient(gen, self), interval=self.patience_s)


def _impatient(gen: Any, connection: _Connection) -> Generator[Any, Any, Any]:
    """Pass everything between the driver and its waiting, but for the news that nothing came in time."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready:
                gen.close()
                connection.pgconn.finish()
                raise Silence(f"the server has not answered for {connection.patience_s:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class _Text(StrDumperUnknown):
    """Texts without NUL, which PostgreSQL does not store."""

    def dump(self, obj: Any) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


# --- statements ------------------------------------------------------------------------------------------------

_NAMED: Final = re.compile(r"(?<!:):([a-z_]+)")
_JSON_EACH: Final = re.compile(r"json_each\((\S+)\) (\w+)")
_INSERT: Final = re.compile(r"INSERT INTO (\w+)\(([^)]*)\) VALUES \([?, ]*\)(?P<conflict> ON CONFLICT .*)?$")
_UPDATE: Final = re.compile(r"UPDATE (\w+) SET (.*) WHERE (.*)$")
_ASSIGNMENT: Final = re.compile(r",\s*(?=\w+\s*=)")
_SHARED: Final = (" ON CONFLICT DO NOTHING", " WHERE messages.day < excluded.day")
_BIG_BYTES: Final = 1 << 18
Types = dict[tuple[str, str], str]


@lru_cache(maxsize=1024)
def translate(statement: str) -> str:
    """Return a statement of the shared SQL as PostgreSQL and its driver want it."""
    text = _JSON_EACH.sub(r"json_array_elements_text((\1)::json) \2(value)", statement.replace("%", "%%"))
    return _NAMED.sub(r"%(\1)s", text).replace("?", "%s")


class _Rows:
    """The rows that one statement is to write."""

    __slots__ = ("likely", "rows")

    def __init__(self) -> None:
        self.rows: list[Sequence[Any]] = []
        self.likely: int | None = None


class PostgresDatabase:
    """The `Database` protocol over one connection."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.pipeline = Pipeline(connection)
        self.before_sending: Callable[[bool], None] | None = None  # puts off what is put off elsewhere; is it the last?
        self._inserts: dict[str, list[Sequence[Any]]] = {}
        self._updates: dict[str, _Rows] = {}
        self._touched: set[tuple[Any, ...]] = set()
        self._bulk: dict[str, tuple[str, list[str]]] = {}
        self.types: Types = {}

    @property
    def in_transaction(self) -> bool:
        """Whether there is something to commit or to take back."""
        if self.connection.closed:
            return False
        return self.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def close(self) -> None:
        """Close the connection."""
        self.forget()
        self.connection.close()

    def forget(self) -> None:
        """Drop what was put off."""
        self._inserts.clear()
        self._updates.clear()
        self._touched.clear()

    def execute(self, statement: str, parameters: Parameters = (), /) -> Cursor:
        """Run a statement now, after all that were put off."""
        self.flush()
        return self.connection.execute(translate(statement), parameters)

    def executemany(self, statement: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Run a statement once for each row of parameters."""
        self.flush()
        cursor = self.connection.cursor()
        cursor.executemany(translate(statement), list(parameters))
        return cursor

    def later(self, statement: str, parameters: Sequence[Any], /) -> object:
        """Put a write off."""
        if statement.startswith("INSERT"):
            self._inserts.setdefault(statement, []).append(parameters)
        else:
            self._put_off(statement, parameters)
        return None

    def touch(self, statement: str, parameters: Sequence[Any], likely: int | None, /) -> int:
        """Put a write off that is known to change so many rows; where nothing is known, run it."""
        if likely is None:
            return self.execute(statement, parameters).rowcount
        rows = self._put_off(statement, parameters)
        rows.likely = (rows.likely or 0) + likely
        return likely

    def commit(self, *, lasting: bool = True) -> None:
        """Send what was put off, and commit. Raises CommitUnknown when nobody knows whether that was done.

        Unless it is to be `lasting`, everybody sees it and a server that crashes within a second may forget it: it is
        on the disk with the next commit that lasts, or by itself in well under a second (`synchronous_commit`).
        """
        self.flush(last=True, lasting=lasting)
        try:
            done = self.connection.execute("COMMIT", prepare=False).statusmessage
        except psycopg.Error as error:
            # Also where the connection is still there: a pooler between us and the server that loses it says so in an
            # error of its own, and a server that is told to stop may have committed before it obeyed.
            if self.connection.closed or _is_outage(error):
                raise CommitUnknown(str(error)) from error
            raise
        if done != "COMMIT":  # what PostgreSQL answers when there was an error before
            raise Conflict(f"the transaction was taken back: {done}")

    def flush(self, *, last: bool = False, lasting: bool = True) -> None:
        """Send what was put off.

        Rows that other transactions may insert as well are sent at the end alone, in the order of their keys: so no
        two transactions wait for each other. What is to change such a row comes behind it (see `before_sending`).
        """
        if self.before_sending is not None:
            self.before_sending(last)
        if not self._inserts and not self._updates:
            return
        inserts = {key: rows for key, rows in self._inserts.items() if last or not key.endswith(_SHARED)}
        updates = self._updates
        self._inserts = {key: rows for key, rows in self._inserts.items() if key not in inserts}
        self._updates = {}
        self._touched.clear()
        if not inserts and not updates:
            return
        sent: list[Statement] = [] if lasting else [("SET LOCAL synchronous_commit TO off", ())]
        checks: list[tuple[str, int, int]] = []
        for statement, rows in inserts.items():
            portions = _portions(sorted(rows, key=_first) if statement.endswith(_SHARED) else rows)
            sent += [self._of_all(statement, some) for some in portions]
        for statement, put_off in updates.items():
            if put_off.likely is not None:
                checks.append((statement, put_off.likely, len(sent)))
            sent.append(self._of_all(statement, put_off.rows))
        answers = self.pipeline.run(sent)
        for statement, likely, number in checks:
            if (changed := answers[number].count) != likely:
                raise Conflict(f"{changed} rows instead of {likely}: {statement}")

    def _put_off(self, statement: str, parameters: Sequence[Any]) -> _Rows:
        table, marks = _key_of(statement)
        key = (table, *parameters[-marks:])
        if key in self._touched:  # one statement for many rows changes each of them once
            self.flush()
        self._touched.add(key)
        rows = self._updates.get(statement)
        if rows is None:
            rows = self._updates[statement] = _Rows()
        rows.rows.append(parameters)
        return rows

    def _of_all(self, statement: str, rows: list[Sequence[Any]]) -> Statement:
        """Return one statement for all of these rows."""
        if len(rows) == 1:
            return translate(statement), rows[0]
        known = self._bulk.get(statement)
        if known is None:
            make = _insert_of_many if statement.startswith("INSERT") else _update_of_many
            known = self._bulk[statement] = make(statement, self.types)
        text, names = known
        return text, [_as_json(names, rows)]

    def learn(self) -> None:
        """Read the types of all columns, which writing many rows at once asks for."""
        found = self.connection.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = current_schema()"
        )
        self.types = {(table, column): kind for table, column, kind in found}


def _key_of(statement: str) -> tuple[str, int]:
    """Return the table that an UPDATE writes, and how many of its last parameters say which rows."""
    known = _keys.get(statement)
    if known is None:
        match = _UPDATE.match(statement)
        assert match is not None, statement
        known = _keys[statement] = match[1], match[3].count("?")
    return known


_keys: dict[str, tuple[str, int]] = {}


def _first(row: Sequence[Any]) -> Any:
    return row[0]


def _portions(rows: list[Sequence[Any]]) -> list[list[Sequence[Any]]]:
    """Return rows in their order, each big one for itself: it goes as it is, and not as text within a text."""
    if not any(isinstance(value, bytes) for value in rows[0]):
        return [rows]
    portions: list[list[Sequence[Any]]] = [[]]
    for row in rows:
        if any(isinstance(value, bytes) and len(value) > _BIG_BYTES for value in row):
            portions += [[row], []]
        else:
            portions[-1].append(row)
    return [some for some in portions if some]


def _insert_of_many(statement: str, types: Types) -> tuple[str, list[str]]:
    """Return an INSERT that takes its rows from one JSON text, and the names of their fields."""
    match = _INSERT.match(statement)
    assert match is not None, statement
    table, listed = match[1], match[2]
    fields = [types[table, name.strip()] for name in listed.split(",")]
    values = ", ".join(_field(number, kind) for number, kind in enumerate(fields))
    text = f"INSERT INTO {table}({listed}) SELECT {values} FROM {_recordset(fields)}{match['conflict'] or ''}"  # noqa: S608 - our own names
    return text, _names(fields)


def _update_of_many(statement: str, types: Types) -> tuple[str, list[str]]:
    """Return an UPDATE that takes what it asks for from one JSON text, and the names of its fields.

    A parameter has the type of the column that is set from it, or compared with it.
    """
    match = _UPDATE.match(statement)
    assert match is not None, statement
    table, fields = match[1], list[str]()

    def filled(part: str) -> str:
        name = part.strip().partition("=")[0].strip()
        while "?" in part:
            part = part.replace("?", _field(len(fields), types[table, name]), 1)
            fields.append(types[table, name])
        return part

    sets = ", ".join(filled(part) for part in _ASSIGNMENT.split(match[2]))
    where = " AND ".join(filled(part) for part in match[3].split(" AND "))
    return f"UPDATE {table} SET {sets} FROM {_recordset(fields)} WHERE {where}", _names(fields)  # noqa: S608 - our own names


def _field(number: int, kind: str) -> str:
    return f"decode(x.p{number}, 'base64')" if kind == "bytea" else f"x.p{number}"


def _names(fields: Sequence[str]) -> list[str]:
    return [f"p{number}" for number in range(len(fields))]


def _recordset(fields: Sequence[str]) -> str:
    columns = ", ".join(f"p{n} {'text' if kind == 'bytea' else kind}" for n, kind in enumerate(fields))
    return f"json_to_recordset(%s::json) AS x({columns})"


def _as_json(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    body = msgspec.json.encode([dict(zip(names, row, strict=True)) for row in rows])
    if b"\\u0000" in body:  # a NUL, or the text of one
        clean = [[v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in row] for row in rows]
        body = msgspec.json.encode([dict(zip(names, row, strict=True)) for row in clean])
    return body.decode()


# --- errors ----------------------------------------------------------------------------------------------------

_UNIQUE: Final = re.compile(r"Key \(([^)]*)\)")


def _is_outage(error: BaseException) -> bool:
    if not isinstance(error, psycopg.Error):
        return isinstance(error, OSError)
    state = error.sqlstate
    if state is None:  # not the server's words: the connection is the matter
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state in _OUTAGES or (state[:2] in _OUTAGE_CLASSES and state not in _CONFLICTS)


def _may_retry(error: BaseException) -> bool:
    if isinstance(error, Conflict):
        return True
    if isinstance(error, NotConnected) or not isinstance(error, psycopg.Error):
        return False
    return error.sqlstate in _CONFLICTS or error.sqlstate == _UNPREPARED or error.sqlstate in _LOST or _was_cut(error)


def _was_cut(error: psycopg.Error) -> bool:
    lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and error.sqlstate is None
    return lost and not isinstance(error, Silence)


def _refused(error: Exception) -> str | None:
    if not isinstance(error, psycopg.IntegrityError | psycopg.DataError | psycopg.errors.RaiseException):
        return None
    found = _UNIQUE.search(error.diag.message_detail or "")
    if found is None:
        return " ".join(str(error).split())
    columns = ", ".join(f"{error.diag.table_name}.{name}" for name in found[1].split(", "))
    return f"{error.diag.message_primary} ({columns})"


def _too_slow(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate in _SLOW


POSTGRES: Final = Dialect(
    errors=(psycopg.Error, Conflict), is_outage=_is_outage, may_retry=_may_retry, too_slow=_too_slow, refused=_refused
)
