"""Clients of the Messages API before a provider that speaks only Chat Completions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.wires.base import UntranslatableError
from nemo_agents.policy.wires.messages import MESSAGES
from nemo_agents.policy.wires.messages_chat import MESSAGES_AS_CHAT

USER = {"role": "user", "content": "hello"}
ASK: dict[str, Any] = {"model": "gpt", "max_tokens": 100, "messages": [USER]}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PIXEL_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asked(*messages, **more):
    return {**ASK, "messages": list(messages) or ASK["messages"], **more}


def chat_messages(*messages, **more):
    return MESSAGES_AS_CHAT.request(asked(*messages, **more))["messages"]


def text(words, **more):
    return {"type": "text", "text": words, **more}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def call(call_id, name="look", **given):
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


def result(call_id, content=None, **more):
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


# --- requests -------------------------------------------------------------------------------------------------------
def test_a_text_request_keeps_what_means_the_same():
    body = asked(
        stream=True, temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["END"], metadata={"user_id": "u", "x": 1},
        seed=1, nemo_guardrail_ids=["g"], system="Be kind.",
    )  # fmt: skip
    before = copy.deepcopy(body)
    assert MESSAGES_AS_CHAT.request(body) == {
        "model": "gpt",
        "max_tokens": 100,
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "user": "u",
        "seed": 1,
        "nemo_guardrail_ids": ["g"],
        "messages": [{"role": "system", "content": "Be kind."}, USER],
    }
    assert body == before


def test_advice_to_anthropics_machinery_is_left_out():
    cached = {"cache_control": {"type": "ephemeral"}}
    body = asked(
        user(text("hello", **cached)),
        **cached,
        thinking={"type": "enabled", "budget_tokens": 50},
        context_management={"edits": []},
        betas=["x"],
        anthropic_version="2023-06-01",
        inference_geo="global",
        speed="standard",
        container=None,
        mcp_servers=[],
        system=[text("Be kind.", **cached), text("Be brief.")],
        tools=[{"name": "look", "input_schema": {"type": "object"}, "input_examples": [{}], **cached}],
    )
    chat = MESSAGES_AS_CHAT.request(body)
    assert chat == {
        "model": "gpt",
        "max_tokens": 100,
        "messages": [{"role": "system", "content": "Be kind.\n\nBe brief."}, USER],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    }


def test_results_of_tools_come_right_behind_their_calls_and_before_the_users_words():
    conversation = [
        assistant({"type": "thinking", "thinking": "hm"}, text("I "), text("look."), call("a", x=1), call("b")),
        user(text("Here."), result("a", [text("one"), text("two")]), result("b", "three"), text("Go on.")),
    ]  # fmt: skip
    assert chat_messages(USER, *conversation) == [
        USER,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"x":1}'}},
                {"id": "b", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "one\ntwo"},
        {"role": "tool", "tool_call_id": "b", "content": "three"},
        {"role": "user", "content": [text("Here."), text("Go on.")]},
    ]


def test_a_call_without_words_has_no_content_and_a_bare_result_is_empty():
    calls, told = chat_messages(assistant(call("a")), user(result("a")))
    assert calls["content"] is None
    assert told == {"role": "tool", "tool_call_id": "a", "content": ""}


@pytest.mark.parametrize(
    ("content", "told"),
    [("no such file", "Error: no such file"), ("Error: no", "Error: no"), (None, "Error: the tool failed.")],
)
def test_a_failed_tool_says_so(content, told):
    (message,) = chat_messages(user(result("a", content, is_error=True)))
    assert message["content"] == told


def test_images_are_told_as_urls():
    source = {"type": "url", "url": "https://example.com/x.png"}
    (message,) = chat_messages(user(text("What?"), PIXEL, {"type": "image", "source": source}))
    assert message["content"] == [text("What?"), PIXEL_PART, {"type": "image_url", "image_url": {"url": source["url"]}}]


def test_images_of_results_follow_in_the_next_message():
    told, seen = chat_messages(user(result("a", [text("a chart"), PIXEL]), text("Go on.")))
    assert told == {"role": "tool", "tool_call_id": "a", "content": "a chart\n[image: see below]"}
    assert seen == {"role": "user", "content": [PIXEL_PART, text("Go on.")]}
    told, seen = chat_messages(user(result("a", [PIXEL, PIXEL])))
    assert told["content"] == "[2 images: see below]"
    assert seen["content"] == [PIXEL_PART, PIXEL_PART]


def test_thoughts_alone_say_nothing():
    thoughts = assistant({"type": "thinking", "thinking": "x"}, {"type": "redacted_thinking", "data": "x"})
    assert chat_messages(USER, thoughts, USER) == [USER, USER]
    assert chat_messages({"role": "system", "content": [text("rules")]}, USER)[0]["content"] == "rules"


def test_tools_are_functions():
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    tool = {"type": "custom", "name": "look", "description": "Looks.", "strict": True, "input_schema": schema}
    function = {"name": "look", "description": "Looks.", "strict": True, "parameters": schema}
    assert MESSAGES_AS_CHAT.request(asked(tools=[tool]))["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
    ],
)
def test_a_choice_of_tools_is_told(choice, told):
    assert MESSAGES_AS_CHAT.request(asked(tool_choice=choice)) == {**ASK, **told}


def test_structured_output_effort_and_tier_are_told():
    form = {"type": "json_schema", "schema": {"type": "object"}}
    told = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}}
    new = MESSAGES_AS_CHAT.request(asked(output_config={"format": form, "effort": "max"}, service_tier="standard_only"))
    assert new == {**ASK, "response_format": told, "reasoning_effort": "xhigh", "service_tier": "default"}
    assert MESSAGES_AS_CHAT.request(asked(output_format=form)) == {**ASK, "response_format": told}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (asked(container="c"), "container"),
        (asked(mcp_servers=[{"url": "https://x"}]), "mcp_servers"),
        (asked(fallbacks=[{"model": "x"}]), "fallbacks"),
        (asked(inference_geo="us"), "inference_geo"),
        (asked(speed="fast"), "speed"),
        (asked(n=2), "n"),
        (asked(tools=[{"name": "f"}, {"type": "web_search_20250305", "name": "web_search"}]), "tools[1]"),
        (asked(tools=[{"type": "bash_20250124", "name": "bash"}]), "tools[0]"),
        (asked(tools=["odd"]), "tools[0]"),
        (asked(tool_choice={"type": "tool"}), "tool_choice"),
        (asked(tool_choice="auto"), "tool_choice"),
        (asked(system=[text("a"), PIXEL]), "system[1]"),
        (asked(output_config={"format": {"type": "grammar"}}), "output_config.format"),
        (asked(output_config="odd"), "output_config"),
        (asked(output_format="odd"), "output_format"),
        (asked({"role": "tool", "content": "x"}), "messages[0].role"),
        (asked({"role": "user", "content": 7}), "messages[0].content"),
        (asked(user("text")), "messages[0].content[0]"),
        (asked(USER, user({"type": "document", "source": {}})), "messages[1].content[0]"),
        (asked(user({"type": "search_result"})), "messages[0].content[0]"),
        (asked(user({"type": "image", "source": {"type": "file", "file_id": "f"}})), "messages[0].content[0].source"),
        (asked(user(result("a", [text("x"), {"type": "document"}]))), "messages[0].content[0].content[1]"),
        (asked(user(result("a", 7))), "messages[0].content[0].content"),
        (asked(assistant({"type": "server_tool_use", "name": "web_search"})), "messages[0].content[0]"),
        (asked(assistant(PIXEL)), "messages[0].content[0]"),
        (asked(assistant({"type": "tool_use", "input": "x"})), "messages[0].content[0].input"),
    ],
)
def test_what_a_chat_has_no_words_for_is_refused_by_its_path(body, param):
    with pytest.raises(UntranslatableError) as raised:
        MESSAGES_AS_CHAT.request(body)
    assert raised.value.param == param
    assert param in str(raised.value)


# --- whole answers --------------------------------------------------------------------------------------------------
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 12},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
TOLD_USAGE = {
    "input_tokens": 8,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 12,
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
}


def completion(finish_reason="stop", *, usage=USAGE, **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish_reason}
    return {"id": "chatcmpl-42", "object": "chat.completion", "model": "gpt-x", "choices": [choice], "usage": usage}


def function_call(call_id, name, arguments):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def server(chat: dict[str, Any] | Callable[[], bytes]) -> Callable[[httpx.Request], httpx.Response]:
    """A gateway that translates what it is asked, before a provider that says just this."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert MESSAGES.check(body) is None
        MESSAGES_AS_CHAT.request(body)
        if callable(chat):
            return httpx.Response(200, content=chat(), headers={"content-type": "text/event-stream"})
        return httpx.Response(200, json=MESSAGES_AS_CHAT.answer(chat, body))

    return answer


