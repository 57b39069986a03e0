"""What calls said, each message kept once.

An agent sends its whole history again with every call; by hash it is stored once. BLAKE2b with 16 bytes
identifies a message (content of our own clients, where a collision takes 2^64 tries and gains nothing); zlib
at level 1 packs it.
"""

from __future__ import annotations

import zlib
from hashlib import blake2b
from typing import Final

from nemo_agents.gateway.stores.database import Database

__all__ = ["HASH_BYTES", "ContentWriter", "unpack"]

HASH_BYTES: Final = 16

_REMEMBERED_MAX = 50_000


def unpack(body: bytes) -> bytes:
    """Return a message as it was given."""
    return zlib.decompress(body)


class ContentWriter:
    """The content statements on the one connection that writes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stored: set[bytes] = set()

    def forget(self) -> None:
        """Drop what is remembered of rows that a rollback may have taken back."""
        self._stored.clear()

    def question(self, run: int, seq: int, prompt: tuple[bytes, ...] | None, params: bytes | None) -> None:
        """Keep what a call asked."""
        if prompt is None and params is None:
            return
        hashes = None if prompt is None else b"".join([self._message(message) for message in prompt])
        self._db.later(
            "INSERT INTO contents(run, seq, prompt, params) VALUES (?, ?, ?, ?)",
            (run, seq, hashes, None if params is None else self._message(params)),
        )

    def answer(self, answer: bytes | None) -> bytes | None:
        """Keep what a call answered, and return the hash that belongs into its row."""
        return None if answer is None else self._message(answer)

    def _message(self, message: bytes) -> bytes:
        key = blake2b(message, digest_size=HASH_BYTES).digest()
        if key not in self._stored:
            self._db.later(
                "INSERT INTO messages(hash, body) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (key, zlib.compress(message, 1)),
            )
            if len(self._stored) >= _REMEMBERED_MAX:
                self._stored.clear()
            self._stored.add(key)
        return key
