"""A run: what calls belong together, what they cost, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import Token
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Self, TypeVar
from urllib.parse import quote

from nemo_agents.admin.wire import RunReport, RunRow, StoppedBy, Why
from nemo_agents.errors import DeclarationError, GatewayError
from nemo_agents.money import Money
from nemo_agents.trace import answers, context, propagate
from nemo_agents.trace.context import Answer, Place
from nemo_agents.trace.member import Member
from nemo_agents.trace.otlp import AttributeValue, SpanKind
from nemo_agents.trace.propagate import RunRef, StepRef
from nemo_agents.trace.rim import REPORT_TIMEOUT_S, Rim
from nemo_agents.trace.spans import Span, Spans
from nemo_agents.trace.step import State, Step
from nemo_agents.trace.tally import Tally

if TYPE_CHECKING:
    from nemo_agents.trace.connections import Connections

__all__ = ["OnStop", "Run", "current_run", "current_step"]

_ENDS: Final[Mapping[str, State]] = {"ok": "ok", "recovered": "recovered", "failed": "failed", "stopped": "stopped"}
SPANS_TIMEOUT_S: Final = 2.0  # how long the end of a run waits for its spans to be sent
_WITH_A_CAUSE: Final = frozenset({"failed", "stopped"})

OnStop = Literal["return", "raise"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def current_run() -> Run | None:
    """Return the run that this thread or task is in, None outside of any."""
    place = _current(Run)
    return place if isinstance(place, Run) else None


def current_step() -> Step | None:
    """Return the step that this thread or task is in, None outside of any."""
    place = _current(Step)
    return place if isinstance(place, Step) else None


def _current(kind: type[Run | Step]) -> Place | None:
    """Return the nearest place of this kind, going outwards from the current one."""
    place = context.here()
    while place is not None and not isinstance(place, kind):
        place = place.around
    return place


class Run:
    """One execution of an agent pipeline: `with fleet.run("answer a question", budget="$0.50") as run`.

    Use `async with` in async code: leaving reports to the gateway, and waits up to two seconds for its answer.

    A run that meets a spent budget or its stop (BudgetExceeded, RunStopped), or is refused as a loop, ends as `stopped`
    and the program goes on behind the block; `on_stop="raise"` lets the exception through. Every other exception goes
    through, and the run has `failed`; but a program that leaves by `sys.exit()` or `sys.exit(0)` has not failed. When
    the code in the block deals with such a refusal itself, the run is `stopped` if nothing it asked for afterwards
    succeeded, and `ok` otherwise.

    While the run goes on, `stopped_by` tells about the last such refusal. Behind the block, `state`, `stopped_by`,
    `cost` and `calls` are what the gateway keeps: `recovered` is an `ok` with calls that had no answer, and only a
    run that was stopped, or failed by an answer of the gateway, has a `stopped_by`. Where the gateway did not take
    the report (`report_error`), they are what the run has seen itself.
    """

    def __init__(self, ref: RunRef, rim: Rim, *, on_stop: OnStop = "return") -> None:
        self.ref = ref
        self.rim = rim
        self.on_stop = on_stop
        self.result: Any = None
        self.state: State = "new"
        self.error: str | None = None
        self.stopped_by: StoppedBy | None = None
        self.row: RunRow | None = None
        self.report_error: Exception | None = None
        self.spans = Spans(
            self, send=partial(rim.send_spans, ref.run_id), clock_us=rim.clock_us, new_span_id=rim.new_span_id
        )
        self._headers = propagate.call_headers(ref, None)
        self._tally = Tally()
        self._partial: Any = None
        self._lock = threading.Lock()
        self._steps: dict[str, Step] = {}
        self._named: Counter[str] = Counter()
        self._escaped: tuple[BaseException, str] | None = None
        self._started_us = 0
        self._ended_us: int | None = None
        self._token: Token[Place | None] | None = None
        self._connections: Connections | None = None
        self._starting: threading.Thread | asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Run({self.id!r}, name={self.name!r}, state={self.state!r})"

    @property
    def id(self) -> str:
        """The run's id, at the gateway and in the viewer."""
        return self.ref.run_id

    @property
    def name(self) -> str:
        """The run's name."""
        return self.ref.name

    @property
    def url(self) -> str:
        """The page of this run in the viewer."""
        return f"{self.rim.gateway_url}/runs/{quote(self.id, safe='')}"

    @property
    def steps(self) -> tuple[Step, ...]:
        """The run's steps in the order in which they were made."""
        with self._lock:
            return tuple(self._steps.values())

    @property
    def cost_nanos(self) -> int:
        """What the run cost: the gateway's sum once the run has ended, before that what answers have said."""
        return self._tally.cost_nanos if self.row is None else self.row.cost_nanos

    @property
    def cost(self) -> Money:
        """What the run cost; see `cost_nanos`."""
        return Money(self.cost_nanos)

    @property
    def calls(self) -> int:
        """How many calls the run made: the gateway's count once it has ended, before that the answers seen."""
        return self._tally.calls if self.row is None else self.row.calls

    def why(self) -> Why:
        """Ask the gateway how the run ended and why; `str()` of the answer is one sentence.

        Raises RuntimeError while the run goes on, AdminError and GatewayUnreachable when the gateway does not tell,
        and ProvisionError when no role of the fleet has a known key.
        """
        self._check_over()
        return self.rim.why(self.id)

    async def awhy(self) -> Why:
        """Ask as `why` does, in async code."""
        self._check_over()
        return await self.rim.awhy(self.id)

    def _check_over(self) -> None:
        if not self.over:
            raise RuntimeError(f"the run {self.id} has not ended; ask behind the `with` block")

    def step(self, name: str, role: str | None = None, *, timeout_s: float | None = None) -> Step:
        """Return a new step, to be entered with `with` or `async with`.

        It lies inside the step that is current, and takes its role where none is named. `timeout_s` is its deadline in
        seconds from when it is entered. Raises DeclarationError for a name that cannot be sent, for a role that the
        fleet does not have, and for a time that is not above 0.
        """
        if self.state == "new":
            raise RuntimeError(f'enter the run first: with fleet.run("{self.name}") as run')
        name = propagate.step_name(name)
        around = current_step()
        parent = around if around is not None and around.run is self else None
        if role is None and parent is not None:
            role = parent.role
        if role is not None:
            role = self.member(role).name
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise DeclarationError(
                "is not a time", field="timeout_s", value=timeout_s, remedy="Give seconds above 0, or None."
            )
        span_id = self.rim.new_span_id()
        with self._lock:
            label = propagate.unique_label(name, self._steps, steps=self._named[name])
            self._named[name] += 1
            ref = StepRef(label=label, span_id=span_id, parent=parent.label if parent else None)
            step = self._steps[label] = Step(self, ref, name=name, role=role, timeout_s=timeout_s, parent=parent)
        return step

    def span(
        self,
        kind: SpanKind,
        name: str,
        *,
        role: str | None = None,
        input: object = None,  # noqa: A002 - the attribute's name
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Span:
        """Return a span to be entered with `with` or `async with`: an agent, task or tool, with what is called in it.

        `input`, and what is put into its `output`, is text or anything that JSON can say; 32 KB of it are kept.
        """
        return Span(self, self.spans, kind, name, role=role, input=input, attributes=attributes)

    def partial(self, value: Any, *, step: str | None = None) -> None:
        """Keep what there is so far; the last value wins.

        When the run is stopped it becomes the result of the step of this label, by default of the current step of this
        run, and outside of any that of the run; unless the code in the block has set a result.
        """
        if step is None:
            place = context.here()
            step = place.step_label if place is not None and place.run_id == self.id else None
        with self._lock:
            of_step = self._steps.get(step) if step is not None else None
            if of_step is None:
                self._partial = value
            else:
                of_step.set_partial(value)

    def bind(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return the function so that it runs in this run on any thread: `pool.map(run.bind(work), items)`."""
        return context.bind(self, fn)

    def member(self, role: str) -> Member:
        """Return a role of the fleet with its key. Raises DeclarationError for an unknown one."""
        return self.rim.member(role)

    def connections(self) -> Connections:
        """Return the HTTP clients that this run's clients share."""
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        with self._lock:
            if self._connections is None:
                self._connections = clients.connections(self.gateway_url, made_at=self)
            return self._connections

    # --- where calls happen (trace.context.Place) ---
    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on."""
        return self.rim.gateway_url

    @property
    def around(self) -> None:
        """Nothing: a run lies in no other place."""
        return

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._ended_us is not None

    @property
    def run_id(self) -> str:
        """The run's id; see `id`."""
        return self.id

    @property
    def step_label(self) -> None:
        """None: a run is outside of its steps."""
        return

    @property
    def role(self) -> None:
        """None: roles are those of steps."""
        return

    @property
    def span_id(self) -> str:
        """The span that stands for the run."""
        return self.ref.span_id

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made in this run outside any step."""
        return self._headers

    def left_s(self) -> None:
        """Return None: a run has no deadline."""
        return

    def at(self, step: str | None) -> Place:
        """Return the step with that label, or the run."""
        with self._lock:
            return self._steps.get(step, self) if step is not None else self

    def sends(self) -> int:
        """Count a request that is about to go out, and return its number."""
        return self._tally.send()

    def saw(self, answer: Answer) -> None:
        """Take note of an answer to a call outside any step."""
        self.note(answer, step=None)

    def note(self, answer: Answer, *, step: str | None) -> None:
        """Take note of an answer to a call of this run."""
        self._tally.saw(answer, step=step)
        if self._ended_us is None:
            self.stopped_by = self._tally.stopped_by

    def stop_behind(self, exc: BaseException) -> GatewayError | None:
        """Return the refusal that makes an exception a stop of this run, None when it is something else.

        Frameworks that raise anew with the text of what they caught lose its type and cause. Where nothing succeeded
        since the last stopping refusal, and the exception quotes that, it is a stop as well.
        """
        stop = answers.stop_of(exc)
        if stop is not None:
            return stop
        refusal = self._tally.refusal
        return refusal if refusal is not None and answers.quotes(exc, refusal) else None

    def escaped(self, exc: BaseException, *, step: str) -> None:
        """Take note of an exception that left a step; the innermost step of it is the one that counts."""
        if self._escaped is None or self._escaped[0] is not exc:
            self._escaped = (exc, step)

    # --- begin and end ---
    def __enter__(self) -> Self:
        self._begin()
        self._starting = threading.Thread(target=self._report, name=f"nemo-run-{self.id}", daemon=True)
        try:
            self._starting.start()
        except RuntimeError as exc:  # no thread to be had: the run goes on without the early report
            self._starting, self.report_error = None, exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        suppress = self._finish(exc)
        try:
            spans = self.spans.finish(error=self._died_of())
            # A report of the start that arrives after that of the end would make the run look alive.
            if isinstance(self._starting, threading.Thread):
                self._starting.join(REPORT_TIMEOUT_S)
            self._report(at_end=True)
            if spans is not None:
                spans.join(SPANS_TIMEOUT_S)
        finally:
            if self._connections is not None:
                self._connections.close()
        return suppress

    async def __aenter__(self) -> Self:
        self._begin()
        self._starting = asyncio.create_task(self._areport())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        suppress = self._finish(exc)
        try:
            spans = self.spans.finish(error=self._died_of())
            if isinstance(self._starting, asyncio.Task):
                await asyncio.wait({self._starting}, timeout=REPORT_TIMEOUT_S)
            await self._areport(at_end=True)
            if spans is not None:
                # Twice, as the loop's threads may all be at work on something else.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SPANS_TIMEOUT_S):
                        await asyncio.to_thread(spans.join, SPANS_TIMEOUT_S)
        finally:
            if self._connections is not None:
                await self._connections.aclose()
        return suppress

    def _begin(self) -> None:
        if self.state != "new":
            raise RuntimeError(f"the run {self.id} was entered before; start another with fleet.run(...)")
        self.state = "running"
        self._started_us = self.rim.clock_us()
        self._token = context.enter(self)

    def _finish(self, exc: BaseException | None) -> bool:
        """Decide how the run ended; say whether the exception stays inside."""
        self._ended_us = self.rim.clock_us()
        if self._token is not None:
            context.leave(self._token)
        stop = None if exc is None else self.stop_behind(exc)
        if exc is None or (stop is None and answers.is_plain_exit(exc)):
            self.state = "stopped" if self._tally.stopped else "ok"
            cause = None
        else:
            self.state = "failed" if stop is None else "stopped"
            self.error = None if stop else answers.describe(exc)
            cause = self._cause(exc, stop or answers.error_of_exception(exc))
        if cause is not None:
            self.stopped_by = cause
        elif not self._tally.stopped:
            self.stopped_by = None  # the run went on after that refusal: it is no cause of this end
        self._escaped = None  # an exception holds frames, and those hold much
        if self.state == "stopped":
            self._keep_what_there_is()
        # A program that leaves because of a stop leaves: `raise SystemExit(1) from stop`.
        return stop is not None and isinstance(exc, Exception) and self.on_stop == "return"

    def _keep_what_there_is(self) -> None:
        for step in self.steps:
            step.keep_partial()
        if self.result is None:
            self.result = self._partial
        if self.result is None:
            self.result = {step.label: step.result for step in self.steps if step.result is not None}

    def _died_of(self) -> str | None:
        """Return what a span that is still open at the end has met; None when the run was well."""
        if self.state not in _WITH_A_CAUSE:
            return None
        return self.error or (self.stopped_by.message if self.stopped_by else None) or f"the run has {self.state}"

    def _cause(self, exc: BaseException, error: GatewayError | None) -> StoppedBy | None:
        """Return what the answer behind an exception says about the end, with the step that it was seen in."""
        step = self._escaped[1] if self._escaped is not None and self._escaped[0] is exc else None
        told = None if error is None else answers.stopped_by(error, step=step)
        seen = self.stopped_by
        if told is None or seen is None or told.step or told.request_id != seen.request_id:
            return told
        return seen  # the hook saw the same refusal, and the step it came in

    def _told(self) -> RunReport:
        return RunReport(
            name=self.name,
            state=self.state,
            started_us=self._started_us,
            ended_us=self._ended_us,
            error=self.error,
            stopped_by=self.stopped_by if self.state in _WITH_A_CAUSE else None,
            budget_nanos=self.ref.budget_nanos,
            max_calls=self.ref.max_calls,
            steps=[step.report() for step in self.steps if step.state != "new"],
        )

    def _report(self, *, at_end: bool = False) -> None:
        if self._ended_us is not None and not at_end:
            return  # the run was shorter than the way here; the report of its end says everything
        try:
            self._reported(self.rim.report(self.id, self._told()), at_end=at_end)
        except Exception as exc:  # noqa: BLE001 - telling about a run never breaks the run
            self.report_error = exc

    async def _areport(self, *, at_end: bool = False) -> None:
        if self._ended_us is not None and not at_end:
            return
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                row = await self.rim.areport(self.id, self._told())
            self._reported(row, at_end=at_end)
        except Exception as exc:  # noqa: BLE001 - telling about a run never breaks the run
            self.report_error = exc

    def _reported(self, row: RunRow, *, at_end: bool) -> None:
        self.report_error = None
        if not at_end:
            return
        self.row = row
        self.state = _ENDS.get(row.state, self.state)  # another process may have joined the run, and keep it running
        self.stopped_by = (row.stopped_by or self.stopped_by) if self.state in _WITH_A_CAUSE else None
