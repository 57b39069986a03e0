"""HTTP clients for frameworks that make their own `openai` client and only take an `http_client` for it.

AG2 makes a plain `openai.OpenAI`, so neither errors nor retries can be handled there. Both happen one layer below, by
public parts of the HTTP library alone: `send` waits and sends again as the clients of `nemo_agents` do, and what it
hands back for a refusal raises the project's error from `raise_for_status()`. Each version of `openai` calls that on
every answer, and lets such an error through; an exception of `send` itself would be wrapped by openai 2. The `openai`
client around it is made with `max_retries=0`.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, Final, Self

import openai

from nemo_agents.errors import NemoError, RunEnded
from nemo_agents.trace import answers, waiting
from nemo_agents.trace.connections import place_of
from nemo_agents.trace.context import Place
from nemo_agents.trace.member import Member
from nemo_agents.trace.network import bare_tls

__all__ = ["AsyncKeyedHttp", "KeyedHttp", "Retrying"]

_LIBRARIES: Final = frozenset({"httpx", "httpx2"})
_OF_THE_BODY: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """How often a call is sent again, and the place of calls that have no current one; its deadline bounds waits."""

    max_retries: int
    made_at: Place | None = None


class KeyedHttp(openai.DefaultHttpxClient):
    """The blocking HTTP client of a role, for an `openai.OpenAI` that somebody else makes with `max_retries=0`.

    `inner` is the client that sends: `member.http_client()`.
    """

    def __init__(self, member: Member, inner: Any, retrying: Retrying) -> None:
        super().__init__(verify=bare_tls(), trust_env=False)  # this face itself never opens a connection
        self.__member = member
        self.__inner = inner
        self.__retrying = retrying

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # frameworks copy their configuration; connections are not copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}(role={self.__member.name!r})"

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request, and again where waiting cures a refusal or the connection was lost on the way there."""
        attempts = _Attempts(self.__retrying, self.__member)
        while True:
            try:
                response = self.__inner.send(request, **options)
                if response.status_code < 400:
                    return response
                response.read()
                wait_s = attempts.after(response)
            except Exception as exc:  # noqa: BLE001 - raised again where it is none of this layer
                wait_s = attempts.after_exception(exc)
            if wait_s is None:
                return attempts.outcome(request)
            self.__member.sleeper.sleep(wait_s)

    def close(self) -> None:
        """Close the connections."""
        self.__inner.close()
        super().close()


class AsyncKeyedHttp(openai.DefaultAsyncHttpxClient):
    """The awaiting HTTP client of a role; see `KeyedHttp`. It may be used from several event loops."""

    def __init__(self, member: Member, inner: Any, retrying: Retrying) -> None:
        super().__init__(verify=bare_tls(), trust_env=False)  # this face itself never opens a connection
        self.__member = member
        self.__inner = inner
        self.__retrying = retrying

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # frameworks copy their configuration; connections are not copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}(role={self.__member.name!r})"

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request, and again where waiting cures a refusal or the connection was lost on the way there."""
        attempts = _Attempts(self.__retrying, self.__member)
        while True:
            try:
                response = await self.__inner.send(request, **options)
                if response.status_code < 400:
                    return response
                await response.aread()
                wait_s = attempts.after(response)
            except Exception as exc:  # noqa: BLE001 - raised again where it is none of this layer
                wait_s = attempts.after_exception(exc)
            if wait_s is None:
                return attempts.outcome(request)
            await self.__member.sleeper.asleep(wait_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.__inner.aclose()
        await super().aclose()


class _Attempts:
    """The attempts of one call: what came of the last, and whether there is another."""

    def __init__(self, retrying: Retrying, member: Member) -> None:
        self._made_at = retrying.made_at
        self._tries_left = retrying.max_retries
        self._lost = 0
        self._member = member
        self._error: NemoError | None = None
        self._response: Any = None

    def after(self, response: Any) -> float | None:
        """Return the seconds to wait before the call is sent again, None when it is not."""
        error = answers.error_of(response)
        self._error, self._response = error, response
        wait_s = waiting.wait_after_refusal_s(
            error,
            told_not_to=response.headers.get("x-should-retry") == "false",
            tries_left=self._tries_left,
            left_s=self._left_s(),
        )
        self._tries_left -= 1
        return wait_s

    def after_exception(self, exc: Exception) -> float | None:
        """Return the seconds to wait before the call is sent again; raise what is no business of this layer."""
        self._response = None
        if isinstance(exc, NemoError):
            self._error = exc
            return None
        if type(exc).__module__.partition(".")[0] not in _LIBRARIES:
            raise exc
        self._lost += 1
        self._error = answers.no_answer(self._member.base_url, exc or type(exc).__name__)
        self._error.__cause__ = exc
        # After a time-out the gateway may be at work on the request: a second one would be paid for a second time.
        may_have_arrived = "Timeout" in type(exc).__name__ and "Connect" not in type(exc).__name__
        tries_left = 0 if may_have_arrived else self._tries_left
        wait_s = waiting.wait_after_loss_s(lost=self._lost, tries_left=tries_left, left_s=self._left_s())
        self._tries_left -= 1
        return wait_s

    def outcome(self, request: Any) -> Any:
        """Return an answer that raises the error that came of the call."""
        response = self._response
        if response is None:
            return _refusal_class(_answer_class(request))(self._error, 400, request=request)
        made: Any = type(response)
        return _refusal_class(made)(
            self._error,
            response.status_code,
            headers=[(name, value) for name, value in response.headers.items() if name.lower() not in _OF_THE_BODY],
            content=response.content,
            request=request,
        )

    def _left_s(self) -> float | None:
        try:
            place = place_of(self._member.gateway_url, self._made_at)
        except RunEnded:  # meanwhile; the answer is told as it is, and nothing is sent again
            return 0
        return None if place is None else place.left_s()


def _answer_class(request: Any) -> Any:
    """Return the class of answers of the library that a request comes from: httpx for openai 2, httpx2 for openai 3."""
    return importlib.import_module(type(request).__module__.partition(".")[0]).Response


@functools.cache
def _refusal_class(base: Any) -> Any:
    class Refusal(base):  # type: ignore[misc] # the class of one of two libraries
        """An answer of the gateway, or the lack of one, that raises the project's error."""

        def __init__(self, error: NemoError, status: int, **parts: Any) -> None:
            super().__init__(status, **parts)
            self.__error = error

        def raise_for_status(self) -> Any:
            """Raise the error that this answer stands for, from the library's own where it has no other cause."""
            try:
                super().raise_for_status()
            except Exception as exc:  # noqa: BLE001 - the error of one of two libraries
                raise self.__error from (self.__error.__cause__ or exc)
            raise self.__error

    return Refusal
