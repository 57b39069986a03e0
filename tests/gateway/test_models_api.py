"""`/nemo/models` and `/nemo/providers/check`: what a gateway can reach, found by asking real servers on loopback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from faulty_provider import BEHAVIOURS, FaultyProvider

from nemo_agents.admin import models
from nemo_agents.admin.models import ModelsView, ProviderFinding, ProviderModels
from nemo_agents.gateway.upstream.probe import lists_models
from nemo_agents.testing import LocalGateway, running_gateway

KEY = "sk-canary-0123456789"


class Pages(ThreadingHTTPServer):
    """A server of a few pages: a path gives status, headers and body; `asked` has the paths and keys it was shown."""

    daemon_threads = True

    def __init__(self, pages: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.pages = pages
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Page(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("authorization")))
        status, headers, body = self.server.pages.get(self.path, (404, {}, b"no such page"))
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def listed(*names: str, owner: str = "tests") -> tuple[int, dict[str, str], bytes]:
    body = {"data": [{"id": name, "owned_by": owner} for name in names]}
    return 200, {"content-type": "application/json"}, json.dumps(body).encode()


@contextmanager
def serving(pages: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[Pages]:
    with Pages(pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with serving(
        {
            "/right/v1/models": listed("gpt-4o-mini", "house"),
            "/html/models": (200, {"content-type": "text/html"}, b"<html>welcome</html>"),
            "/moved/models": (302, {"location": "http://169.254.169.254/latest?token=secret"}, b""),
            "/closed/models": (401, {}, f"the key {KEY} is wrong".encode()),
        }
    ) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, pages: Pages, shared_provider: FaultyProvider):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        settings = {
            "providers": {
                "faulty": {"base_url": shared_provider.base_url, "wires": ["chat"]},
                "right": {"base_url": f"{pages.url}/right/v1", "priced_as": "openai", "api_key_env": "CORP_KEY"},
                "short": {"base_url": f"{pages.url}/right"},
                "long": {"base_url": f"{pages.url}/right/v1/v1"},
                "html": {"base_url": f"{pages.url}/html"},
                "moved": {"base_url": f"{pages.url}/moved"},
                "closed": {"base_url": f"{pages.url}/closed", "api_key_env": "CORP_KEY"},
                "dead": {"base_url": dead},
                "metadata": {"base_url": "http://169.254.169.254/v1", "allow_insecure": True},
            },
            "prices": {"right/house": {"input_per_mtok": "1", "output_per_mtok": "2"}},
        }
        environ = {"CORP_KEY": KEY, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{pages.url}/right/v1"}
        home: Path = tmp_path_factory.mktemp("models") / "home"
        with running_gateway(home, settings=settings, environ=environ) as running:
            yield running


def ask(gateway: LocalGateway, call):
    with gateway.admin() as client:
        return client.run(call)


def test_every_provider_is_asked_and_what_is_wrong_is_said(gateway: LocalGateway, pages: Pages):
    found: dict[str, ProviderFinding] = {each.provider: each for each in ask(gateway, models.check())}
    assert {name: each.level for name, each in found.items()} == {
        "faulty": "ok",
        "openai": "ok",
        "right": "ok",
        **dict.fromkeys(("short", "long", "html", "moved", "closed", "dead", "metadata"), "fail"),
    }
    assert found["faulty"].what == f"lists {len(BEHAVIOURS)} models"
    for name in ("short", "long"):
        assert f'base_url = "{pages.url}/right/v1" in [providers.{name}]' in found[name].remedy
    assert "text/html" in found["html"].what
    assert found["moved"].what.startswith("redirects to http://169.254.169.254/latest, where")
    assert "the key from CORP_KEY is not accepted" in found["closed"].what
    assert "no connection" in found["dead"].what
    assert "link-local" in found["metadata"].what
    told = str(found)
    assert KEY not in told
    assert "secret" not in told
    assert ("/right/v1/models", f"Bearer {KEY}") in pages.asked


def test_providers_are_listed_with_what_they_lack(gateway: LocalGateway):
    view: ModelsView = ask(gateway, models.reachable())
    rows = {row.name: row for row in view.providers}
    assert (rows["right"].credentials, rows["right"].key_env, rows["right"].lacks) == ("found", "CORP_KEY", None)
    assert (rows["faulty"].credentials, rows["faulty"].wires) == ("none", ["chat"])
    assert (rows["azure"].credentials, rows["azure"].lacks) == (
        "missing",
        "set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT",
    )
    assert rows["sandbox"].base_url == "(built in)"
    assert view.stand_in == "sandbox"
    assert KEY not in str(view)


def test_groups_say_which_of_their_deployments_lack_something(gateway: LocalGateway):
    for model in ("right/house", "groq/llama-3.3-70b-versatile"):
        with gateway.admin() as client:
            answer = client.run(_deployment("fast", model))
            assert answer
    view: ModelsView = ask(gateway, models.reachable())
    (group,) = [group for group in view.groups if group.name == "fast"]
    assert {each.model: each.lacks for each in group.deployments} == {
        "right/house": None,
        "groq/llama-3.3-70b-versatile": "set GROQ_API_KEY",
    }


def _deployment(group: str, model: str):
    from nemo_agents.admin.calls import Call

    body = {"model_name": group, "litellm_params": {"model": model}}
    return Call(method="POST", path="/model/new", body=body, decode=bytes)


def test_the_models_of_a_provider_have_price_context_and_other_places(gateway: LocalGateway):
    found: ProviderModels = ask(gateway, models.provider_models("right"))
    assert found.note is None
    rows = {row.model: row for row in found.models}
    assert (rows["house"].listed, rows["house"].input, rows["house"].output) == (True, 1_000_000_000, 2_000_000_000)
    mini = rows["gpt-4o-mini"]
    assert (mini.listed, mini.also_at, mini.bare_goes_to) == (True, ["openai"], "openai")
    assert mini.input
    assert mini.context_tokens == 128_000
    assert rows["gpt-4o"].listed is False  # in the price table, and not in the provider's own list


@pytest.mark.parametrize(
    ("provider", "note"), [("closed", "not accepted"), ("groq", "set GROQ_API_KEY"), ("dead", "no connection")]
)
def test_where_the_provider_gives_no_list_the_note_says_why(gateway: LocalGateway, provider: str, note: str):
    found: ProviderModels = ask(gateway, models.provider_models(provider))
    assert note in (found.note or "")
    assert all(row.listed is None for row in found.models)
    assert bool(found.models) == (provider == "groq")


def test_an_unknown_provider_is_not_found_and_a_virtual_key_may_not_ask(gateway: LocalGateway):
    import httpx

    admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
    with httpx.Client(base_url=gateway.url, trust_env=False) as http:
        assert http.get("/nemo/models/nobody", headers=admin).status_code == 404
        key = http.post("/key/generate", json={}, headers=admin).json()["key"]
        for path in ("/nemo/models", "/nemo/models/openai", "/nemo/providers/check"):
            assert http.get(path, headers={"authorization": f"Bearer {key}"}).status_code == 403


# --- servers on this machine -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("page", "anybody", "vllm"),
    [
        (listed("m", owner="vllm"), True, True),
        (listed("m", owner="library"), True, False),
        ((200, {}, b'{"object": "list", "data": null}'), True, False),
        ((200, {}, b"<html>"), False, False),
        ((200, {}, b'{"detail": "hello"}'), False, False),
        ((404, {}, b"{}"), False, False),
    ],
)
def test_only_a_list_of_models_counts_as_a_server_for_them(page, anybody, vllm):
    with serving({"/v1/models": page}) as server:
        assert lists_models(f"{server.url}/v1") is anybody
        assert lists_models(f"{server.url}/v1", "vllm") is vllm


def test_nobody_but_this_machine_is_asked():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert lists_models(f"http://127.0.0.1:{unused.getsockname()[1]}/v1") is False
    assert lists_models("http://192.0.2.1/v1") is False
