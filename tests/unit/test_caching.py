"""Which requests a cache of answers may serve, and when two of them are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.caching import key_of, may_read
from nemo_agents.policy.keys import Grant

GRANT = Grant(grant_id="g_1", fleet="crew", role="writer", cache_ttl_s=600, updated_us=7)
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}


def key(body=BODY, *, grant=GRANT, wire="chat", headers=None, guardrails=()):
    return key_of(grant, wire, body, headers or {}, guardrails=guardrails)


def test_the_same_request_has_the_same_key_in_whatever_order_it_is_written():
    assert key() == key(dict(reversed(BODY.items())))
    assert len(key()) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gpt-4o-mini"},
        {"messages": [{"role": "user", "content": "hi "}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"temperature": 0.5},
        {"seed": 1},
        {"n": 2},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"tools": [TOOL]},
        {"max_tokens": 10},
        {"an_unknown_field": 1},
        {"nemo_sandbox": {"reply": "x"}},
    ],
    ids="-".join,
)
def test_whatever_a_provider_sees_makes_another_request(change):
    assert key({**BODY, **change}) not in (None, key())


@pytest.mark.parametrize(
    "change",
    [
        {"user": "somebody"},
        {"metadata": {"session_id": "s-1"}},
        {"litellm_session_id": "s-1"},
        {"session_id": "s-1"},
        {"prompt_cache_key": "k"},
        {"nemo_guardrail_ids": ["pii-filter"]},
        {"store": False},
        {"tools": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_who_asks_and_in_which_run_makes_no_other_request(change):
    found = key({**BODY, **change})
    expected = key() if next(iter(change)) not in ("store", "tools") else found
    assert found == expected is not None


def test_two_keys_share_nothing_and_a_changed_key_begins_anew():
    assert key(grant=replace(GRANT, grant_id="g_2")) != key()
    assert key(grant=replace(GRANT, updated_us=8)) != key()
    assert key(grant=replace(GRANT, last_used_us=9)) == key()
    assert key(wire="messages") != key()
    assert key(guardrails=("pii-filter",)) != key()
    assert key(headers={"anthropic-beta": "x"}) != key()
    assert key(headers={"anthropic-version": "x"}) != key(headers={"anthropic-beta": "x"})
    assert key(headers={"x-nemo-run-id": "r", "user-agent": "u"}) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"store": True},
        {"background": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"web_search_options": {"search_context_size": "low"}},
        {"mcp_servers": [{"url": "https://tools.example"}]},
        {"tools": [TOOL, {"type": "web_search"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": ["odd"]}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_a_provider_keeps_or_looks_up_is_neither_looked_for_nor_kept(change):
    assert key({**BODY, **change}) is None


@pytest.mark.parametrize("stored", [{"id": "pmpt_1"}, {}, ""])
def test_a_prompt_that_is_stored_at_the_provider_is_no_part_of_the_request(stored):
    """It may be another one tomorrow, and brings tools of its own. On the legacy wire the word means the text."""
    assert key({"model": "m", "input": "hi", "prompt": stored}, wire="responses") is None
    assert key({"model": "m", "input": "hi", "prompt": None}, wire="responses") is not None
    assert key({"model": "m", "prompt": "Once upon"}, wire="completions") is not None


@pytest.mark.parametrize("kind", ["additional_tools", "tool_search_output"])
def test_tools_within_the_input_are_tools(kind):
    said = {"role": "user", "content": "hi"}
    for tools, kept in (([TOOL], True), ([TOOL, {"type": "mcp", "server_url": "https://x/"}], False), (None, True)):
        body = {"model": "m", "input": [said, {"type": kind, "tools": tools}]}
        assert (key(body, wire="responses") is not None) is kept
    assert key({"model": "m", "input": ["a text", 3]}, wire="embeddings") is not None


def test_tools_of_the_client_are_part_of_the_request():
    anthropic = {"name": "look_up", "input_schema": {}}
    assert key({**BODY, "tools": [TOOL]}) is not None
    assert key({**BODY, "tools": [anthropic]}) is not None
    assert key({**BODY, "tools": [{**anthropic, "type": "custom"}]}) is not None


def test_a_role_without_a_cache_has_no_keys():
    assert key(grant=replace(GRANT, cache_ttl_s=None)) is None


@pytest.mark.parametrize(
    ("told", "kept", "read"),
    [
        (None, True, True),
        ("max-age=60", True, True),
        ("no-cache", True, False),
        ("No-Cache, max-age=60", True, False),
        ("max-age = 0", True, False),
        ("no-store", False, False),
        ("private,NO-STORE", False, False),
    ],
)
def test_cache_control_is_obeyed(told, kept, read):
    headers = {} if told is None else {"cache-control": told}
    assert (key(headers=headers) is not None) is kept
    assert may_read(headers) is read


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(one=st.dictionaries(st.sampled_from("abcd"), JSON), other=st.dictionaries(st.sampled_from("abcd"), JSON))
def test_keys_are_equal_exactly_when_the_bodies_are(one, other):
    assert (key(one) == key(other)) is (_plain(one) == _plain(other))


def _plain(value):
    """Tell True from 1, which Python takes for equal and JSON does not."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return (type(value).__name__, value)
