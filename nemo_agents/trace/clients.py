"""The real `openai` clients, pointed at the gateway with a role's key, and telling it which run and step they serve.

Everything goes through public parts of `openai` and works with its second major version (on httpx) and its third (on
httpx2), so neither HTTP library is imported here. Errors are mapped in `request` and not in an HTTP hook: version 2
retries and wraps whatever a hook raises.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, MutableMapping
from typing import Any, NoReturn, Protocol, TypeVar, get_args, get_origin

try:
    import openai
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "the openai package is not installed, and ready clients are made of it: pip install 'nemo-agents[openai]'",
        name="openai",
    ) from exc

from nemo_agents.admin import headers as h
from nemo_agents.errors import GatewayError, GatewayUnreachable
from nemo_agents.policy.hosts import is_loopback_url
from nemo_agents.secret import Secret
from nemo_agents.trace import answers, propagate
from nemo_agents.trace.context import Answer, Place, here
from nemo_agents.trace.network import bare_tls, is_plain

__all__ = [
    "AsyncGatewayOpenAI",
    "Connections",
    "GatewayOpenAI",
    "async_openai_client",
    "openai_client",
]

_EXTENSION = "nemo_agents"  # where a request carries its place from the request hook to the response hook

_CLOSED = (
    "this client is closed: a step's clients end with their run. For an agent that outlives a run "
    "take fleet[role].openai() or fleet[role].async_openai()."
)

_T = TypeVar("_T")


def openai_client(
    gateway_url: str,
    key: Secret,
    *,
    connections: Connections | None = None,
    place: Place | None = None,
    max_retries: int = 2,
    timeout_s: float | None = None,
) -> GatewayOpenAI:
    """Return an `openai.OpenAI` for this gateway and key.

    Its calls belong to the run and step that are current when they are made; where none is (a thread that lost the
    context), to `place`. `connections` are shared with other clients; without them the client has its own.
    """
    connections = connections or Connections(gateway_url, place=place)
    return GatewayOpenAI(
        api_key=key.reveal(),
        base_url=f"{gateway_url}/v1",
        max_retries=max_retries,
        timeout=openai.NOT_GIVEN if timeout_s is None else timeout_s,
        default_headers=None if place is None else place.headers(),
        http_client=connections.sync(),
    )


def async_openai_client(
    gateway_url: str,
    key: Secret,
    *,
    connections: Connections | None = None,
    place: Place | None = None,
    max_retries: int = 2,
    timeout_s: float | None = None,
) -> AsyncGatewayOpenAI:
    """Return an `openai.AsyncOpenAI` for this gateway and key; see `openai_client`.

    It may be used from several event loops, one after the other or side by side: each has its own connections.
    """
    connections = connections or Connections(gateway_url, place=place)
    return AsyncGatewayOpenAI(
        api_key=key.reveal(),
        base_url=f"{gateway_url}/v1",
        max_retries=max_retries,
        timeout=openai.NOT_GIVEN if timeout_s is None else timeout_s,
        default_headers=None if place is None else place.headers(),
        http_client=connections.asynchronous(),
    )


class GatewayOpenAI(openai.OpenAI):
    """`openai.OpenAI` that raises the errors of `nemo_agents.errors`, each from the openai error it stands for."""

    def request(self, cast_to: Any, options: Any, *, stream: Any = False, stream_cls: Any = None) -> Any:
        """Send a request and return what it gives; `openai` calls this for every method of every resource."""
        _check_open(self)
        try:
            return super().request(cast_to, options, stream=stream, stream_cls=_mapped(stream_cls))
        except openai.APIStatusError as exc:
            raise answers.error_of(exc.response) from exc
        except openai.APIConnectionError as exc:
            raise _unreachable(str(self.base_url), exc) from exc


class AsyncGatewayOpenAI(openai.AsyncOpenAI):
    """`openai.AsyncOpenAI` that raises the errors of `nemo_agents.errors`; see `GatewayOpenAI`."""

    async def request(self, cast_to: Any, options: Any, *, stream: Any = False, stream_cls: Any = None) -> Any:
        """Send a request and return what it gives; `openai` calls this for every method of every resource."""
        _check_open(self)
        try:
            return await super().request(cast_to, options, stream=stream, stream_cls=_mapped(stream_cls))
        except openai.APIStatusError as exc:
            raise answers.error_of(exc.response) from exc
        except openai.APIConnectionError as exc:
            raise _unreachable(str(self.base_url), exc) from exc


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


def _check_open(client: openai.OpenAI | openai.AsyncOpenAI) -> None:
    # Said here and not by the HTTP client: openai 2 would take that for a broken connection, and retry.
    if client.is_closed():
        raise RuntimeError(_CLOSED)


def _raise_from_stream(exc: Exception, response: Any) -> NoReturn:
    if isinstance(exc, openai.APIConnectionError) or _is_of_the_connection(exc, response):
        raise GatewayUnreachable(
            f"the connection to the gateway broke in the middle of an answer: {exc.__cause__ or exc}"
        ) from exc
    if type(exc) is not openai.APIError:  # a client-side finding, such as a failed validation
        raise exc
    body = exc.body if isinstance(exc.body, dict) else {"message": exc.message}
    error = answers.error_of_event(body, response.headers)
    _note(response, error, in_stream=True)
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


def _unreachable(url: str, exc: openai.APIConnectionError) -> GatewayUnreachable:
    if isinstance(exc, openai.APITimeoutError):
        return GatewayUnreachable(f"the gateway at {url} did not answer in time. Look at `nemo-agents status`.")
    return GatewayUnreachable(
        f"no answer from the gateway at {url}: {exc.__cause__ or exc}. "
        "Start it with `nemo-agents gateway`, or correct NEMO_GATEWAY_URL."
    )


# --- connections ----------------------------------------------------------------------------------------------------
class Connections:
    """The HTTP clients that the clients of one run share, made at first use; any thread may ask for them."""

    def __init__(self, gateway_url: str, *, place: Place | None = None) -> None:
        self._hooks = _Hooks(gateway_url, place)
        # A proxy from the environment must not come between this machine and its own gateway.
        self._options: dict[str, Any] = {"trust_env": not is_loopback_url(gateway_url)}
        if is_plain(gateway_url):
            self._options["verify"] = bare_tls()
        self._lock = threading.Lock()
        self._sync: Any = None
        self._async: _PerLoopClient | None = None

    def sync(self) -> Any:
        """Return the blocking HTTP client, of the kind that the installed `openai` wants."""
        with self._lock:
            if self._sync is None:
                hooks: dict[str, list[Any]] = {
                    "request": [self._hooks.request],
                    "response": [self._hooks.response],
                }
                self._sync = openai.DefaultHttpxClient(event_hooks=hooks, **self._options)
            return self._sync

    def asynchronous(self) -> Any:
        """Return the awaiting HTTP client, of the kind that the installed `openai` wants."""
        with self._lock:
            if self._async is None:
                hooks = {"request": [self._hooks.arequest], "response": [self._hooks.aresponse]}
                self._async = _PerLoopClient({"event_hooks": hooks, **self._options})
            return self._async

    def close(self) -> None:
        """Close what can be closed without waiting; connections of running event loops are closed by their loops."""
        if self._sync is not None:
            self._sync.close()
        if self._async is not None:
            self._async.close_soon()

    async def aclose(self) -> None:
        """Close everything that belongs to this event loop or to none, and the rest as `close` does."""
        if self._sync is not None:
            self._sync.close()
        if self._async is not None:
            await self._async.aclose()


class _PerLoopClient(openai.DefaultAsyncHttpxClient):
    """One HTTP client per event loop behind one face.

    A kept-alive connection belongs to the loop it was opened in. A client that is carried into a second
    `asyncio.run()` would find it dead: openai 3 fails then, openai 2 loses a retry.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(verify=bare_tls(), trust_env=False)  # the face itself never opens a connection
        self.__options = options
        self.__lock = threading.Lock()
        self.__by_loop: dict[asyncio.AbstractEventLoop, Any] = {}
        self.__closed = False

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed; it cannot be used any more then."""
        return self.__closed

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request on a connection of the running event loop."""
        return await self.__of(asyncio.get_running_loop()).send(request, **options)

    async def aclose(self) -> None:
        """Close the connections of the running loop now, those of other running loops in their own time."""
        mine = self.__detach(asyncio.get_running_loop())
        if mine is not None:
            await mine.aclose()
        await super().aclose()

    def close_soon(self) -> None:
        """Have every running loop close its connections; for callers that cannot wait."""
        self.__detach(None)

    def __of(self, loop: asyncio.AbstractEventLoop) -> Any:
        with self.__lock:
            if self.__closed:
                raise RuntimeError(_CLOSED)
            if loop not in self.__by_loop:
                # Closed loops are dropped here: their connections are gone, and would keep the loops in memory.
                self.__by_loop = {old: kept for old, kept in self.__by_loop.items() if not old.is_closed()}
                self.__by_loop[loop] = openai.DefaultAsyncHttpxClient(**self.__options)
            return self.__by_loop[loop]

    def __detach(self, running: asyncio.AbstractEventLoop | None) -> Any:
        with self.__lock:
            self.__closed = True
            by_loop, self.__by_loop = self.__by_loop, {}
        mine = by_loop.pop(running, None) if running is not None else None
        for loop, client in by_loop.items():
            if loop.is_running():
                _run_in(loop, client.aclose())
        return mine


