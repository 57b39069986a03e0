"""compose.yaml, Dockerfile and what they mount name only what there is; no container is run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_agents.cli.gateway import gateway as gateway_command
from nemo_agents.gateway.addresses import PASSWORD_OF
from nemo_agents.gateway.admin import ROUTES
from nemo_agents.gateway.providers import KEY_ENV_OF
from nemo_agents.gateway.settings import load_settings
from nemo_agents.policy.hosts import host_allowed

ROOT = Path(__file__).parents[2]
OWN = {
    name
    for source in (ROOT / "nemo_agents").rglob("*.py")
    for name in re.findall(r'"(NEMO_[A-Z_]+)"', source.read_text(encoding="utf-8"))
}
KNOWN_TO_THE_GATEWAY = {*OWN, *PASSWORD_OF.values(), *KEY_ENV_OF.values()}
GATEWAYS = ("gateway-1", "gateway-2", "gateway-3")
HEALTH = "/health/ready"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_three_gateways_share_everything(services: dict[str, Any]):
    first = services[GATEWAYS[0]]
    assert [services[name] for name in GATEWAYS] == [first] * 3


def test_a_gateway_is_given_only_what_it_reads(services: dict[str, Any]):
    for name in GATEWAYS:
        assert set(services[name]["environment"]) <= KNOWN_TO_THE_GATEWAY
        program, *flags = services[name]["command"]
        assert program == "gateway"
        options = {option for parameter in gateway_command.params for option in parameter.opts}
        assert {flag for flag in flags if flag.startswith("-")} <= options


def test_every_secret_is_named_in_the_example_and_none_has_a_default(services: dict[str, Any]):
    example = text_of(".env.example")
    offered = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    compose_text = text_of("compose.yaml")
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", compose_text))
    assert used == offered
    required = set(re.findall(r"\$\{([A-Z_]+):\?see \.env\.example\}", compose_text))
    assert required == {"NEMO_ADMIN_KEY", "NEMO_PEPPER", "NEMO_VIEWER_TOKEN", "POSTGRES_PASSWORD", "VALKEY_PASSWORD"}
    for name in required:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} must be filled in by whoever starts it"
    assert not re.search(r"sk-[a-z]", compose_text + example)


def test_the_mounted_settings_are_settings(services: dict[str, Any]):
    for name in GATEWAYS:
        (mount,) = services[name]["volumes"]
        source, inside, access = mount.split(":")
        assert access == "ro"
        assert services[name]["command"][-1] == inside
        settings = load_settings(Path("/nowhere"), config=ROOT / source)
        assert settings.host == "0.0.0.0"
        for each in GATEWAYS:
            assert host_allowed(f"{each}:{settings.port}", settings.allowed_hosts)
        assert settings.database == f"postgresql://{services['postgres']['environment']['POSTGRES_USER']}@postgres/nemo"
        assert settings.cache.startswith("redis://valkey:")


def test_passwords_are_not_in_the_mounted_settings():
    document = tomllib.loads(text_of("deploy/gateway.toml"))
    for setting in ("database", "cache"):
        assert (
            ":" not in document["gateway"][setting].partition("://")[2].partition("@")[0]
            or "@" not in (document["gateway"][setting])
        )


def test_the_balancer_asks_every_gateway_whether_it_is_ready(services: dict[str, Any]):
    caddyfile = text_of("deploy/Caddyfile")
    upstreams = re.search(r"reverse_proxy (.*) \{", caddyfile)
    assert upstreams is not None
    assert upstreams[1].split() == [f"{name}:4141" for name in GATEWAYS]
    assert f"health_uri {HEALTH}" in caddyfile
    assert "flush_interval -1" in caddyfile
    assert HEALTH in {route.path for route in ROUTES}
    assert set(services["balancer"]["depends_on"]) == set(GATEWAYS)
    assert services["balancer"]["ports"] == ["127.0.0.1:${NEMO_PORT:-4141}:4141"]


def test_what_must_last_is_on_a_volume_and_nothing_else_is_open(compose: dict[str, Any], services: dict[str, Any]):
    named = {mount.split(":")[0] for each in services.values() for mount in each.get("volumes", ())}
    assert set(compose["volumes"]) == {name for name in named if not name.startswith("./")}
    assert [name for name, each in services.items() if "ports" in each] == ["balancer"]
    for name in ("postgres", "valkey"):
        assert services[name]["healthcheck"]["retries"] >= 3
    for name in named:
        assert not name.startswith("./") or (ROOT / name).is_file()


def test_the_image_is_of_our_extras_runs_as_nobody_in_particular_and_knows_if_it_is_well(dockerfile: str):
    extras = re.search(r"\.\[([a-z,]+)\]", dockerfile)
    assert extras is not None
    declared = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) == {"postgres", "redis"} <= set(declared)
    last_stage = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER nemo$", last_stage, re.MULTILINE)
    assert last_stage.index("USER nemo") < last_stage.index("ENTRYPOINT")
    assert HEALTH in last_stage
    assert 'ENTRYPOINT ["nemo-agents"]\nCMD ["gateway"]' in last_stage


def test_what_is_copied_into_the_image_exists_and_is_not_ignored(dockerfile: str):
    ignored = text_of(".dockerignore").splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert set(copied) == let_through
    for name in copied:
        assert (ROOT / name).exists(), name
