"""Numbers, hidden characters, messages, time axis: the pure parts beneath the pages."""

import re

import pytest
import viewer_scenarios as v
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.admin import wire
from nemo_agents.viewer import text as t
from nemo_agents.viewer.calls import cost_in_all, other_model, reason_of, unknown_costs
from nemo_agents.viewer.content import content_of
from nemo_agents.viewer.runview import MOST_CONTENTS, arrange, contents_wanted
from nemo_agents.viewer.timeline import Axis, ticks


def plain(text: str) -> str:
    return text.replace(t.NARROW_SPACE, " ")


@pytest.mark.parametrize(
    ("us", "words"),
    [
        (None, t.NOTHING),
        (0, "0 µs"),
        (999, "999 µs"),
        (1_000, "1 ms"),
        (999_499, "999 ms"),
        (999_500, "1.0 s"),
        (59_949_999, "59.9 s"),
        (59_950_000, "1 min 00 s"),
        (3_599_000_000, "59 min 59 s"),
        (3_600_000_000, "1 h 00 min"),
        (200_000_000_000, "2 d"),
        (-5, "0 µs"),
    ],
)
def test_durations(us: int | None, words: str) -> None:
    assert plain(t.duration(us)) == words


@pytest.mark.parametrize(
    ("identifier", "shown"),
    [
        ("9c09e7d1988b41a0a9a4f61d395dbca3", "9c09e7d1"),
        ("9C09E7D1988B41A0A9A4F61D395DBCA3", "9C09E7D1988B41A0A9A4F61D…"),
        ("s-9c09e7d1988b41a0a9a4f61d395dbca3", "s-9c09e7d1"),
        ("by-hand-1", "by-hand-1"),
        ("x" * 24, "x" * 24),
        ("x" * 25, "x" * 24 + "…"),
        ("req_e674306577ff0000f5b772ec", "req_e674306577ff0000f5b772ec"),
        ("req_chosen-by-somebody-else", "req_chosen-by-somebody-e…"),
        ("", ""),
    ],
)
def test_run_ids(identifier: str, shown: str) -> None:
    assert t.short_id(identifier) == shown


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (None, t.NOTHING),
        (999, "999"),
        (1_000, "1.0k"),
        (9_949, "9.9k"),
        (9_950, "10k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
    ],
)
def test_counts(number: int | None, words: str) -> None:
    assert t.count(number) == words


@pytest.mark.parametrize(
    ("nanos", "words"),
    [
        (None, t.NOTHING),
        (0, "$0"),
        (2_110_000, "$0.00211"),
        (2_200_000, "$0.00220"),
        (1_234, "$0.00000123"),
        (1_999_996_000, "$2.00000"),
        (12_345_678_900_000, "$12,345.67890"),
        (-5_000_000, "-$0.00500"),
    ],
)
def test_money_in_a_column_has_as_many_decimals_in_each_row(nanos: int | None, words: str) -> None:
    assert t.cost_column(nanos) == words


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [(1, 1_000, "<1 %"), (999, 1_000, ">99 %"), (1, 1, "100 %"), (0, 5, "0 %"), (1, 0, t.NOTHING)],
)
def test_a_share_is_never_rounded_to_a_wrong_nothing_or_all(part: int, whole: int, words: str) -> None:
    assert plain(t.percent(part, whole)) == words


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("a\x00b", "a␀b"),
        ("\x7f", "␡"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("user\u202egnp.exe", "user⟨U+202E⟩gnp.exe"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\ufeff", "⟨U+FEFF⟩"),
        ("a\rb", "a␍b"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("👩\u200d🚀 \u0645\u06cc\u200c\u062e", "👩\u200d🚀 \u0645\u06cc\u200c\u062e"),
    ],
)
def test_hidden_characters_are_made_visible(hidden: str, shown: str) -> None:
    assert t.visible(hidden) == shown


@given(st.text())
def test_visible_text_can_be_encoded_and_hides_nothing(text: str) -> None:
    shown = t.visible(text)
    shown.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert t.visible(shown) == shown


def message(value: object) -> list[tuple[str, str, str]]:
    content = content_of(wire.CallContent(request_id="r", prompt=[value]))
    return [(content.prompt[0].role, block.kind, block.title or block.body) for block in content.prompt[0].blocks]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("just text", [("input", "text", "just text")]),
        ({"role": "user", "content": "hi"}, [("user", "text", "hi")]),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
            [("user", "text", "a"), ("user", "json", "image_url")],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            [("assistant", "tool_call", "f")],
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "name": "g", "input": {"a": 1}}]},
            [("assistant", "tool_call", "g")],
        ),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "x"}]},
            [("user", "tool_result", "t1")],
        ),
        (
            {"type": "function_call_output", "call_id": "c1", "output": "x"},
            [("function_call_output", "tool_result", "c1")],
        ),
        ({"role": "assistant", "content": "", "refusal": "no"}, [("assistant", "text", "refusal")]),
        (
            {"role": "assistant", "reasoning_content": "hm", "content": "a"},
            [("assistant", "text", "reasoning"), ("assistant", "text", "a")],
        ),
        (42, [("input", "json", "42")]),
        (None, [("input", "json", "null")]),
    ],
)
def test_messages_of_every_wire_are_read(value: object, told: list[tuple[str, str, str]]) -> None:
    assert message(value) == told


