"""The sandbox provider: a deterministic chat model and embedder with scripted faults."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.ports import ProviderRequest, UpstreamError
from nemo_agents.gateway.sandbox import SandboxProvider, SandboxSettings
from nemo_agents.gateway.sandbox.schema import example
from nemo_agents.gateway.sandbox.tokens import count, count_prompt, dump, take

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look at the sky over a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["celsius", "kelvin"]},
                "days": {"type": "integer"},
            },
            "required": ["city", "unit", "days"],
        },
    },
}
SEARCH = {
    "type": "function",
    "function": {"name": "web_search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
}


class Bench:
    """A sandbox with a clock that stands and a sleep that only notes how long it was."""

    def __init__(self, settings: SandboxSettings | None = None, *, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []
        self.provider = SandboxProvider(clock=lambda: self.now_s, sleep=self._sleep, settings=settings)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def raw(self, path: str, body: Any, **request: Any) -> tuple[int, dict[str, str], list[bytes]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.provider.send(ProviderRequest(path=path, body=data, stream=False, **request))
        chunks = [chunk async for chunk in answer.chunks]
        await answer.aclose()
        return answer.status, answer.headers, chunks

    async def chat(self, *messages: Any, **more: Any) -> dict[str, Any]:
        status, _, chunks = await self.raw("/chat/completions", chat_body(*messages, **more))
        assert status == 200, chunks
        return json.loads(b"".join(chunks))

    async def stream(self, *messages: Any, **more: Any) -> list[dict[str, Any]]:
        status, headers, chunks = await self.raw("/chat/completions", chat_body(*messages, stream=True, **more))
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert chunks[-1] == b"data: [DONE]\n\n"
        return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks[:-1]]

    async def refused(self, body: Any, path: str = "/chat/completions", status: int = 400) -> dict[str, Any]:
        got, _, chunks = await self.raw(path, body)
        assert got == status, chunks
        return json.loads(b"".join(chunks))["error"]


def chat_body(*messages: Any, model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return {"model": model, "messages": turns, **more}


def text(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def calls(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    found = answer["choices"][0]["message"].get("tool_calls", [])
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]


# --- text -----------------------------------------------------------------------------------------------------------


async def test_says_what_it_is_and_mentions_the_question():
    answer = await Bench().chat("Plan a short report on tidal power.")
    assert text(answer).startswith("[sandbox gpt-4o-mini] ")
    assert "tidal power" in text(answer)
    assert "plan" in text(answer).lower()
    assert answer["system_fingerprint"] == "sandbox"
    assert 60 <= answer["usage"]["completion_tokens"] <= 160


@pytest.mark.parametrize(
    "asked", ["Plan X.", "Research " + "a very long topic " * 30, "Critique this", "Summarise", "Hi", ""]
)
async def test_every_kind_of_answer_has_a_plausible_length(asked):
    answer = await Bench().chat(asked)
    assert 60 <= answer["usage"]["completion_tokens"] <= 160
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_same_body_same_bytes_but_for_created():
    first = await Bench(now_s=1.0).raw("/chat/completions", chat_body("Hello", n=3))
    second = await Bench(now_s=2.0).raw("/chat/completions", chat_body("Hello", n=3))
    a, b = json.loads(b"".join(first[2])), json.loads(b"".join(second[2]))
    assert (a.pop("created"), b.pop("created")) == (1, 2)
    assert a == b
    other = await Bench().chat("Hello!")
    assert other["id"] != a["id"]


async def test_a_model_named_with_its_provider_is_shown_without_it():
    answer = await Bench().chat("Hi", model="openai/gpt-4o")
    assert text(answer).startswith("[sandbox gpt-4o] ")
    assert answer["model"] == "gpt-4o"


async def test_max_tokens_is_never_exceeded():
    for limit in (1, 2, 7, 30):
        for field in ("max_tokens", "max_completion_tokens"):
            answer = await Bench().chat("Tell me about 東京", **{field: limit})
            assert answer["usage"]["completion_tokens"] <= limit
            assert answer["choices"][0]["finish_reason"] == "length"


async def test_stop_cuts_before_the_sequence():
    whole = text(await Bench().chat("Hello"))
    cut = await Bench().chat("Hello", nemo_sandbox={"text": whole}, stop=["sandbox", "nowhere"])
    assert text(cut) == "["
    assert cut["choices"][0]["finish_reason"] == "stop"


async def test_n_choices_up_to_eight():
    answer = await Bench().chat("Hello", n=8)
    assert [choice["index"] for choice in answer["choices"]] == list(range(8))
    assert answer["usage"]["completion_tokens"] == sum(count(c["message"]["content"]) for c in answer["choices"])
    assert (await Bench().refused(chat_body("Hello", n=9)))["param"] == "n"


async def test_accepts_what_agent_frameworks_send():
    answer = await Bench().chat(
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "text", "text": "Look at"}, {"type": "text", "text": "rivers"}],
        },
        {"role": "assistant", "content": None, "refusal": "no", "name": "bob"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "user", "content": "And rivers?"},
        response_format=None,
        stream=False,
        stop=None,
        logprobs=True,
        top_logprobs=3,
        stream_options={"include_usage": True},
        tool_choice="auto",
        seed=7,
        user="u",
    )
    assert "And rivers?" in text(answer)


# --- tokens ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1), st.text())
def test_a_prompt_has_no_more_tokens_than_bytes_of_json(messages, description):
    tools = [{"type": "function", "function": {"name": "f", "description": description}}]
    assert 0 < count_prompt(messages, tools) <= len(dump(messages).encode())


@given(st.text(), st.integers(0, 20))
def test_taking_tokens_gives_a_beginning_of_at_most_that_many(whole, tokens):
    part = take(whole, tokens)
    assert whole.startswith(part)
    assert count(part) <= tokens


async def test_usage_adds_up_and_has_its_details():
    usage = (await Bench().chat("Hello", nemo_sandbox={"cached_tokens": 5}))["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 5
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert (await Bench().chat("Hello"))["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


# --- tools ----------------------------------------------------------------------------------------------------------


async def test_calls_the_tool_that_the_question_is_about():
    answer = await Bench().chat("What is the weather in Oslo?", tools=[SEARCH, WEATHER])
    assert calls(answer) == [("get_weather", {"city": "What is the weather in Oslo?", "unit": "celsius", "days": 1})]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"]["content"] is None


async def test_auto_takes_the_first_tool_when_asked_to_use_one_and_none_otherwise():
    assert [name for name, _ in calls(await Bench().chat("Please use a tool.", tools=[WEATHER, SEARCH]))] == [
        "get_weather"
    ]
    assert calls(await Bench().chat("Good morning", tools=[WEATHER, SEARCH])) == []


async def test_tool_choice_is_obeyed():
    bench = Bench()
    tools = [WEATHER, SEARCH]
    assert calls(await bench.chat("weather?", tools=tools, tool_choice="none")) == []
    assert calls(await bench.chat("Good morning", tools=tools, tool_choice="required"))[0][0] == "get_weather"
    choice = {"type": "function", "function": {"name": "web_search"}}
    assert calls(await bench.chat("weather?", tools=tools, tool_choice=choice)) == [
        ("web_search", {"query": "weather?"})
    ]
    choice["function"]["name"] = "unknown"
    assert (await bench.refused(chat_body("x", tools=tools, tool_choice=choice)))["param"] == "tool_choice"
    assert (await bench.refused(chat_body("x", tool_choice="required")))["param"] == "tool_choice"


async def test_answers_after_the_tools_result_until_the_user_speaks_again():
    bench = Bench()
    first = await bench.chat("What is the weather in Oslo?", tools=[WEATHER])
    turns = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        first["choices"][0]["message"],
        {
            "role": "tool",
            "tool_call_id": first["choices"][0]["message"]["tool_calls"][0]["id"],
            "content": "Rain, 7 degrees",
        },
    ]
    answer = await bench.chat(*turns, tools=[WEATHER])
    assert calls(answer) == []
    assert "get_weather" in text(answer)
    assert "Rain, 7 degrees" in text(answer)
    again = await bench.chat(*turns, {"role": "user", "content": "And the weather in Rome?"}, tools=[WEATHER])
    assert calls(again)[0][1]["city"] == "And the weather in Rome?"


async def test_required_goes_on_to_the_tool_not_yet_called():
    """Frameworks end a run with a required tool for the structured answer; calling the same one forever would loop."""
    first = await Bench().chat("Tell me", tools=[WEATHER, SEARCH], tool_choice="required")
    message = first["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "ok"}
    second = await Bench().chat("Tell me", message, result, tools=[WEATHER, SEARCH], tool_choice="required")
    assert [calls(first)[0][0], calls(second)[0][0]] == ["get_weather", "web_search"]


async def test_parallel_tool_calls():
    asked = "Use web_search and get_weather."
    both = await Bench().chat(asked, tools=[WEATHER, SEARCH], parallel_tool_calls=True)
    assert [name for name, _ in calls(both)] == ["get_weather", "web_search"]
    one = await Bench().chat(asked, tools=[WEATHER, SEARCH], parallel_tool_calls=False)
    assert len(calls(one)) == 1
    ids = [call["id"] for call in both["choices"][0]["message"]["tool_calls"]]
    assert len(set(ids)) == 2


async def test_arguments_spelled_as_a_call_are_taken_at_their_word():
    tool = {
        "type": "function",
        "function": {
            "name": "magic",
            "parameters": {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]},
        },
    }
    assert calls(await Bench().chat("What is magic(3)? Use the tool.", tools=[tool])) == [("magic", {"input": 3})]


def test_arguments_follow_the_schema():
    schema = {
        "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 3},
            "level": {"type": "integer", "minimum": 5},
            "at": {"$ref": "#/$defs/Point"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "maybe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
            "fixed": {"const": "c"},
            "either": {"type": ["null", "string"]},
            "both": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}]},
            "url": {"type": "string"},
            "left_out": {"type": "string"},
        },
        "required": ["name", "level", "at", "tags", "maybe", "fixed", "either", "both", "url"],
    }
    said = "héllo https://example.org/a?b=1 there"
    assert example(schema, said) == {
        "name": "hél",
        "level": 5,
        "at": {"x": 1},
        "tags": [said, said],
        "maybe": True,
        "fixed": "c",
        "either": said,
        "both": {"a": 1},
        "url": "https://example.org/a?b=1",
    }


def test_a_schema_that_refers_to_itself_ends():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    value, depth = example(schema, "x"), 0
    while value:
        value, depth = value["next"], depth + 1
    assert 1 <= depth <= 20


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "items", "anyOf", "allOf", "$ref", "enum", "required", "minItems", "a"]
                ),
                c,
            )
        ),
    )
)
def test_no_schema_breaks_the_filler(schema):
    if isinstance(schema, dict):
        json.dumps(example(schema, "text"))


# --- JSON answers ---------------------------------------------------------------------------------------------------


async def test_json_schema_gives_json_of_that_schema():
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer"}, "why": {"type": "string"}},
        "required": ["score", "why"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    assert json.loads(text(await Bench().chat("Rate it", response_format=form))) == {"score": 1, "why": "Rate it"}


async def test_json_object_has_the_keys_that_the_prompt_names():
    form = {"type": "json_object"}
    told = "Tell a joke. Return JSON with 'setup' and 'punchline' keys."
    assert list(json.loads(text(await Bench().chat(told, response_format=form)))) == ["setup", "punchline"]
    told = "Return JSON with the keys title, author and year"
    assert list(json.loads(text(await Bench().chat(told, response_format=form)))) == ["title", "author", "year"]
    assert list(json.loads(text(await Bench().chat("JSON please", response_format=form)))) == ["answer"]


# --- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_says_the_same_as_the_whole_answer():
    whole = await Bench().chat("Research tidal power", n=2)
    chunks = await Bench().stream("Research tidal power", n=2, nemo_sandbox={"text": text(whole)})
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content") or "" for c in mine) == text(whole)
        assert len(mine) > 5
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_comes_last_with_no_choices_when_asked_for():
    chunks = await Bench().stream("Hello", stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_tool_calls_stream_in_pieces():
    chunks = await Bench().stream("The weather in a town with a long name?", tools=[WEATHER])
    deltas = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert deltas[0]["id"].startswith("call_")
    assert {delta["index"] for delta in deltas} == {0}
    pieces = [delta["function"]["arguments"] for delta in deltas]
    assert len(pieces) > 3
    assert json.loads("".join(pieces))["days"] == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


# --- scripts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 3, 17, 500])
async def test_output_tokens_is_the_exact_size(tokens):
    answer = await Bench().chat("Größe “ü”", nemo_sandbox={"output_tokens": tokens})
    assert answer["usage"]["completion_tokens"] == tokens


async def test_max_tokens_stands_above_a_script():
    answer = await Bench().chat("Hi", max_tokens=10, nemo_sandbox={"output_tokens": 50})
    assert answer["usage"]["completion_tokens"] == 10
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_scripted_text_calls_finish_reason_and_usage():
    bench = Bench()
    answer = await bench.chat("Hi", nemo_sandbox={"text": "exact", "finish_reason": "content_filter"})
    assert (text(answer), answer["choices"][0]["finish_reason"]) == ("exact", "content_filter")
    script = {"tool_calls": [{"name": "a", "arguments": {"x": 1}}, {"name": "b"}]}
    assert calls(await bench.chat("Hi", nemo_sandbox=script)) == [("a", {"x": 1}), ("b", {})]
    assert len(calls(await bench.chat("Hi", nemo_sandbox=script, parallel_tool_calls=False))) == 1
    assert "usage" not in await bench.chat("Hi", nemo_sandbox={"usage": "missing"})
    assert (await bench.chat("Hi", nemo_sandbox={"usage": {"completion_tokens": 9}}))["usage"]["completion_tokens"] == 9
    chunks = await bench.stream("Hi", nemo_sandbox={"usage": "missing"}, stream_options={"include_usage": True})
    assert all(chunk["choices"] for chunk in chunks)


async def test_scripted_errors():
    body = chat_body("Hi", nemo_sandbox={"status": 429, "retry_after_s": 1.5, "error": "slow down"})
    status, headers, chunks = await Bench().raw("/chat/completions", body)
    assert (status, headers["retry-after"]) == (429, "1.5")
    assert json.loads(chunks[0])["error"]["message"] == "slow down"
    error = await Bench().refused(chat_body("Hi", nemo_sandbox={"status": 503}), status=503)
    assert error["type"] == "server_error"


async def test_delays_are_slept():
    bench = Bench(SandboxSettings(latency_ms=250, chunk_delay_ms=10))
    chunks = await bench.stream("Hi")
    assert bench.slept == [0.25] + [0.01] * (len(chunks) + 1)
    bench.slept.clear()
    await bench.chat("Hi", nemo_sandbox={"latency_ms": 0})
    assert bench.slept == []


@pytest.mark.parametrize("script", [{"hang": True}, {"latency_ms": 9000}])
async def test_hanging_is_a_time_out_that_may_have_cost_something(script):
    bench = Bench()
    with pytest.raises(UpstreamError) as caught:
        await bench.raw("/chat/completions", chat_body("Hi", nemo_sandbox=script), first_byte_timeout_s=8.0)
    assert (caught.value.sent, caught.value.timed_out) == (True, True)
    assert bench.slept == [8.0]


@pytest.mark.parametrize(("hang", "slept"), [(False, []), (True, [5.0])])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_dropped_answer_breaks_off_after_so_many_chunks(stream, hang, slept):
    bench = Bench()
    body = chat_body("Hi", stream=stream, nemo_sandbox={"drop_after_chunks": 3, "hang": hang})
    answer = await bench.provider.send(
        ProviderRequest(path="/chat/completions", body=json.dumps(body).encode(), stream=stream, idle_timeout_s=5.0)
    )
    for _ in range(3):
        assert await anext(answer.chunks)
    with pytest.raises(UpstreamError) as caught:
        await anext(answer.chunks)
    await answer.aclose()
    assert caught.value.sent
    assert caught.value.timed_out is hang
    assert bench.slept == slept


async def test_rules_match_by_model_and_text_and_run_out():
    table = {
        "script": [
            {"model": "gpt-4o*", "contains": "flaky", "times": 2, "status": 500},
            {"model": "openai/o3", "text": "by full name"},
        ]
    }
    bench = Bench(SandboxSettings.from_config(table))
    await bench.refused(chat_body("a flaky one"), status=500)
    assert "steady" in text(await bench.chat("a steady one"))
    await bench.refused(chat_body("a flaky one"), status=500)
    assert "flaky" in text(await bench.chat("a flaky one"))
    assert text(await bench.chat("x", model="openai/o3")) == "by full name"
    assert (
        text(await bench.chat("x", model="openai/o3", nemo_sandbox={"text": "the request wins"})) == "the request wins"
    )


@pytest.mark.parametrize(
    "script",
    [
        {"latency_ms": -1},
        {"latency_ms": True},
        {"status": 200},
        {"status": "500"},
        {"nonsense": 1},
        {"text": 5},
        {"tool_calls": []},
        {"tool_calls": [{"arguments": {}}]},
        {"usage": 3},
        {"hang": 1},
        {"retry_after_s": 2},
        {"output_tokens": -1},
        {"drop_after_chunks": 1.5},
        {"finish_reason": "no spaces"},
        {"error": "alone"},
    ],
)
async def test_bad_scripts_are_refused_by_request_and_by_configuration(script):
    error = await Bench().refused(chat_body("Hi", nemo_sandbox=script))
    assert error["param"] == "nemo_sandbox"
    assert next(iter(script)) in error["message"]
    with pytest.raises(SettingsError, match="rule 1"):
        SandboxSettings.from_config({"script": [script]})


@pytest.mark.parametrize(
    "table", [{"latency": 5}, {"latency_ms": "5"}, {"script": {}}, {"script": ["x"]}, {"script": [{"times": 0}]}]
)
def test_bad_settings_are_refused(table):
    with pytest.raises(SettingsError, match="sandbox"):
        SandboxSettings.from_config(table)


# --- bad requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
async def test_bad_requests_name_the_parameter(change, param):
    error = await Bench().refused({**chat_body("Hi"), **change})
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


async def test_bodies_that_are_no_json_object_and_unknown_paths():
    bench = Bench()
    for body in (b"", b"{", b"[]", b"\xff", b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}"):
        await bench.refused(body)
    await bench.refused({}, path="/images", status=404)


# --- embeddings -----------------------------------------------------------------------------------------------------


async def embed(given: Any, model: str = "text-embedding-3-small", **more: Any) -> dict[str, Any]:
    status, _, chunks = await Bench().raw("/embeddings", {"model": model, "input": given, **more})
    assert status == 200, chunks
    return json.loads(b"".join(chunks))


@pytest.mark.parametrize(
    ("model", "more", "size"),
    [
        ("text-embedding-3-small", {}, 1536),
        ("openai/text-embedding-3-large", {}, 3072),
        ("text-embedding-ada-002", {}, 1536),
        ("some-model", {}, 768),
        ("text-embedding-3-large", {"dimensions": 8}, 8),
    ],
)
async def test_embeddings_have_the_models_dimension_and_length_one(model, more, size):
    vector = (await embed("a text", model, **more))["data"][0]["embedding"]
    assert len(vector) == size
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)


async def test_embeddings_of_related_texts_are_nearer():
    rows = (await embed(["red apple pie", "red apple cake", "quantum field theory"]))["data"]
    a, b, c = (row["embedding"] for row in rows)
    near, far = (
        math.sumprod(a, b) if hasattr(math, "sumprod") else sum(map(float.__mul__, a, b)),
        sum(map(float.__mul__, a, c)),
    )
    assert near > 0.4 > far


async def test_embeddings_in_base64_are_the_same_numbers():
    floats = (await embed("x y"))["data"][0]["embedding"]
    packed = base64.b64decode((await embed("x y", encoding_format="base64"))["data"][0]["embedding"])
    assert floats == pytest.approx(struct.unpack(f"<{len(packed) // 4}f", packed))


async def test_embeddings_take_tokens_and_lists_and_count_them():
    assert (await embed([1, 2, 3]))["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    answer = await embed([[1, 2], [3]])
    assert [row["index"] for row in answer["data"]] == [0, 1]
    many = await embed([f"text {n}" for n in range(40)], dimensions=4)
    assert len({tuple(row["embedding"]) for row in many["data"]}) == 40


@pytest.mark.parametrize("given", [None, "", [], [""], 5, [[]], [1, "a"], [True]])
async def test_bad_embedding_inputs(given):
    error = await Bench().refused({"model": "m", "input": given}, path="/embeddings")
    assert error["param"] == "input"


async def test_embeddings_can_be_scripted_to_fail():
    body = {"model": "m", "input": "x", "nemo_sandbox": {"status": 500}}
    await Bench().refused(body, path="/embeddings", status=500)
