"""The gateway's own log on standard error: JSON lines alone, whoever has something to say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
from nemo_agents.gateway.server import serve
from nemo_agents.gateway.settings import Settings

async def main():
    for _ in range(2):  # a second gateway of the process does not write everything twice
        async with serve(Settings(home=Path(sys.argv[1]), port=0, sandbox="on", log_level=sys.argv[2]), {}) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
            writer.write(b"these are no\\r\\nbytes of HTTP\\r\\n\\r\\n")
            await reader.read()
            writer.close()
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "nobody awaited it", "exception": ValueError("two\\nlines")})
    logging.getLogger("some.library").log(35, "between %s", "levels")
    logging.getLogger("some.library").info("not worth a line")

asyncio.run(main())
"""


@pytest.mark.parametrize(("level", "said"), [("info", 4), ("error", 1)])
def test_what_libraries_warn_of_is_json_too(tmp_path, level, said):
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "home"), level]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    by_library = [(line["logger"], line["level"], line["event"]) for line in lines if "logger" in line]
    assert len(by_library) == said
    assert ("asyncio", "error", "nobody awaited it") in by_library
    if level == "info":
        assert by_library.count(("uvicorn.error", "warning", "Invalid HTTP request received.")) == 2
        assert ("some.library", "warning", "between levels") in by_library
    (fault,) = [line for line in lines if line.get("logger") == "asyncio"]
    assert "ValueError: two\nlines" in fault["exception"]


def test_a_program_with_a_log_of_its_own_keeps_it(tmp_path):
    argv = [sys.executable, "-c", "import logging; logging.basicConfig(format='mine: %(message)s')\n" + PROGRAM]
    ended = subprocess.run(
        [*argv, str(tmp_path / "home"), "info"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr.count("mine: Invalid HTTP request received.") == 2
    assert '"logger"' not in ended.stderr
