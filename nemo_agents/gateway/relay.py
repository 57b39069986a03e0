"""From an admitted request to an answer: attempts with their holds, plain and streamed relay, settlement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec.structs import replace

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.gateway.attempt import (
    Attempt,
    after,
    failed_end,
    prepare,
    settled,
    tried,
    upstream_body,
    usage_facts,
)
from nemo_agents.gateway.cache.replay import keep_answer
from nemo_agents.gateway.departure import Departure, Receive
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.gateway.metrics.counters import AttemptResult, result_of
from nemo_agents.gateway.outcomes import NOT_JSON, Answered, Failure, final_refusal, read_failure
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.providers import ProviderConfig
from nemo_agents.gateway.quote import Ask, affordable, ask_of, cannot_hold, quote
from nemo_agents.gateway.route import Go, Route
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.state import CutOff, InFlight, Settled
from nemo_agents.gateway.stores.base import AttemptEnd, CallEnd, StoreUnavailable
from nemo_agents.gateway.streaming import Meter, Outlet, Reading, relay_stream
from nemo_agents.gateway.upstream import read_all
from nemo_agents.gateway.ways import Ways
from nemo_agents.policy.admission import budget_refusal, least_left, run_refusal, shadow_budgets
from nemo_agents.policy.deadline import deadline_us
from nemo_agents.policy.ledger import Held, HoldRefused, RunRefused, Settlement
from nemo_agents.policy.refusal import Refusal, Tried
from nemo_agents.policy.routing import Target
from nemo_agents.policy.toolcheck import call_refusal, called_beyond, tool_gate
from nemo_agents.policy.usage import Usage
from nemo_agents.policy.wires.whole_as_stream import as_stream

__all__ = ["relay"]

_LAST_WORD_S = 1.0
_CLAMPS_MAX = 3  # tries to hold with a lower cap
_RESTART_MS = 2_000
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Some providers create a completion and say 201; the client is told 200. Any other status below 400 brings no
# answer that could be relayed: a failure, charged at the hold for what it may have set going.
_ANSWERS = frozenset({200, 201})
_PASSED_ON = (b"anthropic-beta", b"anthropic-version")  # what steers an API and holds no credential


async def relay(x: Exchange, receive: Receive, check_still_good: Callable[[], None]) -> None:
    """Serve an admitted request: hold, send, fall back where it helps, settle, answer. Raises Denied.

    `check_still_good` raises Denied when the key is no longer good: what is changed after it cuts the call.
    """
    grant, gateway = x.grant, x.gateway
    assert grant is not None
    found = gateway.router.candidates(x.body["model"], grant.fleet)
    if isinstance(found, Refusal):
        raise Denied(found)
    ask = ask_of(x)
    ways = Ways(x)
    targets = affordable(x, ways.passable(found.targets), ask)
    entry = await gateway.limiter.enter(gateway.clock.now_us(), x.rates, ask.tokens)
    x.entered(entry)
    if entry.refusal is not None:
        raise Denied(entry.refusal)
    journey: _Journey | None = None
    try:
        task = asyncio.current_task()
        assert task is not None
        flight = InFlight(grant_id=grant.grant_id, fleet=grant.fleet, run_id=x.run_id, task=task)
        route = gateway.router.route(
            targets,
            found.options,
            tokens_in=ask.tokens_in,
            cost_nanos=lambda target: quote(x, grant, target, ask).most_nanos(ask),
            deadline_us=deadline_us(x.headers, x.started_us),
        )
        client = Departure(receive, gateway.settings.drain_timeout_s, task=task, lookout=gateway.lookout)
        journey = _Journey(x, client, flight, ask=ask, ways=ways, route=route)
        gateway.in_flight.add(flight)
        try:
            check_still_good()
            await journey.travel()
        finally:
            journey.close()
            client.close()
            gateway.in_flight.discard(flight)
    finally:
        gateway.limiter.leave(entry.lease, journey.tokens_used if journey is not None else 0)


class _Journey:
    """The attempts of one request."""

    def __init__(self, x: Exchange, client: Departure, flight: InFlight, *, ask: Ask, ways: Ways, route: Route) -> None:
        self._x = x
        self._client = client
        self._flight = flight
        self._ask = ask
        self._ways = ways
        self._route = route
        self._stream = x.wire.generates and x.body.get("stream") is True
        self._out = Outlet(x, client, x.gateway.settings.heartbeat_s)
        if self._stream and x.cache_key is not None:
            self._out.kept = bytearray()
        self._open: Attempt | None = None
        self._failed: Failure | None = None  # how the open attempt failed, once it has
        self._asked: Target | None = None  # where the attempt is of which the route awaits how it went
        self._tried: list[Tried] = []
        self._cost_nanos = 0  # of attempts that failed and were followed by another
        self._charged: Attempt | None = None  # the last of those that cost anything
        self._tokens = 0  # what attempts are known to have used
        self._guesses = 0  # attempts that may have used what nobody knows

    @property
    def tokens_used(self) -> int | None:
        """What counts against the rates: what is known, and the estimate for each attempt of which nobody knows.

        None is the estimate itself. It stays counted whatever came of the attempts after it.
        """
        if self._guesses == 1 and not self._tokens:
            return None
        return self._tokens + self._guesses * self._ask.tokens

    def close(self) -> None:
        """Let go of what is left, however the journey ended."""
        self._out.close()
        if self._asked is not None:
            self._route.left(self._asked)

    async def travel(self) -> None:
        try:
            await self._attempts()
        except asyncio.CancelledError:
            if self._flight.cut is None:
                self._settle_unknown("abandoned", 499, None, "the gateway was shut down, or the client left")
                raise
            self._flight.task.uncancel()
            await self._cut(self._flight.cut)
        except StoreUnavailable as error:
            self._settle_unknown("failed", 503, Code.STORE_UNAVAILABLE, str(error))
            raise
        except BaseException as error:
            if isinstance(error, TimeoutError) and self._client.gone:
                self._settle_unknown("abandoned", 499, None, "the client left, and the provider did not finish in time")
                return
            self._settle_unknown("failed", 500, Code.INTERNAL_ERROR, type(error).__name__)
            raise

    async def _attempts(self) -> None:
        go: Go | None = self._route.start()
        failure: Failure | None = None
        while go is not None:
            if go.wait_ms:
                await self._client.pause(go.wait_ms / 1000)
            n = len(self._tried) + 1
            attempt = prepare(self._x, self._ask, go, self._ways.known(go.target), n)
            attempt = await self._hold(attempt, failure)
            failure = self._unholdable(attempt) or await self._ask_provider(attempt)
            if failure is None:
                return
            self._failed, attempt.failed_us = failure, self._x.started_us + self._x.elapsed_us()
            self._tried.append(tried(self._x, attempt, failure))
            self._measured(attempt, result_of(failure.status, timed_out=failure.timed_out, sent=failure.sent))
            if self._client.gone:
                raise TimeoutError
            self._asked = None
            go = self._route.failed(go.target, None if failure.refusal is not None else failure.fault)
        assert failure is not None
        await self._give_up(failure)

    # --- before the send ----------------------------------------------------------------------------------------
    async def _hold(self, attempt: Attempt, failed: Failure | None) -> Attempt:
        """Hold for an attempt; where the budgets leave less than that and the caller set no cap, with a lower one."""
        x = self._x
        outcome = await self._try_hold(attempt, failed)
        for _ in range(_CLAMPS_MAX):  # others hold meanwhile, so that what was left may be gone
            if not isinstance(outcome, HoldRefused):
                break
            smaller = attempt.quote.clamped(self._ask, outcome)
            if smaller is None:
                break
            start = replace(attempt.start, hold_nanos=smaller.hold_nanos(self._ask))
            attempt = Attempt(start=start, target=attempt.target, way=attempt.way, quote=smaller)
            outcome = await self._try_hold(attempt, failed)
        if failed is not None:
            assert self._open is not None
            settlement = failed_end(x, self._open, failed).settlement
            self._cost_nanos += settlement.amount_nanos
            if settlement.amount_nanos:
                self._charged = self._open
            self._count(settlement)
            self._tell_settled(self._open, settlement)
            self._open = self._failed = None
        if isinstance(outcome, RunRefused):
            raise Denied(run_refusal(outcome))
        if isinstance(outcome, HoldRefused):
            x.balances = outcome.balances
            outcome = attempt.quote.at_least(self._ask, outcome)
            if x.gateway.on_refused is not None:
                x.gateway.on_refused(outcome)
            refusal = budget_refusal(outcome)
            if x.opened:
                x.close(self._refused(refusal), None)
            raise Denied(refusal)
        x.opened, x.balances = True, outcome.balances
        attempt.balances = outcome.balances
        self._note_shadows(attempt)
        x.attempts, x.provider = attempt.start.n, attempt.target.provider
        x.clamped = attempt.quote.cap if attempt.quote.cap < self._ask.cap else None
        self._open = attempt
        return attempt

    async def _try_hold(self, attempt: Attempt, failed: Failure | None) -> Held | HoldRefused | RunRefused:
        x, store = self._x, self._x.gateway.store
        if failed is None:
            return await store.open_call(x.call_start(), attempt.start)
        assert self._open is not None
        return await store.next_attempt(x.request_id, failed_end(x, self._open, failed), attempt.start)

    def _unholdable(self, attempt: Attempt) -> Failure | None:
        """Say why nothing is sent where no budget can hold it, by the budgets that the store has just counted.

        Among those are some that nobody knew of before: a run's cap from an earlier call, or what was declared since.
        The next target may have the price, or the bound, that this one lacks.
        """
        if least_left(self._x.balances) is None:
            return None
        refusal = cannot_hold(attempt.target, attempt.quote.price, attempt.quote.fixed, self._ask)
        if refusal is None:
            return None
        return Failure(status=None, message=refusal.message, sent=False, refusal=refusal)

    def _note_shadows(self, attempt: Attempt) -> None:
        x = self._x
        assert x.grant is not None
        shadows = x.gateway.shadows(x.gateway.keyring.current(x.grant), attempt.start.started_us)
        for scope, refusal in shadow_budgets(shadows, attempt.balances) if shadows else ():
            x.note(refusal, f"budget {scope.name}")

    # --- the send -----------------------------------------------------------------------------------------------
    async def _ask_provider(self, attempt: Attempt) -> Failure | None:
        """Send an attempt and pass on what is answered; a Failure when nothing was, and the client saw nothing."""
        self._asked = attempt.target
        self._route.sent(attempt.target)
        response = await self._send(attempt)
        return response if isinstance(response, Failure) else await self._answer(attempt, response)

    async def _send(self, attempt: Attempt) -> ProviderResponse | Failure:
        x = self._x
        settings, config = x.gateway.settings, x.gateway.provider_configs.get(attempt.target.provider)
        cancels = config is not None and config.on_client_gone == "cancel"
        self._client.drain_s = 0 if cancels else settings.drain_timeout_s
        between_s = _of(config, "idle_timeout_s", settings)
        first_s = max(_of(config, "first_token_timeout_s", settings), between_s)
        wire = attempt.way.wire
        request = ProviderRequest(
            wire=wire.name,
            path=wire.upstream_path,
            body=upstream_body(x, self._ask, attempt, stream=self._stream),
            stream=self._stream,
            connect_timeout_s=settings.connect_timeout_s,
            first_byte_timeout_s=settings.first_byte_timeout_s,
            # Until a stream has said something its own silence counts, which comments do not break.
            idle_timeout_s=first_s if self._stream else between_s,
            headers=self._headers_passed_on() if wire.name == "messages" else (),
        )
        provider = x.gateway.providers[attempt.target.provider]
        try:
            with self._client:
                response = await provider.send(request)
        except UpstreamError as error:
            return Failure(status=None, message=str(error), sent=error.sent, timed_out=error.timed_out)
        if response.status in _ANSWERS:
            return response
        return await read_failure(response)

    def _headers_passed_on(self) -> tuple[tuple[bytes, bytes], ...]:
        headers = self._x.headers
        return tuple(
            (name, headers[name.decode()].encode("latin-1")) for name in _PASSED_ON if name.decode() in headers
        )

    async def _answer(self, attempt: Attempt, response: ProviderResponse) -> Failure | None:
        """Pass an answer on; a Failure means that it turned out to be none before the client saw any of it."""
        is_stream = self._stream and response.headers.get("content-type", "").startswith("text/event-stream")
        if not is_stream:
            return await self._relay_plain(attempt, response)
        try:
            answered = await relay_stream(self._out, response, self._reading(attempt), hold_back=self._route.more)
        finally:
            await response.aclose()
        if isinstance(answered, Failure):
            return answered
        if answered.forbidden is not None:
            await self._forbid(attempt, answered, answered.forbidden)
            return None
        self._streamed(attempt, answered)
        self._keep_stream(self._close(attempt, answered, settled(attempt, self._ask, answered)))
        return None

    def _streamed(self, attempt: Attempt, answered: Answered) -> None:
        """Tell the route how an answer went that could no longer be another's."""
        if answered.state == "ok":
            self._went_well(attempt, answered.ttft_us)
        elif answered.state == "failed":
            self._asked = None
            self._route.broke(attempt.target)  # it is too late for another
            self._measured(attempt, "broken")

    def _keep_stream(self, end: CallEnd | None) -> None:
        """Keep what the client got for who asks the same, where its role has answers kept."""
        if self._out.kept is not None and self._x.cache_key is not None and end is not None:
            keep_answer(self._x, self._x.cache_key, self._out.kept, end, stream=True)

    def _reading(self, attempt: Attempt) -> Reading:
        x, way = self._x, attempt.way
        settings, config = x.gateway.settings, x.gateway.provider_configs.get(attempt.target.provider)
        between_s = _of(config, "idle_timeout_s", settings)
        return Reading(
            tally=way.wire.tally(x.body if way.translation is None else {}, answers=self._ask.answers),
            meter=Meter(attempt.price, attempt.start.hold_nanos, self._ask.content),
            translation=way.translation.stream(x.body) if way.translation is not None else None,
            gate=tool_gate(way.wire.name, x.grant.tools if x.grant is not None else None),
            first_s=max(_of(config, "first_token_timeout_s", settings), between_s),
            between_s=between_s,
        )

    async def _relay_plain(self, attempt: Attempt, response: ProviderResponse) -> Failure | None:
        x, way = self._x, attempt.way
        try:
            with self._client:
                raw = await read_all(response, _MAX_ANSWER_BYTES)  # which lets go of the connection
            ttft_us = x.elapsed_us()
            body = msgspec.json.decode(raw)
        except (UpstreamError, *NOT_JSON) as error:
            timed_out = isinstance(error, UpstreamError) and error.timed_out
            what = str(error) if isinstance(error, UpstreamError) else "the answer is not JSON"
            return Failure(status=None, message=what, sent=True, timed_out=timed_out)
        if not isinstance(body, dict) or way.wire.is_error(body):
            return Failure(status=None, message=f"the provider answered {response.status} with an error", sent=True)
        self._out.close()  # a heartbeat now would be in the middle of the answer
        usage = way.wire.usage(body)
        answer, finish_reason = way.wire.answer_of(body)
        answered = Answered(usage=usage, answer=answer, finish_reason=finish_reason, ttft_us=ttft_us)
        tools = None if x.grant is None else x.grant.tools
        called = None if tools is None else called_beyond(way.wire.name, body, tools)
        if called is not None:
            await self._forbid(attempt, answered, called)
            return None
        settlement = settled(attempt, self._ask, answered)
        cost = settlement.amount_nanos
        x.balances = after(x.balances, attempt.start.hold_nanos, cost)
        self._went_well(attempt, ttft_us)
        end = self._close(attempt, answered, settlement)
        if x.started:  # a heartbeat has told the client that a stream comes
            await self._out.write(as_stream(body, x.body, wire=x.wire.name, translation=way.translation))
            await self._out.end()
            self._keep_stream(end)
            return None
        if way.translation is not None:
            raw = msgspec.json.encode(way.translation.answer(body, x.body))
        if x.cache_key is not None and end is not None:
            keep_answer(x, x.cache_key, raw, end, stream=False)
        await x.answer(
            200, raw, x.common_headers(cost_nanos=self._cost_nanos + cost if usage and attempt.price else None)
        )
        return None

    async def _forbid(self, attempt: Attempt, answered: Answered, called: str) -> None:
        """Refuse an answer that calls a tool which the role may not use. Its provider bills it like any other."""
        x, grant = self._x, self._x.grant
        assert grant is not None
        refusal = call_refusal(called, grant)
        settlement = settled(attempt, self._ask, answered)
        x.balances = after(x.balances, attempt.start.hold_nanos, settlement.amount_nanos)
        self._streamed(attempt, answered)
        self._close(attempt, answered, settlement, refusal)
        self._out.close()  # a heartbeat now would be in the middle of the refusal
        if x.started:
            await self._out.end(refusal)
        elif not self._client.gone:
            known = answered.usage is not None and attempt.price is not None
            await x.refuse(refusal, cost_nanos=self._cost_nanos + settlement.amount_nanos if known else None)

    # --- the end ------------------------------------------------------------------------------------------------
    def _measured(self, attempt: Attempt, result: AttemptResult) -> None:
        x, target = self._x, attempt.target
        took_us = max(0, x.started_us + x.elapsed_us() - attempt.start.started_us)
        x.gateway.metrics.attempt_ended(target.provider, target.model, result, took_us, reason=attempt.start.reason)

    def _went_well(self, attempt: Attempt, ttft_us: int | None) -> None:
        self._asked = None
        self._measured(attempt, "ok")
        began_us = attempt.start.started_us - self._x.started_us
        self._route.answered(attempt.target, latency_us=max(0, (ttft_us or self._x.elapsed_us()) - began_us))

    def _count(self, settlement: Settlement, usage: Usage | None = None) -> None:
        """Count what an attempt used against the rates, as it is settled."""
        if usage is not None:
            self._tokens += usage.input_tokens + usage.output_tokens
        elif settlement.kind != "void":
            self._guesses += 1

    def _close(
        self, attempt: Attempt, answered: Answered, settlement: Settlement, refusal: Refusal | None = None
    ) -> CallEnd | None:
        """Record how a call was answered, or why its answer was refused; None when its end is on record already."""
        x, usage = self._x, answered.usage
        if self._open is not attempt:
            return None
        self._open = None
        self._count(settlement, usage)
        source: Literal["provider", "hold"] = "provider" if usage else "hold"
        ended = AttemptEnd(
            hold_id=attempt.start.hold_id,
            n=attempt.start.n,
            ended_us=attempt.ended_us(x),
            status=answered.status,
            error=answered.error,  # of the attempt: what it brought may have been refused all the same
            settlement=settlement,
            usage_source=source,
            usage=usage_facts(usage),
        )
        keep = x.gateway.settings.content == "full" and answered.answer is not None
        end = x.call_end(
            answered.state if refusal is None else "refused",
            answered.status if refusal is None else refusal.status,
            code=answered.code if refusal is None else str(refusal.code),
            error=answered.error if refusal is None else refusal.message,
            limit=None if refusal is None else refusal.limit,
            scope=None if refusal is None else refusal.scope,
            model_served=attempt.served,
            provider=attempt.target.provider,
            ttft_us=answered.ttft_us,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            cost_nanos=self._cost_nanos + settlement.amount_nanos if attempt.price else None,
            usage_source=source,
            finish_reason=answered.finish_reason,
            answer=msgspec.json.encode(answered.answer) if keep else None,
        )
        x.close(end, ended)
        self._tell_settled(attempt, settlement)
        return end

    def _tell_settled(self, attempt: Attempt, settlement: Settlement) -> None:
        gateway, grant = self._x.gateway, self._x.grant
        if gateway.on_settled is None or grant is None or not settlement.amount_nanos:
            return
        held, posted = attempt.start.hold_nanos, settlement.amount_nanos
        gateway.on_settled(
            Settled(
                request_id=self._x.request_id,
                grant=grant,
                held_nanos=held,
                posted_nanos=posted,
                balances=after(attempt.balances, held, posted),
            )
        )

    async def _give_up(self, last: Failure) -> None:
        """Answer with the last failure, and what was tried before it."""
        x, attempt = self._x, self._open
        assert attempt is not None
        self._open = None
        refusal = last.refusal or final_refusal(last, attempt.target, tuple(self._tried))
        ended = failed_end(x, attempt, last)
        self._count(ended.settlement)
        if last.refusal is not None:
            end = self._refused(refusal)
        else:
            end = replace(
                x.call_refused(refusal, "failed"),
                model_served=attempt.served,
                cost_nanos=self._cost_nanos + ended.settlement.amount_nanos if attempt.price else None,
                usage_source=ended.usage_source,
            )
        x.close(end, ended)
        self._tell_settled(attempt, ended.settlement)
        x.balances = after(x.balances, attempt.start.hold_nanos, ended.settlement.amount_nanos)
        self._out.close()
        if x.started:  # a heartbeat has begun the answer
            await self._out.end(refusal)
        elif last.body is not None and attempt.way.translation is None:
            headers = x.common_headers() | {h.ERROR_CODE: str(refusal.code), h.SHOULD_RETRY: "false"}
            await x.answer(refusal.status, last.body, headers)
        else:
            await x.refuse(refusal)

    def _refused(self, refusal: Refusal) -> CallEnd:
        """Return the record of a refusal, with what the attempts before it cost, and where."""
        end = replace(self._x.call_refused(refusal), cost_nanos=self._cost_nanos)
        if self._charged is None:
            return end
        return replace(end, provider=self._charged.target.provider, model_served=self._charged.served)

    def _settle_unknown(self, state: Literal["failed", "abandoned"], status: int, code: str | None, error: str) -> None:
        """Close what is open when nobody knows how it ended: at the hold, unless it had failed for nothing."""
        attempt, x = self._open, self._x
        if attempt is None:
            return
        self._open = None
        ended = failed_end(x, attempt, self._failed or Failure(status=None, message=error, sent=True))
        self._count(ended.settlement)
        end = x.call_end(
            state,
            status,
            code=code,
            error=error,
            model_served=attempt.served,
            provider=attempt.target.provider,
            cost_nanos=self._cost_nanos + ended.settlement.amount_nanos if attempt.price else None,
            usage_source=ended.usage_source,
        )
        x.close(end, ended)
        if self._failed is None:
            self._measured(attempt, "cut")
        self._tell_settled(attempt, ended.settlement)

    async def _cut(self, cut: CutOff) -> None:
        x = self._x
        self._out.close()  # a heartbeat now would be in the middle of the refusal
        self._settle_unknown("failed", cut.status, cut.code, cut.message)
        refusal = Refusal(
            status=cut.status,
            code=cut.code,
            message=f"{cut.message} The call was cut.",
            scope=cut.scope,
            retry_after_ms=_RESTART_MS if cut.code == Code.GATEWAY_STOPPING else None,
        )
        if not x.opened:
            raise Denied(refusal)
        if x.streaming and not self._client.gone:
            with contextlib.suppress(TimeoutError):  # a client that does not read gets no last word
                async with asyncio.timeout(_LAST_WORD_S):
                    await x.send({"type": "http.response.body", "body": x.wire.stream_error(refusal, x.request_id)})
        elif not x.started:
            await x.refuse(refusal)


def _of(
    config: ProviderConfig | None, name: Literal["first_token_timeout_s", "idle_timeout_s"], settings: Settings
) -> float:
    """Return a time-out in seconds: the provider's own where it has one."""
    own: float | None = None if config is None else getattr(config, name)
    found: float = getattr(settings, name) if own is None else own
    return found
