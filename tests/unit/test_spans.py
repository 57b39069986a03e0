"""Spans of a run: what is kept of them, when they are sent, and that nothing of it disturbs the run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel
from recording_gateway import RecordingGateway, Told, recording_gateway

from nemo_agents import AgentRole, Fleet, GatewayUnreachable
from nemo_agents.errors import AdminError
from nemo_agents.trace import spans as recorder
from nemo_agents.trace.otlp import SpanRecord, encode_spans
from nemo_agents.trace.spans import TEXT_BYTES_MAX, Spans, as_text, shown_text

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def fleet(gateway: RecordingGateway, tmp_path):
    roles = [AgentRole("researcher", models=["gpt-4o-mini"]), AgentRole("writer", models=["gpt-4o-mini"])]
    return Fleet("crew", roles=roles).connect(gateway.url, home=tmp_path, environ={"NEMO_KEY_RESEARCHER": KEY})


# --- the wire -------------------------------------------------------------------------------------------------------
def test_spans_on_the_wire():
    tool = SpanRecord(
        span_id="b" * 16,
        parent_id="a" * 16,
        kind="tool",
        name="web_search",
        step="research#2",
        role="researcher",
        started_us=1_000_000,
        ended_us=2_500_000,
        input='{"q": "CRDT"}',
        error="ValueError: no",
        attributes={"n": 3, "share": 0.5, "again": True, "why": "so", "huge": 2**70, "odd": float("inf")},
    )
    link = SpanRecord(
        span_id="c" * 16,
        parent_id="b" * 16,
        kind="other",
        name="model call",
        step=None,
        role=None,
        started_us=3,
        ended_us=2,
        request_id="req-1",
    )
    run_id = "d" * 32

    def said(**values):
        return [{"key": key.replace("__", "."), "value": value} for key, value in values.items()]

    assert encode_spans(run_id, [tool, link]) == {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": said(
                        service__name={"stringValue": "nemo-agents"}, nemo__run__id={"stringValue": run_id}
                    )
                },
                "scopeSpans": [
                    {
                        "scope": {"name": "nemo_agents"},
                        "spans": [
                            {
                                "traceId": run_id,
                                "spanId": "b" * 16,
                                "parentSpanId": "a" * 16,
                                "name": "web_search",
                                "kind": 1,
                                "startTimeUnixNano": "1000000000",
                                "endTimeUnixNano": "2500000000",
                                "attributes": said(
                                    n={"intValue": "3"},
                                    share={"doubleValue": 0.5},
                                    again={"boolValue": True},
                                    why={"stringValue": "so"},
                                    huge={"stringValue": str(2**70)},
                                    odd={"stringValue": "inf"},
                                    nemo__span__kind={"stringValue": "tool"},
                                    nemo__step__name={"stringValue": "research#2"},
                                    nemo__role={"stringValue": "researcher"},
                                    gen_ai__operation__name={"stringValue": "execute_tool"},
                                    input__value={"stringValue": '{"q": "CRDT"}'},
                                    gen_ai__tool__name={"stringValue": "web_search"},
                                ),
                                "status": {"code": 2, "message": "ValueError: no"},
                            },
                            {
                                "traceId": run_id,
                                "spanId": "c" * 16,
                                "parentSpanId": "b" * 16,
                                "name": "model call",
                                "kind": 1,
                                "startTimeUnixNano": "3000",
                                "endTimeUnixNano": "3000",
                                "attributes": said(
                                    nemo__span__kind={"stringValue": "other"},
                                    nemo__request__id={"stringValue": "req-1"},
                                ),
                            },
                        ],
                    }
                ],
            }
        ]
    }


def test_a_run_id_that_is_no_trace_id_is_told_beside_its_hash():
    (of_resource,) = encode_spans("nightly-7", [])["resourceSpans"]
    assert {"key": "nemo.run.id", "value": {"stringValue": "nightly-7"}} in of_resource["resource"]["attributes"]


# --- what is kept ---------------------------------------------------------------------------------------------------
def test_spans_of_a_run_arrive_with_their_parents_steps_and_roles(gateway, fleet):
    with fleet.run("r") as run:
        with run.step("s", "researcher") as step:
            with run.span("agent", "crew", input={"topic": "CRDT"}) as agent:
                with run.span("tool", "search", role="writer", attributes={"n": 1}) as tool:
                    tool.output = ["a", "b"]
                by_hand = run.spans.open("task", "write", parent_id=tool.id)
                run.spans.close(by_hand, output="done")
            at_once = run.spans.open("chain", "c")
            run.spans.close(at_once)
            run.spans.link("req-1", agent.id)
        outside = run.spans.open("other", "o", role="writer")
        run.spans.close(outside)
        back = run.spans.open("other", "p", step="s")
        run.spans.close(back)
    found = {span["name"]: span for span in gateway.spans}
    assert set(found) == {"crew", "search", "write", "c", "model call", "o", "p"}
    parents = {name: span["parentSpanId"] for name, span in found.items()}
    assert parents == {
        "crew": step.span_id,
        "search": agent.id,
        "write": tool.id,
        "c": step.span_id,
        "model call": agent.id,
        "o": run.span_id,
        "p": step.span_id,
    }
    said = {name: span["attributes"] for name, span in found.items()}
    assert [said[name].get("nemo.step.name") for name in ("crew", "search", "write", "c", "o", "p")] == ["s"] * 4 + [
        None,
        "s",
    ]
    roles = {name: attributes.get("nemo.role") for name, attributes in said.items()}
    assert (roles["crew"], roles["search"], roles["c"], roles["o"], roles["p"]) == (
        "researcher",
        "writer",
        "researcher",
        "writer",
        "researcher",
    )
    assert json.loads(said["crew"]["input.value"]) == {"topic": "CRDT"}
    assert json.loads(said["search"]["output.value"]) == ["a", "b"]
    assert (said["write"]["output.value"], said["search"]["n"]) == ("done", "1")
    assert said["model call"]["nemo.request.id"] == "req-1"
    assert {span["traceId"] for span in gateway.spans} == {run.id}
    for span in gateway.spans:
        assert re.fullmatch(r"[0-9a-f]{16}", span["spanId"])
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    assert {seen.headers["authorization"] for seen in gateway.traces} == {f"Bearer {KEY}"}
    assert (run.spans.dropped, run.spans.send_error) == (0, None)


async def test_an_async_run_sends_its_spans_before_it_is_left(gateway, fleet):
    async with fleet.run("r") as run, run.span("agent", "a") as span:
        span.output = "x"
    assert [span["name"] for span in gateway.spans] == ["a"]


def test_an_exception_in_a_span_is_its_error_and_goes_on(gateway, fleet):
    with pytest.raises(ValueError, match="bad"), fleet.run("r") as run, run.span("tool", "t"):
        raise ValueError(f"bad {KEY}")
    (span,) = gateway.spans
    assert span["status"]["code"] == 2
    assert span["status"]["message"].startswith("ValueError: bad")
    assert KEY not in json.dumps(gateway.spans)


def test_a_span_that_is_still_open_ends_with_its_run(gateway, fleet):
    with fleet.run("r") as run:
        run.spans.open("agent", "open")
    failed = fleet.run("r")

    def fail():
        with failed:
            failed.spans.open("agent", "lost")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    well, lost = gateway.spans
    assert (well["name"], well["status"], well["attributes"]["nemo.span.never_ended"]) == ("open", {"code": 1}, True)
    assert (lost["name"], lost["status"]["code"]) == ("lost", 2)
    assert "KeyError" in lost["status"]["message"]


def test_a_span_is_entered_once_and_has_an_id_in_its_block(fleet):
    with fleet.run("r") as run:
        span = run.span("tool", "t")
        with pytest.raises(RuntimeError, match="enter the span first"):
            _ = span.id
        with span:
            pass
        with pytest.raises(RuntimeError, match="entered before"), span:
            pass


class Form(BaseModel):
    """A value of a framework's."""

    city: str


