"""`nemo-agents models` and what `doctor` says about providers, before a gateway in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_shell import Shell, make_shell, plain
from faulty_provider import run_faulty_provider

from nemo_agents import ModelGroup
from nemo_agents.testing import running_gateway

KEY = "sk-canary-0123456789"
GROUP = {"model_name": "fast", "litellm_params": {"model": "groq/llama-3.3-70b-versatile"}}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("models")
    with run_faulty_provider() as faulty, contextlib.ExitStack() as stack:
        settings = {
            "providers": {
                "corp": {"base_url": faulty.base_url, "api_key_env": "CORP_KEY", "wires": ["chat"]},
                "typo": {"base_url": faulty.root},
            },
            "prices": {"corp/ok": {"input_per_mtok": "1.5", "output_per_mtok": "2"}},
            "groups": (ModelGroup("of-the-file", ["corp/ok"]), ModelGroup("fast", ["corp/hidden"])),
        }
        home = folder / "home"
        gateway = stack.enter_context(running_gateway(home, settings=settings, environ={"CORP_KEY": KEY}))
        with gateway.admin() as client:
            from nemo_agents.admin.calls import Call, ignored

            client.run(Call(method="POST", path="/model/new", body=GROUP, decode=ignored))
        admin = gateway.admin_key.reveal()
        yield make_shell(folder, NEMO_GATEWAY_URL=gateway.url, NEMO_ADMIN_KEY=admin, NEMO_HOME=str(home))


def lines_of(out: str) -> dict[str, str]:
    return {line.split()[0]: " ".join(line.split()[1:]) for line in plain(out).splitlines() if line.split()}


def test_models_shows_groups_providers_and_what_is_lacking(here: Shell):
    done = here.run("models")
    assert (done.code, done.err) == (0, "")
    lines = lines_of(done.out)
    assert lines["fast"] == "- groq/llama-3.3-70b-versatile (!)"  # it goes before the file's group of that name
    assert lines["of-the-file"] == "- corp/ok"
    assert lines["(!)"] == "groq/llama-3.3-70b-versatile: set GROQ_API_KEY"
    assert lines["corp"].startswith("from CORP_KEY chat http://127.0.0.1:")
    assert lines["typo"].startswith("none needed chat, embeddings http://127.0.0.1:")
    assert lines["azure"].startswith("set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT ")
    assert "sandbox answers for every model whose provider has no credentials." in done.out
    assert KEY not in done.out


def test_models_of_a_provider_have_price_and_context(here: Shell):
    done = here.run("models", "--provider", "corp")
    assert lines_of(done.out)["ok"] == "$1.50 $2 - - corp"  # the one that the bare name goes to, by its declared price
    assert lines_of(done.out)["echo"] == "- - - - -"
    openai = here.run("models", "--provider", "openai")
    assert openai.code == 0
    row = lines_of(openai.out)["gpt-4o-mini"].split()
    assert (row[0], row[1], row[2], row[-1]) == ("$0.15", "$0.60", "128,000", "openai")
    assert "openai has no credentials: set OPENAI_API_KEY." in openai.out


def test_models_as_json_has_everything(here: Shell):
    found = here.run("models", "--json").json
    assert {row["name"]: row["credentials"] for row in found["providers"]}["corp"] == "found"
    rows = here.run("models", "--provider", "corp", "--json").json["models"]
    assert {row["model"]: row["input"] for row in rows}["ok"] == 1_500_000_000


def test_models_of_nobody_is_one_line(here: Shell):
    said = here.run("models", "--provider", "nobody").error()
    assert said.startswith("error: there is no provider 'nobody'. There are: corp, typo, ")


@pytest.mark.parametrize("columns", [60, 100])
def test_models_fits_a_terminal(here: Shell, columns: int):
    for args in (("models",), ("models", "--provider", "openai")):
        out = plain(here.in_terminal(*args, columns=columns).out)
        assert max(map(len, out.splitlines())) <= columns


def test_doctor_asks_every_provider_and_says_what_to_mend(here: Shell, tmp_path: Path):
    done = here.given(HOME=str(tmp_path)).run("doctor", "--json")
    found = {each["what"].partition(":")[0]: each for each in done.json if each["what"].startswith("provider ")}
    assert found["provider corp"]["level"] == "ok"
    assert found["provider typo"]["level"] == "fail"
    assert '/v1" in [providers.typo]' in found["provider typo"]["remedy"]
    assert done.code == 1
    assert KEY not in done.out
