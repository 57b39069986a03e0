"""Many statements in one round trip to PostgreSQL: their answers, their failures, and how they find their rows."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from store_values import a_call, an_attempt, attempt_end, call_end, fleet_scope, refusal, role_scope

from nemo_agents.gateway.stores import postgres_books
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.postgres_connection import Address, PostgresDatabase
from nemo_agents.gateway.stores.postgres_pipeline import Pipeline

GUARD_S = 20
"""Ends a test that would wait for ever."""
KEPT_BY_KEY = [postgres_books._CALLS, postgres_books._RUNS, postgres_books._STEPS, postgres_books._BALANCES]


@pytest.fixture
def connection(database):
    with Address(database, None).connect() as connection:
        connection.execute("CREATE TEMPORARY TABLE kept(n bigint PRIMARY KEY, said text, body bytea)")
        yield connection


@pytest.fixture
def pipeline(connection):
    return Pipeline(connection)


def test_each_statement_has_its_own_answer(pipeline):
    insert = "INSERT INTO kept(n, said, body) VALUES (%s, %s, %s)"
    answers = pipeline.run(
        [
            (insert, (1, "one", b"\x00\xff")),
            (insert, (2, None, None)),
            ("UPDATE kept SET said = 'é%%' WHERE n > %s", (1,)),
            ("SELECT n, said, body FROM kept WHERE n = ANY(%s) ORDER BY n", ([1, 2, 3],)),
            ("DELETE FROM kept WHERE n = %s", (9,)),
        ]
    )
    assert [answer.count for answer in answers] == [1, 1, 1, 2, 0]
    assert answers[3].rows == [(1, "one", b"\x00\xff"), (2, "é%", None)]
    assert answers[4].rows == []


def test_a_statement_is_prepared_once_for_all_values(pipeline, connection):
    for value in (1, None, 3):
        assert pipeline.run([("SELECT %s::bigint", (value,))])[0].rows == [(value,)]
    assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (1,)


def test_what_comes_after_a_failure_is_not_done_and_the_connection_goes_on(pipeline, connection):
    """A statement that was to be prepared behind the failure is prepared when it comes again."""
    insert, select = "INSERT INTO kept(n) VALUES (%s)", "SELECT count(*) FROM kept WHERE n < %s"
    with pytest.raises(psycopg.errors.UniqueViolation, match="kept_pkey"):
        pipeline.run([("BEGIN", ()), (insert, (1,)), (insert, (1,)), (select, (9,)), ("COMMIT", ())])
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
    connection.execute("ROLLBACK")
    assert pipeline.run([(select, (9,)), (insert, (1,)), (select, (9,))])[2].rows == [(1,)]


def test_more_than_the_way_takes_at_once_goes_both_ways(pipeline):
    """Neither side reads all before the other has sent all: they would wait for each other for ever."""
    big = "x" * 3_000_000
    answers = pipeline.run([("SELECT %s::text", (f"{number}{big}",)) for number in range(5)])
    assert [answer.rows[0][0][:2] for answer in answers] == ["0x", "1x", "2x", "3x", "4x"]
    assert {len(answer.rows[0][0]) for answer in answers} == {len(big) + 1}


def test_a_server_that_ends_the_connection_is_heard_with_its_reason(pipeline):
    with pytest.raises(psycopg.errors.AdminShutdown):
        pipeline.run([("SELECT pg_terminate_backend(pg_backend_pid())", ()), ("SELECT 1", ())])
    with pytest.raises(psycopg.OperationalError):
        pipeline.run([("SELECT 1", ())])


def test_a_connection_that_is_closed_behind_our_back_is_an_outage(pipeline, connection, database):
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        while other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [connection.info.backend_pid]).fetchone():
            pass  # it is told, and takes a moment to go
    with pytest.raises(psycopg.OperationalError):
        pipeline.run([("SELECT 1", ())])


@pytest.fixture
async def shared(database, clock):
    """A store on PostgreSQL, whose books balance after every test."""
    store = PostgresStore(database, clock=clock)
    await store.start()
    yield store
    assert await store.verify_ledger() == []
    await store.close()


async def test_what_the_writer_reads_is_found_by_key_whatever_the_server_knows_of_its_tables(shared):
    """Plans are made once, here of tables without statistics, and none reads a table, a fleet or all open holds."""
    call, attempt = a_call(run_id="run-one", step="s"), an_attempt(100, role_scope(), fleet_scope())
    await shared.open_call(call, attempt)
    shared.close_call(call_end(call), attempt_end(attempt, amount=60))
    await shared.flush()

    def plans(books) -> list[str]:
        database: PostgresDatabase = books.db
        found = []
        for statement in KEPT_BY_KEY:
            name = database.pipeline._prepared[statement].decode()
            values = ", ".join(["'{a}'"] * statement.count("%s"))
            found.append("\n".join(line for (line,) in database.execute(f"EXPLAIN EXECUTE {name}({values})")))
        return found

    found = await shared._writer.do(plans)
    assert len(found) == len(KEPT_BY_KEY)
    for plan in found:
        assert "Seq Scan" not in plan
        assert "ix_runs_fleet" not in plan
        assert "ix_attempts_open" not in plan


async def settings_at(store: PostgresStore) -> list[str]:
    """How each call that was logged was to be committed, in order."""
    await store.flush()
    rows = await store._readers.read(lambda db: db.execute("SELECT setting FROM noted ORDER BY n").fetchall())
    return [setting for (setting,) in rows]


async def alone(store: PostgresStore) -> None:
    """Have the refusals that wait written in a batch of nothing else."""
    store._writer._hand_over()
    async with asyncio.timeout(GUARD_S):
        while store._writer._record_room.taken:  # noqa: ASYNC110 - nobody is told, other than in the next turns
            await asyncio.sleep(0)


@pytest.fixture
def noted(shared, database):
    """Notes `synchronous_commit` with every row of `calls` that is written."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE noted(n bigserial, setting text)")
        admin.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO noted(setting) VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$"
        )
        admin.execute("CREATE TRIGGER note AFTER INSERT OR UPDATE ON calls FOR EACH ROW EXECUTE FUNCTION note()")
    yield
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("DROP TRIGGER note ON calls")
        admin.execute("DROP FUNCTION note()")
        admin.execute("DROP TABLE noted")


