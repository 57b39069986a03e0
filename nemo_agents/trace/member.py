"""A role of a fleet as its agents use it: with its key and the address of its gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nemo_agents.environment import GATEWAY_URL
from nemo_agents.roles import AgentRole
from nemo_agents.secret import Secret

if TYPE_CHECKING:
    from nemo_agents.trace.clients import AsyncGatewayOpenAI, GatewayOpenAI

__all__ = ["Member"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What `fleet["researcher"]` gives. The key is looked up when it is needed, so a rotated one is found."""

    role: AgentRole
    gateway_url: str
    find_key: Callable[[], Secret] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The role's name."""
        return self.role.name

    @property
    def key(self) -> Secret:
        """The role's virtual key. Raises ProvisionError when none is known."""
        return self.find_key()

    @property
    def base_url(self) -> str:
        """The address for anything that speaks OpenAI's protocol; ends in `/v1`."""
        return f"{self.gateway_url}/v1"

    def openai(self, *, max_retries: int = 2, timeout_s: float | None = None) -> GatewayOpenAI:
        """Return an `openai.OpenAI` with this role's key, for agents that live longer than one run.

        Its calls belong to the run and step that are current when they are made. Raises ProvisionError when no
        key is known.
        """
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        return clients.openai_client(self.gateway_url, self.key, max_retries=max_retries, timeout_s=timeout_s)

    def async_openai(self, *, max_retries: int = 2, timeout_s: float | None = None) -> AsyncGatewayOpenAI:
        """Return an `openai.AsyncOpenAI` with this role's key; it may be used from several event loops."""
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        return clients.async_openai_client(self.gateway_url, self.key, max_retries=max_retries, timeout_s=timeout_s)

    def env(self) -> dict[str, str]:
        """Return the environment of a child process that shall speak as this role; it holds the key in clear."""
        return {
            "OPENAI_API_KEY": self.key.reveal(),
            "OPENAI_BASE_URL": self.base_url,
            GATEWAY_URL: self.gateway_url,
        }
