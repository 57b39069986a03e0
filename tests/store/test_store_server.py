"""PostgreSQL at the start and on bad days: what is refused, what is answered, and what comes back by itself."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import time
import traceback
import uuid

import psycopg
import pytest
from store_values import Clock, a_call, an_attempt, attempt_end, call_end, refusal, role_scope

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.stores import migrate
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.postgres_connection import Address
from nemo_agents.policy.ledger import Held
from nemo_agents.secret import Secret

GUARD_S = 30
PASSWORD = "correct-horse-battery"


async def refused(conninfo: str, password: Secret | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        await PostgresStore(conninfo, password=password).start()
    message = str(caught.value)
    assert "\n" not in message
    assert PASSWORD not in message
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    return message


async def test_two_that_start_at_the_same_moment_on_an_empty_database_both_come_up(postgres_url):
    stores = [PostgresStore(postgres_url, clock=Clock()) for _ in range(3)]
    await asyncio.gather(*(store.start() for store in stores))
    for store in stores:
        assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
        assert await store.verify_ledger() == []
        await store.close()
    again = PostgresStore(postgres_url, clock=Clock())
    await again.start()
    assert len((await again.calls(LogFilter(), before=None, limit=9)).calls) == 3
    await again.close()


def test_the_migrations_make_the_tables_of_the_schema(database):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from nemo_agents.gateway.stores.schema import metadata

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        collations = connection.exec_driver_sql(
            "SELECT DISTINCT collation_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND data_type = 'text'"
        ).fetchall()
        assert [tuple(row) for row in collations] == [("C",)]
    engine.dispose()


async def test_a_database_of_something_else_is_refused_and_left_alone(postgres_url):
    with psycopg.connect(postgres_url) as admin:
        admin.execute("CREATE TABLE photos (id int)")
    assert "something else" in await refused(postgres_url)
    with psycopg.connect(postgres_url) as admin:
        tables = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("photos",)]


async def test_a_newer_version_is_refused(postgres_url):
    store = PostgresStore(postgres_url)
    await store.start()
    await store.close()
    with psycopg.connect(postgres_url) as admin:
        admin.execute("UPDATE alembic_version SET version_num = '9999'")
    message = await refused(postgres_url)
    assert "newer version" in message
    assert f"this version knows {migrate.HEAD}" in message


async def test_a_server_that_is_not_there_is_refused_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refused" in await refused(f"postgresql://gateway:{PASSWORD}@127.0.0.1:{port}/nemo")


async def test_a_wrong_password_names_the_variable_for_the_right_one():
    """The server is ours, speaking just enough of the protocol (PostgreSQL's "Message Formats") to refuse."""

    async def serve(reader, writer):
        while True:
            size, kind = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(size - 8)
            if kind == 3 << 16:  # the start-up message; what comes before it asks for encryption
                break
            writer.write(b"N")
        told = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "gateway"\0\0'
        writer.write(b"E" + struct.pack("!I", len(told) + 4) + told)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        message = await refused(f"postgresql://gateway@127.0.0.1:{port}/nemo", Secret(PASSWORD))
    assert "password authentication failed" in message
    assert "NEMO_DATABASE_PASSWORD" in message


@pytest.mark.parametrize(
    "conninfo", [f"host=127.0.0.1 password={PASSWORD} colour=red", f"postgresql://u:{PASSWORD}@[::1/x", "what is this"]
)
def test_an_address_that_makes_no_sense_is_refused_without_being_repeated(conninfo):
    with pytest.raises(SettingsError) as caught:
        PostgresStore(conninfo)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


async def test_a_role_that_may_not_make_tables_is_refused(postgres_server, postgres_url):
    user = f"user_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    address = postgres_url.replace("postgres@", f"{user}:{PASSWORD}@")
    assert "permission denied" in await refused(address)
    assert PASSWORD not in repr(vars(PostgresStore(address)))
    assert "does not exist" in await refused(f"{postgres_url}x", Secret(PASSWORD))
    assert "does not exist" in await refused(postgres_url.replace("postgres@", "nobody@"), Secret(PASSWORD))


async def test_a_database_in_another_encoding_is_refused(postgres_server):
    name = f"latin_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    assert "encoding LATIN1" in await refused(f"{postgres_server.url.rpartition('/')[0]}/{name}")
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_gateway_needs_no_driver_until_it_is_configured():
    code = (
        "import sys; import nemo_agents.gateway.server, nemo_agents.gateway.stores.sqlite;"
        "sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_connections_that_the_server_has_ended_are_made_anew_without_a_word(database, clock):
    """As after a restart while nobody called: nothing was lost, so nobody needs to hear of it."""
    store = PostgresStore(database, clock=clock)
    await store.start()
    await store.open_call(a_call(), an_attempt(1, role_scope()))
    async with store.exclusive():
        await store.grants()
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nemo-agents'")
    assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
    assert await store.grants() == []
    async with store.exclusive():
        pass
    await store.close()


async def test_while_the_server_is_down_everybody_hears_at_once_and_records_wait(postgres_server, database, clock):
    store = PostgresStore(database, clock=clock)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope())
    await store.open_call(call, attempt)
    postgres_server.kill()
    try:
        store.close_call(call_end(call), attempt_end(attempt, amount=60))
        late = a_call()
        store.log_refusal(late, refusal(late))
        for asked in (
            lambda: store.open_call(a_call(), an_attempt(1, role_scope())),
            store.flush,
            store.grants,
            lambda: store.changes(0),
            store.now_us,
            lambda: store.put_document("a", b""),
            lambda: store.exclusive().__aenter__(),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable) as told:
                await asked()
            assert time.monotonic() - began < 5
            assert "\n" not in str(told.value)
    finally:
        postgres_server.restart()
    began = time.monotonic()
    async with asyncio.timeout(GUARD_S):
        while True:
            try:
                await store.flush()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)  # as a probe does
    assert time.monotonic() - began < 5
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (60, 0)
    assert (await store.call(late.request_id)).state == "refused"
    async with store.exclusive():
        assert await store.verify_ledger() == []
    await store.close()


