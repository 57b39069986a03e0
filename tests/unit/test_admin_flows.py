"""The flows against an admin API in memory: what they do, and that they may be killed anywhere; and their drivers."""

from __future__ import annotations

from dataclasses import replace

import httpx
import msgspec
import pytest
from admin_machine import GATEWAY, AdminMachine, Killed, MemoryStore, drive

from nemo_agents.admin import fleets as admin_fleets
from nemo_agents.admin import keys, observe
from nemo_agents.admin.wire import RunReport
from nemo_agents.client import AsyncClient, Client
from nemo_agents.errors import AdminError, GatewayUnreachable, ProvisionError, StalePlan
from nemo_agents.policy.keys import parse_public_id
from nemo_agents.provision import operate
from nemo_agents.provision.apply import apply
from nemo_agents.provision.mint import mint_key
from nemo_agents.provision.render import plan_from_json, plan_to_json
from nemo_agents.roles import AgentRole, Budget, FleetDeclaration, ModelGroup, RateLimit
from nemo_agents.secret import Secret

ADMIN_KEY = "sk-admin-THEADMINKEYTHEADMINKEY"


def crew(*roles, **changes):
    return FleetDeclaration(
        "crew",
        **{
            "roles": roles or (role("researcher", rpm=120, guardrails=["pii-filter"]), role("writer"), role("critic")),
            "models": [ModelGroup("fast", ["openai/a", "gemini/b", "anthropic/c"])],
            "budget": "$170/day",
            **changes,
        },
    )


def role(name, **changes):
    return AgentRole(name, **{"models": ["gpt-4o-mini"], "budget": Budget("$20/day", alert_at=0.5), **changes})


class World:
    """One gateway, one key store."""

    def __init__(self):
        self.machine = AdminMachine()
        self.store = MemoryStore()

    def run(self, flow, **kill):
        return drive(flow, self.machine, **kill)

    def plan(self, fleet):
        return self.run(operate.prepare(fleet, GATEWAY, self.store))

    def provision(self, fleet):
        return self.run(apply(self.plan(fleet), self.store))

    def entry(self, name):
        return self.store.get(GATEWAY, "crew", name)

    def assert_sound(self, fleet):
        """One live key per declared role and no other, each with its secret here; and nothing left to do."""
        assert sorted(key.row["key_alias"] for key in self.machine.live()) == sorted(
            f"{fleet.name}/{role.name}" for role in fleet.roles
        )
        for declared in fleet.roles:
            entry = self.entry(declared.name)
            assert entry.state == "active"
            assert entry.previous_id is None
            assert self.machine.live_of(f"crew/{declared.name}").secrets[-1] == entry.secret.reveal()
        assert {entry.role for entry in self.store.entries(GATEWAY, "crew")} == {role.name for role in fleet.roles}
        made = self.plan(fleet)
        assert made.is_empty
        assert all(change.note is None for change in made.changes)


@pytest.fixture
def world():
    return World()


# --- what provisioning does
def test_a_fleet_arrives_on_the_wire_as_declared(world):
    fleet = crew(role("researcher", rpm=120, tpm="100k", max_parallel=4, guardrails=["pii-filter"], tools=["b", "a"]))
    world.provision(fleet)
    row = world.machine.live_of("crew/researcher").row
    applied = row["metadata"]["nemo"].pop("applied")
    assert len(bytes.fromhex(applied)) == 32
    assert row == {
        "key_alias": "crew/researcher",
        "team_id": "crew",
        "models": ["gpt-4o-mini"],
        "rpm_limit": 120,
        "tpm_limit": 100_000,
        "max_parallel_requests": 4,
        "max_budget": 20.0,
        "budget_duration": "1d",
        "guardrails": ["pii-filter"],
        "metadata": {"nemo": {"managed": True, "role": "researcher", "alert_at": [0.5], "tools": ["a", "b"]}},
    }
    team = world.machine.teams["crew"]
    assert team["metadata"]["nemo"].pop("applied")
    assert team == {
        "team_id": "crew",
        "team_alias": "crew",
        "max_budget": 170.0,
        "budget_duration": "1d",
        "metadata": {"nemo": {"managed": True, "alert_at": [0.8]}},
    }
    assert world.machine.deployments["crew/fast/2"]["model_info"].pop("nemo_applied")
    assert world.machine.deployments["crew/fast/2"] == {
        "model_name": "fast",
        "litellm_params": {"model": "gemini/b", "order": 2, "weight": 1},
        "model_info": {"id": "crew/fast/2", "team_id": "crew"},
    }
    world.assert_sound(fleet)


