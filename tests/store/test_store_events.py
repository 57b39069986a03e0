"""Events told once, deliveries that nobody makes twice at once, documents, and spend by the hour."""

from __future__ import annotations

import asyncio

from store_values import HOUR_US, T0, a_call, an_attempt, attempt_end, call_end, role_scope

from nemo_agents.admin.wire import EventRow, Shadowed
from nemo_agents.gateway.stores.base import HourSpend, LogFilter


def an_event(number: int = 1, **more) -> EventRow:
    values = {"kind": "budget.alert", "at_us": T0, "message": "80 % of the day", "facts": {"share": 0.8, "who": ["a"]}}
    return EventRow(event_id=f"evt_{number}", **{**values, **more})


async def test_an_event_is_told_once_and_read_in_order(store):
    for number in range(1, 6):
        fleet = "crew" if number % 2 else None
        seq = await store.put_event(an_event(number, fleet=fleet, role="writer"), once=f"name {number}", webhooks=[])
        assert seq == number
    assert await store.put_event(an_event(9), once="name 3", webhooks=["hook"]) is None
    assert await store.claim_deliveries(T0, lease_us=1, limit=9) == []

    async def read(**more):
        return [event.seq for event in await store.events(**{"after": 0, "limit": 99, **more})]

    assert await read() == [1, 2, 3, 4, 5]
    assert await read(after=2, limit=2) == [3, 4]
    assert await read(after=-1, limit=2) == [4, 5]
    assert await read(fleet="crew") == [1, 3, 5]
    assert await read(after=-1, limit=2, fleet="crew") == [3, 5]
    (last,) = await store.events(after=4, limit=1)
    assert last == an_event(5, seq=5, fleet="crew", role="writer")


async def test_a_delivery_is_made_by_one_until_its_lease_ends(store):
    await store.put_event(an_event(1), once="a", webhooks=["ops", "pager", "ops"])
    await store.put_event(an_event(2, at_us=T0 + 5), once="b", webhooks=["ops"])
    claims = [store.claim_deliveries(T0, lease_us=100, limit=1) for _ in range(4)]
    got = [delivery for some in await asyncio.gather(*claims) for delivery in some]
    assert sorted((d.event.event_id, d.webhook, d.attempts) for d in got) == [
        ("evt_1", "ops", 0),
        ("evt_1", "pager", 0),
    ]
    await store.end_delivery(1, "ops", retry_us=None, error=None)
    await store.end_delivery(1, "pager", retry_us=T0 + 50, error="503")
    assert await store.claim_deliveries(T0 + 4, lease_us=100, limit=9) == []
    due = await store.claim_deliveries(T0 + 50, lease_us=100, limit=9)
    assert [(d.event.event_id, d.webhook, d.attempts) for d in due] == [("evt_2", "ops", 0), ("evt_1", "pager", 1)]
    await store.end_delivery(1, "pager", retry_us=None, error="gone")
    again = await store.claim_deliveries(T0 + 150, lease_us=100, limit=9)  # whoever had it is gone
    assert [(d.event.event_id, d.webhook, d.attempts) for d in again] == [("evt_2", "ops", 1)]
    await store.end_delivery(2, "ops", retry_us=None, error=None)
    assert await store.claim_deliveries(T0 + HOUR_US, lease_us=1, limit=9) == []


async def test_a_document_is_replaced_as_a_whole(store):
    assert await store.document("prices") is None
    for body in (b"\x00\xff{}", b"", b"x" * 100_000):
        await store.put_document("prices", body)
        assert await store.document("prices") == body
    assert await store.document("other") is None


async def test_spend_is_summed_by_grant_and_hour_of_the_start(store):
    hour = T0 // HOUR_US * HOUR_US
    for grant_id, at_us, cost in (
        ("g1", hour, 10),
        ("g1", hour + HOUR_US - 1, 5),
        ("g1", hour + HOUR_US, 7),
        ("g2", hour, 3),
        ("g2", hour + HOUR_US, 0),
        (None, hour, 50),
        ("g1", hour - 1, 99),
        ("g1", hour + 2 * HOUR_US, 99),
    ):
        call, attempt = a_call(grant_id=grant_id, started_us=at_us), an_attempt(100, role_scope())
        await store.open_call(call, attempt)
        store.close_call(call_end(call), attempt_end(attempt, amount=cost))
    await store.flush()
    assert await store.spend_by_hour(hour, hour + 2 * HOUR_US) == [
        HourSpend(grant_id="g1", hour_us=hour, cost_nanos=15),
        HourSpend(grant_id="g2", hour_us=hour, cost_nanos=3),
        HourSpend(grant_id="g1", hour_us=hour + HOUR_US, cost_nanos=7),
    ]


async def test_refusals_that_were_not_given_are_kept_with_the_call(store):
    call, attempt = a_call(), an_attempt()
    await store.open_call(call, attempt)
    told = (Shadowed(code="budget_exhausted", scope="role", limit="budget", message="the day is spent"),)
    store.close_call(call_end(call, shadow=told), attempt_end(attempt))
    assert (await store.call(call.request_id)).shadow == list(told)
    (listed,) = (await store.calls(LogFilter(), before=None, limit=9)).calls
    assert listed.shadow == list(told)


async def test_one_change_at_a_time(store):
    order = []

    async def change(number: int) -> None:
        async with store.exclusive():
            order.append(("in", number))
            await store.put_document("d", str(number).encode())
            order.append(("out", number))

    await asyncio.gather(*(change(number) for number in range(5)))
    assert [what for what, _ in order] == ["in", "out"] * 5
    assert all(order[i][1] == order[i + 1][1] for i in range(0, 10, 2))
