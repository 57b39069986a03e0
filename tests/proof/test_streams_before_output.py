"""What a stream may still become before its client has seen an event of it, and what it may not become after that."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from world import (
    DONE,
    Bench,
    Caller,
    a_day,
    a_piece,
    a_prompt,
    an_answer,
    an_event,
    bill_of,
    pieces,
    plain,
    sqlite_bench,
    streamed,
    the_usage,
)

from nemo_agents.errors import Code
from nemo_agents.gateway.route import Candidates
from nemo_agents.gateway.state import CutOff
from nemo_agents.policy.failover import Fault
from nemo_agents.policy.wires.base import Wire
from nemo_agents.policy.wires.chat import CHAT
from nemo_agents.policy.wires.completions import COMPLETIONS
from nemo_agents.policy.wires.messages import MESSAGES
from nemo_agents.policy.wires.responses import RESPONSES

HEARTBEAT = b": still working\n\n"
HEARTBEAT_S = 0.05
CHAIN = {"chain": ["alpha/cheap", "beta/plain"]}
ROLE: dict[str, Any] = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
BROKEN = an_event({"error": {"message": "overloaded"}})
PROPER = (a_piece("done", end=True), the_usage(3, 2), DONE)


class Watching(Caller):
    """A client that notes the first heartbeat, and does nothing with the head of an answer for some of them."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.alive = asyncio.Event()
        self.leaves = asyncio.Event().wait  # it does not
        self.slow = False

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message.get("body") == HEARTBEAT:
            self.alive.set()
        if self.slow and message["type"] == "http.response.start":
            self.alive.clear()
            try:
                await asyncio.wait_for(self.alive.wait(), 4 * HEARTBEAT_S)
            except TimeoutError:
                return


def watching(bench: Bench, body: dict[str, Any], **more: Any) -> Watching:
    return Watching(bench.key, body, **more)


