"""The real `openai` clients, pointed at the gateway with a role's key, and telling it which run and step they serve.

Everything goes through public parts of `openai` and works with its second major version (on httpx) and its third (on
httpx2). Errors are mapped in `request` and not in an HTTP hook: version 2 retries and wraps whatever a hook raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeVar, get_args, get_origin

try:
    import openai
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "the openai package is not installed, and ready clients are made of it: pip install 'nemo-agents[openai]'",
        name="openai",
    ) from exc

from nemo_agents.admin import headers as h
from nemo_agents.errors import GatewayUnreachable, NemoError, RunEnded
from nemo_agents.trace import answers, waiting
from nemo_agents.trace.connections import CLOSED, Connections, note
from nemo_agents.trace.context import Place
from nemo_agents.trace.waiting import SYSTEM_SLEEPER, Sleeper

__all__ = [
    "AsyncGatewayOpenAI",
    "GatewayOpenAI",
    "Line",
    "async_openai_client",
    "connections",
    "openai_client",
]

_RETRY_COUNT = "x-stainless-retry-count"  # what openai's own retries say; ours take their place
_CAUSES_MAX = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a client speaks to the gateway over: its connections, the step it was made for, and how it waits."""

    connections: Connections
    step: str | None = None
    sleeper: Sleeper = SYSTEM_SLEEPER


def connections(gateway_url: str, *, made_at: Place | None = None) -> Connections:
    """Return connections of the kind that the installed `openai` wants."""
    return Connections(gateway_url, library=openai, made_at=made_at)


def openai_client(
    line: Line, key: str, *, place: Place | None = None, max_retries: int = 2, timeout_s: float | None = None
) -> GatewayOpenAI:
    """Return an `openai.OpenAI` for this line; `key` is the role's stand-in.

    Its calls belong to the run and step that are current when they are made; where none is (a thread that lost the
    context), to the place that the connections were made at, or to the step that `place` is.
    """
    client = GatewayOpenAI(
        api_key=key,
        base_url=f"{line.connections.gateway_url}/v1",
        max_retries=max_retries,
        timeout=openai.NOT_GIVEN if timeout_s is None else timeout_s,
        default_headers=None if place is None else place.headers(),
        http_client=line.connections.sync(),
    )
    return client.over(line)


def async_openai_client(
    line: Line, key: str, *, place: Place | None = None, max_retries: int = 2, timeout_s: float | None = None
) -> AsyncGatewayOpenAI:
    """Return an `openai.AsyncOpenAI` for this line; see `openai_client`.

    It may be used from several event loops, one after the other or side by side: each has its own connections.
    """
    client = AsyncGatewayOpenAI(
        api_key=key,
        base_url=f"{line.connections.gateway_url}/v1",
        max_retries=max_retries,
        timeout=openai.NOT_GIVEN if timeout_s is None else timeout_s,
        default_headers=None if place is None else place.headers(),
        http_client=line.connections.asynchronous(),
    )
    return client.over(line)


class GatewayOpenAI(openai.OpenAI):
    """`openai.OpenAI` that raises the errors of `nemo_agents.errors`, each from the openai error it stands for.

    It sends again what `nemo_agents.trace.waiting` says, at most `max_retries` times. A copy that a framework makes
    of its settings, deep or not, is the client itself.
    """

    __line: Line | None = None

    def over(self, line: Line | None) -> Self:
        """Have this client speak over a line."""
        self.__line = line
        return self

    def copy(self, *args: Any, **changes: Any) -> Self:
        """Return a client with other settings; see `openai.OpenAI.copy`."""
        return super().copy(*args, **changes).over(self.__line)

    with_options = copy

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return self

    def request(self, cast_to: Any, options: Any, *, stream: Any = False, stream_cls: Any = None) -> Any:
        """Send a request and return what it gives; `openai` calls this for every method of every resource.

        Raises RunEnded before anything is sent when the run that the call belongs to is over.
        """
        tries = _Tries(self, self.__line, options)
        while True:
            one = tries.next()
            try:
                return super().request(cast_to, one, stream=stream, stream_cls=_mapped(stream_cls))
            except (openai.APIStatusError, openai.APIConnectionError) as exc:
                wait_s = tries.wait_s(exc)
            tries.sleeper.sleep(wait_s)


class AsyncGatewayOpenAI(openai.AsyncOpenAI):
    """`openai.AsyncOpenAI` that raises the errors of `nemo_agents.errors`; see `GatewayOpenAI`."""

    __line: Line | None = None

    def over(self, line: Line | None) -> Self:
        """Have this client speak over a line."""
        self.__line = line
        return self

    def copy(self, *args: Any, **changes: Any) -> Self:
        """Return a client with other settings; see `openai.AsyncOpenAI.copy`."""
        return super().copy(*args, **changes).over(self.__line)

    with_options = copy

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return self

    async def request(self, cast_to: Any, options: Any, *, stream: Any = False, stream_cls: Any = None) -> Any:
        """Send a request and return what it gives; `openai` calls this for every method of every resource.

        Raises RunEnded before anything is sent when the run that the call belongs to is over.
        """
        tries = _Tries(self, self.__line, options)
        while True:
            one = tries.next()
            try:
                return await super().request(cast_to, one, stream=stream, stream_cls=_mapped(stream_cls))
            except (openai.APIStatusError, openai.APIConnectionError) as exc:
                wait_s = tries.wait_s(exc)
            await tries.sleeper.asleep(wait_s)


