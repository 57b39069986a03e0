"""What the gateway has to know of an API shape (a wire): how it is read, capped, counted, and how it says no.

A request arrives in one wire. It goes to a provider as it came where the provider speaks that wire, and through a
`Translation` to Chat Completions where it does not: that is the one wire into which others are translated, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.usage import Usage

__all__ = ["PreparedCap", "StreamTranslation", "Tally", "Translation", "UntranslatableError", "Wire", "WireName"]

WireName = Literal["chat", "responses", "messages", "completions", "embeddings"]


class UntranslatableError(ValueError):
    """A request holds what the other wire has no words for; `param` is the path to it."""

    def __init__(self, message: str, *, param: str) -> None:
        self.param = param
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCap:
    """How many tokens one answer may have, and the field by which a provider's chat completions obey that."""

    tokens: int
    chat_field: str = "max_tokens"


class Tally(Protocol):
    """What a streamed answer has said so far; fed with every event that passes."""

    tokens_seen: int
    """At least so many tokens of output have passed."""
    visible: bool
    """Whether the client was shown any of the answer: from then on no other provider may be asked."""
    error: str | None
    """What the stream itself said went wrong."""
    finish_reason: str | None

    def see(self, chunk: object) -> bool:
        """Take in the decoded data of one event (None: not JSON); say whether the client gets to see it."""

    def done(self) -> None:
        """Take in `[DONE]`, which only some wires have."""

    @property
    def said_done(self) -> bool:
        """Whether the last word has come: nothing of the answer can follow, whatever becomes of the connection."""

    @property
    def finished(self) -> bool:
        """Whether every answer that was asked for has finished."""

    @property
    def ended(self) -> bool:
        """Whether the stream has said that it is over. One that stops without having said so was broken off."""

    @property
    def told(self) -> Usage | None:
        """What it has said to have used so far."""

    @property
    def usage(self) -> Usage | None:
        """The usage of the whole answer; None while what was told may be of a part of it alone."""

    @property
    def answer(self) -> object:
        """The answer so far, as the request log keeps it; None without any."""


class Wire(Protocol):
    """One API shape. Every method is a pure function; bodies are decoded JSON and are never changed in place."""

    name: WireName
    path: str
    """The gateway's path, `/v1/…`."""
    upstream_path: str
    """The path below a provider's base URL."""
    generates: bool
    """Whether the answer is written by a model: it has a cap, a stream, perhaps several choices."""

    def check(self, body: Mapping[str, Any]) -> Refusal | None:
        """Refuse a body that cannot be a request of this wire (`model` has been checked); unknown fields pass."""

    def prompt(self, body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        """Return what the log keeps as the prompt: the fields that it is made of, and its parts, one per message."""

    def tools(self, body: Mapping[str, Any]) -> list[str | None]:
        """Return the names of the functions that the request offers; None for a tool that is none of the client's."""

    def prepare(
        self, body: Mapping[str, Any], *, model: str, cap: PreparedCap, tier: str | None, stream: bool
    ) -> dict[str, Any]:
        """Return the body as a provider of this wire gets it.

        The model and the cap on one answer are written into it; a stream is asked for its usage. `tier` is the
        service tier to pin, None for whatever the body says.
        """

    def is_error(self, answer: Mapping[str, Any]) -> bool:
        """Say whether a decoded answer of status 200 is an error all the same."""

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """Read what an answer says it used; None where that is not known."""

    def answer_of(self, answer: Mapping[str, Any]) -> tuple[object, str | None]:
        """Return the answer as the log keeps it, and why it ended."""

    def tally(self, body: Mapping[str, Any], *, answers: int) -> Tally:
        """Return what watches the stream that answers a request of the client's, `body`."""

    def error_body(self, refusal: Refusal, request_id: str) -> dict[str, Any]:
        """Return a refusal in the envelope that clients of this wire read."""

    def stream_error(self, refusal: Refusal, request_id: str) -> bytes:
        """Return the event that ends a broken stream, in the form that clients of this wire raise."""


class StreamTranslation(Protocol):
    """The stream of one chat completion, told anew in another wire."""

    def feed(self, chunk: object) -> bytes:
        """Return the events that one decoded chunk (None: not JSON) amounts to; b"" for none."""

    def end(self) -> bytes:
        """Return the last events, once the chat's stream has said that it is over."""


class Translation(Protocol):
    """A wire told in Chat Completions and back. Pure; ids of the answer derive from the chat's own id."""

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chat request that means the same; `model` and `stream` stay. Raises UntranslatableError."""

    def answer(self, chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a chat completion as the answer to the client's request `body`."""

    def stream(self, body: Mapping[str, Any]) -> StreamTranslation:
        """Return what retells the stream that answers the client's request `body`."""
