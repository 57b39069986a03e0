"""Responses told as Chat Completions and back, read with the real OpenAI client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from nemo_agents.policy.sse import SseSplitter
from nemo_agents.policy.wires.base import UntranslatableError
from nemo_agents.policy.wires.responses import RESPONSES
from nemo_agents.policy.wires.responses_chat import RESPONSES_AS_CHAT

ASK: dict[str, Any] = {"model": "gpt-4.1", "input": "hello"}
EVENT = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Look outside.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
USAGE = {
    "prompt_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens": 7,
    "completion_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 19,
}
HEAD = {"id": "chatcmpl-abc", "created": 1_700_000_000, "model": "llama-3.3-70b", "service_tier": "default"}


def request(**fields: Any) -> dict[str, Any]:
    return RESPONSES_AS_CHAT.request({**ASK, **fields})


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return request(input=list(items), **fields)["messages"]


def chat(message: dict[str, Any], reason: str = "stop", **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE, **fields}


def chunk(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], **fields}


def call(index: int, arguments: str, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    part: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if name is not None:
        part["function"]["name"] = name
    return part if call_id is None else {**part, "id": call_id, "type": "function"}


def told(*chunks: object, body: dict[str, Any] = ASK) -> bytes:
    stream = RESPONSES_AS_CHAT.stream(body)
    return b"".join([stream.feed(each) for each in chunks]) + stream.end()


def read(content: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream, each of which must fit the client's own types and follow the one before."""
    events = []
    for raw in SseSplitter().feed(content):
        assert raw.data is not None
        event = json.loads(raw.data)
        assert event["type"] == raw.event
        if event["type"] != "error":
            EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# --- requests -------------------------------------------------------------------------------------------------------
def test_a_request_keeps_what_chat_names_alike_and_renames_the_rest():
    assert request(
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.2,
        top_p=0.9,
        user="u",
        metadata={"a": "b"},
        seed=7,
        a_field_of_tomorrow=[1],
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "text"}},
        store=True,
        truncation="auto",
        stream=True,
        stream_options={"include_obfuscation": False},
        include=["reasoning.encrypted_content"],
        previous_response_id=None,
    ) == {
        "model": "gpt-4.1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "temperature": 0.2,
        "top_p": 0.9,
        "user": "u",
        "metadata": {"a": "b"},
        "seed": 7,
        "a_field_of_tomorrow": [1],
        "reasoning_effort": "low",
        "verbosity": "low",
        "stream": True,
    }


def test_messages_keep_their_texts_images_and_sound():
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    assert messages(
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "d"},
                {"type": "input_image", "image_url": "https://x/i.png", "detail": "low"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "file_id": None},
                sound,
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "e", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "f"}]},
    ) == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "c"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "d"},
                {"type": "image_url", "image_url": {"url": "https://x/i.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                sound,
            ],
        },
        {"role": "assistant", "content": "e"},
        {"role": "assistant", "content": "f"},
    ]


def test_what_one_turn_says_and_calls_is_one_message():
    def use(call_id: str) -> dict[str, Any]:
        return {"type": "function_call", "id": "fc", "call_id": call_id, "name": "weather", "arguments": "{}"}

    def used(call_id: str) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}

    def output(call_id: str, given: Any) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": call_id, "output": given}

    assert messages(
        {"role": "user", "content": "x"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"},
        {"role": "assistant", "content": "Let me look."},
        use("c1"),
        use("c2"),
        {"role": "assistant", "content": "One moment."},
        output("c1", "sun"),
        output("c2", [{"type": "input_text", "text": "rain"}]),
        use("c3"),
        {"role": "assistant", "content": "And here?"},
        output("c3", "fog"),
        {"type": "custom_tool_call", "call_id": "c4", "name": "sql", "input": "select 1"},
        {"type": "custom_tool_call_output", "call_id": "c4", "output": "1"},
    ) == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Let me look.\nOne moment.", "tool_calls": [used("c1"), used("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "rain"},
        {"role": "assistant", "content": "And here?", "tool_calls": [used("c3")]},
        {"role": "tool", "tool_call_id": "c3", "content": "fog"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c4", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}],
        },
        {"role": "tool", "tool_call_id": "c4", "content": "1"},
    ]


