"""One attempt at a provider: what it asks there, and how its record ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from nemo_agents.gateway.exchange import Exchange
from nemo_agents.gateway.outcomes import Answered, Failure
from nemo_agents.gateway.quote import Ask, Quote, quote
from nemo_agents.gateway.route import Go
from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart
from nemo_agents.gateway.ways import Way, sandbox_fields
from nemo_agents.policy.ledger import Balance, Settlement
from nemo_agents.policy.pricing import Price, cost_nanos, pinned_service_tier
from nemo_agents.policy.refusal import Tried
from nemo_agents.policy.routing import SANDBOX, Target
from nemo_agents.policy.settlement import settle_answer, settle_broken, settle_cut, settle_failure
from nemo_agents.policy.usage import Usage
from nemo_agents.policy.wires.base import PreparedCap

__all__ = ["Attempt", "after", "failed_end", "prepare", "settled", "tried", "upstream_body", "usage_facts"]

_RARE_COUNTS: Final = ("cache_write_1h_tokens", "audio_input_tokens", "image_input_tokens", "audio_output_tokens")


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt on its way. `balances` are its scopes' with its hold in them, `failed_us` is when it has failed."""

    start: AttemptStart
    target: Target
    way: Way
    quote: Quote
    balances: tuple[Balance, ...] = ()
    failed_us: int | None = None

    @property
    def price(self) -> Price | None:
        """What its tokens cost; None when nobody knows."""
        return self.quote.price

    @property
    def served(self) -> str:
        """The model's name as the log has it: what the sandbox stands in for, not where it would have come from."""
        return self.target.model.rpartition("/")[2] if self.target.provider == SANDBOX else self.target.model

    def ended_us(self, x: Exchange) -> int:
        """Return when it ended: now, or when it failed; not before its start, which another clock has told."""
        ended_us = x.started_us + x.elapsed_us() if self.failed_us is None else self.failed_us
        return max(self.start.started_us, ended_us)


def prepare(x: Exchange, ask: Ask, go: Go, way: Way, n: int) -> Attempt:
    """Return the `n`th attempt of a call, not yet held for."""
    grant, gateway, target = x.grant, x.gateway, go.target
    assert grant is not None
    grant = gateway.keyring.current(grant)  # a budget or price may have been declared since the attempt before
    now_us = gateway.clock.now_us()
    quoted = quote(x, grant, target, ask, way.body if way.translation is not None else None)
    start = AttemptStart(
        hold_id=f"{x.request_id}.{n}",
        n=n,
        model=target.model,
        provider=target.provider,
        reason=go.reason,
        started_us=now_us,
        hold_nanos=quoted.hold_nanos(ask),
        scopes=gateway.budget_scopes(grant, run_id=x.run.run_id, caps=x.run.caps, now_us=now_us),
        price_version=quoted.price.version if quoted.price else None,
        expires_us=now_us + int(gateway.settings.hold_ttl_s * 1e6),
        wait_ms=go.wait_ms,
    )
    return Attempt(start=start, target=target, way=way, quote=quoted)


def upstream_body(x: Exchange, ask: Ask, attempt: Attempt, *, stream: bool) -> bytes:
    """Write the body anew from what was checked, with the cap that the hold was computed with."""
    target = attempt.target
    config = x.gateway.provider_configs.get(target.provider)
    tier = None
    if attempt.price is not None and target.provider != SANDBOX and x.wire.generates:
        tier = pinned_service_tier(attempt.price, ask.content)
    cap = PreparedCap(tokens=attempt.quote.cap, chat_field=config.max_tokens_field if config else "max_tokens")
    body = attempt.way.wire.prepare(attempt.way.body, model=target.model, cap=cap, tier=tier, stream=stream)
    return msgspec.json.encode(body | sandbox_fields(target, x.body))


def settled(attempt: Attempt, ask: Ask, answered: Answered) -> Settlement:
    """Return how the hold of an attempt that was answered resolves."""
    hold_nanos = attempt.start.hold_nanos
    if attempt.price is None:
        return Settlement(kind="post", amount_nanos=0)
    cost = None if answered.usage is None else cost_nanos(attempt.price, answered.usage, ask.content)
    told = None if answered.told is None else cost_nanos(attempt.price, answered.told, ask.content)
    if answered.counted_nanos is not None:
        return settle_cut(counted_nanos=answered.counted_nanos, told_nanos=told, hold_nanos=hold_nanos)
    if cost is None:
        return settle_broken(told_nanos=told, hold_nanos=hold_nanos)
    return settle_answer(cost_nanos=cost, hold_nanos=hold_nanos)


def failed_end(x: Exchange, attempt: Attempt, failure: Failure) -> AttemptEnd:
    """Return the record of an attempt that gave no answer: it ended before the wait for the next one."""
    settlement = settle_failure(
        sent=failure.sent, status=failure.status, own_error=failure.own_error, hold_nanos=attempt.start.hold_nanos
    )
    return AttemptEnd(
        hold_id=attempt.start.hold_id,
        n=attempt.start.n,
        ended_us=attempt.ended_us(x),
        status=failure.status,
        error=failure.message,
        settlement=settlement,
        usage_source="none" if settlement.kind == "void" else "hold",
    )


def tried(x: Exchange, attempt: Attempt, failure: Failure) -> Tried:
    """Return what the client is told of an attempt that gave no answer."""
    return Tried(
        n=attempt.start.n,
        provider=attempt.target.provider,
        model=attempt.target.model,
        status=failure.status,
        error=failure.message,
        wait_ms=attempt.start.wait_ms,
        latency_ms=max(0, x.started_us + x.elapsed_us() - attempt.start.started_us) // 1000,
    )


def after(balances: Sequence[Balance], hold_nanos: int, cost: int) -> tuple[Balance, ...]:
    """Return the balances as they stand once the hold is posted, for the headers of the answer."""
    return tuple(
        [
            Balance(scope=b.scope, posted_nanos=b.posted_nanos + cost, held_nanos=max(0, b.held_nanos - hold_nanos))
            for b in balances
        ]
    )


def usage_facts(usage: Usage | None) -> dict[str, int]:
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
