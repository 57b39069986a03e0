"""A database of version 0.1 is brought up to date, with its keys, its money and its history."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from store_values import T0, Clock, a_call, an_attempt, fleet_scope, role_scope

from nemo_agents.gateway.stores import migrate
from nemo_agents.gateway.stores.base import FleetRecord, LogFilter
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.budgets import BudgetRule, LoopRule
from nemo_agents.policy.ledger import Held

OLD = Path(__file__).with_name("v0001.sql")  # what version 0.1 wrote: grants, fleets, calls of every outcome, one open


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "nemo.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(OLD.read_text(encoding="utf-8"))
    return path


async def test_old_budgets_become_the_only_rule_and_everything_else_stays(old_file):
    assert migrate.bring_up_to_date(old_file)
    assert not migrate.bring_up_to_date(old_file)
    store = SqliteStore(old_file, clock=Clock())
    await store.start()
    writer, critic, bare = await store.grants()
    day = BudgetRule(amount_nanos=20_000_000_000, duration="1d", alert_at=(0.8,))
    assert writer.budgets == (day,)
    assert critic.budgets == (BudgetRule(amount_nanos=5_000_000_000),)
    assert bare.budgets == ()
    for grant in (writer, critic, bare):
        assert (grant.loop, grant.model_limits, grant.shadow, grant.request_nanos) == (LoopRule(), (), (), None)
    assert (writer.rpm, writer.tpm, writer.max_parallel, writer.tools) == (30, 1000, 4, ("web_search",))
    assert (writer.metadata, writer.secrets[0].digest, writer.last_used_us) == ({"team": "x"}, b"\x01\x02", T0)
    assert bare.blocked
    month = BudgetRule(amount_nanos=170_000_000_000, duration="1mo", alert_at=(0.5,))
    crew = FleetRecord(
        fleet="crew",
        budgets=(month,),
        rpm=100,
        models=("gpt-4o-mini",),
        metadata={"owner": "y"},
        created_us=T0,
        updated_us=T0,
    )
    assert await store.fleets() == [crew, FleetRecord(fleet="other", created_us=T0, updated_us=T0)]
    await store.close()


async def test_old_money_and_history_count_on(old_file):
    store = SqliteStore(old_file, clock=Clock())
    await store.start()
    role, fleet = await store.balances([role_scope(), fleet_scope()])
    assert (role.posted_nanos, role.held_nanos) == (40 + 100 + 70 + 55, 0)  # what was open is charged at its hold
    assert (fleet.posted_nanos, fleet.held_nanos) == (265, 0)
    assert await store.verify_ledger() == []
    page = await store.calls(LogFilter(), before=None, limit=99)
    assert sorted(call.state for call in page.calls) == ["abandoned", "ok", "ok", "ok", "ok", "refused"]
    assert {tuple(call.shadow) for call in page.calls} == {()}
    contents = await store.contents([call.request_id for call in page.calls])
    assert [(c.prompt, c.answer) for c in contents.values()] == [(["hi"], "ho")] * 4
    held = await store.open_call(a_call(), an_attempt(10, role_scope(275)))
    assert isinstance(held, Held)
    assert held.balances[0].left_nanos == 0
    await store.close()


async def test_an_upgrade_that_is_interrupted_leaves_the_file_as_it_was(old_file, monkeypatch):
    from alembic import op

    def breaks(*_, **__):
        raise OSError("the machine went away")

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_table", breaks)  # after the budgets were converted
        with pytest.raises(OSError, match="went away"):
            migrate.bring_up_to_date(old_file)
    with closing(sqlite3.connect(old_file)) as db:
        assert db.execute("SELECT budget_nanos FROM grants WHERE grant_id = 'g1'").fetchone() == (20_000_000_000,)
        assert db.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
    assert migrate.bring_up_to_date(old_file)
