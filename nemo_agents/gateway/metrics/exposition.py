"""Families written in Prometheus' text format 0.0.4, by its own library.

https://prometheus.io/docs/instrumenting/exposition_formats/. The library is slow to import and a gateway that nobody
watches does not need it: whoever writes a page imports this module then, beside the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from nemo_agents.gateway.metrics.families import BOUNDS_US, Family, Histogram

__all__ = ["CONTENT_TYPE", "write"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_LE = tuple(str(bound / 1e6) for bound in BOUNDS_US)


def write(families: Sequence[Family]) -> bytes:
    """Return the page, with what the library knows of this process (`process_…`, on Linux) at its end."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families(Collector):
    """What the gateway knows, as the library asks for it."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return [_metric(family) for family in self._families]


def _metric(family: Family) -> Metric:
    if family.kind == "histogram":
        histograms = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for sample in family.samples:
            assert isinstance(sample.value, Histogram)
            histograms.add_metric(sample.labels, _buckets(sample.value), sample.value.sum_us / 1e6)
        return histograms
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    numbers = make(family.name, family.help, labels=family.labels)
    for sample in family.samples:
        assert not isinstance(sample.value, Histogram)
        numbers.add_metric(sample.labels, sample.value)
    return numbers


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return counts as the format has them: each of everything up to its bound."""
    buckets: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip((*_LE, "+Inf"), histogram.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    return buckets