def nested_results(depth: int) -> object:
    result: object = "21 C"
    for _ in range(depth):
        result = [{"type": "tool_result", "content": result}]
    return result


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ("21 C", "21 C"),
        ([{"type": "text", "text": "21 C"}, {"type": "text", "text": "dry"}], "21 C\ndry"),
        ([{"type": "output_text", "text": "21 C"}], "21 C"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], None),
        ([{"type": "text", "text": 5}], None),
        ([{"type": [], "text": "a"}, "b", None], None),
        (nested_results(900), "(nested too deeply to be shown)"),
        ([], "[]"),
        ({"a": 1}, '{\n  "a": 1\n}'),
        (None, "null"),
    ],
)
def test_what_a_tool_gave_back_is_text_where_it_is_nothing_but_text(result: object, body: str | None) -> None:
    said = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": result}]}
    (block,) = content_of(wire.CallContent(request_id="r", prompt=[said])).prompt[0].blocks
    assert block.body == (t.pretty_json(result) if body is None else body)


@pytest.mark.parametrize(
    ("asked", "served", "other"),
    [
        ("gpt-4o", "gpt-4o", None),
        ("openai/gpt-4o", "gpt-4o", None),
        ("llama", "meta/llama", None),
        ("fast", "gpt-4o", "gpt-4o"),
        ("openai/gpt-4o", "4o", "4o"),
        ("gpt-4o", None, None),
    ],
)
def test_a_provider_in_front_of_a_name_does_not_make_it_another_model(
    asked: str, served: str | None, other: str | None
) -> None:
    assert other_model(v.call(1, model_asked=asked, model_served=served, attempt_rows=[])) == other


def test_a_cost_that_nobody_knows_is_not_nothing() -> None:
    known, unknown, still_open = (
        v.call(n, cost_nanos=c, state=s) for n, c, s in ((1, 5, "ok"), (2, None, "ok"), (3, None, "open"))
    )
    assert unknown_costs([known, unknown, still_open]) == 1
    assert cost_in_all([known, unknown]) == 5
    assert cost_in_all([unknown, still_open]) is None
    assert cost_in_all([still_open]) == cost_in_all([]) == 0


def test_an_attempt_says_why_it_was_made_and_what_was_waited_before_it() -> None:
    of = {"model_served": "m", "model_asked": "m", "provider": "p", "status": 200, "error": None, "started_us": 0}
    of |= {"latency_us": 1, "held_nanos": 0, "cost_nanos": 0}
    assert reason_of(v.attempt(2, of, reason="fallback")) == "fallback"
    assert plain(reason_of(v.attempt(3, of, reason="retry", wait_ms=1_250))) == "retry after 1.2 s"


def test_arguments_of_a_tool_call_are_indented_and_broken_ones_kept() -> None:
    calls = [{"function": {"name": "f", "arguments": given}} for given in ('{"a":1}', '{"a":')]
    content = content_of(wire.CallContent(request_id="r", prompt=[{"role": "assistant", "tool_calls": calls}]))
    assert [block.body for block in content.prompt[0].blocks] == ['{\n  "a": 1\n}', '{"a":']


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    st.lists(json_values, max_size=3),
    st.dictionaries(st.sampled_from(["tools", "temperature"]), json_values),
    json_values,
)
def test_no_json_breaks_the_arrangement(prompt: list[object], params: dict[str, object], answer: object) -> None:
    content = content_of(wire.CallContent(request_id="r", prompt=prompt, params=params, answer=answer), most_chars=5)
    assert len(content.prompt) == len(prompt)
    assert (content.answer == ()) == (answer is None)


