"""The axes of plots: ticks that say numbers."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.report.plots import ticks_of_numbers


@pytest.mark.parametrize(
    ("least", "greatest", "expected"),
    [
        (190.0, 7_000.0, ["200", "500", "1,000", "2,000", "5,000"]),
        (0.15, 3.0, ["0.2", "0.5", "1", "2"]),
        (1.5, 6_000.0, ["2", "5", "10", "20", "50", "100", "200", "500", "1,000", "2,000", "5,000"]),
        (230.0, 1_100.0, ["500", "1,000"]),
    ],
)
def test_less_than_a_decade_has_ticks_and_many_have_not_too_many(
    least: float, greatest: float, expected: list[str]
) -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([1, 2], [least, greatest])
    axes.set_yscale("log")
    axes.set_ylim(least, greatest)
    ticks_of_numbers(axes.yaxis)
    figure.draw_without_rendering()
    shown = [
        label.get_text()
        for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if least <= tick <= greatest
    ]
    assert shown == expected
