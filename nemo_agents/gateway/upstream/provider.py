"""A provider over HTTP: what is sent, in which form, with which credentials."""

from __future__ import annotations

import asyncio
import copy
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.upstream.conceal import Concealed, spellings
from nemo_agents.gateway.upstream.pool import Address, Pool, PoolSettings
from nemo_agents.gateway.upstream.signing import Signer, SigningError
from nemo_agents.policy.wires.base import WireName
from nemo_agents.secret import Secret

__all__ = ["HttpProvider", "read_all"]

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, token
_FORBIDDEN_IN_VALUE: Final = re.compile(r"[\r\n\0]")
_PATH: Final = re.compile(r"/[!$-;=?-Z_a-z~@\[\]]*")  # visible ASCII without space, quotes, `#`, `<`, `>`, `\`, `^`
# These say where a message ends, to whom it goes or how it is coded: nobody but this module writes them.
_OURS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# These show who pays: they come from the configuration, or from a signer.
_CREDENTIALS: Final = frozenset({"authorization", "x-api-key", "api-key", "x-amz-date", "x-amz-security-token"})
_OPEN: Final = frozenset({"accept", "content-type", "user-agent"})  # of the configured headers those that are no secret
_REMEMBERED_PATHS: Final = 256
_LAST_ANSWER: Final = 201  # a status above it brings no answer of a model's


@dataclass(frozen=True, slots=True, kw_only=True)
class _BaseUrl:
    scheme: str
    host: str
    port: int
    prefix: str  # path without a slash at its end

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


class HttpProvider:
    """One provider's endpoints below `base_url`, over a pool of connections of its own.

    `headers` go out with every request, those of `wire_headers` instead of them on that wire; no request can replace
    one. Their values are shown nowhere, not even where a provider repeats them to say what went wrong. `defaults` go
    out on a wire unless the request brings its own. `signer` is asked for the headers of each request. No redirect is
    followed, no environment variable (proxy, certificates other than OpenSSL's own) is read, no compressed answer is
    accepted. TLS trusts what the system trusts unless `tls` says otherwise. Raises SettingsError for an address or
    header that cannot be meant. It belongs to the event loop of its first request.
    """

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        headers: Mapping[str, str | Secret] | None = None,
        wire_headers: Mapping[WireName, Mapping[str, str | Secret]] | None = None,
        defaults: Mapping[WireName, Mapping[str, str]] | None = None,
        signer: Signer | None = None,
        max_connections: int = 100,
        settings: PoolSettings | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if max_connections < 1:
            raise SettingsError(f"max_connections of provider {name!r} is {max_connections}. Allow at least one.")
        self.name = name
        self._url = _parse_base_url(name, base_url)
        self._fields = _with_ours(name, headers)
        self._wire_fields = {wire: _with_ours(name, each) for wire, each in (wire_headers or {}).items()}
        self._fixed = frozenset().union(self._fields, *self._wire_fields.values())
        shown = [each for fields in (self._fields, *self._wire_fields.values()) for each in fields.items()]
        self._credentials = spellings(value for field, value in shown if field not in _OPEN)
        self._defaults = {
            wire: [(field.encode("ascii"), value.encode("ascii")) for field, value in each.items()]
            for wire, each in (defaults or {}).items()
        }
        self._signer = signer
        self._head_ends: dict[tuple[bool, WireName], bytes] = {}
        if tls is None and self._url.scheme == "https":
            tls = _system_trust()
        address = Address(host=self._url.host, port=self._url.port, tls=tls if self._url.scheme == "https" else None)
        self.pool = Pool(name, address, max_connections=max_connections, settings=settings or PoolSettings())
        self._paths: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"HttpProvider(name={self.name!r}, base_url={self.base_url!r})"

    @property
    def base_url(self) -> str:
        """The address below which the paths of requests are."""
        return str(self._url)

    def below(self, prefix: str) -> HttpProvider:
        """Return the same provider with another path before that of its requests, over the same connections."""
        other = copy.copy(self)
        other._url = _BaseUrl(scheme=self._url.scheme, host=self._url.host, port=self._url.port, prefix=prefix)  # noqa: SLF001 - of this class
        other._paths = {}  # noqa: SLF001 - of this class
        return other

    async def send(self, request: ProviderRequest) -> ProviderResponse:
        """Send a request and return when the head of the answer is in. Raises UpstreamError.

        Redirects and error statuses are answers like any other. A request is written at most once: when it
        may have left, a fault is reported with `sent` True and nothing is tried again.
        """
        signed = {} if self._signer is None else await self._signed(self._signer, request)
        head = self._head(request, signed)
        connection = await self.pool.acquire(request.connect_timeout_s)
        exchange = await connection.exchange(head, request)
        chunks: AsyncIterator[bytes] = exchange
        if exchange.status > _LAST_ANSWER:
            of_signer = spellings(value for name, value in signed.items() if name in _CREDENTIALS - {"x-amz-date"})
            credentials = (*of_signer, *self._credentials)
            chunks = Concealed(exchange, credentials) if credentials else exchange
        return ProviderResponse(status=exchange.status, headers=exchange.headers, chunks=chunks)

    async def close(self) -> None:
        """Close idle connections and refuse new requests; answers under way may be read to their end."""
        self.pool.close()

    def _head(self, request: ProviderRequest, signed: Mapping[str, str]) -> bytes:
        path = self._paths.get(request.path)
        if path is None:
            path = self._checked_path(request.path)
        extra = [self._checked_field(name, value) for name, value in request.headers]
        if request.wire in self._defaults:
            brought = {name.lower() for name, _ in request.headers}
            extra += [b"%b: %b\r\n" % each for each in self._defaults[request.wire] if each[0] not in brought]
        extra += [f"{name}: {value}\r\n".encode("latin-1") for name, value in signed.items()]
        if request.method == "POST":
            extra.append(b"content-length: %d\r\n" % len(request.body))
        return b"%b %b%b%b\r\n" % (request.method.encode(), path, self._head_end(request), b"".join(extra))

    def _head_end(self, request: ProviderRequest) -> bytes:
        """Return what of a head is the same for all requests of a wire."""
        key = (request.stream, request.wire)
        known = self._head_ends.get(key)
        if known is None:
            fields = self._wire_fields.get(request.wire, self._fields)
            known = self._head_ends[key] = _head_end(self._url.authority, fields, stream=request.stream)
        return known

    async def _signed(self, signer: Signer, request: ProviderRequest) -> dict[str, str]:
        url = f"{self._url.scheme}://{self._url.authority}{self._url.prefix}{request.path}"
        try:
            async with asyncio.timeout(request.first_byte_timeout_s):  # credentials may have to be fetched
                headers = await signer.sign(request.wire, request.method, url, request.body)
        except SigningError as error:
            raise UpstreamError(f"{self.name}: {error}", sent=False) from error
        except TimeoutError as error:
            what = f"{self.name}: no credentials were had within {request.first_byte_timeout_s:g} s"
            raise UpstreamError(what, sent=False, timed_out=True) from error
        return {name: value.reveal() for name, value in headers.items()}

    def _checked_path(self, path: str) -> bytes:
        if _PATH.fullmatch(path) is None:
            raise UpstreamError(f"{self.name}: the path {path[:80]!r} cannot be requested", sent=False)
        if len(self._paths) >= _REMEMBERED_PATHS:
            self._paths.clear()
        encoded = self._paths[path] = f"{self._url.prefix}{path}".encode("ascii")
        return encoded

    def _checked_field(self, name: bytes, value: bytes) -> bytes:
        text = name.decode("latin-1")
        lower = text.lower()
        if _NAME.fullmatch(text) is None or lower in _OURS or lower in _CREDENTIALS or lower in self._fixed:
            raise UpstreamError(f"{self.name}: the header name {text[:80]!r} cannot be sent", sent=False)
        if _FORBIDDEN_IN_VALUE.search(value.decode("latin-1")) is not None:
            raise UpstreamError(f"{self.name}: the value of header {text[:80]!r} has a line break", sent=False)
        return b"%b: %b\r\n" % (name, value)


