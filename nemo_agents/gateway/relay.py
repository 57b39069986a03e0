"""From an admitted request to an answer: attempts with their holds, plain and streamed relay, settlement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec.structs import replace

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.gateway.answers import stream_error
from nemo_agents.gateway.departure import Departure, Receive
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.gateway.outcomes import NOT_JSON, Answered, Failure, final_refusal, read_failure
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.quote import Ask, Quote, affordable, ask_of, cannot_hold, quote
from nemo_agents.gateway.state import CutOff, InFlight, Settled
from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, StoreUnavailable
from nemo_agents.gateway.streaming import Meter, relay_stream
from nemo_agents.gateway.upstream import read_all
from nemo_agents.policy.admission import budget_refusal, run_refusal, shadow_budgets
from nemo_agents.policy.ledger import Balance, Held, HoldRefused, RunRefused, Settlement
from nemo_agents.policy.pricing import Price, cost_nanos, pinned_service_tier
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import SANDBOX, Target, fallback_on
from nemo_agents.policy.settlement import settle_answer, settle_broken, settle_cut, settle_failure
from nemo_agents.policy.stream import answer_of
from nemo_agents.policy.usage import Usage, usage_from_openai

__all__ = ["relay"]

_LAST_WORD_S = 1.0
_CLAMPS_MAX = 3  # tries to hold with a lower cap
_RESTART_MS = 2_000
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Some providers create a completion and say 201; the client is told 200. Any other status below 400 brings no
# answer that could be relayed: a failure, charged at the hold for what it may have set going.
_ANSWERS = frozenset({200, 201})
_OWN_PREFIX = "nemo_"
_RARE_COUNTS = ("cache_write_1h_tokens", "audio_input_tokens", "image_input_tokens", "audio_output_tokens")
_OWN_FIELDS = frozenset({"litellm_session_id", "litellm_trace_id", "session_id"})


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One attempt on its way. `balances` are its scopes' with its hold in them."""

    start: AttemptStart
    target: Target
    quote: Quote
    balances: tuple[Balance, ...] = ()

    @property
    def price(self) -> Price | None:
        """What its tokens cost; None when nobody knows."""
        return self.quote.price

    @property
    def served(self) -> str:
        """The model's name as the log has it: what the sandbox stands in for, not where it would have come from."""
        return self.target.model.rpartition("/")[2] if self.target.provider == SANDBOX else self.target.model


async def relay(x: Exchange, receive: Receive, check_still_good: Callable[[], None]) -> None:
    """Serve an admitted request: hold, send, fall back where it helps, settle, answer. Raises Denied.

    `check_still_good` raises Denied when the key is no longer good: what is changed after it cuts the call.
    """
    grant, gateway = x.grant, x.gateway
    assert grant is not None
    found = gateway.targets(x.body["model"], grant.fleet)
    if isinstance(found, Refusal):
        raise Denied(found)
    ask = ask_of(x)
    targets = affordable(x, found, ask)
    entry = await gateway.limiter.enter(gateway.clock.now_us(), x.rates, ask.tokens)
    x.entered(entry)
    if entry.refusal is not None:
        raise Denied(entry.refusal)
    journey: _Journey | None = None
    try:
        task = asyncio.current_task()
        assert task is not None
        flight = InFlight(grant_id=grant.grant_id, fleet=grant.fleet, run_id=x.run_id, task=task)
        client = Departure(receive, gateway.settings.drain_timeout_s)
        journey = _Journey(x, client, flight, ask)
        gateway.in_flight.add(flight)
        try:
            check_still_good()
            await journey.travel(targets)
        finally:
            client.close()
            gateway.in_flight.discard(flight)
    finally:
        gateway.limiter.leave(entry.lease, journey.tokens_used if journey is not None else 0)


