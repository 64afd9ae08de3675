"""Plots of a run, as PNG files. If a run has no rows for a plot, no file is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.load.latency import Latencies
from bench.report.figures import FIGURES, grouped, spread
from bench.report.run_file import Run
from bench.run.rows import Row
from bench.run.scenarios import size_text

__all__ = ["plot"]

#: The percentiles to plot, from 0 to 99.99 %. They are evenly spaced on an axis with 90 %, 99 %, 99.9 % and 99.99 %.
PERCENTS = [100 * (1 - 10 ** (-step / 10)) for step in range(41)]
INCHES = (6.0, 4.0)
#: Maximum number of decades with a tick each. On a longer axis, matplotlib skips decades.
TICKS_MAX = 12


def plot(run: Run, folder: Path) -> list[Path]:
    """Draw each plot for which the run has rows. Return the paths of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in PLOTS.items():
        panels = draw(run.rows)
        if not panels:
            continue
        figure = Figure(figsize=(INCHES[0] * len(panels), INCHES[1]), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            axes.set_title(title)
            panel(axes)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written


Panels = Mapping[str, Callable[[Axes], None]]


def throughput(rows: Sequence[Row]) -> Panels:
    """Plot calls per second against calls in flight."""
    here = [row for row in rows if row.scenario == "in-flight"]
    return {
        f"{function} of 64 B": partial(lines, own, "in_flight", "calls_per_s", "in flight")
        for function, own in grouped(here, lambda row: row.fields["function"])
    }


def latency(rows: Sequence[Row]) -> Panels:
    """Plot latency percentiles at a fixed call rate. At a fixed rate, latencies include the whole length of a stall."""
    here = [row for row in rows if row.scenario == "fixed-rate" and row.latencies]
    return {case: partial(percentiles, own) for case, own in grouped(here, lambda row: row.case)}


def keys(rows: Sequence[Row]) -> Panels:
    """Plot CPU time per call against the number of keys."""
    here = [row for row in rows if row.scenario == "growth" and "provider_cpu_us" in row.figures]
    return {
        str(function): partial(lines, own, "keys", "provider_cpu_us", "keys")
        for function, own in grouped(here, lambda row: row.fields["function"])
    }


def values(rows: Sequence[Row]) -> Panels:
    """Plot CPU time per call against the value size."""
    here = [row for row in rows if row.scenario == "values"]
    return {
        str(function): partial(lines, own, "value_bytes", "provider_cpu_us", "value")
        for function, own in grouped(here, lambda row: row.fields["function"])
    }


PLOTS: Mapping[str, Callable[[Sequence[Row]], Panels]] = {
    "throughput": throughput,
    "latency": latency,
    "keys": keys,
    "values": values,
}


def lines(rows: Sequence[Row], field: str, figure: str, what: str, axes: Axes) -> None:
    """Draw a figure's median against a field of the case, as a line for each subject. A band shows the range."""
    text = size_text if field == "value_bytes" else "{:,}".format
    ticks: set[float] = set()
    for subject, own in grouped(rows, lambda row: row.subject):
        points = sorted(
            (float(place), spread(row.figures[figure] for row in group))
            for place, group in grouped(own, lambda row: row.fields[field])
        )
        places = [place for place, _ in points]
        ticks.update(places)
        axes.plot(places, [point.median for _, point in points], marker="o", label=subject)
        axes.fill_between(places, [point.min for _, point in points], [point.max for _, point in points], alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [text(int(tick)) for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    if field == "value_bytes":
        axes.set_yscale("log")
        ticks_of_numbers(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(what)
    axes.set_ylabel(FIGURES[figure].title)


def percentiles(rows: Sequence[Row], axes: Axes) -> None:
    """Draw a line for each subject with its latency percentiles over all rounds."""
    for subject, own in grouped(rows, lambda row: row.subject):
        merged = Latencies.merged(row.latencies for row in own)
        axes.plot([100 / (100 - percent) for percent in PERCENTS], merged.percentiles_us(PERCENTS), label=subject)
    axes.set_xscale("log")
    axes.set_yscale("log")
    nines = [1, 10, 100, 1_000, 10_000]
    axes.set_xticks(nines, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"])
    axes.xaxis.set_minor_locator(NullLocator())
    ticks_of_numbers(axes.yaxis)
    axes.set_xlabel("share of calls")
    axes.set_ylabel("latency us")


def ticks_of_numbers(axis: Axis) -> None:
    """Set ticks at 1, 2 and 5 in each decade of a logarithmic axis, so that even a short axis has ticks."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=TICKS_MAX))
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}" if number >= 1 else f"{number:g}"))
    axis.set_minor_locator(NullLocator())
