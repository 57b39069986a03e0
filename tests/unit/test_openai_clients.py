"""The ready OpenAI clients, driven against a recording server on loopback."""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import openai
import pytest
from recording_gateway import RecordingGateway, Told, chunk, recording_gateway, refusal

from nemo_agents import (
    AgentRole,
    BudgetExceeded,
    Fleet,
    GatewayUnavailable,
    GatewayUnreachable,
    GuardrailBlocked,
    KeyRejected,
    RateLimited,
    RunStopped,
    UpstreamFailed,
    current_run,
    current_step,
)

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def fleet(gateway: RecordingGateway, tmp_path):
    roles = [AgentRole("researcher", models=["gpt-4o-mini"]), AgentRole("writer", models=["gpt-4o-mini"])]
    environ = {"NEMO_KEY_RESEARCHER": KEY, "NEMO_KEY_WRITER": KEY.replace("abcdefghij-", "writerkeys-")}
    return Fleet("crew", roles=roles).connect(gateway.url, home=tmp_path, environ=environ)


def span_of(headers: dict[str, str]) -> tuple[str, str]:
    version, trace_id, span_id, flags = headers["traceparent"].split("-")
    assert (version, flags) == ("00", "01")
    return trace_id, span_id


# --- headers --------------------------------------------------------------------------------------------------------
def test_a_call_says_its_run_step_and_caps(gateway, fleet):
    with fleet.run("who?", budget="$0.50", max_calls=200) as run, run.step("research", "researcher") as step:
        answer = step.openai().chat.completions.create(**ASK)
        step.openai().chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "hi"
    for seen in gateway.seen:
        assert seen.path == "/v1/chat/completions"
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert seen.headers["x-nemo-run-id"] == run.id
        assert seen.headers["x-nemo-run-name"] == "who?"
        assert seen.headers["x-nemo-step"] == "research"
        assert seen.headers["x-nemo-run-budget"] == "0.5"
        assert seen.headers["x-nemo-run-max-calls"] == "200"
        assert "x-nemo-parent-step" not in seen.headers
    first, second = (span_of(seen.headers) for seen in gateway.seen)
    assert first == second
    assert first[0] == run.id
    assert re.fullmatch(r"[0-9a-f]{16}", first[1])


def test_nested_steps_name_their_parent(gateway, fleet):
    with fleet.run("r") as run, run.step("outer", "researcher") as outer, run.step("inner") as inner:
        inner.openai().chat.completions.create(**ASK)
        assert inner.role == outer.role == "researcher"
    assert gateway.seen[0].headers["x-nemo-step"] == "inner"
    assert gateway.seen[0].headers["x-nemo-parent-step"] == "outer"


def test_names_beyond_ascii_travel_encoded(gateway, fleet):
    with fleet.run("Qu'est-ce 100 %\nqu'un CRDT → 和?") as run, run.step("suche ü", "researcher") as step:
        step.openai().chat.completions.create(**ASK)
    headers = gateway.seen[0].headers
    assert headers["x-nemo-run-name"] == "Qu'est-ce 100 %25 qu'un CRDT %E2%86%92 %E5%92%8C?"
    assert headers["x-nemo-step"] == "suche %C3%BC"
    assert gateway.ends[0]["steps"][0]["step"] == "suche ü"


def test_a_members_client_follows_the_current_run_and_step(gateway, fleet):
    client = fleet["researcher"].openai()
    client.chat.completions.create(**ASK)
    with fleet.run("one") as one:
        client.chat.completions.create(**ASK)
        with one.step("s", "researcher"):
            client.chat.completions.create(**ASK)
    with fleet.run("two") as two:
        client.chat.completions.create(**ASK)
    client.chat.completions.create(**ASK)
    found = [(s.headers.get("x-nemo-run-id"), s.headers.get("x-nemo-step")) for s in gateway.seen]
    assert found == [(None, None), (one.id, None), (one.id, "s"), (two.id, None), (None, None)]
    assert "traceparent" not in gateway.seen[0].headers