def test_an_update_sends_what_differs_and_keeps_what_others_wrote(world):
    world.provision(crew())
    row = world.machine.live_of("crew/writer").row
    row["metadata"] |= {"owner": "ops"}
    row["metadata"]["nemo"] |= {"extra": 1}
    secret = world.entry("writer").secret
    fleet = crew(role("researcher", rpm=120, guardrails=["pii-filter"]), role("writer", budget=None), role("critic"))
    world.provision(fleet)
    row = world.machine.live_of("crew/writer").row
    assert row["max_budget"] is None
    assert row["budget_duration"] is None
    assert row["metadata"]["owner"] == "ops"
    assert row["metadata"]["nemo"]["extra"] == 1
    assert world.entry("writer").secret == secret
    world.assert_sound(fleet)


class LimitsInMetadata(AdminMachine):
    """As LiteLLM keeps limits by model: in the metadata, of which an update replaces all."""

    def handle(self, method, path, query, body):
        if path in ("/key/generate", "/key/update") and "metadata" in body:
            maps = {name: body.pop(name) for name in ("model_rpm_limit", "model_tpm_limit") if body.get(name)}
            body["metadata"] |= maps
        return super().handle(method, path, query, body)


def test_limits_by_model_survive_where_an_update_of_metadata_drops_them(world):
    world.machine = LimitsInMetadata()
    limits = {"gpt-4o-mini": RateLimit(rpm=10, tpm=500)}
    world.provision(crew(role("writer", model_limits=limits)))
    fleet = crew(role("writer", model_limits=limits, rpm=7))
    world.provision(fleet)
    metadata = world.machine.live_of("crew/writer").row["metadata"]
    assert (metadata["model_rpm_limit"], metadata["model_tpm_limit"]) == ({"gpt-4o-mini": 10}, {"gpt-4o-mini": 500})
    world.assert_sound(fleet)
    without = crew(role("writer", rpm=7))
    world.provision(without)
    assert "model_rpm_limit" not in world.machine.live_of("crew/writer").row["metadata"]
    world.assert_sound(without)


def test_rules_that_are_declared_no_more_are_gone_from_the_wire(world):
    several = [Budget("$5/day", tz="Asia/Kathmandu"), "$60/month"]
    rules = {"budget": several, "rpm": 5, "shadow": ["rpm"], "loop": "off", "price_per_request": "$1"}
    world.provision(crew(role("writer", **rules), max_parallel=3, shadow=["max_parallel"]))
    fleet = crew(role("writer", budget="$5/day"))
    world.provision(fleet)
    assert set(world.machine.live_of("crew/writer").row["metadata"]["nemo"]) == {
        "managed",
        "role",
        "alert_at",
        "applied",
    }
    assert set(world.machine.teams["crew"]["metadata"]["nemo"]) == {"managed", "alert_at", "applied"}
    world.assert_sound(fleet)


def test_an_adopted_key_keeps_its_budgets_in_whichever_order_they_are(world):
    """LiteLLM's field holds the month, our list the day: marked in normal order, both must be there still."""
    minted = mint_key()
    day = {"max_budget": 5, "budget_duration": "1d", "mode": "enforce"}
    fields = {
        "key_alias": "old",
        "max_budget": 60.0,
        "budget_duration": "1mo",
        "metadata": {"nemo": {"budgets": [day]}},
    }
    world.machine.answer(keys.generate(fields, key=minted.secret))
    world.run(operate.adopt("crew", "writer", "old"))
    row = world.machine.live_of("crew/writer").row
    assert (row["max_budget"], row["budget_duration"]) == (5.0, "1d")
    assert [one["max_budget"] for one in row["metadata"]["nemo"]["budgets"]] == [60.0]


