"""A COMMIT without an answer, a server that goes and comes back, and one that stands still: the books stay exact."""

from __future__ import annotations

import asyncio

import pytest
from store_proxy import breakable
from store_values import T0, a_call, an_attempt, attempt_end, call_end, fleet_scope, refusal, role_scope, rows

from nemo_agents.admin.wire import EventRow
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.gateway.stores.postgres import PostgresStore
from nemo_agents.gateway.stores.writer import MaybeWritten
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Held, HoldRefused

GUARD_S = 30
SCOPES = (role_scope(1000), fleet_scope(1000))

pytestmark = pytest.mark.parametrize("cut", ["commit-lost", "answer-lost", "pooler-answers"])


@pytest.fixture
def way(database):
    with breakable(database) as (proxy, url):
        yield proxy, url


@pytest.fixture
async def cut_store(way, clock):
    """A store behind a way that can be cut, and the proxy that cuts it; the books must balance in the end."""
    proxy, url = way
    store = PostgresStore(url, clock=clock)
    await store.start()
    yield store, proxy
    async with asyncio.timeout(GUARD_S):
        await store.flush()
        assert proxy.cuts
        assert await store.verify_ledger() == []
        assert await rows(store, "SELECT count(*) FROM attempts WHERE settled IS NULL") == [(0,)]
        await store.close()


async def amounts(store) -> list[tuple[int, int]]:
    return [(b.posted_nanos, b.held_nanos) for b in await store.balances(SCOPES)]


async def test_a_hold_that_may_be_there_is_not_used_and_taken_back(cut_store, cut):
    store, proxy = cut_store
    call, attempt = a_call(run_id="run-one", step="s"), an_attempt(100, *SCOPES)
    proxy.arm(cut)
    with pytest.raises(MaybeWritten):
        await store.open_call(call, attempt)
    assert await amounts(store) == [(0, 0), (0, 0)]
    row = await store.call(call.request_id)
    if cut != "commit-lost":
        assert (row.state, row.status, row.cost_nanos) == ("abandoned", 503, 0)
    else:
        assert row is None


async def test_nor_does_it_count_when_its_caller_had_gone(cut_store, cut):
    store, proxy = cut_store
    call, attempt = a_call(), an_attempt(100, *SCOPES)
    writer = store._writer
    real = writer._deliver

    def deliver(results) -> None:  # cancelled while the COMMIT is under way, and told of it in the same turn
        def cancelled_and_told() -> None:
            task.cancel()
            writer._resolve(results)

        if results:
            writer._loop.call_soon_threadsafe(cancelled_and_told)

    proxy.arm(cut)
    task = asyncio.ensure_future(store.open_call(call, attempt))
    await asyncio.sleep(0)
    writer._deliver = deliver
    with pytest.raises(asyncio.CancelledError):
        await task
    writer._deliver = real
    assert await amounts(store) == [(0, 0), (0, 0)]


@pytest.mark.parametrize("first", ["taken back first", "logged first"])
async def test_a_hold_that_may_be_there_ends_as_the_refusal_that_is_logged_for_it(cut_store, cut, first):
    store, proxy = cut_store
    call, attempt = a_call(), an_attempt(100, *SCOPES)
    proxy.arm(cut)
    with pytest.raises(StoreUnavailable):
        await store.open_call(call, attempt)
    if first == "taken back first":
        await store.flush()
    store.log_refusal(call, refusal(call, "store_unavailable", 503))
    assert await amounts(store) == [(0, 0), (0, 0)]
    assert (await store.call(call.request_id)).state == "refused"


async def test_a_settlement_is_posted_once(cut_store, cut):
    store, proxy = cut_store
    calls = [(a_call(run_id="run-one"), an_attempt(100, *SCOPES)) for _ in range(5)]
    for pair in calls:
        await store.open_call(*pair)
    proxy.arm(cut)
    kinds = ("post", "void", "expire", "post", "post")
    for (call, attempt), kind in zip(calls, kinds, strict=True):
        store.close_call(call_end(call), attempt_end(attempt, kind, 40 if kind == "post" else 0))
    refused = a_call(run_id="run-one")
    store.log_refusal(refused, refusal(refused))
    with pytest.raises(MaybeWritten):
        await store.open_call(a_call(), an_attempt(1, *SCOPES))  # makes the rest go along
    assert await amounts(store) == [(220, 0), (220, 0)]
    found = await rows(store, "SELECT slot, count(*) FROM entries GROUP BY slot ORDER BY slot")
    assert [count for slot, count in found if slot == 1] in ([5], [6])  # the last hold was voided, or never there
    (run,) = (await store.runs(LogFilter(run_id="run-one"), before=None, limit=9)).runs
    assert (run.calls, run.errors, run.cost_nanos) == (6, 1, 220)


async def test_a_fallback_that_may_be_held_is_not_sent(cut_store, cut):
    """The gateway ends the call with how its first attempt went; what the second may hold is taken back."""
    store, proxy = cut_store
    call, first, second = a_call(), an_attempt(100, *SCOPES), an_attempt(70, *SCOPES, n=2)
    await store.open_call(call, first)
    ended = attempt_end(first, "expire", 100)
    proxy.arm(cut)
    with pytest.raises(MaybeWritten):
        await store.next_attempt(call.request_id, ended, second)
    store.close_call(call_end(call, "failed", status=503, code="store_unavailable"), ended)
    assert await amounts(store) == [(100, 0), (100, 0)]
    row = await store.call(call.request_id)
    assert (row.state, row.status, row.cost_nanos) == ("failed", 503, 100)


async def test_a_batch_of_many_hears_no_and_leaves_nothing_held(cut_store, cut):
    store, proxy = cut_store
    proxy.arm(cut)
    calls = [(a_call(run_id="run-one" if n % 3 else None), an_attempt(50, *SCOPES)) for n in range(30)]
    answers = await asyncio.gather(*(store.open_call(*pair) for pair in calls), return_exceptions=True)
    for (call, attempt), answer in zip(calls, answers, strict=True):
        if isinstance(answer, Held):  # of a batch before or after
            store.close_call(call_end(call), attempt_end(attempt, amount=1))
        else:
            assert isinstance(answer, StoreUnavailable | HoldRefused)
    assert any(isinstance(answer, MaybeWritten) for answer in answers)
    held = sum(isinstance(answer, Held) for answer in answers)
    assert await amounts(store) == [(held, 0), (held, 0)]
    again = await asyncio.gather(*(store.open_call(a_call(), an_attempt(50, *SCOPES)) for _ in range(19)))
    assert all(isinstance(answer, Held) for answer in again)  # all that is left can be held
    await store.sweep(T0 + 10**12)


async def test_what_is_put_again_after_it_is_the_same(cut_store, cut):
    store, proxy = cut_store
    grant = Grant(grant_id="g1", created_us=T0)
    proxy.arm(cut)
    with pytest.raises(MaybeWritten):
        await store.put_grant(grant)
    await store.put_grant(grant)
    assert await store.grants() == [grant]
    event = EventRow(event_id="evt_1", kind="budget.alert", at_us=T0, message="m")
    proxy.arm(cut)
    with pytest.raises(MaybeWritten):
        await store.put_event(event, once="a", webhooks=["ops"])
    assert proxy.cuts == 2
    assert await store.put_event(event, once="a", webhooks=["ops"]) == (1 if cut == "commit-lost" else None)
    assert len(await store.claim_deliveries(T0, lease_us=1, limit=9)) == 1
