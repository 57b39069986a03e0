"""Which run and step a call belongs to."""

from __future__ import annotations

import pytest

from nemo_agents.policy.grouping import RunRef, run_of
from nemo_agents.policy.hosts import host_allowed
from nemo_agents.policy.ledger import RunCaps, Settlement
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.settlement import settle_answer, settle_failure
from nemo_agents.policy.stream import StreamTally, answer_of

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("headers", "body", "run_id"),
    [
        ({}, {}, None),
        ({"x-nemo-run-id": "r1"}, {"litellm_session_id": "other"}, "r1"),
        ({"x-litellm-session-id": "r1"}, {}, "r1"),
        ({"x-litellm-trace-id": "r1"}, {}, "r1"),
        ({"helicone-session-id": "r1"}, {}, "r1"),
        ({"x-portkey-trace-id": "r1"}, {}, "r1"),
        ({"x-acme-session-id": "r1"}, {}, "r1"),
        ({}, {"litellm_session_id": "r1"}, "r1"),
        ({}, {"metadata": {"session_id": "r1"}}, "r1"),
        ({}, {"session_id": "r1"}, "r1"),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, {}, TRACE),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-nemo-run-id": "r1"}, {}, "r1"),
        ({"traceparent": "nonsense"}, {"metadata": "text", "session_id": 3}, None),
    ],
)
def test_the_run_is_read_from_ours_then_others_then_the_body(headers, body, run_id):
    assert run_of(headers, body).run_id == run_id


def test_labels_are_percent_decoded_and_caps_are_exact():
    headers = {
        "x-nemo-run-id": "r",
        "x-nemo-run-name": "Caf%C3%A9",
        "x-nemo-step": "plan",
        "x-nemo-parent-step": "root",
        "x-nemo-run-budget": "0.50",
        "x-nemo-run-max-calls": "7",
    }
    assert run_of(headers, {}) == RunRef(
        run_id="r",
        name="Café",
        step="plan",
        parent_step="root",
        caps=RunCaps(budget_nanos=500_000_000, max_calls=7),
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"x-nemo-run-id": "has space"},
        {"x-nemo-run-id": "x" * 129},
        {"x-nemo-run-id": "-dash-first"},
        {"x-nemo-run-id": "r", "x-nemo-step": "a%0Ab"},
        {"x-nemo-run-id": "r", "x-nemo-step": "x" * 201},
        {"x-nemo-run-id": "r", "x-nemo-run-budget": "-1"},
        {"x-nemo-run-id": "r", "x-nemo-run-budget": "nan"},
        {"x-nemo-run-id": "r", "x-nemo-run-max-calls": "0"},
        {"x-nemo-run-id": "r", "x-nemo-run-max-calls": "1e3"},
        {"x-nemo-step": "plan"},
        {"x-nemo-run-budget": "1"},
    ],
)
def test_what_cannot_be_meant_is_refused_and_names_the_header(headers):
    refused = run_of(headers, {})
    assert isinstance(refused, Refusal)
    assert refused.status == 400
    assert refused.param in {*headers, "x-nemo-run-id"}


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("127.0.0.1:4141", True),
        ("[::1]:4141", True),
        ("LOCALHOST:80", True),
        ("gw.example:443", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("localhost:4141/#@evil", False),
        ("127.0.0.1:notaport", False),
        ("", False),
    ],
)
def test_only_the_gateways_own_names_are_answered(host, allowed):
    assert host_allowed(host, ("gw.example",)) is allowed


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (False, None, "void"),
        (True, 400, "void"),
        (True, 429, "void"),
        (True, 500, "void"),
        (True, 503, "void"),
        (True, 502, "expire"),
        (True, 504, "expire"),
        (True, None, "expire"),
    ],
)
def test_only_what_provably_cost_nothing_is_voided(sent, status, kind):
    settled = settle_failure(sent=sent, status=status, hold_nanos=70)
    assert settled == Settlement(kind=kind, amount_nanos=0 if kind == "void" else 70)


def test_an_answer_is_posted_at_its_cost_and_an_unknown_cost_at_the_hold():
    assert settle_answer(cost_nanos=90, hold_nanos=70) == Settlement(kind="post", amount_nanos=90)
    assert settle_answer(cost_nanos=0, hold_nanos=70) == Settlement(kind="post", amount_nanos=0)
    assert settle_answer(cost_nanos=None, hold_nanos=70) == Settlement(kind="expire", amount_nanos=70)


def chunk(delta=None, *, index=0, finish=None, **more):
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **more}


def test_a_stream_is_gathered_into_the_message_it_would_have_been():
    tally = StreamTally(hide_usage=True)
    assert tally.see(chunk({"role": "assistant", "content": ""}, model="m"))
    assert not tally.visible
    assert tally.see(chunk({"content": "Hel"}))
    assert tally.visible
    tally.see(chunk({"content": "lo"}))
    tally.see(chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "search", "arguments": '{"q"'}}]}))
    tally.see(chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, finish="tool_calls"))
    assert not tally.see({"choices": [], "usage": {"prompt_tokens": 3}})
    assert tally.answer == {
        "role": "assistant",
        "content": "Hello",
        "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "search", "arguments": '{"q":1}'}}],
    }
    assert (tally.finish_reason, tally.usage, tally.model) == ("tool_calls", {"prompt_tokens": 3}, "m")


def test_the_usage_chunk_is_shown_to_a_client_that_asked_for_it():
    assert StreamTally(hide_usage=False).see({"choices": [], "usage": {"prompt_tokens": 3}})


@pytest.mark.parametrize(
    "odd",
    [None, 3, [], {"choices": 3}, {"choices": [3]}, chunk({"tool_calls": [3, {"index": -1}, {"index": 10**9}]})],
)
def test_odd_chunks_pass_through_and_break_nothing(odd):
    tally = StreamTally(hide_usage=True)
    assert tally.see(odd)
    assert tally.error is None


def test_an_error_in_a_stream_is_noted():
    tally = StreamTally(hide_usage=True)
    assert tally.see({"error": {"message": "overloaded"}})
    assert tally.error == "overloaded"


def test_a_plain_answer_gives_its_message_or_messages():
    one = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    assert answer_of(one) == ({"content": "a"}, "stop")
    two = {"choices": [{"message": 1, "finish_reason": None}, {"message": 2}]}
    assert answer_of(two) == ([1, 2], None)
    assert answer_of({"choices": "x"}) == (None, None)
