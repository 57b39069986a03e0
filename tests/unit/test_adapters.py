"""What adapters are built on: roles, models, versions, and how they are found."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner
from recording_gateway import Told, recording_gateway

from nemo_agents import AdapterError, AgentRole, DeclarationError, Fleet, ProvisionError, adapters
from nemo_agents.cli.adapters import adapters as command

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"
ROLE = AgentRole("fact-checker", models=["gpt-4o-mini", "claude-3-5-haiku", "gemini/*"])


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def member(gateway, tmp_path):
    return Fleet("crew", roles=[ROLE]).connect(gateway.url, home=tmp_path, environ={"NEMO_KEY_FACT_CHECKER": KEY})[
        "fact-checker"
    ]


# --- roles and models -----------------------------------------------------------------------------------------------
def test_a_member_is_taken_as_it_is(member):
    assert adapters.member_of(member) is member


def test_a_bare_role_has_its_key_and_gateway_from_the_environment(monkeypatch):
    monkeypatch.setenv("NEMO_GATEWAY_URL", "http://127.0.0.1:5/")
    monkeypatch.delenv("NEMO_KEY_FACT_CHECKER", raising=False)
    found = adapters.member_of(ROLE)
    assert (found.role, found.base_url) == (ROLE, "http://127.0.0.1:5/v1")
    with pytest.raises(ProvisionError, match="NEMO_KEY_FACT_CHECKER"):
        found.openai()
    monkeypatch.setenv("NEMO_KEY_FACT_CHECKER", f" {KEY}\n")
    assert found.key.reveal() == KEY
    assert KEY not in repr(found.key)


@pytest.mark.parametrize("role", ["researcher", None, {"name": "x"}])
def test_anything_else_is_no_role(role):
    with pytest.raises(DeclarationError, match="fleet"):
        adapters.member_of(role)


def test_the_usual_model_is_the_roles_first(member):
    assert adapters.model_of(member, None) == "gpt-4o-mini"


@pytest.mark.parametrize("model", ["gpt-4o-mini", "claude-3-5-haiku", "openai/gpt-4o-mini", "gemini/gemini-2.5-pro"])
def test_a_model_that_the_role_may_use_is_taken(member, model):
    assert adapters.model_of(member, model) == model


@pytest.mark.parametrize("model", ["gpt-4o", "", 7])
def test_a_model_that_the_role_may_not_use_is_refused_before_any_request(member, gateway, model):
    with pytest.raises(DeclarationError, match="gpt-4o-mini, claude-3-5-haiku"):
        adapters.model_of(member, model)
    assert gateway.seen == []


def test_a_role_whose_first_model_is_a_pattern_needs_a_name(gateway):
    fleet = Fleet("crew", roles=[AgentRole("any", models=["openai/*"])]).connect(gateway.url, environ={})
    with pytest.raises(DeclarationError, match="names no single model"):
        adapters.model_of(fleet["any"], None)


# --- facts of models ------------------------------------------------------------------------------------------------
def test_facts_are_those_of_the_gateway(member, gateway):
    nemo = {"context_tokens": 128_000, "input_nanos_per_million": 150_000_000, "vision": False, "json_output": "yes"}
    gateway.answers.append(Told(body={"id": "openai/gpt-4o-mini", "nemo": {**nemo, "output_nanos_per_million": -1}}))
    facts = adapters.model_facts(member, "openai/gpt-4o-mini")
    assert facts == adapters.ModelFacts(context_tokens=128_000, input_nanos_per_million=150_000_000, vision=False)
    (seen,) = gateway.seen
    assert (seen.method, seen.path) == ("GET", "/v1/models/openai%2Fgpt-4o-mini")
    assert seen.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "told",
    [
        Told(status=404, body={"error": {"message": "no such model"}}),
        Told(status=500, body="broken"),
        Told(body=["what is this"]),
        Told(body={"id": "m"}),
    ],
)
def test_facts_that_nobody_tells_are_safe(member, gateway, told):
    gateway.answers.append(told)
    assert adapters.model_facts(member, "my-group") == adapters.ModelFacts()
    assert not adapters.ModelFacts().vision


def test_facts_need_no_gateway(tmp_path):
    with recording_gateway() as gone:
        url = gone.url
    fleet = Fleet("crew", roles=[ROLE]).connect(url, home=tmp_path, environ={"NEMO_KEY_FACT_CHECKER": KEY})
    assert adapters.model_facts(fleet["fact-checker"], "gpt-4o") == adapters.ModelFacts(vision=True)


@pytest.mark.parametrize(
    ("model", "sees"),
    [
        ("gpt-4o-mini", True),
        ("openai/gpt-5.2", True),
        ("o3", True),
        ("o3-mini", True),
        ("anthropic/claude-sonnet-4-5", True),
        ("vertex/google/gemini-2.5-pro", True),
        ("gpt-3.5-turbo", False),
        ("o30", False),
        ("my-gpt-4o", False),
    ],
)
def test_families_of_models_that_see(member, gateway, model, sees):
    gateway.answers.append(Told(status=404, body={}))
    assert adapters.model_facts(member, model).vision is sees


# --- versions -------------------------------------------------------------------------------------------------------
def test_a_fitting_framework_passes():
    adapters.check_versions("here", {"pytest": ">=1", "click": ">=8,<9"})


def test_what_does_not_fit_is_said_with_the_command():
    click = metadata.version("click")
    with pytest.raises(AdapterError) as caught:
        adapters.check_versions("nemo-agents-x", {"pytest": ">=1", "click": ">=99,<100", "no-such-thing": ">=1.0,<2"})
    assert str(caught.value) == (
        "nemo-agents-x needs click >=99,<100 and no-such-thing >=1.0,<2; "
        f"installed: click {click}, no no-such-thing. Run: pip install 'click>=99,<100' 'no-such-thing>=1.0,<2'"
    )


def test_switching_off_leaves_what_the_user_has_set(monkeypatch):
    monkeypatch.setenv("TEST_PHONES_HOME", "please")
    monkeypatch.delenv("TEST_PHONES_TOO", raising=False)
    adapters.switch_off({"TEST_PHONES_HOME": "no", "TEST_PHONES_TOO": "no"})
    assert (os.environ["TEST_PHONES_HOME"], os.environ.pop("TEST_PHONES_TOO")) == ("please", "no")


# --- the adapters that there are ------------------------------------------------------------------------------------
@pytest.fixture
def two_adapters(tmp_path, monkeypatch):
    """A folder of packages with a good adapter and one that cannot be loaded."""
    for name, version, entry, source in (
        (
            "nemo-agents-langchain",
            "0.1.0",
            "langchain = t_good_adapter",
            'FRAMEWORK = {"click": ">=8,<9", "nope": ">=1"}',
        ),
        ("their-adapter", "3.1", "theirs = t_bad_adapter", "raise ImportError('no framework')"),
    ):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[nemo_agents.adapters]\n{entry}\n")
        module = entry.rpartition(" ")[2]
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def test_adapters_are_found_by_their_entry_points(two_adapters):
    langchain, theirs = (each for each in adapters.installed() if each.name in ("langchain", "theirs"))
    assert (langchain.distribution, langchain.version, langchain.problem) == ("nemo-agents-langchain", "0.1.0", None)
    click, nope = langchain.frameworks
    assert (click.distribution, click.found, click.fits) == ("click", metadata.version("click"), True)
    assert (nope.found, nope.fits) == (None, False)
    assert (theirs.version, theirs.frameworks, theirs.problem) == ("3.1", (), "ImportError: no framework")


def test_the_command_shows_what_is_there_and_what_could_be(two_adapters):
    out = CliRunner().invoke(command, [])
    assert out.exit_code == 0
    lines = [line.split() for line in out.output.splitlines()]
    assert ["langchain", "0.1.0", "click", metadata.version("click"), ">=8,<9", "yes"] in lines
    assert ["nope", "-", ">=1", "-"] in lines
    assert "theirs: ImportError: no framework" in out.output
    assert ["crewai", "pip", "install", "nemo-agents-crewai"] in lines
    assert "pip install nemo-agents-langchain" not in out.output


def test_the_command_tells_programs(two_adapters):
    told = json.loads(CliRunner().invoke(command, ["--json"]).output)
    found = {each["name"]: each for each in told["installed"]}
    assert found["langchain"]["frameworks"][0] == {
        "distribution": "click",
        "wanted": ">=8,<9",
        "found": metadata.version("click"),
        "fits": True,
    }
    others = {each["name"]: each["install"] for each in told["available"]}
    assert others.get("crewai") == "pip install nemo-agents-crewai"
    assert "langchain" not in others


def test_the_command_without_any_adapter(monkeypatch):
    monkeypatch.setattr(adapters, "installed", list)
    out = CliRunner().invoke(command, [])
    assert out.output.startswith("No adapter is installed.")
    assert out.output.count("pip install") == len(adapters.KNOWN)
