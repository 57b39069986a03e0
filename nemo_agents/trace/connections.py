"""HTTP clients that tell the gateway which run and step a call serves, and put in the role's key as it goes out.

They are made of whatever client the library wants that will use them: openai and anthropic ride on httpx in one major
version and on httpx2 in another, so neither is imported here. All goes through public parts, event hooks and
subclasses.

A library, and whatever shows its settings, is given a stand-in for the key. The hook replaces it in requests to the
gateway alone, and it is back in them when they have been sent: no dump, log or traceback of a framework can tell the
key, also where it has an answer or an exception that holds its request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, MutableMapping
from functools import cache
from typing import Any, Final, Protocol, Self

from nemo_agents.admin import headers as h
from nemo_agents.errors import GatewayError, RunEnded
from nemo_agents.policy.hosts import is_loopback_url
from nemo_agents.secret import Secret
from nemo_agents.trace import answers, propagate
from nemo_agents.trace.context import Answer, Place, here
from nemo_agents.trace.network import bare_tls, is_plain

__all__ = ["CLOSED", "Connections", "HttpxClasses", "note", "place_of", "stand_in"]

_EXTENSION: Final = "nemo_agents"  # where a request carries its place from the request hook to the response hook
_HEADER: Final = "nemo_agents.header"  # where it carries the header that a key has taken the place of
_STAND_IN: Final = "nemo-role:"

CLOSED: Final = (
    "this client is closed: a step's clients end with their run. For an agent that outlives a run "
    "take fleet[role].openai() or fleet[role].async_openai()."
)


class HttpxClasses(Protocol):
    """The part of the modules `openai` and `anthropic` that makes the HTTP clients they want."""

    DefaultHttpxClient: Any
    DefaultAsyncHttpxClient: Any


def stand_in(role: str) -> str:
    """Return what a library is given in the place of the role's key."""
    return f"{_STAND_IN}{role}"


def place_of(gateway_url: str, made_at: Place | None) -> Place | None:
    """Return where a call belongs: to the current place, else to that where its client was made; None for no run.

    A place of another gateway does not count. Raises RunEnded when every place there is belongs to a run that is over.
    """
    current = here()
    if current is not None and current.gateway_url != gateway_url:
        current = None
    for place in (current, made_at):
        if place is not None and not place.over:
            return place
    ended = current or made_at
    if ended is None:
        return None
    raise RunEnded(
        f"the run {ended.run_id} is over, and this call would belong to it; nothing was sent. For an agent that "
        "outlives a run make its client outside of any, or name the run that it serves now with run=."
    )


class Connections:
    """The HTTP clients that the clients of one run, or of one member, share; made at first use, from any thread.

    `made_at` is the place of calls that have no current one.
    """

    def __init__(self, gateway_url: str, *, library: HttpxClasses, made_at: Place | None = None) -> None:
        self.gateway_url = gateway_url
        self.made_at = made_at
        self._library = library
        self._hooks = _Hooks(self)
        self._keys: dict[str, Secret] = {}
        # A proxy from the environment must not come between this machine and its own gateway. The gateway never
        # redirects, and headers must not follow whoever does.
        self._options: dict[str, Any] = {"trust_env": not is_loopback_url(gateway_url), "follow_redirects": False}
        if is_plain(gateway_url):
            self._options["verify"] = bare_tls()
        self._lock = threading.Lock()
        self._sync: Any = None
        self._async: Any = None

    def hold(self, role: str, key: Secret) -> str:
        """Keep a role's key for the requests that go out, and return its stand-in."""
        name = stand_in(role)
        self._keys[name] = key
        return name

    def key_of(self, name: str) -> Secret | None:
        """Return the key that a stand-in stands for; None for any other text."""
        return self._keys.get(name)

    def place(self, step: str | None) -> Place | None:
        """Return where a call of a client goes that was made for the step of this label. Raises RunEnded."""
        made_at = self.made_at
        return place_of(self.gateway_url, made_at if made_at is None or step is None else made_at.at(step))

    def sync(self) -> Any:
        """Return the blocking HTTP client, of the kind that the library wants."""
        with self._lock:
            if self._sync is None:
                hooks: dict[str, list[Any]] = {"request": [self._hooks.request], "response": [self._hooks.response]}
                made = _blocking(self._library.DefaultHttpxClient)
                self._sync = made(event_hooks=hooks, **self._options)
            return self._sync

    def asynchronous(self) -> Any:
        """Return the awaiting HTTP client, of the kind that the library wants."""
        with self._lock:
            if self._async is None:
                hooks = {"request": [self._hooks.arequest], "response": [self._hooks.aresponse]}
                base = self._library.DefaultAsyncHttpxClient
                self._async = _per_loop(base)({"event_hooks": hooks, **self._options}, base)
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


