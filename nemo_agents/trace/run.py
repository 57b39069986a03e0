"""A run and its steps: what calls belong together, what they cost, and how it ended."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Self, TypeVar, cast
from urllib.parse import quote

from nemo_agents.admin.wire import RunReport, RunRow, StepReport, StoppedBy
from nemo_agents.errors import DeclarationError, GatewayError
from nemo_agents.money import Money
from nemo_agents.trace import answers, context, propagate
from nemo_agents.trace.context import Answer, Place
from nemo_agents.trace.member import Member
from nemo_agents.trace.propagate import RunRef, StepRef
from nemo_agents.trace.tally import Tally

if TYPE_CHECKING:
    from nemo_agents.trace.clients import AsyncGatewayOpenAI, Connections, GatewayOpenAI

__all__ = ["AsyncReporter", "OnStop", "Reporter", "Rim", "Run", "Step", "current_run", "current_step"]

REPORT_TIMEOUT_S: Final = 2.0
_ENDS: Final[Mapping[str, State]] = {"ok": "ok", "recovered": "recovered", "failed": "failed", "stopped": "stopped"}
_WITH_A_CAUSE: Final = frozenset({"failed", "stopped"})

OnStop = Literal["return", "raise"]
State = Literal["new", "running", "ok", "recovered", "failed", "stopped"]
Reporter = Callable[[str, RunReport], RunRow]
AsyncReporter = Callable[[str, RunReport], Awaitable[RunRow]]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """What a run needs from outside: its gateway, its fleet's members, a clock, ids, and a way to report.

    `clock_us` gives microseconds since the epoch (UTC), `new_span_id` 16 hex digits. The reporters tell the
    gateway about the run by its id and return its row; whatever they raise stays inside the run.
    """

    gateway_url: str
    member: Callable[[str], Member]
    report: Reporter
    areport: AsyncReporter
    clock_us: Callable[[], int]
    new_span_id: Callable[[], str]


def current_run() -> Run | None:
    """Return the run that this thread or task is in, None outside of any."""
    place = context.here()
    if isinstance(place, Step):
        return place.run
    return place if isinstance(place, Run) else None


def current_step() -> Step | None:
    """Return the step that this thread or task is in, None outside of any."""
    place = context.here()
    return place if isinstance(place, Step) else None


def bind(place: Place, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function with `place` current while it runs, whatever thread or task runs it."""
    if inspect.iscoroutinefunction(fn):

        @wraps(fn)
        async def run_in_place(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            with context.inside(place):
                return await fn(*args, **kwargs)

        return cast("Callable[_P, _R]", run_in_place)

    @wraps(fn)
    def call_in_place(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with context.inside(place):
            return fn(*args, **kwargs)

    return call_in_place


class Step:
    """A named stage of a run, bound to a role: `with run.step("research", role="researcher") as step`.

    `label` is the name, with `#2` and so on where a run has several of that name. What is put into `result` is
    part of the run's result when the run is stopped.
    """

    def __init__(self, run: Run, ref: StepRef, *, name: str, role: str | None) -> None:
        self.run = run
        self.name = name
        self.role = role
        self.result: Any = None
        self.state: State = "new"
        self.error: str | None = None
        self._ref = ref
        self._headers = propagate.call_headers(run.ref, ref)
        self._started_us = 0
        self._ended_us: int | None = None
        self._token: Token[Place | None] | None = None
        self._openai: GatewayOpenAI | None = None
        self._async_openai: AsyncGatewayOpenAI | None = None

    def __repr__(self) -> str:
        return f"Step({self.label!r}, role={self.role!r}, state={self.state!r})"

    @property
    def label(self) -> str:
        """The name that calls carry, unique in the run."""
        return self._ref.label

    @property
    def member(self) -> Member:
        """The step's role with its key. Raises DeclarationError when the step has no role."""
        if self.role is None:
            raise DeclarationError(
                f"the step {self.label} has no role",
                field="role",
                value=None,
                remedy=f'Name one: run.step("{self.name}", role=...).',
            )
        return self.run.member(self.role)

    def openai(self) -> GatewayOpenAI:
        """Return an `openai.OpenAI` with the role's key, whose calls belong to this step; closed with the run.

        Raises DeclarationError when the step has no role, ProvisionError when the role has no known key.
        """
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        if self._openai is None:
            self._openai = clients.openai_client(
                self.gateway_url, self.member.key, connections=self.run.connections(), place=self
            )
        return self._openai

    def async_openai(self) -> AsyncGatewayOpenAI:
        """Return an `openai.AsyncOpenAI` with the role's key, whose calls belong to this step; see `openai`."""
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        if self._async_openai is None:
            self._async_openai = clients.async_openai_client(
                self.gateway_url, self.member.key, connections=self.run.connections(), place=self
            )
        return self._async_openai

    def bind(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return the function so that it runs in this step on any thread: `pool.map(step.bind(work), items)`."""
        return bind(self, fn)

    # --- where calls happen (trace.context.Place) ---
    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on."""
        return self.run.gateway_url

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made in this step."""
        return self._headers

    def at(self, step: str | None) -> Place:
        """Return the step of this run with that label, or the run."""
        return self.run.at(step)

    def sends(self) -> int:
        """Count a request that is about to go out, and return its number."""
        return self.run.sends()

    def saw(self, answer: Answer) -> None:
        """Take note of an answer to a call of this step."""
        self.run.note(answer, step=self.label)

    # --- begin and end ---
    def __enter__(self) -> Self:
        if self.state != "new":
            raise RuntimeError(f"the step {self.label} was entered before; a second pass is a step of its own")
        self.state = "running"
        self._started_us = self.run.rim.clock_us()
        self._token = context.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended_us = self.run.rim.clock_us()
        if self._token is not None:
            context.leave(self._token)
        stop = None if exc is None else answers.stop_of(exc)
        if exc is None or (stop is None and answers.is_plain_exit(exc)):
            self.state = "ok"
            return
        self.state = "stopped" if stop else "failed"
        self.error = answers.describe(exc)
        self.run.escaped(exc, step=self.label)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)

    def report(self) -> StepReport:
        """Return what there is to tell about this step now."""
        return StepReport(
            step=self.label,
            parent=self._ref.parent,
            role=self.role,
            state="running" if self.state == "new" else self.state,
            started_us=self._started_us,
            ended_us=self._ended_us,
            error=self.error,
        )


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
        self._headers = propagate.call_headers(ref, None)
        self._tally = Tally()
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

    def step(self, name: str, role: str | None = None) -> Step:
        """Return a new step, to be entered with `with` or `async with`.

        It lies inside the step that is current, and takes its role where none is named. Raises DeclarationError
        for a name that cannot be sent and for a role that the fleet does not have.
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
        span_id = self.rim.new_span_id()
        with self._lock:
            label = propagate.unique_label(name, self._steps, steps=self._named[name])
            self._named[name] += 1
            ref = StepRef(label=label, span_id=span_id, parent=parent.label if parent else None)
            step = self._steps[label] = Step(self, ref, name=name, role=role)
        return step

    def bind(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return the function so that it runs in this run on any thread: `pool.map(run.bind(work), items)`."""
        return bind(self, fn)

    def member(self, role: str) -> Member:
        """Return a role of the fleet with its key. Raises DeclarationError for an unknown one."""
        return self.rim.member(role)

    def connections(self) -> Connections:
        """Return the HTTP clients that this run's clients share."""
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        with self._lock:
            if self._connections is None:
                self._connections = clients.Connections(self.gateway_url, place=self)
            return self._connections

    # --- where calls happen (trace.context.Place) ---
    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on."""
        return self.rim.gateway_url

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made in this run outside any step."""
        return self._headers

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
            # A report of the start that arrives after that of the end would make the run look alive.
            if isinstance(self._starting, threading.Thread):
                self._starting.join(REPORT_TIMEOUT_S)
            self._report(at_end=True)
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
            if isinstance(self._starting, asyncio.Task):
                await asyncio.wait({self._starting}, timeout=REPORT_TIMEOUT_S)
            await self._areport(at_end=True)
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
        stop = None if exc is None else answers.stop_of(exc)
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
        if self.state == "stopped" and self.result is None:
            self.result = {step.label: step.result for step in self.steps if step.result is not None}
        # A program that leaves because of a stop leaves: `raise SystemExit(1) from stop`.
        return stop is not None and isinstance(exc, Exception) and self.on_stop == "return"

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
