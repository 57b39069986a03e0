"""Legacy completions: as a wire of the gateway, and before a provider that speaks only Chat Completions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.errors import Code
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.usage import Usage
from nemo_agents.policy.wires.base import PreparedCap, UntranslatableError
from nemo_agents.policy.wires.completions import COMPLETIONS
from nemo_agents.policy.wires.completions_chat import COMPLETIONS_AS_CHAT

ASK: dict[str, Any] = {"model": "gpt", "prompt": "Once upon a time"}
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}


def asked(**more):
    return {**ASK, **more}


# --- requests -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt", ["text", "", ["a", "b"], [1, 2], [[1, 2], [3]], None])
def test_a_prompt_is_text_or_tokens_or_several(prompt):
    assert COMPLETIONS.check(asked(prompt=prompt)) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (asked(prompt=7), "prompt"),
        (asked(prompt=[]), "prompt"),
        (asked(prompt=["a", 1]), "prompt"),
        (asked(prompt=[True]), "prompt"),
        (asked(prompt=[[1], []]), "prompt"),
        (asked(prompt=[{"text": "a"}]), "prompt"),
        (asked(prompt={"id": "stored"}), "prompt"),
        (asked(stream=1), "stream"),
        (asked(stream_options=[]), "stream_options"),
    ],
)
def test_what_cannot_be_a_request_is_refused_by_its_field(body, param):
    refusal = COMPLETIONS.check(body)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.param) == (400, Code.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]]), (None, [])],
)
def test_each_prompt_is_a_part_of_the_log(prompt, parts):
    assert COMPLETIONS.prompt(asked(prompt=prompt)) == (("prompt",), parts)


def test_model_cap_and_usage_are_written_into_a_request():
    def prepared(body, *, stream):
        return COMPLETIONS.prepare(body, model="m", cap=PreparedCap(tokens=7), tier="default", stream=stream)

    body = asked(echo=True, stream_options={"include_obfuscation": False}, max_output_tokens=9, odd=1)
    before = copy.deepcopy(body)
    options = {"include_obfuscation": False, "include_usage": True}
    written = {**ASK, "model": "m", "max_tokens": 7, "echo": True, "odd": 1}
    assert prepared(body, stream=True) == {**written, "stream_options": options}
    assert prepared(body, stream=False) == written
    assert body == before
    assert COMPLETIONS.tools(ASK) == []
    assert COMPLETIONS.tools(asked(tools=[{"type": "function"}])) == [None]
    assert COMPLETIONS.tools(asked(tools={"type": "function"}, functions=[{"name": "evil"}])) == [None, None]


def test_a_plain_answer_is_read():
    choices = [{"text": " there", "index": 0, "finish_reason": "stop", "logprobs": None}]
    answer = {"id": "cmpl-1", "object": "text_completion", "choices": choices, "usage": USAGE}
    assert COMPLETIONS.answer_of(answer) == (" there", "stop")
    assert COMPLETIONS.answer_of({**answer, "choices": choices * 2})[0] == [" there", " there"]
    assert COMPLETIONS.usage(answer) == Usage(input_tokens=4, output_tokens=2)
    assert not COMPLETIONS.is_error(answer)
    assert COMPLETIONS.is_error({"error": {"message": "x"}})


# --- streams --------------------------------------------------------------------------------------------------------
def text_chunk(text, finish_reason=None, index=0, **more):
    choice = {"text": text, "index": index, "finish_reason": finish_reason, "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], **more}


STREAM = [text_chunk("there "), text_chunk("was"), text_chunk("", "length"), {"choices": [], "usage": USAGE}]


def test_a_stream_is_gathered_and_its_usage_shown_to_those_who_asked():
    tally = COMPLETIONS.tally(asked(stream=True), answers=1)
    assert [tally.see(chunk) for chunk in STREAM] == [True, True, True, False]
    assert (tally.answer, tally.finish_reason, tally.tokens_seen) == ("there was", "length", 2)
    assert tally.usage == tally.told == Usage(input_tokens=4, output_tokens=2)
    assert (tally.visible, tally.ended, tally.said_done) == (True, True, False)
    tally.done()
    assert tally.said_done
    asking = COMPLETIONS.tally(asked(stream=True, stream_options={"include_usage": True}), answers=1)
    assert [asking.see(chunk) for chunk in STREAM] == [True, True, True, True]


def test_several_texts_are_gathered_apart():
    tally = COMPLETIONS.tally(asked(prompt=["a", "b"]), answers=2)
    for chunk in (text_chunk("x", index=1), text_chunk("y"), text_chunk("", "stop")):
        tally.see(chunk)
    assert tally.answer == ["y", "x"]
    assert not tally.ended
    tally.see(text_chunk("", "stop", index=1))
    assert tally.ended


def test_a_prompt_that_is_echoed_is_not_counted_as_output():
    tally = COMPLETIONS.tally(asked(echo=True), answers=1)
    tally.see(text_chunk("Once upon a time"))
    assert (tally.tokens_seen, tally.visible) == (0, True)


def test_odd_chunks_and_errors():
    tally = COMPLETIONS.tally(ASK, answers=1)
    for chunk in (None, {"choices": ["odd"]}, {"choices": None}, {"choices": [{"text": 7}]}):
        assert tally.see(chunk)
    assert not tally.visible
    tally.see({"error": {"message": "Overloaded"}})
    assert (tally.error, tally.ended) == ("Overloaded", False)
    assert COMPLETIONS.tally(ASK, answers=1).answer is None


# --- as chat --------------------------------------------------------------------------------------------------------
def test_a_prompt_is_what_the_user_says():
    body = asked(
        max_tokens=5, n=2, stop="x", temperature=0, stream=True, suffix=None, echo=False, best_of=1, logprobs=None
    )
    before = copy.deepcopy(body)
    told = {"model": "gpt", "max_tokens": 5, "n": 2, "stop": "x", "temperature": 0, "stream": True}
    assert COMPLETIONS_AS_CHAT.request(body) == {**told, "messages": [{"role": "user", "content": ASK["prompt"]}]}
    assert body == before
    assert COMPLETIONS_AS_CHAT.request(asked(prompt=["a"]))["messages"] == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (asked(prompt=["a", "b"]), "prompt"),
        (asked(prompt=[1, 2]), "prompt"),
        (asked(prompt=[[1]]), "prompt"),
        (asked(prompt=None), "prompt"),
        (asked(suffix="end"), "suffix"),
        (asked(echo=True), "echo"),
        (asked(best_of=2), "best_of"),
        (asked(logprobs=0), "logprobs"),
        (asked(logprobs=5), "logprobs"),
    ],
)
def test_what_a_chat_has_no_words_for_is_refused_by_its_name(body, param):
    with pytest.raises(UntranslatableError) as raised:
        COMPLETIONS_AS_CHAT.request(body)
    assert raised.value.param == param
    assert "or ask for a model" in str(raised.value)


def completion(*texts, finish_reason="stop"):
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        for n, text in enumerate(texts)
    ]
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-x",
        "choices": choices,
        "usage": USAGE,
    }


def server(chat: dict[str, Any] | Callable[[], bytes]) -> Callable[[httpx2.Request], httpx2.Response]:
    """A gateway that translates what it is asked, before a provider that says just this."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        assert COMPLETIONS.check(body) is None
        COMPLETIONS_AS_CHAT.request(body)
        if callable(chat):
            return httpx2.Response(200, content=chat(), headers={"content-type": "text/event-stream"})
        return httpx2.Response(200, json=COMPLETIONS_AS_CHAT.answer(chat, body))

    return answer


