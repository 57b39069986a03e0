"""What calls said, each message kept once.

An agent sends its whole history again with every call; by hash it is stored once. BLAKE2b with 16 bytes
identifies a message (content of our own clients, where a collision takes 2^64 tries and gains nothing); zlib
at level 1 packs it.

Packing takes longer than writing, and nobody should wait for a lock meanwhile: it is done before a transaction begins.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from msgspec import structs

from nemo_agents.gateway.stores.base import CallEnd, CallStart, SpanBatch
from nemo_agents.gateway.stores.database import Database

if TYPE_CHECKING:
    from nemo_agents.gateway.stores.writer_books import Books

__all__ = ["DAY_US", "HASH_BYTES", "Content", "ContentWriter", "unpack", "wall_clock_us"]

HASH_BYTES: Final = 16
DAY_US: Final = 86_400 * 1_000_000

_REMEMBERED_MAX = 50_000


# A message that is there already is told that it is referred to on this day: see `stores.pruning`. The body goes along,
# for it may be deleted in the same moment.
_KEEP: Final = (
    "INSERT INTO messages(hash, body, day) VALUES (?, ?, ?)"
    " ON CONFLICT (hash) DO UPDATE SET day = excluded.day WHERE messages.day < excluded.day"
)


def wall_clock_us() -> int:
    """Return the time of this machine in microseconds since the epoch."""
    return time.time_ns() // 1000


def unpack(body: bytes) -> bytes:
    """Return a message as it was given."""
    return zlib.decompress(body)


class Content:
    """What an operation is to keep of what a call or spans said, and the same operation without it."""

    __slots__ = ("_batch", "_call", "_end", "_run", "messages", "size")

    def __init__(
        self,
        run: Callable[..., object],
        *,
        call: CallStart | None = None,
        end: CallEnd | None = None,
        batch: SpanBatch | None = None,
    ) -> None:
        messages: list[bytes] = []
        if call is not None:
            messages += call.prompt or ()
            if call.params is not None:
                messages.append(call.params)
        if end is not None and end.answer is not None:
            messages.append(end.answer)
        for span in batch.spans if batch is not None else ():
            messages += [said for said in (span.input, span.output) if said is not None]
        self._run, self._call, self._end, self._batch = run, call, end, batch
        self.messages = messages
        self.size = sum(map(len, messages))  # bytes

    def without(self) -> Callable[[Books], object]:
        """Return the operation without the content. `run` takes `call`, `end` and `batch` by these names."""
        parts: dict[str, object] = {}
        if self._call is not None:
            parts["call"] = structs.replace(self._call, prompt=None, params=None)
        if self._end is not None:
            parts["end"] = structs.replace(self._end, answer=None)
        if self._batch is not None:
            bare = tuple(structs.replace(span, input=None, output=None) for span in self._batch.spans)
            parts["batch"] = structs.replace(self._batch, spans=bare)
        return partial(self._run, **parts)


class ContentWriter:
    """The content statements on the one connection that writes."""

    def __init__(self, db: Database, clock: Callable[[], int] = wall_clock_us) -> None:
        self._db = db
        self._clock = clock
        self._day = clock() // DAY_US  # of the whole transaction: a row is written once in it
        self._stored: set[bytes] = set()  # on this day
        self._packed: dict[bytes, tuple[bytes, bytes | None]] = {}  # by message: its hash, and its body if it is new

    def pack(self, messages: Iterable[bytes]) -> None:
        """Hash and compress what the next transaction is to write."""
        day = self._clock() // DAY_US
        if day != self._day or len(self._stored) >= _REMEMBERED_MAX:
            self._day = day
            self._stored.clear()
        packed: dict[bytes, tuple[bytes, bytes | None]] = {}
        for message in messages:
            if message not in packed:
                key, body = self._packed.get(message) or (_hash(message), None)
                if body is None and key not in self._stored:
                    body = _compress(message)
                packed[message] = key, body
        self._packed = packed

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

    def keep(self, said: bytes | None) -> bytes | None:
        """Keep what a call answered, or what a span took or gave, and return the hash that belongs into its row."""
        return None if said is None else self._message(said)

    def _message(self, message: bytes) -> bytes:
        key, body = self._packed.get(message) or (_hash(message), None)
        if key not in self._stored:
            self._db.later(_KEEP, (key, body or _compress(message), self._day))
            self._stored.add(key)
        return key


def _hash(message: bytes) -> bytes:
    return blake2b(message, digest_size=HASH_BYTES).digest()


def _compress(message: bytes) -> bytes:
    return zlib.compress(message, 1)
