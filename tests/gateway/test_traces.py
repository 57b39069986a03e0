"""`POST /v1/traces`: who may send, both encodings, bombs, whose run it is, and that content is kept as of calls."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty_provider import FaultyProvider
from gateway_bench import Bench, Key, bench_for, gateway_at
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

TRACE = "ab" * 16
PROTOBUF = {"content-type": "application/x-protobuf"}


def span(number: int, parent: int = 0, name: str = "a span", **attributes: Any) -> dict[str, Any]:
    now_ns = time.time_ns()
    told = [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in attributes.items()]
    return {
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": name,
        "startTimeUnixNano": str(now_ns),
        "endTimeUnixNano": str(now_ns + 1_000_000),
        "attributes": told,
    }


def request(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def send(bench: Bench, key: Key, *spans: dict[str, Any], **headers: str) -> httpx.Response:
    return bench.http.post("/v1/traces", json=request(*spans), headers=key.headers | headers)


def run_of(bench: Bench, key: Key, run_id: str = TRACE) -> dict[str, Any]:
    answer = bench.http.get(f"/nemo/runs/{run_id}", headers=key.headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_spans_and_the_calls_in_them_make_one_tree(bench: Bench) -> None:
    key = bench.key()
    inside = {"traceparent": f"00-{TRACE}-{3:016x}-01"}
    assert bench.chat(key, headers=inside).status_code == 200
    chat = span(3, 1, "chat", gen_ai__operation__name="chat")
    tool = span(2, 1, "execute_tool x", gen_ai__operation__name="execute_tool", gen_ai__tool__name="search")
    answer = send(bench, key, tool, chat, span(1, name="my pipeline", openinference__span__kind="AGENT"))
    assert (answer.status_code, answer.json()) == (200, {})
    assert answer.headers["x-nemo-request-id"]
    detail = run_of(bench, key)
    assert (detail["run"]["name"], detail["run"]["state"], detail["run"]["calls"]) == ("my pipeline", "ok", 1)
    assert [(s["kind"], s["name"], s["parent_id"]) for s in detail["spans"]] == [
        ("tool", "search", f"{1:016x}"),
        ("agent", "my pipeline", None),
    ]
    assert detail["calls"][0]["parent_span"] == f"{1:016x}"


def test_protobuf_is_answered_in_protobuf(bench: Bench) -> None:
    key = bench.key()
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=bytes.fromhex(TRACE), span_id=bytes(7) + b"\1", name="job", start_time_unix_nano=1)
    spans.add(name="without ids")
    for body, more in (
        (message.SerializeToString(), {}),
        (gzip.compress(message.SerializeToString()), {"content-encoding": "gzip"}),
    ):
        answer = bench.http.post("/v1/traces", content=body, headers=key.headers | PROTOBUF | more)
        assert (answer.status_code, answer.headers["content-type"]) == (200, PROTOBUF["content-type"])
        partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert partial.rejected_spans == 1
        assert "span id" in partial.error_message
    assert [s["name"] for s in run_of(bench, key)["spans"]] == ["job"]


def test_a_link_gives_a_call_its_place(bench: Bench) -> None:
    key = bench.key()
    headers = {"x-nemo-run-id": "my-run", "x-nemo-step": "research"}
    request_id = bench.chat(key, headers=headers).headers["x-nemo-request-id"]
    agent = span(1, 99, "Writer", nemo__run__id="my-run", nemo__step__name="research", nemo__span__kind="agent")
    link = span(2, 1, "call", nemo__run__id="my-run", nemo__request__id=request_id, nemo__span__kind="other")
    assert send(bench, key, link, agent).json() == {}
    detail = run_of(bench, key, "my-run")
    assert [s["name"] for s in detail["spans"]] == ["Writer"]
    assert detail["calls"][0]["parent_span"] == f"{1:016x}"


def test_a_key_writes_into_runs_of_its_own_fleet_alone(bench: Bench) -> None:
    mine, other = bench.key(), bench.key(fleet=f"{bench.fleet}-other")
    assert bench.chat(mine, headers={"x-nemo-run-id": "my-run"}).status_code == 200
    assert send(bench, other, span(1, nemo__run__id="my-run")).json() == {}
    assert run_of(bench, mine, "my-run")["spans"] == []
    assert len(run_of(bench, other, "my-run")["spans"]) == 1


def test_a_run_id_that_cannot_be_is_told(bench: Bench) -> None:
    answer = send(bench, bench.key(), span(1, nemo__run__id="req_1"), span(2, nemo__run__id="../x"), span(3))
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "2"


@pytest.mark.parametrize("how", ["unknown", "blocked", "revoked"])
def test_only_a_key_that_is_good_may_send(bench: Bench, how: str) -> None:
    key = bench.key()
    if how == "unknown":
        answer = bench.http.post("/v1/traces", json=request(span(1)), headers={"authorization": "Bearer sk-nemo-x"})
        assert answer.status_code == 401
        return
    path, body = ("/key/block", {"key": key.secret}) if how == "blocked" else ("/key/delete", {"keys": [key.secret]})
    bench.ok("POST", path, body)
    answer = send(bench, key, span(1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, f"key_{how}")
    answer = bench.http.post("/v1/traces", content=b"", headers=key.headers | PROTOBUF)
    assert (answer.status_code, answer.content[:2]) == (403, b"\x08\x07")  # PERMISSION_DENIED, as google.rpc.Status


BAD: dict[str, tuple[bytes, dict[str, str], int]] = {
    "no JSON": (b"{", {"content-type": "application/json"}, 400),
    "no protobuf": (b"\xff\xff", PROTOBUF, 400),
    "no gzip": (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 400),
    "half of it": (gzip.compress(b"{}")[:-4], {"content-type": "application/json", "content-encoding": "gzip"}, 400),
    "another type": (b"{}", {"content-type": "text/plain"}, 415),
    "another coding": (b"{}", {"content-type": "application/json", "content-encoding": "br"}, 415),
    "a gzip bomb": (gzip.compress(bytes(200 << 20)), PROTOBUF | {"content-encoding": "gzip"}, 413),
    "too large": (bytes(5 << 20), PROTOBUF, 413),
    "deep": (b'{"resourceSpans":' * 50_000, {"content-type": "application/json"}, 400),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_taken_is_refused(bench: Bench, name: str) -> None:
    body, headers, status = BAD[name]
    answer = bench.http.post("/v1/traces", content=body, headers=bench.key().headers | headers)
    assert answer.status_code == status, answer.text
    assert "retry-after" not in answer.headers
    assert bench.http.get("/health/live").status_code == 200


def test_another_method_is_refused(bench: Bench) -> None:
    assert bench.http.get("/v1/traces", headers=bench.key().headers).status_code == 405


def test_what_guardrails_redact_in_calls_is_redacted_in_spans(bench: Bench) -> None:
    key = bench.key(guardrails=["pii-filter", "prompt-injection-detect"])
    told = {
        "input__value": "to bob@example.com",
        "output__value": "from eve@example.com",
        "note": "ask bob@example.com",
    }
    assert send(bench, key, span(1, **told), span(2, 1, name="plain")).json() == {}
    first, second = run_of(bench, key)["spans"]
    kept = (first["input"], first["output"], first["attributes"]["note"])
    assert kept == ("to <EMAIL_1>", "from <EMAIL_2>", "ask <EMAIL_1>")
    assert (second["name"], second["input"]) == ("plain", None)


def test_where_no_content_is_kept_none_is_kept_of_spans(tmp_path: Path, shared_provider: FaultyProvider) -> None:
    with (
        gateway_at(tmp_path / "home", shared_provider, content="none") as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        key = bench.key()
        told = {"input__value": "in", "output__value": "out", "crew task": "said", "gen_ai__tool__name": "search"}
        assert send(bench, key, span(1, **told)).json() == {}
        (kept,) = run_of(bench, key)["spans"]
        assert (kept["input"], kept["output"], kept["attributes"]) == (None, None, {"gen_ai.tool.name": "search"})


def test_many_senders_at_once_keep_no_call_waiting(bench: Bench) -> None:
    """Those who are asked to come back are told when; calls are answered meanwhile."""
    key = bench.key()
    many = [span(number, 99) for number in range(1, 1_500)]
    answers = [bench.later(send, bench, key, *many) for _ in range(8)]
    assert bench.chat(key).status_code == 200
    for answer in [each.result() for each in answers]:
        assert answer.status_code in (200, 503)
        assert answer.status_code == 200 or answer.headers["retry-after"] == "1"
    assert len(run_of(bench, key)["spans"]) == 1_499
