"""The Responses wire: what passes, what is written into a request, and what its streams say."""

from __future__ import annotations

import copy
import json

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.errors import Code
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.wires.base import PreparedCap
from nemo_agents.policy.wires.responses import RESPONSES

ASK = {"model": "gpt-4.1", "input": "hello"}
REFUSAL = Refusal(status=402, code=Code.BUDGET_EXHAUSTED, message="The role's budget is spent.", scope="role")
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
}
USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 5},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 29,
}


def response(status: str, **fields):
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "error": None,
        "output": [],
        "usage": None,
        **fields,
    }


def tally_of(*events):
    tally = RESPONSES.tally(ASK, answers=1)
    assert all(tally.see(event) for event in events)
    return tally


def delta(kind: str, piece: str, **where):
    return {"type": f"response.{kind}.delta", "output_index": 0, "content_index": 0, "delta": piece, **where}


# --- requests -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body",
    [
        {"input": "hello"},
        {"input": [{"role": "user", "content": "hello"}]},
        {"instructions": "Greet."},
        {"prompt": {"id": "pmpt_1"}},
        {"previous_response_id": "resp_0", "input": []},
        {"input": "hello", "background": False, "stream": True, "stream_options": {"include_obfuscation": False}},
        {"input": "hello", "a_field_of_tomorrow": {"x": 1}, "stream": None, "tools": None},
    ],
)
def test_what_can_be_a_request_passes(body):
    assert RESPONSES.check({"model": "gpt-4.1", **body}) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"input": ["hello"]}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * 10_001}, "input"),
        ({"input": "x", "stream": "yes"}, "stream"),
        ({"input": "x", "stream_options": []}, "stream_options"),
        ({"input": "x", "tools": {}}, "tools"),
        ({"input": "x", "tools": [{}] * 513}, "tools"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "background": "later"}, "background"),
    ],
)
def test_what_cannot_be_a_request_is_refused_by_the_field_at_fault(body, param):
    refusal = RESPONSES.check({"model": "gpt-4.1", **body})
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.param) == (400, Code.INVALID_REQUEST, param)
    assert f"`{param}`" in refusal.message


def test_the_prompt_is_the_instructions_and_then_the_input():
    items = [{"role": "user", "content": "a"}, {"type": "function_call_output", "call_id": "c", "output": "b"}]
    assert RESPONSES.prompt({"input": items, "instructions": "Be kind."}) == (
        ("instructions", "input"),
        [{"role": "system", "content": "Be kind."}, *items],
    )
    assert RESPONSES.prompt(ASK)[1] == [{"role": "user", "content": "hello"}]
    assert RESPONSES.prompt({"prompt": {"id": "pmpt_1"}, "input": None})[1] == []


def test_every_way_to_offer_a_tool_is_seen():
    search = {"type": "web_search"}
    body = {
        "tools": [
            {"type": "function", "name": "add"},
            {"type": "custom", "name": "sql"},
            {"type": "namespace", "name": "crm", "tools": [{"type": "function", "name": "find"}, search]},
            search,
            {"type": "mcp", "name": "add"},
            {"type": ["function"], "name": "add"},
            "add",
        ],
        "input": [
            {"role": "user", "content": "x", "tools": "none"},
            {"type": "additional_tools", "role": "developer", "tools": [{"type": "function", "name": "late"}]},
            {"type": {"odd": 1}, "tools": []},
        ],
    }
    assert RESPONSES.tools(body) == ["add", "sql", "find", None, None, None, None, None, "late"]
    assert RESPONSES.tools(ASK) == []


@pytest.mark.parametrize("kind", ["mcp_list_tools", "mcp_approval_response"])
def test_what_goes_on_with_another_server_s_tools_offers_them(kind):
    """Its tools have names of their own, which nobody here has declared."""
    item = {"type": kind, "server_label": "files", "tools": [{"name": "add"}], "approve": True}
    assert RESPONSES.tools({"input": [item]}) == [None]


def test_a_stored_prompt_may_bring_any_tool():
    assert RESPONSES.tools({"prompt": {"id": "pmpt_1"}}) == [None]
    assert RESPONSES.tools({**ASK, "functions": [{"name": "evil"}, "odd"]}) == ["evil", None]
    assert RESPONSES.tools({**ASK, "functions": {"name": "evil"}}) == [None]


def test_a_request_goes_out_with_its_model_its_one_cap_and_its_tier():
    body = {
        **ASK,
        "max_tokens": 5,
        "max_completion_tokens": 5,
        "max_output_tokens": 5,
        "store": False,
        "stream_options": {"include_obfuscation": True},
        "a_field_of_tomorrow": 1,
    }
    before = copy.deepcopy(body)
    cap = PreparedCap(tokens=77, chat_field="max_completion_tokens")
    plain = RESPONSES.prepare(body, model="gpt-4.1-mini", cap=cap, tier="default", stream=False)
    assert plain == {
        "model": "gpt-4.1-mini",
        "input": "hello",
        "max_output_tokens": 77,
        "store": False,
        "service_tier": "default",
        "a_field_of_tomorrow": 1,
    }
    streamed = RESPONSES.prepare({**body, "service_tier": "flex"}, model="m", cap=cap, tier=None, stream=True)
    assert streamed["stream_options"] == {"include_obfuscation": True}  # there is no usage to ask for
    assert streamed["service_tier"] == "flex"
    assert body == before


