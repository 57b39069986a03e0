"""A run that is stopped inside a framework: recognised by what the exception quotes, and ended with what there is."""

from __future__ import annotations

import openai
import pytest
from recording_gateway import RecordingGateway, recording_gateway, refusal

from nemo_agents import AgentRole, BudgetExceeded, Fleet
from nemo_agents.errors import ErrorFacts
from nemo_agents.trace import answers

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
SPENT = refusal(402, "budget_exhausted", scope="run")


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def fleet(gateway: RecordingGateway, tmp_path):
    roles = [AgentRole("researcher", models=["gpt-4o-mini"])]
    return Fleet("crew", roles=roles).connect(gateway.url, home=tmp_path, environ={"NEMO_KEY_RESEARCHER": KEY})


def framework(step, *, quotes: bool = True, then_asks: bool = False):
    """Do what AutoGen's teams do: catch whatever an agent raises, and raise anew with its text."""
    try:
        step.openai().chat.completions.create(**ASK)
    except Exception as exc:  # noqa: BLE001 - as they do
        text = f"{type(exc).__name__}: {exc}\nTraceback:\n..." if quotes else "the agent has failed"
    if then_asks:
        step.openai().chat.completions.create(**ASK)
    raise RuntimeError(text)


# --- stops by what is quoted ----------------------------------------------------------------------------------------
def test_an_exception_that_quotes_the_refusal_is_the_stop(gateway, fleet):
    gateway.answers.append(SPENT)
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        framework(step)
    assert (run.state, step.state) == ("stopped", "stopped")
    assert (run.stopped_by.kind, run.stopped_by.step, run.stopped_by.request_id) == ("budget", "s", "req-refused")
    assert gateway.ends[0]["stopped_by"]["code"] == "budget_exhausted"


def test_openais_own_text_is_a_quotation(gateway, fleet):
    gateway.answers.append(SPENT)
    member = fleet["researcher"]
    with fleet.run("r") as run:
        client = openai.OpenAI(base_url=member.base_url, api_key=member.key_stand_in, http_client=member.http_client())
        try:
            client.chat.completions.create(**ASK)
        except openai.APIStatusError as exc:
            text = str(exc)
        raise RuntimeError(f"APIStatusError: {text}")
    assert run.state == "stopped"


def test_with_on_stop_raise_the_frameworks_exception_leaves(gateway, fleet):
    gateway.answers.append(SPENT)
    with (
        pytest.raises(RuntimeError, match="no: budget_exhausted"),
        fleet.run("r", on_stop="raise") as run,
        run.step("s", "researcher") as step,
    ):
        framework(step)
    assert run.state == "stopped"


def test_an_exception_that_quotes_nothing_has_failed(gateway, fleet):
    gateway.answers.append(SPENT)
    with pytest.raises(RuntimeError), fleet.run("r") as run, run.step("s", "researcher") as step:
        framework(step, quotes=False)
    assert run.state == "failed"


def test_an_exception_that_quotes_a_refusal_which_was_overcome_has_failed(gateway, fleet):
    gateway.answers.append(SPENT)
    with pytest.raises(RuntimeError), fleet.run("r") as run, run.step("s", "researcher") as step:
        framework(step, then_asks=True)
    assert (run.state, run.stopped_by) == ("failed", None)


def test_a_quotation_of_another_runs_refusal_has_failed(gateway, fleet):
    with pytest.raises(RuntimeError), fleet.run("r") as run:
        raise RuntimeError("no: budget_exhausted")
    assert run.state == "failed"


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (RuntimeError("it said: the budget is spent"), True),
        (RuntimeError("see req-12345"), True),
        (RuntimeError("budget"), False),
        (RuntimeError(""), False),
    ],
)
def test_what_is_a_quotation(exc, expected):
    refusal_ = BudgetExceeded("the budget is spent", facts=ErrorFacts(status=402, request_id="req-12345"))
    assert answers.quotes(exc, refusal_) is expected
    outer = ValueError("outer")
    outer.__cause__ = exc
    assert answers.quotes(outer, refusal_) is expected


def test_a_short_message_is_in_too_many_texts_to_be_a_quotation():
    assert not answers.quotes(RuntimeError("no money"), BudgetExceeded("no", facts=ErrorFacts(status=402)))


# --- what there is so far -------------------------------------------------------------------------------------------
def test_what_there_is_becomes_the_result_of_a_stopped_step(gateway, fleet):
    with fleet.run("r") as run:
        with run.step("plan", "researcher") as plan:
            plan.result = "a plan"
            run.partial("not this: there is a result")
        with run.step("research", "researcher") as step:
            run.partial(["one"])
            with run.span("tool", "t"):
                run.partial(["one", "two"])
            gateway.answers.append(SPENT)
            step.openai().chat.completions.create(**ASK)
    assert step.result == ["one", "two"]
    assert run.result == {"plan": "a plan", "research": ["one", "two"]}


def test_what_there_is_outside_of_steps_becomes_the_runs_result(gateway, fleet):
    with fleet.run("r") as run:
        run.partial("some")
        gateway.answers.append(SPENT)
        fleet["researcher"].openai().chat.completions.create(**ASK)
    assert run.result == "some"


def test_a_handler_on_another_thread_names_the_step(gateway, fleet):
    gateway.answers.append(SPENT)
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        run.partial("by label", step="s")
        run.partial("of the run", step="no such step")
        with fleet.run("other"):
            run.partial("the run's too")
        framework(step)
    assert step.result == "by label"
    assert run.result == "the run's too"


def test_a_swallowed_stop_keeps_what_there_is_too(gateway, fleet):
    gateway.answers.append(SPENT)
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        run.partial("some")
        with pytest.raises(BudgetExceeded):
            step.openai().chat.completions.create(**ASK)
    assert (run.state, run.result) == ("stopped", {"s": "some"})


def test_a_run_that_ends_well_has_no_partial_result(fleet):
    with fleet.run("r") as run, run.step("s", "researcher") as step:
        run.partial("some")
    assert (run.result, step.result) == (None, None)


def test_a_result_of_the_blocks_own_wins(gateway, fleet):
    gateway.answers.append(SPENT)
    with fleet.run("r") as run:
        run.partial("some")
        run.result = "mine"
        fleet["researcher"].openai().chat.completions.create(**ASK)
    assert run.result == "mine"
