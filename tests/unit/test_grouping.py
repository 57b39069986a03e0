"""Which run and step a call belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.grouping import RunRef, is_run_id, run_of
from nemo_agents.policy.hosts import host_allowed, is_loopback, is_loopback_url
from nemo_agents.policy.ledger import RunCaps, Settlement
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.settlement import is_own_error, settle_answer, settle_failure
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
    ("headers", "body", "name"),
    [
        ({}, {"metadata": {"session_id": "Chat with Bob"}}, "Chat with Bob"),
        ({"x-acme-session-id": "sess 1"}, {}, "sess 1"),
        ({"x-litellm-session-id": "caf\u00e9"}, {}, "caf\u00e9"),
        ({"x-acme-session-id": "req_0123"}, {}, "req_0123"),
        ({"x-acme-session-id": "last"}, {}, "last"),
        ({}, {"session_id": "\ud800\x00"}, None),
    ],
)
def test_anothers_session_id_may_be_any_text(headers, body, name):
    """The run gets an id that follows from the text, the same each time, and the text as its name."""
    run = run_of(headers, body)
    assert run == run_of(headers, body)
    assert is_run_id(run.run_id)
    assert run.run_id.startswith("s-")
    assert run.name == name


@pytest.mark.parametrize("zero", [f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01"])
def test_a_trace_of_zeros_is_no_trace(zero):
    """W3C Trace Context, section 3.2.2: all zeros is invalid."""
    assert run_of({"traceparent": zero}, {}).run_id is None


@pytest.mark.parametrize(
    "headers",
    [
        {"x-nemo-run-id": "has space"},
        {"x-nemo-run-id": "last"},
        {"x-nemo-run-id": "req_0123"},
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
    assert host_allowed(host, ("GW.example",)) is allowed
    assert host_allowed(host, lambda name: name == "gw.example") is allowed


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("gateway.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(host, here):
    assert is_loopback(host) is here
    assert is_loopback_url(f"http://{f'[{host}]' if ':' in host else host}:4141/v1") is here


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (False, None, "void"),
        (True, 201, "expire"),
        (True, 202, "expire"),
        (True, 204, "expire"),
        (True, 302, "expire"),
        (True, 400, "void"),
        (True, 429, "void"),
        (True, 408, "void"),
        (True, 500, "void"),
        (True, 503, "void"),
        (True, 502, "expire"),
        (True, 504, "expire"),
        (True, None, "expire"),
    ],
)
def test_only_what_provably_cost_nothing_is_voided(sent, status, kind):
    settled = settle_failure(sent=sent, status=status, own_error=True, hold_nanos=70)
    assert settled == Settlement(kind=kind, amount_nanos=0 if kind == "void" else 70)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "void"), (401, "void"), (429, "void"), (408, "expire"), (500, "expire"), (503, "expire"), (529, "expire")],
)
def test_what_is_not_in_the_provider_s_own_words_may_have_been_served(status, kind):
    """Something in between says 408 and 5xx after the backend has done the work; a 4xx refuses, whoever gives it."""
    assert settle_failure(sent=True, status=status, own_error=False, hold_nanos=70).kind == kind


@given(st.booleans(), st.none() | st.integers(100, 999), st.booleans(), st.integers(0, 10**12))
def test_a_hold_is_voided_only_for_what_was_not_sent_or_was_refused(sent, status, own_error, hold_nanos):
    settled = settle_failure(sent=sent, status=status, own_error=own_error, hold_nanos=hold_nanos)
    if settled.kind == "void":
        assert not sent or (status is not None and 400 <= status < 600)
        assert not sent or own_error or (status != 408 and status < 500)
        assert settled.amount_nanos == 0
    else:
        assert settled == Settlement(kind="expire", amount_nanos=hold_nanos)


def test_an_answer_is_posted_at_its_cost_and_an_unknown_cost_at_the_hold():
    assert settle_answer(cost_nanos=90, hold_nanos=70) == Settlement(kind="post", amount_nanos=90)
    assert settle_answer(cost_nanos=0, hold_nanos=70) == Settlement(kind="post", amount_nanos=0)
    assert settle_answer(cost_nanos=None, hold_nanos=70) == Settlement(kind="expire", amount_nanos=70)


def chunk(delta=None, *, index=0, finish=None, **more):
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **more}


def test_a_stream_is_gathered_into_the_message_it_would_have_been():
    tally = StreamTally(hide_usage=True)
    assert tally.see(chunk({"role": "assistant", "content": ""}))
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
    assert tally.finish_reason == "tool_calls"


_KEYS = st.sampled_from(["content", "refusal", "reasoning", "reasoning_content", "name", "arguments"])


@given(st.lists(st.tuples(st.integers(0, 2), _KEYS, st.text(max_size=5)), max_size=40))
def test_pieces_come_together_in_order_however_they_are_cut(pieces):
    tally, whole = StreamTally(hide_usage=True), {}
    for index, key, piece in pieces:
        in_call = {"tool_calls": [{"index": 0, "function": {key: piece}}]}
        tally.see(chunk(in_call if key in {"name", "arguments"} else {key: piece}, index=index))
        whole.setdefault(index, {}).setdefault(key, []).append(piece)
    answers = tally.answer if isinstance(tally.answer, list) else [tally.answer] if tally.answer else []
    assert len(answers) == len(whole)
    for answer, (_, texts) in zip(answers, sorted(whole.items()), strict=True):
        function = answer["tool_calls"][0]["function"] if "tool_calls" in answer else {}
        for key, said in texts.items():
            assert {**answer, **function}[key] == "".join(said)


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


@pytest.mark.parametrize(
    ("said", "own"),
    [
        ({"error": {"message": "overloaded", "type": "server_error"}}, True),
        ({"error": {"code": 503}}, True),
        ({"error": "model is loading"}, True),
        ({"type": "error", "error": {"type": "overloaded_error"}}, True),
        ([{"error": {"code": 503, "status": "UNAVAILABLE"}}], True),  # Gemini
        ({"object": "error", "message": "no", "type": "InternalServerError"}, True),  # vLLM, Mistral
        ({"message": "Service Unavailable"}, False),  # a gateway in front of the provider
        ({"message": "no", "type": None}, False),
        ({"error": None}, False),
        ({"error": ""}, False),
        ({"error": {}}, False),
        ({"error": True}, False),
        ({}, False),
        ([], False),
        ([1, 2], False),
        ("error", False),
        (None, False),
    ],
)
def test_a_provider_s_own_error_is_told_from_what_stands_in_between(said, own):
    assert is_own_error(said) is own


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
