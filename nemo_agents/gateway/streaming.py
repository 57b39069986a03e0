"""Relaying a stream: every event goes out as soon as it is in, and what it says is tallied on the way.

While another attempt could still follow, what shows nothing of the answer yet is held back: once the client has seen
any of it, no other provider can be asked, and a stream that then breaks ends with an error event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import structlog
from msgspec.structs import replace

from nemo_agents.errors import Code
from nemo_agents.gateway.answers import start_stream
from nemo_agents.gateway.departure import Departure
from nemo_agents.gateway.exchange import Exchange
from nemo_agents.gateway.outcomes import NOT_JSON, Answered, Failure
from nemo_agents.gateway.ports import ProviderResponse, UpstreamError
from nemo_agents.policy.caching import ANSWER_BYTES_MAX
from nemo_agents.policy.content import Content
from nemo_agents.policy.pricing import Price
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.settlement import output_nanos_per_mtok
from nemo_agents.policy.sse import SseEvent, SseSplitter, SseTooLarge
from nemo_agents.policy.toolcheck import ToolGate
from nemo_agents.policy.wires.base import StreamTranslation, Tally

__all__ = ["Meter", "Outlet", "Reading", "relay_stream"]

_MTOK: Final = 1_000_000
_HEARTBEAT: Final = b": still working\n\n"
_HELD_BACK_MAX_BYTES: Final = 1 << 20
_log = structlog.get_logger("nemo_agents.gateway")


class Meter:
    """Counts what a stream costs at least while it passes, and says when that has reached what was held for it.

    A provider that obeys the cap it was sent never gets there: the hold has room for all of its output and the input.
    """

    def __init__(self, price: Price | None, hold_nanos: int, content: Content) -> None:
        self._rate = 0 if price is None else output_nanos_per_mtok(price, content)
        self._tokens_max = -(-hold_nanos * _MTOK // self._rate) if self._rate else None

    def reached(self, tally: Tally) -> bool:
        """Say whether the stream has used up its hold."""
        return self._tokens_max is not None and tally.tokens_seen >= self._tokens_max

    def counted_nanos(self, tally: Tally) -> int:
        """Return what was counted."""
        return -(-tally.tokens_seen * self._rate // _MTOK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one stream is read. `translation` retells it, where it comes in another wire than the client's.

    `gate` lets through what calls no other tools than the role's, where it has a list of them.
    `first_s` is how long the first piece of the answer may take, `between_s` each one after it.
    """

    tally: Tally
    meter: Meter
    translation: StreamTranslation | None
    gate: ToolGate | None
    first_s: float
    between_s: float


class _HoldUsedUp(Exception):  # noqa: N818 - an event that ends the stream
    """The stream has cost what was held for it, and goes on."""


async def relay_stream(
    out: Outlet, response: ProviderResponse, reading: Reading, *, hold_back: bool
) -> Answered | Failure:
    """Pass a stream on to the client, and return what it said; a Failure when it broke before it showed anything.

    That is only so with `hold_back`: another attempt may follow. When the client leaves, the provider is read on for
    as long as its policy says, because only the end of a stream tells what it cost. A slow client holds the provider
    back: nothing is buffered beyond a chunk. One that reads nothing for `client_timeout_s` counts as gone. A provider
    that goes on after it has used up the hold is cut off. One that stops without having said that this is the end has
    broken off, and what it told until then is not its usage.

    A stream that calls a tool which the role may not use is read to its end as well, but the client gets nothing from
    there on, and is not told here: `forbidden` of the outcome says so.
    """
    tally, gate, timed_out = reading.tally, reading.gate, False
    failure: Refusal | None = None
    out.client.watch()
    try:
        if hold_back or gate is not None:
            out.begin()
        else:
            await out.start()
        await _pump(response, reading, out, hold_back=hold_back)
        if tally.error is None and not tally.ended:
            failure = _broken("it stopped without an end")
    except _HoldUsedUp:
        called = None if gate is None else gate.forbidden
        if called is None:
            await out.end(_RAN_ON)
        outcome = _outcome(tally, _RAN_ON, out.ttft_us, gone=out.client.gone)
        outcome = replace(outcome, counted_nanos=reading.meter.counted_nanos(tally))
        return outcome if called is None else _forbidden(out, outcome, called)
    except (UpstreamError, SseTooLarge) as error:
        failure = None if tally.said_done else _broken(str(error))
        timed_out = isinstance(error, UpstreamError) and error.timed_out
    except TimeoutError:
        failure = None if tally.said_done else _broken("the client left, and the provider did not finish in time")
    gone = out.client.gone
    if gate is not None and failure is None:
        failure = _after_gate(gate, tally)
    if gate is not None and gate.forbidden is not None:
        return _forbidden(out, _outcome(tally, failure, out.ttft_us, gone=gone), gate.forbidden)
    broke = failure.message if failure is not None else tally.error
    if hold_back and broke is not None and not tally.visible and not out.shown and not gone:
        out.forget()
        return Failure(status=None, message=broke, sent=True, timed_out=timed_out)
    if reading.translation is not None and broke is None:
        await out.write(reading.translation.end())
    await out.end(failure)  # an error that the provider told has gone out where it came
    return _outcome(tally, failure, out.ttft_us, gone=gone)


