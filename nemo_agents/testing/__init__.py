"""A real gateway for tests: in this process, on a free loopback port, with the sandbox provider behind it.

    from nemo_agents.testing import running_gateway

    def test_my_agents(tmp_path):
        with running_gateway(tmp_path) as gateway:
            fleet = gateway.provision(my_fleet)
            with fleet.run("test") as run, run.step("plan", role="orchestrator") as step:
                ...
            assert gateway.ledger_problems() == []

It needs the gateway's parts: `pip install 'nemo-agents[gateway]'`.

Script the sandbox with the body field `nemo_sandbox` (see docs/reference/sandbox.md), or put a provider behind the
gateway that you script from the test:

    with scripted_provider() as provider, running_gateway(tmp_path, settings=provider.settings()) as gateway:
        provider.say("Good evening").fail(429, retry_after_s=0.2)

`nemo_agents.testing.conformance` is the suite that every adapter passes; it needs pytest.
"""

from __future__ import annotations

from nemo_agents.testing.gateway import LocalGateway, running_gateway
from nemo_agents.testing.provider import Received, ScriptedProvider, scripted_provider

__all__ = ["LocalGateway", "Received", "ScriptedProvider", "running_gateway", "scripted_provider"]
