"""Who may read: who brings a read token, that becomes a cookie."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from nemo_agents.secret import Secret

__all__ = ["COOKIE", "HEADERS", "Gate", "without_token"]

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
