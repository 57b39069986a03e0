"""Fleet files: the two forms say the same, and a mistake is named with its file and place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import nemo_agents.cli
from nemo_agents.errors import DeclarationError
from nemo_agents.provision.load import load_fleet
from nemo_agents.roles import AgentRole, Budget, FleetDeclaration, Loop, ModelGroup, RateLimit

EXAMPLE = Path(__file__).parents[2] / "examples" / "research_crew"
DEMO = Path(nemo_agents.cli.__file__).with_name("research_crew.toml")
HEAD = "from nemo_agents.roles import AgentRole, FleetDeclaration\n"
FLEET = 'fleet = FleetDeclaration("crew", roles=[AgentRole("writer", models=["gpt-4o"])])\n'
TOML = '[fleet]\nname = "crew"\n[[roles]]\nname = "writer"\nmodels = ["gpt-4o"]\n'


@pytest.fixture
def write(tmp_path):
    def write(text, name="fleet.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_example_says_the_same_in_both_forms_and_in_the_demo():
    from_python, from_toml = load_fleet(EXAMPLE / "fleet.py"), load_fleet(EXAMPLE / "fleet.toml")
    assert from_python == from_toml == load_fleet(DEMO)
    assert from_python.role("researcher").budgets == (Budget("$80/day", alert_at=0.8),)
    assert from_python.role("researcher").tpm == 100_000
    assert [(one.roles_nanos, one.fleet_nanos) for one in from_python.worst_case()] == [(135 * 10**9, 170 * 10**9)]


def test_the_example_of_budgets_and_limits_is_what_its_comments_say():
    crew = load_fleet(EXAMPLE.parent / "budgets_and_limits.toml")
    researcher, summariser = crew.role("researcher"), crew.role("summariser")
    assert [str(one) for one in crew.budgets] == ["$40/day", "$500/month"]
    assert crew.shadow == ("max_parallel",)
    assert [str(one) for one in researcher.budgets] == ["$2/12h", "$60/month (Europe/Amsterdam)", "$1/day (shadow)"]
    assert researcher.model_limits == (("gpt-4o", RateLimit(rpm=10, max_parallel=2)),)
    assert (summariser.loop, summariser.price_per_request_nanos) == (None, 500_000)


def test_every_field_of_a_toml_file_arrives(write):
    text = """
    [fleet]
    name = "crew"
    budget = { amount = "$9", period = "week", alert_at = 0.5 }
    rpm = 10
    tpm = "1k"
    max_parallel = 9
    shadow = ["tpm"]
    guardrails = ["pii-filter"]
    [[models]]
    name = "fast"
    models = ["openai/a", "b"]
    [[roles]]
    name = "writer"
    models = ["fast"]
    rpm = 1
    tpm = 2
    max_parallel = 3
    shadow = ["max_parallel"]
    model_limits = { fast = { rpm = 1, max_parallel = 2, mode = "shadow" } }
    budget = ["$5", { amount = "$6/month", tz = "Europe/Amsterdam", alert_at = [0.5, 0.9], mode = "shadow" }]
    loop = { repeats = 3, within_s = 30, mode = "enforce" }
    price_per_request = "$0.002"
    guardrails = [{ name = "prompt-injection-detect", mode = "enforce" }]
    tools = []
    description = "Writes."
    [[roles]]
    name = "critic"
    models = ["b"]
    loop = "off"
    """
    assert load_fleet(write(text, "fleet.toml")) == FleetDeclaration(
        "crew",
        budget=Budget("$9/week", alert_at=0.5),
        rpm=10,
        tpm=1000,
        max_parallel=9,
        shadow=["tpm"],
        guardrails=["pii-filter"],
        models=[ModelGroup("fast", ["openai/a", "b"])],
        roles=[
            AgentRole(
                "writer",
                models=["fast"],
                rpm=1,
                tpm=2,
                max_parallel=3,
                shadow=["max_parallel"],
                model_limits={"fast": RateLimit(rpm=1, max_parallel=2, mode="shadow")},
                budget=[
                    "$5",
                    Budget("$6/month", tz="Europe/Amsterdam", alert_at=[0.5, 0.9], mode="shadow"),
                ],
                loop=Loop(3, within_s=30, mode="enforce"),
                price_per_request="$0.002",
                guardrails=["prompt-injection-detect"],
                tools=[],
                description="Writes.",
            ),
            AgentRole("critic", models=["b"], loop="off"),
        ],
    )


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[fleet\n", "file"),
        (TOML + "rmp = 3\n", "roles[writer].rmp"),
        (TOML + "rpm = 0\n", "roles[writer].rpm"),
        (TOML + "budget = 20.0\n", "roles[writer].budget"),
        (TOML + "budget = {amount = '$1', per = 'day'}\n", "roles[writer].budget.per"),
        (TOML + "budget = {amount = '$1', period = 'year'}\n", "roles[writer].budget.period"),
        (TOML + "budget = {period = 'day'}\n", "roles[writer].budget.amount"),
        (TOML + "budget = {amount = '$1/day', tz = 'Europe/Atlantis'}\n", "roles[writer].budget.tz"),
        (TOML + "budget = {amount = '$1/day', alert_at = 8}\n", "roles[writer].budget.alert_at"),
        (TOML + "budget = ['$1/day', {amount = '$1/year'}]\n", "roles[writer].budget[1].period"),
        (TOML + "budget = ['$1/day', {period = 'day'}]\n", "roles[writer].budget[1].amount"),
        (TOML + "budget = ['$1/day', {amount = '$1', soft = true}]\n", "roles[writer].budget[1].soft"),
        (TOML + "budget = ['$1/day', '$2/day']\n", "roles[writer].budget"),
        (TOML + "shadow = true\n", "roles[writer].shadow"),
        (TOML + "shadow = ['rpm']\n", "roles[writer].shadow"),
        (TOML + "model_limits = {'gpt-4' = {rpm = 1}}\n", "roles[writer].model_limits"),
        (TOML + "model_limits = {'gpt-4o' = 1}\n", "roles[writer].model_limits[gpt-4o]"),
        (TOML + "model_limits = {'gpt-4o' = {rps = 1}}\n", "roles[writer].model_limits[gpt-4o].rps"),
        (TOML + "model_limits = {'gpt-4o' = {rpm = 0}}\n", "roles[writer].model_limits[gpt-4o].rpm"),
        (TOML + "model_limits = 3\n", "roles[writer].model_limits"),
        (TOML + "loop = 'on'\n", "roles[writer].loop"),
        (TOML + "loop = {repeats = 1}\n", "roles[writer].loop.repeats"),
        (TOML + "loop = {times = 9}\n", "roles[writer].loop.times"),
        (TOML + "price_per_request = 0.002\n", "roles[writer].price_per_request"),
        (
            "[fleet]\nname = 'crew'\nmax_parallel = 'many'\n[[roles]]\nname = 'a'\nmodels = ['b']\n",
            "fleet.max_parallel",
        ),
        (TOML + "guardrails = 'pii-filter'\n", "roles[writer].guardrails"),
        (TOML + "guardrails = [{mode = 'enforce'}]\n", "roles[writer].guardrails.name"),
        (TOML + "[[roles]]\nname = 'writer'\nmodels = ['a']\n", "roles"),
        (TOML + "[[roles]]\nname = 'critic'\n", "roles[critic].models"),
        (TOML + "[[roles]]\nmodels = ['a']\n", "roles[1].name"),
        (TOML + "[[models]]\nname = 'a'\n", "models[a].models"),
        (TOML + "[[models]]\nname = 'a'\nmodels = ['b']\nweight = 1\n", "models[a].weight"),
        (TOML + "[tools]\n", "tools"),
        ("[fleet]\nname = 'crew'\nowner = 'me'\n", "fleet.owner"),
        ("[fleet]\nrpm = 3\n", "fleet.name"),
        ("fleet = 3\n", "fleet"),
        ("[fleet]\nname = 'crew'\n[roles]\nname = 'a'\n", "roles"),
        ("[fleet]\nname = 'crew'\n", "roles"),
    ],
)
def test_a_mistake_in_toml_is_named_with_file_and_field(write, text, field):
    path = write(text, "fleet.toml")
    with pytest.raises(DeclarationError) as caught:
        load_fleet(path)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{path}: ")


def test_an_unknown_key_is_met_with_the_nearest(write):
    with pytest.raises(DeclarationError, match='Did you mean "budget"'):
        load_fleet(write(TOML + 'budgte = "$5"\n', "fleet.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD, "declares no fleet"),
        (HEAD + FLEET + FLEET.replace("fleet =", "other ="), "declares 2 fleets (got 'fleet, other')"),
        (HEAD + "\nfleet = (\n", "line 3: is not valid Python"),
        (HEAD + "\n1 / 0\n", "line 3: raised an exception (got 'ZeroDivisionError: division by zero')"),
        (HEAD + "raise SystemExit(3)\n", "line 2: raised an exception (got 'SystemExit: 3')"),
        (HEAD + "import no_such_module_here\n", "line 2: raised an exception"),
        (HEAD + '\nAgentRole("writer", models=["a"], rpm=0)\n', "line 3: roles[writer].rpm: is not a count (got 0)"),
    ],
)
def test_a_mistake_in_python_is_named_with_file_and_line(write, text, words):
    path = write(text)
    with pytest.raises(DeclarationError) as caught:
        load_fleet(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_two_names_of_one_fleet_are_one_fleet(write):
    assert load_fleet(write(HEAD + FLEET + "crew = fleet\n")).name == "crew"


def test_a_fleet_file_may_import_its_neighbours_and_leaves_no_trace(write):
    write("LIMIT = 7\n", "neighbour_of_fleet.py")
    before = list(sys.path)
    path = write(HEAD + "from neighbour_of_fleet import LIMIT\n" + FLEET.replace('"]', '"], rpm=LIMIT', 1))
    try:
        assert load_fleet(path).role("writer").rpm == 7
    finally:
        sys.modules.pop("neighbour_of_fleet", None)
    assert sys.path == before


def test_a_file_that_is_not_there_or_not_a_fleet_file_is_named(tmp_path, write):
    for path in (tmp_path / "none.py", tmp_path / "none.toml", tmp_path, write("x", "fleet.yaml")):
        with pytest.raises(DeclarationError) as caught:
            load_fleet(path)
        assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DeclarationError, match="UTF-8"):
        load_fleet(path)


@pytest.mark.parametrize(
    "line",
    [
        "soft_budget = '$5/day'",
        "soft = true",
        "shadow = true",
        "budget = {amount = '$1/day', shadow = true}",
        "budget = {amount = '$1/day', soft = true}",
        "loop = {shadow = true}",
    ],
)
def test_other_words_for_a_soft_budget_are_answered_with_the_mode(write, line):
    with pytest.raises(DeclarationError) as refused:
        load_fleet(write(f"{TOML}{line}\n", "fleet.toml"))
    assert 'mode = "shadow"' in refused.value.remedy
    assert "Did you mean" not in refused.value.remedy
