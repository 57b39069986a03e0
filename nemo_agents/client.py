"""Two thin drivers of the admin API's calls and flows: `Client` blocks, `AsyncClient` awaits.

Everything that decides is shared and pure; the drivers differ in nothing but `await`. A call is sent once: a
change whose answer was lost is found again by the flow that made it, never by sending it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from nemo_agents.admin.calls import Call, Flow, encode_body
from nemo_agents.environment import GATEWAY_URL
from nemo_agents.errors import AdminError, GatewayError, GatewayUnreachable
from nemo_agents.policy.hosts import is_loopback_url
from nemo_agents.policy.keys import hide_keys
from nemo_agents.secret import Secret
from nemo_agents.trace.network import bare_tls, is_plain

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")

_MESSAGE_MAX: Final = 600  # characters; a foreign server's error page is not worth more


class Client:
    """A blocking client of one gateway's admin API; a context manager, or `close()` it.

    `timeout_s` bounds connecting and each read or write. `transport` replaces the network, for tests.
    Raises GatewayUnreachable when `base_url` is not an http(s) address.
    """

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._key = key
        self._http = httpx.Client(transport=transport, **_settings(self.base_url, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def run(self, work: Call[T] | Flow[T]) -> T:
        """Send a call, or drive a flow to its end, and return the answer.

        Raises AdminError when the gateway refuses a call and the flow does not handle it, GatewayUnreachable
        when it does not answer.
        """
        if isinstance(work, Call):
            return self._send(work)
        try:
            call = next(work)
            while True:
                try:
                    answer = self._send(call)
                except GatewayError as error:
                    call = work.throw(error)
                else:
                    call = work.send(answer)
        except StopIteration as done:
            return cast("T", done.value)
        finally:
            work.close()

    def _send(self, call: Call[T]) -> T:
        try:
            response = self._http.request(call.method, call.path, **_request(call, self._key))
        except httpx.HTTPError as error:
            raise _unreachable(self.base_url, error) from error
        return _answer(call, response)


class AsyncClient:
    """An awaiting client of one gateway's admin API; an async context manager, or `aclose()` it.

    `timeout_s` bounds connecting and each read or write. `transport` replaces the network, for tests.
    Raises GatewayUnreachable when `base_url` is not an http(s) address.
    """

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._key = key
        self._http = httpx.AsyncClient(transport=transport, **_settings(self.base_url, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close idle connections."""
        await self._http.aclose()

    async def run(self, work: Call[T] | Flow[T]) -> T:
        """Send a call, or drive a flow to its end, and return the answer.

        Raises AdminError when the gateway refuses a call and the flow does not handle it, GatewayUnreachable
        when it does not answer.
        """
        if isinstance(work, Call):
            return await self._send(work)
        try:
            call = next(work)
            while True:
                try:
                    answer = await self._send(call)
                except GatewayError as error:
                    call = work.throw(error)
                else:
                    call = work.send(answer)
        except StopIteration as done:
            return cast("T", done.value)
        finally:
            work.close()

    async def _send(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(call.method, call.path, **_request(call, self._key))
        except httpx.HTTPError as error:
            raise _unreachable(self.base_url, error) from error
        return _answer(call, response)


def _checked_url(base_url: str) -> str:
    url = base_url.rstrip("/")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        fits = False
    if not fits:
        raise GatewayUnreachable(
            f"{base_url!r} is not the address of a gateway. Set {GATEWAY_URL} to one such as http://127.0.0.1:4141."
        )
    return url


def _settings(base_url: str, timeout_s: float) -> dict[str, Any]:
    here = is_loopback_url(base_url)
    return {
        "base_url": base_url,
        "timeout": timeout_s,
        # A proxy from the environment never reaches this machine's own gateway, and must not see its key.
        "trust_env": not here,
        # Nor is there a certificate to check, and to read the machine's takes a tenth of a second.
        "verify": bare_tls() if here and is_plain(base_url) else True,
        "follow_redirects": False,
    }


def _request(call: Call[Any], key: Secret) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key.reveal()}", "accept": "application/json"}
    if call.body is None:
        return {"params": dict(call.query), "headers": headers}
    headers["content-type"] = "application/json"
    return {"params": dict(call.query), "headers": headers, "content": encode_body(call.body)}


def _answer(call: Call[T], response: httpx.Response) -> T:
    if response.status_code // 100 != 2:
        raise _refused(call, response)
    try:
        return call.decode(response.content)
    except (msgspec.DecodeError, ValueError) as error:
        raise AdminError(
            f"{call.method} {call.path} answered something else than the admin API does: "
            f"{_clean(str(error))}. Does {GATEWAY_URL} point at a nemo-agents gateway?",
            status=response.status_code,
        ) from error


def _refused(call: Call[Any], response: httpx.Response) -> AdminError:
    message, kind = _error_of(response)
    what = f"{call.method} {call.path}: {response.status_code} {_clean(message)}"
    if response.status_code in (401, 403):
        what += " (is the admin key right? NEMO_ADMIN_KEY, or admin.key in the gateway's home)"
    return AdminError(what, status=response.status_code, type=kind)


def _error_of(response: httpx.Response) -> tuple[str, str | None]:
    """Read the three shapes of LiteLLM's errors: an `error` object, FastAPI's `detail`, and plain text."""
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return response.text or response.reason_phrase, None
    if not isinstance(body, Mapping):
        return str(body), None
    error = body.get("error", body.get("detail", body))
    if isinstance(error, Mapping) and isinstance(error.get("error"), (str, Mapping)):
        error = error["error"]  # FastAPI wraps a dictionary: {"detail": {"error": ...}}
    if isinstance(error, list):
        return "; ".join(_validation(item) for item in error), "validation_error"
    if not isinstance(error, Mapping):
        return str(error), None
    kind = error.get("type")
    # LiteLLM writes Python's None as the text "None".
    named = kind if isinstance(kind, str) and kind != "None" else None
    return str(error.get("message") or msgspec.json.encode(error).decode()), named


def _validation(item: object) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    where = ".".join(str(part) for part in item.get("loc", ()))
    return f"{where}: {item.get('msg', 'is not valid')}"


def _clean(message: str) -> str:
    """Return a message on one line, of bounded length, in which anything that looks like a key is masked."""
    masked = hide_keys(" ".join(message.split()))
    return masked if len(masked) <= _MESSAGE_MAX else masked[:_MESSAGE_MAX] + "…"


def _unreachable(base_url: str, error: httpx.HTTPError) -> GatewayUnreachable:
    timed_out = isinstance(error, httpx.TimeoutException)
    why = "it did not answer in time" if timed_out else _clean(str(error)) or type(error).__name__
    return GatewayUnreachable(
        f"no gateway at {base_url}: {why}. Start one with `nemo-agents gateway`, or set {GATEWAY_URL} to its address."
    )
