"""Who may read: a host name of our own (against DNS rebinding), and a read token that becomes a cookie."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from nemo_agents.secret import Secret

__all__ = ["COOKIE", "HEADERS", "AllowedHosts", "Gate", "host_is_ours", "without_token"]

COOKIE: Final = "nemo_viewer"
TOKEN: Final = "token"  # noqa: S105 - the name of the query parameter
COOKIE_SECONDS: Final = 30 * 86_400

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""On every answer; static files replace `cache-control`."""

AllowedHosts = Callable[[str], bool] | Sequence[str]

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


def host_is_ours(header: str | None, allowed: AllowedHosts) -> bool:
    """Whether a Host header names this machine or an allowed host, on any port.

    `allowed` gets or lists host names in lower case without port.
    """
    match = _HOST.fullmatch(header.lower()) if header is not None else None
    if match is None:
        return False
    name = match[1]
    return name in _LOOPBACK or (allowed(name) if callable(allowed) else name in allowed)


class Gate:
    """The read token, and the cookie made from it. The cookie cannot be turned back into the token."""

    __slots__ = ("_cookie", "_token")

    def __init__(self, token: Secret) -> None:
        if not token.reveal():
            raise ValueError("the viewer's read token is empty: anybody could read; make one of 32 random bytes")
        key = token.reveal().encode()
        self._token = hashlib.sha256(key).digest()
        self._cookie = hmac.new(key, b"nemo-agents viewer cookie, version 1", hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "Gate(…)"

    def takes_token(self, text: str) -> bool:
        """Whether this is the token; the time it takes tells nothing of it."""
        return hmac.compare_digest(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), self._token)

    def takes_cookie(self, text: str) -> bool:
        """Whether this is the cookie's value."""
        return hmac.compare_digest(text.encode("utf-8", "surrogatepass"), self._cookie.encode())

    @property
    def cookie(self) -> Secret:
        """The cookie's value."""
        return Secret(self._cookie)


def without_token(path: str, query: str) -> str:
    """Return path and query of the same page without the token, always a path on this host.

    `path` is decoded. Two leading slashes, or a slash and a backslash, would lead browsers to another host.
    """
    kept = [(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if key != TOKEN]
    clean = quote("/" + path.lstrip("/\\"), safe="/:@")
    return f"{clean}?{urlencode(kept)}" if kept else clean
