"""Each snippet of docs/how-to/use-with-other-frameworks.md does what it says, in the lane that has its framework."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from snippets import ANSWER, Played, Stage, snippets, staged, told_by

SPENT = "$0.0000001/day"  # less than any call may cost


@dataclass(frozen=True, kw_only=True)
class Framework:
    """One section of the page, and how its framework differs from the others.

    `says` is what the provider answers, `calls` the tool by which it answers instead. `tries` is how many requests a
    refusal costs that lasts and that waiting could cure. `here`: the run in this process hears of its calls.
    """

    title: str
    openai: tuple[str, ...]
    says: str = ANSWER
    calls: str | None = None
    tries: int = 3
    here: bool = True


FRAMEWORKS = (
    Framework(title="OpenAI Agents", openai=("3",)),
    Framework(title="Pydantic AI", openai=("3",)),
    Framework(title="smolagents", openai=("3",), calls="final_answer"),
    Framework(title="Microsoft Agent Framework", openai=("3",)),
    Framework(title="Anthropic's client", openai=("3",)),
    Framework(title="LlamaIndex", openai=("2",)),
    Framework(title="Strands", openai=("2",)),
    Framework(title="DSPy", openai=("2",), says=f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]", tries=1),
    Framework(title="A program of its own", openai=("2", "3"), here=False),
)
MAJOR = openai.__version__.partition(".")[0]
HERE = [framework for framework in FRAMEWORKS if MAJOR in framework.openai]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("plain") / "home") as ready:
        yield ready


@pytest.fixture(params=HERE, ids=[framework.title for framework in HERE])
def framework(request: pytest.FixtureRequest) -> Framework:
    found: Framework = request.param
    return found


def play(stage: Stage, framework: Framework, **how: Any) -> Played:
    """Play a snippet with an answer ready for it."""
    stage.provider.reset()
    if framework.calls is None:
        stage.provider.say(framework.says)
    else:
        stage.provider.call_tool(framework.calls, {"answer": ANSWER})
    return stage.play(framework.title, **how)


def test_every_section_of_the_page_is_played_in_some_lane():
    assert set(snippets()) == {framework.title for framework in FRAMEWORKS}


def test_the_answer_arrives_and_its_call_is_in_the_run_the_step_and_the_role(
    stage: Stage, framework: Framework, caplog: pytest.LogCaptureFixture
):
    """The key is in nothing that was logged, nor in what the framework shows of itself."""
    caplog.set_level(logging.DEBUG)
    stage.left.clear()
    played = play(stage, framework)
    if played.raised is not None:
        raise played.raised
    assert ANSWER in played.names["answer"]
    (row,) = played.rows
    assert (row["state"], row["run_id"], row["step"], row["role"]) == ("ok", played.run.id, "research", "researcher")
    assert played.run.stopped_by is None
    objects = [value for name, value in played.names.items() if name != "environ"]  # which holds the key in clear
    assert played.key not in told_by(caplog) + "".join(map(repr, objects))
    assert stage.left == []


def test_a_spent_budget_is_one_request_and_the_run_knows_it(stage: Stage, framework: Framework):
    played = play(stage, framework, budget=SPENT)
    assert [(row["status"], row["code"]) for row in played.rows] == [(402, "request_exceeds_budget")]
    assert played.rows[0]["run_id"] == played.run.id
    assert stage.provider.requests == []
    if framework.here:
        assert played.raised is None
        assert (played.run.stopped_by.kind, played.run.stopped_by.code) == ("budget", "request_exceeds_budget")


def test_a_refusal_that_lasts_is_not_asked_for_again_and_again(stage: Stage, framework: Framework):
    """No retries are multiplied, the framework's by the client's."""
    stage.provider.reset()
    for _ in range(40):
        stage.provider.fail(429, retry_after_s=0.01)
    played = stage.play(framework.title)
    assert [row["code"] for row in played.rows] == ["rate_limit_exceeded"] * framework.tries
    assert len(stage.provider.requests) == framework.tries
    assert played.raised is not None


@pytest.mark.skipif(MAJOR != "3", reason="this lane has no OpenAI Agents")
def test_the_exporter_of_openai_agents_gets_no_key(stage: Stage):
    """As the page has it, it exports nothing; as its own default would have it, what it sends holds no key."""
    from agents import set_default_openai_client, set_trace_processors
    from agents.tracing import get_trace_provider
    from agents.tracing.processors import (
        BackendSpanExporter,
        BatchTraceProcessor,
        default_exporter,
    )

    stage.left.clear()
    agents = next(framework for framework in FRAMEWORKS if framework.title == "OpenAI Agents")
    played = play(stage, agents)
    assert not default_exporter().api_key
    get_trace_provider().force_flush()
    assert stage.left == []

    client = played.names["client"]
    set_default_openai_client(client)  # use_for_tracing is True by default
    taken = default_exporter().api_key
    default_exporter().set_api_key("")
    assert taken == client.api_key == played.names["researcher"].key_stand_in
    stage.provider.reset()
    exporter = BackendSpanExporter(api_key=taken, endpoint=f"{stage.provider.url}/completions", max_retries=0)
    set_trace_processors([BatchTraceProcessor(exporter)])
    again = play(stage, agents)
    get_trace_provider().force_flush()
    sent = [request for request in stage.provider.requests if request.path.endswith("/completions")]
    exported = [request for request in sent if "data" in request.body]
    assert exported, "the exporter sent nothing, so that this shows nothing"
    assert all(again.key not in repr((dict(request.headers), request.body)) for request in exported)
    set_trace_processors([])