def test_a_steps_client_used_after_its_step_counts_for_the_run_alone(gateway, fleet):
    with fleet.run("r") as run:
        with run.step("s", "researcher") as step:
            client = step.openai()
        client.chat.completions.create(**ASK)
    assert gateway.seen[0].headers["x-nemo-run-id"] == run.id
    assert "x-nemo-step" not in gateway.seen[0].headers


async def test_async_calls_in_parallel_steps_keep_their_steps(gateway, fleet):
    async with fleet.run("r") as run:

        async def work(n: int) -> None:
            async with run.step("part", "researcher") as step:
                for _ in range(3):
                    await step.async_openai().chat.completions.create(**ASK, user=step.label)
                step.result = n

        await asyncio.gather(*(work(n) for n in range(5)))
    assert len(gateway.seen) == 15
    for seen in gateway.seen:
        assert seen.headers["x-nemo-step"] == seen.body["user"]
        assert seen.headers["x-nemo-run-id"] == run.id
    assert {seen.body["user"] for seen in gateway.seen} == {"part", *(f"part#{n}" for n in range(2, 6))}
    assert len({span_of(seen.headers)[1] for seen in gateway.seen}) == 5


async def test_parallel_async_runs_never_mix(gateway, fleet):
    shared = fleet["researcher"].async_openai()

    async def one(name: str) -> str:
        async with fleet.run(name) as run:
            for n in range(4):
                async with run.step(f"{name}-{n}", "researcher"):
                    await shared.chat.completions.create(**ASK, user=f"{run.id} {name}-{n}")
        assert current_run() is None
        return run.id

    ids = await asyncio.gather(*(one(f"run{n}") for n in range(6)))
    assert len(set(ids)) == 6
    assert len(gateway.seen) == 24
    for seen in gateway.seen:
        assert f"{seen.headers['x-nemo-run-id']} {seen.headers['x-nemo-step']}" == seen.body["user"]


