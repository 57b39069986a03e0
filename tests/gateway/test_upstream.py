"""The way to providers, over real sockets: what is sent, what comes back, and how it can break."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import random
import socket
import ssl
import struct
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty_provider import FaultyProvider, run_faulty_provider

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.providers import ProviderConfig
from nemo_agents.gateway.upstream import HttpProvider, PoolSettings, open_provider, read_all
from nemo_agents.gateway.upstream.signing import SigningError
from nemo_agents.policy.sse import SseSplitter, SseTooLarge
from nemo_agents.secret import Secret

DATA = Path(__file__).parent.parent / "data"
KEY = "sk-canary-0123456789"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


# The newer way to choose an event loop is a hook, which speaks for whole folders. A test checks that this one works.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


def _policies() -> list[type[asyncio.AbstractEventLoopPolicy]]:
    policies: list[type[asyncio.AbstractEventLoopPolicy]] = [asyncio.DefaultEventLoopPolicy]
    if importlib.util.find_spec("uvloop") is not None:  # not made for every platform
        import uvloop

        policies.append(uvloop.EventLoopPolicy)
    return policies


@pytest.fixture(params=_policies(), ids=lambda policy: policy.__module__.split(".")[0])
def event_loop_policy(request):
    """Every test runs on each event loop that the gateway may run on."""
    return request.param()


@pytest.fixture(scope="module")
def faulty_process() -> Iterator[FaultyProvider]:
    with run_faulty_provider("--many=5000") as provider:
        yield provider


@pytest.fixture
def faulty(faulty_process: FaultyProvider) -> FaultyProvider:
    faulty_process.reset()
    return faulty_process


@contextlib.asynccontextmanager
async def provider_at(base_url: str, **options: Any) -> AsyncIterator[HttpProvider]:
    """A provider that must have left no task, connection or place behind when the test is over."""
    tasks = asyncio.all_tasks()
    provider = HttpProvider(
        name="faulty", base_url=base_url, headers={"Authorization": Secret(f"Bearer {KEY}")}, **options
    )
    yield provider
    await provider.close()
    assert (provider.pool.connections, provider.pool.idle, provider.pool.waiting) == (0, 0, 0)
    await until(lambda: not asyncio.all_tasks() - tasks)


def request_for(model: str = "ok", *, path: str = "/chat/completions", **options: Any) -> ProviderRequest:
    stream = options.pop("stream", False)
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi there"}]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return ProviderRequest(path=path, body=json.dumps(body).encode(), stream=stream, **options)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has become true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is watched has no event
            await asyncio.sleep(0)


async def all_over(faulty: FaultyProvider) -> list[dict[str, Any]]:
    """What the provider recorded, when none of it is under way any more; our own loop runs on meanwhile."""
    seen = await asyncio.to_thread(faulty.seen, finished=True)
    requests: list[dict[str, Any]] = seen["requests"]
    return requests


async def fetch(provider: HttpProvider, **options: Any) -> bytes:
    return await read_all(await provider.send(request_for(**options)), 1 << 24)


@dataclass
class Peer:
    """One accepted connection of a scripted server."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> tuple[str, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        return head, await self.reader.readexactly(size)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def client_is_gone(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Scripted:
    """A server on loopback whose connections are served by a coroutine of the test."""

    url: str = ""
    accepted: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@contextlib.asynccontextmanager
