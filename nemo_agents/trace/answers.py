"""What an answer of the gateway says, read into the project's own errors and values.

Responses are taken by shape, not by class: the openai client rides on httpx in its second major version and on httpx2
in its third.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from nemo_agents.admin import headers as h
from nemo_agents.admin.wire import StoppedBy
from nemo_agents.errors import (
    AccessDenied,
    BudgetExceeded,
    Code,
    ErrorFacts,
    GatewayError,
    GatewayUnavailable,
    GatewayUnreachable,
    GuardrailBlocked,
    KeyRejected,
    RateLimited,
    Refused,
    RunStopped,
    UpstreamFailed,
    error_from_response,
)
from nemo_agents.money import parse_dollars
from nemo_agents.policy.keys import hide_keys

__all__ = [
    "Response",
    "cost_of",
    "describe",
    "error_of",
    "error_of_event",
    "error_of_exception",
    "is_plain_exit",
    "is_stop",
    "no_answer",
    "quotes",
    "shown",
    "stop_of",
    "stopped_by",
]

ERROR_LENGTH_MAX: Final = 500
_MARK_LENGTH_MIN: Final = 8  # characters; a shorter text is in too many others
_CAUSES_MAX: Final = 16  # deep enough for any framework; a bound, because a chain can be a ring

# An error that arrives inside a stream has no status of its own: the answer had begun as 200.
_STATUS_IN_STREAM: Final[Mapping[str, int]] = {
    Code.RUN_STOPPED: 403,
    Code.KEY_BLOCKED: 403,
    Code.KEY_EXPIRED: 403,
    Code.KEY_REVOKED: 403,
    Code.GUARDRAIL_BLOCKED: 400,
    Code.BUDGET_EXHAUSTED: 402,
    Code.REQUEST_EXCEEDS_BUDGET: 402,
    Code.BUDGET_HELD: 402,
    Code.LOOP_DETECTED: 429,
    Code.RATE_LIMIT_EXCEEDED: 429,
    Code.STORE_UNAVAILABLE: 503,
    Code.GUARDRAIL_UNAVAILABLE: 503,
    Code.AUDIT_UNAVAILABLE: 503,
    Code.UPSTREAM_TIMEOUT: 504,
}


class Response(Protocol):
    """The part of an httpx response that is read here; its body has been received."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, by names of any case."""

    def json(self) -> Any:
        """Return the decoded body; raises ValueError where it is not JSON."""


def error_of(response: Response) -> GatewayError:
    """Return the error that an answer of 400 or above stands for."""
    try:
        body = response.json()
    except ValueError:
        body = None
    return error_from_response(body, _facts(response.status_code, response.headers, body))


def error_of_event(body: object, headers: Mapping[str, str]) -> GatewayError:
    """Return the error that an error event inside a stream stands for; `headers` are those of the stream's answer."""
    code = _code(_error_object(body), headers)
    status = _STATUS_IN_STREAM.get(code or "", 502)
    return error_from_response(body, _facts(status, headers, body))


def error_of_exception(exc: BaseException) -> GatewayError | None:
    """Return the gateway's error in an exception: the exception itself, or an openai status error's meaning."""
    if isinstance(exc, GatewayError):
        return exc
    openai = sys.modules.get("openai")  # an error of a module that was never imported cannot have been raised
    if openai is not None and isinstance(exc, openai.APIStatusError):
        return error_of(exc.response)
    return None


def is_stop(error: GatewayError | None) -> bool:
    """Say whether an answer is a refusal after which a run cannot go on: a spent budget, its stop, or a loop."""
    looped = isinstance(error, RateLimited) and error.code == Code.LOOP_DETECTED
    return looped or isinstance(error, (BudgetExceeded, RunStopped))


def stop_of(exc: BaseException) -> GatewayError | None:
    """Return the refusal that makes an exception a stop of the run, None when it is something else.

    A framework may have wrapped it, so explicit causes (`raise … from …`) count; an exception that merely happened
    while a refusal was handled does not. A group counts when each of its members does.
    """
    cause: BaseException | None = exc
    for _ in range(_CAUSES_MAX):
        if cause is None:
            return None
        if isinstance(cause, BaseExceptionGroup):
            stops = [stop_of(member) for member in cause.exceptions]
            return stops[0] if all(stops) else None
        error = error_of_exception(cause)
        if is_stop(error):
            return error
        cause = cause.__cause__
    return None