# --- plain answers --------------------------------------------------------------------------------------------------
def test_a_plain_answer_is_its_items_its_end_and_its_usage():
    answer = response("completed", output=[MESSAGE], usage=USAGE, service_tier="flex")
    assert RESPONSES.answer_of(answer) == ([MESSAGE], "completed")
    assert not RESPONSES.is_error(answer)
    usage = RESPONSES.usage(answer)
    assert usage is not None
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens) == (20, 5, 9, 4)
    assert usage.service_tier == "flex"


def test_an_answer_cut_by_its_cap_says_so():
    answer = response("incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert RESPONSES.answer_of(answer) == (None, "max_output_tokens")
    assert not RESPONSES.is_error(answer)


@pytest.mark.parametrize(
    "answer",
    [
        response("failed"),
        response("cancelled"),
        response("completed", error={"code": "server_error", "message": "x"}),
        {"error": {"message": "x"}},
    ],
)
def test_an_answer_that_failed_is_an_error_whatever_its_status(answer):
    assert RESPONSES.is_error(answer)


def test_odd_answers_are_read_without_trouble():
    odd = {"status": ["completed"], "output": "x", "incomplete_details": "cut", "usage": 7}
    assert not RESPONSES.is_error(odd)
    assert RESPONSES.answer_of(odd) == (None, None)
    assert RESPONSES.usage(odd) is None


# --- streams --------------------------------------------------------------------------------------------------------
def test_a_whole_stream_is_tallied():
    tally = RESPONSES.tally(ASK, answers=1)
    opening = [
        {"type": "response.created", "response": response("in_progress")},
        {"type": "response.in_progress", "response": response("in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": {**MESSAGE, "content": []}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        {"type": "keepalive", "sequence_number": 4},
        delta("output_text", ""),
        None,
        ["odd"],
        {"type": 7},
    ]
    assert all(tally.see(event) for event in opening)
    assert (tally.visible, tally.tokens_seen, tally.ended, tally.said_done) == (False, 0, False, False)
    tally.see(delta("output_text", "Hel"))
    tally.see(delta("output_text", "l" * 129))
    assert (tally.visible, tally.tokens_seen) == (True, 3)
    assert (tally.finished, tally.usage, tally.told) == (False, None, None)
    last = response("completed", output=[MESSAGE], usage=USAGE, service_tier="priority")
    tally.see({"type": "response.completed", "response": last})
    assert (tally.finished, tally.ended, tally.said_done, tally.error) == (True, True, True, None)
    assert (tally.answer, tally.finish_reason) == ([MESSAGE], "completed")
    assert tally.usage is not None
    assert (tally.usage.output_tokens, tally.usage.service_tier) == (9, "priority")


@pytest.mark.parametrize(
    "shown",
    [
        delta("refusal", "No"),
        delta("reasoning_text", "hm"),
        delta("reasoning_summary_text", "hm", summary_index=0),
        delta("function_call_arguments", "{"),
        delta("custom_tool_call_input", "x"),
        {"type": "response.audio.transcript.delta", "delta": "hi"},
        {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f", "arguments": ""}},
        {"type": "response.output_item.done", "item": MESSAGE},
        {"type": "response.web_search_call.searching", "item_id": "ws_1"},
        {"type": "response.audio.delta", "delta": "AAAA"},
        {"type": "response.a_step_of_tomorrow.delta", "delta": {"x": 1}},
    ],
)
def test_the_first_sign_of_an_answer_makes_it_visible(shown):
    tally = tally_of({"type": "response.created", "response": response("in_progress")})
    assert not tally.visible
    tally.see(shown)
    assert tally.visible
    if "text" in shown["type"] or "arguments" in shown["type"] or "transcript" in shown["type"]:
        assert tally.tokens_seen == 1


def test_a_broken_stream_leaves_what_it_said():
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": ""}
    tally = tally_of(
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}},
        delta("reasoning_summary_text", "I ", summary_index=0),
        delta("reasoning_summary_text", "think", summary_index=0),
        {"type": "response.output_item.added", "output_index": 1, "item": {**MESSAGE, "content": []}},
        delta("output_text", "Hel", output_index=1),
        delta("output_text", "lo", output_index=1),
        delta("refusal", "No", output_index=1, content_index=1),
        {"type": "response.output_item.added", "output_index": 2, "item": call},
        delta("function_call_arguments", '{"a"', output_index=2),
        {"type": "response.output_item.done", "output_index": 3, "item": MESSAGE},
        delta("custom_tool_call_input", "x", output_index="odd"),
    )
    tally.done()  # `[DONE]` alone ends nothing
    assert (tally.ended, tally.said_done, tally.usage) == (False, False, None)
    assert tally.answer == [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I think"}], "input": "x"},
        {**MESSAGE, "content": [{"type": "output_text", "text": "Hello"}, {"type": "refusal", "refusal": "No"}]},
        {**call, "arguments": '{"a"'},
        MESSAGE,
    ]


def test_a_stream_that_is_cut_by_its_cap_has_ended():
    last = response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=USAGE)
    tally = tally_of(delta("output_text", "Hel"), {"type": "response.incomplete", "response": last})
    assert (tally.ended, tally.finish_reason) == (True, "max_output_tokens")
    assert tally.usage is not None
    assert tally.answer == [{"content": [{"type": "output_text", "text": "Hel"}]}]  # the last event held none


def test_a_terminal_event_without_usage_leaves_the_usage_unknown():
    early = {"type": "response.in_progress", "response": response("in_progress", usage=USAGE)}
    tally = tally_of(early, {"type": "response.completed", "response": response("completed")})
    assert tally.ended
    assert tally.usage is None
    assert tally.told is not None


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": "error", "code": "server_error", "message": "It broke.", "param": None}, "It broke."),
        ({"type": "error", "code": "server_error", "message": None}, "server_error"),
        ({"type": "error", "error": {"message": "Nested."}}, "Nested."),
        ({"error": {"message": "As chat has it."}}, "As chat has it."),
        ({"error": "Bare."}, "Bare."),
        (
            {"type": "response.failed", "response": response("failed", error={"code": "x", "message": "Late."})},
            "Late.",
        ),
        ({"type": "response.failed", "response": response("failed")}, "The response failed, and does not say why."),
    ],
)
def test_an_error_in_a_stream_is_no_end_and_shows_nothing(event, error):
    tally = tally_of({"type": "response.created", "response": response("in_progress")}, event)
    assert (tally.error, tally.ended, tally.visible, tally.usage) == (error, False, False, None)