async def test_a_server_that_stands_still_is_an_outage_that_ends_by_itself(postgres_server, database, clock):
    store = PostgresStore(database, clock=clock)
    await store.start()
    call, attempt = a_call(), an_attempt(100, role_scope(1000))
    await store.open_call(call, attempt)
    postgres_server.stop()
    try:
        store.close_call(call_end(call), attempt_end(attempt, amount=60))
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(StoreUnavailable, match=r"has not answered|timeout"):
                await store.open_call(a_call(), an_attempt(1, role_scope(1000)))
            with pytest.raises(StoreUnavailable):
                await store.changes(0)
    finally:
        postgres_server.cont()
    async with asyncio.timeout(GUARD_S):
        while True:
            try:
                await store.flush()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)  # as a probe does
    (balance,) = await store.balances([role_scope()])
    assert (balance.posted_nanos, balance.held_nanos) == (60, 0)
    assert await store.verify_ledger() == []
    await store.close()


async def test_a_database_that_became_read_only_is_an_outage(database, clock):
    """As after a fail-over, when the old address leads to a standby."""
    store = PostgresStore(database, clock=clock)
    await store.start()
    name = database.rpartition("/")[2]
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nemo-agents'"
            )
            for asked in (store.open_call(a_call(), an_attempt(1, role_scope())), store.flush()):
                with pytest.raises(StoreUnavailable, match="read-only"):
                    await asked
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.events(after=0, limit=1)  # a standby may not have yet what was just written
        finally:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
    await store.close()


async def test_of_several_hosts_the_one_that_can_write_is_found(postgres_server, database, clock):
    """Its first is a standby, as after a fail-over: here, one that is read only to whoever comes as another role."""
    standby = f"standby_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {standby} LOGIN SUPERUSER")
        admin.execute(f"ALTER ROLE {standby} SET default_transaction_read_only = on")
    first = database.replace("postgres@", f"{standby}@")
    try:
        with pytest.raises(psycopg.OperationalError, match="read-only"):
            Address(first, None).connect()
        Address(f"{first}?target_session_attrs=any", None).connect().close()  # who wants it can have it
        dead = _port_of_nobody()
        several = database.replace("127.0.0.1:", f"127.0.0.1:{dead},127.0.0.1:")
        store = PostgresStore(several, clock=clock)
        await store.start()
        assert isinstance(await store.open_call(a_call(), an_attempt(1, role_scope())), Held)
        assert await store.grants() == []
        await store.close()
    finally:
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute(f"DROP ROLE {standby}")


def _port_of_nobody() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_errors_of_the_driver_are_told_apart():
    from nemo_agents.gateway.stores.postgres_connection import POSTGRES, Conflict

    outages = ("08006", "57P01", "53300", "53100", "25006", "55P03", "57014", "XX000", "28P01", "3D000", "25P03")
    conflicts = ("40001", "40P01")
    of_the_statement = ("42P01", "42601", "22003", "23505", "42501")
    for state in (*outages, *conflicts, *of_the_statement):
        error = psycopg.errors.lookup(state)("x")
        assert POSTGRES.is_outage(error) == (state in outages), state
    for state in conflicts:
        assert POSTGRES.may_retry(psycopg.errors.lookup(state)("x"))
    assert not POSTGRES.may_retry(psycopg.errors.lookup("55P03")("x"))
    assert POSTGRES.may_retry(Conflict("x"))
    assert POSTGRES.is_outage(psycopg.OperationalError("the connection is lost"))
    assert not POSTGRES.is_outage(ValueError("x"))
