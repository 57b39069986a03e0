"""How long a part of a call goes on when its client has left, and from when on a client is watched."""

from __future__ import annotations

import asyncio

import pytest

from nemo_agents.gateway import departure
from nemo_agents.gateway.departure import Departure, Lookout


class Client:
    """A client that is there until it is told to leave; `asked` is set when somebody watches it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.leaves = asyncio.Event()

    async def receive(self):
        self.asked.set()
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def departure_of(client: Client, drain_s: float = 0.0, lookout: Lookout | None = None) -> Departure:
    task = asyncio.current_task()
    assert task is not None
    return Departure(client.receive, drain_s, task=task, lookout=lookout or Lookout())


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_part_ends_when_its_client_leaves():
    leaving = departure_of(Client())
    asyncio.get_running_loop().call_soon(leaving.leave)
    with pytest.raises(TimeoutError), leaving:
        await forever()
    assert leaving.gone
    assert asyncio.current_task().cancelling() == 0


async def test_a_part_that_begins_after_its_client_left_ends_as_well():
    leaving = departure_of(Client())
    leaving.leave()
    with pytest.raises(TimeoutError), leaving:
        await forever()


async def test_what_is_done_in_time_is_not_disturbed():
    leaving = departure_of(Client(), drain_s=3600.0)
    with leaving:
        leaving.leave()
    with leaving:
        pass
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, "answer")
    assert await turn == "answer", "no timer of a part is left that would cancel what comes after it"


async def test_a_cancellation_by_somebody_else_stays_one():
    async def serve() -> None:
        leaving = departure_of(Client())
        leaving.leave()
        with leaving:
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
            await forever()  # until it is cancelled twice: the patience is over in the same moment

    task = asyncio.create_task(serve())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_part_itself_is_told_as_it_is():
    leaving = departure_of(Client())
    leaving.leave()
    with pytest.raises(ValueError, match="its own"), leaving:
        raise ValueError("its own")


async def test_the_client_of_a_long_call_is_watched(monkeypatch):
    monkeypatch.setattr(departure, "_LOOK_AFTER_S", 0.0)
    client, lookout = Client(), Lookout()
    leaving = departure_of(client, lookout=lookout)
    await client.asked.wait()
    client.leaves.set()
    with pytest.raises(TimeoutError), leaving:
        await forever()


async def test_a_call_that_is_over_is_not_watched(monkeypatch):
    monkeypatch.setattr(departure, "_LOOK_AFTER_S", 0.0)
    over, longer, lookout = Client(), Client(), Lookout()
    departure_of(over, lookout=lookout).close()
    departure_of(longer, lookout=lookout)
    await longer.asked.wait()
    assert not over.asked.is_set()


async def test_a_pause_ends_early_when_nobody_is_left_to_wait_for():
    client = Client()
    leaving = departure_of(client)
    client.leaves.set()
    with pytest.raises(TimeoutError):
        await leaving.pause(3600.0)
    with pytest.raises(TimeoutError):
        await leaving.pause(3600.0)


async def test_a_pause_goes_by():
    await departure_of(Client()).pause(0.0)