def test_a_changed_group_keeps_the_deployments_that_stay(world):
    world.provision(crew())
    world.machine.calls.clear()
    fleet = crew(models=[ModelGroup("fast", ["openai/a", "gemini/x"])])
    world.provision(fleet)
    assert [call for call in world.machine.calls if call.startswith("POST")] == [
        "POST /model/delete",
        "POST /model/new",
        "POST /model/delete",
    ]
    assert sorted(world.machine.deployments) == ["crew/fast/1", "crew/fast/2"]
    world.assert_sound(fleet)


def test_a_role_declared_no_more_loses_key_and_secret(world):
    world.provision(crew())
    fleet = crew(role("writer"), models=[])
    world.provision(fleet)
    assert world.machine.deployments == {}
    world.assert_sound(fleet)


def test_destroy_leaves_nothing(world):
    world.provision(crew())
    world.run(apply(world.run(operate.prepare_destroy("crew", GATEWAY)), world.store))
    assert world.machine.live() == []
    assert world.machine.teams == {}
    assert world.machine.deployments == {}
    assert world.store.rows == {}


def test_a_second_provisioning_changes_nothing(world):
    world.provision(crew())
    world.machine.calls.clear()
    assert world.provision(crew()).performed == ()
    assert not any(call.startswith("POST") for call in world.machine.calls)


def test_many_keys_are_read_over_all_pages(world):
    world.machine.page_size = 2
    fleet = crew(*(role(f"role-{n}") for n in range(5)))
    world.provision(fleet)
    world.assert_sound(fleet)


def test_a_plan_is_applied_after_a_trip_through_json_and_only_to_what_it_saw(world):
    made = plan_from_json(plan_to_json(world.plan(crew())))
    world.run(apply(made, world.store))
    world.assert_sound(crew())
    before = list(world.machine.calls)
    with pytest.raises(StalePlan):
        world.run(apply(made, world.store))
    assert not any(call.startswith("POST") for call in world.machine.calls[len(before) :])


def test_a_conflict_stops_everything_before_the_first_call(world):
    world.run(keys.every())
    alien = mint_key()
    world.machine.answer(keys.generate({"key_alias": "crew/writer"}, key=alien.secret))
    made = world.plan(crew())
    world.machine.calls.clear()
    with pytest.raises(ProvisionError, match=f"adopt crew writer {alien.public_id}"):
        world.run(apply(made, world.store))
    assert world.machine.calls == []


def test_an_interrupted_key_that_was_revoked_meanwhile_gets_a_new_secret(world):
    world.store.kill = (2, False)  # the first key is on the gateway, not yet marked
    with pytest.raises(Killed):
        world.provision(crew())
    world.store.kill = None
    pending = world.entry("researcher")
    assert pending.state == "pending"
    world.machine.answer(keys.delete([pending.public_id]))
    world.provision(crew())
    assert world.entry("researcher").secret != pending.secret
    world.assert_sound(crew())


# --- killed anywhere
CHANGED = crew(
    role("researcher", rpm=60, models=["gpt-4o"]),
    role("editor"),
    role("critic"),
    models=[ModelGroup("fast", ["gemini/b", "openai/a"]), ModelGroup("slow", ["openai/x"])],
    budget=None,
)


def fresh(world):
    return world.plan(crew()), crew()


def changed(world):
    world.provision(crew())
    return world.plan(CHANGED), CHANGED


def rotating(world):
    """A fleet with a rotation that stopped right after its successor was stored."""
    world.provision(crew())
    world.store.kill = (world.store.changes + 1, True)
    with pytest.raises(Killed):
        world.run(operate.rotate(GATEWAY, "crew", "writer", world.store))
    world.store.kill = None
    return world.plan(CHANGED_WRITER), CHANGED_WRITER


CHANGED_WRITER = crew(role("researcher", rpm=120, guardrails=["pii-filter"]), role("writer", rpm=9), role("critic"))


@pytest.mark.parametrize("after", [False, True], ids=["unsent", "answered"])
@pytest.mark.parametrize("scenario", [fresh, changed, rotating])
def test_killed_at_any_call_provisioning_again_ends_as_declared(scenario, after):
    n = 0
    while True:
        n += 1
        world = World()
        made, fleet = scenario(world)
        try:
            world.run(apply(made, world.store), kill=(n, after))
        except Killed:
            world.provision(fleet)
            world.assert_sound(fleet)
        else:
            break
    assert n > 5  # it was killed at every call there is: three reads, and every change
    world.assert_sound(fleet)