async def scripted(
    script: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Scripted]:
    server_side = Scripted()
    problems: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        server_side.tasks.add(task)
        server_side.accepted += 1
        try:
            await script(Peer(server_side.accepted, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001 - shown at the end, instead of in a log
            problems.append(error)
        finally:
            server_side.tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    server_side.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server_side
        assert problems == []
    finally:
        server.close()
        for task in list(server_side.tasks):
            task.cancel()
        await until(lambda: not server_side.tasks)


def answering(*answers: bytes) -> Callable[[Peer], Awaitable[None]]:
    """A script: the n-th request of each connection gets the n-th answer; then it waits for the client."""

    async def script(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            await peer.say(answer)
        await peer.client_is_gone()

    return script


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "loopback.crt", DATA / "loopback.key")
    return context


async def test_these_tests_run_on_the_loop_that_they_name(event_loop_policy):
    loop, policy = type(asyncio.get_running_loop()), type(event_loop_policy)
    assert loop.__module__.split(".")[0] == policy.__module__.split(".")[0]


# --- What is sent, and what a proper answer looks like ---


async def test_a_request_goes_out_as_declared_and_the_answer_comes_back(faulty):
    async with provider_at(faulty.base_url + "/") as provider:
        response = await provider.send(request_for("echo", headers=((b"x-trace", b"abc"),)))
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        answer = json.loads(await read_all(response, 1 << 20))
        assert json.loads(answer["choices"][0]["message"]["content"])["model"] == "echo"
        (record,) = faulty.seen()["requests"]
        assert record["path"] == "/v1/chat/completions"
        assert record["headers"] == {
            "host": faulty.root.removeprefix("http://"),
            "accept-encoding": "identity",
            "accept": "application/json",
            "user-agent": "nemo-agents",
            "content-type": "application/json",
            "authorization": f"Bearer {KEY}",
            "x-trace": "abc",
            "content-length": record["headers"]["content-length"],
        }


async def test_a_stream_arrives_byte_for_byte(faulty):
    async with provider_at(faulty.base_url) as provider:
        response = await provider.send(request_for("many-chunks", stream=True))
        assert response.headers["content-type"].startswith("text/event-stream")
        splitter, events, raw = SseSplitter(), [], []
        async for chunk in response.chunks:
            raw.append(chunk)
            events += splitter.feed(chunk)
        events += splitter.end()
        await response.aclose()
        assert events[-1].data == b"[DONE]"
        chunks = [json.loads(event.data) for event in events[:-1]]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        text = "".join(delta.get("content") or "" for delta in deltas)
        assert text == " ".join(f"w{number}" for number in range(5000))
        assert chunks[-1]["usage"]["completion_tokens"] == 5000
        assert b"".join(event.raw for event in events) == b"".join(raw)
        assert (await all_over(faulty))[0]["headers"]["accept"] == "text/event-stream"


async def test_a_connection_is_used_again(faulty):
    async with provider_at(faulty.base_url) as provider:
        for _ in range(3):
            await fetch(provider)
            assert (provider.pool.connections, provider.pool.idle) == (1, 1)


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_ends_at_once(status):
    head = f"HTTP/1.1 {status} Nothing\r\n\r\n".encode()
    async with scripted(answering(head, OK)) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for())
        assert response.status == status
        assert await read_all(response, 10) == b""
        assert await fetch(provider) == b"hi"
        assert server.accepted == 1


async def test_interim_answers_are_skipped():
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with scripted(answering(interim + OK, OK)) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for())
        assert (response.status, response.headers) == (200, {"content-length": "2"})
        assert await read_all(response, 10) == b"hi"
        assert await fetch(provider) == b"hi"
        assert server.accepted == 1


@pytest.mark.parametrize(
    "answer",
    [
        (
            b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\ntransfer-encoding: chunked\r\n\r\n"
            b"2;ext=1\r\nhi\r\n3\r\nyou\r\n0\r\nt: 1\r\n\r\n"
        ),
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 5\r\n\r\nhiyou",
    ],
    ids=["chunked", "length"],
)
async def test_an_answer_may_come_a_byte_at_a_time(answer):
    async def script(peer: Peer) -> None:
        await peer.request()
        for byte in answer:
            await peer.say(bytes([byte]))
            await asyncio.sleep(0)
        await peer.request()
        await peer.say(OK)

    async with scripted(script) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for())
        assert response.headers["x-a"] == "1, 2"
        assert await read_all(response, 10) == b"hiyou"
        assert await fetch(provider) == b"hi"
        assert server.accepted == 1


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
)
async def test_a_connection_that_the_provider_gives_up_is_not_used_again(head):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(head + b"hi")

    async with scripted(script) as server, provider_at(server.url) as provider:
        assert [await fetch(provider), await fetch(provider)] == [b"hi", b"hi"]
        assert server.accepted == 2


async def test_redirects_are_answers_and_are_not_followed(faulty):
    async with provider_at(faulty.base_url) as provider:
        response = await provider.send(request_for("redirect"))
        assert (response.status, response.headers["location"]) == (307, "/_trap")
        await read_all(response, 10)
        assert [record["path"] for record in faulty.seen()["requests"]] == ["/v1/chat/completions"]


@pytest.mark.parametrize(("model", "status"), [("rate-limited", 429), ("error-500", 500), ("unauthorized", 401)])
async def test_error_statuses_are_answers(faulty, model, status):
    async with provider_at(faulty.base_url) as provider:
        response = await provider.send(request_for(model, stream=True))
        assert response.status == status
        assert "error" in json.loads(await read_all(response, 1 << 20))


# --- What cannot be said ---


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "ключ"])
def test_a_header_that_would_be_two_is_refused_and_not_shown(value):
    with pytest.raises(SettingsError) as caught:
        HttpProvider(name="p", base_url="http://h/v1", headers={"authorization": Secret(KEY + value)})
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "'authorization'" in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "Content-Length", "transfer-encoding", "HOST", "a\r\nb"])
def test_header_names_are_checked(name):
    with pytest.raises(SettingsError):
        HttpProvider(name="p", base_url="http://h/v1", headers={name: "x"})


