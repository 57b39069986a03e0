"""Tables that fit: columns give way in a stated order, and never wrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_agents.cli.output import print_wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Column", "fit", "print_table"]

_GAP = 2
_NOTHING = frozenset({"", "-", "\N{EN DASH}"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table, and how it gives way where the terminal is too narrow.

    `right` aligns numbers. `shrink_to` is the width in cells down to which long texts may be cut with an ellipsis; None
    for never. Of the columns with `drop`, that with the highest number goes first; 0 stays whatever happens.
    """

    title: str
    right: bool = False
    shrink_to: int | None = None
    drop: int = 0


def print_table(to: Console, columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print rows under column titles; where a column had to go, say which, and where to find it."""
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    kept, widths = fit(columns, [[(cell.plain, cell.cell_len) for cell in row] for row in cells], to.width)
    head = [Text(column.title, style="dim") for column in columns]
    for row in [head, *cells]:
        to.print(_line(row, columns, kept, widths), soft_wrap=True)
    gone = [
        column.title
        for number, column in enumerate(columns)
        if number not in kept and any(row[number].plain not in _NOTHING for row in cells)
    ]
    if gone:
        hint = f"(left out to fit: {', '.join(gone)}; a wider terminal or --json has all)"
        print_wrapped(to, hint, style="dim")


def fit(
    columns: Sequence[Column], rows: Sequence[Sequence[tuple[str, int]]], width: int
) -> tuple[list[int], dict[int, int]]:
    """Return the numbers of the columns that stay and the width of each, for cells given as (text, width in cells).

    In this order: everything as it is; without columns that say nothing in any row; long texts cut; columns dropped.
    """
    natural = {
        number: max(len(column.title), *(row[number][1] for row in rows)) if rows else len(column.title)
        for number, column in enumerate(columns)
    }
    kept = list(range(len(columns)))
    if _total(natural, kept) <= width:
        return kept, natural
    kept = [number for number in kept if any(row[number][0] not in _NOTHING for row in rows)]
    least = {
        number: natural[number]
        if columns[number].shrink_to is None
        else min(natural[number], max(columns[number].shrink_to or 0, len(columns[number].title)))
        for number in kept
    }
    while _total(least, kept) > width:
        droppable = [number for number in kept if columns[number].drop]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda number: columns[number].drop))
    widths = {number: natural[number] for number in kept}
    while (excess := _total(widths, kept) - width) > 0:
        roomy = [number for number in kept if widths[number] > least[number]]
        if not roomy:
            break
        widest = max(roomy, key=lambda number: widths[number])
        others = max((widths[number] for number in roomy if number != widest), default=0)
        step = max(1, min(excess, widths[widest] - max(least[widest], others)))
        widths[widest] -= step
    return kept, widths


def _total(widths: dict[int, int], kept: Sequence[int]) -> int:
    return sum(widths[number] for number in kept) + _GAP * max(0, len(kept) - 1)


def _line(row: Sequence[Text], columns: Sequence[Column], kept: Sequence[int], widths: dict[int, int]) -> Text:
    from rich.text import Text

    line = Text()
    for number in kept:
        cell = row[number].copy()
        cell.truncate(widths[number], overflow="ellipsis")
        cell.align("right" if columns[number].right else "left", widths[number])
        if len(line):
            line.append(" " * _GAP)
        line.append_text(cell)
    line.rstrip()
    return line
