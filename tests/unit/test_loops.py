"""What makes two requests the same, and how often one may be repeated."""

from __future__ import annotations

import copy
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.errors import Code
from nemo_agents.policy.budgets import LoopRule
from nemo_agents.policy.loops import DIGEST_BYTES, Repeats, digest, normalised

SECOND = 1_000_000
T0 = 1_800_000_000 * SECOND
RULE = LoopRule(repeats=3, within_s=60, mode="enforce")


def chat(*messages, **more):
    return {"model": "gpt-4o", "messages": list(messages), **more}


def user(text):
    return {"role": "user", "content": text}


def tool_turn(call_id, *, arguments='{"q": 1}', other="call-z"):
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": call_id, "type": "function", "function": {"name": "search", "arguments": arguments}},
                {"id": other, "type": "function", "function": {"name": "search", "arguments": arguments}},
            ],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "found"},
        {"role": "tool", "tool_call_id": other, "content": "nothing"},
    ]


def anthropic_turn(call_id, argument):
    return [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": call_id, "name": "get", "input": {"id": argument}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call_id, "content": "42"}]},
    ]


SAME = {
    "gateway fields": (chat(user("hi")), chat(user("hi"), nemo_guardrail_ids=["a"], nemo_run="x")),
    "delivery": (chat(user("hi")), chat(user("hi"), stream=True, stream_options={"include_usage": True})),
    "who asks": (chat(user("hi")), chat(user("hi"), user="u-1", metadata={"trace": "1"}, safety_identifier="s")),
    "seed": (chat(user("hi"), seed=1), chat(user("hi"), seed=2)),
    "white space at the ends": (chat(user("hi")), chat(user("  hi\n"))),
    "white space of parts": (
        chat(user([{"type": "text", "text": "hi"}])),
        chat(user([{"type": "text", "text": "hi \n"}])),
    ),
    "order of fields": (
        chat(user("hi"), top_p=1),
        {"top_p": 1, "messages": [{"content": "hi", "role": "user"}], "model": "gpt-4o"},
    ),
    "ids of tool calls": (chat(*tool_turn("call-a")), chat(*tool_turn("call-b", other="call-y"))),
    "ids in Anthropic's words": (chat(*anthropic_turn("toolu_1", "7")), chat(*anthropic_turn("toolu_2", "7"))),
    "ids of responses": (
        {
            "model": "m",
            "input": [{"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}],
        },
        {
            "model": "m",
            "input": [{"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "f", "arguments": "{}"}],
        },
    ),
    "a text as input": ({"model": "m", "input": "hi"}, {"model": "m", "input": " hi "}),
}
DIFFERENT = {
    "model": (chat(user("hi")), {**chat(user("hi")), "model": "gpt-4o-mini"}),
    "text": (chat(user("hi")), chat(user("ho"))),
    "white space within": (chat(user("a b")), chat(user("a  b"))),
    "one more message": (chat(user("hi")), chat(user("hi"), user("hi"))),
    "role": (chat(user("hi")), chat({"role": "system", "content": "hi"})),
    "parameters": (chat(user("hi"), temperature=0), chat(user("hi"), temperature=1)),
    "tools": (chat(user("hi")), chat(user("hi"), tools=[{"type": "function", "function": {"name": "f"}}])),
    "arguments": (chat(*tool_turn("a")), chat(*tool_turn("a", arguments='{"q": 2}'))),
    "which call is answered": (
        chat(*tool_turn("a", other="b")),
        chat(
            *tool_turn("a", other="b")[:1],
            *[{**m, "tool_call_id": {"a": "b", "b": "a"}[m["tool_call_id"]]} for m in tool_turn("a", other="b")[1:]],
        ),
    ),
    "an id that a tool is called with": (chat(*anthropic_turn("t", "7")), chat(*anthropic_turn("t", "8"))),
    "an item that is referred to": (
        {"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}]},
        {"model": "m", "input": [{"type": "item_reference", "id": "msg_2"}]},
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_the_same_request(one, other):
    assert normalised(one) == normalised(other)
    assert digest(one) == digest(other)
    assert len(digest(one)) == DIGEST_BYTES


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_another_request(one, other):
    assert digest(one) != digest(other)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)
_bodies = st.dictionaries(
    st.sampled_from(["model", "messages", "input", "tools", "stream", "nemo_x", "content", "id"]), _json, max_size=6
)


@given(_bodies)
def test_any_body_has_a_digest_and_stays_as_it_is(body):
    try:
        body = msgspec.json.decode(msgspec.json.encode(body))  # as the data plane has it
    except (UnicodeEncodeError, msgspec.DecodeError):
        return
    before = copy.deepcopy(body)
    assert digest(body) == digest(before)
    assert body == before


def forgotten_in_ms(refusal):
    """Return what the message says of when the same request passes again."""
    (seconds,) = re.findall(r"forgets this request in ([\d.]+) s", refusal.message)
    return round(float(seconds) * 1000)


def test_the_last_of_n_within_the_time_is_refused():
    repeats = Repeats()
    assert repeats.note(T0, "crew/r1", b"d", RULE) is None
    assert repeats.note(T0 + SECOND, "crew/r1", b"d", RULE) is None
    refusal = repeats.note(T0 + 2 * SECOND, "crew/r1", b"d", RULE)
    assert (refusal.status, refusal.code, refusal.scope, refusal.limit) == (429, Code.LOOP_DETECTED, "run", "loop")
    assert refusal.retry_after_ms is None, "a client that waits and asks again goes on with the loop"
    assert "The run r1 sent the same request" in refusal.message
    assert "at least 3 times within 60 s" in refusal.message
    assert forgotten_in_ms(refusal) == 58_000


@given(st.lists(st.integers(0, 30 * SECOND), max_size=50), st.integers(2, 6))
def test_no_time_holds_more_and_who_waits_as_told_passes(gaps, most):
    rule = LoopRule(repeats=most, within_s=60, mode="enforce")
    repeats, now, made = Repeats(), T0, []
    for gap in gaps:
        now += gap
        recent = sum(now - 60 * SECOND < at for at in made)
        refusal = repeats.note(now, "r", b"d", rule)
        assert (refusal is not None) == (recent + 1 >= most)
        if refusal is not None:
            now += forgotten_in_ms(refusal) * 1000
            assert repeats.note(now, "r", b"d", rule) is None
        made.append(now)


def test_a_clock_that_steps_back_gives_nothing_away():
    repeats = Repeats()
    for _ in range(2):
        repeats.note(T0, "r", b"d", RULE)
    assert forgotten_in_ms(repeats.note(T0 - 30 * SECOND, "r", b"d", RULE)) == 90_000


def test_runs_come_and_go():
    repeats = Repeats()
    for n in range(5_000):
        repeats.note(T0 + n * SECOND, f"crew/run-{n}", b"d", RULE)
    assert len(repeats) <= 60
    assert repeats.note(T0 + 10**6 * SECOND, "crew/last", b"d", RULE) is None
    assert len(repeats) == 1


def test_memory_has_an_end_and_the_busy_stay():
    repeats = Repeats(kept_max=100)
    for n in range(1_000):
        repeats.note(T0, f"run-{n}", b"d", RULE)
        busy = repeats.note(T0, "busy", b"d", LoopRule(repeats=5_000, within_s=60, mode="enforce"))
        assert busy is None
    assert len(repeats) == 100
    assert repeats.note(T0, "busy", b"d", LoopRule(repeats=1_001, within_s=60, mode="enforce")) is not None
