"""What the documentation says is what the code does."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

import nemo_agents
from nemo_agents import Code, Fleet, testing
from nemo_agents.admin import headers
from nemo_agents.cli import COMMANDS
from nemo_agents.errors import ErrorFacts, error_from_response
from nemo_agents.gateway.admin import ROUTES
from nemo_agents.gateway.otlp.intake import TRACES
from nemo_agents.gateway.providers import KEY_ENV_OF
from nemo_agents.gateway.sandbox.script import Script
from nemo_agents.policy.guardrails import BUILTIN
from nemo_agents.policy.wires.table import WIRES
from nemo_agents.provision.load import load_fleet
from nemo_agents.provision.render import plan_to_text
from nemo_agents.roles import AgentRole, Budget, FleetDeclaration, Loop, ModelGroup, RateLimit
from nemo_agents.testing import LocalGateway, running_gateway

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial" / "first-fleet.md"
PAGES = sorted([ROOT / "README.md", *ROOT.glob("examples/**/*.md"), *DOCS.glob("**/*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text(encoding="utf-8")


def first_cells(page: str) -> list[str]:
    """The first cell of every row of every table."""
    return [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]


def run_program(gateway: LocalGateway, program: Path) -> str:
    """Run a program as a user would, with the gateway's address and key store in its environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NEMO_")}
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=program.parent,
        env={**environ, "NEMO_GATEWAY_URL": gateway.url, "NEMO_HOME": str(gateway.home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl_bodies(page: Path) -> list[str]:
    """The chat requests that a page has its reader send with curl."""
    return [body for text in blocks(page, "console") for body in re.findall(r"-d '(\{.*\"messages\".*\})'", text)]


def chat(gateway: LocalGateway, key: str, body: str) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        content=body,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        trust_env=False,
    )


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    """A folder with the files that the tutorial has its reader write."""
    fleet, use, spend = blocks(TUTORIAL, "python")
    (tmp_path / "fleet.py").write_text(fleet, encoding="utf-8")
    (tmp_path / "fleet.toml").write_text(blocks(TUTORIAL, "toml")[0], encoding="utf-8")
    (tmp_path / "use.py").write_text(use, encoding="utf-8")
    (tmp_path / "spend.py").write_text(spend, encoding="utf-8")
    return tmp_path


# --- what can be run ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_can_be_read(page: Path):
    for number, body in enumerate(blocks(page, "python")):
        compile(body, f"{page.name} block {number}", "exec")
    for body in blocks(page, "toml"):
        tomllib.loads(body)


def test_no_page_has_a_command_that_prints_the_environment_when_it_fails():
    """A bare `export` does; with the quotes, what failed is an empty name, which every shell refuses."""
    commands = [line for page in PAGES for body in blocks(page, "console") for line in body.splitlines()]
    exports = [line.removeprefix("$ ") for line in commands if line.startswith("$ export ") and "$(" in line]
    assert exports
    environ = {"PATH": "/usr/bin:/bin", "NEMO_CANARY": "canary-of-the-environment"}
    for line in exports:
        failing = line.replace("nemo-agents", "false")
        done = subprocess.run(["sh", "-c", failing], env=environ, capture_output=True, text=True, check=False)
        assert "canary" not in done.stdout + done.stderr, line


def test_readme_shows_the_quickstart_as_it_is():
    (shown,) = blocks(ROOT / "README.md", "python")
    _, _, code = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").partition('"""\n\n')
    assert shown == code


def test_readme_example_runs_and_its_plan_is_the_real_one(tmp_path: Path):
    program = tmp_path / "quickstart.py"
    program.write_text(blocks(ROOT / "README.md", "python")[0], encoding="utf-8")
    with running_gateway(tmp_path / "home") as gateway:
        fleet = Fleet.from_file(program)
        plan = plan_to_text(gateway.plan(fleet))
        assert plan in (ROOT / "README.md").read_text(encoding="utf-8")
        gateway.provision(fleet)
        shown = next(line for line in blocks(ROOT / "README.md", "console")[3].splitlines() if line.startswith("ok "))
        printed = run_program(gateway, program)
        assert printed.split(" http")[0] == shown.split(" http")[0]
        assert gateway.ledger_problems() == []


def test_both_files_of_the_tutorial_declare_one_fleet(tutorial: Path):
    assert load_fleet(tutorial / "fleet.py") == load_fleet(tutorial / "fleet.toml")


def test_tutorial_does_what_it_shows(tutorial: Path):
    text = TUTORIAL.read_text(encoding="utf-8")
    with running_gateway(tutorial / "home") as gateway:
        fleet = load_fleet(tutorial / "fleet.py")
        assert plan_to_text(gateway.plan(fleet)) in text
        reader = gateway.provision(fleet)["reader"].key.reveal()
        assert plan_to_text(gateway.plan(fleet)) in text
        used = run_program(gateway, tutorial / "use.py").splitlines()
        assert used[0] in text
        answers = [chat(gateway, reader, body) for body in curl_bodies(TUTORIAL)]
        assert [answer.status_code for answer in answers] == [200, 403]
        assert answers[0].headers["x-nemo-budget-remaining"] in text
        assert answers[1].json()["error"]["message"] in text
        spent = run_program(gateway, tutorial / "spend.py").splitlines()
        assert spent[0] in text
        assert spent[1] in text
        assert spent[2].startswith("402 budget_exhausted resets at ")
        (tutorial / "fleet.py").write_text(
            (tutorial / "fleet.py").read_text(encoding="utf-8").replace("$0.02/day", "$0.50/day"), encoding="utf-8"
        )
        assert plan_to_text(gateway.plan(load_fleet(tutorial / "fleet.py"))) in text
        assert gateway.ledger_problems() == []


def test_the_tests_that_are_shown_pass(tmp_path: Path):
    names: dict[str, object] = {}
    exec(blocks(DOCS / "how-to" / "test-your-agents.md", "python")[0], names)
    shown = {name: test for name, test in names.items() if name.startswith("test_")}
    assert len(shown) == 2
    for name, test in shown.items():
        (tmp_path / name).mkdir(mode=0o700)
        test(tmp_path / name)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["fleet.py", "fleet.toml"])
