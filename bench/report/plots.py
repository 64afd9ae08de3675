"""The overview picture of a run: throughput, CPU time and latency against the number of calls in flight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.report.figures import FIGURES, grouped, interval
from bench.run.results import REFERENCE, Row, Run

__all__ = ["draw_overview", "overview"]

#: The fewest points of a line.
POINTS_MIN = 3
INCHES = (4.8, 4.0)
LABELS = {REFERENCE: "limit (bare responder)", "direct": "this provider", "plain": "this provider, plain path"}
#: Each panel: a function, and its figures.
CALLS, COSTS, LATENCIES = ("calls_per_s",), ("provider_cpu_us",), ("p50_us", "p99_us")
PANELS = (("get", CALLS), ("set", CALLS), ("get", COSTS), ("get", LATENCIES))


def draw_overview(run: Run, folder: Path) -> Path | None:
    """Write overview.png to a folder, and return its path, or None if the run has too few points for lines."""
    rows = [row for row in run.rows if row.scenario == "in-flight"]
    if len({row.fields["in_flight"] for row in rows}) < POINTS_MIN:
        return None
    figure = overview(rows)
    path = folder / "overview.png"
    figure.savefig(path, dpi=80)
    return path


def overview(rows: Sequence[Row]) -> Figure:
    """Return the picture of the rows of the scenario in-flight."""
    figure = Figure(figsize=(INCHES[0] * len(PANELS), INCHES[1]), layout="constrained")
    for axes, (function, figures) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        draw_lines(axes, [row for row in rows if row.fields["function"] == function], figures)
        axes.set_title(f"{function} of 64 B")
        axes.set_xlabel("calls in flight")
        axes.set_ylabel("latency us" if len(figures) > 1 else FIGURES[figures[0]].title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def draw_lines(axes: Axes, rows: Sequence[Row], figures: Sequence[str]) -> None:
    """Draw a line for each subject and figure: the median at each number of calls, and a band for its interval."""
    subjects = enumerate(grouped(rows, lambda row: row.subject))
    for (number, (subject, own)), (figure, style) in product(subjects, zip(figures, "-:", strict=False)):
        points = sorted(
            (int(calls), interval(row.figures[figure] for row in group))
            for calls, group in grouped(own, lambda row: row.fields["in_flight"])
        )
        calls, intervals = zip(*points, strict=True)
        middle, low, high = zip(*intervals, strict=True)
        label = LABELS.get(subject, subject) + (f", {FIGURES[figure].title}" if len(figures) > 1 else "")
        axes.plot(calls, middle, f"o{style}", label=label, color=f"C{number}")
        axes.fill_between(calls, low, high, alpha=0.2, color=f"C{number}")
    ticks = sorted({int(row.fields["in_flight"]) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if figures is not CALLS:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
