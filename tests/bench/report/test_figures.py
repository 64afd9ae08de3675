"""Intervals: how often they hold the true median, and what they are made of."""

from __future__ import annotations

from random import Random
from statistics import median

import pytest

from bench.report.figures import RESAMPLES, interval, medians


@pytest.mark.parametrize(("rounds", "share"), [(5, 0.94), (7, 0.88), (20, 0.95)])
def test_an_interval_nearly_always_holds_the_true_median(rounds: int, share: float) -> None:
    """With 7 rounds, it reaches from the second to the sixth; chance alone puts the true median there in 88 %."""
    chance = Random(7)
    samples = [[chance.lognormvariate(0, 0.3) for _ in range(rounds)] for _ in range(1_000)]
    held = sum(found.low <= 1.0 <= found.high for found in map(interval, samples))
    assert held / 1_000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("values", [[3.0], [3.0, 1.0], [5.0, 4.0, 1.0, 9.0], [2.0, 9.0, 4.0, 4.0, 7.0]])
def test_the_interval_of_few_rounds_is_their_range(values: list[float]) -> None:
    assert interval(values) == (median(values), min(values), max(values))


def test_intervals_are_the_same_for_every_run_and_order() -> None:
    chance = Random(1)
    values = [chance.random() for _ in range(20)]
    assert interval(values) == interval(sorted(values))
    assert len(medians(values)) == RESAMPLES
    assert medians(values) != medians(values, seed=1)
    found = interval(values)
    assert min(values) < found.low < found.median < found.high < max(values)
