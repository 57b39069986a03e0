"""What the data plane needs of a provider: one protocol, implemented by the connection pool and by the sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msgspec import Struct

from nemo_agents.policy.wires.base import WireName

__all__ = ["Provider", "ProviderRequest", "ProviderResponse", "UpstreamError"]


class ProviderRequest(Struct, frozen=True, kw_only=True):
    """One request to a provider: a path below its base URL and a JSON body, already in the provider's model names.

    A provider picks credentials and headers by `wire`. `headers` are what passes from the client, names in lower case.
    Time-outs in seconds: to connect, to the first byte of the answer, and between bytes.
    """

    wire: WireName = "chat"
    path: str  # e.g. "/chat/completions"
    body: bytes
    stream: bool
    method: Literal["POST", "GET"] = "POST"
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True, kw_only=True)
class ProviderResponse:
    """The head of an answer and its body as it arrives. `headers` names are lower case.

    Iterating `chunks` raises UpstreamError when the body breaks off. `aclose` must be called exactly once and
    returns or drops the connection.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    chunks: AsyncIterator[bytes]

    async def aclose(self) -> None:
        """Let go of the connection."""
        closer = getattr(self.chunks, "aclose", None)
        if closer is not None:
            await closer()


class UpstreamError(Exception):
    """A provider could not be reached, or broke off.

    `sent` says whether any byte of the request may have left: only when it is False is it certain that the call cost
    nothing. `timed_out` tells a time-out from other failures.
    """

    def __init__(self, message: str, *, sent: bool, timed_out: bool = False) -> None:
        self.sent = sent
        self.timed_out = timed_out
        super().__init__(message)


class Provider(Protocol):
    """One provider."""

    name: str

    async def send(self, request: ProviderRequest) -> ProviderResponse:
        """Send a request and return when the head of the answer is in. Raises UpstreamError."""

    async def close(self) -> None:
        """Close idle connections."""
