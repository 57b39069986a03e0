"""A gateway with a scripted provider behind it, and what the suite asks of both."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from nemo_agents.admin import keys, observe
from nemo_agents.admin.wire import CallRow, SpanRow
from nemo_agents.client import Client
from nemo_agents.errors import AdminError
from nemo_agents.fleet import Fleet
from nemo_agents.roles import AgentRole
from nemo_agents.testing.gateway import LocalGateway, running_gateway
from nemo_agents.testing.provider import ScriptedProvider, scripted_provider

__all__ = ["MODELS", "Bench", "closed_port", "running_bench"]

MODELS: Final = ("swift", "claude-swift", "gemini-swift", "scripted/plain")
"""One that no framework knows, and three for which some would go somewhere else, or speak something else."""
_PRICE: Final = {"input_per_mtok": "0.1", "output_per_mtok": "2"}  # output decides what a call costs
_TRIES: Final = 200


@dataclass(kw_only=True)
class Bench:
    """What a test of the suite works with.

    `fleet` has the roles `researcher` and `writer`; who spoils it makes another. `values` is the adapter's row of the
    report so far.
    """

    gateway: LocalGateway
    provider: ScriptedProvider
    admin: Client
    http: httpx.Client
    fleet: Fleet
    tried: list[str]
    values: dict[str, str] = field(default_factory=dict)

    def new_fleet(self, **options: Any) -> Fleet:
        """Provision a fleet whose role `researcher` is made with these options."""
        return self.gateway.provision(_fleet(**options))

    def calls(self, run_id: str) -> list[CallRow]:
        """The request log of a run, oldest first; empty when the gateway has never heard of it."""
        self._settle()
        try:
            return list(self.admin.run(observe.run(run_id)).calls)
        except AdminError as error:
            if error.status == 404:
                return []
            raise

    def calls_of(self, fleet: Fleet) -> list[CallRow]:
        """The last calls of a fleet, oldest first."""
        self._settle()
        return self.admin.run(observe.logs(fleet=fleet.name, limit=500)).calls[::-1]

    def prompt(self, call: CallRow) -> str:
        """Return what was sent to the model, as one text."""
        return json.dumps(self.admin.run(observe.content(call.request_id)).prompt, ensure_ascii=False)

    def spans(self, run_id: str) -> list[SpanRow]:
        """The spans of a run that has ended, in the order of their starts."""
        self._settle()
        return list(self.admin.run(observe.run(run_id)).spans)

    def stop(self, run_id: str) -> None:
        """Stop a run, as `nemo-agents runs stop` does."""
        self.admin.run(observe.stop(run_id))

    def revoke(self, fleet: Fleet, role: str) -> None:
        """Revoke the key of a role."""
        rows = self.admin.run(keys.every(team_id=fleet.name, key_alias=f"{fleet.name}/{role}"))
        self.admin.run(keys.delete([row.token for row in rows]))

    def _settle(self) -> None:
        """Wait until no call is in flight and everything is written."""
        for _ in range(_TRIES):
            self.http.get("/health/ready").raise_for_status()  # everything queued is committed
            if not self.gateway.running.gateway.in_flight:
                return
        raise AssertionError("a call is still in flight at the gateway, although the framework has returned")


def _fleet(**options: Any) -> Fleet:
    made = {"models": MODELS[:1], "loop": "off", **options}  # tests say the same thing over and over
    roles = [AgentRole("researcher", **made), AgentRole("writer", models=MODELS[:1], loop="off")]
    return Fleet(f"fleet-{uuid.uuid4().hex[:8]}", roles=roles)


@contextmanager
def running_bench(home: Path, tried: list[str]) -> Iterator[Bench]:
    """Run a gateway before a scripted provider; `tried` is where connections to other machines are remembered."""
    with ExitStack() as stack:
        provider = stack.enter_context(scripted_provider())
        settings = provider.settings(*MODELS)
        settings["prices"] = dict.fromkeys(settings["prices"], _PRICE)
        gateway = stack.enter_context(running_gateway(home, settings=settings))
        yield Bench(
            gateway=gateway,
            provider=provider,
            admin=stack.enter_context(gateway.admin()),
            http=stack.enter_context(httpx.Client(base_url=gateway.url, trust_env=False, timeout=10)),
            fleet=gateway.provision(_fleet()),
            tried=tried,
        )


@contextmanager
def closed_port() -> Iterator[str]:
    """Give an address at which nothing listens while the block runs: its port is taken, and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
