"""A whole answer told as a stream says the same as the answer, by whoever puts the stream together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nemo_agents.policy.sse import SseSplitter
from nemo_agents.policy.wires.base import Wire
from nemo_agents.policy.wires.chat import CHAT
from nemo_agents.policy.wires.completions import COMPLETIONS
from nemo_agents.policy.wires.messages import MESSAGES
from nemo_agents.policy.wires.responses import RESPONSES
from nemo_agents.policy.wires.table import TRANSLATIONS, WIRES
from nemo_agents.policy.wires.whole_as_stream import as_stream

USED = {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"what":"rain"}'}}
CHAT_ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USED,
}
TEXT_ANSWER: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "choices": [{"index": 0, "text": "Rain.", "finish_reason": "length"}],
    "usage": USED,
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "eHg="},
        {"type": "text", "text": "Let me see.", "citations": None},
        {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"what": ["rain", 1]}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result"}]},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 8, "cache_read_input_tokens": 3, "output_tokens": 5},
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
        {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 8, "output_tokens": 5, "total_tokens": 13},
}
CUT_SHORT = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
ASKS_FOR_USAGE: dict[str, Any] = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}


def chunks_of(raw: bytes) -> list[Any]:
    """The data of a stream's events, all of which must be whole."""
    assert raw.endswith(b"\n\n")
    splitter = SseSplitter()
    data = [event.data for event in splitter.feed(raw) if event.data is not None]
    return [None if each == b"[DONE]" else msgspec.json.decode(each) for each in data]


def told(raw: bytes, wire: Wire) -> tuple[object, str | None, object]:
    """What a stream says in this wire: the answer, why it ended, what it used. It must say that it has ended."""
    tally = wire.tally(ASKS_FOR_USAGE, answers=1)
    for chunk in chunks_of(raw):
        if chunk is None:
            tally.done()
        else:
            tally.see(chunk)
    assert tally.ended
    assert tally.error is None
    return tally.answer, tally.finish_reason, tally.usage


@pytest.mark.parametrize(
    ("wire", "answer"),
    [(CHAT, CHAT_ANSWER), (MESSAGES, MESSAGE), (RESPONSES, RESPONSE), (RESPONSES, CUT_SHORT)],
    ids=["chat", "messages", "responses", "responses-incomplete"],
)
def test_the_stream_says_what_the_answer_says(wire: Wire, answer: dict[str, Any]) -> None:
    raw = as_stream(answer, ASKS_FOR_USAGE, wire=wire.name, translation=None)
    assert told(raw, wire) == (*wire.answer_of(answer), wire.usage(answer))


def test_a_text_is_told_in_the_chunk_that_it_is() -> None:
    raw = as_stream(TEXT_ANSWER, ASKS_FOR_USAGE, wire="completions", translation=None)
    first, used, done = chunks_of(raw)
    assert first == {name: value for name, value in TEXT_ANSWER.items() if name != "usage"}
    assert (used["usage"], used["choices"], done) == (USED, [], None)
    assert told(raw, COMPLETIONS)[1:] == ("length", COMPLETIONS.usage(TEXT_ANSWER))


def test_calls_are_numbered_and_chunks_are_named_as_such() -> None:
    first = chunks_of(as_stream(CHAT_ANSWER, {}, wire="chat", translation=None))[0]
    assert first["object"] == "chat.completion.chunk"
    assert [call["index"] for call in first["choices"][0]["delta"]["tool_calls"]] == [0, 1]
    assert "message" not in first["choices"][0]


@pytest.mark.parametrize("wire", ["chat", "completions"])
def test_usage_is_told_to_who_asked_for_it(wire: Any) -> None:
    asked, silent = (as_stream(CHAT_ANSWER, body, wire=wire, translation=None) for body in (ASKS_FOR_USAGE, {}))
    assert b'"usage"' in asked
    assert b'"usage"' not in silent


@pytest.mark.parametrize("wire", list(TRANSLATIONS))
def test_a_translated_answer_says_what_its_translation_as_a_whole_says(wire: Any) -> None:
    translation = TRANSLATIONS[wire]
    (spoken,) = [each for each in WIRES.values() if each.name == wire]
    body = {**ASKS_FOR_USAGE, "input": "hi", "messages": [], "prompt": "hi", "max_tokens": 9}
    whole = translation.answer(CHAT_ANSWER, body)
    raw = as_stream(CHAT_ANSWER, body, wire=wire, translation=translation)
    answer, reason, usage = told(raw, spoken)
    assert reason == spoken.answer_of(whole)[1]
    assert usage == spoken.usage(whole)
    assert "Let me see." in str(answer)


@pytest.mark.parametrize("choices", [None, [], "x", [None], [{"message": None}], [{"message": {"tool_calls": [1]}}]])
@pytest.mark.parametrize("wire", ["chat", "completions", *TRANSLATIONS])
def test_an_odd_answer_is_told_all_the_same(wire: Any, choices: Any) -> None:
    """What it cost is settled by then, and the client is owed an end."""
    odd = {"choices": choices, "content": choices, "output": choices}
    for translation in (None, TRANSLATIONS.get(wire)):
        assert chunks_of(as_stream(odd, {}, wire=wire, translation=translation))
