"""Frameworks that nobody here wrote, against the gateway: LangChain with its own suite, and OpenAI's agents SDK.

They run in an environment of their own, made once from a lock with hashes, with nothing but loopback to reach.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from clients_bench import ClientsBench

ROOT = Path(__file__).parents[2]
SUITES = Path(__file__).parent / "frameworks"
LOCK = ROOT / ".ci" / "requirements-frameworks.txt"
pytestmark = pytest.mark.timeout(400)  # the first of them installs

# Regular expressions of the reasons for which LangChain's suite may skip a test, and why that is right here.
SKIPS = {
    r"does not support (PDF|image|audio) (inputs|message)": "these fetch a file from a public site; images are sent "
    "by the tests of OpenAI's and Anthropic's own clients",
    r"does not support (image|PDF) tool message": "likewise",
    r"VCR not set up": "it measures the replay of recorded traffic, and none of it passes the gateway",
}
WANTED = {
    "test_invoke",
    "test_ainvoke",
    "test_stream[model0]",
    "test_astream[model1]",
    "test_stream_events_v3",
    "test_stream_with_model_override",
    "test_usage_metadata",
    "test_usage_metadata_streaming",
    "test_stop_sequence",
    "test_tool_calling[model0]",
    "test_tool_calling_async",
    "test_tool_choice",
    "test_tool_calling_with_no_arguments",
    "test_tool_message_error_status",
    "test_structured_few_shot_examples",
    "test_structured_output[pydantic]",
    "test_structured_output_async[json_schema]",
    "test_json_mode",
    "test_anthropic_inputs",
    "test_agent_loop[model0]",
    "test_unicode_tool_call_integration",
}
"""Tests whose passing shows that the suite was run, and not merely found."""


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of an environment with the frameworks, made when its lock is new; one worker makes it."""
    folder = Path(sys.prefix) / f"frameworks-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    with Path(f"{folder}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        done = subprocess.run(
            [ROOT / ".ci" / "extras-env", sys.executable, folder, LOCK], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "python"


@dataclass(kw_only=True)
class Outcomes:
    """How the tests of a suite ended, by the name of their class."""

    passed: dict[str, set[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)  # by reason, also of expected failures
    failed: list[str] = field(default_factory=list)


def run_suite(python: Path, suite: str, bench: ClientsBench, report: Path) -> Outcomes:
    """Run a suite with a key of the bench's, and return how its tests ended."""
    environment = {"PATH": os.environ["PATH"], "NEMO_URL": bench.gateway.url, "NEMO_KEY": bench.key()}
    command = [python, "-m", "pytest", "-c", SUITES / "pytest.ini", f"--junitxml={report}", SUITES / suite]
    done = subprocess.run(command, env=environment, cwd=report.parent, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    outcomes = Outcomes()
    for case in ET.parse(report).iter("testcase"):
        name = case.attrib["name"]
        if (skip := case.find("skipped")) is not None:
            outcomes.skipped[skip.attrib["message"]] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            outcomes.failed.append(name)
        else:
            outcomes.passed.setdefault(case.attrib["classname"].rpartition(".")[2], set()).add(name)
    assert outcomes.failed == [], done.stdout[-8000:]
    assert done.returncode == 0, done.stdout[-8000:]
    return outcomes


def test_langchains_own_suite_passes(bench: ClientsBench, python: Path, tmp_path: Path):
    """All of it passes by chat, by Responses and by translated Responses; what it skips is explained, line by line."""
    outcomes = run_suite(python, "suite_langchain.py", bench, tmp_path / "langchain.xml")
    assert set(outcomes.passed) == {"TestChatCompletions", "TestResponses", "TestTranslatedResponses"}
    for name, passed in outcomes.passed.items():
        assert passed >= WANTED, (name, WANTED - passed)
    unexplained = [reason for reason in outcomes.skipped if not any(re.search(known, reason) for known in SKIPS)]
    assert unexplained == []
    stale = [known for known in SKIPS if not any(re.search(known, reason) for reason in outcomes.skipped)]
    assert stale == []
    endpoints = Counter(row["endpoint"] for row in bench.rows())
    assert endpoints.keys() == {"/v1/chat/completions", "/v1/responses"}


def test_agents_of_openais_sdk(bench: ClientsBench, python: Path, tmp_path: Path):
    """Tools, streams, forms and a hand-over, by Responses (its default), translated, and by chat completions."""
    outcomes = run_suite(python, "suite_agents.py", bench, tmp_path / "agents.xml")
    (passed,) = outcomes.passed.values()
    assert len(passed) == 12
    assert not outcomes.skipped
    rows = bench.rows()
    assert {(row["endpoint"], row["provider"]) for row in rows} == {
        ("/v1/responses", "native"),
        ("/v1/responses", "chatonly"),
        ("/v1/chat/completions", "native"),
    }
    assert any(row["stream"] for row in rows)
