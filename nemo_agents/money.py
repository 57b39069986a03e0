"""Money as integers: one dollar is 1,000,000,000 nanos.

Floats never enter. Dollars arrive as text (`"$20"`, `"0.05"`), `Decimal` or `int`; LiteLLM's wire format carries
JSON numbers, which `nanos_from_wire` reads through their shortest decimal text.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import total_ordering

__all__ = [
    "NANOS_PER_DOLLAR",
    "Money",
    "dollars_text",
    "format_nanos",
    "nanos_from_wire",
    "nanos_to_wire",
    "parse_dollars",
]

NANOS_PER_DOLLAR = 1_000_000_000


def parse_dollars(value: str | Decimal | int) -> int:
    """Return the nanos of an amount in dollars; a fraction of a nano is rounded up.

    Raises ValueError for anything that is not a finite amount of at least zero.
    """
    if isinstance(value, bool) or not isinstance(value, (str, Decimal, int)):
        raise ValueError(f"not an amount in dollars: {value!r}")  # noqa: TRY004 - bad input, whatever its type
    text = value.strip().removeprefix("$").replace("_", "").replace(",", "") if isinstance(value, str) else value
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not an amount in dollars: {value!r}") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"an amount in dollars is finite and at least 0: {value!r}")
    if amount > Decimal(10) ** 9:
        raise ValueError(f"more than a billion dollars: {value!r}")
    return int((amount * NANOS_PER_DOLLAR).to_integral_value(rounding=ROUND_CEILING))


def nanos_from_wire(value: float) -> int:
    """Read a dollar amount from LiteLLM's wire format (a JSON number).

    Raises ValueError for a negative, non-finite or non-numeric value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"not an amount in dollars: {value!r}")  # noqa: TRY004 - bad input, whatever its type
    return parse_dollars(Decimal(repr(value)))


def nanos_to_wire(nanos: int) -> float:
    """Write nanos as LiteLLM's wire format does, a JSON number of dollars; exact to 15 digits."""
    return float(Decimal(nanos) / NANOS_PER_DOLLAR)


def dollars_text(nanos: int) -> str:
    """Write nanos as an exact decimal of dollars, for a header: `12`, `0.5`, `0.00012345`. `parse_dollars` reads it."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    whole, rest = divmod(nanos, NANOS_PER_DOLLAR)
    return f"{sign}{whole}.{rest:09d}".rstrip("0") if rest else f"{sign}{whole}"


def format_nanos(nanos: int) -> str:
    """Write nanos for people: `$20`, `$0.05`, `$0.000123`; never rounded to nothing."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    whole, rest = divmod(nanos, NANOS_PER_DOLLAR)
    if rest == 0:
        return f"{sign}${whole:,}"
    digits = f"{rest:09d}"
    if whole or rest >= NANOS_PER_DOLLAR // 100:  # cents and more: four decimals say enough
        whole, four = divmod(round(nanos, -5) // 100_000, 10_000)
        digits = f"{four:04d}".rstrip("0")
        return f"{sign}${whole:,}.{digits:0<2}" if digits else f"{sign}${whole:,}"
    first = len(digits) - len(digits.lstrip("0"))
    places = min(9, first + 3)  # three digits that say something, rounded half to even as above
    rounded = f"{round(nanos, places - 9):09d}"
    return f"{sign}$0.{rounded[:places].rstrip('0')}"


@total_ordering
class Money:
    """An amount of money; `nanos` is the exact integer, `str()` is for people."""

    __slots__ = ("nanos",)

    def __init__(self, nanos: int) -> None:
        self.nanos = nanos

    def __str__(self) -> str:
        return format_nanos(self.nanos)

    def __repr__(self) -> str:
        return f"Money({self.nanos}: {self})"

    def __eq__(self, other: object) -> bool:
        return self.nanos == other.nanos if isinstance(other, Money) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self.nanos < other.nanos if isinstance(other, Money) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.nanos)

    @property
    def dollars(self) -> Decimal:
        """The exact amount in dollars."""
        return Decimal(self.nanos) / NANOS_PER_DOLLAR
