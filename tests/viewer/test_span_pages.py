"""Spans on the page of a run and on a terminal: the tree, paging, and text that stays text."""

from __future__ import annotations

import re

import viewer_scenarios as v
from rich.console import Console
from test_viewer_pages import signed_in

from nemo_agents.admin import wire
from nemo_agents.cli.tree import run_tree
from nemo_agents.viewer.runview import CallView, arrange, span_texts_wanted
from nemo_agents.viewer.text import NARROW_SPACE


def told(detail: wire.RunDetail, *, texts: bool = False, fold: bool = False) -> str:
    to = Console(width=160, force_terminal=False)
    with to.capture() as capture:
        to.print(run_tree(detail, {} if texts else None, fold=fold))
    return capture.get().replace(NARROW_SPACE, " ")


def many_spans(count: int = 10_000) -> wire.RunDetail:
    detail = v.detail("ok", [v.call(1, step="work")], name="many")
    agent = v.span(1, None, "agent", "Boss", (0, 9_999), step="work")
    tools = [v.span(n, 1, "tool", f"tool {n}", (n, n + 1), step="work") for n in range(2, count + 1)]
    tools[count // 2].state, tools[count // 2].error = "failed", "broken"
    detail.spans = [agent, *tools]
    return detail


def test_rows_follow_the_span_that_they_are_in() -> None:
    view = arrange(v.traced(), {}, now_us=v.NOW_US)
    research = next(step for step in view.steps if step.label == "research")
    shown = [(f"call {r.row.seq}" if isinstance(r, CallView) else r.row.name[:10], r.depth) for r in research.rows]
    assert shown == [
        ("Senior Res", 0),
        ("Find three", 1),
        ("call 2", 2),
        ("web_search", 2),
        ("vector ind", 3),
        ("fetch_url", 2),
        ("call 3", 2),
        ("style chec", 0),
        ("call 4", 0),
    ]
    assert (view.spans, view.problems) == (6, 1)
    assert [call.row.seq for call in research.calls] == [2, 3, 4]


def test_ten_thousand_spans_are_paged_with_what_they_lie_in_and_what_failed() -> None:
    detail = many_spans()
    view = arrange(detail, {}, now_us=v.NOW_US, start=2_001)
    (step,) = view.steps
    assert [row.row.name for row in step.rows if not isinstance(row, CallView)][:2] == ["Boss", "tool 2000"]
    assert len(step.rows) == 202  # the page, the agent around it, and the failure of another page
    assert step.elsewhere == 10_001 - 202
    assert view.page.links[-1].last == 10_001
    wanted = span_texts_wanted(detail, selected=None, selected_span=f"{7_000:016x}", start=None)
    assert wanted[0] == f"{7_000:016x}"
    assert len(wanted) == 60


async def test_the_page_shows_what_was_read_for_it() -> None:
    detail = many_spans(1_000)
    reader = v.MemoryReader([detail])
    reader.span_texts = {f"{900:016x}": ("<b>in</b>", '{"a": [1]}')}
    async with signed_in(reader) as client:
        page = (await client.get(f"/runs/{detail.run.run_id}", params={"span": f"{900:016x}"})).text
    assert f'id="span-{900:016x}" aria-current="true"' in page
    assert "&lt;b&gt;in&lt;/b&gt;" in page
    assert "<b>in" not in page
    assert re.search(r"&#34;a&#34;: \[\s+1\s+\]", page)
    assert [asked["of"] for asked in reader.asked if "spans" in asked] == [detail.run.run_id]


async def test_a_run_of_spans_alone_can_be_read() -> None:
    detail = v.detail("failed", [], run_id="run_0000000000000009", error="it broke", spans=[])
    detail.spans = [v.span(1, None, "wizard", "\u202e<i>x</i>", (0, 1), step=None, error="<script>")]
    async with signed_in(v.MemoryReader([detail])) as client:
        answer = await client.get(f"/runs/{detail.run.run_id}")
    assert answer.status_code == 200
    assert "no steps" in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "\u202e" not in answer.text
    assert "<i>" not in answer.text


def test_a_terminal_draws_the_same_tree() -> None:
    lines = [re.sub(r"^[│├└─ ]+", "", line).strip() for line in told(v.traced()).splitlines()]
    names = [line for line in lines if re.match(r"(. (agent|task|tool|retriever|guardrail) |200 )", line)]
    assert [" ".join(name.split()[:3]) for name in names] == [
        "200 gpt-4o-mini →",
        "● agent Senior",
        "▪ task Find",
        "200 gpt-4o-mini →",
        "⚙ tool web_search",
        "⌕ retriever vector",
        "⚙ tool fetch_url",
        "200 gpt-4o-mini →",
        "◆ guardrail style",
        "200 gpt-4o-mini →",
    ]
    indents = [len(line) - len(line.lstrip("│├└─ ")) for line in told(v.traced()).splitlines()]
    assert len(set(indents)) == 6  # the run, a step, and four within one another
    assert "TimeoutError: no answer" in told(v.traced())


def test_texts_of_spans_are_printed_when_asked_for() -> None:
    assert 'input: {"query": "CRDT survey", "limit": 3}' in told(v.traced(), texts=True)
    assert "CRDT survey" not in told(v.traced())


def test_a_terminal_takes_any_depth() -> None:
    detail = v.detail("ok", [], spans=[])
    detail.spans = [v.span(n, n - 1 or None, "chain", f"link {n}", (n, n + 1), step=None) for n in range(1, 2_000)]
    assert told(detail).count("chain link") == 1_999
