"""A run on a terminal: what its tree says of attempts, limits and costs that nobody knows."""

import re

import pytest
import viewer_scenarios as v
from rich.console import Console

from nemo_agents.admin import wire
from nemo_agents.cli.tree import call_text, run_tree
from nemo_agents.viewer.text import NARROW_SPACE


def told(detail: wire.RunDetail, contents: dict[str, wire.CallContent] | None = None, *, fold: bool = False) -> str:
    to = Console(width=200, force_terminal=False)
    with to.capture() as capture:
        to.print(run_tree(detail, contents or {}, fold=fold))
    return capture.get().replace(NARROW_SPACE, " ")


def test_attempts_say_why_they_were_made_and_what_was_waited_before_them() -> None:
    call = v.call(1, model_asked="fast", model_served="b", step="draft")
    facts = {name: getattr(call, name) for name in call.__struct_fields__}
    call.attempt_rows = [
        v.attempt(1, facts, model="a", status=503, error="overloaded", cost_nanos=0),
        v.attempt(2, facts, model="a", reason="retry", wait_ms=250, status=503, error="overloaded", cost_nanos=0),
        v.attempt(3, facts, model="b", reason="fallback"),
    ]
    lines = re.findall(r"attempt .*", told(v.detail("ok", [call])))
    assert [line.split("  ")[:3] for line in lines] == [
        ["attempt 1", "openai/a", "503"],
        ["attempt 2 retry after 250 ms", "openai/a", "503"],
        ["attempt 3 fallback", "openai/b", "200"],
    ]


@pytest.mark.parametrize("fold", [False, True])
def test_what_nobody_knows_the_cost_of_is_not_told_as_free(*, fold: bool) -> None:
    calls = [v.call(seq, step="draft", cost_nanos=None) for seq in range(1, 6)]
    said = told(v.detail("ok", calls), fold=fold)
    head, step = said.splitlines()[1], next(line for line in said.splitlines() if "draft" in line)
    assert head.endswith(" · 5 calls of unknown cost")
    assert "\N{EN DASH}" in step
    assert "$0" not in said.replace(head, "").replace(said.splitlines()[2], "")


def test_a_limit_of_the_providers_own_is_named_once() -> None:
    line = call_text(
        v.call(1, state="failed", status=429, code="rate_limit_exceeded", scope="provider", limit="provider")
    )
    assert line.plain.endswith("  rate_limit_exceeded (provider)")


def test_what_was_said_is_text_on_every_wire() -> None:
    call = v.call(1, step="draft")
    prompt = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "21 C"},
    ]
    answer = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Warm."}]}]
    content = wire.CallContent(request_id=call.request_id, prompt=prompt, answer=answer)
    said = told(v.detail("ok", [call]), {call.request_id: content})
    assert re.findall(r"\u2500\u2500 ([a-z_]+: .*)", said) == [
        "user: weather?",
        "function_call: calls look {}",
        "function_call_output: result of c1: 21 C",
        "assistant: Warm.",
    ]
