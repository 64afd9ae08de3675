"""Histograms of latencies."""

from __future__ import annotations

import pytest

from bench.load.latency import Latencies


def test_histograms_of_rounds_are_merged() -> None:
    first, second = Latencies([1_000] * 99), Latencies([1_000_000])
    merged = Latencies.merged([first.encoded(), second.encoded()])
    assert len(merged) == 100
    assert merged.percentiles_us([50, 99, 100]) == pytest.approx([1, 1, 1_000], rel=0.001)


def test_latencies_beyond_the_histogram_are_counted_at_its_ends() -> None:
    latencies = Latencies([0, 10**15])
    assert len(latencies) == 2
    assert latencies.percentiles_us([100]) == pytest.approx([6e8], rel=0.001)
