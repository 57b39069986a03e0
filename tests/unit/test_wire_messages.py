"""Anthropic's Messages as a wire of the gateway: how it is checked, capped, counted, and how it says no."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from nemo_agents.errors import Code
from nemo_agents.policy.refusal import Refusal, Tried
from nemo_agents.policy.usage import Usage
from nemo_agents.policy.wires.base import PreparedCap
from nemo_agents.policy.wires.messages import MESSAGES

ASK: dict[str, Any] = {"model": "claude", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}


def asked(**more):
    return {**ASK, **more}


def prepared(body, *, tier=None):
    return MESSAGES.prepare(body, model="claude-x", cap=PreparedCap(tokens=7), tier=tier, stream=False)


def events(*data):
    return b"".join(b"event: %s\ndata: %s\n\n" % (d["type"].encode(), json.dumps(d).encode()) for d in data)


def client(status, body, content_type="application/json", **headers):
    """The real client, answered by a gateway that says just this."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body, headers={"content-type": content_type, **headers})

    transport = httpx.MockTransport(answer)
    return anthropic.Anthropic(
        api_key="sk-nemo-x", base_url="http://gw", http_client=httpx.Client(transport=transport), max_retries=0
    )


# --- requests -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (asked(messages=None), "messages"),
        (asked(messages=[]), "messages"),
        (asked(messages=[{"content": "no role"}]), "messages"),
        (asked(messages=[ASK["messages"][0]] * 10_001), "messages"),
        (asked(max_tokens=None), "max_tokens"),
        (asked(max_tokens=0), "max_tokens"),
        (asked(max_tokens=True), "max_tokens"),
        (asked(max_tokens=1.5), "max_tokens"),
        (asked(max_tokens=10**9), "max_tokens"),
        (asked(system=7), "system"),
        (asked(system=["text"]), "system"),
        (asked(stream="yes"), "stream"),
        (asked(tools={"name": "f"}), "tools"),
    ],
)
def test_what_cannot_be_a_request_is_refused_by_its_field(body, param):
    refusal = MESSAGES.check(body)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.param) == (400, Code.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    "body", [ASK, asked(system="s", stream=True, tools=[]), asked(system=[{"type": "text", "text": "s"}], odd=1)]
)
def test_a_request_passes_with_whatever_else_it_holds(body):
    assert MESSAGES.check(body) is None


def test_the_prompt_is_the_system_and_the_messages():
    assert MESSAGES.prompt(ASK) == (("system", "messages"), ASK["messages"])
    assert MESSAGES.prompt(asked(system="be kind"))[1] == [{"role": "system", "content": "be kind"}, *ASK["messages"]]


def test_only_tools_that_the_client_runs_have_a_name():
    tools = [
        {"name": "look", "input_schema": {"type": "object"}},
        {"type": "custom", "name": "find", "input_schema": {"type": "object"}},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "memory_20250818", "name": "memory"},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "computer_toolset_20260801", "name": "computer"},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
        {"type": "function", "name": "look"},
        {"name": 7},
        "odd",
    ]
    named = ["look", "find", "bash", "str_replace_based_edit_tool", "memory"]
    assert MESSAGES.tools(asked(tools=tools)) == [*named, *[None] * 7]
    assert MESSAGES.tools(ASK) == []
    assert MESSAGES.tools(asked(tools=[], functions=[{"name": "evil"}])) == ["evil"]


def test_only_model_cap_and_tier_are_written_into_a_request():
    body = asked(thinking={"type": "enabled", "budget_tokens": 50}, odd=1, max_output_tokens=100)
    before = json.dumps(body)
    assert prepared(body) == {**ASK, "model": "claude-x", "max_tokens": 7, "thinking": body["thinking"], "odd": 1}
    assert json.dumps(body) == before


@pytest.mark.parametrize(
    ("tier", "written"), [("default", "standard_only"), ("standard", "standard_only"), ("auto", "auto")]
)
def test_a_pinned_tier_has_anthropics_name(tier, written):
    assert prepared(ASK, tier=tier)["service_tier"] == written
    assert "service_tier" not in prepared(ASK)


def test_thoughts_without_a_signature_do_not_reach_anthropic():
    """Another wire's model wrote them in an earlier turn; Anthropic would refuse the whole conversation."""
    said = {"type": "text", "text": "4"}
    signed, redacted = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}, {"type": "redacted_thinking"}
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    turns = [{"role": "assistant", "content": [unsigned, signed, redacted, said]}, *ASK["messages"]]
    assert prepared(asked(messages=turns))["messages"] == [
        {"role": "assistant", "content": [signed, redacted, said]},
        *ASK["messages"],
    ]
    assert turns[0]["content"][0] is unsigned


# --- answers --------------------------------------------------------------------------------------------------------
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5,
        "cache_read_input_tokens": 3,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
        "service_tier": "standard",
    },
}


def test_a_plain_answer_is_read():
    assert not MESSAGES.is_error(MESSAGE)
    assert MESSAGES.answer_of(MESSAGE) == ({"role": "assistant", "content": MESSAGE["content"]}, "end_turn")
    assert MESSAGES.usage(MESSAGE) == Usage(
        input_tokens=8, output_tokens=9, cached_tokens=3, reasoning_tokens=4, service_tier="standard"
    )


def test_an_error_with_status_200_is_an_error():
    assert MESSAGES.is_error({"type": "error", "error": {"type": "overloaded_error", "message": "x"}})
    assert MESSAGES.answer_of({"type": "error"}) == (None, None)
    assert MESSAGES.usage({"type": "error"}) is None


# --- streams --------------------------------------------------------------------------------------------------------
def block(index, start, *deltas):
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