def test_tools_and_the_choice_among_them_are_nested():
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
    told = request(
        tools=[{**WEATHER, "defer_loading": False}, {"type": "custom", "name": "sql", "format": grammar}],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
    )
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    custom = {
        "name": "sql",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}},
    }
    assert told["tools"] == [{"type": "function", "function": function}, {"type": "custom", "custom": custom}]
    assert told["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert told["parallel_tool_calls"] is False
    assert request(tools=[WEATHER], tool_choice="required")["tool_choice"] == "required"


def test_without_tools_there_is_no_choice_among_them():
    assert request(tools=[], tool_choice="auto", parallel_tool_calls=True).keys() == {"model", "messages"}


def test_of_the_tools_only_the_allowed_ones_are_offered():
    other = {"type": "function", "name": "other", "parameters": {}}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    told = request(tools=[WEATHER, other], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in told["tools"]] == ["other"]
    assert told["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": None},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_a_format_is_told(form, told):
    assert request(text={"format": form})["response_format"] == told


def test_logprobs_are_asked_for_where_they_are_wanted():
    wanted = request(include=["message.output_text.logprobs"], top_logprobs=3)
    assert (wanted["logprobs"], wanted["top_logprobs"]) == (True, 3)
    assert request(include=["message.output_text.logprobs"])["logprobs"] is True
    assert "logprobs" not in request(top_logprobs=0)


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "x"}, fields]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": ["weather"]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}},
            "tool_choice.tools",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"n": 2}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"instructions": 7}, "instructions"),
        (item(type="item_reference", id="msg_1"), "input[1]"),
        (item(id="msg_1"), "input[1]"),
        (item(type="web_search_call", id="ws_1"), "input[1]"),
        (item(type=["message"]), "input[1]"),
        (item(role="tool", content="x"), "input[1].role"),
        (item(role=["user"], content="x"), "input[1].role"),
        (item(role="user", content=None), "input[1].content"),
        (item(role="user", content=[{"type": "input_file", "file_id": "file_1"}]), "input[1].content[0]"),
        (item(role="user", content=[{"type": "input_image", "file_id": "file_1"}]), "input[1].content[0]"),
        (item(role="user", content=["x"]), "input[1].content[0]"),
        (item(role="system", content=[{"type": "input_image", "image_url": "x"}]), "input[1].content[0]"),
        (item(type="function_call_output", output="x"), "input[1].call_id"),
        (
            item(type="function_call_output", call_id="c", output=[{"type": "input_image", "image_url": "x"}]),
            "input[1].output[0]",
        ),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input"),
    ],
)
def test_what_chat_has_no_words_for_is_named(body, param):
    with pytest.raises(UntranslatableError) as raised:
        RESPONSES_AS_CHAT.request({**ASK, **body})
    assert raised.value.param == param
    assert f"`{param}" in str(raised.value)


NAMES = ["type", "role", "content", "text", "call_id", "name", "tools", "format", "output", "mode", "image_url"]
KINDS = [
    "message",
    "function_call",
    "function",
    "custom",
    "allowed_tools",
    "input_text",
    "input_image",
    "user",
    "grammar",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=15,
)
FIELDS = [
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "include",
    "top_logprobs",
    "prompt",
    "n",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_whatever_passes_the_check_is_translated_or_named(fields):
    body = {**ASK, **fields}
    if RESPONSES.check(body) is not None:
        return
    param, told = None, {}
    try:
        told = RESPONSES_AS_CHAT.request(body)
    except UntranslatableError as error:
        param = error.param
    assert told.get("messages") if param is None else param.split("[")[0].split(".")[0] in body


@given(st.lists(JSON, max_size=3))
def test_no_chunk_is_too_odd_to_be_told(odd):
    names = ("delta", "message", "tool_calls", "function", "choices", "usage", "logprobs", "id", "finish_reason")
    chunks = [dict.fromkeys(names, value) for value in odd]
    chunks += [
        {"choices": [each, {"delta": each, "logprobs": {"content": each}}, {"delta": value}]}
        for each in chunks
        for value in odd
    ]
    assert kinds(read(told(*odd, *chunks)))[-1] in ("completed", "incomplete")


# --- plain answers --------------------------------------------------------------------------------------------------
def test_a_plain_answer_is_a_response():
    body = {**ASK, "instructions": "Be brief.", "tools": [WEATHER], "temperature": 0.5, "parallel_tool_calls": False}
    message = {
        "reasoning_content": "Hm.",
        "content": "Let me look.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
            {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
        ],
    }
    response = RESPONSES_AS_CHAT.answer(chat(message, "tool_calls"), body)
    Response.model_validate(response, strict=True)
    assert response["output"] == [
        {
            "id": "rs_abc_0",
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "id": "msg_abc_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me look.", "annotations": [], "logprobs": []}],
        },
        {
            "id": "fc_abc_2",
            "type": "function_call",
            "status": "completed",
            "call_id": "c1",
            "name": "weather",
            "arguments": '{"city": "Oslo"}',
        },
        {
            "id": "ctc_abc_3",
            "type": "custom_tool_call",
            "status": "completed",
            "call_id": "c2",
            "name": "sql",
            "input": "select 1",
        },
    ]
    assert response["usage"] == {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 19,
    }
    echoed = ("id", "created_at", "model", "status", "instructions", "tools", "temperature", "parallel_tool_calls")
    assert [response[name] for name in echoed] == [
        "resp_abc",
        1_700_000_000,
        "llama-3.3-70b",
        "completed",
        "Be brief.",
        [WEATHER],
        0.5,
        False,
    ]


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete(reason, told):
    message = {"reasoning": "Hm.", "content": "Hel"}
    response = RESPONSES_AS_CHAT.answer(chat(message, reason), ASK)
    Response.model_validate(response, strict=True)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": told})
    assert [each["status"] for each in response["output"]] == ["completed", "incomplete"]
    assert RESPONSES.answer_of(response)[1] == told


