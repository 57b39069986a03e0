"""The snippets of docs/how-to/use-with-other-frameworks.md, with what they need: gateway, fleet, provider."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from nemo_agents import AgentRole, Fleet
from nemo_agents.testing import LocalGateway, ScriptedProvider, running_gateway, scripted_provider
from nemo_agents.testing.conformance.guard import only_loopback

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "use-with-other-frameworks.md"
SECTION = re.compile(r"^## (.+?)\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUESTION, ANSWER = "What is a CRDT?", "Replicas that merge."


def snippets() -> dict[str, str]:
    """Return the first snippet of each section by the section's title."""
    return dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class Played:
    """What became of a snippet: its names, what it raised, and the gateway's records of its calls."""

    names: dict[str, Any]
    raised: BaseException | None
    rows: list[dict[str, Any]]
    key: str

    @property
    def run(self) -> Any:
        """The snippet's run."""
        return self.names["run"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A gateway with a provider behind it; `left` are the hosts that somebody tried to reach beyond this machine."""

    gateway: LocalGateway
    provider: ScriptedProvider
    left: list[str]

    def fleet(self, budget: str = "$5/day") -> Fleet:
        """Return a fleet of its own, provisioned."""
        roles = [AgentRole("researcher", models=["gpt-4o-mini"], budget=budget)]
        return self.gateway.provision(Fleet(f"desk-{uuid.uuid4().hex[:8]}", roles=roles))

    def play(self, title: str, *, budget: str = "$5/day") -> Played:
        """Run the snippet of a section as a module of its own; the provider answers what was queued."""
        fleet = self.fleet(budget)
        names: dict[str, Any] = {"fleet": fleet, "researcher": fleet["researcher"]}
        raised = None
        try:
            exec(compile(snippets()[title], title, "exec"), names)
        except Exception as exc:  # noqa: BLE001 - each framework raises something else, which the tests look at
            raised = exc
        return Played(names=names, raised=raised, rows=self.rows(fleet), key=fleet["researcher"].key.reveal())

    def rows(self, fleet: Fleet) -> list[dict[str, Any]]:
        """Return the gateway's records of a fleet's calls, oldest first."""
        headers = {"authorization": f"Bearer {self.gateway.admin_key.reveal()}"}
        with httpx.Client(base_url=self.gateway.url, headers=headers, trust_env=False) as http:
            http.get("/health/ready").raise_for_status()  # everything queued is committed
            told = http.get("/nemo/logs", params={"fleet": fleet.name, "limit": 100})
        rows: list[dict[str, Any]] = told.raise_for_status().json()["calls"]
        return rows[::-1]


@contextmanager
def staged(home: Path) -> Iterator[Stage]:
    """Run a gateway with its data in `home`, and watch where connections go."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "NEMO_GATEWAY_URL"):
        os.environ.pop(name, None)
    with (
        only_loopback() as left,
        scripted_provider() as provider,
        running_gateway(home, settings=provider.settings()) as gateway,
    ):
        yield Stage(gateway=gateway, provider=provider, left=left)


def told_by(caplog: Any) -> str:
    """Return every line that was logged, with tracebacks."""
    formatter = logging.Formatter()
    return "\n".join(formatter.format(record) for record in caplog.records)