@pytest.mark.usefixtures("noted")
async def test_the_disk_is_waited_for_where_there_is_money_and_not_for_refusals_alone(shared):
    for _ in range(3):
        refused = a_call()
        shared.log_refusal(refused, refusal(refused))
    await alone(shared)
    assert await settings_at(shared) == ["off"] * 3
    await shared.open_call(a_call(), an_attempt(1, role_scope()))
    assert await settings_at(shared) == ["off"] * 3 + ["on"]


@pytest.mark.usefixtures("noted")
async def test_a_refusal_that_takes_a_hold_back_is_on_the_disk_when_it_is_committed(shared):
    call = a_call()
    await shared.open_call(call, an_attempt(100, role_scope()))
    shared.log_refusal(call, refusal(call))
    await alone(shared)
    assert set(await settings_at(shared)) == {"on"}
    (balance,) = await shared.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (0, 0)


async def test_after_a_transaction_that_was_taken_back_everything_is_still_prepared(shared):
    async def prepared() -> list[tuple[str]]:
        names = "SELECT name FROM pg_prepared_statements WHERE name LIKE 'nemo%' ORDER BY name"
        return await shared._writer.do(lambda books: books.db.execute(names).fetchall())

    await shared.open_call(a_call("one"), an_attempt(1, role_scope()))
    for _ in range(9):  # so often that the driver would prepare it as well
        before = await prepared()
    with pytest.raises(ValueError, match="request_id"):
        await shared.open_call(a_call("one"), an_attempt(1, role_scope()))
    assert set(before) <= set(await prepared())


async def test_what_somebody_has_ended_is_prepared_anew(shared):
    await shared.open_call(a_call(), an_attempt(1, role_scope()))
    await shared._writer.do(lambda books: books.db.execute("DEALLOCATE ALL"))
    await shared.open_call(a_call(), an_attempt(1, role_scope()))
    (balance,) = await shared.balances([role_scope()])
    assert balance.held_nanos == 2


def test_a_value_that_cannot_be_sent_harms_nobody(pipeline):
    with pytest.raises(UnicodeEncodeError):
        pipeline.run([("SELECT %s::bigint", (1,)), ("SELECT %s::text", ("\ud800",))])
    assert pipeline.run([("SELECT %s::text", ("whole",))])[0].rows == [("whole",)]
