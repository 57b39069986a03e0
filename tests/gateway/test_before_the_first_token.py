"""What a stream may do before it shows anything: fall back, wait, send heartbeats; and what it may not do after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_provider import TEXT, FaultyProvider
from gateway_bench import Bench, bench_for, gateway_at
from test_fallback import group
from test_streaming import events, streamed, text_of

from nemo_agents.testing import LocalGateway

HEARTBEAT = ": still working"


def without_heartbeats(text: str) -> list[Any]:
    return events(text.replace(f"{HEARTBEAT}\n\n", ""))


@pytest.fixture(scope="module")
def impatient_gateway(
    tmp_path_factory: pytest.TempPathFactory, shared_provider: FaultyProvider
) -> Iterator[LocalGateway]:
    """A gateway that waits half a second for a token, and sends a heartbeat after a tenth."""
    home: Path = tmp_path_factory.mktemp("impatient") / "home"
    changes = {"first_token_timeout_s": 0.5, "idle_timeout_s": 0.5, "heartbeat_s": 0.1}
    with gateway_at(home, shared_provider, **changes) as gateway:
        yield gateway


@pytest.fixture
def impatient(impatient_gateway: LocalGateway, shared_provider: FaultyProvider) -> Iterator[Bench]:
    """It, with a fleet of the test's own."""
    with bench_for(impatient_gateway, shared_provider) as ready:
        yield ready


@pytest.mark.parametrize("failing", ["role-drop", "role-error"])
def test_a_stream_that_breaks_before_it_showed_anything_is_answered_by_the_next_deployment(bench: Bench, failing: str):
    answer = bench.chat(group(bench, f"faulty/{failing}", "faulty/ok"), "group", stream=True)
    assert answer.status_code == 200
    said = events(answer.text)
    assert text_of(said) == TEXT
    assert [event["choices"][0]["delta"].get("role") for event in said[:-1] if event["choices"]].count("assistant") == 1
    assert answer.headers["x-nemo-attempts"] == "2"
    first, second = bench.row(answer)["attempt_rows"]
    assert (first["status"], first["cost_nanos"]) == (None, first["held_nanos"])
    assert (second["reason"], second["error"]) == ("fallback", None)


@pytest.mark.parametrize("failing", ["role-drop", "role-error"])
def test_when_all_of_them_break_the_answer_is_a_502_and_no_stream(bench: Bench, failing: str):
    answer = bench.chat(group(bench, f"faulty/{failing}", "down/ok"), "group", stream=True)
    assert answer.status_code == 502
    attempts = answer.json()["error"]["attempts"]
    assert [(each["n"], each["provider"], each["model"], each["status"]) for each in attempts] == [
        (1, "faulty", failing, None),
        (2, "down", "ok", None),
    ]
    assert all(each["error"] and each["latency_ms"] >= 0 for each in attempts)


def test_one_that_breaks_after_it_showed_something_is_nobody_else_s_to_finish(bench: Bench):
    answer = bench.chat(group(bench, "faulty/drop-mid-stream", "faulty/ok"), "group", stream=True)
    assert events(answer.text)[-1]["error"]["code"] == "upstream_error"
    assert [record["model"] for record in bench.sent()] == ["drop-mid-stream"]


def test_comments_are_no_token_and_the_next_deployment_answers_when_none_comes(impatient: Bench):
    impatient.faulty.release(50)
    answer = impatient.chat(group(impatient, "faulty/role-hang", "faulty/ok"), "group", stream=True)
    assert "patience" not in answer.text
    assert text_of(without_heartbeats(answer.text)) == TEXT
    first, _ = impatient.row(answer)["attempt_rows"]
    assert "said nothing for 0.5 s" in first["error"]


@pytest.mark.parametrize("silent", ["role-hang", "hang-after-head"])
def test_a_silent_stream_sends_heartbeats_and_may_still_fall_back(impatient: Bench, silent: str):
    answer = impatient.chat(group(impatient, f"faulty/{silent}", "faulty/ok"), "group", stream=True)
    assert answer.text.partition("data: ")[0].count(HEARTBEAT) >= 2
    assert text_of(without_heartbeats(answer.text)) == TEXT


def test_when_nobody_answers_after_a_heartbeat_the_stream_ends_with_the_error(impatient: Bench):
    answer = impatient.chat(group(impatient, "faulty/role-hang", "down/ok"), "group", stream=True)
    assert answer.status_code == 200  # the heartbeat has said so
    last = without_heartbeats(answer.text)[-1]
    assert (last["error"]["code"], len(last["error"]["attempts"])) == ("upstream_error", 2)


def test_a_stream_that_falls_silent_after_a_token_ends_with_an_error(impatient: Bench):
    with streamed(impatient, impatient.key(), "faulty/stepped") as answer:
        impatient.faulty.release(1)
        text = "".join(answer.iter_text())
    last = without_heartbeats(text)[-1]
    assert last["error"]["code"] == "upstream_error"
    assert "0.5 s" in last["error"]["message"]  # of the connection, or of what says anything on it
