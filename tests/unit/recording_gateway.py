"""A small OpenAI-compatible server on loopback that records what it is asked and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def chunk(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Told:
    """One answer to give: JSON, or `events` for a stream; `cut` breaks the connection after the events."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Any] | None = None
    cut: bool = False


def refusal(status: int, code: str, *, headers: dict[str, str] | None = None, **facts: Any) -> Told:
    error = {"message": f"no: {code}", "type": "refused", "code": code, **facts}
    extra = {"x-nemo-request-id": "req-refused", "x-nemo-error-code": code, **(headers or {})}
    return Told(status=status, body={"error": error}, headers=extra)


class RecordingGateway:
    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.reports: list[dict[str, Any]] = []
        self.report_answers: deque[Told] = deque()
        self.traces: list[Seen] = []
        self.trace_answers: deque[Told] = deque()
        self.answers: deque[Told] = deque()
        self.lock = threading.Lock()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
                headers = {name.lower(): value for name, value in self.headers.items()}
                told = gateway.answer(Seen(self.command, self.path, headers, body))
                if told.events is not None:
                    self.stream(told)
                    return
                content = json.dumps(told.body).encode()
                self.send_response(told.status)
                for name, value in {"content-type": "application/json", **told.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def stream(self, told: Told) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for event in told.events or []:
                    self.piece(f"data: {json.dumps(event)}\n\n".encode())
                if told.cut:
                    self.close_connection = True
                    return
                self.piece(b"data: [DONE]\n\n")
                self.piece(b"")

            def piece(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, seen: Seen) -> Told:
        with self.lock:
            if seen.path.startswith("/nemo/runs/"):
                self.reports.append({"path": seen.path, "headers": seen.headers, **seen.body})
                return self.report_answers.popleft() if self.report_answers else self.row(seen)
            if seen.path == "/v1/traces":
                self.traces.append(seen)
                return self.trace_answers.popleft() if self.trace_answers else Told(body={})
            self.seen.append(seen)
            if self.answers:
                return self.answers.popleft()
        if seen.body and seen.body.get("stream"):
            return Told(events=[chunk("a"), chunk("b")])
        return Told(body=ANSWER, headers={"x-nemo-request-id": "req-1", "x-nemo-request-cost": "0.000123456"})

    def row(self, seen: Seen) -> Told:
        row = {
            "run_id": seen.path.split("/")[3],
            "fleet": "crew",
            "name": seen.body["name"],
            "state": seen.body["state"],
            "grouped": True,
            "started_us": seen.body["started_us"],
            "calls": 7,
            "cost_nanos": 777_000_001,
            "input_tokens": 10,
            "output_tokens": 20,
        }
        return Told(body=row)

    @property
    def spans(self) -> list[dict[str, Any]]:
        """The spans that were sent, in order, with their attributes as a dictionary."""
        found = [
            span
            for seen in self.traces
            for of_resource in seen.body["resourceSpans"]
            for of_scope in of_resource["scopeSpans"]
            for span in of_scope["spans"]
        ]
        return [{**span, "attributes": attributes_of(span["attributes"])} for span in found]

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The reports of ends: whether a start is reported too depends on how long a run lasts."""
        return [report for report in self.reports if report["state"] != "running"]


def attributes_of(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in pairs}


@contextmanager
def recording_gateway():
    gateway = RecordingGateway()
    thread = threading.Thread(target=gateway.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield gateway
    finally:
        gateway.server.shutdown()
        gateway.server.server_close()
        thread.join()
