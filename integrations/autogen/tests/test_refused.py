"""Refusals that a framework has turned into something else, with their type again."""

from __future__ import annotations

import openai
import pytest
from nemo_agents_autogen import refusals
from nemo_agents_autogen.refused import noting, told

from nemo_agents.admin.wire import StoppedBy
from nemo_agents.errors import BudgetExceeded, ErrorFacts, GuardrailBlocked, RunStopped
from nemo_agents.testing import scripted_provider

SPENT = BudgetExceeded("the budget of the run is spent", facts=ErrorFacts(status=402, code="budget_exhausted"))
BLOCKED = GuardrailBlocked("a guardrail said no", facts=ErrorFacts(status=400, code="guardrail_blocked"))
STOP = StoppedBy(
    kind="max_calls",
    code="run_stopped",
    scope="run",
    limit="max_calls",
    step=None,
    request_id="req_1",
    message="the run has used up its calls",
)


def wrapped(error: BaseException) -> Exception:
    outer = RuntimeError("the turn failed")
    outer.__cause__ = error
    return outer


def test_one_in_the_chain_of_causes_comes_first():
    """A framework that kept the exception needs no text to be searched."""
    assert told(wrapped(SPENT), [BLOCKED], stopped_by=None) is SPENT


def test_the_newest_that_the_text_quotes():
    """A text stands for an error that was raised in the block, and for no other."""
    again = BudgetExceeded("the budget of the run is spent", facts=ErrorFacts(status=402))
    text = RuntimeError(f"BudgetExceeded: {SPENT}\nTraceback: …")
    assert told(text, [SPENT, BLOCKED, again], stopped_by=None) is again
    assert told(text, [BLOCKED], stopped_by=None) is None
    assert told(RuntimeError("a tool is broken"), [SPENT], stopped_by=STOP) is None


def test_what_stopped_the_run_where_nothing_was_noted():
    """A runtime that was started elsewhere notes nothing; the run knows what stopped it."""
    error = told(RuntimeError(f"RunStopped: {STOP.message}"), [], stopped_by=STOP)
    assert isinstance(error, RunStopped)
    assert (error.status, error.limit, error.request_id) == (403, "max_calls", "req_1")


def test_an_error_of_openai_is_what_it_means():
    """Clients that are not ours raise openai's errors: they are mapped, and stay the cause."""
    with scripted_provider() as provider:
        provider.fail(402, code="budget_exhausted")
        client = openai.OpenAI(api_key="sk-x", base_url=provider.url, max_retries=0)
        with pytest.raises(BudgetExceeded) as caught, refusals():
            client.chat.completions.create(model="swift", messages=[{"role": "user", "content": "hello"}])
    assert isinstance(caught.value.__cause__, openai.APIStatusError)


def test_the_block_raises_what_was_noted_in_it():
    """An error that became text inside the block is raised again, and one of an earlier block is not."""

    def turn_into_text():
        try:
            with noting():
                raise SPENT
        except BudgetExceeded as exc:
            raise RuntimeError(f"BudgetExceeded: {exc}") from None

    with pytest.raises(BudgetExceeded) as caught, refusals():
        turn_into_text()
    assert caught.value is SPENT
    with pytest.raises(RuntimeError), refusals():
        raise RuntimeError(f"BudgetExceeded: {SPENT}")


def test_everything_else_goes_through():
    """An exception that is none of ours leaves the block as it is."""
    with pytest.raises(ZeroDivisionError), refusals():
        _ = 1 / 0
