"""The conformance suite: it passes a good adapter, and fails every bad one, each at the test that is meant for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from broken_adapters import BROKEN
from openai_under_test import OpenAIUnderTest

from nemo_agents.testing.conformance import Adapter, ConformanceSuite
from nemo_agents.testing.conformance.guard import LeftThisMachine, only_loopback
from nemo_agents.testing.conformance.report import REPORT_VARIABLE, write_row

HERE = Path(__file__).parent


class TestOpenAI(ConformanceSuite):
    """The reference adapter passes all of it."""

    adapter = OpenAIUnderTest()


def test_every_broken_adapter_is_caught(tmp_path: Path):
    """One process runs, for each of them, the one test that is to find its fault; each fails, and says why."""
    report = tmp_path / "report.xml"
    wanted = [f"{HERE / 'broken_adapters.py'}::Test{kind.__name__}::{kind.caught_by}" for kind in BROKEN]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *wanted]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    said: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        failure = case.find("failure")
        if failure is not None:
            said[case.attrib["classname"].rpartition(".Test")[2]] = failure.attrib["message"]
    missed = [kind.__name__ for kind in BROKEN if kind.says not in said.get(kind.__name__, "")]
    assert missed == [], {name: said.get(name, "passed") for name in missed}


def test_a_row_is_written_for_each_adapter(tmp_path: Path):
    """A later row of the same adapter takes the place of the earlier; others stay, in the order of their names."""

    class Other(OpenAIUnderTest):
        name = "another"

    environ = {REPORT_VARIABLE: str(tmp_path / "report.json")}
    adapters: list[Adapter] = [OpenAIUnderTest(), Other(), OpenAIUnderTest()]
    for number, adapter in enumerate(adapters):
        write_row(adapter, {"b": str(number), "a": "yes"}, environ)
    rows = json.loads((tmp_path / "report.json").read_text())
    assert [(row["name"], row["framework"]) for row in rows] == [("another", "openai"), ("openai", "openai")]
    assert rows[1]["values"] == {"a": "yes", "b": "2"}
    assert rows[1]["version"] == rows[1]["openai"] != "?"
    write_row(adapters[0], {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_guard_lets_loopback_through_and_nothing_else():
    """A name is refused before it is looked up, an address before it is reached; behind the block all is as before."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with only_loopback() as tried:
            socket.create_connection(("127.0.0.1", port)).close()
            socket.getaddrinfo("localhost", port)
            with pytest.raises(LeftThisMachine, match=r"telemetry\.example"):
                socket.getaddrinfo("telemetry.example", 443)
            with pytest.raises(LeftThisMachine, match=r"192\.0\.2\.1"):
                socket.socket().connect(("192.0.2.1", 80))
        assert tried == ["socket.getaddrinfo telemetry.example", "socket.connect 192.0.2.1"]


def test_an_adapter_that_lacks_a_method_is_told_which():
    """A shape without its method names both."""

    class Half(OpenAIUnderTest):
        ask = Adapter.ask

    with pytest.raises(NotImplementedError, match=r"Half has the shape 'sync' and no ask\(\)"):
        Half().ask(None, "Hello")  # type: ignore[arg-type]
