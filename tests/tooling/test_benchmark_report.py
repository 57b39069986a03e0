"""The benchmark's figures: disturbed samples are set aside, and ratios compare the same round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    return report


def samples(report, target: str, *rows: tuple[int, float, int, float]):
    return [
        report.Sample(
            target=target,
            connections=16,
            round=number,
            per_s=per_s,
            p50_us=p50_us,
            p99_us=p50_us * 2,
            cpu_us=10.0,
            foreign=foreign,
        )
        for number, per_s, p50_us, foreign in rows
    ]


def test_a_disturbed_sample_counts_only_when_there_is_no_other(report):
    mock = samples(report, "mock", (1, 1000.0, 10, 0.0), (2, 10.0, 900, 0.5))
    proxy = samples(report, "proxy", (1, 500.0, 20, 0.9), (2, 300.0, 40, 0.9))
    first, second = report.summarize([*mock, *proxy], mock="mock", proxy="proxy")
    assert (first.per_s, first.clean, first.samples) == (1000.0, 1, 2)
    assert (second.per_s, second.clean, second.samples) == (400.0, 0, 2)


def test_ratios_pair_samples_of_the_same_round(report):
    """The machine was half as fast in round 2: the ratio of medians would be wrong, that of pairs is not."""
    mock = samples(report, "mock", (1, 1000.0, 10, 0.0), (2, 500.0, 20, 0.0), (3, 100.0, 100, 0.0))
    proxy = samples(report, "proxy", (1, 500.0, 25, 0.0), (2, 250.0, 35, 0.0))
    _, figures = report.summarize([*mock, *proxy], mock="mock", proxy="proxy")
    assert figures.of_mock == pytest.approx(0.5)
    assert figures.of_proxy == 1.0
    assert figures.added_p50_us == 15


def test_the_table_has_a_row_for_every_cell_in_aligned_columns(report):
    mock = samples(report, "mock", (1, 1000.0, 10, 0.0))
    proxy = samples(report, "proxy", (1, 500.0, 25, 0.0))
    lines = report.table(report.summarize([*mock, *proxy], mock="mock", proxy="proxy")).splitlines()
    assert [line.split()[:3] for line in lines[2:]] == [["16", "mock", "1,000"], ["16", "proxy", "500"]]
    assert len({len(line) for line in lines if line}) == 1


@pytest.mark.parametrize("arguments", [("--connections", "a"), ("--connections", "0"), ("--rounds", "0")])
def test_senseless_options_are_refused_before_anything_starts(arguments):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "--rounds" in done.stderr