class Outlet:
    """Where the events of one call go, for as long as the client is there; it outlives attempts that showed nothing.

    A stream that is silent for `heartbeat_s` seconds sends a comment, so that nothing in between takes the connection
    for dead; 0 sends none.
    """

    def __init__(self, x: Exchange, client: Departure, heartbeat_s: float) -> None:
        self._x = x
        self.client = client
        self.ttft_us: int | None = None
        self.kept: bytearray | None = None  # what was sent, where it is to be kept and not too much for that
        self.shown = False  # whether the client has got any event, which only one provider's stream can go on from
        self._held = bytearray()
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self._sending = 0

    def mark_first(self) -> None:
        """Note that the first piece of the answer is there."""
        if self.ttft_us is None:
            self.ttft_us = self._x.elapsed_us()

    async def start(self) -> None:
        """Send the head, unless it is out."""
        self.begin()
        if not self._x.started:
            self._x.started = self._x.streaming = True
            await self._deliver(start_stream(self._x.send, self._x.common_headers()))

    def begin(self) -> None:
        """Begin to watch for silence."""
        if self._timer is None and self._heartbeat_s:
            self._sent_at = self._loop.time()
            self._timer = self._loop.call_later(self._heartbeat_s, self._look)

    async def write(self, data: bytes, *, hold: bool = False) -> None:
        """Send events on, with what was held back before them; with `hold`, hold them back as well."""
        if hold and not self.shown and len(self._held) + len(data) <= _HELD_BACK_MAX_BYTES:
            self._held += data
            self.begin()
            return
        if self._held:
            data = bytes(self._held) + data
            self._held.clear()
        if not data:
            return
        self.shown = True
        if not self._x.started:
            await self.start()
        await self._put(data, last=False)

    def forget(self) -> None:
        """Forget what was held back."""
        self._held.clear()

    async def end(self, failure: Refusal | None = None) -> None:
        """Send what was held back, tell of a failure, and end the stream."""
        await self.start()
        data = bytes(self._held)
        self._held.clear()
        if failure is not None:
            data += self._x.wire.stream_error(failure, self._x.request_id)
        self.close()
        await self._put(data, last=True)

    def close(self) -> None:
        """Watch for silence no longer."""
        if self._timer is not None:
            self._timer.cancel()
        self._heartbeat_s = 0

    async def _put(self, data: bytes, *, last: bool) -> None:
        self._sent_at = self._loop.time()
        if self.kept is not None:
            self.kept += data
            if len(self.kept) > ANSWER_BYTES_MAX:
                self.kept = None
        if not self.client.gone:
            await self._deliver(self._x.send({"type": "http.response.body", "body": data, "more_body": not last}))

    async def _deliver(self, sending: Awaitable[None]) -> None:
        self._sending += 1
        try:
            if not await self._x.deliver(sending):
                self.client.leave()
        finally:
            self._sending -= 1

    def _look(self) -> None:
        """Send a heartbeat if the stream has been silent for so long; called by a timer."""
        due = self._sent_at + self._heartbeat_s - self._loop.time()
        if due <= 0:
            if not self._sending and not self.client.gone:
                self._beating = self._loop.create_task(self._beat())
            due = self._heartbeat_s
        self._timer = self._loop.call_later(due, self._look)

    async def _beat(self) -> None:
        if not self._heartbeat_s:
            return  # closed since: whatever is answered now is no stream's
        try:
            await self.start()
            if self._heartbeat_s and not self.client.gone:
                self._sent_at = self._loop.time()
                await self._deliver(self._x.send({"type": "http.response.body", "body": _HEARTBEAT, "more_body": True}))
        except Exception as error:  # noqa: BLE001 - nobody awaits a heartbeat; the stream itself meets the same
            _log.warning("a heartbeat could not be sent", request_id=self._x.request_id, error=type(error).__name__)