@pytest.mark.parametrize(
    "base_url",
    [
        "ftp://h/v1",
        "h/v1",
        "http://",
        "http://h/v1?a=b",
        "http://h/v1#f",
        "http://h/a b",
        "http://h:99999/",
        "http://h:x/",
        "http://[::1/",
        f"http://{'a' * 64}.example/",
        f"https://user:{KEY}@h/v1",
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(base_url):
    with pytest.raises(SettingsError) as caught:
        HttpProvider(name="p", base_url=base_url)
    assert KEY not in str(caught.value)


def test_at_least_one_connection_is_allowed():
    with pytest.raises(SettingsError, match="max_connections"):
        HttpProvider(name="p", base_url="http://h", max_connections=0)


def test_a_provider_shows_its_address_and_no_secret():
    provider = HttpProvider(name="p", base_url="https://[::1]:8443/v1/", headers={"x-key": Secret(KEY)})
    assert repr(provider) == "HttpProvider(name='p', base_url='https://[::1]:8443/v1')"


@pytest.mark.parametrize(
    "bad",
    [
        {"path": "chat"},
        {"path": "/a b"},
        {"path": "/a\r\nx: y"},
        {"path": "/ä"},
        {"headers": ((b"x", b"a\r\nb"),)},
        {"headers": ((b"x y", b"a"),)},
        {"headers": ((b"Content-Length", b"0"),)},
        {"headers": ((b"Authorization", b"Bearer mine"),)},
        {"headers": ((b"x-api-key", b"mine"),)},
        {"headers": ((b"User-Agent", b"mine"),)},
    ],
)
async def test_a_request_that_cannot_be_sent_is_not_sent(faulty, bad):
    async with provider_at(faulty.base_url) as provider:
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for(**bad))
        assert caught.value.sent is False
        assert faulty.seen()["requests"] == []


# --- Who pays, by wire ---


async def heads_of(config: ProviderConfig, *requests: ProviderRequest) -> list[dict[str, str]]:
    """Send requests to a provider as it is configured; return the heads that arrived, request line under ''."""
    heads: list[dict[str, str]] = []

    async def script(peer: Peer) -> None:
        for _ in requests:
            head = (await peer.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            fields = [line.split(": ", 1) for line in lines]
            assert len({name for name, _ in fields}) == len(fields)  # no header twice
            await peer.reader.readexactly(int(dict(fields).get("content-length", 0)))
            heads.append({"": first, **dict(fields)})
            await peer.say(OK)

    async with scripted(script) as server:
        provider = open_provider(dataclasses.replace(config, base_url=f"{server.url}/v1"), max_connections=1)
        for request in requests:
            assert await read_all(await provider.send(request), 10) == b"hi"
        await provider.close()
    return heads


def shown_in(head: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in head.items() if name in CREDENTIALS}


CREDENTIALS = ("authorization", "x-api-key", "api-key", "anthropic-version")
ANTHROPIC = ProviderConfig(
    name="anthropic",
    base_url="",
    api_key=Secret(KEY),
    auth="anthropic",
    wires=frozenset({"chat", "messages"}),
    headers=(("x-team", "search"),),
)


async def test_anthropic_is_shown_its_key_as_each_of_its_wires_wants_it():
    newer = ((b"anthropic-version", b"2099-01-01"), (b"anthropic-beta", b"tools"))
    chat, messages, brought = await heads_of(
        ANTHROPIC,
        request_for(),
        request_for(wire="messages", path="/messages"),
        request_for(wire="messages", path="/messages", headers=newer),
    )
    assert shown_in(chat) == {"authorization": f"Bearer {KEY}"}
    assert shown_in(messages) == {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    assert shown_in(brought) == {"x-api-key": KEY, "anthropic-version": "2099-01-01"}
    assert brought["anthropic-beta"] == "tools"
    assert [head["x-team"] for head in (chat, messages, brought)] == ["search"] * 3
    assert messages[""] == "POST /v1/messages HTTP/1.1"


async def test_azure_is_shown_its_key_in_a_header_of_that_name():
    azure = ProviderConfig(name="azure", base_url="", api_key=Secret(KEY), auth="api-key")
    chat, embeddings = await heads_of(azure, request_for(), request_for(wire="embeddings", path="/embeddings"))
    assert shown_in(chat) == shown_in(embeddings) == {"api-key": KEY}


async def test_a_key_file_is_shown_like_a_key(tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    filed = dataclasses.replace(ANTHROPIC, key_file=file)
    chat, messages = await heads_of(filed, request_for(), request_for(wire="messages", path="/messages"))
    assert shown_in(chat) == {"authorization": f"Bearer {KEY}"}
    assert shown_in(messages) == {"x-api-key": KEY, "anthropic-version": "2023-06-01"}


async def test_a_question_has_no_body():
    question = ProviderRequest(method="GET", path="/models?limit=1000", body=b"", stream=False)
    (head,) = await heads_of(ANTHROPIC, question)
    assert head[""] == "GET /v1/models?limit=1000 HTTP/1.1"
    assert "content-length" not in head
    assert shown_in(head) == {"authorization": f"Bearer {KEY}"}


async def test_without_a_signature_nothing_is_sent(faulty):
    class NoKeys:
        async def sign(self, wire, method, url, body):
            assert (wire, method, url) == ("chat", "POST", f"{faulty.base_url}/chat/completions")
            assert body == request_for().body
            raise SigningError("the vault is closed")

    async with provider_at(faulty.base_url, signer=NoKeys()) as provider:
        with pytest.raises(UpstreamError, match="faulty: the vault is closed") as caught:
            await provider.send(request_for())
        assert caught.value.sent is False
        assert faulty.seen()["requests"] == []


# --- Nothing has left: `sent` is False ---


# The others are the same address, as resolvers read them.
@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "[fe80::1]", "[fd00:ec2::254]"])
async def test_a_host_that_tells_secrets_is_never_connected_to(host):
    async with provider_at(f"http://{host}/v1") as provider:
        with pytest.raises(UpstreamError, match=r"Mend the provider's base_url") as caught:
            await provider.send(request_for())
        assert (caught.value.sent, caught.value.timed_out) == (False, False)


async def test_a_redirect_to_such_a_host_is_not_followed():
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n")

    async with scripted(script) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for())
        assert (response.status, await read_all(response, 10)) == (302, b"")


async def test_a_name_with_several_addresses_is_tried_at_each(monkeypatch):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with scripted(script) as server, provider_at(server.url) as provider:

        async def resolve() -> list[str]:
            return ["127.0.0.2", "127.0.0.1"]  # nothing listens at the first

        monkeypatch.setattr(provider.pool, "_resolve", resolve)
        assert await fetch(provider) == b"hi"


async def test_a_refused_connection_sent_nothing():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with provider_at(f"http://127.0.0.1:{port}/v1") as provider:
            with pytest.raises(UpstreamError) as caught:
                await provider.send(request_for())
    assert (caught.value.sent, caught.value.timed_out) == (False, False)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))


