"""Metric families as values: what a scrape shows, before it is written in anybody's format.

The words (family, sample, label, counter, gauge, histogram) are those of Prometheus' data model,
https://prometheus.io/docs/concepts/data_model/.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["BOUNDS_US", "Family", "Histogram", "Kind", "Sample"]

Kind = Literal["counter", "gauge", "histogram"]

BOUNDS_US: Final = tuple(
    int(seconds * 1_000_000) for seconds in (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
)
"""Upper bounds of the buckets of every histogram, in microseconds: from the gateway's own time to a long answer's."""


class Histogram:
    """How long something took: counts by bucket (the last is of everything beyond the bounds), and the sum."""

    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.sum_us = 0

    def observe(self, took_us: int) -> None:
        """Count one; a bucket holds what is at most its bound."""
        self.counts[bisect_left(BOUNDS_US, took_us)] += 1
        self.sum_us += took_us

    def copy(self) -> Histogram:
        """Return what it shows now."""
        same = Histogram()
        same.counts = self.counts.copy()
        same.sum_us = self.sum_us
        return same


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of a family, or one histogram of it; `labels` are the values, in the order of the family's names."""

    labels: tuple[str, ...]
    value: float | Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric with all its samples. The name of a counter ends in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
