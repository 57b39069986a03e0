"""One gateway process a session with a fleet, runs of every kind, and texts that mean harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cli_shell import EVIL, FLEET, FULL_KEY, TRANSCRIPT, Shell, gateway_process, make_shell

from nemo_agents.admin import observe
from nemo_agents.admin.wire import RunReport, StepReport
from nemo_agents.client import Client
from nemo_agents.secret import Secret

LONG_AGO_US = 1_000_000_000_000_000


@dataclass(frozen=True, kw_only=True)
class Town:
    """A gateway that runs, the shell to reach it, and what was done there."""

    shell: Shell
    url: str
    home: Path
    fleet_file: Path
    keys: dict[str, str]

    def ask(self, role: str, prompt: str, *, run: str | None = None, step: str | None = None, **body: object) -> int:
        """Make one call with a role's key and return its status."""
        headers = {"authorization": f"Bearer {self.keys[role]}"}
        headers |= {"x-nemo-run-id": run} if run else {}
        headers |= {"x-nemo-step": step} if step else {}
        sent = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 20,
            **body,
        }
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=sent, headers=headers, trust_env=False).status_code

    def report(self, run_id: str, told: RunReport) -> None:
        with Client(self.url, Secret(self.keys["writer"])) as client:
            client.run(observe.report(run_id, told))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell without a gateway; its home does not exist yet."""
    return make_shell(tmp_path, NEMO_HOME=str(tmp_path / "home"))


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    home = folder / "home"
    with gateway_process(make_shell(folder), home) as (_, url):
        shell = make_shell(folder, NEMO_HOME=str(home), NEMO_GATEWAY_URL=url)
        fleet_file = folder / "fleet.toml"
        fleet_file.write_text(FLEET)
        assert shell.run("provision", fleet_file, "--yes").code == 0
        keys = shell.run("keys", "export", fleet_file, "--format", "json", secret=True).json
        made = Town(shell=shell, url=url, home=home, fleet_file=fleet_file, keys=keys)
        assert made.ask("writer", "outline it", run="run-of-two-steps", step="plan", model="fast") == 200
        assert made.ask("critic", "judge it", run="run-of-two-steps", step="critique") == 200
        made.report(
            "run-of-two-steps",
            RunReport(name="two steps", state="ok", started_us=LONG_AGO_US, ended_us=LONG_AGO_US + 2_000_000),
        )
        assert made.ask("critic", "not yours", run="run-refused", model="o3-mini") == 403
        assert made.ask("writer", f"say {EVIL}", run="run-with-evil-texts", step="evil") == 200
        steps = [StepReport(step=f"step {EVIL}", role="writer", state="ok", started_us=LONG_AGO_US, error=EVIL)]
        times = {"started_us": LONG_AGO_US, "ended_us": LONG_AGO_US + 1}
        told = RunReport(name=f"run {EVIL}", state="failed", **times, error=EVIL, steps=steps)
        made.report("run-with-evil-texts", told)
        yield made


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No process printed a full key, but the one that was asked to."""
    yield
    leaks = [text for text in TRANSCRIPT if FULL_KEY.search(text)]
    assert leaks == []
