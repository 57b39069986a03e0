"""Input that cannot be meant: one clear answer each, nothing sent, and the gateway goes on."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_bench import Bench, Key, refused

OK_BODY = {"model": "faulty/ok", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
MIB = 1024 * 1024


def body(**changes: Any) -> bytes:
    return json.dumps({**OK_BODY, **changes}).encode()


@pytest.fixture
def key(bench: Bench) -> Iterator[Key]:
    """A key under a budget; whatever a test did with it, it still works."""
    key = bench.key(max_budget=1)
    yield key
    assert bench.chat(key).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"not json",
        b"{'model': 'faulty/ok'}",
        b'{"model":"faulty/ok","messages":[{"role":"user","content":"hi"}],}',
        b'{"model":"faulty/ok"} {"model":"faulty/ok"}',
        b"\xff\xfe\x00",
        b'{"model":"faulty/ok","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"faulty/ok","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"faulty/ok","messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
        b'{"model":"faulty/ok","messages":[{"role":"user","content":"hi"}],"temperature":Infinity}',
        b'{"model":"faulty/ok","messages":[{"role":"user","content":"hi"}],"temperature":1e400}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x00",
        b"\xef\xbb\xbf{}",
        gzip.compress(body(), mtime=0),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_body_that_is_no_json_object(bench: Bench, key: Key, content: bytes):
    refused(bench.raw(key, content), 400, "invalid_request")
    assert bench.sent() == []


@pytest.mark.parametrize("depth", [50, 150, 200, 400, 600, 800, 950, 970, 980, 990, 1000, 5000])
@pytest.mark.parametrize("guarded", [False, True])
def test_nesting_is_served_or_refused_at_any_depth(bench: Bench, depth: int, guarded: bool):
    key = bench.key(max_budget=1, **({"guardrails": ["pii-filter", "prompt-injection-detect"]} if guarded else {}))
    nested = b'{"x":' * depth + b"1" + b"}" * depth
    answer = bench.raw(key, body()[:-1] + b', "deep": ' + nested + b"}")
    assert answer.status_code == (200 if depth < 200 else 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["code"] in ("invalid_request", "guardrail_blocked")
        assert bench.sent() == []
    bench.faulty.reset()  # it cannot tell of what is nested deeper than Python's own stack
    assert bench.chat(key).status_code == 200


def test_a_pattern_is_no_model(bench: Bench):
    error = refused(bench.chat(bench.key(), "faulty/*"), 404, "model_not_found")
    assert "is a pattern" in error["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 1}, "model"),
        ({"model": ["faulty/ok"]}, "model"),
        ({"model": "x" * 5000}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{}]}, "messages"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages"),
        ({"messages": [None]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}] * 10_001}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": "usage"}, "stream_options"),
        ({"tools": {}}, "tools"),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}] * 513}, "tools"),
        ({"functions": "x"}, "functions"),
        *(({"max_tokens": bad}, "max_tokens") for bad in (0, -1, True, False, "50", 1.5, 10**9, 10**30, [], {})),
        *(({"n": bad}, "n") for bad in (0, -1, True, "2", 1.5, 129, 10**18, [])),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None),
        ({"best_of": 1000}, "best_of"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_field_that_cannot_be_meant_is_named(bench: Bench, key: Key, changes: dict[str, Any], param: str | None):
    error = refused(bench.raw(key, body(**changes)), 400, "invalid_request")
    if param is not None:
        assert error["param"] == param
    assert bench.sent() == []


@pytest.mark.parametrize("seed", [2**63, 2**64, 10**30, -(10**30), 10**400, 1.5e300, -0.0])
def test_numbers_of_any_size_are_passed_on_or_refused(bench: Bench, key: Key, seed: float):
    answer = bench.raw(key, body(seed=seed))
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert bench.sent()[0]["body"]["seed"] == seed
    else:
        refused(answer, 400, "invalid_request")
        assert bench.sent() == []


@pytest.mark.parametrize("content", [5, True, {"a": 1}, [[[]]], [1], [None], None, "", [{"type": 1}]])
def test_odd_content_is_the_provider_s_to_judge_or_refused(bench: Bench, content: Any):
    key = bench.key(max_budget=1, guardrails=["pii-filter", "prompt-injection-detect"])
    answer = bench.raw(key, body(messages=[{"role": "user", "content": content}]))
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    "text", ["\x00", "\u202e", "\U0010ffff", "e\u0301" * 100, "\u2028", "\r\n\r\nGET / HTTP/1.1\r\n"]
)
def test_text_of_any_kind_arrives_as_it_was(bench: Bench, key: Key, text: str):
    answer = bench.chat(key, text=text)
    assert answer.status_code == 200
    assert bench.sent()[0]["body"]["messages"][0]["content"] == text
    assert bench.content(answer)["prompt"][0]["content"] == text


def test_a_body_of_fifty_megabytes_is_413(bench: Bench, key: Key):
    refused(bench.raw(key, b"x" * (50 * MIB)), 413, "request_too_large")
    assert bench.sent() == []


def test_a_body_without_a_length_is_413_as_soon_as_it_is_too_large(bench: Bench, key: Key):
    def parts() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * MIB

    refused(bench.raw(key, parts()), 413, "request_too_large")
    assert bench.sent() == []


def test_a_chunked_body_is_as_good_as_any(bench: Bench, key: Key):
    content = body()
    assert bench.raw(key, iter([content[:10], content[10:]])).status_code == 200


def test_a_size_is_refused_before_the_key_is_asked(bench: Bench):
    answer = bench.http.post("/v1/chat/completions", content=b"x" * (5 * MIB))
    refused(answer, 413, "request_too_large")


def test_a_compressed_body_is_refused(bench: Bench, key: Key):
    error = refused(bench.raw(key, gzip.compress(body()), **{"content-encoding": "gzip"}), 400, "invalid_request")
    assert "ompressed" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/embeddings", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/", 404, "not_found"),
        ("POST", "/v1/audio/speech", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "/v1/%2e%2e/key/list", 404, "not_found"),
    ],
)
def test_no_such_path_or_method(bench: Bench, key: Key, *, method: str, path: str, status: int, code: str):
    answer = bench.http.send(bench.http.build_request(method, f"{bench.url}{path}", headers=key.headers))
    assert answer.status_code == status, answer.text
    assert answer.json().get("error", {}).get("code") == code


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-nemo-run-id": "a b"}, "x-nemo-run-id"),
        ({"x-nemo-run-id": "../x"}, "x-nemo-run-id"),
        ({"x-nemo-run-id": "r" * 129}, "x-nemo-run-id"),
        ({"x-nemo-run-id": "r", "x-nemo-step": "a%0d%0ax-evil: 1"}, "x-nemo-step"),
        ({"x-nemo-run-id": "r", "x-nemo-step": "x" * 201}, "x-nemo-step"),
        ({"x-nemo-run-id": "r", "x-nemo-run-name": "%00"}, "x-nemo-run-name"),
        ({"x-nemo-step": "s"}, "x-nemo-run-id"),
        ({"x-nemo-run-budget": "1"}, "x-nemo-run-id"),
        ({"x-nemo-run-id": "r", "x-nemo-run-budget": "-1"}, "x-nemo-run-budget"),
        ({"x-nemo-run-id": "r", "x-nemo-run-budget": "NaN"}, "x-nemo-run-budget"),
        ({"x-nemo-run-id": "r", "x-nemo-run-budget": "1e400"}, "x-nemo-run-budget"),
        ({"x-nemo-run-id": "r", "x-nemo-run-budget": "lots"}, "x-nemo-run-budget"),
        ({"x-nemo-run-id": "r", "x-nemo-run-max-calls": "0"}, "x-nemo-run-max-calls"),
        ({"x-nemo-run-id": "r", "x-nemo-run-max-calls": "1.5"}, "x-nemo-run-max-calls"),
        ({"x-nemo-run-id": "r", "x-nemo-run-max-calls": "9" * 40}, "x-nemo-run-max-calls"),
    ],
)
def test_grouping_that_cannot_be_meant_is_named(bench: Bench, key: Key, headers: dict[str, str], param: str):
    refused(bench.chat(key, headers=headers), 400, "invalid_request", param=param)
    assert bench.sent() == []


def test_a_label_in_any_script_is_kept(bench: Bench, key: Key):
    answer = bench.chat(key, headers={"x-nemo-run-id": "r", "x-nemo-step": "pl%C3%A4ne%20%E2%9C%93"})
    assert bench.row(answer)["step"] == "pläne ✓"


def speak(bench: Bench, text: bytes, *, hang_up: bool = False) -> bytes:
    """Send bytes to the gateway as they are; return all that it says until it closes the connection."""
    host, port = bench.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(text)
        if hang_up:
            link.shutdown(socket.SHUT_WR)
        said = b""
        while part := link.recv(65536):
            said += part
        return said


def wire(key: Key, *lines: str, host: str = "127.0.0.1", connection: str = "close") -> bytes:
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        f"host: {host}",
        f"authorization: Bearer {key.secret}",
        "content-type: application/json",
        f"connection: {connection}",
        *lines,
    ]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body()


def test_a_header_cannot_be_split(bench: Bench, key: Key):
    """A bare line break in a value is not HTTP; whatever becomes of it, it never turns into a header of ours."""
    size = f"content-length: {len(body())}"
    for breaks in ("\r", "\n", "\r\n "):
        said = speak(bench, wire(key, size, f"x-nemo-run-id: r{breaks}x-evil: 1"))
        assert said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
        assert b"x-evil" not in said.split(b"\r\n\r\n")[0]


@pytest.mark.parametrize(
    "size",
    [
        "content-length: -1",
        "content-length: 1e3",
        "content-length: " + "9" * 30,
        "content-length: " + "9" * 5000,
        "content-length: 5\r\ncontent-length: 6",
    ],
)
def test_a_length_that_is_none_is_an_error(bench: Bench, key: Key, size: str):
    said = speak(bench, wire(key, size))
    assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), said[:200]
    assert bench.sent() == []


def test_a_body_that_is_cut_short_is_not_sent(bench: Bench, key: Key):
    speak(bench, wire(key, f"content-length: {len(body()) + 10}"), hang_up=True)
    bench.all_over()
    assert bench.sent() == []


def test_two_requests_on_one_connection_are_two(bench: Bench, key: Key):
    size = f"content-length: {len(body())}"
    both = wire(key, size, connection="keep-alive") + wire(key, size)
    assert speak(bench, both).count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:4141", "", "a@127.0.0.1", "localhost\t."]
)
def test_a_stranger_s_host_name_is_421(bench: Bench, key: Key, host: str):
    text = wire(key, f"content-length: {len(body())}", host=host)
    for path in (b"/v1/chat/completions", b"/key/list", b"/health/live"):
        said = speak(bench, text.replace(b"/v1/chat/completions", path, 1))
        assert said.startswith(b"HTTP/1.1 421"), said[:300]
        assert b"misdirected_request" in said
    assert bench.sent() == []
