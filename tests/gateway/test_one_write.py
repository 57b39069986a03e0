"""The gateway's own way to write an answer is HTTP like any other: seen by a client that reads bytes."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest

BODY = json.dumps({"model": "faulty/ok", "messages": [{"role": "user", "content": "hello"}]}).encode()


def request(key, *lines: str, version: str = "1.1") -> bytes:
    head = [
        f"POST /v1/chat/completions HTTP/{version}",
        "host: 127.0.0.1",
        f"authorization: Bearer {key.secret}",
        f"content-length: {len(BODY)}",
        *lines,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n"


def connect(bench) -> socket.socket:
    address = urlsplit(bench.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def read_answer(stream) -> tuple[str, dict[str, str], dict]:
    status = stream.readline().decode("latin-1").strip()
    headers: dict[str, str] = {}
    while line := stream.readline().strip():
        name, _, value = line.decode("latin-1").partition(": ")
        assert name not in headers
        headers[name] = value
    return status, headers, json.loads(stream.read(int(headers["content-length"])))


def test_a_connection_serves_one_call_after_the_other(bench):
    key = bench.key()
    with connect(bench) as link, link.makefile("rb") as stream:
        ids = set()
        for _ in range(3):
            link.sendall(request(key) + BODY)
            status, headers, body = read_answer(stream)
            assert (status, headers["content-type"]) == ("HTTP/1.1 200 OK", "application/json")
            assert body["choices"]
            ids.add(headers["x-nemo-request-id"])
        assert len(ids) == 3


def test_calls_that_come_together_are_answered_in_their_order(bench):
    key = bench.key()
    with connect(bench) as link, link.makefile("rb") as stream:
        link.sendall((request(key, "x-nemo-run-id: first") + BODY) + (request(key, "x-nemo-run-id: second") + BODY))
        told = [read_answer(stream)[1]["x-nemo-run-id"] for _ in range(2)]
    assert told == ["first", "second"]


@pytest.mark.parametrize(("version", "line"), [("1.1", "connection: close"), ("1.0", "accept: */*")])
def test_a_connection_that_is_not_to_be_kept_is_closed(bench, version, line):
    with connect(bench) as link, link.makefile("rb") as stream:
        link.sendall(request(bench.key(), line, version=version) + BODY)
        status, headers, _ = read_answer(stream)
        assert (status, headers["connection"]) == ("HTTP/1.1 200 OK", "close")
        assert stream.read() == b""


def test_a_client_that_waits_to_be_told_to_go_on_is_told(bench):
    with connect(bench) as link, link.makefile("rb") as stream:
        link.sendall(request(bench.key(), "expect: 100-continue"))
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        link.sendall(BODY)
        assert read_answer(stream)[0] == "HTTP/1.1 200 OK"


def test_a_refusal_before_the_body_ends_the_wait_for_it(bench):
    with connect(bench) as link, link.makefile("rb") as stream:
        link.sendall(request(bench.key(), "expect: 100-continue").replace(b"Bearer ", b"Bearer x"))
        status, headers, body = read_answer(stream)
        assert status == "HTTP/1.1 401 Unauthorized"
        assert body["error"]["code"] == headers["x-nemo-error-code"] == "invalid_api_key"
