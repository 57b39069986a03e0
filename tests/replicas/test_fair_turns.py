"""A role that knocks fifty times as often as the others, and is refused, takes nobody's turn."""

from __future__ import annotations

from collections import Counter

from replica_load import load_of
from replica_stack import Stack

NOISY_CALLERS, NORMAL_ROLES, CALLS = 50, 20, 10
TURNS_MAX = 10
"""Refusals of one noisy caller while a normal one makes a call. A refusal takes a third of the steps of a call, so that
there are three or four; where log rows stand before the holds of others in one queue, there are dozens."""


def test_a_noisy_role_is_refused_and_the_others_get_their_turns(stack: Stack):
    """Counted in turns and not in seconds: what matters is who goes first, and not how fast this machine is."""
    fleet = stack.key().fleet
    noisy = stack.key(fleet=fleet)
    stack.ok("POST", "/key/update", {"key": noisy.public_id, "rpm_limit": 60})
    normal = {f"role-{number}": stack.key(fleet=fleet).secret for number in range(NORMAL_ROLES)}
    body = {"model": "faulty/ok", "max_tokens": 5}
    flood = [
        {"calls": [{"marker": f"noise-{caller}", "key": "noisy", "body": body}], "forever": True}
        for caller in range(NOISY_CALLERS)
    ]
    others = [
        {"calls": [{"marker": f"{name}-{number}", "key": name, "body": body} for number in range(CALLS)]}
        for name in normal
    ]
    with load_of(stack.urls, {"noisy": noisy.secret, **normal}, [*flood, *others]) as load:
        load.answered(at_least=60 + NORMAL_ROLES * CALLS)
        outcomes = load.stop()
    quiet = [each for each in outcomes if each.key != "noisy"]
    assert Counter(each.status for each in quiet) == {200: NORMAL_ROLES * CALLS}
    ended = max(each.ended_us for each in quiet)
    loud = [each for each in outcomes if each.key == "noisy" and each.ended_us <= ended]
    assert set(Counter((each.status, each.code) for each in loud)) == {(200, None), (429, "rate_limit_exceeded")}
    assert sum(each.status == 200 and each.key == "noisy" for each in outcomes) == 60
    turns = Counter(each.marker.rpartition("-")[0] for each in loud)
    assert max(turns.values()) < TURNS_MAX * CALLS
    stack.settle(fleet)
