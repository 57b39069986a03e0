"""The rules of a key act on every API shape: guardrails, tools, loops, budgets; and a broken stream is an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from clients_bench import EITHER, NANOS, ClientsBench, nanos_of

from nemo_agents.testing.replies import TEXT

MAIL = "ann.lee@example.com"
CARD = "4111 1111 1111 1111"
SAID = f"Mail {MAIL}, card {CARD}."


def chat(bench: ClientsBench, key: str, model: str, text: str, *, stream: bool = False, **fields: Any) -> Any:
    asked: Any = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 40, **fields}
    return bench.openai(key).chat.completions.create(**asked, stream=stream)


def responses(bench: ClientsBench, key: str, model: str, text: str, *, stream: bool = False, **fields: Any) -> Any:
    asked: Any = {"model": model, "input": text, "max_output_tokens": 40, **fields}
    return bench.openai(key).responses.create(**asked, stream=stream)


def completions(bench: ClientsBench, key: str, model: str, text: str, *, stream: bool = False, **fields: Any) -> Any:
    asked: Any = {"model": model, "prompt": text, "max_tokens": 40, **fields}
    return bench.openai(key).completions.create(**asked, stream=stream)


def messages(bench: ClientsBench, key: str, model: str, text: str, *, stream: bool = False, **fields: Any) -> Any:
    asked: Any = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 40, **fields}
    return bench.anthropic(key).messages.create(**asked, stream=stream)


SHAPES: dict[str, Callable[..., Any]] = {
    "chat": chat,
    "responses": responses,
    "completions": completions,
    "messages": messages,
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A call of one API shape, by the client that is made for it."""
    return SHAPES[request.param]


def cost_of(bench: ClientsBench, number: int = -1) -> int:
    """What the provider billed for one of its requests, in nanos."""
    return nanos_of(bench.provider.requests()[number]["bill"])


# --- guardrails -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
def test_personal_data_reaches_neither_the_provider_nor_the_log(
    bench: ClientsBench, speaker: str, shape: Callable[..., Any], stream: bool
):
    answer = shape(bench, bench.key(guardrails=["pii-filter"]), f"{speaker}/sense", SAID, stream=stream)
    if stream:
        list(answer)
    row = bench.row()
    for place in (bench.sent(), bench.content(row)):
        assert MAIL not in json.dumps(place)
        assert CARD not in json.dumps(place)
    assert "EMAIL" in json.dumps(bench.sent()["body"])
    assert row["guardrails"] == ["pii-filter: redact"]


def test_personal_data_is_not_embedded(bench: ClientsBench):
    bench.openai(bench.key(guardrails=["pii-filter"])).embeddings.create(model="native/embedder", input=[SAID, "b"])
    for place in (bench.sent(), bench.content(bench.row())):
        assert MAIL not in json.dumps(place)
        assert "EMAIL" in json.dumps(place)


def test_what_surrounds_a_conversation_is_redacted_too(bench: ClientsBench, speaker: str):
    """Instructions, system prompts, results of tools and their descriptions are texts like any other."""
    key = bench.key(guardrails=["pii-filter"])
    schema = {"type": "object", "properties": {"to": {"type": "string", "default": MAIL}}}
    bench.openai(key).responses.create(
        model=f"{speaker}/sense",
        instructions=f"You serve {MAIL}.",
        input=[
            {"type": "function_call", "call_id": "c1", "name": "send", "arguments": json.dumps({"to": MAIL})},
            {"type": "function_call_output", "call_id": "c1", "output": f"sent to {MAIL}"},
        ],
        tools=[{"type": "function", "name": "send", "description": MAIL, "parameters": schema, "strict": False}],
    )
    use: Any = [{"type": "tool_use", "id": "c1", "name": "send", "input": {"to": MAIL}}]
    result: Any = [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": MAIL}]}]
    bench.anthropic(key).messages.create(
        model=f"{speaker}/sense",
        max_tokens=40,
        system=[{"type": "text", "text": f"You serve {MAIL}."}],
        messages=[
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": use},
            {"role": "user", "content": result},
        ],
        tools=[{"name": "send", "description": MAIL, "input_schema": schema}],
    )
    requests = bench.provider.requests()
    assert len(requests) == 2
    for place in (*requests, *map(bench.content, bench.rows())):
        assert MAIL not in json.dumps(place)
        assert "EMAIL_1" in json.dumps(place)
        assert '"send"' in json.dumps(place)


# --- tools ------------------------------------------------------------------------------------------------------------
def test_a_tool_that_the_provider_runs_itself_is_refused_to_a_role_with_a_list(bench: ClientsBench):
    """A list of tools names functions of the client's; what the provider would run has no name on it."""
    key = bench.key(metadata={"nemo": {"tools": ["weather", "web_search"]}})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        bench.openai(key).responses.create(model="native/sense", input="hi", tools=[{"type": "web_search"}])
    assert refused.value.code == "tool_not_allowed"
    searching: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.PermissionDeniedError) as also:
        messages(bench, key, "native/sense", "hi", tools=[searching])
    assert "tool_not_allowed" in str(also.value.body)
    assert bench.provider.requests() == []


