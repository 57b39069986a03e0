"""Calls through the gateway to a provider that behaves, and to one that does not: answers, money, request log."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from faulty_provider import TEXT
from gateway_bench import INPUT_NANOS, OUTPUT_NANOS, PRICE, PROVIDER_KEY, Bench, Key, bench_for, gateway_at, refused

from nemo_agents import AgentRole, Fleet
from nemo_agents.admin import observe
from nemo_agents.errors import RequestRejected
from nemo_agents.testing import running_gateway

HI = [{"role": "user", "content": "hi there"}]
WORDS = len(TEXT.split())
FULL_COST = 2 * INPUT_NANOS + WORDS * OUTPUT_NANOS


async def _ask_async(bench: Bench, secret: str, stream: bool) -> tuple[str, str]:
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key=secret, max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="faulty/ok", messages=HI, max_tokens=50, stream=stream
        )
        answer = raw.parse()
        request_id = raw.headers["x-nemo-request-id"]
        if not stream:
            return request_id, answer.choices[0].message.content
        return request_id, "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


def _ask_sync(bench: Bench, secret: str, stream: bool) -> tuple[str, str]:
    with openai.OpenAI(base_url=f"{bench.url}/v1", api_key=secret, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="faulty/ok", messages=HI, max_tokens=50, stream=stream
        )
        answer = raw.parse()
        request_id = raw.headers["x-nemo-request-id"]
        if not stream:
            return request_id, answer.choices[0].message.content
        return request_id, "".join(chunk.choices[0].delta.content or "" for chunk in answer)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_openai_clients_get_the_whole_answer_and_it_is_recorded(bench: Bench, stream: bool, asynchronous: bool):
    key = bench.key(metadata={"nemo": {"role": "asker"}})
    if asynchronous:
        request_id, text = asyncio.run(_ask_async(bench, key.secret, stream))
    else:
        request_id, text = _ask_sync(bench, key.secret, stream)
    assert text == TEXT
    (row,) = bench.logs()
    expected = {
        "request_id": request_id,
        "run_id": request_id,
        "step": None,
        "fleet": bench.fleet,
        "role": "asker",
        "key_id": key.public_id,
        "endpoint": "/v1/chat/completions",
        "stream": stream,
        "model_asked": "faulty/ok",
        "model_served": "ok",
        "provider": "faulty",
        "state": "ok",
        "status": 200,
        "code": None,
        "error": None,
        "input_tokens": 2,
        "output_tokens": WORDS,
        "cached_tokens": 0,
        "cost_nanos": FULL_COST,
        "usage_source": "provider",
        "finish_reason": "stop",
        "attempts": 1,
    }
    assert {name: row[name] for name in expected} == expected
    assert 0 < row["ttft_us"] <= row["latency_us"]
    assert row["held_nanos"] > row["cost_nanos"]
    assert bench.spent() == (FULL_COST, 0)
    content = bench.ok("GET", f"/nemo/calls/{request_id}/content")
    assert content["prompt"] == HI
    assert content["answer"]["content"] == TEXT
    assert content["params"]["max_tokens"] == 50


def test_a_call_carries_its_facts_in_the_headers(bench: Bench):
    key = bench.key(max_budget=1.0, rpm_limit=10, tpm_limit=10_000)
    answer = bench.chat(key, headers={"x-nemo-run-id": "r-1", "x-nemo-step": "plan"})
    cost = INPUT_NANOS + WORDS * OUTPUT_NANOS
    expected = {
        "x-nemo-provider": "faulty",
        "x-nemo-attempts": "1",
        "x-nemo-run-id": "r-1",
        "x-nemo-request-cost": f"0.0000{cost // 1000}",
        "x-nemo-budget-remaining": f"{1 - cost / 1e9:.6f}",
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-limit-tokens": "10000",
    }
    assert {name: answer.headers.get(name) for name in expected} == expected
    assert {"x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"} <= set(answer.headers)
    assert "x-nemo-budget-warning" not in answer.headers
    assert answer.headers["x-nemo-request-id"].startswith("req_")
    row = bench.row(answer)
    assert (row["run_id"], row["step"], row["seq"]) == ("r-1", "plan", 1)


@pytest.mark.parametrize("model", ["ok", "usage-last"])
def test_usage_of_a_stream_is_shown_to_those_who_ask_for_it_alone(bench: Bench, model: str):
    client = bench.client(bench.key())
    kept_quiet = list(client.chat.completions.create(model=f"faulty/{model}", messages=HI, stream=True, max_tokens=50))
    assert all(chunk.choices and chunk.usage is None for chunk in kept_quiet)
    told = list(
        client.chat.completions.create(
            model=f"faulty/{model}",
            messages=HI,
            stream=True,
            max_tokens=50,
            stream_options={"include_usage": True},
        )
    )
    assert told[-1].choices == []
    assert (told[-1].usage.prompt_tokens, told[-1].usage.completion_tokens) == (2, WORDS)
    assert [row["cost_nanos"] for row in bench.logs()] == [FULL_COST, FULL_COST]
    assert all(request["body"]["stream_options"] == {"include_usage": True} for request in bench.sent())


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_call_whose_usage_nobody_tells_is_charged_at_its_hold(bench: Bench, stream: bool):
    answer = bench.chat(bench.key(), "faulty/usage-missing", stream=stream)
    assert answer.status_code == 200
    assert "x-nemo-request-cost" not in answer.headers
    row = bench.row(answer)
    assert row["state"] == "ok"
    assert row["usage_source"] == "hold"
    assert row["input_tokens"] is row["output_tokens"] is None
    assert row["cost_nanos"] == row["held_nanos"] > 0
    assert bench.spent() == (row["held_nanos"], 0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_an_answer_with_status_201_is_an_answer(bench: Bench, stream: bool):
    answer = bench.chat(bench.key(), "faulty/created", stream=stream)
    assert answer.status_code == 200
    assert answer.text.count("forty") == 1
    row = bench.row(answer)
    assert (row["state"], row["usage_source"], row["cost_nanos"]) == (
        "ok",
        "provider",
        INPUT_NANOS + WORDS * OUTPUT_NANOS,
    )


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_the_ledger_keeps_all_that_the_provider_counted(bench: Bench, stream: bool):
    answer = bench.chat(bench.key(), "faulty/usage-detailed", text="hi there", stream=stream)
    assert bench.usage(answer) == {
        "input_tokens": 2,
        "cached_tokens": 1,
        "cache_write_tokens": 1,
        "output_tokens": WORDS,
        "reasoning_tokens": 1,
    }


def test_a_slow_first_byte_is_waited_for_and_measured(bench: Bench):
    key = bench.key()
    waiting = bench.later(bench.chat, key, "faulty/slow-first-byte", stream=True)
    bench.faulty.seen(at_least=1)
    (row,) = bench.logs()
    assert row["state"] == "open"
    assert bench.spent() == (0, row["held_nanos"])
    bench.faulty.release()
    answer = waiting.result()
    assert answer.text.endswith("data: [DONE]\n\n")
    row = bench.row(answer)
    assert row["state"] == "ok"
    assert 0 < row["ttft_us"] <= row["latency_us"]


def test_embeddings_are_charged_for_their_input(bench: Bench):
    client = bench.client(bench.key(max_budget=1.0))
    answer = client.embeddings.create(model="faulty/ok", input=["one two", "three"], dimensions=4)
    assert [len(each.embedding) for each in answer.data] == [4, 4]
    (row,) = bench.logs()
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("/v1/embeddings", 3, 0)
    assert row["cost_nanos"] == 3 * INPUT_NANOS
    assert "max_tokens" not in bench.sent()[0]["body"]


def test_models_are_those_that_the_key_may_use(bench: Bench):
    client = bench.client(bench.key(models=("faulty/ok", "faulty/ec*")))
    assert [model.id for model in client.models.list()] == ["faulty/ok", "faulty/echo"]  # the pattern is spelt out
    refused(bench.http.get("/v1/models"), 401, "invalid_api_key")


VOID, HOLD = "void", "hold"
UPSTREAM = "upstream_error"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("model", "status", "code", "charged"),
    [
        ("faulty/error-500", 502, UPSTREAM, VOID),
        ("faulty/unauthorized", 502, UPSTREAM, VOID),
        ("faulty/redirect", 502, UPSTREAM, HOLD),
        ("faulty/accepted", 502, UPSTREAM, HOLD),
        ("faulty/no-content", 502, UPSTREAM, HOLD),
        ("faulty/drop-before-head", 502, UPSTREAM, HOLD),
        ("faulty/not-json", 502, UPSTREAM, HOLD),
        ("faulty/error-200", 502, UPSTREAM, HOLD),
        ("down/ok", 502, UPSTREAM, VOID),
    ],
)
def test_a_failing_provider_has_one_clear_answer(
    bench: Bench, *, model: str, status: int, code: str, charged: str, stream: bool
):
    key = bench.key(models=("faulty/*", "down/*"))
    answer = bench.chat(key, model, stream=stream, headers={"x-nemo-run-id": "r1", "x-nemo-step": "s1"})
    error = refused(answer, status, code)
    assert model in error["message"]
    assert PROVIDER_KEY not in answer.text
    assert answer.headers["x-nemo-attempts"] == "1"
    row = bench.row(answer)
    expected = {
        "state": "failed",
        "status": status,
        "code": code,
        "error": error["message"],
        "step": "s1",
        "run_id": "r1",
        "attempts": 1,
        "stream": stream,
        "usage_source": "none" if charged == VOID else "hold",
    }
    assert {name: row[name] for name in expected} == expected
    assert row["cost_nanos"] == (0 if charged == VOID else row["held_nanos"])
    (attempt,) = row["attempt_rows"]
    assert (attempt["provider"], attempt["reason"]) == (model.split("/", maxsplit=1)[0], "first")
    assert attempt["error"]
    assert all(request["path"] != "/_trap" for request in bench.sent())


@pytest.mark.parametrize("model", ["drop-mid-body", "bad-utf8"])
def test_a_body_that_breaks_is_an_error_and_charged_at_its_hold(bench: Bench, model: str):
    answer = bench.chat(bench.key(), f"faulty/{model}")
    refused(answer, 502, "upstream_error")
    row = bench.row(answer)
    assert row["cost_nanos"] == row["held_nanos"]
    assert row["usage_source"] == "hold"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_the_clients_raise_what_a_provider_s_failure_deserves(bench: Bench, asynchronous: bool):
    key = bench.key(models=())
    wanted = {
        "faulty/rate-limited": openai.RateLimitError,
        "faulty/error-500": openai.InternalServerError,
        "faulty/drop-before-head": openai.InternalServerError,
        "faulty/bad-request": openai.BadRequestError,
        "down/ok": openai.InternalServerError,
        "nowhere/ok": openai.NotFoundError,
    }

    async def ask(model: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key=key.secret) as client:
            await client.with_options(max_retries=0).chat.completions.create(model=model, messages=HI)

    client = bench.client(key)
    for model, error in wanted.items():
        with pytest.raises(error):
            asyncio.run(ask(model)) if asynchronous else client.chat.completions.create(model=model, messages=HI)


def test_a_provider_s_own_limit_is_passed_on_with_its_time(bench: Bench):
    answer = bench.chat(bench.key(), "faulty/rate-limited")
    refused(answer, 429, "rate_limit_exceeded", scope="provider", limit="provider", retry_after_ms=1000)
    assert answer.headers["retry-after"] == "1"
    row = bench.row(answer)
    assert (row["state"], row["status"], row["scope"], row["cost_nanos"]) == ("failed", 429, "provider", 0)


def test_the_client_s_own_retry_gets_through_after_the_provider_s_limit(bench: Bench):
    client = bench.client(bench.key(), max_retries=1)
    answer = client.chat.completions.create(model="faulty/rate-limited-once", messages=HI, max_tokens=50)
    assert answer.choices[0].message.content == TEXT
    assert [row["status"] for row in bench.logs()] == [429, 200]


def test_nothing_retries_against_a_failed_provider(bench: Bench):
    """The gateway has tried what there is to try; the client, which would retry a 5xx twice, is told not to."""
    client = bench.client(bench.key(), max_retries=2)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="faulty/error-500", messages=HI)
    assert len(bench.sent()) == 1


def test_a_provider_s_refusal_of_the_request_is_passed_on_in_its_words(bench: Bench):
    answer = bench.chat(bench.key(), "faulty/bad-request")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Unsupported value"
    assert answer.headers["x-should-retry"] == "false"
    row = bench.row(answer)
    assert (row["state"], row["status"], row["cost_nanos"]) == ("failed", 400, 0)


def test_a_provider_that_does_not_answer_in_time(tmp_path, shared_provider):
    with (
        gateway_at(tmp_path / "home", shared_provider, first_byte_timeout_s=0.2) as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        for stream in (False, True):
            answer = bench.chat(bench.key(), "faulty/hang", stream=stream)
            refused(answer, 504, "upstream_timeout")
            row = bench.row(answer)
            assert (row["state"], row["usage_source"]) == ("failed", "hold")
            assert row["cost_nanos"] == row["held_nanos"]
        assert bench.faulty.seen(finished=True)["requests"][0]["client_left"]


def test_what_a_client_says_about_the_provider_never_reaches_it(bench: Bench):
    answer = bench.chat(
        bench.key(),
        headers={
            "x-api-base": "http://127.0.0.1:1",
            "openai-organization": "org-mine",
            "x-my-header": "canary",
            "cookie": "canary",
        },
        api_base="http://127.0.0.1:1/canary",
        base_url="http://127.0.0.1:1/canary",
        api_key="sk-canary-of-the-client",
        extra_headers={"x-evil": "canary"},
        nemo_anything="of the gateway",
        session_id="s-1",
        logit_bias={"1": 1},
        an_unknown_field=[1],
    )
    assert answer.status_code == 200
    (sent,) = bench.sent()
    assert sent["headers"]["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert "canary" not in str(sent).replace(PROVIDER_KEY, "")
    assert bench.gateway.url.removeprefix("http://") not in str(sent)
    assert set(sent["headers"]) <= {
        "authorization",
        "host",
        "content-type",
        "content-length",
        "accept",
        "accept-encoding",
        "user-agent",
        "connection",
    }
    assert sent["body"] == {
        "model": "ok",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 50,
        "logit_bias": {"1": 1},
        "an_unknown_field": [1],
    }
    assert "canary" not in str(bench.content(answer))


def test_the_provider_gets_what_was_checked_and_not_the_client_s_bytes(bench: Bench):
    """Of a key that comes twice one value is checked; the same one is sent, whichever another parser would take."""
    key = bench.key(models=("faulty/ok",))
    twice = b'{"model":"faulty/echo","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"model":"faulty/ok"}'
    assert bench.raw(key, twice).status_code == 200
    assert bench.sent()[0]["body"]["model"] == "ok"
    other = b'{"model":"faulty/ok","messages":[{"role":"user","content":"hi"}],"model":"faulty/echo"}'
    refused(bench.raw(key, other), 403, "model_not_allowed")
    capped = b'{"model":"faulty/ok","messages":[{"role":"user","content":"hi"}],"max_tokens":9,"max_tokens":3}'
    assert bench.raw(key, capped).json()["usage"]["completion_tokens"] == 3
    assert [request["body"]["model"] for request in bench.sent()] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("asked", "cap"),
    [({}, 4096), ({"max_tokens": 7}, 7), ({"max_completion_tokens": 8}, 8), ({"max_tokens": None}, 4096)],
)
def test_an_output_cap_is_always_written(bench: Bench, asked: dict[str, Any], cap: int):
    key = bench.key()
    body = {"model": "faulty/ok", "messages": HI, "stream_options": {"include_usage": True}, **asked}
    answer = bench.http.post("/v1/chat/completions", json=body, headers=key.headers)
    assert answer.status_code == 200
    (sent,) = bench.sent()
    assert sent["body"] == {"model": "ok", "messages": HI, "max_tokens": cap}


def test_content_is_not_kept_where_the_gateway_is_told_so(tmp_path, shared_provider):
    with (
        gateway_at(tmp_path / "home", shared_provider, content="none") as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        answer = bench.chat(bench.key(), text="canary-prompt")
        assert bench.content(answer) == {
            "request_id": answer.headers["x-nemo-request-id"],
            "prompt": [],
            "params": {},
            "answer": None,
        }
        assert bench.row(answer)["output_tokens"] == WORDS
        assert b"canary-prompt" not in (gateway.home / "gateway.db").read_bytes()


def test_the_sandbox_stands_in_for_a_provider_without_credentials(tmp_path):
    with running_gateway(tmp_path / "home") as gateway:
        fleet = gateway.provision(Fleet("crew", budget="$1", roles=[AgentRole("asker", models=["gpt-4o-mini"])]))
        with fleet.run("a run") as run, run.step("ask", role="asker") as step:
            client = step.openai()
            plain = client.chat.completions.create(model="gpt-4o-mini", messages=HI, max_tokens=50)
            stream = client.chat.completions.create(model="gpt-4o-mini", messages=HI, max_tokens=50, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        for answer in (plain.choices[0].message.content, text):
            assert answer.startswith("[sandbox gpt-4o-mini]")
        assert run.cost.nanos > 0
        with gateway.admin() as admin:
            calls = admin.run(observe.run(run.id)).calls
        assert [(call.provider, call.model_served, call.usage_source) for call in calls] == [
            ("sandbox", "gpt-4o-mini", "provider")
        ] * 2
        assert sum(call.cost_nanos for call in calls) == run.cost.nanos
        assert gateway.ledger_problems() == []


def test_the_remedy_for_an_unpriced_model_behind_the_sandbox_works(tmp_path):
    """The refusal names the model that the sandbox stands in for, and a price under that name is what it takes."""
    crew = Fleet("crew", budget="$1", roles=[AgentRole("asker", models=["openai/foo-1"])])

    def ask(home: str, prices: dict[str, Any]) -> str:
        with running_gateway(tmp_path / home, settings={"prices": prices}) as gateway:
            fleet = gateway.provision(crew)
            with fleet.run("a run") as run, run.step("ask", role="asker") as step:
                answer = step.openai().chat.completions.create(model="openai/foo-1", messages=HI, max_tokens=50)
        return answer.choices[0].message.content

    with pytest.raises(RequestRejected, match=r'\[prices\."openai/foo-1"\]'):
        ask("unpriced", {})
    assert ask("priced", {"openai/foo-1": PRICE}).startswith("[sandbox foo-1]")


# --- a client that does not read ----------------------------------------------------------------------------------
def _post(url: str, key: Key, model: str, text: str, **body: Any) -> bytes:
    raw = json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **body}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
        f"authorization: Bearer {key.secret}\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


@pytest.mark.parametrize(
    ("model", "stream"), [("faulty/usage-last", False), ("faulty/usage-last", True), ("faulty/bad-request", False)]
)
def test_an_answer_that_nobody_reads_lets_go_of_its_place(tmp_path, shared_provider, model: str, stream: bool):
    """Two calls come on one connection; the first answer fills it, so that the second has nowhere to go."""
    with (
        gateway_at(tmp_path / "home", shared_provider, client_timeout_s=0.3) as gateway,
        bench_for(gateway, shared_provider) as bench,
        socket.socket() as silent,
    ):
        key = bench.key(max_parallel_requests=1)
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        address = urlsplit(gateway.url)
        silent.connect((address.hostname, address.port))
        silent.sendall(_post(gateway.url, key, "faulty/echo", "x" * 4_000_000))
        silent.sendall(_post(gateway.url, key, model, "hi", max_tokens=50, stream=stream))
        bench.faulty.seen(at_least=2, finished=True)
        bench.until(lambda: bench.chat(key).status_code == 200)
        states = [row["state"] for row in bench.logs()]
        assert "open" not in states
        silent.close()
