"""Money is integers: nothing is lost on the way in, out, or over the wire."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.money import Money, dollars_text, format_nanos, nanos_from_wire, nanos_to_wire, parse_dollars

nanos = st.integers(min_value=0, max_value=10**18)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("$20", 20 * 10**9),
        ("0.05", 5 * 10**7),
        (3, 3 * 10**9),
        (Decimal("0.000000001"), 1),
        ("$1,000.50", 1000_500_000_000),
    ],
)
def test_dollars_are_read_exactly(written, expected):
    assert parse_dollars(written) == expected


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (5 * 10**8, "0.5"),
        (20 * 10**9, "20"),
        (100 * 10**9 + 10, "100.00000001"),
        (-1, "-0.000000001"),
    ],
)
def test_a_header_has_every_digit_and_no_more(amount, text):
    assert dollars_text(amount) == text
    assert Decimal(text) * 10**9 == amount


def test_a_fraction_of_a_nano_is_rounded_up():
    assert parse_dollars("0.0000000001") == 1
    assert parse_dollars("0.0000000011") == 2


@pytest.mark.parametrize(
    "written", [True, 0.1, None, "", "$", "-1", "nan", "inf", "1e12", "1 dollar", [], Decimal("NaN")]
)
def test_what_is_no_amount_is_refused(written):
    with pytest.raises(ValueError, match="dollar"):
        parse_dollars(written)


@settings(deadline=None)
@given(nanos)
def test_an_amount_survives_as_decimal_text(amount):
    assert parse_dollars(f"{Decimal(amount) / 10**9:f}") == amount


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_an_amount_of_up_to_fifteen_digits_survives_the_wire(amount):
    assert nanos_from_wire(nanos_to_wire(amount)) == amount


@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf"), True, "1", None])
def test_an_impossible_amount_on_the_wire_is_refused(value):
    with pytest.raises(ValueError, match="dollars"):
        nanos_from_wire(value)


@settings(deadline=None)
@given(nanos)
def test_what_people_read_is_never_nothing_for_something(amount):
    shown = parse_dollars(format_nanos(amount))
    assert (shown == 0) == (amount == 0)
    assert abs(shown - amount) <= max(50_000, amount // 100)


def test_whole_dollars_are_shown_whole():
    assert format_nanos(20 * 10**9) == "$20"
    assert format_nanos(50_000_000) == "$0.05"
    assert format_nanos(123_000) == "$0.000123"
    assert format_nanos(-50_000_000) == "-$0.05"


@settings(deadline=None)
@given(nanos, nanos)
def test_money_orders_as_its_nanos(one, two):
    assert (Money(one) < Money(two)) == (one < two)
    assert (Money(one) == Money(two)) == (one == two)
    assert Money(one).dollars * 10**9 == one