def test_a_refusal_is_a_part_of_the_message():
    response = RESPONSES_AS_CHAT.answer(chat({"refusal": "No."}), ASK)
    assert response["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_what_a_provider_leaves_out_is_made_up_without_dice():
    silent = {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}] * 2}}]}
    response = RESPONSES_AS_CHAT.answer(silent, ASK)
    Response.model_validate(response, strict=True)
    assert (response["id"], response["model"], response["usage"]) == ("resp_0", "gpt-4.1", None)
    assert [each["call_id"] for each in response["output"]] == ["call_0_0", "call_0_1"]
    assert RESPONSES_AS_CHAT.answer({}, ASK)["output"] == []


# --- streams --------------------------------------------------------------------------------------------------------
def test_the_events_of_a_stream_are_those_of_openai_in_their_order():
    events = read(
        told(
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "Hm"}),
            chunk({"reasoning_content": "."}),
            None,
            chunk({"content": "Let me"}),
            chunk({"content": " look."}),
            chunk({"refusal": "No"}),
            chunk({"tool_calls": [call(0, "", "weather", "c1")]}),
            chunk({"tool_calls": [call(0, '{"city":')]}),
            chunk({"tool_calls": [call(0, '"Oslo"}')]}),
            chunk({"tool_calls": [call(1, "", "weather", "c2")]}),
            chunk({"tool_calls": [call(1, "{}")]}),
            chunk({}, "tool_calls"),
            {**HEAD, "choices": [], "usage": USAGE},
        )
    )
    arguments = ["function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert kinds(events) == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done"),
        *("content_part.added", "refusal.delta", "refusal.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", *arguments),
        *("output_item.added", *arguments),
        "completed",
    ]
    last = events[-1]["response"]
    assert last["usage"]["total_tokens"] == 19
    assert last["service_tier"] == "default"
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == last["output"]


def test_a_text_that_goes_on_after_a_call_is_a_further_item():
    events = read(
        told(chunk({"content": "a"}), chunk({"tool_calls": [call(0, "{}", "f", "c1")]}), chunk({"content": "b"}))
    )
    assert [each["type"] for each in events[-1]["response"]["output"]] == ["message", "function_call", "message"]


def test_calls_side_by_side_are_done_when_they_are_whole():
    events = read(
        told(
            chunk({"tool_calls": [call(0, '{"a"', "f", "c1"), call(1, '{"b"', "g", "c2")]}),
            chunk({"tool_calls": [call(1, ":2}"), call(0, ":1}")]}),
        )
    )
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [(each["call_id"], each["name"], each["arguments"]) for each in done] == [
        ("c1", "f", '{"a":1}'),
        ("c2", "g", '{"b":2}'),
    ]
    assert kinds(events)[-5:-1] == ["function_call_arguments.done", "output_item.done"] * 2


