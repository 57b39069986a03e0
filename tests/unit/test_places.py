"""Where a call belongs: the current place, that where its client was made, or none; and runs that are over."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest
from recording_gateway import RecordingGateway, recording_gateway, refusal

from nemo_agents import AgentRole, DeclarationError, Fleet, RunEnded, current_run, current_step

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "gpt-4o-mini",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def fleet(gateway: RecordingGateway, tmp_path):
    roles = [AgentRole("researcher", models=["gpt-4o-mini"]), AgentRole("writer", models=["gpt-4o-mini"])]
    environ = {"NEMO_KEY_RESEARCHER": KEY, "NEMO_KEY_WRITER": KEY.replace("abcdefghij-", "writerkeys-")}
    return Fleet("crew", roles=roles).connect(gateway.url, home=tmp_path, environ=environ)


def elsewhere(work):
    """Do this in a thread that knows no context, as a framework's own do."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def ask(client, **more):
    return client.chat.completions.create(**ASK, **more)


def places(gateway) -> list[tuple[str | None, str | None]]:
    return [(seen.headers.get("x-nemo-run-id"), seen.headers.get("x-nemo-step")) for seen in gateway.seen]


# --- which place ----------------------------------------------------------------------------------------------------
def test_a_named_run_is_the_place_of_calls_that_have_no_other(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        of_run = fleet["researcher"].openai(run=run)
        of_step = fleet["researcher"].openai(run=step)
        by_default = fleet["researcher"].openai()
        for client in (of_run, of_step, by_default):
            elsewhere(lambda client=client: ask(client))
        ask(of_run)
    assert places(gateway) == [(run.id, None), (run.id, "s"), (run.id, "s"), (run.id, "s")]


def test_the_current_place_goes_before_the_named_one(gateway, fleet):
    with fleet.run("one") as one:
        client = fleet["researcher"].openai(run=one)
        with fleet.run("two") as two, two.step("t"):
            ask(client)
    assert places(gateway) == [(two.id, "t")]


def test_a_run_may_be_named_before_it_is_entered(gateway, fleet):
    run = fleet.run("r")
    client = fleet["researcher"].openai(run=run)
    with run:
        elsewhere(lambda: ask(client))
    assert places(gateway) == [(run.id, None)]


def test_a_run_of_another_gateway_is_refused(fleet):
    other = fleet.connect("http://127.0.0.1:9", environ={"NEMO_KEY_RESEARCHER": KEY})
    with pytest.raises(DeclarationError, match="lives on"):
        fleet["researcher"].openai(run=other.run("r"))


def test_a_client_made_in_a_run_of_another_gateway_belongs_to_no_run(gateway, fleet):
    other = fleet.connect("http://127.0.0.1:9", environ={})
    with other.run("r"):
        client = fleet["researcher"].openai()
    ask(client)
    assert places(gateway) == [(None, None)]


def test_two_runs_in_threads_that_lost_the_context_never_mix(gateway, fleet):
    """Each run's agents work in pools that were started before any run."""
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool, ThreadPoolExecutor(4) as framework:
        list(framework.map(lambda _: together.wait(), range(4)))  # its threads have begun, outside of any run

        def one(name: str) -> str:
            with fleet.run(name) as run, run.step(name, "researcher") as step:
                client = fleet["researcher"].openai(run=step)
                together.wait()
                jobs = [framework.submit(ask, client, user=f"{run.id} {name}") for _ in range(6)]
                for job in jobs:
                    job.result()
                return run.id

        assert len(set(pool.map(one, "abcd"))) == 4
    assert len(gateway.seen) == 24
    for seen in gateway.seen:
        assert f"{seen.headers['x-nemo-run-id']} {seen.headers['x-nemo-step']}" == seen.body["user"]


def test_an_event_loop_that_was_started_before_the_run_serves_it(gateway, fleet):
    """A framework's runtime: its loop, and a worker task in it, know nothing of the run."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    jobs: asyncio.Queue = asyncio.Queue()

    async def worker():
        while (job := await jobs.get()) is not None:
            client, answered = job
            assert current_run() is None
            answered.set_result(await ask(client))

    working = asyncio.run_coroutine_threadsafe(worker(), loop)
    ids = []
    for name in ("one", "two"):
        with fleet.run(name) as run, run.step(name, "researcher"):
            client = fleet["researcher"].async_openai()
            answered = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, loop.create_future()), loop).result()
            loop.call_soon_threadsafe(jobs.put_nowait, (client, answered))
            asyncio.run_coroutine_threadsafe(asyncio.wait_for(answered, 30), loop).result()
            ids.append((run.id, name))
    loop.call_soon_threadsafe(jobs.put_nowait, None)
    working.result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert places(gateway) == ids


async def test_gathered_calls_of_two_runs_never_mix_through_one_client(gateway, fleet):
    shared = fleet["researcher"].async_openai()

    async def one(name: str) -> None:
        async with fleet.run(name) as run, run.step(name, "researcher"):
            await asyncio.gather(*(ask(shared, user=f"{run.id} {name}") for _ in range(5)))

    await asyncio.gather(one("a"), one("b"))
    assert len(gateway.seen) == 10
    for seen in gateway.seen:
        assert f"{seen.headers['x-nemo-run-id']} {seen.headers['x-nemo-step']}" == seen.body["user"]


# --- a run that is over ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["openai", "async_openai"])
def test_a_call_for_a_run_that_is_over_is_not_sent(gateway, fleet, how):
    with fleet.run("r") as run:
        client = getattr(fleet["researcher"], how)()
    with pytest.raises(RunEnded, match=run.id) as caught:
        ask(client) if how == "openai" else asyncio.run(ask(client))
    assert isinstance(caught.value, RuntimeError)
    assert gateway.seen == []


def test_a_task_that_outlives_its_run_sends_nothing(gateway, fleet):
    client = fleet["researcher"].openai()
    with fleet.run("r"):
        kept = contextvars.copy_context()
    with pytest.raises(RunEnded):
        kept.run(ask, client)
    assert gateway.seen == []


def test_an_old_context_does_not_keep_a_client_from_the_run_it_was_made_for(gateway, fleet):
    """A framework's thread that was started in an earlier run serves a later one."""
    with fleet.run("one"):
        kept = contextvars.copy_context()
    with fleet.run("two") as two:
        client = fleet["researcher"].openai()
        kept.run(ask, client)
    assert places(gateway) == [(two.id, None)]


def test_a_client_made_in_a_run_that_is_over_serves_the_current_one(gateway, fleet):
    with fleet.run("one"):
        client = fleet["researcher"].openai()
    with fleet.run("two") as two:
        ask(client)
    assert places(gateway) == [(two.id, None)]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_frameworks_own_client_on_our_connections_sends_nothing_for_a_run_that_is_over(gateway, fleet, retries):
    with fleet.run("r"):
        http = fleet["researcher"].http_client()
    plain = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", http_client=http, max_retries=retries)
    with pytest.raises((RunEnded, openai.APIConnectionError)) as caught:
        ask(plain)
    assert isinstance(caught.value, RunEnded) or isinstance(caught.value.__cause__, RunEnded)
    assert gateway.seen == []


# --- HTTP clients for frameworks ------------------------------------------------------------------------------------
def test_a_frameworks_own_client_serves_the_run_on_our_connections(gateway, fleet):
    member = fleet["researcher"]
    with fleet.run("r") as run, run.step("s", "researcher"):
        sync = openai.OpenAI(base_url=member.base_url, api_key=member.key_stand_in, http_client=member.http_client())
        waiting = openai.AsyncOpenAI(
            base_url=member.base_url, api_key=member.key_stand_in, http_client=member.async_http_client()
        )
        elsewhere(lambda: ask(sync))
        for _ in range(2):  # each in a loop of its own
            elsewhere(lambda: asyncio.run(ask(waiting)))
        assert run.calls == 3
    assert places(gateway) == [(run.id, "s")] * 3
    assert {seen.headers["authorization"] for seen in gateway.seen} == {f"Bearer {KEY}"}
    assert {seen.headers["x-stainless-retry-count"] for seen in gateway.seen} == {"0"}


def test_a_run_knows_what_stopped_it_when_the_framework_eats_the_error(gateway, fleet):
    member = fleet["researcher"]
    gateway.answers.append(refusal(402, "budget_exhausted", headers={"x-should-retry": "false"}, scope="run"))
    with fleet.run("r") as run, run.step("s", "researcher"):
        plain = openai.OpenAI(base_url=member.base_url, api_key=member.key_stand_in, http_client=member.http_client())
        with pytest.raises(openai.APIStatusError):
            ask(plain)
        assert run.stopped_by is not None
    assert (run.state, run.stopped_by.kind, run.stopped_by.step) == ("stopped", "budget", "s")
    assert len(gateway.seen) == 1


def test_a_key_of_the_frameworks_own_stays(gateway, fleet):
    client = openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="sk-mine", http_client=fleet["researcher"].http_client()
    )
    ask(client)
    assert gateway.seen[0].headers["authorization"] == "Bearer sk-mine"


