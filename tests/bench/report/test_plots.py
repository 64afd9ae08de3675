"""Plots: which are drawn, and ticks that say numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.load.latency import Latencies
from bench.report.plots import plot, ticks_of_numbers
from bench.report.run_file import Run
from bench.run.rows import Row
from tests.bench.rows import ABOUT, rounds


@pytest.mark.parametrize(
    ("least", "greatest", "expected"),
    [
        (190.0, 7_000.0, ["200", "500", "1,000", "2,000", "5,000"]),
        (0.15, 3.0, ["0.2", "0.5", "1", "2"]),
        (230.0, 1_100.0, ["500", "1,000"]),
    ],
)
def test_ticks_say_numbers_on_less_than_a_decade_too(least: float, greatest: float, expected: list[str]) -> None:
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


def test_plots_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    latencies = Latencies(range(1_000, 100_000, 1_000)).encoded()
    rows = [
        Row(
            scenario=scenario,
            case=f"{scenario} {size}",
            fields={"function": "get", "in_flight": size, "value_bytes": 64 * size, "keys": 10 * size},
            subject=subject,
            round=number,
            figures={"calls_per_s": 1e5 / size, "provider_cpu_us": 2.0 * size},
            latencies=latencies,
        )
        for scenario in ("in-flight", "growth", "values", "fixed-rate")
        for size in (1, 64)
        for subject in ("bare", "direct")
        for number in range(2)
    ]
    drawn = plot(Run(ABOUT, rows), tmp_path / "plots")
    assert [path.name for path in drawn] == ["throughput.png", "latency.png", "keys.png", "values.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plot(Run(ABOUT, rounds("direct", [1.0])), tmp_path / "none") == []
