"""Anthropic's own client, unmodified: messages, served by the provider itself or retold as chat completions."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from anthropic import beta_tool
from clients_bench import PIXEL, PROVIDER_KEY, ClientsBench
from pydantic import BaseModel

from nemo_agents.testing.replies import SIGNATURE, TEXT, THOUGHT

ASKED = "What is the weather in Paris, and is it warmer than 7 degrees?"
HI: Any = [{"role": "user", "content": ASKED}]
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
UPSTREAM = {"native": "/v1/messages", "chatonly": "/v1/chat/completions"}


class Weather(BaseModel):
    """An answer in a form of the caller's."""

    city: str
    degrees: int


def test_a_message(bench: ClientsBench, speaker: str):
    answer = bench.anthropic().messages.create(model=f"{speaker}/sense", max_tokens=60, system="Be brief.", messages=HI)
    assert [block.text for block in answer.content if block.type == "text"] == [TEXT]
    assert answer.stop_reason == "end_turn"
    assert bench.sent()["path"] == UPSTREAM[speaker]
    row = bench.row()
    assert (row["endpoint"], row["stream"], row["provider"]) == ("/v1/messages", False, speaker)
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.input_tokens, answer.usage.output_tokens)
    kept = bench.content(row)
    assert kept["prompt"] == [{"role": "system", "content": "Be brief."}, *HI]
    assert TEXT in json.dumps(kept["answer"])


def test_a_stream(bench: ClientsBench, speaker: str):
    """The client's own accumulation of the events gives the text, the reason and the usage."""
    with bench.anthropic().messages.stream(model=f"{speaker}/sense", max_tokens=60, messages=HI) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == TEXT
    assert final.stop_reason == "end_turn"
    row = bench.row()
    assert row["stream"] is True
    assert (row["input_tokens"], row["output_tokens"]) == (final.usage.input_tokens, final.usage.output_tokens)
    assert TEXT in json.dumps(bench.content(row)["answer"])


@pytest.mark.parametrize(
    ("call", "status", "kind"),
    [
        (lambda client: client.models.retrieve("native/no-such"), 404, "not_found_error"),
        (lambda client: client.with_options(api_key="sk-nemo-wrong").models.list(), 401, "authentication_error"),
        (lambda client: client.messages.count_tokens(model="native/sense", messages=HI), 404, "not_found_error"),
        (lambda client: client.messages.batches.list(), 404, "not_found_error"),
    ],
    ids=["a model", "the models", "counting", "batches"],
)
def test_errors_beside_messages_are_anthropic_s_too(bench: ClientsBench, call: Any, status: int, kind: str):
    with pytest.raises(anthropic.APIStatusError) as caught:
        call(bench.anthropic())
    error = caught.value
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert (error.body["type"], error.body["error"]["type"]) == ("error", kind)
    assert error.request_id == error.body["request_id"] == error.response.headers["x-nemo-request-id"]


def test_the_same_paths_tell_openai_s_client_in_its_own_form(bench: ClientsBench):
    with pytest.raises(openai.NotFoundError) as caught:
        bench.openai().models.retrieve("native/no-such")
    assert caught.value.code == "model_not_found"


def test_the_events_of_a_stream_come_in_their_order(bench: ClientsBench, speaker: str):
    with bench.anthropic().messages.create(model=f"{speaker}/sense", max_tokens=60, messages=HI, stream=True) as events:
        kinds = [event.type for event in events]
    steps = [kind for kind in dict.fromkeys(kinds) if kind != "ping"]
    assert steps == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_the_asynchronous_client(bench: ClientsBench, speaker: str):
    async with bench.async_anthropic() as client:
        answer = await client.messages.create(model=f"{speaker}/sense", max_tokens=60, messages=HI)
        assert answer.content[0].type == "text"
        async with client.messages.stream(model=f"{speaker}/sense", max_tokens=60, messages=HI) as stream:
            assert "".join([text async for text in stream.text_stream]) == TEXT


