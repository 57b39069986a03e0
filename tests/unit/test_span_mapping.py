"""What a span tells is the same whichever convention it is written in."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_agents.policy.otel import names
from nemo_agents.policy.otel.mapping import facts_of, without_content
from nemo_agents.policy.otel.values import (
    ATTRIBUTE_CHARS_MAX,
    NAME_CHARS_MAX,
    TEXT_BYTES_MAX,
    OtelSpan,
    SpanFacts,
    cut_bytes,
)

NOW_US = 1_772_373_600_000_000
DAY_US = 24 * 3600 * 1_000_000


def told(attributes: dict[str, Any] | None = None, **given: Any) -> SpanFacts:
    values: dict[str, Any] = {
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "parent_id": None,
        "name": "the span",
        "start_ns": NOW_US * 1000,
        "end_ns": (NOW_US + 5) * 1000,
    }
    facts = facts_of(OtelSpan(attributes=attributes or {}, **(values | given)), now_us=NOW_US)
    assert facts is not None
    return facts


TOOL = {"kind": "tool", "name": "search", "input": '{"q":1}', "output": "found"}
CALL = {"kind": "llm", "model": "gpt-4o-mini", "input_tokens": 3, "output_tokens": 4}
AGENT = {"kind": "agent", "name": "Writer"}
CONVENTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tool of nemo": (
        {"nemo.span.kind": "tool", "input.value": '{"q":1}', "output.value": "found", "tool.name": "search"},
        TOOL,
    ),
    "tool of gen_ai": (
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "search",
            "gen_ai.tool.call.arguments": {"q": 1},
            "gen_ai.tool.call.result": "found",
        },
        TOOL,
    ),
    "tool of OpenInference": (
        {
            "openinference.span.kind": "TOOL",
            "tool.name": "search",
            "tool.parameters": '{"q":1}',
            "output.value": "found",
        },
        TOOL,
    ),
    "tool of OpenLLMetry": (
        {
            "traceloop.span.kind": "tool",
            "traceloop.entity.name": "search",
            "traceloop.entity.input": '{"q":1}',
            "traceloop.entity.output": "found",
        },
        TOOL,
    ),
    "call of gen_ai": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "fast",
            "gen_ai.response.model": "gpt-4o-mini",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 4,
        },
        CALL,
    ),
    "call of older gen_ai": (
        {
            "gen_ai.system": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.usage.prompt_tokens": 3,
            "gen_ai.usage.completion_tokens": 4,
        },
        CALL,
    ),
    "call of OpenInference": (
        {
            "openinference.span.kind": "LLM",
            "llm.model_name": "gpt-4o-mini",
            "llm.token_count.prompt": 3,
            "llm.token_count.completion": 4,
        },
        CALL,
    ),
    "agent of gen_ai": (
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Writer"},
        {"kind": "agent", "name": "Writer"},
    ),
    "agent of OpenInference": (
        {"openinference.span.kind": "AGENT", "agent.name": "Writer"},
        {"kind": "agent", "name": "Writer"},
    ),
    "agent that only has a name": ({"gen_ai.agent.name": "Writer"}, AGENT),
    "workflow": ({"gen_ai.operation.name": "invoke_workflow"}, {"kind": "chain", "name": "the span"}),
    "retrieval": ({"gen_ai.operation.name": "retrieval"}, {"kind": "retriever"}),
    "reranker": ({"openinference.span.kind": "RERANKER"}, {"kind": "retriever"}),
    "guardrail": ({"openinference.span.kind": "GUARDRAIL"}, {"kind": "guardrail"}),
    "link to a call": ({"nemo.request.id": "req_1"}, {"kind": "llm", "request_id": "req_1"}),
    "link of the SDK": ({"nemo.span.kind": "other", "nemo.request.id": "req_1"}, {"kind": "llm"}),
    "answer of the gateway": (
        {"gen_ai.operation.name": "chat", "gen_ai.response.id": "req_1"},
        {"kind": "llm", "request_id": "req_1"},
    ),
    "answer of a provider": (
        {"gen_ai.operation.name": "chat", "gen_ai.response.id": "chatcmpl-1"},
        {"request_id": None},
    ),
    "the SDK's word goes first": ({"nemo.span.kind": "task", "gen_ai.operation.name": "chat"}, {"kind": "task"}),
    "an unknown one": ({"http.request.method": "GET"}, {"kind": "other", "name": "the span"}),
    "an unknown kind": ({"openinference.span.kind": "WIZARD", "gen_ai.operation.name": 7}, {"kind": "other"}),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name: str) -> None:
    attributes, expected = CONVENTIONS[name]
    facts = told(attributes)
    assert {field: getattr(facts, field) for field in expected} == expected


def test_every_kind_of_the_table_is_one_that_is_shown() -> None:
    shown = {"agent", "task", "tool", "chain", "retriever", "guardrail", "llm", "other"}
    kinds = {kind for table in names.KINDS.values() for kind in table.values()} | {kind for _, kind in names.TELLTALES}
    assert kinds == shown
    assert set(names.KINDS[names.SPAN_KIND]) == shown


def test_lists_that_are_spread_over_names_are_put_together() -> None:
    attributes = {
        "openinference.span.kind": "LLM",
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "hi",
        "llm.output_messages.0.message.content": "ho",
    }
    facts = told(attributes)
    assert facts.input == '{"0.message.role":"user","0.message.content":"hi"}'
    assert facts.output == '{"0.message.content":"ho"}'
    assert "hi" not in str(facts.attributes)


def test_what_is_said_stands_in_input_and_output_alone() -> None:
    said = dict.fromkeys((*names.CONTENT, "llm.tools.0.tool.json_schema", "gen_ai.prompt.0.content"), "a secret")
    facts = told({**said, "crew.size": 2, "tags": ["a", "b"], "gen_ai.tool.name": "search"})
    assert facts.attributes == {"crew.size": 2, "tags": '["a","b"]', "gen_ai.tool.name": "search"}


def test_without_content_nothing_that_was_said_is_left() -> None:
    attributes = {
        "input.value": "in",
        "output.value": "out",
        "task description": "said",
        "crew.task": "said",
        "gen_ai.tool.description": "x" * 200,
        "gen_ai.tool.name": "search",
        "crew.size": 2,
    }
    bare = without_content(told(attributes))
    assert (bare.input, bare.output) == (None, None)
    assert bare.attributes == {"gen_ai.tool.name": "search", "crew.size": 2}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"failed": True, "message": "it broke", "exception": "E: x"}, ("failed", "it broke")),
        ({"failed": True, "exception": "E: x"}, ("failed", "E: x")),
        ({"failed": True, "attributes": {"error.type": "timeout"}}, ("failed", "timeout")),
        ({"failed": True}, ("failed", "failed")),
        ({"exception": "E: handled"}, ("ok", None)),
        ({"end_ns": 0}, ("running", None)),
    ],
)
def test_how_it_ended(given: dict[str, Any], expected: tuple[str, str | None]) -> None:
    facts = told(given.pop("attributes", {}), **given)
    assert (facts.state, facts.error) == expected


@pytest.mark.parametrize(
    ("start_us", "end_us", "expected"),
    [
        (NOW_US, NOW_US + 5, (NOW_US, NOW_US + 5)),
        (NOW_US, NOW_US - 5, (NOW_US, NOW_US)),  # the clock was set back in between
        (0, NOW_US - 5, (NOW_US - 5, NOW_US - 5)),
        (7, 9, (NOW_US, NOW_US)),  # seconds after 1970: another unit
        (NOW_US + 2 * DAY_US, NOW_US + 2 * DAY_US, (NOW_US, NOW_US)),
        (NOW_US, NOW_US + 2 * DAY_US, (NOW_US, NOW_US)),
        (NOW_US, 0, (NOW_US, None)),
    ],
)
def test_clocks_that_jump(start_us: int, end_us: int, expected: tuple[int, int | None]) -> None:
    facts = told(start_ns=start_us * 1000, end_ns=end_us * 1000)
    assert (facts.started_us, facts.ended_us) == expected


def test_run_step_and_role_are_taken_from_the_span_and_the_run_from_its_resource_too() -> None:
    facts = told({"nemo.run.id": "my-run", "nemo.step.name": "research#2", "nemo.role": "researcher"})
    assert (facts.run_id, facts.step, facts.role) == ("my-run", "research#2", "researcher")
    assert told(resource={"nemo.run.id": "my-run"}).run_id == "my-run"
    assert told({"nemo.step.name": "two\nlines", "nemo.role": ""}).step is None
    assert told({"nemo.run.id": ""}).run_id is None


@pytest.mark.parametrize("run_id", ["last", "req_0123", "a b", "x" * 129, "../x"])
def test_a_run_that_cannot_be_is_not_made(run_id: str) -> None:
    span = OtelSpan(
        trace_id="ab" * 16,
        span_id="cd" * 8,
        parent_id=None,
        name="x",
        start_ns=1,
        end_ns=2,
        attributes={names.RUN_ID: run_id},
    )
    assert facts_of(span, now_us=NOW_US) is None


def test_the_root_of_a_trace_is_one_that_the_sdk_did_not_write() -> None:
    assert told().is_root
    assert not told(parent_id="ef" * 8).is_root
    assert not told({"nemo.span.kind": "agent"}).is_root


def test_texts_are_cut_and_can_be_stored() -> None:
    facts = told(
        {
            "input.value": "ä" * TEXT_BYTES_MAX,
            "note": "x\x00" * ATTRIBUTE_CHARS_MAX,
            "big": 1 << 70,
            "inf": float("inf"),
        },
        name="a\x00b\n" + "n" * 500,
        failed=True,
        message="bad\x00" * 5000,
    )
    assert facts.input is not None
    assert TEXT_BYTES_MAX - 4 <= len(facts.input.encode()) <= TEXT_BYTES_MAX
    assert facts.input.endswith("ä…")
    assert len(facts.attributes["note"]) == ATTRIBUTE_CHARS_MAX
    assert facts.attributes["big"] == str(1 << 70)
    assert (len(facts.name), facts.name[:4]) == (NAME_CHARS_MAX, "a b ")
    assert "\x00" not in facts.name + (facts.error or "") + str(facts.attributes)
    assert told(name=" \n").name == "span"


def test_what_looks_like_a_key_is_not_kept() -> None:
    key = "sk-proj-" + "a" * 40
    long = "." * (TEXT_BYTES_MAX - 5) + key  # the cut is within the key
    facts = told({"input.value": long, "output.value": {"k": key}, "note": key}, failed=True, message=f"bad {key}")
    assert "sk-proj" not in f"{facts.input}{facts.output}{facts.attributes}{facts.error}"


def test_a_text_is_cut_only_where_it_has_to_be() -> None:
    assert cut_bytes("ä" * 10, 20) == "ä" * 10
    assert cut_bytes("ä" * 10, 19) == "ä" * 8 + "…"


def test_tokens_are_whole_numbers_that_can_be() -> None:
    for odd in (True, -1, 1 << 50, "3", 2.5, None):
        assert told({"gen_ai.usage.input_tokens": odd}).input_tokens is None
    assert told({"gen_ai.usage.input_tokens": "3", "llm.token_count.prompt": 4}).input_tokens == 4


def test_the_service_is_named_unless_it_has_no_name() -> None:
    assert told(resource={"service.name": "shop"}).attributes == {"service.name": "shop"}
    assert told(resource={"service.name": "unknown_service:python"}).attributes == {}
