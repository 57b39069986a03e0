"""What a provider says to refuse a call is passed on without the credentials that it was shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from gateway_bench import PROVIDER_KEY

from nemo_agents.testing import LocalGateway, running_gateway

CALL = {"model": "telling/any", "messages": [{"role": "user", "content": "hi"}]}


class Telling(BaseHTTPRequestHandler):
    """Refuses every call, and repeats the headers of it; the model's name says with which status."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer with what was asked."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = f"bad key {self.headers['authorization']} from {self.headers['x-tenant']}"
        raw = json.dumps({"error": {"message": said, "type": "invalid_request_error"}}).encode()
        self.send_response(int(body["model"]))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    home: Path = tmp_path_factory.mktemp("telling") / "home"
    with ThreadingHTTPServer(("127.0.0.1", 0), Telling) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        provider = {
            "base_url": f"http://127.0.0.1:{server.server_address[1]}/v1",
            "api_key_env": "TELLING_KEY",
            "headers": {"x-tenant": f"tenant-{PROVIDER_KEY}"},
        }
        settings = {"providers": {"telling": provider}, "sandbox": "off", "retries": 0}
        try:
            with running_gateway(home, settings=settings, environ={"TELLING_KEY": PROVIDER_KEY}) as running:
                yield running
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [400, 401, 403, 422, 429, 500, 202])
def test_no_credential_reaches_the_client_or_the_log(gateway: LocalGateway, status: int):
    with httpx.Client(base_url=gateway.url) as http:
        admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
        issued = http.post("/key/generate", json={"models": ["telling/*"]}, headers=admin).json()
        key = {"authorization": f"Bearer {issued['key']}"}
        answer = http.post("/v1/chat/completions", json={**CALL, "model": f"telling/{status}"}, headers=key)
        row = http.get(f"/nemo/calls/{answer.headers['x-nemo-request-id']}", headers=admin)
    assert answer.status_code >= 400
    assert "bad key Bearer [concealed] from [concealed]" in answer.text
    assert "bad key Bearer [concealed] from [concealed]" in row.text
    assert PROVIDER_KEY not in answer.text + row.text + str(answer.headers)
