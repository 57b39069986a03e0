"""The filter line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.viewer.filters import CALL_FILTER, RUN_FILTER, Filter, Parsed, parse
from nemo_agents.viewer.rendering import term

NOW_US = 10_000_000_000_000


def runs(text: str) -> Parsed:
    return parse(text, language=RUN_FILTER, now_us=NOW_US)


def test_every_term_is_read() -> None:
    found = runs('state:stopped role:"my writer" model:gpt-4o status:429 fleet:x since:24h is:single')
    assert found.problems == ()
    assert found.filter == Filter(
        state="stopped",
        role="my writer",
        model="gpt-4o",
        status=429,
        fleet="x",
        kind="single",
        since_us=NOW_US - 86_400 * 1_000_000,
    )


@pytest.mark.parametrize("text", ["", "   ", "\t"])
def test_an_empty_line_restricts_nothing(text: str) -> None:
    assert runs(text) == Parsed(filter=Filter())


@pytest.mark.parametrize(
    ("span", "seconds"), [("30s", 30), ("5m", 300), ("2h", 7_200), ("7d", 604_800), ("1w", 604_800)]
)
def test_spans_of_time(span: str, seconds: int) -> None:
    assert runs(f"since:{span}").filter.since_us == NOW_US - seconds * 1_000_000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("writer", "“writer” is no term"),
        ("color:red", "“color:red” is no term"),
        ("role:", "“role:” is no term"),
        ('role:""', "role: needs a value"),
        ("state:broken", "state: is one of running, ok"),
        ("status:4290", "status: takes an HTTP status"),
        ("status:abc", "status: takes an HTTP status"),
        ("since:yesterday", "since: takes a time span"),
        ("since:0h", "since: takes a time span"),
        ("is:nothing", "is: is one of run, single"),
        ("role:a role:b", "role: is there twice"),
        ('role:"open', None),
        ("code:x", "“code:x” is no term"),
        ("x" * 501, "at most 500 characters"),
    ],
)
def test_a_bad_term_is_told_and_the_rest_kept(text: str, told: str | None) -> None:
    found = runs(f"fleet:kept {text}" if len(text) < 500 else text)
    if told is None:
        assert found.filter.role == '"open'  # a stray quote is part of the value
    else:
        assert told in found.problems[0]
        assert found.filter.fleet == ("kept" if len(text) < 500 else None)


def test_calls_have_their_own_states_and_terms() -> None:
    found = parse("state:refused code:budget_exhausted run:abc", language=CALL_FILTER, now_us=NOW_US)
    assert found == Parsed(filter=Filter(state="refused", code="budget_exhausted", run="abc"))
    assert parse("state:stopped", language=CALL_FILTER, now_us=NOW_US).problems


@given(st.text(max_size=600))
def test_no_text_makes_the_parser_raise(text: str) -> None:
    found = runs(text)
    if text.split() and not found.problems:
        assert found.filter != Filter()


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters='"'), min_size=1, max_size=60))
def test_a_term_that_we_write_is_read_back(value: str) -> None:
    assert runs(term("role", value)) == Parsed(filter=Filter(role=value))
