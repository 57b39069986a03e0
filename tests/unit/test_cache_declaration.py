"""`cache="10m"` of a role: what may be written, and its way to the key and back."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from nemo_agents.admin.wire import KeyRow
from nemo_agents.errors import DeclarationError
from nemo_agents.policy.rulewire import RuleFault, cache_fact, read_cache_ttl_s
from nemo_agents.provision.load import load_fleet
from nemo_agents.provision.plan import plan
from nemo_agents.provision.render import plan_from_json, plan_to_json, plan_to_text
from nemo_agents.provision.snapshot import Snapshot
from nemo_agents.provision.specs import applied_mark, key_spec, live_key_spec, merged_metadata
from nemo_agents.roles import AgentRole, FleetDeclaration

GATEWAY = "http://127.0.0.1:4141"


def crew(**role):
    return FleetDeclaration("crew", roles=[AgentRole("writer", models=["gpt-4o"], **role)])


def row_of(fleet):
    spec = key_spec(fleet, fleet.role("writer"))
    row = KeyRow(token="id-writer", key_name="sk-…", metadata=merged_metadata({}, spec), **spec.wire())
    return msgspec.convert(msgspec.to_builtins(row), KeyRow)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(None, None), ("off", None), (1, 1), (600, 600), ("90s", 90), ("10m", 600), ("24h", 86_400), ("30d", 2_592_000)],
)
def test_a_time_or_seconds(written, seconds):
    assert AgentRole("writer", models=["x"], cache=written).cache_ttl_s == seconds
    assert AgentRole("writer", models=["x"], cache=written) == AgentRole("writer", models=["x"], cache=seconds)


@pytest.mark.parametrize("written", [0, -1, True, 1.5, "10", "ten minutes", "0s", "31d", 2_592_001, "", ["10m"]])
def test_anything_else_is_refused_with_what_to_write(written):
    with pytest.raises(DeclarationError, match=r"roles\[writer\]\.cache") as refused:
        AgentRole("writer", models=["x"], cache=written)
    assert 'cache="10m"' in refused.value.remedy


def test_a_fleet_file_may_say_it(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text('[fleet]\nname = "crew"\n[[roles]]\nname = "writer"\nmodels = ["gpt-4o"]\ncache = "10m"\n')
    assert load_fleet(path) == crew(cache=600)


def test_the_plan_shows_it_and_the_gateway_gives_it_back():
    fleet = crew(cache="10m")
    first = plan(fleet, Snapshot(gateway_url=GATEWAY, fleet="crew"), [])
    assert "gpt-4o · cache 10m" in plan_to_text(first)
    assert plan_from_json(plan_to_json(first)) == first
    row = row_of(fleet)
    assert row.metadata["nemo"]["cache"] == {"ttl_s": 600}
    assert live_key_spec(row, "writer") == key_spec(fleet, fleet.role("writer"))


@pytest.mark.parametrize(
    ("had", "wants", "told"),
    [(None, "10m", "cache: not set → 10m"), ("1d", "90s", "cache: 1d → 90s"), ("2h", None, "cache: 2h → not set")],
)
def test_a_change_is_told_and_is_no_drift(had, wants, told):
    live = Snapshot(gateway_url=GATEWAY, fleet="crew", keys=(row_of(crew(cache=had)),))
    text = plan_to_text(plan(crew(cache=wants), live, []))
    assert told in text
    assert "drift" not in text


def test_a_mark_without_a_cache_is_what_it_was_before_there_was_one():
    spec = key_spec(crew(), crew().role("writer"))
    before = {name: value for name, value in msgspec.to_builtins(spec).items() if name != "cache_ttl_s"}
    canonical = msgspec.json.encode(before, order="deterministic")
    assert applied_mark(spec) == hashlib.sha256(canonical).hexdigest()
    with_one = key_spec(crew(cache=5), crew(cache=5).role("writer"))
    assert applied_mark(with_one) != applied_mark(spec)


@pytest.mark.parametrize("ttl_s", [None, 1, 600])
def test_the_wire_there_and_back(ttl_s):
    assert read_cache_ttl_s({"cache": cache_fact(ttl_s)}) == ttl_s


@pytest.mark.parametrize("found", ["10m", {"ttl_s": 0}, {"ttl_s": True}, {"ttl_s": "5"}, {}, {"ttl_s": 5, "x": 1}, 600])
def test_what_cannot_be_meant_on_the_wire_is_refused_with_its_path(found):
    with pytest.raises(RuleFault, match=r"metadata\.nemo\.cache"):
        read_cache_ttl_s({"cache": found})
