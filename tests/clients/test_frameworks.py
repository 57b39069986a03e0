"""Frameworks that nobody here wrote, against the gateway: LangChain with its own suite, and OpenAI's agents SDK.

They run in a lane, an environment of their own (tests/lanes.py), with nothing but loopback to reach.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from clients_bench import ClientsBench
from lanes import Outcomes, make_lane, run_suite

SUITES = Path(__file__).parents[1] / "adapters" / "frameworks"
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


def outcomes_of(python: Path, suite: str, bench: ClientsBench, scratch: Path) -> Outcomes:
    """Run a suite with a key of the bench's, and return how its tests ended."""
    environ = {"NEMO_URL": bench.gateway.url, "NEMO_KEY": bench.key()}
    return run_suite(python, SUITES / "pytest.ini", SUITES / suite, scratch, environ)


def test_langchains_own_suite_passes(bench: ClientsBench, tmp_path: Path):
    """All of it passes by chat, by Responses and by translated Responses; what it skips is explained, line by line."""
    outcomes = outcomes_of(make_lane("openai3"), "suite_langchain.py", bench, tmp_path)
    assert set(outcomes.passed) == {"TestChatCompletions", "TestResponses", "TestTranslatedResponses"}
    for name, passed in outcomes.passed.items():
        assert passed >= WANTED, (name, WANTED - passed)
    unexplained = [reason for reason in outcomes.skipped if not any(re.search(known, reason) for known in SKIPS)]
    assert unexplained == []
    stale = [known for known in SKIPS if not any(re.search(known, reason) for reason in outcomes.skipped)]
    assert stale == []
    endpoints = Counter(row["endpoint"] for row in bench.rows())
    assert endpoints.keys() == {"/v1/chat/completions", "/v1/responses"}


def test_agents_of_openais_sdk(bench: ClientsBench, tmp_path: Path):
    """Tools, streams, forms and a hand-over, by Responses (its default), translated, and by chat completions."""
    outcomes = outcomes_of(make_lane("openai3"), "suite_agents.py", bench, tmp_path)
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
