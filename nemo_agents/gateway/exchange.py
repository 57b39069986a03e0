"""One request on its way through the data plane: what is known so far, and how it is answered and recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from nemo_agents.admin import headers as h
from nemo_agents.admin.wire import Shadowed
from nemo_agents.gateway.answers import Headers, Line, Send, json_head, refusal_headers, send_json
from nemo_agents.gateway.limiter.base import Entry, Reading
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import AttemptEnd, CallEnd, CallStart
from nemo_agents.money import dollars_text
from nemo_agents.policy.admission import least_left, past_alert
from nemo_agents.policy.grouping import RunRef, trace_of
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance
from nemo_agents.policy.logged import parts_without_credentials, without_credentials
from nemo_agents.policy.rates import RateScope, newer_readings, rate_headers
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.wires.base import Wire

__all__ = ["Denied", "Exchange"]


class Denied(Exception):  # noqa: N818 - control flow of one request, never leaves the data plane
    """Admission said no; carries the refusal to the one place that answers and records it."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request. Fields fill in as admission proceeds.

    `started` says that response headers are out, `streaming` that events follow them.
    """

    gateway: Gateway
    send: Send
    request_id: str
    started_us: int
    wire: Wire
    headers: dict[str, str]
    line: Line | None = None  # where the HTTP server is the gateway's own
    t0_ns: int = field(default_factory=time.perf_counter_ns)
    grant: Grant | None = None
    key_id: str | None = None
    run: RunRef = RunRef(run_id=None)
    body: dict[str, Any] = field(default_factory=dict)
    model_asked: str | None = None
    guardrails_applied: tuple[str, ...] = ()  # names, for the answer's header
    guardrail_notes: tuple[str, ...] = ()  # what each of them did, for the log
    guarded: bool = False  # every guardrail has seen the body: what it redacts is out of it
    rates: tuple[RateScope, ...] = ()  # what the request counts against, once it has been counted
    readings: Sequence[Reading] = ()  # where its rates stand
    shadow: dict[tuple[str, str | None], Shadowed] = field(default_factory=dict)  # what would have refused it
    balances: Sequence[Balance] = ()
    clamped: int | None = None  # the output cap that the budget left, where it was lower than what would have been set
    attempts: int = 0
    provider: str | None = None
    opened: bool = False  # the store has the intent row: end it with close_call, not log_refusal
    started: bool = False
    streaming: bool = False
    is_call: bool = False  # something that the request log is about
    cache_key: bytes | None = None  # what its answer is kept under, where its role has answers kept

    @property
    def run_id(self) -> str:
        """The run's id; a call without grouping is a run of its own."""
        return self.run.run_id or self.request_id

    def note(self, refusal: Refusal, name: str | None = None) -> None:
        """Note a refusal that is not given, because what would give it is in mode `shadow`; `name` is the header's."""
        called = name or refusal.limit or str(refusal.code)
        self.shadow[called, refusal.scope] = Shadowed(
            code=str(refusal.code), scope=refusal.scope, limit=refusal.limit, message=refusal.message
        )

    def entered(self, entry: Entry) -> None:
        """Take in where the rates stand now that the call's tokens are charged."""
        for refusal in entry.shadowed:
            self.note(refusal)
        self.readings = newer_readings(self.readings, entry.readings)

    def elapsed_us(self) -> int:
        """Return microseconds since the request arrived."""
        return (time.perf_counter_ns() - self.t0_ns) // 1000

    def _content(self) -> tuple[tuple[bytes, ...] | None, bytes | None]:
        """Return the prompt and the other parameters as the log keeps them: nothing before the guardrails have run."""
        if not self.guarded or self.gateway.settings.content == "none":
            return None, None
        fields, parts = self.wire.prompt(self.body)
        others = {name: value for name, value in self.body.items() if name not in fields}
        kept = tuple([msgspec.json.encode(part) for part in parts_without_credentials(parts)])
        return kept, msgspec.json.encode(without_credentials(others))

    def call_start(self) -> CallStart:
        """Return the intent row."""
        grant = self.grant
        prompt, params = self._content()
        trace_id, parent_span = trace_of(self.headers)
        return CallStart(
            request_id=self.request_id,
            started_us=self.started_us,
            fleet=grant.fleet if grant else None,
            role=grant.role if grant else None,
            key_alias=grant.alias if grant else None,
            key_id=self.key_id,
            grant_id=grant.grant_id if grant else None,
            run_id=self.run_id,
            grouped=self.run.run_id is not None,
            run_name=self.run.name,
            caps=self.run.caps,
            step=self.run.step,
            parent_step=self.run.parent_step,
            endpoint=self.wire.path,
            stream=self.body.get("stream") is True,
            model_asked=self.model_asked,
            guardrails=self.guardrail_notes,
            trace_id=trace_id,
            parent_span=parent_span,
            prompt=prompt,
            params=params,
        )

    def call_end(self, state: Literal["ok", "refused", "failed", "abandoned"], status: int, **facts: Any) -> CallEnd:
        """Return the record of the call's end, now."""
        return CallEnd(
            request_id=self.request_id,
            ended_us=self.started_us + self.elapsed_us(),
            state=state,
            status=status,
            guardrails=self.guardrail_notes,
            shadow=tuple(self.shadow.values()),
            **facts,
        )

    def call_refused(self, refusal: Refusal, state: Literal["refused", "failed"] | None = None) -> CallEnd:
        """Return the record of a refusal: a policy's no is `refused`, anything of 500 and above `failed`."""
        return self.call_end(
            state or ("refused" if refusal.status < 500 else "failed"),
            refusal.status,
            code=str(refusal.code),
            error=refusal.message,
            limit=refusal.limit,
            scope=refusal.scope,
            provider=self.provider,
        )

    def close(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        """Record the end of a call whose intent the store has."""
        self.gateway.store.close_call(end, attempt)
        self._count(end)

    def log_refusal(self, refusal: Refusal) -> None:
        """Record a call that was refused before the store had its intent."""
        end = self.call_refused(refusal)
        self.gateway.store.log_refusal(self.call_start(), end)
        self._count(end)

    def _count(self, end: CallEnd) -> None:
        fleet, role = (None, None) if self.grant is None else (self.grant.fleet, self.grant.role)
        self.gateway.metrics.logged(end, endpoint=self.wire.name, fleet=fleet, role=role, started_us=self.started_us)

    def common_headers(self, *, cost_nanos: int | None = None) -> Headers:
        """Return the headers that every answer carries; without a grant, only the request's id and time."""
        theirs = h.ANTHROPIC_REQUEST_ID if self.wire.name == "messages" else h.OPENAI_REQUEST_ID
        headers = {
            h.REQUEST_ID: self.request_id,
            theirs: self.request_id,
            h.LATENCY_MS: f"{self.elapsed_us() / 1000:.2f}",
        }
        if self.grant is None:
            return headers
        headers[h.RUN_ID] = self.run.run_id or self.request_id
        if self.attempts:
            headers[h.ATTEMPTS] = str(self.attempts)
        if self.provider is not None:
            headers[h.PROVIDER] = self.provider
        if self.guardrails_applied:
            headers[h.GUARDRAILS_APPLIED] = ",".join(self.guardrails_applied)
        if cost_nanos is not None:
            headers[h.REQUEST_COST] = dollars_text(cost_nanos)
        left = least_left(self.balances)
        if left is not None:
            headers[h.BUDGET_REMAINING] = dollars_text(left)
        warning = past_alert(self.balances)
        if warning is not None:
            headers[h.BUDGET_WARNING] = warning
        if self.clamped is not None:
            headers[h.MAX_TOKENS_CLAMPED] = str(self.clamped)
        if self.cache_key is not None:
            headers[h.CACHE] = "miss"  # a hit says otherwise
        if self.shadow:
            headers[h.SHADOW] = ", ".join(dict.fromkeys([name for name, _ in self.shadow]))
        if self.readings:
            headers |= rate_headers(self.readings)
        return headers

    async def refuse(self, refusal: Refusal, *, cost_nanos: int | None = None) -> None:
        """Answer with a refusal, with what it has cost; `started` must be False."""
        headers = self.common_headers(cost_nanos=cost_nanos) | refusal_headers(refusal)
        await self.answer(refusal.status, self.wire.error_body(refusal, self.request_id), headers)

    async def answer(self, status: int, body: object, headers: Headers) -> None:
        """Answer with JSON (bytes are JSON already); whoever does not read it goes without."""
        self.started = True
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        if self.line is None or not self.line.answer(status, json_head(content, headers), content):
            await self.deliver(send_json(self.send, status, content, headers))

    async def deliver(self, sending: Awaitable[None]) -> bool:
        """Send something; False when the client reads nothing for `client_timeout_s`: it must hold nothing back."""
        if self.line is not None and not self.line.blocked:
            await sending  # nothing is in its way, so that it needs no timer
            return True
        try:
            async with asyncio.timeout(self.gateway.settings.client_timeout_s):
                await sending
        except TimeoutError:
            return False
        return True
