"""From the configuration of a provider to the provider itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from nemo_agents.gateway.ports import Provider
from nemo_agents.gateway.providers import LITELLM, ProviderConfig
from nemo_agents.gateway.upstream.litellm_provider import LiteLlmProvider
from nemo_agents.gateway.upstream.provider import HttpProvider
from nemo_agents.gateway.upstream.signing import FileKey, Signer, aws_signature, google_token
from nemo_agents.policy.wires.base import WireName
from nemo_agents.secret import Secret

__all__ = ["open_provider"]

# "Versions", Claude API: the one that its documentation tells to send.
_ANTHROPIC_VERSION: Final = "2023-06-01"
_Headers = dict[str, str | Secret]


def open_provider(config: ProviderConfig, *, max_connections: int) -> Provider:
    """Return a provider that can be called. Raises SettingsError when a package or credentials are missing for it."""
    if config.name == LITELLM:
        return LiteLlmProvider()
    own: _Headers = dict(config.headers)
    key = config.api_key
    static = {} if key is None or config.key_file is not None else {w: _shown(config, w)(key) for w in config.wires}
    return HttpProvider(
        name=config.name,
        base_url=config.base_url,
        headers={**own, **(static.get("chat") or next(iter(static.values()), {}))},
        wire_headers={wire: {**own, **headers} for wire, headers in static.items()},
        defaults={"messages": {"anthropic-version": _ANTHROPIC_VERSION}},
        signer=_signer(config),
        max_connections=max_connections,
    )


def _signer(config: ProviderConfig) -> Signer | None:
    if config.auth == "sigv4":
        return aws_signature(config.name, config.region or "")
    if config.auth == "google":
        return google_token(config.name)
    if config.key_file is not None and config.api_key is not None:
        where = f"[providers.{config.name}] api_key_file"
        return FileKey(where, config.key_file, config.api_key, lambda wire, key: _shown(config, wire)(key))
    return None


def _shown(config: ProviderConfig, wire: WireName) -> Callable[[Secret], Mapping[str, Secret]]:
    """Return what makes the header that shows a key on a wire."""
    if config.auth == "api-key":
        return lambda key: {"api-key": key}
    if config.auth == "anthropic" and wire == "messages":
        return lambda key: {"x-api-key": key}
    return lambda key: {"authorization": Secret(f"Bearer {key.reveal()}", mask="Bearer …")}