def client(chat):
    http_client = httpx2.Client(transport=httpx2.MockTransport(server(chat)))
    return openai.OpenAI(api_key="sk-nemo-x", base_url="http://gw/v1", http_client=http_client, max_retries=0)


def test_an_answer_is_a_text_completion_to_the_real_client():
    answer = client(completion("one", "two")).completions.create(**ASK, n=2)
    assert (answer.id, answer.object, answer.model, answer.created) == ("cmpl-7", "text_completion", "gpt-x", 1)
    assert [(c.text, c.index, c.finish_reason) for c in answer.choices] == [("one", 0, "stop"), ("two", 1, "stop")]
    assert answer.usage.to_dict() == USAGE


def test_odd_answers_have_a_text_and_a_known_end():
    odd = COMPLETIONS_AS_CHAT.answer({"choices": [{"message": {"content": None}, "finish_reason": "eos"}, "odd"]}, ASK)
    assert odd["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert "usage" not in odd
    assert (
        COMPLETIONS_AS_CHAT.answer(completion("x", finish_reason="length"), ASK)["choices"][0]["finish_reason"]
        == "length"
    )


def chat_chunk(finish_reason=None, index=0, **delta):
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chatcmpl-7", "created": 1, "model": "gpt-x", "choices": [choice]}


def retold(chunks, body=ASK):
    stream = COMPLETIONS_AS_CHAT.stream(body)
    return b"".join([stream.feed(chunk) for chunk in chunks]) + stream.end()


def test_chunks_without_text_are_not_told_and_usage_only_to_those_who_asked():
    chunks = [None, chat_chunk(role="assistant", content=""), chat_chunk(content="a"), chat_chunk("stop"), STREAM[-1]]
    assert retold(chunks).count(b"data: ") == 3
    assert retold(chunks).endswith(b"data: [DONE]\n\n")
    assert b"usage" not in retold(chunks)
    asking = asked(stream_options={"include_usage": True})
    told = list(client(lambda: retold(chunks, asking)).completions.create(**asking, stream=True))
    assert [c.usage.to_dict() if c.usage else None for c in told] == [None, None, USAGE]


def test_an_error_in_the_chats_stream_is_raised_by_the_client():
    stream = COMPLETIONS_AS_CHAT.stream(ASK)
    raw = stream.feed(chat_chunk(content="a")) + stream.feed({"error": {"message": "Out of memory"}})
    assert stream.feed(chat_chunk(content="b")) == stream.end() == b""
    with pytest.raises(openai.APIError, match="Out of memory"):
        list(client(lambda: raw).completions.create(**ASK, stream=True))


def test_a_broken_stream_is_raised_by_the_client():
    refusal = Refusal(status=502, code=Code.UPSTREAM_ERROR, message="It broke off.")
    raw = b"data: " + json.dumps(STREAM[0]).encode() + b"\n\n" + COMPLETIONS.stream_error(refusal, "req_1")
    with pytest.raises(openai.APIError, match="It broke off") as raised:
        list(client(lambda: raw).completions.create(**ASK, stream=True))
    assert raised.value.code == "upstream_error"
    assert COMPLETIONS.error_body(refusal, "req_1")["request_id"] == "req_1"


@st.composite
def streamed(draw):
    """Up to three answers, and one way to stream them: each in pieces cut anywhere, the pieces mixed."""
    texts = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=3))
    queues = []
    for n, text in enumerate(texts):
        places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        queues.append([*[chat_chunk(index=n, content=piece) for piece in pieces], chat_chunk("length", index=n)])
    chunks = []
    while any(queues):
        chunks.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return texts, chunks


@given(streamed())
def test_however_a_stream_is_cut_the_texts_are_those_of_the_whole(case):
    texts, chunks = case
    told = list(client(lambda: retold(chunks)).completions.create(**ASK, n=len(texts), stream=True))
    whole = client(completion(*texts, finish_reason="length")).completions.create(**ASK, n=len(texts))
    gathered: dict[int, str] = {}
    ends: dict[int, str] = {}
    tally = COMPLETIONS.tally(ASK, answers=len(texts))
    for chunk in told:
        tally.see(chunk.to_dict())
        for choice in chunk.choices:
            gathered[choice.index] = gathered.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert [gathered[n] for n in range(len(texts))] == [choice.text for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert tally.answer == (texts[0] if len(texts) == 1 else texts)
    assert tally.ended