async def read_all(response: ProviderResponse, limit_bytes: int) -> bytes:
    """Return the whole body and let go of the connection. Raises UpstreamError, also when it is too long."""
    pieces: list[bytes] = []
    size = 0
    try:
        async for chunk in response.chunks:
            size += len(chunk)
            if size > limit_bytes:
                raise UpstreamError(f"the provider sent more than {limit_bytes} bytes", sent=True)
            pieces.append(chunk)
    finally:
        await response.aclose()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _parse_base_url(name: str, base_url: str) -> _BaseUrl:
    """Take an address apart. The address itself is not quoted in errors while it may hold a password."""
    where = f"base_url of provider {name!r}"
    try:
        url = urlsplit(base_url)
        port = url.port
    except ValueError as error:
        raise SettingsError(f"{where} is not an address. Write it like https://api.example.com/v1.") from error
    if url.username is not None or url.password is not None:
        raise SettingsError(f"{where} holds a user name or password. Give credentials as headers instead.")
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise SettingsError(f"{where} is {base_url!r}. Write it like https://api.example.com/v1.")
    prefix = url.path.rstrip("/")
    if url.query or url.fragment or (prefix and _PATH.fullmatch(prefix) is None):
        raise SettingsError(f"{where} is {base_url!r}. Give scheme, host and path only, percent-encoded.")
    try:
        host = url.hostname.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise SettingsError(f"{where} has the host {url.hostname!r}, which is not a host name.") from error
    return _BaseUrl(scheme=url.scheme, host=host, port=port or _default_port(url.scheme), prefix=prefix)


def _with_ours(name: str, headers: Mapping[str, str | Secret] | None) -> dict[str, str]:
    return {"user-agent": "nemo-agents", "content-type": "application/json", **_default_headers(name, headers)}


def _default_headers(name: str, headers: Mapping[str, str | Secret] | None) -> dict[str, str]:
    checked = {}
    for field, value in (headers or {}).items():
        where = f"header {field!r} of provider {name!r}"
        if _NAME.fullmatch(field) is None:
            raise SettingsError(f"{where} is not a header name. Use letters, digits and hyphens.")
        if field.lower() in _OURS:
            raise SettingsError(f"{where} is set by the gateway itself. Leave it out.")
        text = value.reveal() if isinstance(value, Secret) else value
        if _FORBIDDEN_IN_VALUE.search(text) is not None or not _is_latin_1(text):
            raise SettingsError(f"the value of {where} has a line break or is not Latin-1. Look for a pasted newline.")
        checked[field.lower()] = text.strip(" \t")
    return checked


def _is_latin_1(text: str) -> bool:
    return all(ord(character) < 256 for character in text)


def _head_end(authority: str, fields: Mapping[str, str], *, stream: bool) -> bytes:
    """Everything of a request's head between the path and the headers of the single request."""
    accept = {"accept": "text/event-stream" if stream else "application/json"}
    lines = [f"host: {authority}", "accept-encoding: identity"]
    lines += [f"{field}: {value}" for field, value in {**accept, **fields}.items()]
    return (" HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines)).encode("latin-1")


def _system_trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
