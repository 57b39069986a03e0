"""OpenAI's own client, unmodified: the Responses API, served by the provider itself or retold as chat completions."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from clients_bench import PIXEL, ClientsBench
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pydantic import BaseModel

from nemo_agents.testing.replies import SIGNATURE, TEXT, THOUGHT

ASKED = "What is the weather in Paris, and is it warmer than 7 degrees?"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}
PICTURE = f"data:image/png;base64,{PIXEL}"
UPSTREAM = {"native": "/v1/responses", "chatonly": "/v1/chat/completions"}


class Weather(BaseModel):
    """An answer in a form of the caller's."""

    city: str
    degrees: int


def test_a_response(bench: ClientsBench, speaker: str):
    answer = bench.openai().responses.create(model=f"{speaker}/sense", input=ASKED, instructions="Be brief.")
    assert answer.output_text == TEXT
    assert answer.status == "completed"
    assert bench.sent()["path"] == UPSTREAM[speaker]
    row = bench.row()
    assert (row["endpoint"], row["stream"], row["provider"]) == ("/v1/responses", False, speaker)
    assert answer.usage is not None
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.input_tokens, answer.usage.output_tokens)
    kept = bench.content(row)
    assert kept["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    assert TEXT in json.dumps(kept["answer"])


def test_a_stream(bench: ClientsBench, speaker: str):
    """The client's own accumulation of the events comes to the response that the last of them holds."""
    with bench.openai().responses.stream(model=f"{speaker}/sense", input=ASKED) as events:
        heard = list(events)
        final = events.get_final_response()
    kinds = [event.type for event in heard]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "".join(event.delta for event in heard if event.type == "response.output_text.delta") == TEXT
    assert [event.sequence_number for event in heard] == sorted({event.sequence_number for event in heard})
    assert final.output_text == TEXT
    assert final.usage is not None
    row = bench.row()
    assert (row["stream"], row["output_tokens"]) == (True, final.usage.output_tokens)
    assert TEXT in json.dumps(bench.content(row)["answer"])


async def test_the_asynchronous_client(bench: ClientsBench, speaker: str):
    async with bench.async_openai() as client:
        answer = await client.responses.create(model=f"{speaker}/sense", input=ASKED)
        assert answer.output_text == TEXT
        async with client.responses.stream(model=f"{speaker}/sense", input=ASKED) as events:
            final = await events.get_final_response()
        assert final.output_text == TEXT


def test_what_the_gateway_does_not_know_reaches_the_provider_as_it_is(bench: ClientsBench):
    """Of a body, only the name of the model changes, and a cap on the answer is added where there was none."""
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": PICTURE, "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
            ],
        },
        {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": SIGNATURE},
        {"type": "hologram", "depth": 0.1, "ünï": ["∞", None, 12345678901234567890]},
        {"role": "user", "content": ASKED},
    ]
    raw = bench.openai().responses.with_raw_response.create(
        model="native/sense",
        input=items,
        include=["reasoning.encrypted_content"],
        store=False,
        reasoning={"effort": "low", "summary": "auto"},
        truncation="auto",
        metadata={"team": "search"},
        tools=[WEATHER, {"type": "custom", "name": "shell", "description": "runs"}],
        tool_choice={"type": "function", "name": "weather"},
        extra_body={"x_vendor": {"nested": [True, {"deep": -0.0}]}},
    )
    sent = json.loads(raw.http_request.content)
    assert bench.sent()["body"] == {**sent, "model": "sense", "max_output_tokens": 4096}
    assert raw.parse().output[0].type == "function_call"


