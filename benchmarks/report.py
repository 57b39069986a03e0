"""From samples to figures: medians of undisturbed samples, and ratios of samples of the same round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from load import Sample

# Above this share of one core another process took part; the sample counts only when there is no better.
FOREIGN_MAX = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The medians of one target at one number of connections.

    `added_*` are against the mock alone, `of_proxy` and `of_mock` the target's requests/s over theirs; each
    is the median over rounds in which both count. `clean` of `samples` were undisturbed.
    """

    target: str
    connections: int
    per_s: float
    p50_us: float
    p99_us: float
    added_p50_us: float
    added_p99_us: float
    cpu_us: float
    of_mock: float
    of_proxy: float
    clean: int
    samples: int


def usable(samples: Sequence[Sample]) -> list[Sample]:
    """Return the undisturbed samples, or all when there are none."""
    return [sample for sample in samples if sample.foreign <= FOREIGN_MAX] or list(samples)


def paired(ours: Iterable[Sample], theirs: Iterable[Sample], figure: Callable[[Sample, Sample], float]) -> float:
    """Return the median of a figure over the rounds that both have, or over all pairs when there is none."""
    left, right = list(ours), list(theirs)
    pairs = [(a, b) for a in left for b in right if a.round == b.round]
    return median(figure(a, b) for a, b in pairs or [(a, b) for a in left for b in right])


def summarize(samples: Sequence[Sample], *, mock: str, proxy: str) -> list[Figures]:
    """Return the figures of every target at every number of connections, in the order of first appearance."""
    cells: dict[tuple[int, str], list[Sample]] = {}
    for sample in samples:
        cells.setdefault((sample.connections, sample.target), []).append(sample)
    found = []
    for (connections, target), all_of_it in cells.items():
        kept = usable(all_of_it)
        of_mock, of_proxy = (usable(cells[connections, name]) for name in (mock, proxy))
        found.append(
            Figures(
                target=target,
                connections=connections,
                per_s=median(sample.per_s for sample in kept),
                p50_us=median(sample.p50_us for sample in kept),
                p99_us=median(sample.p99_us for sample in kept),
                added_p50_us=paired(kept, of_mock, lambda a, b: a.p50_us - b.p50_us),
                added_p99_us=paired(kept, of_mock, lambda a, b: a.p99_us - b.p99_us),
                cpu_us=median(sample.cpu_us for sample in kept),
                of_mock=paired(kept, of_mock, lambda a, b: a.per_s / b.per_s),
                of_proxy=paired(kept, of_proxy, lambda a, b: a.per_s / b.per_s),
                clean=sum(sample.foreign <= FOREIGN_MAX for sample in all_of_it),
                samples=len(all_of_it),
            )
        )
    return found


COLUMNS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("conn", lambda f: str(f.connections)),
    ("server", lambda f: f.target),
    ("req/s", lambda f: f"{f.per_s:,.0f}"),
    ("p50 µs", lambda f: f"{f.p50_us:,.0f}"),
    ("p99 µs", lambda f: f"{f.p99_us:,.0f}"),
    ("+p50 µs", lambda f: f"{f.added_p50_us:+,.0f}"),
    ("+p99 µs", lambda f: f"{f.added_p99_us:+,.0f}"),
    ("CPU µs/req", lambda f: f"{f.cpu_us:.1f}"),
    ("/ mock", lambda f: f"{f.of_mock:.2f}"),
    ("/ proxy", lambda f: f"{f.of_proxy:.2f}"),
    ("clean", lambda f: f"{f.clean}/{f.samples}"),
)


def table(figures: Sequence[Figures]) -> str:
    """Return the figures as an aligned table; a blank line parts the numbers of connections."""
    return aligned([[name for name, _ in COLUMNS], *([show(item) for _, show in COLUMNS] for item in figures)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of them the heads, as a table; a blank line parts those that differ in the first cell.

    The second column holds names and stands to the left, all others to the right.
    """
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        if number and (number == 1 or row[0] != rows[number - 1][0]):
            lines.append("")
        cells = [
            text.ljust(width) if index == 1 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_json(figures: Sequence[Figures], samples: Sequence[Sample], **others: Any) -> dict[str, Any]:
    """Return everything that was measured as JSON values."""
    return {
        **others,
        "figures": [asdict(item) for item in figures],
        "samples": [asdict(item) for item in samples],
    }