class _Tries:
    """The tries of one call: what is sent next, and how long is waited after one that failed."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI, line: Line | None, options: Any) -> None:
        self.sleeper = SYSTEM_SLEEPER if line is None else line.sleeper
        self._client = client
        self._line = line
        self._options = options
        self._sent = 0
        self._lost = 0
        # A body that is read while it is sent cannot be sent twice.
        streamed = options.files or not isinstance(getattr(options, "content", None), bytes | None)
        self._left = 0 if streamed else options.get_max_retries(client.max_retries)

    def next(self) -> Any:
        """Return the options of the next try, to be sent once. Raises RunEnded, and RuntimeError of a closed client."""
        if self._line is not None:
            self._line.connections.place(self._line.step)
        # Said here and not by the HTTP client: openai 2 would take that for a broken connection, and retry.
        if self._client.is_closed():
            raise RuntimeError(CLOSED)
        changes: dict[str, Any] = {"max_retries": 0}
        if self._sent:
            given = self._options.headers
            headers = {} if isinstance(given, openai.NotGiven) else given
            changes["headers"] = {**headers, _RETRY_COUNT: str(self._sent)}
        self._sent += 1
        return self._options.model_copy(update=changes)

    def wait_s(self, exc: openai.APIStatusError | openai.APIConnectionError) -> float:
        """Return the seconds until the next try. Raises the error that this one stands for when there is none."""
        left_s = self._left_s()
        if isinstance(exc, openai.APIStatusError):
            refusal = answers.error_of(exc.response)
            error: NemoError = refusal
            told_not_to = exc.response.headers.get(h.SHOULD_RETRY) == "false"
            wait_s = waiting.wait_after_refusal_s(
                refusal, told_not_to=told_not_to, tries_left=self._left, left_s=left_s
            )
        else:
            error = _unreachable(str(self._client.base_url), exc)
            self._lost += 1
            again = 0 if _may_have_arrived(exc) else self._left
            wait_s = waiting.wait_after_loss_s(lost=self._lost, tries_left=again, left_s=left_s)
        if wait_s is None:
            raise error from exc
        self._left -= 1
        return wait_s

    def _left_s(self) -> float | None:
        try:
            place = None if self._line is None else self._line.connections.place(self._line.step)
        except RunEnded:  # meanwhile; the answer is told as it is, and nothing is sent again
            return 0
        return None if place is None else place.left_s()


class _Stream(openai.Stream[_T]):
    """A stream whose error events are the project's errors too."""

    def __next__(self) -> _T:
        try:
            return super().__next__()
        except Exception as exc:  # noqa: BLE001 - the HTTP library's errors are known by shape alone
            _raise_from_stream(exc, self.response)

    def __iter__(self) -> Iterator[_T]:
        try:
            yield from super().__iter__()
        except Exception as exc:  # noqa: BLE001 - the HTTP library's errors are known by shape alone
            _raise_from_stream(exc, self.response)


class _AsyncStream(openai.AsyncStream[_T]):
    """A stream whose error events are the project's errors too."""

    async def __anext__(self) -> _T:
        try:
            return await super().__anext__()
        except Exception as exc:  # noqa: BLE001 - the HTTP library's errors are known by shape alone
            _raise_from_stream(exc, self.response)

    async def __aiter__(self) -> AsyncIterator[_T]:
        try:
            async for item in super().__aiter__():
                yield item
        except Exception as exc:  # noqa: BLE001 - the HTTP library's errors are known by shape alone
            _raise_from_stream(exc, self.response)


def _mapped(stream_cls: Any) -> Any:
    """Return our stream class for openai's own; any other, and none, stays what it is."""
    ours: Any = {openai.Stream: _Stream, openai.AsyncStream: _AsyncStream}.get(get_origin(stream_cls))
    return stream_cls if ours is None else ours[get_args(stream_cls)]


def _raise_from_stream(exc: Exception, response: Any) -> NoReturn:
    if isinstance(exc, openai.APIConnectionError) or _is_of_the_connection(exc, response):
        raise GatewayUnreachable(
            f"the connection to the gateway broke in the middle of an answer: {exc.__cause__ or exc}"
        ) from exc
    if type(exc) is not openai.APIError:  # a client-side finding, such as a failed validation
        raise exc
    body = exc.body if isinstance(exc.body, dict) else {"message": exc.message}
    error = answers.error_of_event(body, response.headers)
    note(response, error, in_stream=True)
    raise error from exc


def _is_of_the_connection(exc: Exception, response: Any) -> bool:
    """Whether the HTTP library itself says that an answer broke off; openai 2 lets that through.

    Both libraries name wrong use of a stream (read twice, read after its end) with a RuntimeError: no fault of the
    connection.
    """
    library = _library_of(response)
    return _library_of(exc) == library != "builtins" and not isinstance(exc, (openai.OpenAIError, RuntimeError))


def _library_of(thing: object) -> str:
    return type(thing).__module__.partition(".")[0]


def _may_have_arrived(exc: openai.APIConnectionError) -> bool:
    """Whether the gateway may be at work on the request: a second one would be paid for a second time."""
    return isinstance(exc, openai.APITimeoutError) and "Connect" not in type(exc.__cause__).__name__


def _unreachable(url: str, exc: openai.APIConnectionError) -> NemoError:
    """Return what a lost connection stands for; version 2 wraps what a hook raised as well."""
    cause: BaseException | None = exc
    for _ in range(_CAUSES_MAX):
        cause = cause.__cause__ if cause is not None else None
        if isinstance(cause, NemoError):
            return cause
    if isinstance(exc, openai.APITimeoutError):
        return GatewayUnreachable(f"the gateway at {url} did not answer in time. Look at `nemo-agents status`.")
    return answers.no_answer(url, exc.__cause__ or exc)