def test_a_translated_request_keeps_what_chat_has_words_for(bench: ClientsBench):
    items: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": PICTURE, "detail": "low"},
            ],
        }
    ]
    bench.openai().responses.create(
        model="chatonly/sense",
        input=items,
        instructions="Be brief.",
        max_output_tokens=40,
        temperature=0.25,
        reasoning={"effort": "low"},
        extra_body={"x_vendor": 1},
    )
    body = bench.sent()["body"]
    assert body["messages"][0]["content"] == "Be brief."
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
    ]
    assert (body["max_tokens"], body["temperature"], body["reasoning_effort"]) == (40, 0.25, "low")
    assert body["x_vendor"] == 1
    assert not {"input", "instructions", "max_output_tokens", "reasoning"} & body.keys()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_its_cap(bench: ClientsBench, speaker: str, stream: bool):
    asked: Any = {"model": f"{speaker}/sense", "input": ASKED, "max_output_tokens": 3}
    client = bench.openai()
    if stream:
        with client.responses.create(**asked, stream=True) as events:
            last: Any = list(events)[-1]
        assert last.type == "response.incomplete"
        answer = last.response
    else:
        answer = client.responses.create(**asked)
    assert (answer.status, answer.output_text) == ("incomplete", "The answer is")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip_through_parallel_tools(bench: ClientsBench, speaker: str, stream: bool):
    """Two calls are answered by two outputs, under the ids that the client was given."""
    client, items = bench.openai(), [{"role": "user", "content": ASKED}]
    asked: Any = {"model": f"{speaker}/parallel", "tools": [WEATHER]}
    if stream:
        with client.responses.stream(**asked, input=items) as events:
            first: Any = events.get_final_response()
    else:
        first = client.responses.create(**asked, input=items)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Paris", "days": 7}] * 2
    items += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in first.output]
    items += [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"{number} degrees"}
        for number, call in enumerate(calls, start=8)
    ]
    second = client.responses.create(**asked, input=items)
    assert second.output_text == "The tool says: 8 degrees; 9 degrees"
    first_row, second_row = bench.rows()
    assert json.dumps(bench.content(first_row)["answer"]).count("Paris") == 2
    assert "9 degrees" in json.dumps(bench.content(second_row)["prompt"])


def test_structured_answers(bench: ClientsBench, speaker: str):
    client = bench.openai()
    parsed = client.responses.parse(model=f"{speaker}/sense", input=ASKED, text_format=Weather)
    assert parsed.output_parsed == Weather(city="Paris", degrees=7)
    with client.responses.stream(model=f"{speaker}/sense", input=ASKED, text_format=Weather) as events:
        assert events.get_final_response().output_parsed == Weather(city="Paris", degrees=7)


def test_the_clients_own_tool_runner(bench: ClientsBench, speaker: str):
    """The loop that comes with the client calls a registered function and goes on with its result."""
    asked_of: list[dict[str, object]] = []

    def execute(arguments: dict[str, object]) -> str:
        asked_of.append(arguments)
        return "9 degrees"

    runner = ResponsesToolRunner(functions=[RegisteredFunction(tool=WEATHER, execute=execute)])
    try:
        final = runner.run(
            bench.openai(),
            {"model": f"{speaker}/sense", "input": [{"role": "user", "content": ASKED}], "store": False},
            max_steps=4,
        )
    finally:
        runner.close()
    assert asked_of == [{"city": "Paris", "days": 7}]
    assert final.output_text == "The tool says: 9 degrees"
    assert len(bench.rows()) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_and_cached_tokens(bench: ClientsBench, speaker: str, stream: bool):
    asked: Any = {"model": f"{speaker}/thinker", "input": ASKED}
    client = bench.openai()
    if stream:
        with client.responses.stream(**asked) as events:
            answer: Any = events.get_final_response()
    else:
        answer = client.responses.create(**asked)
    thoughts = answer.output[0]
    assert thoughts.type == "reasoning"
    if speaker == "native":
        assert thoughts.encrypted_content == SIGNATURE
    assert THOUGHT in thoughts.model_dump_json()
    assert answer.output_text == TEXT
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert answer.usage.output_tokens_details.reasoning_tokens == len(THOUGHT.split())
    assert bench.row()["cached_tokens"] == 4


def test_what_cannot_be_translated_is_refused_with_the_field(bench: ClientsBench):
    """A stored conversation passes to a provider that keeps one, and is refused before one that does not."""
    client = bench.openai()
    client.responses.create(model="native/sense", input=ASKED, previous_response_id="resp_1")
    assert bench.sent()["body"]["previous_response_id"] == "resp_1"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="chatonly/sense", input=ASKED, previous_response_id="resp_1")
    assert (caught.value.code, caught.value.param) == ("invalid_request", "previous_response_id")
    assert len(bench.provider.requests()) == 1