NAMES = ["type", "delta", "item", "response", "error", "usage", "output", "status", "output_index", "content_index"]
KINDS = ["response.output_item.added", "response.completed", "response.output_text.delta", "message", "function_call"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(KINDS) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_no_event_is_too_odd_to_be_tallied(events):
    tally = tally_of(*events)
    assert isinstance(tally.answer, list | None)
    assert tally.usage is None or tally.ended
    assert not (tally.ended and tally.error)


def test_what_a_failed_response_used_is_told():
    failed = response("failed", error={"code": "server_error", "message": "x"}, usage=USAGE)
    tally = tally_of({"type": "response.failed", "response": failed})
    assert tally.told is not None
    assert tally.told.output_tokens == 9
    assert tally.said_done


# --- errors, as the real client reads them --------------------------------------------------------------------------
def transport(status: int, content: bytes, kind: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(status, content=content, headers={"content-type": kind}))


def client(status: int, content: bytes, kind: str = "text/event-stream") -> openai.OpenAI:
    http = httpx.Client(transport=transport(status, content, kind))
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


def async_client(content: bytes) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(transport=transport(200, content, "text/event-stream"))
    return openai.AsyncOpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


CREATED = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
BROKEN = b"event: response.created\ndata: " + json.dumps(CREATED).encode() + b"\n\n"


def check_raised(error: openai.APIError):
    assert REFUSAL.message in str(error)
    assert error.code == "budget_exhausted"
    assert error.body["scope"] == "role"


def test_a_stream_that_breaks_raises_in_the_client():
    content = BROKEN + RESPONSES.stream_error(REFUSAL, "req_1")
    seen = []
    with pytest.raises(openai.APIError) as raised:
        seen.extend(client(200, content).responses.create(model="m", input="x", stream=True))
    assert [event.type for event in seen] == ["response.created"]
    check_raised(raised.value)
    with (
        client(200, content).responses.stream(model="m", input="x") as stream,
        pytest.raises(openai.APIError) as raised,
    ):
        stream.until_done()
    check_raised(raised.value)


async def test_a_stream_that_breaks_raises_in_the_asynchronous_client():
    content = BROKEN + RESPONSES.stream_error(REFUSAL, "req_1")
    async with async_client(content).responses.stream(model="m", input="x") as stream:
        with pytest.raises(openai.APIError) as raised:
            await stream.until_done()
    check_raised(raised.value)


def test_the_error_event_is_also_what_the_reference_describes():
    head, data = RESPONSES.stream_error(REFUSAL, "req_1").decode().strip().split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert head == "event: error"
    assert told["request_id"] == "req_1"
    assert told | {"type": "error", "code": "budget_exhausted", "message": REFUSAL.message, "param": None} == told
    assert isinstance(told["sequence_number"], int)


def test_a_refusal_raises_with_its_envelope():
    content = json.dumps(RESPONSES.error_body(REFUSAL, "req_1")).encode()
    with pytest.raises(openai.APIStatusError) as raised:
        client(402, content, "application/json").responses.create(model="m", input="x")
    assert raised.value.status_code == 402
    check_raised(raised.value)
