"""An answer of the cache as the answer to a request, and an answer on its way into the cache.

A call that the cache answers has passed everything that needs no hold: its key, its rates, its guardrails, the search
for loops. It is logged as a call of its run, costs nothing, and takes no tokens of anybody's minute.
"""

from __future__ import annotations

from collections.abc import Callable

from nemo_agents.admin import headers as h
from nemo_agents.gateway.answers import start_stream
from nemo_agents.gateway.cache.base import CachedAnswer
from nemo_agents.gateway.exchange import Denied, Exchange
from nemo_agents.gateway.metrics.counters import CACHE
from nemo_agents.gateway.stores.base import CallEnd
from nemo_agents.policy.admission import run_refusal
from nemo_agents.policy.caching import ANSWER_BYTES_MAX, key_of, may_read

__all__ = ["answer_from_cache", "cache_key", "keep_answer"]

_EVENTS = "text/event-stream"
_JSON = "application/json"


def cache_key(x: Exchange) -> bytes | None:
    """Return what the answer to an admitted and guarded request is kept under; None when it is not to be kept."""
    if x.grant is None or x.grant.cache_ttl_s is None:
        return None
    return key_of(x.grant, x.wire.name, x.body, x.headers, guardrails=x.guardrails_applied)


async def answer_from_cache(x: Exchange, key: bytes, check_still_good: Callable[[], None]) -> bool:
    """Answer with what is kept under a key, and log it; False when nothing is: then ask a provider.

    Raises Denied when the key is no longer good, or the run may make no more calls; StoreUnavailable.
    """
    gateway, grant = x.gateway, x.grant
    assert grant is not None
    if not may_read(x.headers):
        return False
    found = await gateway.cache.get(key)
    saved_nanos = None if found is None else found.cost_nanos or 0
    gateway.metrics.cache_looked(grant.fleet, grant.role, saved_nanos=saved_nanos)
    if found is None:
        return False
    check_still_good()
    end = x.call_end(
        "ok",
        found.status,
        model_served=found.model_served,
        provider=CACHE,
        ttft_us=x.elapsed_us(),
        input_tokens=0,  # what a provider was asked for
        output_tokens=0,
        cost_nanos=0,
        finish_reason=found.finish_reason,
        answer=found.answer if gateway.settings.content == "full" else None,
    )
    refused = await gateway.store.log_hit(x.call_start(), end)
    if refused is not None:
        raise Denied(run_refusal(refused))
    x.opened, x.provider = True, CACHE
    gateway.metrics.logged(end, endpoint=x.wire.name, fleet=grant.fleet, role=grant.role, started_us=x.started_us)
    headers = x.common_headers(cost_nanos=0) | {h.CACHE: "hit"}
    if not found.stream:
        await x.answer(found.status, found.body, headers)
        return True
    x.started = x.streaming = True
    if await x.deliver(start_stream(x.send, headers)):
        await x.deliver(x.send({"type": "http.response.body", "body": found.body}))
    return True


def keep_answer(x: Exchange, key: bytes, body: bytes | bytearray, end: CallEnd, *, stream: bool) -> None:
    """Keep an answer that the client got in full, unless it is none that another request should get.

    `body` are the bytes that it got. A failure is not kept, nor what is larger than a megabyte, nor an answer that a
    budget has made shorter than what was asked for.
    """
    grant = x.grant
    if grant is None or grant.cache_ttl_s is None or end.state != "ok" or x.clamped is not None:
        return
    if not 0 < len(body) <= ANSWER_BYTES_MAX:
        return
    x.gateway.cache.put(
        key,
        CachedAnswer(
            content_type=_EVENTS if stream else _JSON,
            body=bytes(body),
            status=200,
            model_served=end.model_served,
            finish_reason=end.finish_reason,
            input_tokens=end.input_tokens,
            output_tokens=end.output_tokens,
            cost_nanos=end.cost_nanos,
            answer=end.answer,
        ),
        grant.cache_ttl_s,
    )
