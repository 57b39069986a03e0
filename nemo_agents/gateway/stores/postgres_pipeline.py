"""Several statements in one round trip: sent in one go, and waited for once.

The driver has pipelines of its own, in which it sends each statement by itself and looks for answers behind each. On a
busy machine that is what a transaction costs most: a dozen times the server is woken for one statement, and a dozen
times another thread may keep this one from going on. So this speaks to libpq through the driver's module for that,
`psycopg.pq` (postgresql.org/docs/current/libpq-pipeline-mode.html). After an error the server skips the rest.

Every statement is prepared when it comes for the first time. Parameters travel as text, bytes as they are, and have
the types that the server finds for them, so that one prepared statement does for all values.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Final

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

__all__ = ["Answer", "Pipeline", "Statement"]

Statement = tuple[str, Sequence[Any]]
"""What to run, with `%s` for each parameter, and the parameters."""
_DONE: Final = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server answers to one statement."""

    rows: list[tuple[Any, ...]]
    count: int  # of the rows that were returned or changed


class Pipeline:
    """Runs statements on one connection, which is the caller's alone."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._prepared: dict[str, bytes] = {}
        self._numbers = count(1)

    def run(self, statements: Sequence[Statement]) -> list[Answer]:
        """Run statements in one round trip, and return the answer to each.

        Raises psycopg.Error for the first that fails.
        """
        dumped = [(text, *self._dumped(parameters)) for text, parameters in statements]  # may fail: before any is sent
        pgconn = self._connection.pgconn
        asked: list[str | None] = []  # for each answer to come: the statement that is prepared by it, None for a run
        pgconn.enter_pipeline_mode()
        try:
            names: dict[str, bytes] = {}
            for text, values, formats in dumped:
                name = self._prepared.get(text) or names.get(text)
                if name is None:
                    name = names[text] = b"nemo_%d" % next(self._numbers)
                    pgconn.send_prepare(name, _numbered(text).encode())
                    asked.append(text)
                pgconn.send_query_prepared(name, values, formats)
                asked.append(None)
            pgconn.pipeline_sync()
            results = self._connection.wait(_talk(pgconn))
        finally:
            if pgconn.status == ConnStatus.OK:
                pgconn.exit_pipeline_mode()
        answers: list[Answer] = []
        for prepared, result in zip(asked, results, strict=True):
            if result.status not in _DONE:
                error = _error(result)
                if isinstance(error, psycopg.errors.InvalidSqlStatementName):
                    self._prepared.clear()  # somebody has ended all of them
                raise error
            if prepared is None:
                answers.append(self._answer(result))
            else:
                self._prepared[prepared] = names[prepared]
        return answers

    def _dumped(self, parameters: Sequence[Any]) -> tuple[Sequence[Any], list[Format]]:
        formats = [PyFormat.BINARY if isinstance(each, bytes) else PyFormat.TEXT for each in parameters]
        values = Transformer(self._connection).dump_sequence(parameters, formats)
        return values, [PyFormat.as_pq(each) for each in formats]

    def _answer(self, result: PGresult) -> Answer:
        if not result.ntuples:
            return Answer(rows=[], count=result.command_tuples or 0)
        found = Transformer(self._connection)
        found.set_pgresult(result)
        return Answer(rows=found.load_rows(0, result.ntuples, tuple), count=result.ntuples)


def _error(result: PGresult) -> psycopg.Error:
    """Return what a failure means: without a state it is not the server's word, and the connection is the matter."""
    if result.error_field(DiagnosticField.SQLSTATE) is None:
        return psycopg.OperationalError(result.get_error_message())
    return psycopg.errors.error_from_result(result)


@lru_cache(maxsize=1024)
def _numbered(text: str) -> str:
    first, *rest = text.replace("%%", "%").split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


def _talk(pgconn: PGconn) -> Generator[Wait, Ready | int, list[PGresult]]:
    """Send what is to be sent, and return every result up to the end of the pipeline, or up to a failure.

    Raises psycopg.OperationalError when the connection is lost, unless the server has said why.
    """
    results: list[PGresult] = []
    try:
        while pgconn.flush():  # not all of it fits into the socket; the server may want to be listened to first
            if (yield Wait.RW) & Ready.R:
                pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                yield Wait.R
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
                return results
            if result is not None:
                results.append(result)
            elif pgconn.status != ConnStatus.OK:
                raise psycopg.OperationalError("the connection was lost")  # noqa: TRY301 - as `consume_input` would
    except psycopg.OperationalError:
        if any(result.status == ExecStatus.FATAL_ERROR for result in results):
            return results
        raise
