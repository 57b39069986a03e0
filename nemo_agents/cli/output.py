"""Printing: what fits a terminal, everything in a pipe, JSON on request, and no text that controls the terminal."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["STATE_STYLES", "console", "echo_json", "one_line", "print_json", "print_wrapped", "safe_json", "state_text"]

STATE_STYLES = {
    "ok": "green",
    "active": "green",
    "running": "cyan",
    "open": "cyan",
    "recovered": "yellow",
    "blocked": "yellow",
    "expired": "yellow",
    "abandoned": "yellow",
    "refused": "red",
    "stopped": "red",
    "failed": "red",
    "lost": "red",
}
_UNBOUNDED = 100_000  # cells; a pipe has no edge, so that nothing is cut off or wrapped
_HIDDEN_IN_JSON = re.compile("[\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def console(*, piped_width: int = _UNBOUNDED) -> Console:
    """Return a console on standard output, as wide as the terminal; `piped_width` (cells) where there is none."""
    from rich.console import Console

    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        width=None if sys.stdout.isatty() else piped_width,
    )


def one_line(text: str) -> str:
    """Return a stranger's text on one line, with a visible mark for all that could move, colour or reorder it."""
    from nemo_agents.viewer.text import visible

    return visible(text).replace("\n", "\N{SYMBOL FOR LINE FEED}").replace("\t", "\N{SYMBOL FOR HORIZONTAL TABULATION}")


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    from rich.text import Text

    return Text(one_line(state), style=STATE_STYLES.get(state, ""))


def print_wrapped(to: Console, text: str, *, first: int = 0, indent: int = 0, style: str = "") -> None:
    """Print one line of text, continued `indent` cells from the left where the terminal is too narrow for it.

    `first` is how many cells of the first line are taken already.
    """
    from rich.text import Text

    if to.width >= _UNBOUNDED:
        to.print(Text(text, style=style), soft_wrap=True)
        return
    lines = textwrap.wrap(
        "\0" * first + text,  # which no text holds once it is made visible
        to.width,
        subsequent_indent=" " * min(indent, to.width // 3),
        break_on_hyphens=False,
        break_long_words=False,
        replace_whitespace=False,
    )
    for line in lines:
        to.print(Text(line.lstrip("\0"), style=style), soft_wrap=True)


def print_json(value: object) -> None:
    """Print a value of the wire (or plain data) as indented JSON."""
    import msgspec

    echo_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def echo_json(document: str) -> None:
    """Print a JSON document that is text already."""
    click.echo(safe_json(document))


def safe_json(document: str) -> str:
    r"""Return an equal JSON document in which controls and direction marks are written as `\uXXXX`."""
    return _HIDDEN_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document)
