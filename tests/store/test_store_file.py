"""The file: who may open it, what is refused, how it is created and upgraded."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from store_values import a_call, an_attempt

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.stores import migrate
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.gateway.stores.sqlite import SqliteStore


async def refused(path) -> str:
    with pytest.raises(SettingsError) as caught:
        await SqliteStore(path).start()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


async def opened(path) -> SqliteStore:
    store = SqliteStore(path)
    await store.start()
    return store


async def opened_and_closed(path) -> None:
    await (await opened(path)).close()


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_files_are_for_their_owner_only(tmp_path):
    path = tmp_path / "home" / "nemo.db"
    store = await opened(path)
    await store.open_call(a_call(), an_attempt())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    await store.close()
    assert set(files) >= {"nemo.db", "nemo.db-wal", "nemo.db.lock"}
    assert set(files.values()) == {0o600}


async def test_a_second_gateway_is_refused_with_the_pid_of_the_first(tmp_path):
    path = tmp_path / "nemo.db"
    first = await opened(path)
    assert f"process {os.getpid()}" in await refused(path)
    await first.open_call(a_call(), an_attempt())  # the first is none the worse
    await first.close()
    await (await opened(path)).close()


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "nemo.db"
    await (await opened(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    before = digest(path)
    message = await refused(path)
    assert "was written by a newer version" in message
    assert "Upgrade nemo-agents" in message
    assert digest(path) == before


@pytest.mark.parametrize("content", [b"hello, I am a text file. " * 400, b"SQLite format 3\x00" + b"\xff" * 8000])
async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "nemo.db"
    path.write_bytes(content)
    await refused(path)
    assert path.read_bytes() == content


async def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "nemo.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE photos (id INTEGER)")
    db.close()
    before = digest(path)
    assert "something else" in await refused(path)
    assert digest(path) == before


async def test_a_damaged_database_is_refused(tmp_path):
    path = tmp_path / "nemo.db"
    store = await opened(path)
    for _ in range(200):
        await store.open_call(a_call(), an_attempt())
    await store.close()
    content = bytearray(path.read_bytes())
    content[4096 * 4 : 4096 * 30] = b"\xa5" * (4096 * 26)
    path.write_bytes(content)
    assert "damaged" in await refused(path)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match="cannot be made"):
        await SqliteStore(tmp_path / "file" / "home" / "nemo.db").start()


READ_ONLY = """
import asyncio, os, sys
from nemo_agents.errors import SettingsError
from nemo_agents.gateway.stores.sqlite import SqliteStore
if os.geteuid() == 0:
    os.seteuid(65534)  # root writes whatever the mode says
try:
    asyncio.run(SqliteStore(sys.argv[1]).start())
except SettingsError as error:
    print(error)
else:
    sys.exit("it opened")
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_read_only_file_or_folder_is_refused(tmp_path, what):
    home = tmp_path / "home"
    path = home / "nemo.db"
    asyncio.run(opened_and_closed(path))
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):  # other users may pass through
            folder.chmod(folder.stat().st_mode | 0o011)
    if os.geteuid() == 0:
        for file in (home, *home.iterdir()):
            os.chown(file, 65534, -1)
    if what == "file":
        path.chmod(0o400)
    else:
        (home / "nemo.db.lock").unlink()
        home.chmod(0o555)
    run = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    home.chmod(0o700)
    assert run.returncode == 0, run.stderr
    assert re.search(r"nemo\.db\S* cannot be written: Permission denied", run.stdout), run.stdout


def test_migrating_twice_changes_nothing_and_imports_nothing(tmp_path):
    path = tmp_path / "nemo.db"
    assert migrate.bring_up_to_date(path)
    before = digest(path)
    assert not migrate.bring_up_to_date(path)
    assert digest(path) == before
    code = (
        "import sys; from pathlib import Path; from nemo_agents.gateway.stores import migrate, sqlite;"
        "migrate.bring_up_to_date(Path(sys.argv[1]));"
        "sys.exit(any(name in sys.modules for name in ('alembic', 'sqlalchemy')))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert run.returncode == 0


def test_the_migrations_make_exactly_the_tables_of_the_schema(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from nemo_agents.gateway.stores.schema import metadata

    path, plain = tmp_path / "nemo.db", tmp_path / "plain.db"
    migrate.upgrade(path)
    engine = migrate.engine_for(path)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        script = ScriptDirectory.from_config(migrate.alembic_config(connection))
        assert script.get_heads() == [migrate.HEAD]
        known = tuple(reversed([revision.revision for revision in script.walk_revisions()]))
        assert known == migrate.REVISIONS
    with migrate.engine_for(plain).begin() as connection:
        metadata.create_all(connection)

    # Alembic compares no STRICT, WITHOUT ROWID or CHECK; the text of the tables does.
    def tables(file):
        db = sqlite3.connect(file)
        rows = db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL")
        found = {name: sorted(re.split(r",\s*|\s+", sql)) for name, sql in rows if name != "alembic_version"}
        db.close()
        return found

    assert tables(path) == tables(plain)


async def test_a_migration_that_is_interrupted_leaves_an_empty_file(tmp_path, monkeypatch):
    path = tmp_path / "nemo.db"
    from alembic import op

    real, calls = op.create_table, []

    def breaks(name, *rest, **more):
        calls.append(name)
        if len(calls) == 5:
            raise OSError("the machine went away")
        return real(name, *rest, **more)

    monkeypatch.setattr(op, "create_table", breaks)
    with pytest.raises(OSError, match="went away"):
        migrate.upgrade(path)
    assert len(calls) == 5
    monkeypatch.undo()
    assert migrate.bring_up_to_date(path)
    await (await opened(path)).close()


def test_a_new_file_is_what_the_migrations_make_of_an_empty_one(tmp_path):
    migrated, new = tmp_path / "migrated.db", tmp_path / "new.db"
    migrate.upgrade(migrated)
    wanted = migrate.head_sql(migrated)
    path = Path(migrate.__file__).parent / "migrations" / "head.sql"
    assert path.read_text(encoding="utf-8") == wanted, f"write {path} anew with what migrate.head_sql returns"
    assert migrate.bring_up_to_date(new)
    assert not migrate.bring_up_to_date(new)

    def everything(file):
        with closing(sqlite3.connect(file)) as db:
            tables = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
            return tables, db.execute("SELECT * FROM alembic_version").fetchall()

    assert everything(new) == everything(migrated)


async def test_a_new_file_whose_making_is_interrupted_stays_empty(tmp_path, monkeypatch):
    path, broken = tmp_path / "nemo.db", tmp_path / "head.sql"
    broken.write_text("CREATE TABLE entries (id INTEGER);\nCREATE TABLE and the machine went away;\n")
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "_HEAD_SQL", broken)
        with pytest.raises(SettingsError, match="syntax error"):
            migrate.bring_up_to_date(path)
    assert migrate.bring_up_to_date(path)
    await (await opened(path)).close()


async def test_a_closed_store_says_so(tmp_path):
    store = await opened(tmp_path / "nemo.db")
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.open_call(a_call(), an_attempt())
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.runs(LogFilter(), before=None, limit=1)