def test_parallel_runs_in_threads_never_mix(gateway, fleet):
    shared = fleet["researcher"].openai()
    together = threading.Barrier(4)

    def one(name: str) -> None:
        with fleet.run(name) as run:
            together.wait()
            for n in range(4):
                with run.step(f"{name}-{n}", "researcher"):
                    shared.chat.completions.create(**ASK, user=f"{run.id} {name}-{n}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, ["a", "b", "c", "d"]))
    assert len(gateway.seen) == 16
    for seen in gateway.seen:
        assert f"{seen.headers['x-nemo-run-id']} {seen.headers['x-nemo-step']}" == seen.body["user"]


def test_a_thread_that_lost_the_context_falls_back_to_where_the_client_was_made(gateway, fleet):
    with fleet.run("r", max_calls=9) as run, run.step("s", "researcher") as step:
        client = step.openai()
        thread = threading.Thread(target=lambda: client.chat.completions.create(**ASK))
        thread.start()
        thread.join()
        assert run.calls == 1
    assert gateway.seen[0].headers["x-nemo-run-id"] == run.id
    assert gateway.seen[0].headers["x-nemo-step"] == "s"
    assert gateway.seen[0].headers["x-nemo-run-max-calls"] == "9"


def test_bind_carries_run_and_step_into_a_thread_pool(gateway, fleet):
    client = fleet["researcher"].openai()

    def work(n: int) -> str | None:
        client.chat.completions.create(**ASK, user=str(n))
        step = current_step()
        return step.label if step else None

    with ThreadPoolExecutor(4) as pool, fleet.run("r") as run:
        with run.step("s", "researcher") as step:
            assert list(pool.map(step.bind(work), range(8))) == ["s"] * 8
        assert list(pool.map(run.bind(work), range(2))) == [None, None]
        assert list(pool.map(work, range(2))) == [None, None]
    found = [(s.headers.get("x-nemo-run-id"), s.headers.get("x-nemo-step")) for s in gateway.seen]
    assert found == [(run.id, "s")] * 8 + [(run.id, None)] * 2 + [(None, None)] * 2


async def test_bind_carries_the_step_into_a_coroutine_that_another_context_awaits(gateway, fleet):
    client = fleet["researcher"].async_openai()

    async def work() -> None:
        await client.chat.completions.create(**ASK)

    async with fleet.run("r") as run, run.step("s", "researcher") as step:
        await asyncio.create_task(step.bind(work)(), context=contextvars.Context())
    assert gateway.seen[0].headers["x-nemo-step"] == "s"
    assert gateway.seen[0].headers["x-nemo-run-id"] == run.id


def test_a_runs_headers_go_to_no_other_gateway(fleet):
    with recording_gateway() as other:
        elsewhere = fleet.connect(other.url, environ={"NEMO_KEY_WRITER": KEY})
        with fleet.run("r", budget="$1"):
            elsewhere["writer"].openai().chat.completions.create(**ASK)
        assert not [name for name in other.seen[0].headers if name.startswith("x-nemo-")]


def test_an_environments_proxy_stays_out_of_loopback(gateway, fleet, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fleet["researcher"].openai(max_retries=0).chat.completions.create(**ASK)
    asyncio.run(fleet["researcher"].async_openai(max_retries=0).chat.completions.create(**ASK))
    assert len(gateway.seen) == 2


# --- streaming ------------------------------------------------------------------------------------------------------
def test_a_stream_says_where_it_belongs_and_gives_its_pieces(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        stream = step.openai().chat.completions.create(**ASK, stream=True)
        assert isinstance(stream, openai.Stream)
        assert [piece.choices[0].delta.content for piece in stream] == ["a", "b"]
        with step.openai().chat.completions.create(**ASK, stream=True) as again:
            assert next(again).choices[0].delta.content == "a"
    assert [seen.headers["x-nemo-step"] for seen in gateway.seen] == ["s", "s"]


async def test_an_async_stream_says_where_it_belongs_and_gives_its_pieces(gateway, fleet):
    async with fleet.run("r") as run, run.step("s", "researcher") as step:
        stream = await step.async_openai().chat.completions.create(**ASK, stream=True)
        assert isinstance(stream, openai.AsyncStream)
        assert [piece.choices[0].delta.content async for piece in stream] == ["a", "b"]
    assert gateway.seen[0].headers["x-nemo-run-id"] == run.id


def test_the_stream_helper_of_openai_works(gateway, fleet):
    client = fleet["researcher"].openai()
    with client.chat.completions.stream(**ASK) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    assert text == "ab"


def test_a_stream_that_is_refused_before_it_begins_is_a_refusal(gateway, fleet):
    gateway.answers.append(refusal(402, "budget_exhausted", scope="role"))
    with pytest.raises(BudgetExceeded) as caught:
        fleet["researcher"].openai().chat.completions.create(**ASK, stream=True)
    assert caught.value.scope == "role"
    assert len(gateway.seen) == 1


STOP = {"error": {"message": "stopped by hand", "type": "permission_error", "code": "run_stopped", "scope": "run"}}


@pytest.mark.parametrize("how", ["for", "next"])
def test_an_error_event_inside_a_stream_is_the_projects_error(gateway, fleet, how):
    events = [chunk("a"), STOP]
    gateway.answers.append(Told(events=events, headers={"x-nemo-request-id": "req-9"}))
    seen = []
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        stream = step.openai().chat.completions.create(**ASK, stream=True)
        if how == "for":
            for piece in stream:
                seen += [piece]
        else:
            while True:
                seen.append(next(stream))
    assert len(seen) == 1
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert (run.stopped_by.kind, run.stopped_by.step, run.stopped_by.request_id) == ("stopped", "s", "req-9")
    assert run.stopped_by.message == "stopped by hand"


async def test_an_error_event_inside_an_async_stream_is_the_projects_error(gateway, fleet):
    broken = {"error": {"message": "it broke", "code": "upstream_error"}}
    for _ in range(2):
        gateway.answers.append(Told(events=[chunk("a"), broken]))
    client = fleet["researcher"].async_openai()
    with pytest.raises(UpstreamFailed, match="it broke") as caught:
        async for _ in await client.chat.completions.create(**ASK, stream=True):
            pass
    assert caught.value.status == 502
    assert isinstance(caught.value.__cause__, openai.APIError)
    stream = await client.chat.completions.create(**ASK, stream=True)
    await anext(stream)
    with pytest.raises(UpstreamFailed):
        await anext(stream)


# --- a connection that breaks in the middle of a stream ---
CUT_SHORT = Told(events=[chunk("a")], cut=True)
BROKE = "the connection to the gateway broke in the middle of an answer: ."


@pytest.mark.parametrize("how", ["for", "next"])
def test_a_stream_that_is_cut_off_is_the_projects_error(gateway, fleet, how):
    gateway.answers.append(CUT_SHORT)
    seen = []

    def ask(client):
        stream = client.chat.completions.create(**ASK, stream=True)
        pieces = stream if how == "for" else iter(lambda: next(stream), None)
        seen.extend(piece.choices[0].delta.content for piece in pieces)

    with pytest.raises(GatewayUnreachable, match=BROKE), fleet.run("r") as run, run.step("s", "researcher") as step:
        ask(step.openai())
    assert seen == ["a"]
    assert run.state == "failed"
    assert run.error is not None
    assert run.error.startswith("GatewayUnreachable: the connection to the gateway broke")


@pytest.mark.parametrize("how", ["for", "next"])
async def test_an_async_stream_that_is_cut_off_is_the_projects_error(gateway, fleet, how):
    gateway.answers.append(CUT_SHORT)
    stream = await fleet["researcher"].async_openai().chat.completions.create(**ASK, stream=True)
    await anext(stream)
    rest = aiter(stream) if how == "for" else stream
    with pytest.raises(GatewayUnreachable, match=BROKE):
        await anext(rest)


def raw_pieces(stream):
    """The bytes of an answer, as openai 2 reads them: what the HTTP library raises comes out as it is."""
    yield from stream.response.iter_bytes()


def test_what_the_http_library_itself_raises_in_a_stream_is_the_projects_error(gateway, fleet):
    gateway.answers.append(CUT_SHORT)
    stream = fleet["researcher"].openai().chat.completions.create(**ASK, stream=True)
    stream._iterator = raw_pieces(stream)
    with pytest.raises(GatewayUnreachable, match=BROKE) as caught:
        list(stream)
    assert not isinstance(caught.value.__cause__, openai.OpenAIError)
    assert type(caught.value.__cause__).__module__.startswith("httpx")


def test_a_stream_that_is_used_wrongly_is_no_fault_of_the_connection(gateway, fleet):
    stream = fleet["researcher"].openai().chat.completions.create(**ASK, stream=True)
    stream.close()
    stream._iterator = raw_pieces(stream)
    with pytest.raises(RuntimeError):
        list(stream)


@pytest.mark.parametrize("exc", [ValueError("mine"), KeyError("mine"), OSError("mine")])
def test_another_exception_in_a_stream_stays_what_it_is(gateway, fleet, exc):
    def pieces():
        yield "a"
        raise exc

    stream = fleet["researcher"].openai().chat.completions.create(**ASK, stream=True)
    stream._iterator = pieces()
    with pytest.raises(type(exc)) as caught:
        list(stream)
    assert caught.value is exc


def test_a_stream_that_has_ended_says_so(gateway, fleet):
    stream = fleet["researcher"].openai().chat.completions.create(**ASK, stream=True)
    assert len(list(stream)) == 2
    assert next(stream, None) is None


# --- errors ---------------------------------------------------------------------------------------------------------
def test_a_spent_budget_is_one_request_and_ends_the_run_with_what_it_has(gateway, fleet):
    went_on = []
    with fleet.run("r") as run:
        with run.step("plan", "researcher") as step:
            step.openai().chat.completions.create(**ASK)
            step.result = "a plan"
        with run.step("research", "researcher") as step:
            resets_at = "2026-01-02T00:00:00+00:00"
            no = refusal(
                402,
                "budget_exhausted",
                headers={"x-should-retry": "false", "x-nemo-run-id": run.id},
                scope="run",
                limit="budget",
                resets_at=resets_at,
            )
            gateway.answers.append(no)
            try:
                step.openai().chat.completions.create(**ASK)
            except BudgetExceeded as exc:
                caught = exc
                raise
        went_on.append("inside")
    went_on.append("behind")
    assert went_on == ["behind"]
    assert len(gateway.seen) == 2
    assert isinstance(caught.__cause__, openai.APIStatusError)
    assert caught.__cause__.status_code == 402
    assert (caught.status, caught.code, caught.scope, caught.limit) == (
        402,
        "budget_exhausted",
        "run",
        "budget",
    )
    assert (caught.request_id, caught.run_id) == ("req-refused", run.id)
    assert caught.resets_at == datetime(2026, 1, 2, tzinfo=UTC)
    assert run.state == "stopped"
    assert run.result == {"plan": "a plan"}
    assert [step.state for step in run.steps] == ["ok", "stopped"]
    assert run.stopped_by is not None
    assert (run.stopped_by.kind, run.stopped_by.step) == ("budget", "research")
    end = gateway.ends[0]
    assert (end["state"], end["stopped_by"]["code"], end["error"]) == ("stopped", "budget_exhausted", None)


def test_on_stop_raise_lets_the_refusal_through(gateway, fleet):
    gateway.answers.append(refusal(403, "run_stopped", scope="run", limit="max_calls"))
    with (
        pytest.raises(RunStopped),
        fleet.run("r", on_stop="raise") as run,
        run.step("s", "researcher") as step,
    ):
        step.openai().chat.completions.create(**ASK)
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert run.stopped_by.kind == "max_calls"


def test_a_rate_refusal_is_retried_then_raised_and_fails_the_run(gateway, fleet):
    no = refusal(429, "rate_limit_exceeded", headers={"retry-after-ms": "1"}, scope="role", limit="rpm")
    gateway.answers.extend([no, no, no])
    with (
        pytest.raises(RateLimited) as caught,
        fleet.run("r") as run,
        run.step("s", "researcher") as step,
    ):
        step.openai().chat.completions.create(**ASK)
    assert caught.value.retry_after_s == 0.001
    assert len(gateway.seen) == 3
    assert {span_of(seen.headers) for seen in gateway.seen} == {span_of(gateway.seen[0].headers)}
    assert run.state == "failed"
    assert run.stopped_by is not None
    assert (run.stopped_by.kind, run.stopped_by.limit, run.stopped_by.step) == ("rate", "rpm", "s")


async def test_a_rate_refusal_that_waiting_cures_is_not_seen(gateway, fleet):
    gateway.answers.append(refusal(429, "rate_limit_exceeded", headers={"retry-after-ms": "1"}))
    async with fleet.run("r") as run, run.step("s", "researcher") as step:
        await step.async_openai().chat.completions.create(**ASK)
    assert len(gateway.seen) == 2
    assert (run.state, run.stopped_by) == ("ok", None)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (refusal(503, "store_unavailable", headers={"retry-after-ms": "1"}), GatewayUnavailable),
        (refusal(502, "upstream_error", headers={"retry-after-ms": "1"}), UpstreamFailed),
        (refusal(400, "guardrail_blocked"), GuardrailBlocked),
        (refusal(401, "invalid_api_key"), KeyRejected),
        (
            Told(status=400, body={"error": {"message": "x", "type": "budget_exceeded", "code": "400"}}),
            BudgetExceeded,
        ),
        (Told(status=401, body={"error": {"message": "x", "type": "auth_error", "code": 401}}), KeyRejected),
        (Told(status=502, body="not an object", headers={"retry-after-ms": "1"}), UpstreamFailed),
        (Told(status=402, body={"detail": []}, headers={"x-nemo-error-code": "budget_held"}), BudgetExceeded),
    ],
)
def test_statuses_become_the_projects_errors(gateway, fleet, told, kind):
    gateway.answers.extend([told] * 3)
    with pytest.raises(kind) as caught:
        fleet["researcher"].openai().chat.completions.create(**ASK)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, openai.APIStatusError)
    assert len(gateway.seen) == (3 if kind is GatewayUnavailable else 1)
    gateway.answers.append(told)
    with pytest.raises(kind):
        asyncio.run(fleet["researcher"].async_openai(max_retries=0).chat.completions.create(**ASK))