def quotes(exc: BaseException, refusal: GatewayError) -> bool:
    """Say whether an exception, or a cause of it, has a refusal's message or request id in its text."""
    told = (
        [refusal.message, refusal.request_id] if isinstance(refusal, (Refused, GatewayUnavailable)) else [str(refusal)]
    )
    marks = [mark for mark in told if mark and len(mark) >= _MARK_LENGTH_MIN]
    cause: BaseException | None = exc
    for _ in range(_CAUSES_MAX):
        if cause is None:
            return False
        text = str(cause)
        if any(mark in text for mark in marks):
            return True
        cause = cause.__cause__
    return False


def stopped_by(error: GatewayError, *, step: str | None) -> StoppedBy | None:
    """Return what an error says about the end of a run; None for an error that is not an answer of the gateway."""
    if not isinstance(error, (Refused, UpstreamFailed, GatewayUnavailable)):
        return None
    return StoppedBy(
        kind=_kind(error),
        code=error.code or f"http_{error.status}",
        scope=error.scope,
        limit=error.limit,
        step=step,
        request_id=error.request_id,
        message=shown(error.message),
    )


def cost_of(headers: Mapping[str, str]) -> int | None:
    """Return the nanos that an answer says it cost; None where it does not say."""
    try:
        return parse_dollars(headers[h.REQUEST_COST])
    except (KeyError, ValueError):
        return None


def no_answer(url: str, cause: object) -> GatewayUnreachable:
    """Return the error of a gateway that cannot be reached; `cause` is what the HTTP library said."""
    return GatewayUnreachable(
        f"no answer from the gateway at {url}: {cause}. "
        "Start it with `nemo-agents gateway`, or correct NEMO_GATEWAY_URL."
    )


def is_plain_exit(exc: BaseException) -> bool:
    """Say whether an exception is a program's way to end well: `sys.exit()` or `sys.exit(0)`."""
    return isinstance(exc, SystemExit) and exc.code in (None, 0)


def describe(exc: BaseException) -> str:
    """Return one line about an exception that may be stored: cut, and without anything that looks like a key."""
    match exc:
        case SystemExit(code=int(code)):
            said = f"the program ended itself with exit code {code}"
        case KeyboardInterrupt() if not str(exc):
            said = "the program was interrupted"
        case _:
            said = str(exc)
    return shown(f"{type(exc).__name__}: {said}" if said else type(exc).__name__)


def shown(text: str) -> str:
    """Return a text of strangers as one line that may be stored: cut, and without anything that looks like a key."""
    line = " ".join(hide_keys(text).split())
    return line if len(line) <= ERROR_LENGTH_MAX else line[: ERROR_LENGTH_MAX - 1] + "…"


def _kind(error: GatewayError) -> str:
    match error:
        case BudgetExceeded():
            return "budget"
        case RunStopped(limit="max_calls"):
            return "max_calls"
        case RunStopped():
            return "stopped"
        case RateLimited(code=Code.LOOP_DETECTED):
            return "loop"
        case RateLimited():
            return "rate"
        case GuardrailBlocked():
            return "guardrail"
        case AccessDenied() | KeyRejected():
            return "access"
        case _:
            return "error"


def _facts(status: int, headers: Mapping[str, str], body: object) -> ErrorFacts:
    error = _error_object(body)
    return ErrorFacts(
        status=status,
        code=_code(error, headers),
        request_id=headers.get(h.REQUEST_ID),
        run_id=headers.get(h.RUN_ID),
        scope=_text(error.get("scope")),
        limit=_text(error.get("limit")),
        retry_after_s=_retry_after_s(headers),
        resets_at=_moment(error.get("resets_at")),
    )


def _error_object(body: object) -> Mapping[str, Any]:
    error = body.get("error", body) if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _code(error: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """LiteLLM puts the HTTP status into `code` and the meaning into `type`."""
    code = error.get("code")
    if isinstance(code, int) or (isinstance(code, str) and code.isdigit()):
        code = error.get("type")
    return _text(code) or headers.get(h.ERROR_CODE)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The exact milliseconds first; a date in `retry-after` is not read, our gateway and LiteLLM send seconds."""
    for name, per_second in ((h.RETRY_AFTER_MS, 1000.0), (h.RETRY_AFTER, 1.0)):
        try:
            seconds = float(headers[name]) / per_second
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
