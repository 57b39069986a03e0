"""Streams: chunk by chunk, broken off by the provider, left by the client, and cut by the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from faulty_provider import TEXT
from gateway_bench import INPUT_NANOS, OUTPUT_NANOS, Bench, Key, bench_for, gateway_at, refused

MESSAGES = [{"role": "user", "content": "hi"}]
WORDS = len(TEXT.split())


@contextmanager
def streamed(
    bench: Bench, key: Key, model: str, *, headers: dict[str, str] | None = None, **body: Any
) -> Iterator[httpx.Response]:
    """Open a stream, without reading any of it; leaving the block leaves the stream."""
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 50, "stream": True, **body}
    sent = {**key.headers, **(headers or {})}
    with (
        httpx.Client(base_url=bench.url, trust_env=False, verify=False, timeout=30) as http,
        http.stream("POST", "/v1/chat/completions", json=asked, headers=sent) as answer,
    ):
        yield answer


def events(text: str) -> list[Any]:
    """What a stream said, every event of which must be whole."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    said = [block.removeprefix("data: ") for block in blocks]
    return [each if each == "[DONE]" else json.loads(each) for each in said]


def text_of(said: list[Any]) -> str:
    chunks = [each for each in said if each != "[DONE]" and each.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def test_every_piece_arrives_when_it_is_made_and_not_later(bench: Bench):
    with streamed(bench, bench.key(), "faulty/stepped") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "x-nemo-request-cost" not in answer.headers
        parts = answer.iter_text()
        assert '"role":"assistant"' in next(parts)
        for word in TEXT.split()[:-1]:
            bench.faulty.release()
            assert word in next(parts)
        bench.faulty.release()
        assert "".join(parts).endswith("data: [DONE]\n\n")
    row = bench.row(answer)
    assert (row["state"], row["output_tokens"]) == ("ok", WORDS)
    assert 0 < row["ttft_us"] < row["latency_us"]


def test_a_long_stream_arrives_whole(bench: Bench):
    answer = bench.chat(bench.key(), "faulty/many-chunks", stream=True, max_tokens=2000)
    said = events(answer.text)
    assert text_of(said) == " ".join(f"w{n}" for n in range(2000))
    assert said[-1] == "[DONE]"
    row = bench.row(answer)
    assert (row["output_tokens"], row["cost_nanos"]) == (2000, INPUT_NANOS + 2000 * OUTPUT_NANOS)
    assert bench.content(answer)["answer"]["content"] == text_of(said)


@pytest.mark.parametrize(("model", "dones"), [("ok", 1), ("done-missing", 0), ("done-twice", 2), ("done-drop", 1)])
def test_the_end_of_a_stream_is_the_provider_s(bench: Bench, model: str, dones: int):
    answer = bench.chat(bench.key(), f"faulty/{model}", stream=True)
    assert answer.text.count("data: [DONE]\n\n") == dones
    row = bench.row(answer)
    assert (row["state"], row["usage_source"]) == ("ok", "provider")


def test_tool_calls_are_put_together_in_the_log(bench: Bench):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    answer = bench.chat(bench.key(), "faulty/tools", stream=True, tools=tools)
    (call,) = bench.content(answer)["answer"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert bench.row(answer)["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("model", ["drop-mid-stream", "drop-mid-body", "half-event"])
def test_a_stream_that_the_provider_breaks_off_ends_with_an_error(bench: Bench, model: str):
    answer = bench.chat(bench.key(), f"faulty/{model}", stream=True)
    assert answer.status_code == 200
    *whole, last = events(answer.text)
    assert text_of(whole) == " ".join(TEXT.split()[: WORDS // 2])
    assert last["error"]["code"] == "upstream_error"
    assert last["request_id"] == answer.headers["x-nemo-request-id"]
    row = bench.row(answer)
    expected = {
        "state": "failed",
        "status": 502,
        "code": "upstream_error",
        "error": last["error"]["message"],
        "usage_source": "hold",
        "output_tokens": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["cost_nanos"] == row["held_nanos"]
    assert row["ttft_us"] > 0
    assert bench.content(answer)["answer"]["content"] == text_of(whole)


BROKEN: dict[str, Any] = {
    "model": "faulty/drop-mid-stream",
    "messages": MESSAGES,
    "stream": True,
    "max_tokens": 50,
}


def read_all(bench: Bench, key: Key, said: list[str]) -> None:
    said += (chunk.choices[0].delta.content or "" for chunk in bench.client(key).chat.completions.create(**BROKEN))


async def read_all_async(bench: Bench, key: Key, said: list[str]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key=key.secret) as client:
        stream = await client.chat.completions.create(**BROKEN)
        async for chunk in stream:
            said += [chunk.choices[0].delta.content or ""]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_the_clients_raise_when_a_stream_breaks(bench: Bench, asynchronous: bool):
    key = bench.key()
    said: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        asyncio.run(read_all_async(bench, key, said)) if asynchronous else read_all(bench, key, said)
    assert caught.value.code == "upstream_error"
    assert "".join(said) == " ".join(TEXT.split()[: WORDS // 2])
    assert len(bench.sent()) == 1


def test_an_error_event_of_the_provider_is_passed_on_and_recorded(bench: Bench):
    answer = bench.chat(bench.key(), "faulty/sse-error-event", stream=True)
    said = events(answer.text)
    assert said[-1]["error"]["message"] == "the model is overloaded"
    row = bench.row(answer)
    assert (row["state"], row["status"], row["code"]) == ("failed", 502, "upstream_error")
    assert row["error"] == "the model is overloaded"
    assert row["cost_nanos"] == row["held_nanos"]


def test_a_line_of_two_megabytes(bench: Bench):
    """It is passed on, or the stream ends with an error; it never takes the gateway with it."""
    answer = bench.chat(bench.key(), "faulty/huge-line", stream=True)
    row = bench.row(answer)
    if row["state"] == "ok":
        assert "x" * (2 << 20) in answer.text
    else:
        assert events(answer.text)[-1]["error"]["code"] == "upstream_error"
        assert row["cost_nanos"] == row["held_nanos"]


def test_bytes_that_are_no_text_are_passed_on(bench: Bench):
    answer = bench.chat(bench.key(), "faulty/bad-utf8", stream=True)
    assert b"\xff\xfe" in answer.content
    row = bench.row(answer)
    assert (row["state"], row["usage_source"]) == ("ok", "provider")


# --- usage that is not the last -----------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["usage-running-drop", "usage-running-end", "usage-running-error"])
def test_a_broken_stream_is_charged_at_its_hold_whatever_usage_it_had_told_so_far(bench: Bench, model: str):
    """What was told in the middle is of what had been made by then, and the provider may have made more."""
    answer = bench.chat(bench.key(max_budget=1), f"faulty/{model}", stream=True)
    last = events(answer.text)[-1]
    assert last["error"]
    row = bench.row(answer)
    expected = {"state": "failed", "status": 502, "code": "upstream_error", "usage_source": "hold"}
    assert {name: row[name] for name in expected} == expected
    assert row["output_tokens"] is None
    assert row["cost_nanos"] == row["held_nanos"] > INPUT_NANOS + WORDS * OUTPUT_NANOS


def test_usage_that_every_chunk_tells_counts_when_the_stream_is_whole(bench: Bench):
    answer = bench.chat(bench.key(), "faulty/usage-running", stream=True)
    assert text_of(events(answer.text)) == TEXT
    row = bench.row(answer)
    assert (row["state"], row["usage_source"], row["output_tokens"]) == ("ok", "provider", WORDS)
    assert row["cost_nanos"] == INPUT_NANOS + WORDS * OUTPUT_NANOS


# --- the client leaves --------------------------------------------------------------------------------------------
def test_a_stream_whose_client_leaves_is_read_to_its_end_and_charged_for_it(bench: Bench):
    with streamed(bench, bench.key(), "faulty/stepped") as answer:
        assert '"role":"assistant"' in next(answer.iter_text())
    bench.faulty.release(WORDS)
    bench.all_over()
    (record,) = bench.faulty.seen(finished=True)["requests"]
    assert not record["client_left"]
    row = bench.row(answer)
    expected = {
        "state": "abandoned",
        "status": 499,
        "usage_source": "provider",
        "output_tokens": WORDS,
        "cost_nanos": INPUT_NANOS + WORDS * OUTPUT_NANOS,
    }
    assert {name: row[name] for name in expected} == expected
    assert bench.content(answer)["answer"]["content"] == TEXT


def test_clients_that_leave_a_fast_stream_leave_nothing_open(bench: Bench):
    key = bench.key(max_parallel_requests=20, max_budget=1)

    def leave_early(_n: int) -> httpx.Response:
        with streamed(bench, key, "faulty/many-chunks", max_tokens=2000) as answer:
            next(answer.iter_raw())
        return answer

    answers = list(bench.pool.map(leave_early, range(10)))
    bench.all_over()
    for answer in answers:
        row = bench.row(answer)
        assert row["state"] in ("abandoned", "ok")
        assert row["cost_nanos"] == INPUT_NANOS + 2000 * OUTPUT_NANOS


@pytest.mark.parametrize("model", ["stepped", "usage-running-stepped"])
def test_a_provider_that_does_not_finish_for_a_client_that_left_is_left_too(tmp_path, shared_provider, model):
    with (
        gateway_at(tmp_path / "home", shared_provider, drain_timeout_s=0.2) as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        with streamed(bench, bench.key(), f"faulty/{model}") as answer:
            assert '"role":"assistant"' in next(answer.iter_text())
        (record,) = bench.faulty.seen(finished=True)["requests"]
        assert record["client_left"]
        bench.all_over()
        row = bench.row(answer)
        assert (row["state"], row["status"], row["usage_source"]) == ("abandoned", 499, "hold")
        assert row["cost_nanos"] == row["held_nanos"]


def test_a_plain_call_whose_client_leaves_is_charged_for_what_it_cost(bench: Bench):
    key = bench.key()
    body = {"model": "faulty/slow-first-byte", "messages": MESSAGES, "max_tokens": 50}
    with pytest.raises(httpx.ReadTimeout):
        bench.http.post("/v1/chat/completions", json=body, headers=key.headers, timeout=0.3)
    bench.faulty.seen(at_least=1)
    bench.faulty.release()
    bench.all_over()
    (row,) = bench.logs()
    assert row["cost_nanos"] == INPUT_NANOS + WORDS * OUTPUT_NANOS


# --- the gateway cuts ---------------------------------------------------------------------------------------------
RUN = {"x-nemo-run-id": "run-to-stop"}


def stop_run(bench: Bench, key: Key) -> None:
    bench.ok("POST", "/nemo/runs/run-to-stop/stop", fleet=bench.fleet)


def block_key(bench: Bench, key: Key) -> None:
    bench.ok("POST", "/key/block", {"key": key.public_id})


def revoke_key(bench: Bench, key: Key) -> None:
    bench.ok("POST", "/key/delete", {"keys": [key.public_id]})


def block_fleet(bench: Bench, key: Key) -> None:
    bench.ok("POST", "/team/update", {"team_id": bench.fleet, "blocked": True})


CUTS = pytest.mark.parametrize(
    ("cut", "code", "scope"),
    [
        (stop_run, "run_stopped", "run"),
        (block_key, "key_blocked", "key"),
        (revoke_key, "key_revoked", "key"),
        (block_fleet, "key_blocked", "fleet"),
    ],
)


@CUTS
def test_a_stream_in_flight_is_cut_and_the_next_call_refused(bench: Bench, cut: Any, code: str, scope: str):
    bench.ok("POST", "/team/new", {"team_id": bench.fleet})
    key = bench.key(max_budget=1)
    other = bench.key(fleet=f"{bench.fleet}-other")
    with (
        streamed(bench, other, "faulty/stepped", headers=RUN) as of_others,
        streamed(bench, key, "faulty/stepped", headers=RUN) as answer,
    ):
        theirs, parts = of_others.iter_text(), answer.iter_text()
        next(theirs)
        next(parts)
        bench.faulty.seen(at_least=2)
        cut(bench, key)
        (last,) = events("".join(parts))
        bench.faulty.release(WORDS)  # the same run id of another fleet goes on
        assert "".join(theirs).endswith("data: [DONE]\n\n")
    assert last["error"]["code"] == code
    assert last["error"]["scope"] == scope
    row = bench.row(answer)
    assert (row["state"], row["status"], row["code"], row["usage_source"]) == ("failed", 403, code, "hold")
    assert row["cost_nanos"] == row["held_nanos"]
    refused(bench.chat(key, headers=RUN), 403, code)
    assert bench.row(of_others)["state"] == "ok"
    assert [record["client_left"] for record in bench.faulty.seen(finished=True)["requests"]] == [False, True]


@CUTS
def test_a_plain_call_in_flight_is_cut(bench: Bench, cut: Any, code: str, scope: str):
    bench.ok("POST", "/team/new", {"team_id": bench.fleet})
    key = bench.key()
    waiting = bench.later(bench.chat, key, "faulty/slow-first-byte", headers=RUN)
    bench.faulty.seen(at_least=1)
    cut(bench, key)
    refused(waiting.result(), 403, code, scope=scope)
    row = bench.row(waiting.result())
    assert row["cost_nanos"] == row["held_nanos"]
    assert bench.faulty.seen(finished=True)["requests"][0]["client_left"]


def test_a_key_that_is_blocked_while_a_body_is_on_its_way_sends_nothing(bench: Bench):
    """The key was good when the request began; what counts is when it would be sent."""
    key = bench.key()
    content = json.dumps({"model": "faulty/ok", "messages": MESSAGES}).encode()

    def parts() -> Iterator[bytes]:
        yield content[:10]
        block_key(bench, key)
        yield content[10:]

    refused(bench.raw(key, parts()), 403, "key_blocked")
    assert bench.sent() == []