async def test_a_self_signed_certificate_is_refused_by_default():
    async with scripted(answering(OK), server_tls()) as server, provider_at(server.url) as provider:
        with pytest.raises(UpstreamError, match="self-signed") as caught:
            await provider.send(request_for())
        assert caught.value.sent is False


async def test_a_certificate_for_another_name_is_refused():
    context = ssl.create_default_context(cafile=DATA / "loopback.crt")
    async with scripted(answering(OK), server_tls()) as server:
        async with provider_at(server.url.replace("127.0.0.1", "127.0.0.2"), tls=context) as provider:
            with pytest.raises(UpstreamError) as caught:
                await provider.send(request_for())
        assert caught.value.sent is False


async def test_tls_with_a_trusted_certificate_names_the_host_and_keeps_the_connection():
    names: list[str | None] = []
    server_side = server_tls()
    server_side.sni_callback = lambda _socket, name, _context: names.append(name)
    context = ssl.create_default_context(cafile=DATA / "loopback.crt")
    big = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 3_000_000
    async with scripted(answering(big, OK), server_side) as server:
        async with provider_at(server.url.replace("127.0.0.1", "localhost"), tls=context) as provider:
            assert len(await fetch(provider)) == 3_000_000
            assert await fetch(provider) == b"hi"
        assert server.accepted == 1
    assert names == ["localhost"]


async def test_a_server_that_does_not_speak_tls_got_nothing():
    async def script(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.client_is_gone()

    async with scripted(script) as server, provider_at(server.url.replace("http", "https")) as provider:
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for())
        assert caught.value.sent is False


async def test_a_handshake_that_hangs_is_a_connect_time_out():
    async def script(peer: Peer) -> None:
        await peer.client_is_gone()

    async with scripted(script) as server, provider_at(server.url.replace("http", "https")) as provider:
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for(connect_timeout_s=0.1))
        assert (caught.value.sent, caught.value.timed_out) == (False, True)
        await until(lambda: not server.tasks)  # the socket is closed, too


async def test_waiting_in_line_has_a_time_out_and_sent_nothing(faulty):
    settings = PoolSettings(pool_timeout_s=0.1)
    async with provider_at(faulty.base_url, max_connections=1, settings=settings) as provider:
        busy = await provider.send(request_for("stepped", stream=True))
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for("ok"))
        assert (caught.value.sent, caught.value.timed_out) == (False, True)
        assert provider.pool.waiting == 0
        await busy.aclose()
        await fetch(provider)
        assert [each["model"] for each in await all_over(faulty)] == ["stepped", "ok"]


# --- It may have left: `sent` is True ---


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_never_answers_is_left(faulty, stream):
    loop = asyncio.get_running_loop()
    async with provider_at(faulty.base_url) as provider:
        before = loop.time()
        with pytest.raises(UpstreamError, match=r"no answer within 0\.1 s") as caught:
            await provider.send(request_for("hang", stream=stream, first_byte_timeout_s=0.1))
        assert loop.time() - before > 0.09  # uvloop's clock counts whole milliseconds
        assert (caught.value.sent, caught.value.timed_out) == (True, True)
        assert provider.pool.connections == 0
        (record,) = await all_over(faulty)
        assert record["client_left"] is True


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\na: b", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["line", "head", "1xx"],
)
async def test_a_head_that_stops_halfway_is_a_time_out(said):
    async with scripted(answering(said)) as server, provider_at(server.url) as provider:
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for(first_byte_timeout_s=0.1))
        assert (caught.value.sent, caught.value.timed_out) == (True, True)