# --- clients --------------------------------------------------------------------------------------------------------
class _OneOfAKind:
    """A client that frameworks may copy with the settings it is in: a copy is the client itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return self


class _Blocking(_OneOfAKind):
    """A client that leaves no key in what it has sent."""

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request."""
        try:
            return super().send(request, **options)  # type: ignore[misc] # of the HTTP library's client beside this
        finally:
            _take_out_key(request)


class _PerLoop(_OneOfAKind):
    """One HTTP client per event loop behind one face.

    A kept-alive connection belongs to the loop it was opened in. A client that is carried into a second
    `asyncio.run()` would find it dead: openai 3 fails then, openai 2 loses a retry.
    """

    def __init__(self, options: dict[str, Any], base: Any) -> None:
        face: dict[str, Any] = {"verify": bare_tls(), "trust_env": False}  # it never opens a connection itself
        super().__init__(**face)
        self.__options = options
        self.__base = base
        self.__lock = threading.Lock()
        self.__by_loop: dict[asyncio.AbstractEventLoop, Any] = {}
        self.__closed = False

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed; it cannot be used any more then."""
        return self.__closed

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request on a connection of the running event loop."""
        try:
            return await self.__of(asyncio.get_running_loop()).send(request, **options)
        finally:
            _take_out_key(request)

    async def aclose(self) -> None:
        """Close the connections of the running loop now, those of other running loops in their own time."""
        mine = self.__detach(asyncio.get_running_loop())
        if mine is not None:
            await mine.aclose()
        await self.__base.aclose(self)

    def close_soon(self) -> None:
        """Have every running loop close its connections; for callers that cannot wait."""
        self.__detach(None)

    def __of(self, loop: asyncio.AbstractEventLoop) -> Any:
        with self.__lock:
            if self.__closed:
                raise RuntimeError(CLOSED)
            if loop not in self.__by_loop:
                # Closed loops are dropped here: their connections are gone, and would keep the loops in memory.
                self.__by_loop = {old: kept for old, kept in self.__by_loop.items() if not old.is_closed()}
                self.__by_loop[loop] = self.__base(**self.__options)
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


@cache
def _blocking(base: Any) -> Any:
    return type("GatewayHttpClient", (_Blocking, base), {})


@cache
def _per_loop(base: Any) -> Any:
    return type("AsyncGatewayHttpClient", (_PerLoop, base), {})


def _run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # the loop was closed meanwhile, and its connections with it
        work.close()


# --- hooks ----------------------------------------------------------------------------------------------------------
class _Request(Protocol):
    @property
    def url(self) -> Any: ...

    @property
    def headers(self) -> MutableMapping[str, str]: ...

    @property
    def extensions(self) -> MutableMapping[str, Any]: ...


class _Hooks:
    """Runs around every attempt of every call, retries included: says where it belongs and notes what it gave."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._netloc: bytes | None = None

    def request(self, request: _Request) -> None:
        if not self._is_to_the_gateway(request.url):
            return
        headers = request.headers
        step = headers.get(h.STEP)
        place = self._connections.place(None if step is None else propagate.decode_text(step))
        if place is not None:
            for name in propagate.OURS:
                headers.pop(name, None)
            headers.update(place.headers())
            left_s = place.left_s()
            if left_s is not None:
                headers[h.TIMEOUT_MS] = str(max(1, int(left_s * 1000)))
            request.extensions[_EXTENSION] = (place, place.sends())
        self._put_in_key(request)

    def response(self, response: Any) -> None:
        if _EXTENSION not in response.request.extensions:
            return
        error = None
        if response.status_code >= 400:
            response.read()
            error = answers.error_of(response)
        note(response, error)

    async def arequest(self, request: _Request) -> None:
        self.request(request)

    async def aresponse(self, response: Any) -> None:
        if response.status_code >= 400 and _EXTENSION in response.request.extensions:
            await response.aread()
        self.response(response)

    def _is_to_the_gateway(self, url: Any) -> bool:
        if self._netloc is None:  # written as this library writes it: lower case, without the usual port
            self._netloc = type(url)(self._connections.gateway_url).netloc
        return bool(url.netloc == self._netloc)

    def _put_in_key(self, request: _Request) -> None:
        headers = request.headers
        for name, before in (("authorization", "Bearer "), ("x-api-key", "")):
            value = headers.get(name, "")
            if value.startswith(before + _STAND_IN):
                key = self._connections.key_of(value[len(before) :])
                if key is not None:
                    request.extensions[_HEADER] = name, value
                    headers[name] = before + key.reveal()


def _take_out_key(request: _Request) -> None:
    name, value = request.extensions.pop(_HEADER, (None, ""))
    if name is not None:
        request.headers[name] = value


def note(response: Any, error: GatewayError | None, *, in_stream: bool = False) -> None:
    """Tell the place of a call what its answer said."""
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