def test_messages_of_the_call_before_are_counted_as_repeated_but_the_last_one_stays() -> None:
    first = wire.CallContent(request_id="a", prompt=["x", "y"])
    assert content_of(wire.CallContent(request_id="b", prompt=["x", "y", "z"]), previous=first).repeated == 2
    assert content_of(wire.CallContent(request_id="b", prompt=["x", "y"]), previous=first).repeated == 1
    assert content_of(wire.CallContent(request_id="b", prompt=["q", "y"]), previous=first).repeated == 0


def test_a_long_text_is_cut_and_says_how_much_is_missing() -> None:
    content = content_of(wire.CallContent(request_id="r", prompt=["a" * 100]), most_chars=30)
    block = content.prompt[0].blocks[0]
    assert (len(block.body), block.left_out) == (30, 70)


@given(st.integers(1, 10**13))
def test_an_axis_has_a_few_round_marks(length: int) -> None:
    marks = ticks(Axis(start_us=0, end_us=length))
    assert 1 <= len(marks) <= 7
    assert marks[0].label == "0"


def test_parents_come_before_their_children_and_rings_are_broken() -> None:
    detail = v.nested()
    view = arrange(detail, {}, now_us=v.NOW_US)
    assert [(step.label, step.depth) for step in view.steps] == [
        ("plan", 0),
        ("research", 1),
        ("write", 0),
        ("critique", 1),
        ("edit", 2),
    ]
    for step in detail.steps:
        step.parent = detail.steps[(step.seq) % len(detail.steps)].step
    assert {step.label for step in arrange(detail, {}, now_us=v.NOW_US).steps} == {step.step for step in detail.steps}


def test_calls_of_an_unreported_step_are_not_lost() -> None:
    detail = v.ok()
    detail.calls[2].step, detail.calls[3].step = "nobody told", None
    view = arrange(detail, {}, now_us=v.NOW_US)
    assert sum(len(step.calls) for step in view.steps) == 6
    assert {"nobody told", None} <= {step.label for step in view.steps}


def test_the_selected_call_and_problems_get_their_texts_first() -> None:
    detail = v.huge()
    chosen = detail.calls[400].request_id
    detail.calls[300].state = "failed"
    wanted = contents_wanted(detail, selected=chosen)
    assert len(wanted) == MOST_CONTENTS
    assert wanted[:3] == [chosen, detail.calls[399].request_id, detail.calls[300].request_id]


def test_failed_calls_are_open_unless_there_are_many() -> None:
    few = arrange(v.recovered(), {}, now_us=v.NOW_US)
    assert [call.is_open for step in few.steps for call in step.calls] == [False, False, True, True, False]
    many = arrange(v.rate_limited(), {}, now_us=v.NOW_US)
    assert sum(call.is_open for step in many.steps for call in step.calls) == 1


def test_bars_stay_on_the_axis_and_attempts_are_drawn_apart() -> None:
    for make in v.SCENARIOS.values():
        view = arrange(make(), {}, now_us=v.NOW_US)
        for bar in (bar for step in view.steps for call in step.calls for bar in call.bars):
            assert 0 <= float(bar.x[:-1]) <= 100
            assert float(bar.x[:-1]) + float(bar.width[:-1]) <= 100.01
    moved = arrange(v.fallback(), {}, now_us=v.NOW_US).steps[2].calls[0]
    assert [bar.kind for bar in moved.bars] == ["failed", "wait", "work"]


def test_the_budget_burns_down_to_what_is_left() -> None:
    burn = arrange(v.stopped_by_budget(), {}, now_us=v.NOW_US).burn
    assert burn is not None
    heights = [float(height) for height in re.findall(r"V([0-9.]+)", burn.line)]
    assert heights == sorted(heights)
    assert heights[-1] == pytest.approx(56 * 42.9 / 50, abs=0.01)
    assert burn.stop_x is not None
    assert arrange(v.ok(), {}, now_us=v.NOW_US).burn is None
