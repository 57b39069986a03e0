"""The gateway's errors behind litellm's exceptions.

litellm loses code and body of a refusal. It keeps status, text and headers, and the gateway repeats the code in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.admin import headers as h
from nemo_agents.errors import NemoError
from nemo_agents.trace.answers import error_of

__all__ = ["error_behind"]

_CAUSES_MAX: Final = 16  # deep enough for litellm's layers; a bound, because a chain can be a ring


def error_behind(exc: BaseException, around: BaseException | None = None) -> NemoError | None:
    """Return the error of `nemo_agents.errors` that an exception of litellm stands for, None where there is none.

    `lite_llm` raises these errors by itself; this is for `LiteLlm(model=..., api_key=..., api_base=...)` as it is.
    `around` is what was being handled when the call began: what lies beyond it is no part of this failure.
    """
    return _in_chain(exc, around) or _from_headers(exc)


def _in_chain(exc: BaseException, around: BaseException | None) -> NemoError | None:
    """Return the error that one of our clients raised beneath litellm's; litellm raises its own while handling it."""
    cause: BaseException | None = exc
    for _ in range(_CAUSES_MAX):
        if cause is None or cause is around:
            return None
        if isinstance(cause, NemoError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


class _Told:
    """What litellm keeps of an answer, in the shape of one."""

    def __init__(self, status_code: int, headers: Mapping[str, str], message: str) -> None:
        self.status_code = status_code
        self.headers = headers
        self._message = message

    def json(self) -> Any:
        return {"error": {"message": self._message}}


def _from_headers(exc: BaseException) -> NemoError | None:
    status = getattr(exc, "status_code", None)
    headers = getattr(exc, "litellm_response_headers", None)
    if not isinstance(status, int) or status < 400 or headers is None or h.ERROR_CODE not in headers:
        return None
    error = error_of(_Told(status, headers, str(getattr(exc, "message", exc))))
    error.__cause__ = exc
    return error