# --- loops and budgets ------------------------------------------------------------------------------------------------
def test_a_loop_is_stopped(bench: ClientsBench, shape: Callable[..., Any]):
    """The same request for the third time in one run is refused, in whatever shape it comes."""
    key = bench.key(metadata={"nemo": {"loop": {"repeats": 3, "within_s": 60, "mode": "enforce"}}})
    headers = {"x-nemo-run-id": f"run-{bench.fleet}"}
    for _ in range(2):
        shape(bench, key, "native/sense", "Again", extra_headers=headers)
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
        shape(bench, key, "native/sense", "Again", extra_headers=headers)
    assert "loop_detected" in json.dumps(caught.value.body)
    assert [row["code"] for row in bench.rows()] == [None, None, "loop_detected"]
    assert len(bench.provider.requests()) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_budget_is_used_up_by_what_calls_cost(
    bench: ClientsBench, speaker: str, shape: Callable[..., Any], stream: bool
):
    """A call is held at its upper bound, posted at its cost, and the next is refused when that bound does not fit."""
    key = bench.key(max_budget=0.0004, budget_duration="1d")
    answers, refused = 0, None
    while refused is None and answers < 50:
        try:
            answer = shape(bench, key, f"{speaker}/sense", "Once upon a time", stream=stream)
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            refused = error
        else:
            answers += 1
            if stream:
                list(answer)
    assert refused is not None
    assert refused.status_code == 402
    assert answers > 3
    assert answers * cost_of(bench) <= 400_000
    spent = bench.ok("GET", "/key/info", key=key)["info"]["spend"]
    assert round(spent * 1e9) == answers * cost_of(bench)


@pytest.mark.parametrize("shape", [chat, responses, completions])  # Messages have no default for the cap
def test_an_answer_is_shortened_to_what_the_budget_leaves(bench: ClientsBench, shape: Callable[..., Any]):
    """Without a cap of the caller's, the gateway sets the one that the budget can pay."""
    key = bench.key(max_budget=0.0005)
    name = "max_output_tokens" if shape is responses else "max_tokens"
    shape(bench, key, "native/sense", "Once", **{name: openai.omit})
    cap = bench.sent()["body"][name]
    assert 0 < cap < 500_000 // NANOS["output"]


# --- streams that break -----------------------------------------------------------------------------------------------
def heard(stream: Any) -> Iterator[str]:
    """The pieces of text of any client's stream."""
    for event in stream:
        if getattr(event, "choices", None):
            choice = event.choices[0]
            yield (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
        elif event.type == "response.output_text.delta":
            yield event.delta
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            yield event.delta.text


@pytest.mark.parametrize("fault", ["breaks", "errs"])
def test_a_stream_that_breaks_is_an_error_of_the_clients(
    bench: ClientsBench, speaker: str, shape: Callable[..., Any], fault: str
):
    """Half an answer never looks whole: the client raises, the call is logged as failed, and the hold is resolved."""
    bench.exact = False  # the provider has told nobody what half an answer is
    pieces: list[str] = []
    stream = heard(shape(bench, bench.key(), f"{speaker}/{fault}", "hi", stream=True))
    with pytest.raises((openai.APIError, anthropic.APIError)) as caught:
        pieces.extend(stream)  # keeps what came before it raised
    assert 0 < len("".join(pieces)) < len(TEXT)
    assert TEXT.startswith("".join(pieces))
    # What the provider said itself is passed on in its own words.
    assert {"breaks": "upstream_error", "errs": "Overloaded"}[fault] in json.dumps(caught.value.body)
    row = bench.row()
    assert (row["state"], row["code"]) == ("failed", "upstream_error")
    assert "".join(pieces).strip() in json.dumps(bench.content(row)["answer"])


async def test_a_stream_that_breaks_is_an_error_of_the_asynchronous_clients(bench: ClientsBench, speaker: str):
    bench.exact = False
    asked: Any = {"model": f"{speaker}/breaks", "messages": [{"role": "user", "content": "hi"}]}
    async with bench.async_openai() as client:
        with pytest.raises(openai.APIError):
            async for _ in await client.chat.completions.create(**asked, stream=True):
                pass
        with pytest.raises(openai.APIError):
            async for _ in await client.responses.create(model=asked["model"], input="hi", stream=True):
                pass
    async with bench.async_anthropic() as client_of_messages:
        with pytest.raises(anthropic.APIError):
            async for _ in await client_of_messages.messages.create(**asked, max_tokens=40, stream=True):
                pass
    assert [row["state"] for row in bench.rows()] == ["failed"] * 3


def test_a_client_that_leaves_pays_for_what_was_served(bench: ClientsBench, speaker: str, shape: Callable[..., Any]):
    """The provider is read on to the end of its stream, which says what it cost; no hold stays open."""
    with shape(bench, bench.key(), f"{speaker}/sense", "hi", stream=True) as stream:
        assert next(heard(stream)) is not None
    bench.settle()
    assert bench.row()["state"] in ("ok", "abandoned")
    assert bench.row()["cost_nanos"] == cost_of(bench)


# --- falling back -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("shape", "group"), list(zip(SHAPES.values(), EITHER, strict=True)))
def test_the_next_deployment_may_speak_another_wire(
    bench: ClientsBench, shape: Callable[..., Any], group: str, stream: bool
):
    """A provider that serves the shape itself is overloaded; the next is asked by chat, and the client sees no seam."""
    answer = shape(bench, bench.key(), group, "hi", stream=stream)
    text = "".join(heard(answer)) if stream else answer.model_dump_json()
    assert TEXT in text
    asked = [(request["path"], request["status"]) for request in bench.provider.requests()]
    assert asked == [(bench.row()["endpoint"], 529), ("/v1/chat/completions", 200)]
    row = bench.row()
    assert (row["provider"], row["attempts"], row["state"]) == ("chatonly", 2, "ok")
