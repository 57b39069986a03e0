"""Relaying a stream: every event goes out as soon as it is in, and what it says is tallied on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Literal

import msgspec

from nemo_agents.errors import Code
from nemo_agents.gateway.answers import start_stream, stream_error
from nemo_agents.gateway.departure import Departure
from nemo_agents.gateway.exchange import Exchange
from nemo_agents.gateway.outcomes import NOT_JSON, Answered
from nemo_agents.gateway.ports import ProviderResponse, UpstreamError
from nemo_agents.policy.content import Content
from nemo_agents.policy.pricing import Price
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.settlement import output_nanos_per_mtok
from nemo_agents.policy.sse import SseEvent, SseSplitter, SseTooLarge
from nemo_agents.policy.stream import StreamTally
from nemo_agents.policy.usage import usage_from_openai

__all__ = ["Meter", "relay_stream"]

_MTOK = 1_000_000


class Meter:
    """Counts what a stream costs at least while it passes, and says when that has reached what was held for it.

    A provider that obeys the cap it was sent never gets there: the hold has room for all of its output and the input.
    """

    def __init__(self, price: Price | None, hold_nanos: int, content: Content) -> None:
        self._rate = 0 if price is None else output_nanos_per_mtok(price, content)
        self._tokens_max = -(-hold_nanos * _MTOK // self._rate) if self._rate else None

    def reached(self, tally: StreamTally) -> bool:
        """Say whether the stream has used up its hold."""
        return self._tokens_max is not None and tally.tokens_seen >= self._tokens_max

    def counted_nanos(self, tally: StreamTally) -> int:
        """Return what was counted."""
        return -(-tally.tokens_seen * self._rate // _MTOK)


class _HoldUsedUp(Exception):  # noqa: N818 - an event that ends the stream
    """The stream has cost what was held for it, and goes on."""


async def relay_stream(
    x: Exchange, client: Departure, response: ProviderResponse, meter: Meter, *, answers: int
) -> Answered:
    """Pass a stream of so many answers on to the client, and return what it said.

    When the client leaves, the provider is read on for `drain_timeout_s`, because only the end of a stream tells what
    it cost. A slow client holds the provider back: nothing is buffered beyond a chunk. One that reads nothing for
    `client_timeout_s` counts as gone. A provider that goes on after it has used up the hold is cut off. One that
    stops without having said that this is the end has broken off, and what it told until then is not its usage.
    """
    options = x.body.get("stream_options") or {}
    tally = StreamTally(hide_usage=options.get("include_usage") is not True, answers=answers)
    out = _Outlet(x, client)
    failure: Refusal | None = None
    x.started = x.streaming = True
    client.watch()
    try:
        await out.start()
        await _pump(response, tally, out, meter)
        if tally.error is None and not tally.ended:
            failure = _broken("it stopped without an end")
    except _HoldUsedUp:
        await out.write(stream_error(_RAN_ON, x.request_id), last=True)
        return replace(
            _outcome(tally, _RAN_ON, out.ttft_us, gone=client.gone), counted_nanos=meter.counted_nanos(tally)
        )
    except (UpstreamError, SseTooLarge) as error:
        failure = None if tally.said_done else _broken(str(error))
    except TimeoutError:
        failure = None if tally.said_done else _broken("the client left, and the provider did not finish in time")
    gone = client.gone
    await out.write(stream_error(failure, x.request_id) if failure is not None else b"", last=True)
    return _outcome(tally, failure, out.ttft_us, gone=gone)


class _Outlet:
    """Where the events go, for as long as the client is there."""

    def __init__(self, x: Exchange, client: Departure) -> None:
        self._x = x
        self.client = client
        self.ttft_us: int | None = None

    def mark_first(self) -> None:
        if self.ttft_us is None:
            self.ttft_us = self._x.elapsed_us()

    async def start(self) -> None:
        """Send the head."""
        await self._deliver(start_stream(self._x.send, self._x.common_headers()))

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send events on."""
        if (data or last) and not self.client.gone:
            await self._deliver(self._x.send({"type": "http.response.body", "body": data, "more_body": not last}))

    async def _deliver(self, sending: Awaitable[None]) -> None:
        if not await self._x.deliver(sending):
            self.client.leave()


async def _pump(response: ProviderResponse, tally: StreamTally, out: _Outlet, meter: Meter) -> None:
    splitter = SseSplitter()
    async with out.client.patience():
        async for chunk in response.chunks:
            data = _visible(splitter.feed(chunk), tally)
            if tally.visible:
                out.mark_first()
            await out.write(data)
            if meter.reached(tally) and not tally.finished:
                raise _HoldUsedUp
    await out.write(_visible(splitter.end(), tally))


def _visible(events: Iterable[SseEvent], tally: StreamTally) -> bytes:
    out = bytearray()
    for event in events:
        chunk: object = None
        if event.data is not None and event.data.startswith(b"[DONE]"):
            tally.done()
        elif event.data is not None:
            try:
                chunk = msgspec.json.decode(event.data)
            except NOT_JSON:
                chunk = None  # not ours to judge: it is passed on, and says nothing about usage
        if tally.see(chunk):
            out += event.raw
    return bytes(out)


def _outcome(tally: StreamTally, failure: Refusal | None, ttft_us: int | None, *, gone: bool) -> Answered:
    told = usage_from_openai(tally.usage, service_tier=tally.service_tier)
    usage = told if failure is None and tally.last_usage is not None else None
    base = Answered(usage=usage, told=told, answer=tally.answer, finish_reason=tally.finish_reason, ttft_us=ttft_us)
    if failure is not None:
        state: Literal["failed", "abandoned"] = "abandoned" if gone else "failed"
        return replace(base, state=state, status=499 if gone else 502, code=failure.code, error=failure.message)
    if tally.error is not None:
        return replace(base, state="failed", status=502, code=Code.UPSTREAM_ERROR, error=tally.error)
    if gone:
        return replace(base, state="abandoned", status=499, error="the client left before the end")
    return base


_RAN_ON = Refusal(
    status=502,
    code=Code.UPSTREAM_ERROR,
    message=(
        "The provider wrote on beyond the output cap that it was sent, until the call had cost all that was held "
        "for it: the stream was cut."
    ),
    scope="provider",
)


def _broken(why: str) -> Refusal:
    return Refusal(
        status=502, code=Code.UPSTREAM_ERROR, message=f"The provider's stream broke off: {why}.", scope="provider"
    )