@pytest.mark.parametrize("after", [False, True], ids=["unwritten", "written"])
@pytest.mark.parametrize("scenario", [fresh, changed, rotating])
def test_killed_at_any_write_of_the_store_provisioning_again_ends_as_declared(scenario, after):
    n = 0
    while True:
        n += 1
        world = World()
        made, fleet = scenario(world)
        world.store.kill = (world.store.changes + n, after)
        try:
            world.run(apply(made, world.store))
        except Killed:
            world.store.kill = None
            world.provision(fleet)
            world.assert_sound(fleet)
        else:
            break
    assert n > 1
    world.store.kill = None
    world.assert_sound(fleet)


@pytest.mark.parametrize("after", [False, True], ids=["unsent", "answered"])
def test_killed_at_any_call_of_destroy_the_next_destroy_ends_it(after):
    n = 0
    while True:
        n += 1
        world = World()
        world.provision(crew())
        made = world.run(operate.prepare_destroy("crew", GATEWAY))
        try:
            world.run(apply(made, world.store), kill=(n, after))
        except Killed:
            world.run(apply(world.run(operate.prepare_destroy("crew", GATEWAY)), world.store))
        else:
            break
        assert world.machine.live() == []
        assert (world.machine.teams, world.machine.deployments, world.store.rows) == ({}, {}, {})
    assert n > 8


@pytest.mark.parametrize("after", [False, True], ids=["unsent", "answered"])
def test_killed_at_any_call_of_rotate_the_next_rotate_keeps_one_successor(after):
    n = 0
    while True:
        n += 1
        world = World()
        world.provision(crew())
        first = world.entry("writer").secret
        try:
            world.run(operate.rotate(GATEWAY, "crew", "writer", world.store, grace="1h"), kill=(n, after))
        except Killed:
            usable = world.store.secret(GATEWAY, "crew", "writer")
            assert usable.reveal() in world.machine.live_of("crew/writer").secrets
            world.run(operate.rotate(GATEWAY, "crew", "writer", world.store, grace="1h"))
        else:
            break
        key = world.machine.live_of("crew/writer")
        assert key.secrets[0] == first.reveal()
        assert len(key.secrets) == 2
        assert key.graces == ["1h"]
        world.assert_sound(crew())
    assert n == 3


def test_a_secret_that_cannot_be_kept_is_never_sent(world):
    def broken(*_args):
        raise ProvisionError("disk full")

    made = world.plan(crew())
    world.store.put = broken
    with pytest.raises(ProvisionError, match="disk full"):
        world.run(apply(made, world.store))
    assert world.machine.keys == []


# --- single acts
def test_rotate_works_without_the_old_secret(world):
    world.provision(crew())
    world.store.forget(GATEWAY, "crew", "writer")
    entry = world.run(operate.rotate(GATEWAY, "crew", "writer", world.store, grace=operate.NO_GRACE))
    assert world.machine.live_of("crew/writer").secrets[-1] == entry.secret.reveal()
    assert world.machine.live_of("crew/writer").graces == ["0s"]
    world.assert_sound(crew())


@pytest.mark.parametrize("grace", ["", "1", "soon", "-1h", "1 h"])
def test_a_grace_that_is_no_duration_is_refused_before_anything_happens(world, grace):
    world.provision(crew())
    before = dict(world.store.rows)
    with pytest.raises(ProvisionError, match="not a duration"):
        world.run(operate.rotate(GATEWAY, "crew", "writer", world.store, grace=grace))
    assert world.store.rows == before


def test_block_and_unblock(world):
    world.provision(crew())
    world.run(operate.block("crew", "writer"))
    assert world.machine.live_of("crew/writer").row["blocked"] is True
    world.run(operate.unblock("crew", "writer"))
    assert world.machine.live_of("crew/writer").row["blocked"] is False


def test_revoke_and_provision_again(world):
    world.provision(crew())
    old = world.entry("writer").secret
    world.run(operate.revoke(GATEWAY, "crew", "writer", world.store))
    assert world.entry("writer") is None
    world.provision(crew())
    assert world.entry("writer").secret != old
    world.assert_sound(crew())