async def test_a_body_that_goes_silent_is_a_time_out_after_what_came():
    said = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n"
    async with scripted(answering(said)) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for(idle_timeout_s=0.1))
        assert await anext(response.chunks) == b"hi"
        for _ in range(2):
            with pytest.raises(UpstreamError, match="went silent") as caught:
                await anext(response.chunks)
            assert (caught.value.sent, caught.value.timed_out) == (True, True)
        await response.aclose()
        await until(lambda: not server.tasks)


async def test_a_provider_that_hangs_up_instead_of_answering_may_have_worked(faulty):
    async with provider_at(faulty.base_url) as provider:
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for("drop-before-head"))
        assert (caught.value.sent, caught.value.timed_out) == (True, False)
        assert len(faulty.seen()["requests"]) == 1  # and it was not tried again


@pytest.mark.parametrize(
    ("model", "stream"),
    [("drop-mid-body", False), ("drop-mid-stream", True), ("half-event", True)],
)
async def test_a_body_that_breaks_off_gives_what_came_and_then_the_error(faulty, model, stream):
    async with provider_at(faulty.base_url) as provider:
        response = await provider.send(request_for(model, stream=stream))
        got = b""

        async def read() -> None:
            nonlocal got
            async for chunk in response.chunks:
                got += chunk

        with pytest.raises(UpstreamError) as caught:
            await read()
        await response.aclose()
        assert caught.value.sent is True
        assert b"The answer" in got if not stream else b"forty" in got
        assert provider.pool.connections == 0


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", b"HTTP/1.1 200 OK\r\n\r\nhi"],
    ids=["before", "in-length", "in-unbounded"],
)
async def test_a_reset_is_never_taken_for_an_end(said):
    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if said:
            await peer.say(said)
            await read.wait()
        peer.reset()

    async with scripted(script) as server, provider_at(server.url) as provider:

        async def all_of_it() -> None:
            response = await provider.send(request_for())
            assert await anext(response.chunks) == b"hi"
            read.set()
            await anext(response.chunks)

        with pytest.raises(UpstreamError) as caught:
            await all_of_it()
        assert (caught.value.sent, caught.value.timed_out) == (True, False)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nhi", "compressed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer coding"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhi", "transfer coding"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
            "proper HTTP",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi!", "proper HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nhi", "proper HTTP"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "switch protocols"),
        (b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", r"HTTP 2\.0"),
        (b"SSH-2.0-OpenSSH\r\n", "proper HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nhi", "announced more"),
        (b"HTTP/1.1 200 OK\r\na: " + b"x" * 70_000 + b"\r\ncontent-length: 2\r\n\r\nhi", "headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000 + b"content-length: 2\r\n\r\nhi", "headers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_answer_in_a_form_that_was_not_asked_for_is_refused(head, complaint):
    async with scripted(answering(head)) as server, provider_at(server.url) as provider:
        with pytest.raises(UpstreamError, match=complaint) as caught:
            await provider.send(request_for())
        assert (caught.value.sent, caught.value.timed_out) == (True, False)
        assert provider.pool.connections == 0


async def test_gzip_from_a_whole_provider_is_refused_too(faulty):
    async with provider_at(faulty.base_url) as provider:
        with pytest.raises(UpstreamError, match="gzip"):
            await provider.send(request_for("gzip"))


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"HTTP/1.1 200 OK\r\na: ", b"x" * 4096),
        (b"HTTP/1.1 200 ", b"x" * 4096),
        (b"", b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 700),
    ],
    ids=["header", "reason", "interim", "chunk-extension", "trailers"],
)
async def test_headers_without_end_are_cut_off(start, more):
    said = 0

    async def script(peer: Peer) -> None:
        nonlocal said
        await peer.request()
        await peer.say(start)
        while True:
            await peer.say(more)
            said += len(more)

    async with scripted(script) as server, provider_at(server.url) as provider:
        with pytest.raises(UpstreamError, match=r"headers or chunk framing") as caught:
            await fetch(provider)
        assert caught.value.sent is True
        await until(lambda: not server.tasks)
        assert said < 32 << 20  # what fits into socket buffers, and no more


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_without_end_is_cut_off(stream):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.say(b"x" * 65536)

    settings = PoolSettings(body_limit_bytes=1 << 20)
    async with scripted(script) as server, provider_at(server.url, settings=settings) as provider:
        response = await provider.send(request_for(stream=stream))
        with pytest.raises(UpstreamError, match="more than 1048576 bytes"):
            await read_all(response, 1 << 30)
        await until(lambda: not server.tasks)


async def test_read_all_has_a_limit_of_its_own(faulty):
    async with provider_at(faulty.base_url) as provider:
        with pytest.raises(UpstreamError, match="more than 10 bytes") as caught:
            await read_all(await provider.send(request_for()), 10)
        assert caught.value.sent is True