def client(chat):
    transport = httpx.MockTransport(server(chat))
    return anthropic.Anthropic(
        api_key="sk-nemo-x", base_url="http://gw", http_client=httpx.Client(transport=transport), max_retries=0
    )


def async_client(chat):
    transport = httpx.MockTransport(server(chat))
    return anthropic.AsyncAnthropic(
        api_key="sk-nemo-x", base_url="http://gw", http_client=httpx.AsyncClient(transport=transport), max_retries=0
    )


def test_an_answer_is_a_message_to_the_real_client():
    calls = [function_call("call_1", "look", '{"q": "x"}'), function_call("", "list", "")]
    chat = completion("tool_calls", content="Let me look.", reasoning_content="hm", tool_calls=calls)
    message = client(chat).messages.create(**ASK)
    assert message.to_dict() == {
        "id": "msg_42",
        "type": "message",
        "role": "assistant",
        "model": "gpt-x",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            text("Let me look."),
            {"type": "tool_use", "id": "call_1", "name": "look", "input": {"q": "x"}},
            {"type": "tool_use", "id": "toolu_42_1", "name": "list", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": TOLD_USAGE,
    }
    assert isinstance(message.content[2], anthropic.types.ToolUseBlock)


def test_an_answer_can_be_sent_back_as_it_is():
    """The second turn of a tool loop: what the client got is what it sends, and Anthropic gets no thoughts of ours."""
    chat = completion("tool_calls", reasoning="hm", tool_calls=[function_call("call_1", "look", '{"q": "x"}')])
    message = client(chat).messages.create(**ASK)
    turns = [
        USER,
        {"role": "assistant", "content": [b.to_dict() for b in message.content]},
        user(result("call_1", "42")),
    ]
    assert chat_messages(*turns)[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [function_call("call_1", "look", '{"q":"x"}')],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]


@pytest.mark.parametrize(
    ("finish", "more", "reason"),
    [
        ("stop", {}, "end_turn"),
        ("length", {}, "max_tokens"),
        ("content_filter", {}, "refusal"),
        ("stop", {"tool_calls": [function_call("a", "f", "{}")]}, "tool_use"),
        ("function_call", {}, "tool_use"),
        ("eos", {}, "end_turn"),
        (None, {}, "end_turn"),
    ],
)
def test_why_a_message_ended(finish, more, reason):
    assert MESSAGES_AS_CHAT.answer(completion(finish, content="x", **more), ASK)["stop_reason"] == reason


def test_a_stop_sequence_is_named_where_the_provider_names_it():
    chat = completion(content="x")
    chat["choices"][0]["stop_reason"] = "END"
    ended = MESSAGES_AS_CHAT.answer(chat, asked(stop_sequences=["END"]))
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("stop_sequence", "END")
    assert MESSAGES_AS_CHAT.answer(chat, ASK)["stop_reason"] == "end_turn"


def test_arguments_that_are_no_object_are_kept_as_what_they_are():
    calls = [function_call("a", "f", '{"cut'), function_call("b", "f", "[1]")]
    content = MESSAGES_AS_CHAT.answer(completion(tool_calls=calls), ASK)["content"]
    assert [b["input"] for b in content] == [{"INVALID_JSON": '{"cut'}, {"INVALID_JSON": "[1]"}]


def test_an_answer_without_usage_or_words_is_a_message_still():
    message = MESSAGES_AS_CHAT.answer({"choices": [], "model": None}, ASK)
    assert (message["content"], message["model"], message["usage"]) == (
        [],
        "gpt",
        {"input_tokens": 0, "output_tokens": 0},
    )
    parts = MESSAGES_AS_CHAT.answer(completion(content=[text("a"), text("b"), {"type": "odd"}], refusal="no"), ASK)
    assert parts["content"] == [text("abno")]


# --- streams --------------------------------------------------------------------------------------------------------
def chunk(finish_reason=None, **delta):
    return {
        "id": "chatcmpl-42",
        "model": "gpt-x",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def piece(index, arguments=None, call_id=None, name=None):
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    return {"index": index, "function": function} | ({} if call_id is None else {"id": call_id, "type": "function"})


def retold(chunks, body=ASK):
    stream = MESSAGES_AS_CHAT.stream(body)
    return b"".join([stream.feed(c) for c in chunks]) + stream.end()


def kinds(raw):
    return [line[7:].decode() for line in raw.split(b"\n") if line.startswith(b"event: ")]


STREAM = [
    {"choices": [], "prompt_filter_results": []},  # Azure's first
    None,
    chunk(role="assistant", content=""),
    chunk(content="Let me "),
    chunk(content="look."),
    chunk(tool_calls=[piece(0, "", "call_1", "look")]),
    chunk(tool_calls=[piece(0, '{"q"')]),
    chunk(tool_calls=[piece(0, ': "x"}')]),
    chunk("tool_calls"),
    {"id": "chatcmpl-42", "choices": [], "usage": USAGE},
]
WHOLE = completion("tool_calls", content="Let me look.", tool_calls=[function_call("call_1", "look", '{"q": "x"}')])


def test_the_real_client_reads_a_stream_event_by_event():
    with client(lambda: retold(STREAM)).messages.stream(**ASK) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_message()
    assert seen == [
        "message_start",
        "content_block_start",
        *["content_block_delta", "text"] * 2,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta", "input_json"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert final.content[1].input == {"q": "x"}
    assert told(final) == MESSAGES_AS_CHAT.answer(WHOLE, ASK)


async def test_the_async_client_reads_it_too():
    client = async_client(lambda: retold(STREAM))
    async with client.messages.stream(**ASK) as stream:
        words = [word async for word in stream.text_stream]
        final = await stream.get_final_message()
    assert words == ["Let me ", "look."]
    assert told(final) == MESSAGES_AS_CHAT.answer(WHOLE, ASK)
    whole = await async_client(WHOLE).messages.create(**ASK)
    assert told(whole) == told(final)


def test_raw_events_come_as_soon_as_their_chunk():
    stream = MESSAGES_AS_CHAT.stream(ASK)
    assert [kinds(stream.feed(c)) for c in STREAM] == [
        [],
        [],
        ["message_start"],
        ["content_block_start", "content_block_delta"],
        ["content_block_delta"],
        [],
        ["content_block_stop", "content_block_start", "content_block_delta"],
        ["content_block_delta"],
        [],
        [],
    ]
    assert kinds(stream.end()) == ["content_block_stop", "message_delta", "message_stop"]


def told(final) -> dict[str, Any]:
    """What the client has gathered, without what it adds for itself."""
    message = final.to_dict(exclude_none=False)
    message["content"] = [
        {k: v for k, v in b.items() if k not in ("parsed_output", "__json_buf", "citations", "caller", "toolset_name")}
        for b in message["content"]
    ]
    message["usage"] = {k: v for k, v in message["usage"].items() if v is not None}
    return {k: v for k, v in message.items() if v is not None or k == "stop_sequence"}


def test_a_call_that_used_an_index_again_is_another_call():
    """Gemini's streams give every call the index 0."""
    chunks = [
        chunk(tool_calls=[piece(0, '{"a": 1}', "x", "f")]),
        chunk(tool_calls=[piece(0, '{"b": 2}', "y", "g")]),
        chunk("stop"),
    ]
    calls = [function_call("x", "f", '{"a": 1}'), function_call("y", "g", '{"b": 2}')]
    assert told(gathered(chunks)) == MESSAGES_AS_CHAT.answer(completion(tool_calls=calls, usage=None), ASK)


def test_words_behind_a_call_are_told_behind_it():
    final = gathered([chunk(tool_calls=[piece(0, "{", "x", "f")]), chunk(content="wait"),
                      chunk(tool_calls=[piece(0, "}")]), chunk(content="!"), chunk("tool_calls")])  # fmt: skip
    assert [b.type for b in final.content] == ["tool_use", "text"]
    assert final.content[1].text == "wait!"


def test_an_empty_stream_is_an_empty_message():
    final = gathered([])
    assert (final.content, final.stop_reason, final.model) == ([], "end_turn", "gpt")


def test_an_error_in_the_chats_stream_is_raised_by_the_client():
    stream = MESSAGES_AS_CHAT.stream(ASK)
    raw = stream.feed(STREAM[3]) + stream.feed({"error": {"message": "Out of memory"}}) + stream.feed(STREAM[4])
    assert stream.end() == b""
    with (
        client(lambda: raw).messages.stream(**ASK) as events,
        pytest.raises(anthropic.APIStatusError, match="Out of memory") as raised,
    ):
        events.until_done()
    assert raised.value.type == "api_error"


def gathered(chunks):
    with client(lambda: retold(chunks)).messages.stream(**ASK) as stream:
        return stream.get_final_message()


# Lone surrogates are in no JSON text that a provider sends.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts, lambda v: st.lists(v, max_size=3), max_leaves=4
)
arguments = st.dictionaries(texts, values, max_size=3).map(lambda v: json.dumps(v, ensure_ascii=False))
LATE: dict[str, Any] = {"usage": USAGE}


@st.composite
def cut(draw, whole):
    """The whole in pieces, cut at any places."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


@st.composite
def streamed(draw):
    """A chat completion and one way to stream it: texts in pieces, pieces of several calls mixed, usage late."""
    thoughts, words = draw(texts), draw(texts)
    calls = draw(st.lists(arguments | st.just(""), max_size=3))
    chunks = [chunk(role="assistant", content="")]
    chunks += [chunk(reasoning_content=p) for p in draw(cut(thoughts))]
    chunks += [chunk(content=p) for p in draw(cut(words))]
    queues = [
        [piece(n, "", f"call_{n}", f"tool_{n}"), *[piece(n, p) for p in draw(cut(whole))]]
        for n, whole in enumerate(calls)
    ]
    begun = 0
    while any(queues):
        ready = [n for n, queue in enumerate(queues) if queue and n <= begun]
        n = draw(st.sampled_from(ready))
        chunks.append(chunk(tool_calls=[queues[n].pop(0)]))
        begun = max(begun, n + 1)
    last = chunk("tool_calls" if calls else draw(st.sampled_from(["stop", "length"])))
    reason = last["choices"][0]["finish_reason"]
    chunks += draw(st.sampled_from([[{**last, **LATE}], [last, {"choices": [], **LATE}], [{**last, **LATE}, last]]))
    message = {"content": words, "reasoning_content": thoughts}
    if calls:
        message["tool_calls"] = [function_call(f"call_{n}", f"tool_{n}", whole) for n, whole in enumerate(calls)]
    return completion(reason, **message), chunks


@given(streamed())
def test_however_a_stream_is_cut_the_client_gathers_the_translation_of_the_whole(case):
    whole, chunks = case
    assert told(gathered(chunks)) == MESSAGES_AS_CHAT.answer(whole, ASK)


@given(streamed())
def test_what_is_told_reads_as_a_message_to_the_wire_itself(case):
    """The stream that we write and the tally by which we read Anthropic's agree, in content, end and usage."""
    whole, chunks = case
    tally = MESSAGES.tally(ASK, answers=1)
    for line in retold(chunks).split(b"\n"):
        if line.startswith(b"data: "):
            tally.see(json.loads(line[6:]))
    message = MESSAGES_AS_CHAT.answer(whole, ASK)
    answer, reason = MESSAGES.answer_of(message)
    assert (tally.answer, tally.finish_reason) == (answer if answer["content"] else None, reason)
    assert tally.usage == MESSAGES.usage(message)
    assert (tally.ended, tally.said_done, tally.error) == (True, True, None)
