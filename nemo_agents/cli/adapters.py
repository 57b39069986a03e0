"""`nemo-agents adapters`: which frameworks' adapters are here, and whether they fit the frameworks that are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nemo_agents.cli.output import console, one_line, print_json, print_wrapped
from nemo_agents.cli.table import Column, print_table

if TYPE_CHECKING:
    from nemo_agents.adapters import InstalledAdapter

__all__ = ["adapters"]

_COLUMNS = (
    Column(title="adapter"),
    Column(title="version"),
    Column(title="framework", shrink_to=16),
    Column(title="found", right=True),
    Column(title="wanted", shrink_to=10),
    Column(title="fits"),
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def adapters(*, as_json: bool) -> None:
    """Show the adapters of agent frameworks: their versions, the frameworks found, and what can be installed."""
    from nemo_agents.adapters import KNOWN, installed

    found = installed()
    here = {each.name for each in found}
    others = {name: distribution for name, distribution in KNOWN.items() if name not in here}
    if as_json:
        print_json(
            {
                "installed": [_plain(each) for each in found],
                "available": [
                    {"name": name, "distribution": distribution, "install": _command(distribution)}
                    for name, distribution in others.items()
                ],
            }
        )
        return
    to = console()
    if found:
        print_table(to, _COLUMNS, [row for each in found for row in _rows(each)])
        for each in found:
            if each.problem is not None:
                print_wrapped(to, f"{one_line(each.name)}: {one_line(each.problem)}", indent=4)
    else:
        to.print("No adapter is installed.")
    if others:
        to.print()
        print_wrapped(to, "Not installed:")
        for name, distribution in others.items():
            to.print(f"  {name:<12}{_command(distribution)}", soft_wrap=True)


def _command(distribution: str) -> str:
    return f"pip install {distribution}"


def _rows(adapter: InstalledAdapter) -> list[tuple[str, ...]]:
    """Return a line for each framework that the adapter can work with; the adapter is named in the first."""
    head = (one_line(adapter.name), one_line(adapter.version or "-"))
    if not adapter.frameworks:
        return [(*head, "-", "-", "-", "-")]
    lines = [
        (one_line(each.distribution), one_line(each.found or "-"), each.wanted, _fits(found=each.found, fits=each.fits))
        for each in adapter.frameworks
    ]
    return [(*(head if number == 0 else ("", "")), *line) for number, line in enumerate(lines)]


def _fits(*, found: str | None, fits: bool) -> str:
    if found is None:
        return "-"
    return "yes" if fits else "no"


def _plain(adapter: InstalledAdapter) -> dict[str, object]:
    return {
        "name": adapter.name,
        "module": adapter.module,
        "distribution": adapter.distribution,
        "version": adapter.version,
        "problem": adapter.problem,
        "frameworks": [
            {"distribution": each.distribution, "wanted": each.wanted, "found": each.found, "fits": each.fits}
            for each in adapter.frameworks
        ],
    }
