"""The admin API as values: a call is data, a conversation is a generator of calls.

`Call[T]` says what to send and how to read the answer. `Flow[T]` yields calls and receives their answers;
whoever drives it (`nemo_agents.client`) alone knows about blocking and the network. An error answer is
thrown into the flow at its `yield` as AdminError, so that a flow can treat "not found" as an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast
from urllib.parse import quote

import msgspec

from nemo_agents.secret import Secret

__all__ = ["Call", "Flow", "as_type", "ask", "encode_body", "ignored", "query_of", "segment"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request to the admin API and how its answer is read.

    `body` is JSON in which secrets stay `Secret` until `encode_body`, so that no `repr` can show one.
    `decode` turns the bytes of a successful answer into T and raises msgspec.DecodeError or ValueError when
    it cannot.
    """

    method: Literal["GET", "POST"]
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    decode: Callable[[bytes], T]


Flow: TypeAlias = Generator[Call[Any], Any, T]


def ask(call: Call[T]) -> Flow[T]:
    """Yield one call and return its answer, typed: `row = yield from ask` of `keys.info(public_id)`."""
    return cast("T", (yield call))


@cache
def as_type(kind: type[T]) -> Callable[[bytes], T]:
    """Return the decoder of JSON into this type, one per type, so that calls can be equal."""
    return msgspec.json.Decoder(kind).decode


def ignored(_answer: bytes) -> None:
    """Read an answer of which only the success matters."""


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Return the JSON of a call's body, with its secrets in clear: for the wire only."""
    return msgspec.json.encode(body, enc_hook=_reveal)


def query_of(**values: str | int | None) -> dict[str, str]:
    """Return the query parameters that have a value."""
    return {name: str(value) for name, value in values.items() if value is not None}


def segment(text: str) -> str:
    """Return a text as one segment of a path, whatever characters it has."""
    return quote(text, safe="")


def _reveal(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not JSON")
