"""A gateway as a process of its own that tells what it holds, and whose clock can be moved.

    python tests/faults/faults_process.py HOME < settings.json, then a command a line

It writes one line of JSON when it listens, and one for each command: `measure`, `deployments`, `advance SECONDS`. It
ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nemo_agents.gateway import server
from nemo_agents.gateway.rim import SystemClock
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.upstream import HttpProvider


class MovableClock(SystemClock):
    """The system's clock, and what was added to it."""

    added_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.added_us


def measure(gateway: Gateway) -> dict[str, Any]:
    """What the process holds now: its memory without garbage, and whatever could have leaked."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library keeps nothing back, or has no word for it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pools = {name: one.pool for name, one in gateway.providers.items() if isinstance(one, HttpProvider)}
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {
        "rss_bytes": int(status.partition("VmRSS:")[2].split()[0]) * 1024,
        "tasks": len(asyncio.all_tasks()),
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "in_flight": len(gateway.in_flight),
        "busy": {name: pool.connections - pool.idle for name, pool in pools.items() if pool.connections > pool.idle},
        "idle": sum(pool.idle for pool in pools.values()),
        "waiting": sum(pool.waiting for pool in pools.values()),
    }


def deployments(gateway: Gateway) -> dict[str, Any]:
    """How each deployment that was asked stands."""
    return {one.deployment: {"state": one.state, "in_flight": one.in_flight} for one in gateway.router.snapshot()}


async def main() -> None:
    home, settings = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with server.serve(Settings(home=home, **settings), dict(os.environ)) as running:
        tell({"url": running.url, "admin_key": running.secrets.admin_key.reveal()})
        clock = running.gateway.clock
        assert isinstance(clock, MovableClock)
        while line := await commands.readline():
            match line.decode().split():
                case ["measure"]:
                    tell(measure(running.gateway))
                case ["deployments"]:
                    tell(deployments(running.gateway))
                case ["advance", seconds]:
                    clock.added_us += int(float(seconds) * 1e6)
                    tell({})


def tell(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with (
        patch.object(server, "SystemClock", MovableClock),
        asyncio.Runner(loop_factory=server.new_event_loop) as runner,
    ):
        runner.run(main())
