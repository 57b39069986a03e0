"""OpenAI's own client, unmodified: chat completions, to a provider that serves every wire and to one that does not."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from clients_bench import PIXEL, PROVIDER_KEY, ClientsBench
from pydantic import BaseModel

from nemo_agents.testing.replies import TEXT, THOUGHT

HI: Any = [{"role": "user", "content": "What is the weather in Paris, and is it warmer than 7 degrees?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
PICTURE = f"data:image/png;base64,{PIXEL}"


class Weather(BaseModel):
    """An answer in a form of the caller's."""

    city: str
    degrees: int


def sent_and_seen(bench: ClientsBench, request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the client wrote and what the provider read."""
    return json.loads(request.content), bench.sent()["body"]


def test_an_answer(bench: ClientsBench, speaker: str):
    answer = bench.openai().chat.completions.create(model=f"{speaker}/sense", messages=HI)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    row = bench.row()
    assert (row["endpoint"], row["stream"], row["state"]) == ("/v1/chat/completions", False, "ok")
    assert (row["provider"], row["model_served"]) == (speaker, "sense")
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    kept = bench.content(row)
    assert kept["prompt"] == HI
    assert kept["answer"]["content"] == TEXT


def test_a_stream(bench: ClientsBench):
    """Usage reaches the client only if it asked for it, and the books in any case."""
    client = bench.openai()
    for options, told in (({}, 0), ({"stream_options": {"include_usage": True}}, 1)):
        with client.chat.completions.create(model="native/sense", messages=HI, stream=True, **options) as chunks:
            heard = list(chunks)
        assert "".join(each.choices[0].delta.content or "" for each in heard if each.choices) == TEXT
        assert sum(each.usage is not None for each in heard) == told
    assert [row["stream"] for row in bench.rows()] == [True, True]


async def test_the_asynchronous_client(bench: ClientsBench):
    async with bench.async_openai() as client:
        answer = await client.chat.completions.create(model="native/sense", messages=HI)
        assert answer.choices[0].message.content == TEXT
        async with client.chat.completions.stream(model="native/sense", messages=HI) as stream:
            pieces = [event.delta async for event in stream if event.type == "content.delta"]
        assert "".join(pieces) == TEXT


def test_what_the_gateway_does_not_know_reaches_the_provider_as_it_is(bench: ClientsBench):
    """Of a body, only the name of the model changes, and a cap on the answer is added where there was none."""
    parts = [
        {"type": "text", "text": "What is this?", "x_note": None},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "hologram", "hologram": {"depth": 0.1, "ünï": ["∞", 1e-7, 12345678901234567890]}},
    ]
    raw = bench.openai().chat.completions.with_raw_response.create(
        model="native/sense",
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],  # type: ignore[list-item, misc]
        seed=11,
        temperature=0.25,
        logit_bias={"50256": -100},
        metadata={"team": "search"},
        prediction={"type": "content", "content": "forty"},
        extra_body={"x_vendor": {"nested": [True, None, {"deep": -0.0}]}, "top_k": 40},
    )
    sent, seen = sent_and_seen(bench, raw.http_request)
    assert seen == {**sent, "model": "sense", "max_tokens": 4096}
    answer = raw.parse()
    assert answer.system_fingerprint == "fp_11"
    assert bench.sent()["headers"]["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert not [name for name in bench.sent()["headers"] if name.startswith("x-stainless")]


def test_a_cap_of_the_callers_goes_out_as_it_is_called_there(bench: ClientsBench):
    answer = bench.openai().chat.completions.create(model="native/sense", messages=HI, max_completion_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("The answer is", "length")
    assert bench.row()["finish_reason"] == "length"


def test_several_answers_logprobs_and_stops(bench: ClientsBench):
    answer = bench.openai().chat.completions.create(
        model="native/sense", messages=HI, n=2, logprobs=True, top_logprobs=2, stop=["two", " and"]
    )
    assert [choice.message.content for choice in answer.choices] == ["The answer is forty "] * 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert len(bench.content(bench.row())["answer"]) == 2


def test_a_stream_of_several_answers(bench: ClientsBench):
    texts = ["", ""]
    with bench.openai().chat.completions.create(model="native/sense", messages=HI, n=2, stream=True) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == [TEXT, TEXT]


def test_spoken_answers(bench: ClientsBench):
    answer = bench.openai().chat.completions.create(
        model="native/sense", messages=HI, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}
    )
    audio = answer.choices[0].message.audio
    assert audio is not None
    assert audio.transcript == TEXT
    assert bench.sent()["body"]["audio"] == {"voice": "alloy", "format": "wav"}


def test_a_round_trip_through_a_tool(bench: ClientsBench):
    client, messages = bench.openai(), list(HI)
    first = client.chat.completions.create(model="native/sense", messages=messages, tools=[WEATHER])
    (call,) = first.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris", "days": 7})
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "9 degrees"}]
    second = client.chat.completions.create(model="native/sense", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "The tool says: 9 degrees"
    rows = bench.rows()
    assert [row["finish_reason"] for row in rows] == ["tool_calls", "stop"]
    assert bench.content(rows[1])["prompt"][2]["content"] == "9 degrees"


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_calls(bench: ClientsBench, stream: bool):
    """Calls come whole, plain and streamed, each with its own id and arguments."""
    asked: Any = {"model": "native/parallel", "messages": HI, "tools": [WEATHER], "parallel_tool_calls": True}
    client = bench.openai()
    if stream:
        with client.chat.completions.stream(**asked) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**asked).choices[0].message
    calls = message.tool_calls or []
    assert [call.id for call in calls] == ["call_1", "call_2"]
    assert [json.loads(call.function.arguments)["city"] for call in calls if call.type == "function"] == ["Paris"] * 2
    assert len(bench.content(bench.row())["answer"]["tool_calls"]) == 2


def test_structured_answers(bench: ClientsBench):
    """The parsing helpers of the client work, plain and streamed; the schema reaches the provider as it was sent."""
    client = bench.openai()
    parsed = client.chat.completions.parse(model="native/sense", messages=HI, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Paris", degrees=7)
    assert bench.sent()["body"]["response_format"]["json_schema"]["strict"] is True
    with client.chat.completions.stream(model="native/sense", messages=HI, response_format=Weather) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Weather(city="Paris", degrees=7)


def test_tools_of_a_model_class_are_parsed(bench: ClientsBench):
    parsed = bench.openai().chat.completions.parse(
        model="native/sense", messages=HI, tools=[openai.pydantic_function_tool(Weather)]
    )
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(city="Paris", degrees=7)


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_and_cached_tokens(bench: ClientsBench, stream: bool):
    """What was cached, written and thought is told and paid at its own rate."""
    asked: Any = {"model": "chatonly/thinker", "messages": HI}
    client = bench.openai()
    if stream:
        with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.reasoning_content == THOUGHT
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(THOUGHT.split())
    assert bench.row()["cached_tokens"] == 4


def test_a_group_answers_to_its_own_name(bench: ClientsBench):
    answer = bench.openai().chat.completions.create(model="thinker", messages=HI)
    assert answer.model == "thinker"
    row = bench.row()
    assert (row["model_asked"], row["provider"], row["model_served"]) == ("thinker", "native", "thinker")
