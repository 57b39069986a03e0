"""A role of a fleet as its agents use it: with its key and the address of its gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemo_agents.environment import GATEWAY_URL
from nemo_agents.errors import DeclarationError
from nemo_agents.roles import AgentRole
from nemo_agents.secret import Secret
from nemo_agents.trace.context import Place, here
from nemo_agents.trace.waiting import SYSTEM_SLEEPER, Sleeper

if TYPE_CHECKING:
    from anthropic import Anthropic, AsyncAnthropic

    from nemo_agents.trace.clients import AsyncGatewayOpenAI, GatewayOpenAI
    from nemo_agents.trace.connections import Connections

__all__ = ["Member"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What `fleet["researcher"]` gives. The key is looked up when it is needed, so a rotated one is found.

    The calls of every client made here belong to the run, step or span that is current when they are made; where none
    is, as in a thread that a framework started, to the one that `run=` names, by default the one that is current when
    the client is made. A call for a run that is over raises RunEnded and sends nothing. `sleeper` is how the clients
    wait between tries.
    """

    role: AgentRole
    gateway_url: str
    find_key: Callable[[], Secret] = field(repr=False, compare=False)
    sleeper: Sleeper = field(default=SYSTEM_SLEEPER, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The role's name."""
        return self.role.name

    @property
    def key(self) -> Secret:
        """The role's virtual key. Raises ProvisionError when none is known."""
        return self.find_key()

    @property
    def key_stand_in(self) -> str:
        """What to give a framework that wants an `api_key` beside one of the clients made here.

        The client puts the key in its place as a request goes out, so that no dump or log of the framework has it.
        """
        from nemo_agents.trace import connections  # noqa: PLC0415 - declaring a fleet loads no part of an HTTP client

        return connections.stand_in(self.name)

    @property
    def base_url(self) -> str:
        """The address for anything that speaks OpenAI's protocol; ends in `/v1`."""
        return f"{self.gateway_url}/v1"

    def openai(
        self, *, max_retries: int = 2, timeout_s: float | None = None, run: Place | None = None
    ) -> GatewayOpenAI:
        """Return an `openai.OpenAI` with this role's key, for agents that live longer than one run.

        A refusal that waiting cures, and a lost connection, is tried again at most `max_retries` times. Raises
        ProvisionError when no key is known, DeclarationError when `run` is of another gateway.
        """
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        line, key = self._openai_line(run)
        return clients.openai_client(
            clients.Line(connections=line, sleeper=self.sleeper), key, max_retries=max_retries, timeout_s=timeout_s
        )

    def async_openai(
        self, *, max_retries: int = 2, timeout_s: float | None = None, run: Place | None = None
    ) -> AsyncGatewayOpenAI:
        """Return an `openai.AsyncOpenAI` with this role's key, usable from several event loops; see `openai`."""
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        line, key = self._openai_line(run)
        return clients.async_openai_client(
            clients.Line(connections=line, sleeper=self.sleeper), key, max_retries=max_retries, timeout_s=timeout_s
        )

    def http_client(self, *, run: Place | None = None) -> Any:
        """Return an `openai.DefaultHttpxClient` for a framework that makes its own openai client of it.

        Give the framework `base_url`, and `key_stand_in` as `api_key`. It raises openai's errors and retries as the
        framework says; the run notes what stopped it all the same. A copy of it, deep or not, is the client itself.
        """
        return self._openai_line(run)[0].sync()

    def async_http_client(self, *, run: Place | None = None) -> Any:
        """Return an `openai.DefaultAsyncHttpxClient`, usable from several event loops; see `http_client`."""
        return self._openai_line(run)[0].asynchronous()

    def anthropic(self, *, max_retries: int = 2, timeout_s: float | None = None, run: Place | None = None) -> Anthropic:
        """Return an `anthropic.Anthropic` with this role's key; its errors and retries are that package's own.

        Raises ModuleNotFoundError where the package is not installed, ProvisionError when no key is known.
        """
        from nemo_agents.trace import anthropic_clients as clients  # noqa: PLC0415 - an optional package

        line = clients.connections(self.gateway_url, made_at=self._made_at(run))
        key = line.hold(self.name, self.key)
        return clients.anthropic_client(line, key, max_retries=max_retries, timeout_s=timeout_s)

    def async_anthropic(
        self, *, max_retries: int = 2, timeout_s: float | None = None, run: Place | None = None
    ) -> AsyncAnthropic:
        """Return an `anthropic.AsyncAnthropic` with this role's key, usable from several event loops."""
        from nemo_agents.trace import anthropic_clients as clients  # noqa: PLC0415 - an optional package

        line = clients.connections(self.gateway_url, made_at=self._made_at(run))
        key = line.hold(self.name, self.key)
        return clients.async_anthropic_client(line, key, max_retries=max_retries, timeout_s=timeout_s)

    def env(self) -> dict[str, str]:
        """Return the environment of a child process that shall speak as this role; it holds the key in clear."""
        return {
            "OPENAI_API_KEY": self.key.reveal(),
            "OPENAI_BASE_URL": self.base_url,
            GATEWAY_URL: self.gateway_url,
        }

    def _openai_line(self, run: Place | None) -> tuple[Connections, str]:
        from nemo_agents.trace import clients  # noqa: PLC0415 - openai is an optional extra and slow to import

        line = clients.connections(self.gateway_url, made_at=self._made_at(run))
        return line, line.hold(self.name, self.key)

    def _made_at(self, run: Place | None) -> Place | None:
        """Return the place of calls that have no current one. Raises DeclarationError for one of another gateway."""
        if run is None:
            current = here()
            return current if current is not None and current.gateway_url == self.gateway_url else None
        if run.gateway_url != self.gateway_url:
            raise DeclarationError(
                f"the run lives on {run.gateway_url}, and the role {self.name} on {self.gateway_url}",
                field="run",
                value=run,
                remedy="Take the role from the fleet that the run is of.",
            )
        return run
