"""Refusals with their type, where the framework hands on nothing but text.

AutoGen's teams carry an agent's exception through their runtime as a text and raise `RuntimeError` of it. The model
client of `chat_model` notes what it raised in the block that is open around the team, and the block raises that again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from nemo_agents import current_run
from nemo_agents.admin import headers as h
from nemo_agents.errors import NemoError
from nemo_agents.trace import answers

if TYPE_CHECKING:
    from autogen_agentchat.base import TaskResult

    from nemo_agents.admin.wire import StoppedBy

__all__ = ["noting", "refusals", "run_task"]

_CAUSES_MAX: Final = 16  # deep enough for any framework; a bound, because a chain can be a ring

_SEEN: ContextVar[list[NemoError] | None] = ContextVar("nemo_agents_autogen_seen", default=None)


@contextmanager
def refusals() -> Iterator[None]:
    """Raise refusals of the gateway with their type, whatever a framework made of them inside this block.

    Everything else that is raised inside goes through as it is. Wrap the call of a team in it, in blocking code and in
    async code alike: `with refusals(): await team.run(task=...)`.
    """
    seen: list[NemoError] = []
    token = _SEEN.set(seen)
    try:
        yield
    except NemoError:
        raise
    except Exception as exc:
        error = told(exc, seen, stopped_by=_stopped_by())
        if error is None:
            raise
        if error.__cause__ is None:
            raise error from exc
        raise error  # noqa: B904 - it has a cause of its own; `exc` stays its context
    finally:
        _SEEN.reset(token)


async def run_task(target: Any, task: Any = None, **options: Any) -> TaskResult:
    """Run a task with an agent or a team of AutoGen 0.7 and return its result, as `target.run` does.

    Refusals keep their type (see `refusals`), and the messages so far are the partial result of the current step: a run
    that meets its budget ends with them. `options` are those of `target.run_stream`.
    """
    from autogen_agentchat.base import TaskResult  # noqa: PLC0415 - the framework is optional

    messages: list[dict[str, str]] = []
    run = current_run()
    result: TaskResult | None = None
    with refusals():
        async for item in target.run_stream(task=task, **options):  # to its end: what is left half-way is closed late
            if isinstance(item, TaskResult):
                result = item
                continue
            said = _said(item)
            if said and run is not None:
                messages.extend(said)
                run.partial(list(messages))
    if result is None:
        raise RuntimeError(f"{type(target).__name__}.run_stream ended without a TaskResult")
    return result


def _said(item: Any) -> list[dict[str, str]]:
    """Return the messages that an item of a stream brings: those of agents, and the results of tools."""
    from autogen_agentchat.messages import BaseChatMessage, ToolCallExecutionEvent  # noqa: PLC0415 - optional

    if isinstance(item, BaseChatMessage):
        return [{"source": item.source, "content": item.to_text()}]
    if isinstance(item, ToolCallExecutionEvent):
        return [{"source": result.name, "content": result.content} for result in item.content]
    return []


@contextmanager
def noting() -> Iterator[None]:
    """Note an error of the project that leaves this block, for the `refusals` around it."""
    try:
        yield
    except NemoError as exc:
        seen = _SEEN.get()
        if seen is not None:
            seen.append(exc)
        raise


def told(exc: BaseException, seen: Sequence[NemoError], *, stopped_by: StoppedBy | None) -> NemoError | None:
    """Return the refusal that an exception stands for, None when it stands for none.

    In this order: one in its chain of causes, the newest of `seen` that its text quotes, and the stop of the run where
    its text quotes that.
    """
    cause: BaseException | None = exc
    for _ in range(_CAUSES_MAX):
        if cause is None:
            break
        if isinstance(cause, NemoError):
            return cause
        meant = answers.error_of_exception(cause)
        if meant is not None:
            return meant
        cause = cause.__cause__
    text = str(exc)
    for error in reversed(seen):
        if str(error) and str(error) in text:
            return error
    if stopped_by is not None and stopped_by.message and stopped_by.message in text:
        return _error_of_stop(stopped_by)
    return None


def _stopped_by() -> StoppedBy | None:
    run = current_run()
    return None if run is None else run.stopped_by


def _error_of_stop(stop: StoppedBy) -> NemoError:
    body = {"error": {"message": stop.message, "code": stop.code, "scope": stop.scope, "limit": stop.limit}}
    return answers.error_of_event(body, {} if stop.request_id is None else {h.REQUEST_ID: stop.request_id})