class _Silence:
    """Ends the wait for a provider that says nothing: one timer, which looks now and then.

    Time in which the client holds the provider back does not count, and comments are nothing said.
    """

    def __init__(self, first_s: float, between_s: float) -> None:
        self._limit_s = first_s
        self._between_s = between_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = self._loop.time()
        self._timer = self._loop.call_later(first_s, self._look)
        self.deadline = asyncio.timeout(None)

    def said(self) -> None:
        """Note that something was said, and that its reader is busy until `waiting`."""
        self._limit_s = self._between_s
        self._since = None

    def waiting(self) -> None:
        """Note that the next piece is waited for."""
        if self._since is None:
            self._since = self._loop.time()

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()

    @property
    def limit_s(self) -> float:
        """How long may pass now."""
        return self._limit_s

    def _look(self) -> None:
        now = self._loop.time()
        left = self._limit_s if self._since is None else self._since + self._limit_s - now
        if left <= 0:
            self.deadline.reschedule(now)
        else:
            self._timer = self._loop.call_later(left, self._look)


async def _pump(response: ProviderResponse, reading: Reading, out: Outlet, *, hold_back: bool) -> None:
    splitter, tally = SseSplitter(), reading.tally
    silence = _Silence(reading.first_s, reading.between_s)
    try:
        with out.client:
            async with silence.deadline:
                async for chunk in response.chunks:
                    data, said = _visible(splitter.feed(chunk), reading)
                    if tally.visible:
                        out.mark_first()
                        if said:
                            silence.said()
                    await out.write(data, hold=_holds(reading, hold_back=hold_back))
                    if reading.meter.reached(tally) and not tally.finished:
                        raise _HoldUsedUp
                    silence.waiting()
    except TimeoutError:
        if not silence.deadline.expired() or out.client.gone:
            raise
        raise UpstreamError(f"it said nothing for {silence.limit_s:g} s", sent=True, timed_out=True) from None
    finally:
        silence.stop()
    data, _ = _visible(splitter.end(), reading)
    await out.write(data, hold=_holds(reading, hold_back=hold_back))


def _holds(reading: Reading, *, hold_back: bool) -> bool:
    """Say whether the client is to see nothing yet: until then, it can be given another answer than this stream."""
    if reading.gate is None:
        return hold_back and not reading.tally.visible
    return reading.gate.closed or not reading.tally.visible


def _visible(events: Iterable[SseEvent], reading: Reading) -> tuple[bytes, bool]:
    """Return what the client gets to see of these events, and whether they say anything at all."""
    tally, translation, gate = reading.tally, reading.translation, reading.gate
    out, said = bytearray(), False
    for event in events:
        chunk: object = None
        if event.data is not None:
            said = True
            if event.data.startswith(b"[DONE]"):
                tally.done()
            else:
                try:
                    chunk = msgspec.json.decode(event.data)
                except NOT_JSON:
                    chunk = None  # not ours to judge: it is passed on, and says nothing about usage
        shown = tally.see(chunk)
        if gate is not None:
            for raw, passed in _let(gate, event, chunk, shown=shown):
                out += raw if translation is None else translation.feed(passed)
        elif translation is not None:
            out += translation.feed(chunk)
        elif shown:
            out += event.raw
    return bytes(out), said


def _let(gate: ToolGate, event: SseEvent, chunk: object, *, shown: bool) -> list[tuple[bytes, object]]:
    """Return what the gate lets out now. What cannot be read goes to nobody: a client might read a call in it."""
    if chunk is None and event.data and not event.data.startswith(b"[DONE]"):
        return []
    return gate.let(event.raw if shown else b"", chunk, size=len(event.raw))


def _after_gate(gate: ToolGate, tally: Tally) -> Refusal | None:
    """Close the gate at the end of a stream; what the provider said went wrong may be behind it."""
    if tally.error is None:
        gate.end()
    elif gate.closed and gate.forbidden is None:
        return _failed(f"The provider's stream failed: {tally.error}.")
    return None


def _forbidden(out: Outlet, outcome: Answered, called: str) -> Answered:
    """Forget what waits to be seen; what the stream says of itself stays on the attempt's record."""
    out.forget()
    return replace(outcome, forbidden=called)


def _outcome(tally: Tally, failure: Refusal | None, ttft_us: int | None, *, gone: bool) -> Answered:
    usage = tally.usage if failure is None else None
    base = Answered(
        usage=usage, told=tally.told, answer=tally.answer, finish_reason=tally.finish_reason, ttft_us=ttft_us
    )
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
    return _failed(f"The provider's stream broke off: {why}.")


def _failed(message: str) -> Refusal:
    return Refusal(status=502, code=Code.UPSTREAM_ERROR, message=message, scope="provider")
