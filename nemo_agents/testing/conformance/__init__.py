"""The suite that every adapter of an agent framework passes; whoever writes one runs it. It needs pytest.

from nemo_agents.testing.conformance import Adapter, ConformanceSuite

class MineUnderTest(Adapter):
    name = framework = "my-framework"
    shapes = frozenset({"sync", "tools", "spans"})

    def model(self, member, *, run=None, **options): ...
    def ask(self, member, text, *, run=None): ...
    def use_tool(self, member, text, tool, *, run=None): ...

class TestMine(ConformanceSuite):
    adapter = MineUnderTest()
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("nemo_agents.testing.conformance.suite")  # what disagrees is then shown

from nemo_agents.testing.conformance.adapter import Adapter, Shape, Where  # noqa: E402 - rewritten first
from nemo_agents.testing.conformance.suite import ConformanceSuite  # noqa: E402 - likewise

__all__ = ["Adapter", "ConformanceSuite", "Shape", "Where"]