def _run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # the loop was closed meanwhile, and its connections with it
        work.close()


# --- hooks ----------------------------------------------------------------------------------------------------------
class _Request(Protocol):
    @property
    def headers(self) -> MutableMapping[str, str]: ...

    @property
    def extensions(self) -> MutableMapping[str, Any]: ...


class _Hooks:
    """Runs around every attempt of every call, retries included: says where it belongs and notes what it gave."""

    def __init__(self, gateway_url: str, place: Place | None) -> None:
        self._gateway_url = gateway_url
        self._made_at = place

    def request(self, request: _Request) -> None:
        place = here()
        if place is not None and place.gateway_url == self._gateway_url:
            for name in propagate.OURS:
                request.headers.pop(name, None)
        elif self._made_at is not None:
            step = request.headers.get(h.STEP)
            place = self._made_at.at(None if step is None else propagate.decode_text(step))
        else:
            return
        request.headers.update(place.headers())
        request.extensions[_EXTENSION] = (place, place.sends())

    def response(self, response: Any) -> None:
        if _EXTENSION not in response.request.extensions:
            return
        error = None
        if response.status_code >= 400:
            response.read()
            error = answers.error_of(response)
        _note(response, error)

    async def arequest(self, request: _Request) -> None:
        self.request(request)

    async def aresponse(self, response: Any) -> None:
        if response.status_code >= 400 and _EXTENSION in response.request.extensions:
            await response.aread()
        self.response(response)


def _note(response: Any, error: GatewayError | None, *, in_stream: bool = False) -> None:
    noted: tuple[Place, int] | None = response.request.extensions.get(_EXTENSION)
    if noted is None:
        return
    place, sent = noted
    answer = Answer(
        sent=sent,
        in_stream=in_stream,
        request_id=response.headers.get(h.REQUEST_ID),
        cost_nanos=None if in_stream else answers.cost_of(response.headers),
        error=error,
    )
    place.saw(answer)
