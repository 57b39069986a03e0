"""A step of a run: a named stage, its role and deadline, and the calls that are made in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from nemo_agents.admin.wire import StepReport
from nemo_agents.errors import DeclarationError
from nemo_agents.trace import answers, context, propagate
from nemo_agents.trace.context import Answer, Place
from nemo_agents.trace.member import Member
from nemo_agents.trace.propagate import StepRef

if TYPE_CHECKING:
    from nemo_agents.trace.clients import AsyncGatewayOpenAI, GatewayOpenAI, Line
    from nemo_agents.trace.run import Run

__all__ = ["State", "Step"]

State = Literal["new", "running", "ok", "recovered", "failed", "stopped"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Step:
    """A named stage of a run, bound to a role: `with run.step("research", role="researcher") as step`.

    `label` is the name, with `#2` and so on where a run has several of that name. What is put into `result` is
    part of the run's result when the run is stopped.

    `timeout_s` (seconds from the beginning, None for no end) is told to the gateway with each call, and no client waits
    beyond it before it tries again. A step inside another has no more time than that one.
    """

    def __init__(
        self,
        run: Run,
        ref: StepRef,
        *,
        name: str,
        role: str | None,
        timeout_s: float | None = None,
        parent: Step | None = None,
    ) -> None:
        self.run = run
        self.name = name
        self.role = role
        self.result: Any = None
        self.state: State = "new"
        self.error: str | None = None
        self.timeout_s = timeout_s
        self._parent = parent
        self._deadline_us: int | None = None
        self._partial: Any = None
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
            line, key = self._line()
            self._openai = clients.openai_client(line, key, place=self)
        return self._openai

    def async_openai(self) -> AsyncGatewayOpenAI:
        """Return an `openai.AsyncOpenAI` with the role's key, whose calls belong to this step; see `openai`."""
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        if self._async_openai is None:
            line, key = self._line()
            self._async_openai = clients.async_openai_client(line, key, place=self)
        return self._async_openai

    def _line(self) -> tuple[Line, str]:
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        member, connections = self.member, self.run.connections()
        key = connections.hold(member.name, member.key)
        return clients.Line(connections=connections, step=self.label, sleeper=member.sleeper), key

    def bind(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return the function so that it runs in this step on any thread: `pool.map(step.bind(work), items)`."""
        return context.bind(self, fn)

    # --- where calls happen (trace.context.Place) ---
    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on."""
        return self.run.gateway_url

    @property
    def around(self) -> Place:
        """The step around this one, else the run."""
        return self._parent or self.run

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.run.over

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.run.id

    @property
    def step_label(self) -> str:
        """The label; see `label`."""
        return self.label

    @property
    def span_id(self) -> str:
        """The span that calls made in this step belong under."""
        return self._ref.span_id

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made in this step."""
        return self._headers

    def left_s(self) -> float | None:
        """Return the seconds until the deadline of this step or of one around it, 0 when it has passed."""
        if self._deadline_us is None:
            return None
        return max(0, self._deadline_us - self.run.rim.clock_us()) / 1e6

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
        ends = [] if self.timeout_s is None else [self._started_us + int(self.timeout_s * 1e6)]
        if self._parent is not None and self._parent._deadline_us is not None:  # noqa: SLF001 - a step like this one
            ends.append(self._parent._deadline_us)  # noqa: SLF001 - likewise
        self._deadline_us = min(ends, default=None)
        self._token = context.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended_us = self.run.rim.clock_us()
        if self._token is not None:
            context.leave(self._token)
        stop = None if exc is None else self.run.stop_behind(exc)
        if exc is None or (stop is None and answers.is_plain_exit(exc)):
            self.state = "ok"
            return
        self.state = "stopped" if stop else "failed"
        self.error = answers.describe(exc)
        if stop:
            self.keep_partial()
        self.run.escaped(exc, step=self.label)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)

    def set_partial(self, value: Any) -> None:
        """Keep what there is so far; see `Run.partial`."""
        self._partial = value

    def keep_partial(self) -> None:
        """Make what there is so far the result, where there is none."""
        if self.result is None:
            self.result = self._partial

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
