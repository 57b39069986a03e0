"""How one provider is called, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from nemo_agents.policy.wires.base import WireName
from nemo_agents.secret import Secret

__all__ = ["AUTHS", "COMMON_WIRES", "WIRE_NAMES", "Auth", "MaxTokensField", "OnClientGone", "ProviderConfig"]

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
OnClientGone = Literal["drain", "cancel"]
Auth = Literal["bearer", "api-key", "anthropic", "sigv4", "google"]
"""How a request shows who pays for it.

`bearer`: the key in `Authorization`. `api-key`: the key in the header of that name. `anthropic`: as `bearer`, but on
the wire `messages` in `x-api-key`. `sigv4`: signed with AWS credentials. `google`: a token of Google's own.
"""

AUTHS: Final[tuple[Auth, ...]] = get_args(Auth)
WIRE_NAMES: Final[tuple[WireName, ...]] = get_args(WireName)
COMMON_WIRES: Final[frozenset[WireName]] = frozenset({"chat", "embeddings"})
"""What every server that calls itself OpenAI-compatible speaks; the other wires are translated into `chat`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """How to call one provider.

    `base_url` has no slash at its end; empty for `litellm`, which knows its own. `key_env` names where the key is from,
    or would be; a `key_file` is read again when it changes. `wires` are spoken natively. `max_tokens_field` is the
    field by which this provider caps a chat completion. `headers` are sent with every request, and may be as secret as
    a key. `priced_as` is the provider whose prices this one charges. `lists_models` says whether `GET /models` is
    known to be there. `on_client_gone` says what becomes of a stream whose client left: read on to learn what it cost,
    or cut off. The time-outs, in seconds, go before the gateway's own; `first_token_timeout_s` runs from the send to
    the first piece of the body.
    """

    name: str
    base_url: str
    api_key: Secret | None = None
    key_env: str | None = None
    key_file: Path | None = None
    auth: Auth = "bearer"
    region: str | None = None
    wires: frozenset[WireName] = COMMON_WIRES
    max_tokens_field: MaxTokensField = "max_tokens"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    priced_as: str | None = None
    lists_models: bool = True
    on_client_gone: OnClientGone = "drain"
    first_token_timeout_s: float | None = None
    idle_timeout_s: float | None = None

    @property
    def has_credentials(self) -> bool:
        """Whether requests carry any credentials; servers on the own machine often need none."""
        return self.api_key is not None or self.auth in ("sigv4", "google") or bool(self.headers)
