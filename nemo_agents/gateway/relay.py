"""From an admitted request to an answer: attempts with their holds, plain and streamed relay, settlement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec.structs import replace

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.gateway.answers import send_json, stream_error
from nemo_agents.gateway.departure import Departure, Receive
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.gateway.outcomes import NOT_JSON, Answered, Failure, final_refusal, read_failure
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.state import CutOff, InFlight
from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, StoreUnavailable
from nemo_agents.gateway.streaming import relay_stream
from nemo_agents.gateway.upstream import read_all
from nemo_agents.policy.admission import budget_refusal, run_refusal
from nemo_agents.policy.ledger import Balance, HoldRefused, RunRefused, Settlement
from nemo_agents.policy.pricing import (
    ParamError,
    Price,
    bytes_read,
    content_boundable,
    cost_nanos,
    input_tokens_bound,
    input_tokens_estimate,
    output_cap,
    output_tokens_max,
    upper_bound_nanos,
)
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import SANDBOX, Target, fallback_on
from nemo_agents.policy.settlement import settle_answer, settle_failure
from nemo_agents.policy.stream import answer_of
from nemo_agents.policy.usage import Usage, usage_from_openai

__all__ = ["relay"]

_LAST_WORD_S = 1.0
_RESTART_MS = 2_000
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Some providers create a completion and say 201; the client is told 200. Any other status below 400 brings no
# answer that could be relayed: a failure, charged at the hold for what it may have set going.
_ANSWERS = frozenset({200, 201})
_OWN_PREFIX = "nemo_"
_OWN_FIELDS = frozenset({"litellm_session_id", "litellm_trace_id", "session_id"})


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One attempt on its way."""

    start: AttemptStart
    target: Target
    price: Price | None

    @property
    def served(self) -> str:
        """The model's name as the log has it: what the sandbox stands in for, not where it would have come from."""
        return self.target.model.rpartition("/")[2] if self.target.provider == SANDBOX else self.target.model


async def relay(x: Exchange, receive: Receive) -> None:
    """Serve an admitted request: hold, send, fall back where it helps, settle, answer. Raises Denied."""
    grant, gateway = x.grant, x.gateway
    assert grant is not None
    found = gateway.targets(x.body["model"], grant.fleet)
    if isinstance(found, Refusal):
        raise Denied(found)
    targets = _affordable(x, found)
    tokens_out = _output_tokens(x)
    size = bytes_read(x.body)
    now_us = gateway.clock.now_us()
    scopes = gateway.rate_scopes(grant, now_us)
    slot = gateway.windows.acquire(now_us, scopes)
    if isinstance(slot, Refusal):
        raise Denied(slot)
    try:
        charge = gateway.windows.admit_tokens(now_us, scopes, input_tokens_estimate(x.body, size) + tokens_out)
        if isinstance(charge, Refusal):
            raise Denied(charge)
        task = asyncio.current_task()
        assert task is not None
        flight = InFlight(grant_id=grant.grant_id, fleet=grant.fleet, run_id=x.run_id, task=task)
        client = Departure(receive, gateway.settings.drain_timeout_s)
        journey = _Journey(x, client, flight, input_tokens_bound(x.body, size), tokens_out)
        gateway.in_flight.add(flight)
        try:
            await journey.travel(targets)
        finally:
            client.close()
            gateway.in_flight.discard(flight)
            if journey.tokens is not None:
                gateway.windows.settle_tokens(charge, journey.tokens)
            elif not journey.sent:
                gateway.windows.cancel_tokens(charge)
    finally:
        gateway.windows.release(slot)


def _affordable(x: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
    """Return the targets whose cost has an upper bound, wherever a budget has to hold it. Raises Denied without any."""
    grant, gateway = x.grant, x.gateway
    assert grant is not None
    scopes = gateway.budget_scopes(grant, run_id=x.run.run_id, caps=x.run.caps, now_us=x.started_us)
    if all(scope.limit_nanos is None for scope in scopes):
        return targets
    unbounded = _unbounded(x)
    if unbounded is not None:
        raise Denied(unbounded)
    priced = [target for target in targets if gateway.prices.price(target.provider, target.model) is not None]
    if not priced:
        raise Denied(_unpriced(targets[0]))
    return priced


def _unbounded(x: Exchange) -> Refusal | None:
    unbounded = content_boundable(x.body)
    if unbounded is None:
        return None
    message = (
        f"{unbounded} has no upper bound in tokens, so a budget cannot hold it. "
        "Send text, or use a role without a budget."
    )
    return Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param=unbounded)