STREAM: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            **MESSAGE,
            "content": [],
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1},
        },
    },
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "let me "},
        {"type": "thinking_delta", "thinking": "see"},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    *block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "It "},
        {"type": "text_delta", "text": "is"},
        {"type": "citations_delta", "citation": {"cited_text": "c"}},
    ),
    *block(
        2,
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"a'},
        {"type": "input_json_delta", "partial_json": '": 1}'},
    ),
    *block(3, {"type": "tool_use", "id": "toolu_2", "name": "list", "input": {}}),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use"},
        "usage": {"output_tokens": 40, "input_tokens": None},
    },
    {"type": "message_stop"},
]


def tallied(*chunks):
    tally = MESSAGES.tally(asked(stream=True), answers=1)
    assert all(tally.see(chunk) for chunk in chunks)
    return tally


def test_a_stream_is_gathered_as_the_client_gathers_it():
    tally = tallied(*STREAM)
    with client(200, events(*STREAM), "text/event-stream").messages.stream(**ASK) as stream:
        final = stream.get_final_message()
    assert tally.answer == {"role": "assistant", "content": [b.to_dict() for b in final.content]}
    assert tally.answer["content"][2]["input"] == {"a": 1}
    assert tally.answer["content"][3]["input"] == {}
    assert tally.finish_reason == final.stop_reason == "tool_use"
    assert tally.usage == Usage(input_tokens=8, output_tokens=40, cached_tokens=3)
    assert tally.tokens_seen == 40
    assert (tally.visible, tally.ended, tally.said_done, tally.error) == (True, True, True, None)


def test_a_stream_that_breaks_off_has_told_its_input_and_ends_nothing():
    tally = tallied(*STREAM[:9])
    assert tally.told == Usage(input_tokens=8, output_tokens=1, cached_tokens=3)
    assert tally.usage is None
    assert not tally.ended
    assert not tally.finished
    assert tally.tokens_seen == 3  # two pieces of thought, one of text


def test_nothing_is_visible_before_the_first_word():
    assert not tallied(*STREAM[:3]).visible
    assert tallied(*STREAM[:4]).visible
    assert tallied(STREAM[0], *block(0, {"type": "tool_use", "id": "t", "name": "f", "input": {}})).visible


def test_the_last_word_is_message_stop():
    tally = tallied(*STREAM[:-1])
    assert (tally.ended, tally.said_done) == (True, False)
    assert tally.usage is not None


def test_what_message_delta_says_of_the_input_corrects_the_beginning():
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": 6, "output_tokens": 2},
    }
    assert tallied(STREAM[0], end).usage == Usage(input_tokens=9, output_tokens=2, cached_tokens=3)


def test_an_error_in_the_stream_is_no_end():
    tally = tallied(*STREAM[:6], {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert tally.error == "Overloaded"
    assert not tally.ended
    assert tally.usage is None


def test_odd_chunks_say_nothing():
    odd = [
        {"type": ["odd"]},
        {"type": "content_block_delta"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": ["odd"]}},
        {"type": "content_block_start", "index": "0", "content_block": {}},
        {"type": "message_start"},
        {"type": "message_delta"},
    ]
    tally = tallied(None, [], "x", *odd)
    assert (tally.visible, tally.ended, tally.told, tally.tokens_seen) == (False, False, None, 0)
    assert MESSAGES.tally(ASK, answers=1).answer is None


def test_a_call_that_broke_off_is_kept_as_the_text_it_was():
    call = {"type": "tool_use", "input": {}}
    start, delta, _ = block(0, call, {"type": "input_json_delta", "partial_json": '{"a'})
    tally = tallied(start, delta)
    assert tally.answer["content"] == [{"type": "tool_use", "input": '{"a'}]


# --- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (402, anthropic.APIStatusError, "billing_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (502, anthropic.InternalServerError, "api_error"),
        (503, anthropic.InternalServerError, "api_error"),
        (504, anthropic.InternalServerError, "timeout_error"),
        (529, anthropic.APIStatusError, "overloaded_error"),
    ],
)
def test_the_client_raises_its_own_error_with_what_we_add(status, error, kind):
    refusal = Refusal(
        status=status,
        code=Code.UPSTREAM_ERROR,
        message="No. Do this.",
        param="p",
        scope="role",
        limit="budget",
        resets_at_us=0,
        retry_after_ms=10,
        attempts=(Tried(n=1, provider="anthropic", model="claude", status=status, error="x"),),
    )
    body = json.dumps(MESSAGES.error_body(refusal, "req_1"))
    with pytest.raises(error) as raised:
        client(status, body.encode()).messages.create(**ASK)
    assert raised.value.status_code == status
    assert raised.value.type == kind
    assert raised.value.body["type"] == "error"
    assert raised.value.body["request_id"] == "req_1"
    told = raised.value.body["error"]
    assert (told["message"], told["code"], told["param"]) == ("No. Do this.", "upstream_error", "p")
    assert (told["scope"], told["limit"], told["retry_after_ms"]) == ("role", "budget", 10)
    assert told["resets_at"] == "1970-01-01T00:00:00+00:00"
    assert told["attempts"][0]["provider"] == "anthropic"


def test_the_client_raises_an_error_that_ends_a_stream():
    refusal = Refusal(status=502, code=Code.UPSTREAM_ERROR, message="It broke off.")
    body = events(*STREAM[:4]) + MESSAGES.stream_error(refusal, "req_1")
    with (
        client(200, body, "text/event-stream").messages.stream(**ASK) as stream,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        stream.get_final_message()
    assert raised.value.type == "api_error"
    assert raised.value.body["error"]["code"] == "upstream_error"
