"""A refusal on its way out of a crew: once, and as what it is.

crewAI starts a task again whenever anything raises, up to `Agent.max_retry_limit` times, and converters ask a model
three times. What the gateway has refused is refused again, and what could be waited out the client has waited out. So
releases that know `crewai.hooks.HookAborted`, their exception for a deliberate stop, get one; older ones get the
agent's retries switched off until its next call.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any, Final, cast

import openai
from crewai import hooks

from nemo_agents.errors import NemoError

__all__ = ["final", "give_back_retries"]

_ABORTED: Final[type[Exception] | None] = getattr(hooks, "HookAborted", None)
_SOURCE: Final = "nemo-agents"

_taken: dict[int, tuple[weakref.ref[Any], int]] = {}


def final(error: NemoError, agent: Any) -> NemoError:
    """Return what to raise instead of an error so that crewAI lets it through: the same error, to whom it is told."""
    if error.__cause__ is error:  # crewAI re-raises with `raise e from e`
        error.__cause__ = error.__context__ if isinstance(error.__context__, openai.OpenAIError) else None
    if _ABORTED is not None and not isinstance(error, _ABORTED):
        return _aborting(error, _ABORTED)
    if _ABORTED is None:
        _take_retries(agent)
    return error


def give_back_retries(agent: Any) -> None:
    """Undo for an agent that is at work again what `final` did when it was refused."""
    taken = _taken.pop(id(agent), None) if agent is not None else None
    if taken is not None and taken[0]() is agent:
        agent.max_retry_limit = taken[1]


def _take_retries(agent: Any) -> None:
    limit = getattr(agent, "max_retry_limit", None)
    if not limit:
        return
    key = id(agent)
    _taken[key] = (weakref.ref(agent, lambda _: _taken.pop(key, None)), limit)
    agent.max_retry_limit = 0


def _aborting(error: NemoError, aborted: type[Exception]) -> NemoError:
    """Return the error once more, as what crewAI takes for a deliberate stop; `except` clauses see no difference."""
    kind: Any = _both(type(error), aborted)
    told = kind.__new__(kind)
    aborted.__init__(told, str(error), _SOURCE)
    vars(told).update(vars(error))
    told.args = error.args
    return cast("NemoError", told)


@cache
def _both(kind: Any, aborted: Any) -> type:
    return type(kind.__name__, (kind, aborted), {"__module__": __name__, "__doc__": kind.__doc__})