def test_an_adopted_key_is_brought_up_to_date_and_is_no_drift(world):
    alien = mint_key()
    fields = {"key_alias": "legacy", "models": ["gpt-4o"], "metadata": {"owner": "ops"}}
    world.machine.answer(keys.generate(fields, key=alien.secret))
    world.run(operate.adopt("crew", "writer", "legacy"))
    made = world.plan(crew())
    (change,) = [change for change in made.changes if change.name == "writer"]
    assert (change.action, change.drift, change.public_id) == ("update", False, alien.public_id)
    world.run(apply(made, world.store))
    world.run(operate.rotate(GATEWAY, "crew", "writer", world.store))
    assert world.machine.live_of("crew/writer").row["metadata"]["owner"] == "ops"
    world.assert_sound(crew())


def test_adopt_refuses_what_is_not_there_and_what_is_taken(world):
    world.provision(crew())
    with pytest.raises(ProvisionError, match="no key with the id or alias"):
        world.run(operate.adopt("crew", "editor", "none"))
    with pytest.raises(ProvisionError, match="has a key already"):
        world.run(operate.adopt("crew", "critic", world.entry("writer").public_id))


def test_a_forgotten_key_works_on_and_is_a_conflict_until_adopted(world):
    world.provision(crew())
    world.run(operate.forget(GATEWAY, "crew", "writer", world.store))
    assert world.entry("writer") is None
    assert world.machine.live_of("crew/writer").row["metadata"]["nemo"]["role"] == "writer"
    assert [conflict.role for conflict in world.plan(crew()).conflicts] == ["writer"]
    world.run(operate.adopt("crew", "writer", "crew/writer"))
    assert world.plan(crew()).is_empty


@pytest.mark.parametrize("act", ["block", "unblock"])
def test_an_act_on_a_key_that_is_not_there_says_so(world, act):
    with pytest.raises(ProvisionError, match="no key of role nobody in a fleet crew"):
        world.run(getattr(operate, act)("crew", "nobody"))


def test_minted_keys_are_well_formed_and_unlike():
    minted = [mint_key() for _ in range(50)]
    assert {parse_public_id(one.secret.reveal()) for one in minted} == {one.public_id for one in minted}
    assert len({one.public_id for one in minted}) == 50
    assert minted[0].secret.reveal() not in repr(minted[0])


# --- the drivers
def served(machine):
    """Return a handler that speaks for the machine over HTTP, and checks the key."""

    def handle(request):
        assert request.headers["authorization"] == f"Bearer {ADMIN_KEY}"
        body = msgspec.json.decode(request.content) if request.content else {}
        status, content = machine.handle(request.method, request.url.path, dict(request.url.params), body)
        return httpx.Response(status, json=content)

    return httpx.MockTransport(handle)


def answering(status, **content):
    return httpx.MockTransport(lambda _request: httpx.Response(status, **content))


def client(transport):
    return Client(GATEWAY, Secret(ADMIN_KEY), transport=transport)


async def test_both_drivers_do_the_same_work():
    rows = []
    for awaited in (False, True):
        machine, store = AdminMachine(), MemoryStore()
        if awaited:
            async with AsyncClient(GATEWAY, Secret(ADMIN_KEY), transport=served(machine)) as driver:
                made = await driver.run(operate.prepare(crew(), GATEWAY, store))
                await driver.run(apply(made, store))
                assert (await driver.run(operate.prepare(crew(), GATEWAY, store))).is_empty
                assert (await driver.run(admin_fleets.info("crew"))).team_id == "crew"
        else:
            with client(served(machine)) as driver:
                made = driver.run(operate.prepare(crew(), GATEWAY, store))
                driver.run(apply(made, store))
                assert driver.run(operate.prepare(crew(), GATEWAY, store)).is_empty
                assert driver.run(admin_fleets.info("crew")).team_id == "crew"
        rows.append([replace_token(key.row) for key in machine.live()])
    assert rows[0] == rows[1]


def replace_token(row):
    return {name: value for name, value in row.items() if name != "token"}