class Odd:
    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("text", "text"),
        ("", ""),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        ([Form(city="Paris")], '[{"city": "Paris"}]'),
        (Odd(), '"odd"'),
        ("é" * 3, "ééé"),
        ("a\ud800", "a\ud800"),
    ],
)
def test_what_is_kept_of_a_value(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize("letter", ["a", "é", "→", "😀", "\ud800"])
@pytest.mark.parametrize("over", [-1, 0, 1, 100_000])
def test_texts_are_cut_to_their_bytes(letter, over):
    size = len(letter.encode("utf-8", "surrogatepass"))
    text = shown_text(letter * (TEXT_BYTES_MAX // size + over))
    told = text.encode("utf-8", "replace")
    assert len(told) <= TEXT_BYTES_MAX
    assert len(told) > TEXT_BYTES_MAX - 8 or letter == "\ud800" or over == -1


def test_a_key_is_hidden_also_where_the_text_is_cut():
    for before in range(TEXT_BYTES_MAX - 80, TEXT_BYTES_MAX, 7):
        kept = as_text("x" * (before - 1) + " " + KEY + " tail" * 1000)
        assert kept is not None
        assert "0123456789abcdefghij" not in shown_text(kept)


# --- bounds and faults ----------------------------------------------------------------------------------------------
class Somewhere:
    """A run, as far as the recorder looks at it."""

    gateway_url, run_id, step_label, role, span_id, over = "http://127.0.0.1:9", "r", None, None, "0" * 16, False

    def at(self, _step):
        return self


class Sender:
    """Takes spans, or waits before it does, or fails."""

    def __init__(self) -> None:
        self.got: list[SpanRecord] = []
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()
        self.took = threading.Event()
        self.errors: list[Exception] = []

    def __call__(self, spans) -> None:
        self.began.set()
        assert self.free.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        self.got += spans
        self.took.set()


def recording(sender) -> Spans:
    number = iter(range(1, 10**6))
    return Spans(Somewhere(), send=sender, clock_us=lambda: 5, new_span_id=lambda: f"{next(number):016x}")


def ended(spans: Spans) -> None:
    thread = spans.finish()
    if thread is not None:
        thread.join(30)
        assert not thread.is_alive()


def test_no_thread_is_started_for_a_run_without_spans(fleet):
    with fleet.run("r") as run:
        pass
    assert run.spans._sender is None
    assert not [thread for thread in threading.enumerate() if thread.name == f"nemo-spans-{run.id}"]


def test_the_thread_ends_with_the_run(fleet):
    with fleet.run("r") as run, run.span("tool", "t"):
        sender = run.spans._sender
        assert sender is not None
        assert sender.daemon
    assert not sender.is_alive()


def test_the_oldest_waiting_spans_are_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(recorder, "SPANS_MAX", 10)
    sender = Sender()
    sender.free.clear()
    spans = recording(sender)
    spans.close(spans.open("tool", "first"))
    spans.finish()  # wakes the sender, which now holds the first
    assert sender.began.wait(30)
    spans._ended = False
    for number in range(25):
        spans.close(spans.open("tool", str(number)))
    sender.free.set()
    ended(spans)
    assert [span.name for span in sender.got] == ["first", *map(str, range(15, 25))]
    assert spans.dropped == 15


def test_more_open_spans_than_there_is_room_for_are_not_kept(monkeypatch):
    monkeypatch.setattr(recorder, "SPANS_MAX", 10)
    sender = Sender()
    spans = recording(sender)
    ids = [spans.open("tool", str(number)) for number in range(15)]
    assert len(set(ids)) == 15
    for span_id in ids:
        spans.close(span_id)
    ended(spans)
    assert len(sender.got) == 10
    assert spans.dropped == 5


def test_texts_that_wait_are_bounded_together(monkeypatch):
    monkeypatch.setattr(recorder, "_WAITING_BYTES_MAX", 100)
    sender = Sender()
    sender.free.clear()
    spans = recording(sender)
    for number in range(10):
        spans.close(spans.open("tool", str(number), input="x" * 30))
    assert spans._waiting_bytes <= 100
    sender.free.set()
    ended(spans)
    assert len(sender.got) + spans.dropped == 10
    assert spans.dropped > 0


def test_big_batches_are_sent_in_parts(monkeypatch):
    monkeypatch.setattr(recorder, "_BATCH_BYTES_MAX", 100)
    sizes = []
    spans = recording(lambda batch: sizes.append(len(batch)))
    for number in range(10):
        spans.close(spans.open("tool", str(number), input="x" * 40))
    ended(spans)
    assert sum(sizes) == 10
    assert max(sizes) == 2


@pytest.mark.parametrize("error", [GatewayUnreachable("no"), AdminError("come back", status=503)])
def test_spans_wait_for_a_gateway_that_cannot_take_them_now(monkeypatch, error):
    monkeypatch.setattr(recorder, "_EVERY_S", 0.001)
    sender = Sender()
    sender.errors = [error, error]
    spans = recording(sender)
    spans.close(spans.open("tool", "t"))
    assert sender.took.wait(30)
    ended(spans)
    assert [span.name for span in sender.got] == ["t"]
    assert spans.dropped == 0


def test_spans_that_nobody_takes_are_dropped_at_the_end():
    sender = Sender()
    sender.errors = [GatewayUnreachable("no")] * 3
    spans = recording(sender)
    spans.close(spans.open("tool", "t"))
    ended(spans)
    assert (sender.got, spans.dropped) == ([], 1)
    assert isinstance(spans.send_error, GatewayUnreachable)


def test_spans_that_are_refused_are_dropped_and_the_run_goes_on(gateway, fleet):
    gateway.trace_answers.append(Told(status=404, body={"error": {"message": "what is this"}}))
    with fleet.run("r") as run:
        with run.span("tool", "t"):
            pass
        run.result = 1
    assert (run.state, run.result, run.spans.dropped) == ("ok", 1, 1)
    assert "what is this" in str(run.spans.send_error)


class Broken:
    """A value of a framework's that cannot be told."""

    def __str__(self) -> str:
        raise ValueError("broken")


def test_nothing_raises_whatever_it_is_given(fleet, gateway):
    with fleet.run("r") as run:
        span_id = run.spans.open("tool", "t", input=Broken())
        assert re.fullmatch(r"[0-9a-f]{16}", span_id)
        run.spans.close(span_id, output=Broken())
        run.spans.close("no such span")
        ring: list = []
        ring.append(ring)
        run.spans.close(run.spans.open("tool", "u"), output=ring, error="")
        with run.span("tool", "v", input=Broken()) as span:
            span.output = Broken()
    assert run.state == "ok"
    assert run.spans.dropped > 0


def test_one_text_that_cannot_be_sent_takes_no_other_span_with_it(gateway, fleet):
    half = "half of a character: \ud83d"
    with fleet.run("r") as run:
        with run.span("tool", half, input=half, attributes={half: half, "list": [half]}):
            pass
        with run.span("tool", "huge", attributes={"n": 10**5_000}):  # Python writes no number of that length
            pass
        with pytest.raises(ValueError, match="half"), run.span("tool", "failed"):
            raise ValueError(half)
        with run.span("tool", "other"):
            pass
    assert [span["name"] for span in gateway.spans] == ["half of a character: ?", "failed", "other"]
    assert run.spans.dropped == 1


def test_attributes_that_wait_are_bounded_too(monkeypatch):
    monkeypatch.setattr(recorder, "_WAITING_BYTES_MAX", 100)
    sender = Sender()
    sender.free.clear()
    spans = recording(sender)
    for _ in range(10):
        spans.close(spans.open("tool", "t", attributes={"text": "x" * 30}))
    assert 0 < spans._waiting_bytes <= 100
    sender.free.set()
    ended(spans)


@pytest.mark.parametrize("end", [GeneratorExit(), SystemExit(0)])
def test_a_block_that_is_left_early_has_not_failed(gateway, fleet, end):
    with contextlib.suppress(GeneratorExit, SystemExit), fleet.run("r") as run, run.span("tool", "t"):
        raise end
    assert [span["status"] for span in gateway.spans] == [{"code": 1}]


def test_a_span_opened_after_the_end_is_not_kept(gateway, fleet):
    with fleet.run("r") as run:
        pass
    run.spans.close(run.spans.open("tool", "late"))
    run.spans.link("req-1", "0" * 16)
    assert gateway.traces == []
    assert run.spans.dropped == 2


def test_spans_from_many_threads_all_arrive(gateway, fleet):
    with ThreadPoolExecutor(8) as pool, fleet.run("r") as run:

        def work(number: int) -> None:
            run.spans.close(run.spans.open("tool", str(number)))

        list(pool.map(work, range(400)))
    assert sorted(int(span["name"]) for span in gateway.spans) == list(range(400))
    assert {span["parentSpanId"] for span in gateway.spans} == {run.span_id}


def test_a_forked_child_starts_anew(monkeypatch):
    sender = Sender()
    spans = recording(sender)
    spans.open("tool", "the parent's")
    spans._changed.acquire()  # as a thread of the parent's may have held it
    try:
        pid = os.getpid()
        monkeypatch.setattr(recorder.os, "getpid", lambda: pid + 1)
        spans.close(spans.open("tool", "the child's"))
        ended(spans)
    finally:
        monkeypatch.undo()
    assert [span.name for span in sender.got] == ["the child's"]


def test_the_end_of_a_run_waits_for_its_spans_only_so_long(fleet, monkeypatch):
    from nemo_agents.trace import run as runs

    monkeypatch.setattr(runs, "SPANS_TIMEOUT_S", 0.01)
    sender = Sender()
    sender.free.clear()
    run = fleet.run("r")
    run.spans._send = sender
    with run, run.span("tool", "t"):
        pass
    assert sender.got == []
    assert run.state == "ok"
    sender.free.set()
