"""How the gateway reaches providers over HTTP."""

from __future__ import annotations

from nemo_agents.gateway.upstream.opening import open_provider
from nemo_agents.gateway.upstream.pool import PoolSettings
from nemo_agents.gateway.upstream.provider import HttpProvider, read_all

__all__ = ["HttpProvider", "PoolSettings", "open_provider", "read_all"]
