"""Many callers of one or more gateways, as a process of its own that is steered over its standard streams.

    python tests/replicas/replica_client.py      reads one job, then orders, as JSON lines; answers in JSON lines

A job has `targets` (addresses) and `callers`. A caller makes its `calls` one after another, each on the next target, or
all of them on the target it names; with `forever` it begins anew until it is told to stop. A call has the `key` it is
made with (a name; secrets are in the job's `keys` and may be changed while the callers run), a `body`, and a `marker`
that goes out as the run's id and as the prompt, so that what a provider saw can be told from what a client saw.

Orders: `{"do": "key", "name", "secret"}`, `{"do": "progress", "answered"}` waits until so many calls were answered with
200, `{"do": "stop"}` ends callers that go on for ever after their call. At the end every call's `Outcome` is printed.

It speaks HTTP/1.1 over asyncio's streams: an HTTP library takes longer for a call than a gateway does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

RETRY_MAX = 60
RECONNECT_S = 0.02  # a gateway that is down is asked again after that


@dataclass(kw_only=True)
class Outcome:
    """How one call ended.

    `status` is None when the connection broke before an answer was complete, or was refused. Times are microseconds of
    the machine's clock. In a stream `events` counts what arrived, `done` says that its proper end was among it, and
    `code` is that of an error event, as it is that of a refusal.
    """

    marker: str
    key: str
    target: int
    stream: bool
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    retries: int = 0
    events: int = 0
    done: bool = False
    left: bool = False
    connected: bool = False
    started_us: int = 0
    ended_us: int = 0
    latency_us: int = 0


@dataclass(kw_only=True)
class State:
    """What the callers share."""

    targets: list[tuple[str, int]]
    keys: dict[str, str]
    outcomes: list[Outcome] = field(default_factory=list)
    answered: int = 0
    stopping: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome.status == 200:
            self.answered += 1
        self.changed.set()


class Broken(Exception):  # noqa: N818 - an event, not a fault
    """The connection ended before the answer did."""


class Line:
    """One kept connection to one target."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
        return self.streams

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].transport.abort()
            self.streams = None


async def exchange(line: Line, call: dict[str, Any], secret: str, outcome: Outcome) -> int | None:
    """Make one call, note in `outcome` what came back; return milliseconds to wait if it was told to."""
    body = json.dumps(
        {**call["body"], "messages": [{"role": "user", "content": outcome.marker}]}, separators=(",", ":")
    ).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in call.get("headers", {}).items())
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {line.host}:{line.port}\r\nauthorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"x-nemo-run-id: {outcome.marker}\r\n{extra}\r\n"
    )
    reader, writer = await line.open()
    outcome.connected = True
    writer.write(head.encode() + body)
    status_line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
    status = int(status_line.split(" ")[1])
    outcome.request_id = headers.get("x-nemo-request-id")
    leave_after = call.get("leave_after")
    if status == 200 and outcome.stream:
        async for event in events_of(reader):
            if event == b"[DONE]":
                outcome.done = True
            elif event.startswith(b'{"error"'):
                outcome.code = code_of(event)
            outcome.events += 1
            if leave_after is not None and outcome.events > leave_after:
                break
        outcome.left = leave_after is not None and not outcome.done
        if outcome.left:
            line.close()
    elif leave_after is not None and status == 200:
        line.close()
        outcome.left = True
    else:
        content = await reader.readexactly(int(headers["content-length"]))
        if status != 200:
            outcome.code = code_of(content)
    outcome.status = status
    if headers.get("connection", "").lower() == "close":
        line.close()
    wait_ms = headers.get("retry-after-ms")
    return int(wait_ms) if wait_ms and status != 200 else None


def code_of(content: bytes) -> str:
    """The error's code; of a body that is not in the form of errors, its beginning."""
    try:
        return str(json.loads(content)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return content[:80].decode("utf-8", "replace")


async def events_of(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The data of each event of a chunked body."""
    pending = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pending += (await reader.readexactly(size + 2))[:-2]
        *events, pending = pending.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield event[6:]
    await reader.readexactly(2)


async def call_once(state: State, lines: list[Line], call: dict[str, Any], target: int, marker: str) -> None:
    """Make a call, and again when it is told to wait for a refusal that it is to wait for."""
    outcome = Outcome(marker=marker, key=call["key"], target=target, stream=call["body"].get("stream") is True)
    retry_on = set(call.get("retry_on", ()))
    while True:
        outcome.status = outcome.code = None
        outcome.events, outcome.done = 0, False
        line = lines[target]
        wait_ms = None
        begun = time.perf_counter_ns()
        outcome.started_us = time.time_ns() // 1000
        try:
            wait_ms = await exchange(line, call, state.keys[call["key"]], outcome)
        except (OSError, asyncio.IncompleteReadError):
            line.close()
            outcome.status = None
            if not outcome.connected:
                await asyncio.sleep(RECONNECT_S)
        outcome.ended_us = time.time_ns() // 1000
        outcome.latency_us = (time.perf_counter_ns() - begun) // 1000
        if outcome.code not in retry_on or wait_ms is None or outcome.retries == RETRY_MAX or state.stopping:
            break
        outcome.retries += 1
        await asyncio.sleep(wait_ms / 1000)
    state.note(outcome)


async def caller(state: State, plan: dict[str, Any], number: int) -> None:
    lines = [Line(host, port) for host, port in state.targets]
    made = 0
    due = asyncio.get_running_loop().time() + plan.get("first_after_s", 0.0)
    try:
        while True:
            for call in plan["calls"]:
                if state.stopping:
                    return
                pace_s = plan.get("pace_s")
                if pace_s:
                    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                    due += pace_s
                target = plan["target"] if "target" in plan else (number + made) % len(lines)
                marker = f"{call['marker']}-{made}" if plan.get("forever") else call["marker"]
                await call_once(state, lines, call, target, marker)
                made += 1
            if not plan.get("forever"):
                return
    finally:
        for line in lines:
            line.close()


async def take_orders(state: State, orders: asyncio.StreamReader) -> None:
    while text := await orders.readline():
        order = json.loads(text)
        match order["do"]:
            case "key":
                state.keys[order["name"]] = order["secret"]
            case "progress":
                while state.answered < order["answered"]:
                    state.changed.clear()
                    await state.changed.wait()
            case "stop":
                state.stopping = True
        tell({"answered": state.answered, "outcomes": len(state.outcomes)})


def tell(value: Any) -> None:
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()


async def main() -> None:
    orders = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    job = json.loads(await orders.readline())
    targets = [urlsplit(target) for target in job["targets"]]
    state = State(
        targets=[(target.hostname or "127.0.0.1", target.port or 80) for target in targets], keys=dict(job["keys"])
    )
    listening = asyncio.create_task(take_orders(state, orders))
    async with asyncio.TaskGroup() as group:
        for number, plan in enumerate(job["callers"]):
            group.create_task(caller(state, plan, number))
    listening.cancel()
    tell([asdict(outcome) for outcome in state.outcomes])


if __name__ == "__main__":
    asyncio.run(main())