def test_nothing_follows_a_call_that_is_done():
    parts = [call(0, "{}", "f", "c1"), call(1, "{}", "g", "c2"), call(0, " ")]
    events = read(told(*[chunk({"tool_calls": [part]}) for part in parts]))
    assert kinds(events).count("function_call_arguments.delta") == 2
    assert events[-1]["response"]["output"][0]["arguments"] == "{}"


def test_calls_that_share_an_index_are_told_apart_by_their_ids():
    one, two = call(0, "{}", "f", "c1"), call(0, '{"x":1}', "f", "c2")
    output = read(told(chunk({"tool_calls": [one]}), chunk({"tool_calls": [two]})))[-1]["response"]["output"]
    assert [(each["call_id"], each["arguments"]) for each in output] == [("c1", "{}"), ("c2", '{"x":1}')]


def test_calls_that_share_an_id_get_ids_of_their_own():
    chunks = [chunk({"tool_calls": [call(index, "{}", "f", "c")]}) for index in (0, 1)]
    output = read(told(*chunks))[-1]["response"]["output"]
    assert [each["call_id"] for each in output] == ["c", "call_abc_1"]


def test_a_name_may_come_in_pieces():
    parts = [call(0, "", "wea", "c1"), call(0, "", "ther"), call(0, "{}"), call(0, "", "weather")]
    events = read(told(*[chunk({"tool_calls": [part]}) for part in parts]))
    assert events[2]["item"]["name"] == "weather"
    assert events[-1]["response"]["output"][0]["name"] == "weather"


def test_logprobs_go_along_with_their_text():
    logprob = {"token": "Hi", "bytes": [72, 105], "logprob": -0.1, "top_logprobs": []}
    said = chunk({"content": "Hi"})
    said["choices"][0]["logprobs"] = {"content": [logprob]}
    events = read(told(said))
    deltas = [event["logprobs"] for event in events if "text.delta" in event["type"]]
    assert deltas == [[logprob]]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [logprob]


def test_only_the_first_choice_is_told():
    second = chunk({"content": "b"})
    second["choices"][0]["index"] = 1
    assert "output_text.delta" not in kinds(read(told(second)))


def test_a_stream_that_says_nothing_is_an_empty_response():
    assert kinds(read(told())) == ["created", "in_progress", "completed"]


def test_an_error_in_the_stream_is_raised_and_nothing_follows_it():
    error = {"message": "Overloaded.", "type": "server_error", "param": None, "code": "overloaded"}
    content = told(chunk({"content": "a"}), {"error": error}, chunk({"content": "b"}))
    assert kinds(read(content))[-2:] == ["output_text.delta", "error"]
    with client(content).responses.stream(model="m", input="x") as stream, pytest.raises(openai.APIError) as raised:
        stream.until_done()
    assert (raised.value.message, raised.value.code) == ("Overloaded.", "overloaded")
    assert json.loads(told({"error": "Bare."}).split(b"data: ")[1])["message"] == "Bare."


# --- the real client ------------------------------------------------------------------------------------------------
class City(BaseModel):
    name: str
    people: int


CITY = '{"name": "Oslo", "people": 700000}'


def transport(content: bytes, kind: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(200, content=content, headers={"content-type": kind}))


def client(content: bytes, kind: str = "text/event-stream") -> openai.OpenAI:
    http = httpx.Client(transport=transport(content, kind))
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


def async_client(content: bytes, kind: str = "text/event-stream") -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(transport=transport(content, kind))
    return openai.AsyncOpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


def city_stream() -> bytes:
    pieces = [CITY[at : at + 5] for at in range(0, len(CITY), 5)]
    return told(*[chunk({"content": piece}) for piece in pieces], chunk({}, "stop", usage=USAGE))


def test_the_client_accumulates_a_stream():
    with client(city_stream()).responses.stream(model="m", input="x", text_format=City) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert snapshots[-1] == response.output_text == CITY
    assert response.output_parsed == City(name="Oslo", people=700_000)
    assert response.usage is not None
    assert response.usage.total_tokens == 19


async def test_the_asynchronous_client_accumulates_a_stream():
    async with async_client(city_stream()).responses.stream(model="m", input="x", text_format=City) as stream:
        response = await stream.get_final_response()
    assert response.output_parsed == City(name="Oslo", people=700_000)