def data_of(caller: Caller) -> list[Any]:
    """The data of the events that a client got."""
    lines = [line.removeprefix(b"data: ") for line in caller.body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


@pytest.mark.parametrize("padding", [1_000, 700_000], ids=["little", "more than is held back"])
async def test_of_two_streams_the_client_sees_events_of_one(tmp_path: Path, padding: int) -> None:
    """What is held back has a bound; once it has gone out, no other provider is asked."""

    async def script(_request: Any, body: Any) -> Any:
        if body["model"] == "plain":
            return streamed(pieces(*PROPER))
        return streamed(pieces(*[an_event({**ROLE, "padding": "x" * padding})] * 2, BROKEN))

    async with sqlite_bench(tmp_path, script, a_day(1_000_000), chains=CHAIN) as bench:
        caller = watching(bench, a_prompt(model="chain", max_tokens=50, stream=True))
        await caller.call(bench.gateway)
        asked = [len(provider.asked) for name, provider in bench.providers.items() if name in ("alpha", "beta")]
        said = data_of(caller)
        if padding == 1_000:
            assert asked == [1, 1]
            assert not any("padding" in event or "error" in event for event in said)
        else:
            assert asked == [1, 0]
            assert [sorted(event) for event in said] == [["choices", "padding"]] * 2 + [["error"]]


async def test_a_stream_that_may_fall_back_is_not_silent_while_its_provider_has_sent_the_head_alone(
    tmp_path: Path,
) -> None:
    silent = asyncio.Event()

    async def nothing() -> Any:
        await silent.wait()
        for piece in PROPER:
            yield piece

    async def script(_request: Any, _body: Any) -> Any:
        return streamed(nothing())

    async with sqlite_bench(tmp_path, script, a_day(1_000_000), chains=CHAIN, heartbeat_s=HEARTBEAT_S) as bench:
        caller = watching(bench, a_prompt(model="chain", max_tokens=50, stream=True))
        call = asyncio.create_task(caller.call(bench.gateway))
        await asyncio.wait_for(caller.alive.wait(), 4)  # the provider says no word before this one
        silent.set()
        assert await call == 200
        assert data_of(caller)[0]["choices"][0]["delta"]["content"] == "done"


async def test_no_heartbeat_lands_in_the_refusal_of_a_call_that_is_cut(tmp_path: Path) -> None:
    """The first attempt has begun to watch for silence, the second one is cut before anything has gone out."""
    asked = asyncio.Event()

    async def script(_request: Any, body: Any) -> Any:
        if body["model"] == "cheap":
            return streamed(pieces(an_event(ROLE), BROKEN))
        asked.set()
        return await asyncio.Event().wait()

    async with sqlite_bench(tmp_path, script, a_day(1_000_000), chains=CHAIN, heartbeat_s=HEARTBEAT_S) as bench:
        caller = watching(bench, a_prompt(model="chain", max_tokens=50, stream=True))
        caller.slow = True
        call = asyncio.create_task(caller.call(bench.gateway))
        await asked.wait()
        bench.gateway.cut(CutOff(Code.RUN_STOPPED, "This run was stopped.", scope="run"), lambda _: True)
        assert await call == 403
        assert caller.code == "run_stopped"
        assert [message["type"] for message in caller.sent] == ["http.response.start", "http.response.body"]


async def test_a_stream_that_breaks_after_output_keeps_nobody_from_a_probe_of_another(tmp_path: Path) -> None:
    """The second deployment may be asked again by now, and the broken stream is nobody's to go on with."""

    async def script(_request: Any, _body: Any) -> Any:
        return streamed(pieces(a_piece("do"), BROKEN))

    async with sqlite_bench(tmp_path, script, a_day(1_000_000), chains=CHAIN) as bench:
        router = bench.gateway.router
        found = router.candidates("chain", "crew")
        assert isinstance(found, Candidates)
        second = found.targets[1]
        while router.cooling_until_us(second) is None:
            route = router.route((second,), found.options, tokens_in=1, cost_nanos=lambda _: None)
            route.start()
            route.sent(second)
            route.failed(second, Fault(status=500))
        bench.clock.at_us = router.cooling_until_us(second)
        caller = await bench.call(a_prompt(model="chain", max_tokens=50, stream=True))
        assert "error" in data_of(caller)[-1]
        assert router.cooling_until_us(second) is None
        first, _ = router.snapshot()
        assert (first.model, first.faults, first.in_flight) == ("cheap", 1, 0)


# --- a provider that answers with no stream, after all ----------------------------------------------------------------
WIRES: dict[str, tuple[Wire, dict[str, Any]]] = {
    "/v1/chat/completions": (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/responses": (RESPONSES, {"input": "hi"}),
    "/v1/messages": (MESSAGES, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}),
    "/v1/completions": (COMPLETIONS, {"prompt": "hi"}),
}


@pytest.mark.parametrize("path", WIRES)
async def test_a_whole_answer_after_a_heartbeat_is_told_as_a_stream_and_costs_what_it_used(
    tmp_path: Path, path: str
) -> None:
    wire, fields = WIRES[path]
    alive: list[asyncio.Event] = []

    async def script(_request: Any, body: Any) -> Any:
        if body["model"] == "cheap":
            return streamed(pieces(an_event(ROLE), BROKEN))
        await alive[0].wait()
        return plain(an_answer(3, 2))

    async with sqlite_bench(tmp_path, script, a_day(1_000_000), chains=CHAIN, heartbeat_s=HEARTBEAT_S) as bench:
        caller = watching(bench, {"model": "chain", "stream": True, **fields}, path=path)
        alive.append(caller.alive)
        assert await caller.call(bench.gateway) == 200
        assert caller.headers["content-type"].startswith("text/event-stream")
        tally = wire.tally({"stream_options": {"include_usage": True}}, answers=1)
        for event in data_of(caller):
            tally.see(event)
        assert (tally.error, tally.ended or b"[DONE]" in caller.body) == (None, True)
        assert "done" in json.dumps(tally.answer)
        assert not caller.sent[-1].get("more_body")
        row = await bench.store.call(caller.headers["x-nemo-request-id"])
        assert row is not None
        assert (row.state, row.output_tokens, row.model_served) == ("ok", 2, "plain")
        first, second = row.attempt_rows
        assert second.cost_nanos == bill_of("beta/plain", 3, 2) < second.held_nanos
        assert row.cost_nanos == (first.cost_nanos or 0) + second.cost_nanos
