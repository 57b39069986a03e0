"""Which providers can be called: found by the keys in the environment, and declared in the configuration."""

from __future__ import annotations

from nemo_agents.gateway.providers.config import WIRE_NAMES, ProviderConfig
from nemo_agents.gateway.providers.discovery import discover
from nemo_agents.gateway.providers.known import KEY_ENV_OF, KNOWN, LITELLM, LOCAL, what_to_set

__all__ = [
    "KEY_ENV_OF",
    "KNOWN",
    "LITELLM",
    "LOCAL",
    "WIRE_NAMES",
    "ProviderConfig",
    "discover",
    "what_to_set",
]