def test_a_gateway_that_is_not_there_is_named(fleet):
    with recording_gateway() as gone:
        url = gone.url
    away = fleet.connect(url, environ={"NEMO_KEY_RESEARCHER": KEY})
    with pytest.raises(GatewayUnreachable, match=re.escape(f"no answer from the gateway at {url}")):
        away["researcher"].openai(max_retries=0).chat.completions.create(**ASK)
    with pytest.raises(GatewayUnreachable, match="nemo-agents gateway"):
        asyncio.run(away["researcher"].async_openai(max_retries=0).chat.completions.create(**ASK))


def test_copies_and_raw_responses_of_a_client_keep_headers_and_errors(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        raw = step.openai().with_options(timeout=5).chat.completions.with_raw_response.create(**ASK)
        assert raw.parse().choices[0].message.content == "hi"
        gateway.answers.append(refusal(400, "guardrail_blocked"))
        with pytest.raises(GuardrailBlocked):
            step.openai().with_options(timeout=5).chat.completions.with_raw_response.create(**ASK)
    assert [seen.headers["x-nemo-step"] for seen in gateway.seen] == ["s", "s"]
    assert run.state == "ok"


# --- event loops and life time --------------------------------------------------------------------------------------
def test_one_async_client_serves_several_event_loops(gateway, fleet):
    client = fleet["researcher"].async_openai()

    async def twice() -> None:
        await client.chat.completions.create(**ASK)
        await client.chat.completions.create(**ASK)

    for _ in range(3):
        asyncio.run(twice())
    assert len(gateway.seen) == 6
    assert {seen.headers["x-stainless-retry-count"] for seen in gateway.seen} == {"0"}


def test_clients_of_a_run_are_closed_with_it(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        client, waiting = step.openai(), step.async_openai()
        assert step.openai() is client
        client.chat.completions.create(**ASK)
    with pytest.raises(RuntimeError, match="outlives a run"):
        client.chat.completions.create(**ASK)
    with pytest.raises(RuntimeError, match="outlives a run"):
        asyncio.run(waiting.chat.completions.create(**ASK))
    assert len(gateway.seen) == 1


async def test_a_blocking_run_in_a_coroutine_closes_its_async_connections_in_their_loop(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        await step.async_openai().chat.completions.create(**ASK)
    assert run.state == "ok"
    assert len(gateway.seen) == 1


# --- accounts and secrets -------------------------------------------------------------------------------------------
def test_cost_is_summed_from_answers_until_the_gateway_says_it_exactly(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        step.openai().chat.completions.create(**ASK)
        step.openai().chat.completions.create(**ASK)
        assert run.cost_nanos == 246_912
        assert run.calls == 2
    assert run.cost_nanos == 777_000_001
    assert run.cost.nanos == 777_000_001
    assert run.calls == 7


def test_no_key_shows_in_any_repr(gateway, fleet):
    member = fleet["researcher"]
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        shown = [fleet, member, member.key, run, step, step.member, step.openai(), step.async_openai()]
        shown += [run.rim, step.run.connections(), vars(run), vars(step)]
        for thing in shown:
            assert KEY not in repr(thing)
            assert KEY[-20:] not in repr(thing)


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_what_was_sent_holds_no_key_any_more(gateway, fleet, header):
    member = fleet["researcher"]
    value = f"Bearer {member.key_stand_in}" if header == "authorization" else member.key_stand_in
    url = f"{gateway.url}/v1/models"
    answers = [
        member.http_client().get(url, headers={header: value}),
        await member.async_http_client().get(url, headers={header: value}),
    ]
    assert [answer.request.headers[header] for answer in answers] == [value, value]
    assert [seen.headers[header].removeprefix("Bearer ") for seen in gateway.seen[-2:]] == [KEY, KEY]
    gateway.answers.append(Told(events=[], cut=True))
    with pytest.raises(Exception, match="closed") as caught:
        member.http_client().get(url, headers={header: value})
    assert caught.value.request.headers[header] == value


def test_a_child_process_gets_what_openais_clients_read(gateway, fleet):
    assert fleet["researcher"].env() == {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{gateway.url}/v1",
        "NEMO_GATEWAY_URL": gateway.url,
    }
