"""What a provider says went wrong, without the credentials that were shown to it.

Some repeat the key that they refuse, and gateways behind them repeat whole requests. What they say reaches clients, the
request log and other tools, none of which may see a key.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final
from urllib.parse import quote

__all__ = ["Concealed", "conceal", "in_environment", "spellings"]

_SHORTEST: Final = 8
"""A shorter value is no secret that anything protects, and a word of any text."""
_IN_ITS_PLACE: Final = "[concealed]"
_SCHEME: Final = re.compile(r"(?:bearer|basic) +", re.IGNORECASE)
_NAMES_A_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def spellings(values: Iterable[str]) -> tuple[str, ...]:
    """Return how credentials may be repeated, the longest first: without their scheme, in JSON, and in an address."""
    found = set()
    for value in values:
        bare = _SCHEME.sub("", value, count=1).strip()
        if len(bare) >= _SHORTEST:
            found |= {bare, bare.replace("/", "\\/"), quote(bare, safe="")}
    return tuple(sorted(found, key=lambda one: (-len(one), one)))


def in_environment(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the spellings of what the environment holds under a name that is one of a secret."""
    return spellings(value for name, value in environ.items() if _NAMES_A_SECRET.search(name))


def conceal(text: str, credentials: Iterable[str]) -> str:
    """Return a text without credentials, given in their `spellings`."""
    for credential in credentials:
        text = text.replace(credential, _IN_ITS_PLACE)
    return text


class Concealed:
    """The chunks of a body without credentials, of which there is one at least, also where two chunks share one."""

    def __init__(self, chunks: AsyncIterator[bytes], credentials: tuple[str, ...]) -> None:
        self._chunks = chunks
        self._credentials = credentials
        self._tail = max(map(len, credentials)) - 1  # so much of what came last may be the beginning of one
        self._kept = ""
        self._over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return itself."""
        return self

    async def __anext__(self) -> bytes:
        """Return what has come, but for the end of it while more may follow."""
        while not self._over:
            try:
                piece = await anext(self._chunks)
            except StopAsyncIteration:
                self._over, piece = True, b""
            # A byte is a character of Latin-1, and comes back as it was; a header's value is Latin-1, too.
            text = conceal(self._kept + piece.decode("latin-1"), self._credentials)
            end = len(text) if self._over else max(0, len(text) - self._tail)
            said, self._kept = text[:end], text[end:]
            if said:
                return said.encode("latin-1")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Let go of the body."""
        closer = getattr(self._chunks, "aclose", None)
        if closer is not None:
            await closer()
