"""Plots of a run, as PNG files. A panel that has too few points to show a trend is not drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.load.latency import Latencies
from bench.report.figures import FIGURES, grouped, interval
from bench.report.run_file import Run
from bench.run.rows import REFERENCE, Row
from bench.run.scenarios import size_text

__all__ = ["PLOTS", "plot"]

#: The fewest points of a line.
POINTS_MIN = 3
#: A percentile is drawn if at least this number of calls took longer.
CALLS_BEYOND_MIN = 10
#: The percentiles to plot, from 0 to 99.99 %. They are evenly spaced on an axis with 90 %, 99 %, 99.9 % and 99.99 %.
PERCENTS = [100 * (1 - 10 ** (-step / 10)) for step in range(41)]
INCHES = (6.0, 4.0)
#: Maximum number of decades with a tick each. On a longer axis, matplotlib skips decades.
TICKS_MAX = 12
LABELS = {REFERENCE: "limit (bare responder)", "direct": "this provider", "plain": "this provider, plain path"}

Panels = Iterator[tuple[str, Callable[[Axes], None]]]


def overview(rows: Sequence[Row]) -> Panels:
    """Plot throughput and latency against the number of calls in flight."""
    for function in ("get", "set"):
        yield from _lines(rows, "in-flight", function, "in_flight", ("calls_per_s",), "calls in flight")
    yield from _lines(rows, "in-flight", "get", "in_flight", ("p50_us", "p99_us"), "calls in flight")


def latency(rows: Sequence[Row]) -> Panels:
    """Plot latency percentiles at a fixed call rate. At a fixed rate, latencies include the whole length of a stall."""
    here = [row for row in rows if row.scenario == "fixed-rate" and row.latencies]
    for case, own in grouped(here, lambda row: row.case):
        yield case, partial(percentiles, own)


def keys(rows: Sequence[Row]) -> Panels:
    """Plot CPU time per call against the number of keys."""
    for function in ("get", "set", "list-keys"):
        yield from _lines(rows, "growth", function, "keys", ("provider_cpu_us",), "keys")


def values(rows: Sequence[Row]) -> Panels:
    """Plot CPU time per call against the value size."""
    for function in ("get", "set"):
        yield from _lines(rows, "values", function, "value_bytes", ("provider_cpu_us",), "size of a value")


PLOTS: Mapping[str, Callable[[Sequence[Row]], Panels]] = {
    "overview": overview,
    "latency": latency,
    "keys": keys,
    "values": values,
}


def plot(run: Run, folder: Path, plots: Mapping[str, Callable[[Sequence[Row]], Panels]] = PLOTS) -> list[Path]:
    """Draw each plot for which the run has enough points. Return the paths of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in plots.items():
        panels = list(draw(run.rows))
        if not panels:
            continue
        figure = Figure(figsize=(INCHES[0] * len(panels), INCHES[1]), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set_title(title)
            panel(axes)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=80)
        written.append(path)
    return written


def _lines(rows: Sequence[Row], scenario: str, function: str, field: str, figures: Sequence[str], what: str) -> Panels:
    """Yield a panel with a line for each subject and figure, if there are enough points."""
    here = [row for row in rows if row.scenario == scenario and row.fields.get("function") == function]
    here = [row for row in here if figures[0] in row.figures]
    if len({row.fields[field] for row in here}) >= POINTS_MIN:
        yield function + " of 64 B" * (field == "in_flight"), partial(lines, here, field, figures, what)


def lines(rows: Sequence[Row], field: str, figures: Sequence[str], what: str, axes: Axes) -> None:
    """Draw a figure's median against a field of the case, as a line for each subject. A band shows its interval."""
    subjects = enumerate(grouped(rows, lambda row: row.subject))
    for (number, (subject, own)), (figure, style) in product(subjects, zip(figures, "-:", strict=False)):
        points = sorted(
            (float(place), interval(row.figures[figure] for row in group))
            for place, group in grouped(own, lambda row: row.fields[field])
        )
        places = [place for place, _ in points]
        label = LABELS.get(subject, subject) + (f", {FIGURES[figure].title.split()[0]}" if len(figures) > 1 else "")
        color = f"C{number}"
        axes.plot(places, [point.median for _, point in points], f"o{style}", label=label, color=color)
        lows, highs = [point.low for _, point in points], [point.high for _, point in points]
        axes.fill_between(places, lows, highs, alpha=0.2, color=color)
    text = size_text if field == "value_bytes" else "{:,}".format
    ticks = sorted({int(row.fields[field]) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, list(map(text, ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    if field == "value_bytes" or len(figures) > 1:
        axes.set_yscale("log")
        ticks_of_numbers(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
    axes.set_xlabel(what)
    axes.set_ylabel("latency us" if len(figures) > 1 else FIGURES[figures[0]].title)


def percentiles(rows: Sequence[Row], axes: Axes) -> None:
    """Draw a line for each subject with its latency percentiles over all rounds."""
    for subject, own in grouped(rows, lambda row: row.subject):
        merged = Latencies.merged(row.latencies for row in own)
        drawn = [percent for percent in PERCENTS if len(merged) * (1 - percent / 100) >= CALLS_BEYOND_MIN]
        label = LABELS.get(subject, subject)
        axes.plot([100 / (100 - percent) for percent in drawn], merged.percentiles_us(drawn), label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    nines = [1, 10, 100, 1_000, 10_000]
    axes.set_xticks(nines, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"])
    axes.xaxis.set_minor_locator(NullLocator())
    ticks_of_numbers(axes.yaxis)
    axes.set_xlabel("part of the calls")
    axes.set_ylabel("latency us")


def ticks_of_numbers(axis: Axis) -> None:
    """Set ticks at 1, 2 and 5 in each decade of a logarithmic axis, so that even a short axis has ticks."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=TICKS_MAX))
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}" if number >= 1 else f"{number:g}"))
    axis.set_minor_locator(NullLocator())