class _Journey:
    """The attempts of one request."""

    def __init__(self, x: Exchange, client: Departure, flight: InFlight, ask: Ask) -> None:
        self._x = x
        self._client = client
        self._flight = flight
        self._ask = ask
        self._stream = x.endpoint.kind == "chat" and x.body.get("stream") is True
        self._open: _Attempt | None = None
        self._failed: Failure | None = None  # how the open attempt failed, once it has
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

    async def travel(self, targets: Sequence[Target]) -> None:
        try:
            await self._attempts(targets)
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

    async def _attempts(self, targets: Sequence[Target]) -> None:
        failures: list[Failure] = []
        for n, target in enumerate(targets, start=1):
            attempt = await self._hold(self._prepare(target, n), failures[-1] if failures else None)
            failure = self._unholdable(attempt) or await self._ask_provider(attempt)
            if failure is None:
                return
            failures.append(failure)
            self._failed = failure
            if n == len(targets) or not fallback_on(failure.status):
                break
        await self._give_up(failures)

    # --- before the send ----------------------------------------------------------------------------------------
    def _prepare(self, target: Target, n: int) -> _Attempt:
        x = self._x
        grant, gateway = x.grant, x.gateway
        assert grant is not None
        grant = gateway.keyring.current(grant)  # a budget or price may have been declared since the attempt before
        now_us = gateway.clock.now_us()
        quoted = quote(x, grant, target, self._ask)
        start = AttemptStart(
            hold_id=f"{x.request_id}.{n}",
            n=n,
            model=target.model,
            provider=target.provider,
            reason="first" if n == 1 else "fallback",
            started_us=now_us,
            hold_nanos=quoted.hold_nanos(self._ask),
            scopes=gateway.budget_scopes(grant, run_id=x.run.run_id, caps=x.run.caps, now_us=now_us),
            price_version=quoted.price.version if quoted.price else None,
            expires_us=now_us + int(gateway.settings.hold_ttl_s * 1e6),
        )
        return _Attempt(start=start, target=target, quote=quoted)

    async def _hold(self, attempt: _Attempt, failed: Failure | None) -> _Attempt:
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
            attempt = _Attempt(start=start, target=attempt.target, quote=smaller)
            outcome = await self._try_hold(attempt, failed)
        if failed is not None:
            assert self._open is not None
            settlement = self._ended(self._open, failed).settlement
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
                x.gateway.store.close_call(replace(x.call_refused(refusal), cost_nanos=0), None)  # beside what was
            raise Denied(refusal)
        x.opened, x.balances = True, outcome.balances
        attempt.balances = outcome.balances
        self._note_shadows(attempt)
        x.attempts, x.provider = attempt.start.n, attempt.target.provider
        x.clamped = attempt.quote.cap if attempt.quote.cap < self._ask.cap else None
        self._open = attempt
        return attempt

    async def _try_hold(self, attempt: _Attempt, failed: Failure | None) -> Held | HoldRefused | RunRefused:
        x, store = self._x, self._x.gateway.store
        if failed is None:
            return await store.open_call(x.call_start(), attempt.start)
        assert self._open is not None
        return await store.next_attempt(x.request_id, self._ended(self._open, failed), attempt.start)

    def _unholdable(self, attempt: _Attempt) -> Failure | None:
        """Say why nothing is sent where no budget can hold it, by the budgets that the store has just counted.

        Among those are some that nobody knew of before: a run's cap from an earlier call, or what was declared since.
        The next target may have the price, or the bound, that this one lacks.
        """
        if all(balance.scope.guard_nanos is None for balance in self._x.balances):
            return None
        refusal = cannot_hold(attempt.target, attempt.quote.price, attempt.quote.fixed, self._ask)
        if refusal is None:
            return None
        return Failure(status=None, message=refusal.message, sent=False, refusal=refusal)

    def _note_shadows(self, attempt: _Attempt) -> None:
        x = self._x
        assert x.grant is not None
        shadows = x.gateway.shadows(x.gateway.keyring.current(x.grant), attempt.start.started_us)
        for scope, refusal in shadow_budgets(shadows, attempt.balances) if shadows else ():
            x.note(refusal, f"budget {scope.name}")

    def _upstream_body(self, attempt: _Attempt) -> bytes:
        """Write the body anew from what was checked: never the client's own bytes, never the gateway's own fields."""
        x, target = self._x, attempt.target
        body = {n: v for n, v in x.body.items() if n not in _OWN_FIELDS and not n.startswith(_OWN_PREFIX)}
        body["model"] = target.model
        if target.provider == SANDBOX and "nemo_sandbox" in x.body:
            body["nemo_sandbox"] = x.body["nemo_sandbox"]
        if x.endpoint.kind == "embeddings":
            return msgspec.json.encode(body)
        if attempt.price is not None and target.provider != SANDBOX:
            tier = pinned_service_tier(attempt.price, self._ask.content)
            if tier is not None:
                body["service_tier"] = tier
        if self._stream:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        else:
            body.pop("stream_options", None)
        # The cap that the hold was computed with goes out in the one field that this provider obeys.
        body.pop("max_tokens", None)
        body.pop("max_completion_tokens", None)
        body[self._max_tokens_field(target.provider)] = attempt.quote.cap
        return msgspec.json.encode(body)

    def _max_tokens_field(self, provider: str) -> str:
        config = self._x.gateway.provider_configs.get(provider)
        return config.max_tokens_field if config else "max_tokens"

    # --- the send -----------------------------------------------------------------------------------------------
    async def _ask_provider(self, attempt: _Attempt) -> Failure | None:
        """Send an attempt and pass on what is answered; a Failure when nothing was, and the client saw nothing."""
        response = await self._send(attempt)
        return response if isinstance(response, Failure) else await self._answer(attempt, response)

    async def _send(self, attempt: _Attempt) -> ProviderResponse | Failure:
        settings = self._x.gateway.settings
        request = ProviderRequest(
            path=self._x.endpoint.upstream_path,
            body=self._upstream_body(attempt),
            stream=self._stream,
            connect_timeout_s=settings.connect_timeout_s,
            first_byte_timeout_s=settings.first_byte_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )
        provider = self._x.gateway.providers[attempt.target.provider]
        try:
            async with self._client.patience():
                response = await provider.send(request)
        except UpstreamError as error:
            return Failure(status=None, message=str(error), sent=error.sent, timed_out=error.timed_out)
        if response.status in _ANSWERS:
            return response
        return await read_failure(response)

    async def _answer(self, attempt: _Attempt, response: ProviderResponse) -> Failure | None:
        """Pass an answer on; a Failure means that it turned out to be none before the client saw any of it."""
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        try:
            if self._stream and is_stream:
                meter = Meter(attempt.price, attempt.start.hold_nanos, self._ask.content)
                answered = await relay_stream(self._x, self._client, response, meter, answers=self._ask.answers)
            else:
                return await self._relay_plain(attempt, response)
        finally:
            await response.aclose()
        self._close(attempt, answered, self._settlement(attempt, answered))
        return None

    async def _relay_plain(self, attempt: _Attempt, response: ProviderResponse) -> Failure | None:
        x = self._x
        try:
            async with self._client.patience():
                raw = await read_all(response, _MAX_ANSWER_BYTES)
            ttft_us = x.elapsed_us()
            body = msgspec.json.decode(raw)
        except (UpstreamError, *NOT_JSON) as error:
            timed_out = isinstance(error, UpstreamError) and error.timed_out
            what = str(error) if isinstance(error, UpstreamError) else "the answer is not JSON"
            return Failure(status=None, message=what, sent=True, timed_out=timed_out)
        if not isinstance(body, dict) or body.get("error") is not None:
            return Failure(status=None, message=f"the provider answered {response.status} with an error", sent=True)
        generates = x.endpoint.kind != "embeddings"
        usage = usage_from_openai(body.get("usage"), output=generates, service_tier=body.get("service_tier"))
        answer, finish_reason = answer_of(body) if x.endpoint.kind == "chat" else (None, None)
        answered = Answered(usage=usage, answer=answer, finish_reason=finish_reason, ttft_us=ttft_us)
        settlement = self._settlement(attempt, answered)
        cost = settlement.amount_nanos
        x.balances = _after(x.balances, attempt.start.hold_nanos, cost)
        self._close(attempt, answered, settlement)
        await x.answer(200, raw, x.common_headers(cost_nanos=cost if usage and attempt.price else None))
        return None

    # --- the end ------------------------------------------------------------------------------------------------
    def _settlement(self, attempt: _Attempt, answered: Answered) -> Settlement:
        hold_nanos = attempt.start.hold_nanos
        if attempt.price is None:
            return Settlement(kind="post", amount_nanos=0)
        cost, told = (
            cost_nanos(attempt.price, usage, self._ask.content) if usage else None
            for usage in (answered.usage, answered.told)
        )
        if answered.counted_nanos is not None:
            return settle_cut(counted_nanos=answered.counted_nanos, told_nanos=told, hold_nanos=hold_nanos)
        if cost is None:
            return settle_broken(told_nanos=told, hold_nanos=hold_nanos)
        return settle_answer(cost_nanos=cost, hold_nanos=hold_nanos)

    def _count(self, settlement: Settlement, usage: Usage | None = None) -> None:
        """Count what an attempt used against the rates, as it is settled."""
        if usage is not None:
            self._tokens += usage.input_tokens + usage.output_tokens
        elif settlement.kind != "void":
            self._guesses += 1

    def _close(self, attempt: _Attempt, answered: Answered, settlement: Settlement) -> None:
        x, usage = self._x, answered.usage
        if self._open is not attempt:
            return
        self._open = None
        self._count(settlement, usage)
        source: Literal["provider", "hold"] = "provider" if usage else "hold"
        ended = AttemptEnd(
            hold_id=attempt.start.hold_id,
            n=attempt.start.n,
            ended_us=x.started_us + x.elapsed_us(),
            status=answered.status,
            error=answered.error,
            settlement=settlement,
            usage_source=source,
            usage=_usage_facts(usage),
        )
        keep = x.gateway.settings.content == "full" and answered.answer is not None
        end = x.call_end(
            answered.state,
            answered.status,
            code=answered.code,
            error=answered.error,
            model_served=attempt.served,
            provider=attempt.target.provider,
            ttft_us=answered.ttft_us,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            cost_nanos=settlement.amount_nanos if attempt.price else None,
            usage_source=source,
            finish_reason=answered.finish_reason,
            answer=msgspec.json.encode(answered.answer) if keep else None,
        )
        x.gateway.store.close_call(end, ended)
        self._tell_settled(attempt, settlement)

    def _tell_settled(self, attempt: _Attempt, settlement: Settlement) -> None:
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
                balances=_after(attempt.balances, held, posted),
            )
        )

    def _ended(self, attempt: _Attempt, failure: Failure) -> AttemptEnd:
        settlement = settle_failure(
            sent=failure.sent,
            status=failure.status,
            own_error=failure.own_error,
            hold_nanos=attempt.start.hold_nanos,
        )
        return AttemptEnd(
            hold_id=attempt.start.hold_id,
            n=attempt.start.n,
            ended_us=self._x.started_us + self._x.elapsed_us(),
            status=failure.status,
            error=failure.message,
            settlement=settlement,
            usage_source="none" if settlement.kind == "void" else "hold",
        )

    async def _give_up(self, failures: list[Failure]) -> None:
        """Answer with the last failure; the attempts before it are in the log."""
        x, last, attempt = self._x, failures[-1], self._open
        assert attempt is not None
        self._open = None
        refusal = last.refusal or final_refusal(last, attempt.target, len(failures))
        ended = self._ended(attempt, last)
        self._count(ended.settlement)
        if last.refusal is not None:
            end = replace(x.call_refused(refusal), cost_nanos=0)  # beside what the attempts before it cost
        else:
            end = replace(
                x.call_refused(refusal, "failed"),
                model_served=attempt.served,
                cost_nanos=ended.settlement.amount_nanos if attempt.price else None,
                usage_source=ended.usage_source,
            )
        x.gateway.store.close_call(end, ended)
        self._tell_settled(attempt, ended.settlement)
        x.balances = _after(x.balances, attempt.start.hold_nanos, ended.settlement.amount_nanos)
        if last.body is not None:
            headers = x.common_headers() | {h.ERROR_CODE: str(refusal.code), h.SHOULD_RETRY: "false"}
            await x.answer(refusal.status, last.body, headers)
            return
        await x.refuse(refusal)

    def _settle_unknown(self, state: Literal["failed", "abandoned"], status: int, code: str | None, error: str) -> None:
        """Close what is open when nobody knows how it ended: at the hold, unless it had failed for nothing."""
        attempt, x = self._open, self._x
        if attempt is None:
            return
        self._open = None
        ended = self._ended(attempt, self._failed or Failure(status=None, message=error, sent=True))
        self._count(ended.settlement)
        end = x.call_end(
            state,
            status,
            code=code,
            error=error,
            model_served=attempt.served,
            provider=attempt.target.provider,
            cost_nanos=ended.settlement.amount_nanos if attempt.price else None,
            usage_source=ended.usage_source,
        )
        x.gateway.store.close_call(end, ended)
        self._tell_settled(attempt, ended.settlement)

    async def _cut(self, cut: CutOff) -> None:
        x = self._x
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
                    await x.send({"type": "http.response.body", "body": stream_error(refusal, x.request_id)})
        elif not x.started:
            await x.refuse(refusal)


def _after(balances: Sequence[Balance], hold_nanos: int, cost: int) -> tuple[Balance, ...]:
    """Return the balances as they stand once the hold is posted, for the headers of the answer."""
    return tuple(
        [
            Balance(scope=b.scope, posted_nanos=b.posted_nanos + cost, held_nanos=max(0, b.held_nanos - hold_nanos))
            for b in balances
        ]
    )


def _usage_facts(usage: Usage | None) -> dict[str, int]:
    """Return the counts that the ledger keeps: the five of every answer, and the rarer ones where there are any."""
    if usage is None:
        return {}
    facts = {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }
    for name in _RARE_COUNTS:
        if count := getattr(usage, name):
            facts[name] = count
    return facts
