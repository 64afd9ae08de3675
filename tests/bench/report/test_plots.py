"""Plots: which ones are drawn, and axis ticks that show numbers."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.load.latency import Latencies
from bench.report.plots import PLOTS, plot, ticks_of_numbers
from bench.report.run_file import Run
from bench.run.rows import Row
from tests.bench.rows import ABOUT


def test_ticks_show_numbers_on_less_than_a_decade_too() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.set_ylim(0.15, 3.0)
    ticks_of_numbers(axes.yaxis)
    figure.draw_without_rendering()
    assert {label.get_text() for label in axes.get_yticklabels()} >= {"0.2", "0.5", "1", "2"}


def test_only_plots_with_enough_points_are_drawn(tmp_path: Path) -> None:
    latencies = Latencies(range(1_000, 100_000, 100)).encoded()
    rows = [
        Row(
            scenario=scenario,
            case=f"{scenario} {size}",
            fields={"function": "get", "in_flight": size, "value_bytes": 64 * size, "keys": 10 * size},
            subject=subject,
            round=number,
            figures={"calls_per_s": 1e5 / size, "provider_cpu_us": 2.0 * size, "p50_us": 9.0, "p99_us": 90.0},
            latencies=latencies,
        )
        for scenario in ("in-flight", "growth", "values", "fixed-rate")
        for size in (1, 8, 64)
        for subject in ("bare", "direct")
        for number in range(2)
    ]
    drawn = plot(Run(ABOUT, rows), tmp_path / "plots")
    assert [path.name for path in drawn] == ["overview.png", "latency.png", "keys.png", "values.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    few = [one for one in rows if not one.case.endswith(" 8") and one.scenario != "fixed-rate"]
    assert plot(Run(ABOUT, few), tmp_path / "none") == []


def test_axes_say_what_they_show() -> None:
    rows = [
        Row(
            scenario="values",
            case=str(size),
            fields={"function": "get", "value_bytes": size},
            subject="bare",
            round=0,
            figures={"provider_cpu_us": 1.0},
        )
        for size in (64, 1024, 2**20)
    ]
    (title, panel), *_ = PLOTS["values"](rows)
    axes = Figure().subplots()
    panel(axes)
    assert (title, axes.get_xlabel(), axes.get_ylabel()) == ("get", "size of a value", "CPU us a call")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64 B", "1 KiB", "1 MiB"]
    assert axes.get_legend_handles_labels()[1] == ["limit (bare responder)"]