async def test_both_clients_parse_a_plain_answer():
    content = json.dumps(RESPONSES_AS_CHAT.answer(chat({"content": CITY}), ASK)).encode()
    parsed = client(content, "application/json").responses.parse(model="m", input="x", text_format=City)
    assert parsed.output_parsed == City(name="Oslo", people=700_000)
    parsed = await async_client(content, "application/json").responses.parse(model="m", input="x", text_format=City)
    assert parsed.output_parsed == City(name="Oslo", people=700_000)


def test_the_client_gathers_calls_side_by_side():
    content = told(
        chunk({"tool_calls": [call(0, "", "weather", "c1"), call(1, "", "weather", "c2")]}),
        chunk({"tool_calls": [call(1, '{"city": "Bergen"}'), call(0, '{"city": "Oslo"}')]}),
        chunk({}, "tool_calls"),
    )
    with client(content).responses.stream(model="m", input="x", tools=[WEATHER]) as stream:
        response = stream.get_final_response()
    calls = [each for each in response.output if each.type == "function_call"]
    assert [each.parsed_arguments for each in calls] == [{"city": "Oslo"}, {"city": "Bergen"}]


def test_what_was_answered_can_be_sent_back():
    message = {
        "content": "Let me look.",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    }
    answer = client(json.dumps(RESPONSES_AS_CHAT.answer(chat(message), ASK)).encode(), "application/json")
    output = [each.to_dict() for each in answer.responses.create(model="m", input="x").output]
    again = messages(*output, {"type": "function_call_output", "call_id": "c1", "output": "sun"})
    assert again == [{"role": "assistant", **message}, {"role": "tool", "tool_call_id": "c1", "content": "sun"}]


# --- however it is cut ----------------------------------------------------------------------------------------------
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
OBJECTS = st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3).map(json.dumps)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """Return the pieces of a text, some of them empty."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def told_twice(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a chat completion, and a stream of it."""
    message: dict[str, Any] = {}
    chunks = [chunk({"role": "assistant", "content": ""})]
    for name in ("reasoning_content", "content", "refusal"):
        message[name] = draw(TEXTS)
        chunks += [chunk({name: piece}) for piece in draw(cut(message[name]))]
    arguments = draw(st.lists(OBJECTS | TEXTS, max_size=3) if draw(st.booleans()) else st.lists(OBJECTS, max_size=3))
    side_by_side = draw(st.booleans())
    message["tool_calls"] = [
        {"id": f"c{index}", "type": "function", "function": {"name": f"tool{index}", "arguments": text}}
        for index, text in enumerate(arguments)
    ]
    pieces = [[call(index, each) for each in draw(cut(text))] for index, text in enumerate(arguments)]
    begun = [call(index, "", f"tool{index}", f"c{index}") for index in range(len(arguments))]
    if side_by_side:
        queues = [list(each) for each in pieces]
        parts = list(begun)
        while any(queues):
            parts.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    else:
        parts = [part for first, rest in zip(begun, pieces, strict=True) for part in (first, *rest)]
    chunks += [chunk({"tool_calls": [part]}) for part in parts]
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    chunks.append(chunk({}, reason))
    chunks.append({**HEAD, "choices": [], "usage": USAGE})
    return chat(message, reason), chunks


@given(told_twice())
def test_however_a_stream_is_cut_it_ends_as_the_whole_answer_is_told(both):
    whole, chunks = both
    events = read(told(*chunks))
    expected = RESPONSES_AS_CHAT.answer(whole, ASK)
    assert events[-1]["response"] == expected
    tally = RESPONSES.tally(ASK, answers=1)
    for event in events[:-1]:
        tally.see(event)
    says = ("type", "id", "text", "refusal", "arguments", "content", "name", "call_id")
    assert _only(says, tally.answer or []) == _only(says, expected["output"])
    tally.see(events[-1])
    assert tally.ended
    assert tally.usage is not None


def _only(names: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, list):
        return [_only(names, each) for each in value]
    if isinstance(value, dict):
        return {name: _only(names, value[name]) for name in names if name in value}
    return value


@given(told_twice())
def test_the_pieces_add_up_and_every_item_comes_in_order(both):
    _, chunks = both
    events = read(told(*chunks))
    output = events[-1]["response"]["output"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == list(range(len(output)))
    for index, each in enumerate(output):
        own = [event for event in events if event.get("output_index") == index]
        assert (own[0]["type"], own[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        said = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        parts = each.get("content") or [each]
        assert said == "".join(part.get("text", part.get("refusal", part.get("arguments"))) for part in parts)
