"""`python -m nemo_agents` is `nemo-agents`."""

from __future__ import annotations

from nemo_agents.cli import main

main()
