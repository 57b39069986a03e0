"""Tables: columns give way in the stated order, and a line is never wider than the terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nemo_agents.cli.output import one_line, safe_json
from nemo_agents.cli.status import _bar
from nemo_agents.cli.table import Column, fit, print_table

COLUMNS = (
    Column(title="id"),
    Column(title="name", shrink_to=6),
    Column(title="note", shrink_to=4, drop=1),
    Column(title="extra", drop=2),
    Column(title="none"),
)
ROWS = [("1", "a long long name", "some note", "x", "-"), ("22", "short", "-", "y", "")]


def printed(width, rows=ROWS):
    out = io.StringIO()
    print_table(Console(file=out, width=width, color_system=None), COLUMNS, rows)
    return out.getvalue().splitlines()


def test_with_room_everything_is_there():
    assert printed(80) == [
        "id  name              note       extra  none",
        "1   a long long name  some note  x      -",
        "22  short             -          y",
    ]


def test_what_says_nothing_goes_first_then_texts_are_cut_then_columns_go_and_are_named():
    assert printed(40)[1] == "1   a long long name  some note  x"
    assert printed(30)[1] == "1   a long …  some note  x"
    narrow = printed(14)
    assert narrow[:3] == ["id  name", "1   a long lo…", "22  short"]
    assert " ".join(narrow[3:]).startswith("(left out to fit: note, extra;")


def test_a_wide_character_counts_twice():
    lines = printed(14, [("1", "漢字漢字漢字漢字", "-", "-", "-")])
    assert lines[1] == "1   漢字漢字 …"  # a half of the next one would not do


@given(
    st.lists(st.tuples(*[st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=30)] * 5), max_size=4),
    st.integers(1, 120),
)
def test_columns_fit_whenever_the_least_of_them_does(rows, width):
    cells = [[(text, len(text)) for text in row] for row in rows]
    kept, widths = fit(COLUMNS, cells, width)
    least = sum(
        max(len(COLUMNS[n].title), *(len(row[n]) for row in rows), 0)
        if COLUMNS[n].shrink_to is None
        else max(COLUMNS[n].shrink_to, len(COLUMNS[n].title))
        for n in (0, 1, 4)
    )
    assert set(kept) == set(widths)
    if width >= least + 4:
        assert sum(widths.values()) + 2 * (len(kept) - 1) <= width
    for number in kept:
        assert widths[number] >= min(len(COLUMNS[number].title), 2)


def test_a_bar_is_full_only_when_it_is():
    assert [_bar(used, 1000).plain for used in (0, 1, 13, 500, 999, 1000, 2000)] == [
        "░░░░░░░░░░",
        "░░░░░░░░░░",
        "▏░░░░░░░░░",
        "█████░░░░░",
        "█████████▉",
        "██████████",
        "██████████",
    ]
    assert _bar(5, None).plain == " " * 10


@given(st.text())
def test_one_line_is_one_line(text):
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert one_line(shown) == shown


def test_json_keeps_its_value_and_loses_its_teeth():
    import json

    value = {"a": "\u202e\x9b31m\x7f", "b": "漢 é"}
    text = safe_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert text.count("\\u") == 3
    assert "漢 é" in text
