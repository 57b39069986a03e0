"""From samples of one kind of call to its table: the figures of every server, and the gateway against each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from load import Sample
from report import Figures, aligned, paired, summarize, usable


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One server at one number of connections.

    `rate_ratio` is the gateway's requests/s over this server's, `cpu_ratio` this server's processor time for a request
    over the gateway's: above 1 the gateway does better. Both pair samples of the same round. None without a gateway.
    """

    figures: Figures
    rate_ratio: float | None
    cpu_ratio: float | None


def rows(samples: Sequence[Sample], *, mock: str, proxy: str, ours: str) -> list[Row]:
    """Return the rows of one kind of call, in the order of first appearance."""
    cells: dict[tuple[int, str], list[Sample]] = {}
    for sample in samples:
        cells.setdefault((sample.connections, sample.target), []).append(sample)
    found = []
    for figures in summarize(samples, mock=mock, proxy=proxy):
        theirs = usable(cells[figures.connections, figures.target])
        of_us = usable(cells.get((figures.connections, ours), []))
        comparable = bool(of_us) and figures.target not in {ours, mock}
        found.append(
            Row(
                figures=figures,
                rate_ratio=paired(of_us, theirs, lambda us, them: us.per_s / them.per_s) if comparable else None,
                cpu_ratio=_cpu_ratio(of_us, theirs) if comparable else None,
            )
        )
    return found


def _cpu_ratio(of_us: Sequence[Sample], theirs: Sequence[Sample]) -> float | None:
    """Return how much more processor time they need; None when a short sample of ours measured none."""
    measured = [sample for sample in of_us if sample.cpu_us > 0]
    return paired(measured, theirs, lambda us, them: them.cpu_us / us.cpu_us) if measured else None


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("conn", lambda row: str(row.figures.connections)),
    ("server", lambda row: row.figures.target),
    ("req/s", lambda row: f"{row.figures.per_s:,.0f}"),
    ("p50 µs", lambda row: f"{row.figures.p50_us:,.0f}"),
    ("p99 µs", lambda row: f"{row.figures.p99_us:,.0f}"),
    ("+p50 µs", lambda row: f"{row.figures.added_p50_us:+,.0f}"),
    ("+p99 µs", lambda row: f"{row.figures.added_p99_us:+,.0f}"),
    ("CPU µs/req", lambda row: f"{row.figures.cpu_us:,.0f}"),
    ("gateway's req/s ÷ its", lambda row: _ratio(row.rate_ratio)),
    ("its CPU ÷ gateway's", lambda row: _ratio(row.cpu_ratio)),
    ("clean", lambda row: f"{row.figures.clean}/{row.figures.samples}"),
)


def table(found: Sequence[Row]) -> str:
    """Return the rows of one kind of call as a table."""
    return aligned([[name for name, _ in COLUMNS], *([show(row) for _, show in COLUMNS] for row in found)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What was not measured of a server, and why. `kind` and `connections` are None when it was not measured at all."""

    target: str
    why: str
    kind: str | None = None
    connections: int | None = None

    def __str__(self) -> str:
        cell = "" if self.kind is None else f", {self.kind}"
        cell += "" if self.connections is None else f" at {self.connections}"
        return f"not measured: {self.target}{cell}: {self.why}"


def as_json(kinds: Iterable[tuple[str, Sequence[Sample], Sequence[Row]]]) -> dict[str, Any]:
    """Return what was measured of each kind as JSON values."""
    return {
        name: {"rows": [asdict(row) for row in found], "samples": [asdict(sample) for sample in samples]}
        for name, samples, found in kinds
    }
