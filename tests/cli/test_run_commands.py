"""`runs why`, `runs prompt`, `runs export` and `runs open`, as processes against a real gateway."""

from __future__ import annotations

import json
import re
import stat
from html.parser import HTMLParser

import pytest
from cli_shell import UNSAFE, plain


def test_why_says_it_in_one_sentence_and_its_code_says_how_it_ended(town):
    said = town.shell.run("runs", "why", "run-of-two")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("OK: 2 calls in 2 steps")
    failed = town.shell.run("runs", "why", "run-with-evil-texts")
    assert failed.code == 1
    assert failed.out.startswith("Failed")
    assert not UNSAFE.search(failed.out)
    assert town.ask("writer", "first", run="run-stopped-for-why") == 200
    assert town.shell.run("runs", "stop", "run-stopped-for-why").code == 0
    stopped = town.shell.run("runs", "why", "run-stopped-for-why", "--json")
    assert stopped.code == 4
    assert (stopped.json["state"], stopped.json["kind"]) == ("stopped", "stopped")
    assert "there is no run 'nosuch'" in town.shell.run("runs", "why", "nosuch").error()


@pytest.mark.parametrize("columns", [80, 200])
def test_why_and_prompt_fit_a_terminal(town, columns):
    for args in (["why", "run-with-evil-texts"], ["prompt", "run-with-evil-texts", "1", "--all", "--answer"]):
        shown = plain(town.shell.in_terminal("runs", *args, columns=columns).out)
        assert not UNSAFE.search(shown)
        assert max(map(len, shown.splitlines())) <= columns


def test_prompt_shows_what_is_new_and_folds_the_rest(town):
    first = town.shell.run("runs", "prompt", "run-of-two", "1", "--answer").out
    assert first.startswith("call 1  plan  200 fast → sandbox/")
    assert "user: outline it" in first
    assert "\nanswer\n" in first
    call = town.shell.run("runs", "prompt", "run-of-two", "2", "--json").json
    assert call["content"]["prompt"] == [{"role": "user", "content": "judge it"}]
    by_id = town.shell.run("runs", "prompt", "run-of-two", call["call"]["request_id"]).out
    assert by_id.startswith("call 2  critique")
    assert "user: judge it" in by_id
    assert "has no call '9'" in town.shell.run("runs", "prompt", "run-of-two", "9").error()


def test_a_json_export_has_everything_and_the_content_only_when_wanted(town, tmp_path):
    file = tmp_path / "run.json"
    done = town.shell.run("runs", "export", "run-of-two", "-o", file)
    assert (done.code, done.out) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = json.loads(file.read_text())
    assert whole["format"] == "nemo-agents-run/1"
    assert whole["run"]["run_id"] == "run-of-two-steps"
    assert [step["step"] for step in whole["steps"]] == ["plan", "critique"]
    assert whole["why"]["sentence"].startswith("OK: ")
    assert [content["prompt"][0]["content"] for content in whole["contents"]] == ["outline it", "judge it"]
    lines = [
        json.loads(line)
        for line in town.shell.run("runs", "export", "run-of-two", "--format", "ndjson").out.splitlines()
    ]
    assert [line["type"] for line in lines] == ["run", "why", "step", "step", "call", "content", "call", "content"]
    assert [line["call"] for line in lines if line["type"] == "call"] == whole["calls"]
    for form in ("json", "ndjson", "html", "otlp"):
        bare = town.shell.run("runs", "export", "run-of-two", "--format", form, "--no-content").out
        assert "run-of-two-steps" in bare
        assert "outline it" not in bare
    assert "cannot be written" in town.shell.run("runs", "export", "run-of-two", "-o", tmp_path / "no" / "x").error()


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_an_html_export_is_one_file_that_fetches_nothing(town):
    text = town.shell.run("runs", "export", "run-of-two", "--format", "html").out
    assert "outline it" in text
    tags = _Page(text).tags
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in tags)
    targets = {value for _, given in tags for name, value in given.items() if name in ("href", "src", "action")}
    assert targets
    assert all(target.startswith("#") for target in targets)
    ids = {given["id"] for _, given in tags if "id" in given}
    assert {target[1:] for target in targets} <= ids
    assert "url(http" not in text
    evil = town.shell.run("runs", "export", "run-with-evil-texts", "--format", "html").out
    assert not UNSAFE.search(evil)


def test_an_otlp_export_is_one_trace_with_each_call_under_its_step(town):
    sent = town.shell.run("runs", "export", "run-of-two", "--format", "otlp").json
    (resource,) = sent["resourceSpans"]
    spans = resource["scopeSpans"][0]["spans"]
    by_id = {span["spanId"]: span for span in spans}
    shape = [(span["name"].split("/")[0], by_id.get(span.get("parentSpanId"), {}).get("name")) for span in spans]
    assert shape[:4] == [
        ("invoke_workflow two steps", None),
        ("invoke_agent writer", "invoke_workflow two steps"),
        ("invoke_agent critic", "invoke_workflow two steps"),
        ("chat fast", "invoke_agent writer"),
    ]
    assert all(re.fullmatch("[0-9a-f]{16}", span["spanId"]) for span in spans)
    assert len({span["traceId"] for span in spans}) == 1
    calls = [span for span in spans if span["name"].startswith("chat")]
    for span in calls:
        told = {each["key"]: each["value"] for each in span["attributes"]}
        assert told["gen_ai.operation.name"] == {"stringValue": "chat"}
        (reason,) = told["gen_ai.response.finish_reasons"]["arrayValue"]["values"]
        assert reason["stringValue"] in ("stop", "length")
        assert int(told["gen_ai.usage.output_tokens"]["intValue"]) > 0
        assert told["llm.cost.total"]["doubleValue"] > 0
    attempts = [span for span in spans if span["name"].startswith("attempt")]
    assert len(attempts) == len(calls)
    assert not any("usage" in each["key"] for span in attempts for each in span["attributes"])
    assert sent == town.shell.run("runs", "export", "run-of-two", "--format", "otlp").json


def test_open_prints_the_address_of_the_run(town):
    assert town.shell.run("runs", "open", "run-of-two", "--print").out.startswith(f"{town.url}/runs/run-of-two-steps?")
