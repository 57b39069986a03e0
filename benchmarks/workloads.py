"""What is asked of every server in the comparison with peers, and the providers that answer it.

Four kinds of call. Each of the streamed ones has a provider of its own in the gateway's configuration, so that a server
is told by the model (or the path, or a header) where to send it:

- `plain`: about 1 KB each way, in one piece;
- `long`: a prompt of 100 KB, the same answer;
- `sse`: a stream of 64 events that the provider has ready at once, so that it is the server that limits;
- `paced`: a stream that comes bit by bit as a model writes it, for the time to its first token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from load import Target
from machine import BenchmarkError, Cores, free_port, running, wait_for_port
from paced import MARK, events
from servers import answer_body, model_of, request_body, run_nginx

CHAT = "/chat/completions"
LONG_BYTES = 100_000
SSE_PIECES = 64
PACED_MOCK = Path(__file__).with_name("pacedmock.py")
_PROOF_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of call: its name, its headline, the provider it is meant for, and what its answer has to contain."""

    name: str
    title: str
    provider: str
    stream: bool
    proof: tuple[str, ...]

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return model_of(self.provider)

    def body(self) -> bytes:
        """Return the request."""
        asked = json.loads(request_body())
        asked["model"] = self.model
        if self.stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.name == "long":
            asked["messages"][-1]["content"] = long_text(LONG_BYTES)
        return json.dumps(asked).encode()


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="plain", title="1 KB each way", provider="mock", stream=False, proof=("gpt-bench",)),
        Kind(name="long", title="100 KB prompt", provider="mock", stream=False, proof=("gpt-bench",)),
        Kind(
            name="sse",
            title=f"stream of {SSE_PIECES} events, ready at once",
            provider="mocksse",
            stream=True,
            proof=(MARK, "[DONE]"),
        ),
        Kind(
            name="paced",
            title="stream that comes bit by bit: time to its first token",
            provider="mockpaced",
            stream=True,
            proof=(MARK, "[DONE]"),
        ),
    )
}


def long_text(size: int) -> str:
    """Return so many bytes of prose in which no two lines are the same."""
    lines = (
        f"Note {number}: replica {number % 7} merged {number * 37 % 101} operations out of order, and the text came "
        f"out as the author of paragraph {number * 13 % 89} had left it.\n"
        for number in range(size // 100)
    )
    return "".join(lines)[:size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A mock provider: its base URL and the process that answers."""

    base_url: str
    pid: int


@contextmanager
def providers(cores: Cores, folder: Path) -> Iterator[dict[str, Provider]]:
    """Run the providers on the load's cores; yield them by the name that the gateway's configuration gives them."""
    stream = folder / "stream.txt"
    stream.write_bytes(b"".join(events(SSE_PIECES)))
    # An error page is the one way in which nginx answers POST with a file; it is fetched by GET inside.
    server = f"""
    server {{
        @LISTEN@
        default_type application/json;
        client_max_body_size 2m;
        client_body_buffer_size 1m;
        location / {{ return 200 '{answer_body()}'; }}
        location /sse/ {{ error_page 418 =200 /stream; return 418; }}
        location = /stream {{ internal; default_type text/event-stream; alias {stream}; }}
    }}"""
    with run_nginx("mock", server, cores=cores.load_list, folder=folder) as (port, pid), _paced(cores, folder) as paced:
        base = f"http://127.0.0.1:{port}"
        yield {
            "mock": Provider(base_url=f"{base}/v1", pid=pid),
            "mocksse": Provider(base_url=f"{base}/sse/v1", pid=pid),
            "mockpaced": paced,
        }


@contextmanager
def _paced(cores: Cores, folder: Path) -> Iterator[Provider]:
    port = free_port()
    log = folder / "pacedmock.log"
    with running((sys.executable, str(PACED_MOCK), str(port)), cores=cores.load_list, log=log) as process:
        wait_for_port(port, process, log)
        yield Provider(base_url=f"http://127.0.0.1:{port}/v1", pid=process.pid)


@contextmanager
def plain_proxies(upstream: Mapping[str, Provider], cores: Cores, folder: Path) -> Iterator[tuple[int, int]]:
    """Run one nginx as a reverse proxy that checks nothing; `/NAME/…` goes to the provider of that name.

    Yields its port and its process. Streams are not held back to fill a buffer.
    """
    places = {name: each.base_url.removeprefix("http://").partition("/") for name, each in upstream.items()}
    pools = "\n".join(
        f"    upstream {name} {{ server {address}; keepalive 512; keepalive_requests 1000000000; }}"
        for name, (address, _, _) in places.items()
    )
    locations = "\n".join(
        f"""        location /{name}/ {{
            proxy_pass http://{name}/{path}/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering {"off" if name == "mockpaced" else "on"};
        }}"""
        for name, (_, _, path) in places.items()
    )
    server = f"""
{pools}
    server {{
        @LISTEN@
        client_max_body_size 2m;
        client_body_buffer_size 1m;
{locations}
    }}"""
    with run_nginx("proxy", server, cores=str(cores.server), folder=folder) as (port, pid):
        yield port, pid


def prove(target: Target, kind: Kind, body: bytes) -> None:
    """Ask once. Raises BenchmarkError when the answer is not what the provider said."""
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json", **dict(target.headers)}
    try:
        answer = httpx.post(target.url, content=body, headers=headers, timeout=_PROOF_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise BenchmarkError(
            f"{target.name} did not answer a {kind.name} call: {error or type(error).__name__}"
        ) from None
    if missing := [text for text in kind.proof if text not in answer.text]:
        raise BenchmarkError(
            f"{target.name} answered a {kind.name} call with {answer.status_code} and without {', '.join(missing)}: "
            f"{answer.text[:200]!r}"
        )
    if answer.status_code != httpx.codes.OK:
        raise BenchmarkError(f"{target.name} answered a {kind.name} call with {answer.status_code}")