def test_neither_key_nor_run_goes_to_another_host(gateway, fleet):
    member = fleet["researcher"]
    with recording_gateway() as other, fleet.run("r"):
        stray = openai.OpenAI(
            base_url=f"{other.url}/v1", api_key=member.key_stand_in, http_client=member.http_client(), max_retries=0
        )
        ask(stray)
        headers = other.seen[0].headers
    assert KEY not in str(headers)
    assert not [name for name in headers if name.startswith("x-nemo-")]


def test_a_redirect_is_not_followed(gateway, fleet):
    from recording_gateway import Told

    with recording_gateway() as other:
        gateway.answers.append(Told(status=307, body={}, headers={"location": f"{other.url}/v1/chat/completions"}))
        with pytest.raises(Exception, match="307"):
            ask(fleet["researcher"].openai())
        assert other.seen == []


def test_copies_are_the_client_itself(fleet):
    member = fleet["researcher"]
    for client in (member.http_client(), member.async_http_client(), member.openai(), member.async_openai()):
        assert copy.deepcopy({"config": [client]})["config"][0] is client
        assert copy.copy(client) is client
    assert isinstance(member.http_client(), openai.DefaultHttpxClient)
    assert isinstance(member.async_http_client(), openai.DefaultAsyncHttpxClient)