SHAPES = [
    ({"json": {"error": {"message": "No.", "type": "auth_error", "code": "401"}}}, "No.", "auth_error"),
    ({"json": {"error": {"message": "No.", "type": "None", "code": "401"}}}, "No.", None),
    ({"json": {"detail": "Not Found"}}, "Not Found", None),
    ({"json": {"detail": {"error": "no such team"}}}, "no such team", None),
    ({"json": {"detail": {"error": {"message": "deep", "type": "x"}}}}, "deep", "x"),
    (
        {"json": {"detail": [{"loc": ["body", "key"], "msg": "field required"}]}},
        "body.key: field required",
        "validation_error",
    ),
    ({"text": "Internal Server Error"}, "Internal Server Error", None),
    ({"json": ["odd"]}, "odd", None),
    ({"text": ""}, "Unauthorized", None),
]


@pytest.mark.parametrize(("content", "words", "kind"), SHAPES)
def test_every_shape_of_error_is_read(content, words, kind):
    with client(answering(401, **content)) as driver, pytest.raises(AdminError) as caught:
        driver.run(keys.info("abc"))
    assert words in str(caught.value)
    assert "GET /key/info: 401" in str(caught.value)
    assert (caught.value.status, caught.value.type) == (401, kind)
    assert "NEMO_ADMIN_KEY" in str(caught.value)


def test_no_error_tells_a_key():
    secret = mint_key().secret
    echo = httpx.MockTransport(lambda request: httpx.Response(400, text=request.content.decode() + ADMIN_KEY))
    with client(echo) as driver, pytest.raises(AdminError) as caught:
        driver.run(keys.generate({"key_alias": "crew/writer"}, key=secret))
    for key in (secret.reveal(), ADMIN_KEY):
        assert key not in str(caught.value)
    call = keys.generate({}, key=secret)
    assert secret.reveal() not in repr(call)


@pytest.mark.parametrize("content", [{"text": "<html>"}, {"json": {"keys": 3}}, {"json": []}])
def test_an_answer_that_is_none_of_ours_is_an_error_with_advice(content):
    with client(answering(200, **content)) as driver, pytest.raises(AdminError, match="NEMO_GATEWAY_URL"):
        driver.run(keys.page(1))


def test_a_redirect_is_not_followed_with_the_key():
    with client(answering(307, headers={"location": "http://127.0.0.1:1/"})) as driver, pytest.raises(AdminError):
        driver.run(keys.page(1))


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
async def test_a_gateway_that_does_not_answer_is_told_how_to_start_and_is_asked_once(kind):
    asked = []

    def fail(request):
        asked.append(request)
        raise kind("no", request=request)

    with client(httpx.MockTransport(fail)) as driver, pytest.raises(GatewayUnreachable, match="nemo-agents gateway"):
        driver.run(keys.block("abc"))
    async with AsyncClient(GATEWAY, Secret(ADMIN_KEY), transport=httpx.MockTransport(fail)) as driver:
        with pytest.raises(GatewayUnreachable, match="NEMO_GATEWAY_URL"):
            await driver.run(keys.block("abc"))
    assert len(asked) == 2


@pytest.mark.parametrize("url", ["", "localhost:4141", "ftp://x", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(GatewayUnreachable, match="not the address"):
        Client(url, Secret(ADMIN_KEY))


def test_a_flow_hears_of_a_refusal_and_may_go_on():
    def flow():
        try:
            yield keys.info("none")
        except AdminError as error:
            return error.status

    with client(served(AdminMachine())) as driver:
        assert driver.run(flow()) == 404


def test_an_id_is_one_segment_of_a_path():
    assert keys.regenerate("a/b?c", new_key=Secret("x"), grace_period="1h").path == "/key/a%2Fb%3Fc/regenerate"
    assert observe.stop("a/../b").path == "/nemo/runs/a%2F..%2Fb/stop"


def test_absent_conditions_are_not_sent():
    call = observe.logs(fleet="crew", status=402, since_us=0, limit=None)
    assert call.query == {"fleet": "crew", "status": "402", "since_us": "0"}
    assert observe.runs() == observe.runs(before=None)
    told = RunReport(name="n", started_us=1)
    assert observe.report("r", told).body["name"] == "n"


def test_a_key_row_without_its_token_takes_it_from_beside():
    answer = b'{"key": "abc", "info": {"key_name": "sk-...abcd", "models": [], "spend": 0.5}}'
    assert keys.info("abc").decode(answer).token == "abc"


def test_entries_are_values(world):
    world.provision(crew())
    entry = world.entry("writer")
    assert replace(entry, state="pending").usable_secret is None
