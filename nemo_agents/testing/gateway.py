from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_agents.admin import observe
from nemo_agents.client import Client
from nemo_agents.fleet import Fleet
from nemo_agents.provision import operate
from nemo_agents.provision.apply import apply
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.provision.plan import Plan
from nemo_agents.roles import FleetDeclaration
from nemo_agents.secret import Secret

try:
    from nemo_agents.gateway.server import Running
    from nemo_agents.gateway.settings import Settings
    from nemo_agents.gateway.threaded import serve_in_thread
except ImportError as error:
    if (error.name or "nemo_agents").partition(".")[0] == "nemo_agents":
        raise  # a fault of our own, not a part that is not installed
    raise ImportError(
        f"nemo_agents.testing runs a gateway ({error.name} is missing). Run: pip install 'nemo-agents[gateway]'",
        name=error.name,
    ) from error

__all__ = ["LocalGateway", "running_gateway"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalGateway:
    """A gateway that runs for a test. `running` gives its parts, for those who look inside."""

    running: Running
    home: Path

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self.running.url

    @property
    def admin_key(self) -> Secret:
        """The admin key."""
        return self.running.secrets.admin_key

    def admin(self) -> Client:
        """Return a client of the admin API, to be closed."""
        return Client(self.url, self.admin_key)

    def plan(self, fleet: FleetDeclaration) -> Plan:
        """Return what provisioning this fleet would change."""
        with self.admin() as client:
            return client.run(operate.prepare(fleet, self.url, self._store()))

    def provision(self, fleet: FleetDeclaration) -> Fleet:
        """Provision a fleet and return it connected to this gateway."""
        plan = self.plan(fleet)
        with self.admin() as client:
            client.run(apply(plan, self._store()))
        return Fleet.of(fleet).connect(self.url, home=self.home, environ={})

    def ledger_problems(self) -> list[str]:
        """Recompute every balance from the ledger's entries; return what does not add up."""
        with self.admin() as client:
            return list(client.run(observe.verify())["problems"])

    def _store(self) -> FileKeyStore:
        return FileKeyStore(self.home / "keys.json")


@contextmanager
def running_gateway(
    home: Path, *, settings: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[LocalGateway]:
    """Run a gateway with its data in `home` while the block runs.

    `settings` are fields of the gateway's settings; `environ` is the environment it sees, by default an empty one, so
    that no key of a real provider is ever found. Raises SettingsError when it cannot start.
    """
    values: dict[str, Any] = {"port": 0, "sandbox": "on", "log_level": "error", **(settings or {})}
    with serve_in_thread(Settings(home=home, **values), environ or {}) as running:
        yield LocalGateway(running=running, home=home)