async def test_a_line_without_end_is_refused_by_the_splitter(faulty):
    async with provider_at(faulty.base_url) as provider:
        response = await provider.send(request_for("huge-line", stream=True))
        splitter = SseSplitter()

        async def read() -> None:
            async for chunk in response.chunks:
                splitter.feed(chunk)

        with pytest.raises(SseTooLarge):
            await read()
        await response.aclose()
        assert provider.pool.connections == 0


async def test_an_answer_that_overtakes_its_request_ends_the_connection():
    looked_at = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await looked_at.wait()

    async with scripted(script) as server, provider_at(server.url) as provider:
        response = await provider.send(ProviderRequest(path="/x", body=b"x" * (32 << 20), stream=False))
        assert (response.status, await read_all(response, 10)) == (413, b"no")
        assert provider.pool.connections == 0
        looked_at.set()


# --- Old connections ---


async def test_a_connection_that_died_idle_is_replaced_before_anything_is_written():
    """The event loop has had no chance to see the end: the kernel knows it already."""
    requests: list[bytes] = []
    answered, may_close, closed = threading.Event(), threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for last in (False, True):
                peer, _ = listener.accept()
                with peer:
                    requests.append(peer.recv(65536))
                    peer.sendall(OK)
                    answered.set()
                    if not last:
                        may_close.wait(20)
                closed.set()

        thread = threading.Thread(target=serve)
        thread.start()
        async with provider_at(f"http://127.0.0.1:{listener.getsockname()[1]}") as provider:
            assert await fetch(provider) == b"hi"
            assert provider.pool.idle == 1
            may_close.set()
            assert closed.wait(20)  # blocks the loop on purpose
            assert provider.pool.idle == 1
            assert await fetch(provider) == b"hi"
        thread.join(20)
    assert len(requests) == 2


async def test_what_nobody_asked_for_never_becomes_an_answer():
    """A second answer, sent ahead of time, would be given to the next request: perhaps another customer's."""
    poison = OK.replace(b"hi", b"NO")
    may_poison, poisoned = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            first, _ = listener.accept()
            with first:
                first.recv(65536)
                first.sendall(OK)
                may_poison.wait(20)
                first.sendall(poison)
                poisoned.set()
                second, _ = listener.accept()
                with second:
                    second.recv(65536)
                    second.sendall(OK)

        thread = threading.Thread(target=serve)
        thread.start()
        async with provider_at(f"http://127.0.0.1:{listener.getsockname()[1]}") as provider:
            assert await fetch(provider) == b"hi"
            may_poison.set()
            assert poisoned.wait(20)  # blocks the loop on purpose
            assert await fetch(provider) == b"hi"
        thread.join(20)


@pytest.mark.parametrize("extra", [OK.replace(b"hi", b"NO"), b"\x00", b"HTTP/1.1 200"])
async def test_a_connection_that_says_more_than_its_answer_is_dropped(extra):
    async with scripted(answering(OK + extra)) as server, provider_at(server.url) as provider:
        assert await fetch(provider) == b"hi"
        assert provider.pool.idle == 0
        assert await fetch(provider) == b"hi"
        assert server.accepted == 2


async def test_an_idle_connection_that_ends_is_forgotten():
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with scripted(script) as server, provider_at(server.url) as provider:
        await fetch(provider)
        await until(lambda: provider.pool.connections == 0)
        await fetch(provider)
        assert server.accepted == 2


async def test_a_used_connection_that_dies_after_the_write_is_not_tried_again():
    requests = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.say(OK)
        requests.append(await peer.request())

    async with scripted(script) as server, provider_at(server.url) as provider:
        await fetch(provider)
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for())
        assert caught.value.sent is True
        assert (len(requests), server.accepted) == (2, 1)


async def test_idle_connections_expire():
    settings = PoolSettings(idle_expiry_s=0.05)
    async with scripted(answering(OK)) as server, provider_at(server.url, settings=settings) as provider:
        await fetch(provider)
        assert provider.pool.idle == 1
        await until(lambda: not server.tasks)
        assert provider.pool.connections == 0


async def test_a_provider_says_how_long_it_keeps_a_connection():
    short = OK.replace(b"content-length", b"keep-alive: timeout=1, max=9\r\ncontent-length")
    long = OK.replace(b"content-length", b"keep-alive: timeout=60\r\ncontent-length")
    async with scripted(answering(long, short)) as server, provider_at(server.url) as provider:
        await fetch(provider)
        assert provider.pool.idle == 1
        await fetch(provider)
        assert provider.pool.idle == 0


# --- Many at once ---


