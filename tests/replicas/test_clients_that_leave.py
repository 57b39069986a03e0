"""A client leaves its stream at any place: what the provider made is paid for, and nothing stays held."""

from __future__ import annotations

import pytest
from replica_load import run_load
from replica_stack import MakeStack, Stack, billed

POSITIONS = range(0, 1000, 5)  # two hundred, in a stream of a thousand pieces
CALLERS = 8


def leave_everywhere(stack: Stack) -> None:
    stack.provider.reset()
    key = stack.key()
    calls = [
        {
            "marker": f"leave-{position}",
            "key": "role",
            "leave_after": position,
            "body": {"model": "faulty/many-chunks", "max_tokens": 1000, "stream": True},
        }
        for position in POSITIONS
    ]
    outcomes = run_load(stack.urls, {"role": key.secret}, [{"calls": calls[at::CALLERS]} for at in range(CALLERS)])
    assert [each.status for each in outcomes] == [200] * len(POSITIONS)
    assert all(each.left and not each.done for each in outcomes)
    stack.provider.seen(at_least=len(POSITIONS), finished=True)
    stack.settle(key.fleet)
    charged, cost = stack.charged(prefix="leave-"), billed(stack.provider, prefix="leave-")
    assert set(charged) == set(cost) == {call["marker"] for call in calls}
    below = {marker: (charged[marker], nanos) for marker, nanos in cost.items() if charged[marker] < nanos}
    assert not below, f"charged less than the provider made: {below}"


def test_a_stream_that_is_left_is_read_to_its_end_and_posted(stack: Stack):
    leave_everywhere(stack)


@pytest.mark.parametrize("seconds", [0.0, 0.02], ids=["at-once", "soon"])
def test_a_stream_that_is_cut_when_its_client_leaves_is_posted_too(make_stack: MakeStack, seconds: float):
    with make_stack(drain_timeout_s=seconds) as stack:
        leave_everywhere(stack)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte(stack: Stack, stream: bool):
    """The provider sits on its answer; the client goes; the answer comes all the same, and is paid."""
    stack.provider.reset()
    key = stack.key()
    body = {"model": "faulty/slow-first-byte", "max_tokens": 20, "stream": stream}
    with pytest.raises(Exception, match="timed out"):
        stack.http.post(
            f"{stack.urls[0]}/v1/chat/completions",
            json={**body, "messages": [{"role": "user", "content": "gone"}]},
            headers={"authorization": f"Bearer {key.secret}", "x-nemo-run-id": "gone"},
            timeout=0.3,
        )
    stack.provider.seen(at_least=1)
    stack.provider.release()
    stack.provider.seen(at_least=1, finished=True)
    stack.settle(key.fleet)
    assert stack.charged(["gone"])["gone"] >= billed(stack.provider)["gone"] > 0