def test_research_crew_runs(tmp_path: Path, name: str):
    folder = ROOT / "examples" / "research_crew"
    with running_gateway(tmp_path) as gateway:
        gateway.provision(load_fleet(folder / name))
        printed = run_program(gateway, folder / "crew.py")
    assert printed.startswith("ok: 9 calls, ")


# --- what must be complete ---------------------------------------------------------------------------------------
def test_every_code_is_explained_with_the_error_it_raises():
    rows = {}
    for line in reference("errors.md").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 7 and cells[1].startswith("`"):
            rows[cells[1].strip("`")] = cells[2], cells[5].strip("`")
    assert sorted(rows) == sorted(Code)
    for code, (status, raised) in rows.items():
        error = error_from_response({}, ErrorFacts(status=int(status[:3]), code=code))
        assert type(error).__name__ == raised, code


def test_every_header_is_explained():
    page = reference("headers.md")
    names = [value for name, value in vars(headers).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 15
    for name in [*names, *headers.RUN_ALIASES]:
        assert f"`{name}`" in page, name


def test_every_public_name_is_listed_and_no_other():
    tables = first_cells(reference("python.md"))
    listed = sorted(cell.strip("`") for cell in tables if cell.startswith("`"))
    assert listed == sorted([*nemo_agents.__all__, *testing.__all__])


def test_every_endpoint_is_listed_and_no_other():
    page = reference("http-api.md")
    listed = set(re.findall(r"`((?:GET|POST) /[^`?]*)", page))
    real = {f"{route.method} {route.path}" for route in ROUTES}
    real = {name.replace("{key:path}", "{key}").replace("{run_id:path}", "{run_id}") for name in real}
    others = {f"POST {TRACES}", "GET /v1/models", "GET /v1/models/{model}"}
    assert listed == real | {f"POST {path}" for path in WIRES} | others


def test_every_field_of_the_sandbox_is_explained():
    listed = [cell.strip("`") for cell in first_cells(reference("sandbox.md")) if cell.startswith("`")]
    assert sorted(listed) == sorted(field.name for field in dataclasses.fields(Script))


@pytest.mark.parametrize("kind", [FleetDeclaration, AgentRole, ModelGroup])
def test_every_field_of_a_declaration_is_explained(kind: type):
    page = reference("fleet-file.md")
    for field in dataclasses.fields(kind):
        assert f"`{field.name}`" in page, field.name


BUDGET = ("period", "tz", "alert_at", "mode")


def test_every_part_of_a_budget_and_every_guardrail_is_explained():
    page = reference("fleet-file.md")
    assert {field.name for field in dataclasses.fields(Budget)} == {"amount_nanos", *BUDGET}
    names = [*BUDGET, *(field.name for kind in (RateLimit, Loop) for field in dataclasses.fields(kind))]
    for name in ("amount", *names, *BUILTIN):
        assert f"`{name}`" in page, name
    for name in BUILTIN:
        assert f"`{name}`" in (DOCS / "explanation" / "guardrails.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    for name in COMMANDS:
        assert re.search(rf"`{name}\b", text), name


def test_every_known_provider_is_listed_with_its_variable():
    page = (DOCS / "how-to" / "connect-providers.md").read_text(encoding="utf-8")
    for provider, variable in KEY_ENV_OF.items():
        assert re.search(rf"^\| `{provider}` \| `{variable}`", page, re.MULTILINE), provider


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*/*.md"):
        assert f"({page.relative_to(DOCS)})" in index, page


# --- what must not be there --------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_tells_a_secret_or_a_place_on_one_machine(page: Path):
    text = page.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert re.search(r"sk-nemo-[a-z2-7]{10}-[0-9A-Za-z]{38}|sk-nemo-admin-\w{20}", text) is None
    assert re.search(r"(?<![\w.])/(?:home|root|Users|tmp)/", text) is None
