"""What only an extra installs, really installed: LiteLLM, AWS signatures, Google's tokens; the far side is on loopback.

The gateway runs in an environment of its own, made once from a lock with hashes. Whatever it would ask of the world
goes to a proxy that counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty_provider import FaultyProvider, run_faulty_provider

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)  # the first of them installs
AWS_KEY, AWS_SECRET, REGION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-west-1"
TOKEN = "ya29.canary-0123456789"
RSA_KEY = """
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
key = generate_private_key(65537, 2048)
print(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
"""
MESSAGES = [{"role": "user", "content": "hi there"}]


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of an environment with the extras, made when its lock is new; one worker makes it."""
    lock = (ROOT / ".ci" / "requirements-extras.txt").read_bytes()
    folder = Path(sys.prefix) / f"extras-{hashlib.sha256(lock).hexdigest()[:12]}"
    with Path(f"{folder}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        done = subprocess.run(
            [ROOT / ".ci" / "extras-env", sys.executable, folder], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "python"


class Recorder(ThreadingHTTPServer):
    """A server that keeps what it is sent; it gives tokens as Google's does, and answers as a provider."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def chats(self, prefix: str) -> list[tuple[str, dict[str, str], bytes]]:
        return [each for each in self.seen if each[0].startswith(prefix)]


class _Recording(BaseHTTPRequestHandler):
    server: Recorder

    def do_CONNECT(self) -> None:  # the first word to a proxy
        self.server.seen.append((self.path, {}, b""))
        self.send_error(403)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        answer: dict[str, Any] = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        if self.path != "/token":
            answer = {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
            }
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.do_CONNECT()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def recording() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A gateway in the environment with the extras, and what is around it."""

    http: httpx.Client
    admin: dict[str, str]
    key: dict[str, str]
    faulty: FaultyProvider
    cloud: Recorder
    outside: Recorder

    def chat(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": MESSAGES, **fields}
        return self.http.post("/v1/chat/completions", json=body, headers=self.key)

    def call(self, answer: httpx.Response) -> Any:
        """The record of the call that was answered so."""
        path = f"/nemo/calls/{answer.headers['x-nemo-request-id']}"
        return self.http.get(path, headers=self.admin).json()


@pytest.fixture(scope="module")
def bench(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("extras")
    with run_faulty_provider() as faulty, recording() as cloud, recording() as outside:
        robot = {
            "type": "service_account",
            "client_email": "robot@corp-1.iam.gserviceaccount.com",
            "private_key": subprocess.run([python, "-c", RSA_KEY], capture_output=True, text=True, check=True).stdout,
            "token_uri": f"{cloud.url}/token",
        }
        (folder / "robot.json").write_text(json.dumps(robot))
        (folder / "gateway.toml").write_text(_config(cloud))
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "NEMO_ADMIN_KEY": "sk-of-the-operator",
            "HOSTED_VLLM_API_BASE": faulty.base_url,
            "HOSTED_VLLM_API_KEY": "sk-of-the-vllm",
            "AWS_ACCESS_KEY_ID": AWS_KEY,
            "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "robot.json"),
            **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), outside.url),
            "NO_PROXY": "127.0.0.1",
        }
        command = [python, "-m", "nemo_agents", "gateway", "--port", "0", "--home", folder / "home"]
        with subprocess.Popen(
            [*map(str, command), "--config", str(folder / "gateway.toml")], env=env, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                with _clients(process) as http:
                    admin = {"authorization": "Bearer sk-of-the-operator"}
                    made = http.post("/key/generate", json={"max_budget": 1000}, headers=admin).json()
                    key = {"authorization": f"Bearer {made['key']}"}
                    yield Bench(http=http, admin=admin, key=key, faulty=faulty, cloud=cloud, outside=outside)
            finally:
                process.terminate()
                process.wait(timeout=30)


@contextmanager
def _clients(process: subprocess.Popen[str]) -> Iterator[httpx.Client]:
    assert process.stdout is not None
    url = next((line.split("listening on ", 1)[1].split()[0] for line in process.stdout if "listening on " in line), "")
    assert url, "the gateway did not start"
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        yield http


def _config(cloud: Recorder) -> str:
    return f"""
[gateway]
sandbox = "off"
log_level = "error"
[providers.litellm]
[providers.bedrock]
base_url = "{cloud.url}/bedrock/openai/v1"
auth = "sigv4"
region = "{REGION}"
[providers.vertex]
base_url = "{cloud.url}/vertex/endpoints/openapi"
project = "corp-1"
[prices."litellm/*"]
input_per_mtok = 1
output_per_mtok = 2
[prices."bedrock/*"]
input_per_mtok = 1
output_per_mtok = 2
[prices."vertex/*"]
input_per_mtok = 1
output_per_mtok = 2
"""


# --- LiteLLM -----------------------------------------------------------------------------------------------------
def test_litellm_answers_like_any_provider_and_is_charged_like_one(bench: Bench):
    bench.faulty.reset()
    answer = bench.chat("litellm/hosted_vllm/ok", temperature=0.5, max_tokens=5)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "The answer is forty two"
    (seen,) = bench.faulty.seen()["requests"]
    assert (seen["body"]["temperature"], seen["body"]["max_tokens"]) == (0.5, 5)
    assert seen["headers"]["authorization"] == "Bearer sk-of-the-vllm"
    usage = body["usage"]
    assert answer.headers["x-nemo-request-cost"]
    assert usage["prompt_tokens"] == 2  # as the provider counts: words
    assert bench.call(answer)["cost_nanos"] == usage["prompt_tokens"] * 1_000 + usage["completion_tokens"] * 2_000


def test_litellm_streams_with_its_usage_at_the_end(bench: Bench):
    body = {"model": "litellm/hosted_vllm/ok", "messages": MESSAGES, "stream": True}
    with bench.http.stream("POST", "/v1/chat/completions", json=body, headers=bench.key) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text.startswith("The answer is forty two")
    call = bench.call(answer)
    assert (call["state"], call["usage_source"]) == ("ok", "provider")
    assert (call["input_tokens"], call["output_tokens"]) == (2, len(text.split()))  # not what LiteLLM counts itself


@pytest.mark.parametrize("stream", [False, True])
def test_where_a_provider_tells_no_usage_litellms_own_count_is_not_taken_for_it(bench: Bench, stream: bool):
    answer = bench.chat("litellm/hosted_vllm/usage-missing", stream=stream, max_tokens=50)
    assert answer.status_code == 200
    call = bench.call(answer)
    assert call["usage_source"] == "hold"
    assert call["cost_nanos"] > 50 * 2_000


def test_litellm_embeds(bench: Bench):
    body = {"model": "litellm/hosted_vllm/ok", "input": ["a b", "c"]}
    answer = bench.http.post("/v1/embeddings", json=body, headers=bench.key)
    assert answer.status_code == 200, answer.text
    assert [each["index"] for each in answer.json()["data"]] == [0, 1]


@pytest.mark.parametrize(("behaviour", "status"), [("rate-limited", 429), ("bad-request", 400), ("unauthorized", 401)])
def test_what_a_provider_refuses_through_litellm_is_its_refusal_and_costs_nothing(
    bench: Bench, behaviour: str, status: int
):
    answer = bench.chat(f"litellm/hosted_vllm/{behaviour}")
    assert answer.status_code >= 400
    call = bench.call(answer)
    assert {attempt["status"] for attempt in call["attempt_rows"]} == {status}
    assert not call["cost_nanos"]


@pytest.mark.parametrize("behaviour", ["error-500", "drop-before-head", "drop-mid-stream"])
def test_what_breaks_behind_litellm_is_charged_at_the_hold(bench: Bench, behaviour: str):
    bench.faulty.reset()
    answer = bench.chat(f"litellm/hosted_vllm/{behaviour}", stream=behaviour == "drop-mid-stream")
    assert answer.status_code in (200, 502)
    call = bench.call(answer)
    assert call["state"] == "failed"
    assert call["cost_nanos"] > 0
    assert len(bench.faulty.seen()["requests"]) == call["attempts"]  # LiteLLM itself tries nothing again


@pytest.mark.parametrize(
    "body",
    [
        {"model": "litellm/hosted_vllm/ok", "mock_response": "free"},
        {"model": "litellm/hosted_vllm/ok", "fallbacks": ["x"]},
        {"model": "litellm/hosted_vllm/ok", "aws_bedrock_runtime_endpoint": "http://127.0.0.1:1"},
        {"model": "litellm/huggingface/http://127.0.0.1:1/x"},
    ],
)
def test_litellm_is_given_no_argument_that_is_not_openais(bench: Bench, body: dict[str, Any]):
    bench.faulty.reset()
    answer = bench.chat(**body)
    assert answer.status_code == 400, answer.text
    assert bench.faulty.seen()["requests"] == []


# --- clouds ------------------------------------------------------------------------------------------------------
def test_bedrock_gets_a_signature_that_aws_would_accept(bench: Bench):
    answer = bench.chat("bedrock/openai.gpt-oss-120b-1:0")
    assert answer.status_code == 200, answer.text
    path, headers, body = bench.cloud.chats("/bedrock/")[-1]
    scheme, _, rest = headers["authorization"].partition(" ")
    parts = dict(part.split("=", 1) for part in rest.split(", "))
    date, amz_date = headers["x-amz-date"][:8], headers["x-amz-date"]
    scope = f"{date}/{REGION}/bedrock/aws4_request"
    assert (scheme, parts["Credential"]) == ("AWS4-HMAC-SHA256", f"{AWS_KEY}/{scope}")
    assert {"content-type", "host", "x-amz-date"} <= set(parts["SignedHeaders"].split(";"))
    # "Create a signed AWS API request", AWS Identity and Access Management
    signed = "".join(f"{name}:{headers[name].strip()}\n" for name in parts["SignedHeaders"].split(";"))
    canonical = "\n".join(("POST", path, "", signed, parts["SignedHeaders"], hashlib.sha256(body).hexdigest()))
    text = "\n".join((scheme, amz_date, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{AWS_SECRET}".encode()
    for word in (date, REGION, "bedrock", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    assert parts["Signature"] == hmac.new(key, text.encode(), "sha256").hexdigest()


def test_vertex_gets_a_token_once_for_many_requests(bench: Bench):
    for _ in range(3):
        answer = bench.chat("vertex/google/gemini-2.5-flash")
        assert answer.status_code == 200, answer.text
    requests = bench.cloud.chats("/vertex/")
    assert [headers["authorization"] for _, headers, _ in requests] == [f"Bearer {TOKEN}"] * 3
    assert requests[0][0] == "/vertex/endpoints/openapi/chat/completions"
    assert json.loads(requests[0][2])["model"] == "google/gemini-2.5-flash"
    assert len(bench.cloud.chats("/token")) == 1


def test_the_clouds_say_what_they_lack_in_words(bench: Bench):
    found = bench.http.get("/nemo/models", headers=bench.admin).json()["providers"]
    told = {row["name"]: row["credentials"] for row in found if row["name"] in ("litellm", "bedrock", "vertex")}
    assert told == {"litellm": "none", "bedrock": "found", "vertex": "found"}


# --- nobody is told ----------------------------------------------------------------------------------------------
def test_nothing_was_asked_of_the_world(bench: Bench):
    assert bench.chat("litellm/hosted_vllm/ok").status_code == 200  # so that LiteLLM is imported, whatever ran before
    assert bench.outside.seen == []