def test_what_the_gateway_does_not_know_reaches_the_provider_as_it_is(bench: ClientsBench):
    """Headers that steer the API reach the provider, the caller's key does not; of the body only the model changes."""
    thoughts = {"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE}
    redacted = {"type": "redacted_thinking", "data": SIGNATURE}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    key = bench.key()
    raw = bench.anthropic(key).beta.messages.with_raw_response.create(
        model="native/sense",
        max_tokens=60,
        betas=["context-1m-2025-08-07", "interleaved-thinking-2025-05-14"],
        system=[{"type": "text", "text": "Be brief.", **cached}],  # type: ignore[list-item, typeddict-item]
        messages=[
            {"role": "user", "content": [image, {"type": "text", "text": "What is this?", **cached}]},  # type: ignore[list-item]
            {"role": "assistant", "content": [thoughts, redacted, {"type": "text", "text": "A dot."}]},  # type: ignore[list-item]
            {"role": "user", "content": [{"type": "hologram", "ünï": ["∞", 1e-7]}, {"type": "text", "text": ASKED}]},  # type: ignore[list-item]
        ],
        tools=[{**WEATHER, **cached}],
        tool_choice={"type": "none"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "u-1"},
        top_k=5,
        extra_body={"x_vendor": {"deep": [True, -0.0]}},
    )
    sent, seen = json.loads(raw.http_request.content), bench.sent()
    assert seen["body"] == {**sent, "model": "sense"}
    assert seen["headers"]["anthropic-beta"] == "context-1m-2025-08-07,interleaved-thinking-2025-05-14"
    assert seen["headers"]["anthropic-version"] == "2023-06-01"
    assert seen["headers"]["x-api-key"] == PROVIDER_KEY
    assert key not in json.dumps(seen)


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_signatures_and_the_cache(bench: ClientsBench, stream: bool):
    """They come back untouched, go out again untouched in the next turn, and each kind of token has its price."""
    client = bench.anthropic()
    asked: Any = {"model": "native/thinker", "max_tokens": 90}
    if stream:
        with client.messages.stream(**asked, messages=HI) as events:
            answer: Any = events.get_final_message()
    else:
        answer = client.messages.create(**asked, messages=HI)
    thoughts, text = answer.content
    assert (thoughts.thinking, thoughts.signature) == (THOUGHT, SIGNATURE)
    assert text.text == TEXT
    usage = answer.usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (4, 5)
    assert usage.cache_creation.ephemeral_1h_input_tokens == 2
    again = [*HI, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "And tomorrow?"}]
    client.messages.create(**asked, messages=again)
    block = bench.provider.requests()[1]["body"]["messages"][1]["content"][0]
    assert block == {"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE}
    assert SIGNATURE in json.dumps(bench.content(bench.rows()[0])["answer"])


@pytest.mark.parametrize("stream", [False, True])
def test_translated_thoughts_and_cached_tokens(bench: ClientsBench, stream: bool):
    client = bench.anthropic()
    asked: Any = {"model": "chatonly/thinker", "max_tokens": 90, "messages": HI}
    if stream:
        with client.messages.stream(**asked) as events:
            answer: Any = events.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == THOUGHT
    assert answer.usage.cache_read_input_tokens == 4
    total = answer.usage.input_tokens + 4 + (answer.usage.cache_creation_input_tokens or 0)
    assert total == bench.row()["input_tokens"]


def test_a_translated_request_keeps_what_chat_has_words_for(bench: ClientsBench):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    bench.anthropic().messages.create(
        model="chatonly/sense",
        max_tokens=40,
        system="Be brief.",
        messages=[{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}],  # type: ignore[list-item]
        stop_sequences=["two"],
        temperature=0.25,
    )
    body = bench.sent()["body"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    picture, text = body["messages"][1]["content"]
    assert picture["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    assert text == {"type": "text", "text": "What is this?"}
    assert (body["max_tokens"], body["temperature"], body["stop"]) == (40, 0.25, ["two"])
    assert not {"system", "stop_sequences"} & body.keys()


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip_through_parallel_tools(bench: ClientsBench, speaker: str, stream: bool):
    client = bench.anthropic()
    asked: Any = {"model": f"{speaker}/parallel", "max_tokens": 60, "tools": [WEATHER]}
    if stream:
        with client.messages.stream(**asked, messages=HI) as events:
            first: Any = events.get_final_message()
    else:
        first = client.messages.create(**asked, messages=HI)
    assert first.stop_reason == "tool_use"
    uses = [block for block in first.content if block.type == "tool_use"]
    assert [use.input for use in uses] == [{"city": "Paris", "days": 7}] * 2
    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": f"{number} degrees"}
        for number, use in enumerate(uses, start=8)
    ]
    again = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = client.messages.create(**asked, messages=again)
    assert second.content[0].type == "text"
    assert second.content[0].text == "The tool says: 8 degrees; 9 degrees"
    first_row, second_row = bench.rows()
    assert json.dumps(bench.content(first_row)["answer"]).count("Paris") == 2
    assert "9 degrees" in json.dumps(bench.content(second_row)["prompt"])


def test_the_clients_own_tool_runner(bench: ClientsBench, speaker: str):
    """The loop that comes with the client calls a decorated function and goes on with its result."""
    asked_of: list[str] = []

    @beta_tool
    def weather(city: str) -> str:
        """Tell the weather of a city."""
        asked_of.append(city)
        return "9 degrees"

    runner = bench.anthropic().beta.messages.tool_runner(
        model=f"{speaker}/sense", max_tokens=60, tools=[weather], messages=HI
    )
    final = runner.until_done()
    assert asked_of == ["Paris"]
    assert final.content[0].type == "text"
    assert final.content[0].text == "The tool says: 9 degrees"
    assert len(bench.rows()) == 2


def test_structured_answers(bench: ClientsBench, speaker: str):
    parsed = bench.anthropic().messages.parse(
        model=f"{speaker}/sense", max_tokens=60, messages=HI, output_format=Weather
    )
    assert parsed.parsed_output == Weather(city="Paris", degrees=7)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_its_cap(bench: ClientsBench, speaker: str, stream: bool):
    asked: Any = {"model": f"{speaker}/sense", "max_tokens": 3, "messages": HI}
    client = bench.anthropic()
    if stream:
        with client.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "The answer is"


def test_models(bench: ClientsBench):
    client = bench.anthropic(bench.key(models=["native/sense", "chatonly/thinker"]))
    listed = client.models.list(limit=5)
    assert [(model.id, model.type) for model in listed] == [("native/sense", "model"), ("chatonly/thinker", "model")]
    assert client.models.retrieve("native/sense").display_name == "native/sense"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("native/parallel")
