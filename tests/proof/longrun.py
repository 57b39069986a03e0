"""How many seeds the proofs play: some in every run of the tests, all others with `make test-long`."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(runs: int, tests: int, *, long: int) -> list[Any]:
    """Split the first `runs` seeds over so many tests, that the cores share them; the rest up to `long` is long."""
    size = runs // tests
    plays = [range(start, start + size) for start in range(0, runs, size)]
    longer = [range(start, min(start + 10 * size, long)) for start in range(runs, long, 10 * size)]
    named = [(play, ()) for play in plays] + [(play, pytest.mark.long) for play in longer]
    return [pytest.param(play, marks=marks, id=f"{play.start}-{play.stop - 1}") for play, marks in named]
