"""The matrix of adapters: what the conformance suite has found in each lane, as Markdown for docs/generate.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MATRIX = Path(__file__).resolve().parent.parent / "tests" / "adapters" / "matrix.json"
WAYS = ("sync", "async", "stream", "tools", "structured", "threads")
REFUSALS = ("requests on 402", "requests on 429", "429", "stop")
STORY = ("spans", "partial result", "reaches")
ABSENT = "-"


def rows_of(matrix: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Return each row with its lane, those of one adapter beside each other."""
    rows = [(pair.split(" ")[1], row) for pair, found in matrix.items() for row in found]
    return sorted(rows, key=lambda each: (each[1]["name"].lower(), each[1]["name"], each[0]))


def table(rows: list[tuple[str, dict[str, Any]]], columns: tuple[str, ...]) -> str:
    """Return a table with a line for each adapter in each lane."""
    lines = [f"| adapter | version | openai | {' | '.join(columns)} |", f"|---|---|---|{'---|' * len(columns)}"]
    for _, row in rows:
        cells = [str(row["values"].get(column, ABSENT)).replace("|", "\\|") for column in columns]
        lines.append(f"| {row['name']} | {row['framework']} {row['version']} | {row['openai']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adapters(note: str) -> Iterator[str]:
    """Yield the Markdown blocks of the page."""
    rows = rows_of(json.loads(MATRIX.read_text(encoding="utf-8")) if MATRIX.exists() else {})
    yield "# Adapters"
    yield note
    yield (
        "What each adapter does, measured: every line is a run of [the conformance suite]"
        "(../how-to/test-your-agents.md#test-an-adapter) against a real gateway, in an environment with exactly these "
        "versions. `make matrix` runs it anew, and the tests fail when a run and this page differ."
    )
    yield "## Ways to be asked"
    yield (
        "`threads`: through the framework's own executor or runtime that was there before the run. `no`: the framework "
        "has no such way, or the adapter none yet."
    )
    yield table(rows, WAYS)
    yield "## When the gateway says no"
    yield (
        "`requests on 402`: how often a refusal that waiting does not cure is sent. `requests on 429`: how often one "
        "that never ends is, all layers of retries together. `stop`: what the program catches when a budget is spent "
        "and the run is to let it through; `A from B`: the framework's own exception A, with B as its cause."
    )
    yield table(rows, REFUSALS)
    yield "## The story of a run"
    yield (
        "`spans`: the kinds that arrive in [the run's tree](http-api.md). `partial result`: a run that is stopped "
        "between a tool and the answer keeps what was made so far. `reaches`: what the framework connects to while the "
        "adapter is in use; libraries that open connections in C are not seen."
    )
    yield table(rows, STORY)