async def test_the_limit_holds_and_the_queue_is_fair():
    order: list[str] = []
    at_work = most = 0

    async def script(peer: Peer) -> None:
        nonlocal at_work, most
        while True:
            head, _ = await peer.request()
            order.append(head.split(" ")[1])
            at_work += 1
            most = max(most, at_work)
            for _ in range(5):
                await asyncio.sleep(0)
            at_work -= 1
            await peer.say(OK)

    async with scripted(script) as server, provider_at(server.url, max_connections=2) as provider:
        bodies = await asyncio.gather(*(fetch(provider, path=f"/{number}") for number in range(10)))
        assert bodies == [b"hi"] * 10
        assert (most, server.accepted) == (2, 2)
        assert sorted(order[:2]) == ["/0", "/1"]
        # two are served side by side, so neighbours may change places, but nobody is overtaken by more
        assert all(abs(place - int(path[1:])) <= 1 for place, path in enumerate(order))


async def test_a_free_place_is_passed_on_in_order_when_connections_are_not_kept():
    order: list[str] = []

    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        order.append(head.split(" ")[1])
        await peer.say(OK.replace(b"content", b"connection: close\r\ncontent"))

    async with scripted(script) as server, provider_at(server.url, max_connections=1) as provider:
        await asyncio.gather(*(fetch(provider, path=f"/{number}") for number in range(6)))
        assert order == [f"/{number}" for number in range(6)]


async def test_a_slow_reader_holds_the_provider_back():
    size = 24 << 20
    said = 0

    async def script(peer: Peer) -> None:
        nonlocal said
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while said < size:
            await peer.say(b"x" * 65536)
            said += 65536
        await peer.request()
        await peer.say(OK)

    settings = PoolSettings(buffer_limit_bytes=64 << 10)
    async with scripted(script) as server, provider_at(server.url, settings=settings) as provider:
        response = await provider.send(request_for(stream=True))
        exchange: Any = response.chunks
        await until(lambda: exchange._paused)
        got = most = 0
        async for chunk in response.chunks:
            got += len(chunk)
            most = max(most, exchange._buffered)
            for _ in range(3):
                await asyncio.sleep(0)
        await response.aclose()
        assert got == size
        assert most < (64 << 10) + (256 << 10) + 4096  # the limit, and one read of the event loop
        assert await fetch(provider) == b"hi"  # reading goes on after a pause
        assert server.accepted == 1


async def test_an_unread_answer_stops_the_provider():
    said = 0

    async def script(peer: Peer) -> None:
        nonlocal said
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.say(b"x" * 65536)
            said += 65536

    async with scripted(script) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for(stream=True))
        exchange: Any = response.chunks
        await until(lambda: exchange._paused)
        before = -1
        while said != before:  # until the socket buffers are full as well
            before = said
            for _ in range(1000):
                await asyncio.sleep(0)
        assert exchange._buffered < 1 << 20
        await response.aclose()
        await until(lambda: not server.tasks)


# --- Leaving early ---


async def test_closing_before_the_end_drops_the_connection_and_after_it_keeps_it(faulty):
    async with provider_at(faulty.base_url) as provider:
        faulty.release(1)
        response = await provider.send(request_for("stepped", stream=True))
        await anext(response.chunks)
        await response.aclose()
        assert provider.pool.connections == 0
        with pytest.raises(StopAsyncIteration):
            await anext(response.chunks)
        (record,) = await all_over(faulty)
        assert record["client_left"] is True
        assert record["chunks"] <= 2
        response = await provider.send(request_for())
        async for _ in response.chunks:
            pass
        await response.aclose()
        assert provider.pool.idle == 1


async def test_a_whole_answer_that_nobody_read_keeps_the_connection():
    async with scripted(answering(OK, OK)) as server, provider_at(server.url) as provider:
        response = await provider.send(request_for())
        await response.aclose()
        assert await fetch(provider) == b"hi"
        assert server.accepted == 1


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_send_leaves_nothing(faulty):
    async with provider_at(faulty.base_url) as provider:
        task = asyncio.create_task(provider.send(request_for("hang")))
        await asyncio.to_thread(faulty.seen, at_least=1)
        await cancelled(task)
        assert provider.pool.connections == 0
        assert (await all_over(faulty))[0]["client_left"] is True


async def test_a_cancelled_iteration_leaves_nothing(faulty):
    async with provider_at(faulty.base_url) as provider:
        response = await provider.send(request_for("stepped", stream=True))

        async def read() -> None:
            async for _ in response.chunks:
                pass

        task = asyncio.create_task(read())
        await until(lambda: response.chunks._waiter is not None)  # type: ignore[attr-defined]
        await cancelled(task)
        assert provider.pool.connections == 0
        await response.aclose()
        assert (await all_over(faulty))[0]["client_left"] is True


async def test_a_cancelled_handshake_leaves_nothing():
    async def script(peer: Peer) -> None:
        await peer.client_is_gone()

    async with scripted(script) as server, provider_at(server.url.replace("http", "https")) as provider:
        task = asyncio.create_task(provider.send(request_for()))
        await until(lambda: server.accepted == 1)
        await cancelled(task)
        assert provider.pool.connections == 0
        await until(lambda: not server.tasks)


