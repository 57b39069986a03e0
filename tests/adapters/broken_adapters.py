"""Adapters with one fault each, run by test_conformance_itself.py: every one must fail at the test that it names."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

from openai import OpenAI
from openai_under_test import Model, OpenAIUnderTest
from pydantic import BaseModel

from nemo_agents.errors import BudgetExceeded, GatewayError, RateLimited
from nemo_agents.testing.conformance import ConformanceSuite, Where
from nemo_agents.trace.member import Member
from nemo_agents.trace.run import Run, current_step
from nemo_agents.trace.step import Step


class Broken(OpenAIUnderTest):
    """`caught_by` is the test that finds the fault, `says` a part of what it says."""

    shapes = frozenset({"sync"})
    caught_by: ClassVar[str]
    says: ClassVar[str]


class AsksAgainAfter402(Broken):
    caught_by = "test_a_spent_budget_is_told_at_once[sync]"
    says = "a refusal that waiting does not cure is sent once"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        for _ in range(2):
            with suppress(BudgetExceeded):
                return super().ask(member, text, run=run)
        return super().ask(member, text, run=run)


class Swallows(Broken):
    caught_by = "test_a_spent_budget_is_told_at_once[sync]"
    says = "the framework raised nothing"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        try:
            return super().ask(member, text, run=run)
        except GatewayError:
            return "Sorry."


class LosesTheCause(Broken):
    caught_by = "test_a_stopped_run_ends_at_its_next_call[sync]"
    says = "RunStopped was to come, itself or as a cause"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        try:
            return super().ask(member, text, run=run)
        except GatewayError:
            raise RuntimeError("something went wrong") from None


class MultipliesRetries(Broken):
    caught_by = "test_retries_are_not_multiplied[sync]"
    says = "429"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        with suppress(RateLimited):
            return super().ask(member, text, run=run)
        return super().ask(member, text, run=run)


class IsImpatient(Broken):
    caught_by = "test_a_wait_is_as_long_as_it_is_told[sync]"
    says = "asked again after"

    def client(self, member: Member, run: Where) -> OpenAI:
        return member.openai(run=run, max_retries=0)

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        with suppress(RateLimited):
            return super().ask(member, text, run=run)
        return super().ask(member, text, run=run)


class LosesTheRun(Broken):
    caught_by = "test_an_answer_is_of_the_current_step[sync]"
    says = "not one call is in the run"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:  # noqa: ARG002 - its fault
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().ask, member, text).result()


class ForgetsTheNamedRun(Broken):
    caught_by = "test_an_answer_is_of_the_run_that_is_named[sync]"
    says = "not one call is in the run"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:  # noqa: ARG002 - its fault
        return super().ask(member, text)


class MixesRuns(Broken):
    """The client of the last run that somebody began is everybody's."""

    caught_by = "test_runs_on_threads_never_mix"
    says = "not one call is in the run"
    last: Run | Step | None = None

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:  # noqa: ARG002 - its fault
        self.last = self.last or current_step()
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().ask, member, text, run=self.last).result()


class OneKeyForAll(Broken):
    caught_by = "test_two_roles_in_one_program"
    says = "researcher"
    first: Member | None = None

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        self.first = self.first or member
        return super().ask(self.first, text, run=run)


class OutlivesTheRun(Broken):
    caught_by = "test_a_run_that_has_ended[sync]"
    says = "RunEnded was to come"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        over = run is not None and run.state != "running"
        return super().ask(member, text, run=None if over else run)


class AsksForAnyModel(Broken):
    caught_by = "test_a_model_that_the_role_may_not_use"
    says = "DeclarationError was to come"

    def model(self, member: Member, *, run: Where = None, model: str | None = None) -> Model:
        return Model(self.client(member, run), model or member.role.models[0])


class RenamesTheModel(Broken):
    caught_by = "test_any_name_of_a_model_goes_to_the_gateway"
    says = "plain"

    def model(self, member: Member, *, run: Where = None, model: str | None = None) -> Model:  # noqa: ARG002 - its fault
        return Model(self.client(member, run), member.role.models[0].removeprefix("scripted/"))


class KeyedModel(Model):
    def __repr__(self) -> str:
        return f"KeyedModel({self.client.api_key!r}, {self.model!r})"


class ShowsItsKey(Broken):
    caught_by = "test_the_key_is_in_no_text"
    says = "the key is in repr()"

    def model(self, member: Member, *, run: Where = None, model: str | None = None) -> Model:
        made = KeyedModel(self.client(member, run), model or member.role.models[0])
        made.client.api_key = member.key.reveal()
        return made


class LogsItsKey(Broken):
    caught_by = "test_the_key_is_in_no_text"
    says = "the key is in a log"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        logging.getLogger("framework").debug("headers: %s", {"authorization": f"Bearer {member.key.reveal()}"})
        return super().ask(member, text, run=run)


class PhonesHome(Broken):
    caught_by = "test_nothing_else_was_reached"
    says = "192.0.2.1"

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        with suppress(OSError):
            socket.create_connection(("192.0.2.1", 4318), timeout=1).close()
        return super().ask(member, text, run=run)


class NeverStreams(Broken):
    shapes = frozenset({"stream"})
    caught_by = "test_an_answer_is_of_the_current_step[stream]"
    says = "the request was not streamed"

    def stream(self, member: Member, text: str, *, run: Where = None) -> str:
        return self.ask(member, text, run=run)


class ForgetsTheTool(Broken):
    shapes = frozenset({"tools"})
    caught_by = "test_a_tool_is_called_and_its_result_is_told"
    says = "the tool was never called"

    def use_tool(self, member: Member, text: str, tool: Callable[..., Any], *, run: Where = None) -> str:  # noqa: ARG002 - its fault
        return self.ask(member, text, run=run)


class ReturnsADict(Broken):
    shapes = frozenset({"sync", "structured"})
    caught_by = "test_an_answer_has_the_form_that_was_asked_for"
    says = "not a Weather"

    def structured(self, member: Member, text: str, schema: type[BaseModel], *, run: Where = None) -> Any:
        made = super().structured(member, text, schema, run=run)
        return made.model_dump() if made else {}


class TellsNothing(Broken):
    shapes = frozenset({"tools", "spans"})
    caught_by = "test_spans_of_agent_and_tool_arrive"
    says = "no span of an agent"

    def use_tool(self, member: Member, text: str, tool: Callable[..., Any], *, run: Where = None) -> str:
        step = current_step()
        with ThreadPoolExecutor(1) as pool:  # a thread without a current run has nobody to tell
            return pool.submit(self._loop, self.model(member, run=run or step), text, tool).result()


class LosesWhatThereIs(TellsNothing):
    caught_by = "test_what_there_is_at_a_stop_is_kept"
    says = "what the agent had made is lost"


BROKEN: tuple[type[Broken], ...] = (
    AsksAgainAfter402,
    Swallows,
    LosesTheCause,
    MultipliesRetries,
    IsImpatient,
    LosesTheRun,
    ForgetsTheNamedRun,
    MixesRuns,
    OneKeyForAll,
    OutlivesTheRun,
    AsksForAnyModel,
    RenamesTheModel,
    ShowsItsKey,
    LogsItsKey,
    PhonesHome,
    NeverStreams,
    ForgetsTheTool,
    ReturnsADict,
    TellsNothing,
    LosesWhatThereIs,
)

for _kind in BROKEN:
    globals()[f"Test{_kind.__name__}"] = type(f"Test{_kind.__name__}", (ConformanceSuite,), {"adapter": _kind()})
