"""The built-in provider that needs no network: a deterministic stand-in for a paid chat API, for demos and tests.

Every answer says what it is: text begins with `[sandbox <model>] ` and `system_fingerprint` is `sandbox`.
"""

from __future__ import annotations

from nemo_agents.gateway.sandbox.provider import SandboxProvider
from nemo_agents.gateway.sandbox.script import SandboxSettings, Script, ScriptRule

__all__ = ["SandboxProvider", "SandboxSettings", "Script", "ScriptRule"]