async def test_a_request_cancelled_in_line_is_passed_over(faulty):
    async with provider_at(faulty.base_url, max_connections=1) as provider:
        busy = await provider.send(request_for("stepped", stream=True))
        impatient = asyncio.create_task(fetch(provider))
        patient = asyncio.create_task(fetch(provider))
        await until(lambda: provider.pool.waiting == 2)
        await cancelled(impatient)
        assert provider.pool.waiting == 1
        await busy.aclose()
        assert b"forty two" in await patient


@pytest.mark.parametrize("kept", [True, False], ids=["connection", "place"])
async def test_a_request_cancelled_while_it_is_served_passes_on_what_it_got(kept):
    """Between being handed a connection (or a place) and running again, a task can be cancelled."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go_on.wait()
            await peer.say(OK if kept else OK.replace(b"content", b"connection: close\r\ncontent"))
            if not kept:
                return

    async with scripted(script) as server, provider_at(server.url, max_connections=1) as provider:
        first = asyncio.create_task(fetch(provider))
        await until(lambda: provider.pool.connections == 1)
        second = asyncio.create_task(fetch(provider))
        third = asyncio.create_task(fetch(provider))
        await until(lambda: provider.pool.waiting == 2)
        original = provider.pool._serve

        def serve_and_cancel(what: Any) -> bool:
            provider.pool._serve = original  # type: ignore[method-assign]
            served = original(what)
            second.cancel()
            return served

        provider.pool._serve = serve_and_cancel  # type: ignore[method-assign]
        go_on.set()
        assert await first == b"hi"
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await third == b"hi"
        assert server.accepted == (1 if kept else 2)


@pytest.mark.parametrize("seed", range(5))
async def test_places_are_counted_right_whatever_is_cancelled_when(seed):
    dice = random.Random(seed)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            match dice.randrange(5):
                case 0:
                    return
                case 1:
                    await peer.say(OK[:-1])
                    return
                case 2:
                    await peer.say(OK.replace(b"content", b"connection: close\r\ncontent"))
                    return
                case _:
                    await peer.say(OK)

    async def one(provider: HttpProvider) -> None:
        with contextlib.suppress(UpstreamError):
            response: ProviderResponse = await provider.send(request_for())
            if dice.random() < 0.8:
                await read_all(response, 10)
            else:
                await response.aclose()

    async with scripted(script) as server, provider_at(server.url, max_connections=3) as provider:
        running: list[asyncio.Task[None]] = []
        for _ in range(200):
            running.append(asyncio.create_task(one(provider)))
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            if dice.random() < 0.4:
                dice.choice(running).cancel()
            assert provider.pool.connections <= 3
        await asyncio.gather(*running, return_exceptions=True)
        assert provider.pool.waiting == 0
        assert provider.pool.connections == provider.pool.idle


# --- The end ---


async def test_closing_refuses_who_comes_and_who_waits_but_not_who_reads(faulty):
    async with provider_at(faulty.base_url, max_connections=1) as provider:
        reading = await provider.send(request_for("stepped", stream=True))
        waiting = asyncio.create_task(fetch(provider))
        await until(lambda: provider.pool.waiting == 1)
        await provider.close()
        with pytest.raises(UpstreamError) as caught:
            await waiting
        assert caught.value.sent is False
        with pytest.raises(UpstreamError) as caught:
            await provider.send(request_for())
        assert caught.value.sent is False
        faulty.release(100)
        assert (await read_all(reading, 1 << 20)).endswith(b"data: [DONE]\n\n")
        assert provider.pool.connections == 0


class Unanswered:
    """Waits for credentials that nobody gives."""

    async def sign(self, wire: str, method: str, url: str, body: bytes) -> dict[str, Secret]:
        await asyncio.Event().wait()
        raise AssertionError((wire, method, url, body))


async def test_credentials_have_as_long_as_an_answer(faulty):
    async with provider_at(faulty.base_url, signer=Unanswered()) as provider:
        with pytest.raises(UpstreamError, match=r"no credentials were had within 0\.05 s") as caught:
            await provider.send(request_for(first_byte_timeout_s=0.05))
    assert (caught.value.sent, caught.value.timed_out) == (False, True)


async def test_a_signed_request_s_credentials_are_concealed_in_what_is_said_of_them():
    """Nothing of a token is in the answer that refuses it, though it came from elsewhere than the configuration."""

    class Token:
        async def sign(self, wire: str, method: str, url: str, body: bytes) -> dict[str, Secret]:
            del wire, method, url, body
            return {"authorization": Secret(f"Bearer {KEY}-signed")}

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 No\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        provider = HttpProvider(name="p", base_url=url, signer=Token())
        said = await read_all(await provider.send(request_for()), 1 << 20)
        await provider.close()
    assert b"authorization: Bearer [concealed]" in said
    assert KEY.encode() not in said


def test_a_provider_belongs_to_one_event_loop(faulty):
    provider = HttpProvider(name="faulty", base_url=faulty.base_url)

    async def use() -> None:
        await fetch(provider)
        await provider.close()

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())