def test_no_client_has_the_key_anywhere_in_its_settings(fleet):
    member = fleet["researcher"]
    for client in (member.openai(), member.async_openai(), member.anthropic(), member.async_anthropic()):
        assert client.api_key == member.key_stand_in
        for thing in (client, vars(client), client.default_headers, client.with_options(timeout=1), member):
            assert KEY not in repr(thing)
            assert KEY[-20:] not in str(thing)


# --- anthropic ------------------------------------------------------------------------------------------------------
def test_anthropics_client_serves_the_run(gateway, fleet):
    from recording_gateway import Told

    wanted = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    cost = {"x-nemo-request-cost": "0.5", "x-nemo-request-id": "req-7"}
    with fleet.run("r") as run, run.step("s", "writer"):
        sync, waiting = fleet["writer"].anthropic(), fleet["writer"].async_anthropic()
        gateway.answers.extend([Told(body=MESSAGE, headers=cost)] * 3)
        sync.messages.create(**wanted)
        elsewhere(lambda: sync.messages.create(**wanted))
        elsewhere(lambda: asyncio.run(waiting.messages.create(**wanted)))
        assert (run.calls, run.cost_nanos) == (3, 1_500_000_000)
        no = refusal(402, "budget_exhausted", headers={"x-should-retry": "false"}, scope="role")
        gateway.answers.append(no)
        with pytest.raises(anthropic.APIStatusError):
            sync.messages.create(**wanted)
    assert {seen.path for seen in gateway.seen} == {"/v1/messages"}
    sent = {seen.headers.get("x-api-key") or seen.headers["authorization"] for seen in gateway.seen}
    assert {key.removeprefix("Bearer ") for key in sent} == {KEY.replace("abcdefghij-", "writerkeys-")}
    assert places(gateway) == [(run.id, "s")] * 4
    assert (run.state, run.stopped_by.kind) == ("stopped", "budget")


def test_without_the_anthropic_package_its_client_says_what_to_install():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['anthropic'] = None\n"
        "from nemo_agents import AgentRole, Fleet\n"
        "fleet = Fleet('crew', roles=[AgentRole('a', models=['m'])]).connect(environ={'NEMO_KEY_A': 'sk-x'})\n"
        "fleet['a'].anthropic()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert "pip install anthropic" in out.stderr


# --- what is current in a span --------------------------------------------------------------------------------------
def test_a_span_is_a_place_in_its_step(gateway, fleet):
    client = fleet["researcher"].openai()
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        with run.span("agent", "crew") as outer, run.span("tool", "search", role="writer") as inner:
            assert (current_run(), current_step()) == (run, step)
            assert (inner.step_label, inner.role, outer.role) == ("s", "writer", "researcher")
            ask(client)
            with run.step("deeper") as deeper:
                assert deeper.report().parent == "s"
                ask(client)
        ask(client)
    parents = [seen.headers["traceparent"].split("-")[2] for seen in gateway.seen]
    assert parents == [inner.id, deeper.span_id, step.span_id]
    assert [seen.headers["x-nemo-step"] for seen in gateway.seen] == ["s", "deeper", "s"]
    assert {seen.headers["traceparent"].split("-")[1] for seen in gateway.seen} == {run.id}


def test_a_span_may_be_where_a_client_was_made(gateway, fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        with run.span("tool", "search") as span:
            client = fleet["researcher"].openai()
            elsewhere(lambda: ask(client))
        elsewhere(lambda: ask(client))
    assert [seen.headers["traceparent"].split("-")[2] for seen in gateway.seen] == [span.id, step.span_id]


def test_a_refusal_in_a_span_is_the_steps(gateway, fleet):
    gateway.answers.append(refusal(402, "budget_exhausted", scope="run"))
    with fleet.run("r") as run, run.step("s", "researcher") as step, run.span("tool", "t"):
        ask(step.openai())
    assert (run.state, run.stopped_by.step) == ("stopped", "s")