def _unpriced(target: Target) -> Refusal:
    # the sandbox charges what it stands for: a price of its own would be asked for by no name
    name = target.model if target.provider == SANDBOX else f"{target.provider}/{target.model}"
    message = (
        f"No price is known for {name}, so a budget cannot hold it. "
        f'Declare one in gateway.toml: [prices."{name}"] with input_per_mtok and output_per_mtok.'
    )
    return Refusal(status=400, code=Code.MODEL_NOT_PRICED, message=message, param="model")


def _output_tokens(x: Exchange) -> int:
    if x.endpoint.kind == "embeddings":
        return 0
    try:
        return output_tokens_max(x.body, x.gateway.settings.default_max_output_tokens)
    except ParamError as error:
        raise Denied(Refusal(status=400, code=Code.INVALID_REQUEST, message=str(error), param=error.param)) from None


class _Journey:
    """The attempts of one request. `tokens` is what it used, None while unknown; `sent` whether anything left."""

    def __init__(self, x: Exchange, client: Departure, flight: InFlight, bound_in: int, tokens_out: int) -> None:
        self._x = x
        self._client = client
        self._flight = flight
        self._tokens_out = tokens_out
        self._bound_in = bound_in
        self._stream = x.endpoint.kind == "chat" and x.body.get("stream") is True
        self._open: _Attempt | None = None
        self._failed: Failure | None = None  # how the open attempt failed, once it has
        self.tokens: int | None = None
        self.sent = False

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
            attempt = self._prepare(target, n)
            await self._hold(attempt, failures[-1] if failures else None)
            response = await self._send(attempt)
            failure = response if isinstance(response, Failure) else await self._answer(attempt, response)
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
        now_us = gateway.clock.now_us()
        price = gateway.prices.price(target.provider, target.model)
        start = AttemptStart(
            hold_id=f"{x.request_id}.{n}",
            n=n,
            model=target.model,
            provider=target.provider,
            reason="first" if n == 1 else "fallback",
            started_us=now_us,
            hold_nanos=upper_bound_nanos(price, self._bound_in, self._tokens_out) if price else 0,
            scopes=gateway.budget_scopes(grant, run_id=x.run.run_id, caps=x.run.caps, now_us=now_us),
            price_version=price.version if price else None,
            expires_us=now_us + int(gateway.settings.hold_ttl_s * 1e6),
        )
        return _Attempt(start=start, target=target, price=price)

    async def _hold(self, attempt: _Attempt, failed: Failure | None) -> None:
        x, store = self._x, self._x.gateway.store
        if attempt.start.n == 1:
            outcome = await store.open_call(x.call_start(), attempt.start)
        else:
            assert self._open is not None
            assert failed is not None
            outcome = await store.next_attempt(x.request_id, self._ended(self._open, failed), attempt.start)
            self._open = self._failed = None
        if isinstance(outcome, RunRefused):
            raise Denied(run_refusal(outcome))
        if isinstance(outcome, HoldRefused):
            x.balances = outcome.balances
            refusal = budget_refusal(outcome)
            if x.opened:
                store.close_call(replace(x.call_refused(refusal), cost_nanos=0), None)  # beside what was settled
            raise Denied(refusal)
        x.opened, x.balances = True, outcome.balances
        self._check_older_cap(attempt)
        x.attempts, x.provider = attempt.start.n, attempt.target.provider
        self._open = attempt

    def _check_older_cap(self, attempt: _Attempt) -> None:
        """Refuse what no budget can hold when the run has a cap that this request left out: only the store knew."""
        x = self._x
        known = any(scope.limit_nanos is not None for scope in attempt.start.scopes)
        if known or all(balance.scope.limit_nanos is None for balance in x.balances):
            return
        refusal = _unbounded(x) or (_unpriced(attempt.target) if attempt.price is None else None)
        if refusal is not None:
            ended = self._ended(attempt, Failure(status=None, message=refusal.message, sent=False))
            x.gateway.store.close_call(replace(x.call_refused(refusal), cost_nanos=0), ended)
            raise Denied(refusal)

    def _upstream_body(self, target: Target) -> bytes:
        """Write the body anew from what was checked: never the client's own bytes, never the gateway's own fields."""
        x = self._x
        body = {n: v for n, v in x.body.items() if n not in _OWN_FIELDS and not n.startswith(_OWN_PREFIX)}
        body["model"] = target.model
        if target.provider == SANDBOX and "nemo_sandbox" in x.body:
            body["nemo_sandbox"] = x.body["nemo_sandbox"]
        if x.endpoint.kind == "embeddings":
            return msgspec.json.encode(body)
        if self._stream:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        else:
            body.pop("stream_options", None)
        # The cap that the hold was computed with goes out in the one field that this provider obeys.
        body.pop("max_tokens", None)
        body.pop("max_completion_tokens", None)
        cap = output_cap(x.body, x.gateway.settings.default_max_output_tokens)
        body[self._max_tokens_field(target.provider)] = cap
        return msgspec.json.encode(body)

    def _max_tokens_field(self, provider: str) -> str:
        config = self._x.gateway.provider_configs.get(provider)
        return config.max_tokens_field if config else "max_tokens"

    # --- the send -----------------------------------------------------------------------------------------------
    async def _send(self, attempt: _Attempt) -> ProviderResponse | Failure:
        settings = self._x.gateway.settings
        request = ProviderRequest(
            path=self._x.endpoint.upstream_path,
            body=self._upstream_body(attempt.target),
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
            self.sent = self.sent or error.sent
            return Failure(status=None, message=str(error), sent=error.sent, timed_out=error.timed_out)
        self.sent = True
        if response.status in _ANSWERS:
            return response
        return await read_failure(response)

    async def _answer(self, attempt: _Attempt, response: ProviderResponse) -> Failure | None:
        """Pass an answer on; a Failure means that it turned out to be none before the client saw any of it."""
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        try:
            if self._stream and is_stream:
                answered = await relay_stream(self._x, self._client, response)
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
        usage = usage_from_openai(body.get("usage"), output=x.endpoint.kind != "embeddings")
        answer, finish_reason = answer_of(body) if x.endpoint.kind == "chat" else (None, None)
        answered = Answered(usage=usage, answer=answer, finish_reason=finish_reason, ttft_us=ttft_us)
        settlement = self._settlement(attempt, answered)
        cost = settlement.amount_nanos
        x.balances = _after(x.balances, attempt.start.hold_nanos, cost)
        self._close(attempt, answered, settlement)
        x.started = True
        await send_json(x.send, 200, raw, x.common_headers(cost_nanos=cost if usage and attempt.price else None))
        return None

    # --- the end ------------------------------------------------------------------------------------------------
    def _settlement(self, attempt: _Attempt, answered: Answered) -> Settlement:
        hold_nanos = attempt.start.hold_nanos
        if attempt.price is None:
            return Settlement(kind="post", amount_nanos=0)
        cost = cost_nanos(attempt.price, answered.usage) if answered.usage else None
        return settle_answer(cost_nanos=cost, hold_nanos=hold_nanos)

    def _close(self, attempt: _Attempt, answered: Answered, settlement: Settlement) -> None:
        x, usage = self._x, answered.usage
        if self._open is not attempt:
            return
        self._open = None
        if usage is not None:
            self.tokens = usage.input_tokens + usage.output_tokens
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

    def _ended(self, attempt: _Attempt, failure: Failure) -> AttemptEnd:
        settlement = settle_failure(sent=failure.sent, status=failure.status, hold_nanos=attempt.start.hold_nanos)
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
        refusal = final_refusal(last, attempt.target, len(failures))
        ended = self._ended(attempt, last)
        end = replace(
            x.call_refused(refusal, "failed"),
            model_served=attempt.served,
            cost_nanos=ended.settlement.amount_nanos if attempt.price else None,
            usage_source=ended.usage_source,
        )
        x.gateway.store.close_call(end, ended)
        if ended.settlement.kind == "void":
            self.tokens = 0  # nothing was used: the minute's tokens are given back
        x.balances = _after(x.balances, attempt.start.hold_nanos, ended.settlement.amount_nanos)
        if last.body is not None:
            x.started = True
            headers = x.common_headers() | {h.ERROR_CODE: str(refusal.code), h.SHOULD_RETRY: "false"}
            await send_json(x.send, refusal.status, last.body, headers)
            return
        await x.refuse(refusal)

    def _settle_unknown(self, state: Literal["failed", "abandoned"], status: int, code: str | None, error: str) -> None:
        """Close what is open when nobody knows how it ended: at the hold, unless it had failed for nothing."""
        attempt, x = self._open, self._x
        if attempt is None:
            return
        self._open = None
        ended = self._ended(attempt, self._failed or Failure(status=None, message=error, sent=True))
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
        if x.streaming:
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
    if usage is None:
        return {}
    return {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }
