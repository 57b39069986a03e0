"""`/nemo/prices` and `nemo-agents prices`: what counts is shown, and another table counts from the next request on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from nemo_agents.admin import prices as api
from nemo_agents.errors import AdminError
from nemo_agents.testing import running_gateway

HOUSE = {"input_per_mtok": 1, "output_per_mtok": 2, "per_request": 0.01}


def table(**prices):
    row = {"id": "gpt-4o", "match": {"starts_with": "gpt-4o"}, "prices": {"input_mtok": 7, "output_mtok": 9, **prices}}
    return json.dumps([{"id": "openai", "name": "OpenAI", "api_pattern": "x", "models": [row]}]).encode()


@pytest.fixture
def gateway(tmp_path):
    with running_gateway(tmp_path / "home", settings={"prices": {"corp/house": HOUSE}}) as running:
        yield running


@pytest.fixture
def admin(gateway):
    with gateway.admin() as client:
        yield client


def named(found):
    return {row.name: row for row in found.prices}


def test_prices_that_count_are_listed_with_their_source(admin):
    everything = admin.run(api.effective())
    assert everything.source == "package"
    assert everything.given is None
    assert len(everything.prices) > 500
    house = named(everything)["corp/house"]
    assert (house.version, house.request_nanos) == ("configuration", 10_000_000)
    one = admin.run(api.effective("openai/gpt-4o-mini"))
    assert named(one)["openai/gpt-4o-mini"].input == 150_000_000
    assert named(one)["openai/gpt-4o-mini"].version == everything.version
    dated = admin.run(api.effective("gpt-4o-2024-08-06"))
    assert [row.name for row in dated.prices] == ["openai/gpt-4o-2024-08-06"]
    assert admin.run(api.effective("no-such-model")).prices == []


def test_a_bare_name_without_a_price_shows_what_covers_every_model_of_a_provider(tmp_path):
    ollama = {"ollama": {"base_url": "http://127.0.0.1:11500/v1"}}
    with running_gateway(tmp_path / "home", settings={"providers": ollama}) as running, running.admin() as client:
        found = client.run(api.effective("llama3.2")).prices
        assert [(row.name, row.input, row.output) for row in found] == [("ollama/*", 0, 0)]
        exact = client.run(api.effective("ollama/llama3.2")).prices
        assert [(row.name, row.input) for row in exact] == [("ollama/llama3.2", 0)]


def test_another_table_counts_at_once_and_after_a_restart(tmp_path, gateway, admin):
    before = admin.run(api.effective()).version
    changed = admin.run(api.give(table(), source="file t.json", force=True))
    assert changed.former == before
    found = admin.run(api.effective("gpt-4o"))
    assert (found.version, found.source) == (changed.version, "file t.json")
    assert found.given is not None
    assert named(found)["openai/gpt-4o"].output == 9 * 10**9
    assert "corp/house" in named(admin.run(api.effective())), "what is declared counts over every table"
    with running_gateway(tmp_path / "other") as fresh, fresh.admin() as client:
        assert client.run(api.effective()).version == before
    (tmp_path / "third").mkdir(mode=0o700)
    (tmp_path / "third" / "prices.json").write_bytes((gateway.home / "prices.json").read_bytes())
    with running_gateway(tmp_path / "third") as again, again.admin() as client:
        assert client.run(api.effective()).version == changed.version
        assert client.run(api.reset()).version == before


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (table(input_mtok=-1), "openai, gpt-4o, input_mtok: must be dollars"),
        (table(input_mtok=7000), "1000 times off the former"),
        (table(input_mtok=None), "openai, gpt-4o, input_mtok: is missing"),
        (b'"text"', "must be a list of providers"),
    ],
)
def test_a_bad_table_is_one_clear_error_and_the_former_stays(admin, raw, said):
    before = admin.run(api.effective())
    with pytest.raises(AdminError, match="The former table stays") as refused:
        admin.run(api.give(raw, source="t"))
    assert refused.value.status == 400
    assert said in str(refused.value)
    assert admin.run(api.effective()) == before


def test_the_body_may_be_the_table_itself(gateway):
    headers = {"authorization": f"Bearer {gateway.admin_key.reveal()}", "content-type": "application/json"}
    with httpx.Client(base_url=gateway.url, headers=headers) as http:
        assert http.post("/nemo/prices", content=table(input_mtok=7000)).status_code == 400
        assert http.post("/nemo/prices?force=1", content=table(input_mtok=7000)).status_code == 200
        large = table()[:-1] + b" " * 3_000_000 + b"]"
        assert http.post("/nemo/prices?force=1", content=large).status_code == 200, "a whole table is large"
        assert http.post("/nemo/prices", content=b"{}").status_code == 422
        assert http.post("/nemo/prices", json={"table": [], "source": ""}).status_code == 400
    with httpx.Client(base_url=gateway.url) as http:
        assert http.get("/nemo/prices").status_code == 401
        assert http.post("/nemo/prices", content=table()).status_code == 401


def command(gateway, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "NEMO_ADMIN_KEY": gateway.admin_key.reveal(), "NO_COLOR": "1"}
    whole = [sys.executable, "-m", "nemo_agents", "prices", *args, "--gateway", gateway.url]
    return subprocess.run(
        whole, capture_output=True, text=True, env=environ, cwd=Path(__file__).parents[2], check=False, timeout=60
    )


def test_the_command_line_lists_updates_and_resets(tmp_path, gateway, admin):
    shown = command(gateway, "list", "--model", "corp/house")
    assert (shown.returncode, shown.stderr) == (0, "")
    cells = shown.stdout.splitlines()[-1].split()
    assert cells == ["corp/house", "$1", "$1", "$1", "$2", "$0.01/request", "configuration"]
    found = json.loads(command(gateway, "list", "--model", "gpt-4o-mini", "--json").stdout)
    assert {row["name"]: row["input"] for row in found["prices"]}["openai/gpt-4o-mini"] == 150_000_000

    path = tmp_path / "t.json"
    path.write_bytes(table())
    short = command(gateway, "update", str(path))
    assert short.returncode == 1
    assert "models disappear, e.g. " in short.stderr
    assert admin.run(api.effective()).source == "package"
    changed = command(gateway, "update", str(path), "--force")
    assert (changed.returncode, changed.stderr) == (0, "")
    version = admin.run(api.effective()).version
    assert version.startswith("given file t.json ")
    assert changed.stdout.startswith(f"{version} counts now, in place of genai-prices ")
    path.write_bytes(table(output_mtok=-9))
    refused = command(gateway, "update", str(path))
    assert refused.returncode == 1
    assert "openai, gpt-4o, output_mtok: must be dollars" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    path.write_bytes(table(output_mtok=9_000_000 // 10))
    assert command(gateway, "update", str(path)).returncode == 1
    assert command(gateway, "update", str(path), "--force").returncode == 0
    assert command(gateway, "reset").returncode == 0
    assert admin.run(api.effective()).source == "package"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("update", "missing.json"), "missing.json: cannot be read"),
        (("update", "README.md"), "README.md: is not JSON"),
        (("update", "http://example.invalid/data.json"), "fetch them by https"),
        (("update", "http://127.0.0.1:1/data.json"), "127.0.0.1:1/data.json: cannot be fetched"),
        (("list", "--model", "no-such-model"), "no price is known for 'no-such-model'"),
    ],
)
def test_the_command_line_says_in_one_line_what_is_wrong(gateway, args, said):
    ended = command(gateway, *args)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_command_line_fetches_a_table(gateway, admin):
    """From another gateway's own address, which answers with something that is no table: asked, and refused."""
    ended = command(gateway, "update", f"{gateway.url}/health/live")
    assert ended.returncode == 1
    assert "must be a list of providers" in ended.stderr
    assert admin.run(api.effective()).source == "package"
