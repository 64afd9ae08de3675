"""The figures with their titles and units, their intervals over rounds, and ratios within a round.

An interval says how far the median would move if other rounds of the same kind had been measured. It comes from a
bootstrap: draw as many rounds as there are, with repetition, take their median, and repeat this `RESAMPLES` times. The
interval holds the middle 95 % of these medians. With fewer than six rounds it is the range of all rounds.
tests/bench/report/test_figures.py measures how often it holds the true median: in 88 to 95 % of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from random import Random
from statistics import median
from typing import Any, NamedTuple, TypeVar

from bench.run.results import REFERENCE, Row

__all__ = [
    *("FIGURES", "MINOR", "RATIO", "Figure", "Interval", "grouped", "interval", "medians", "middle"),
    *("over_bare", "ratios", "values_of", "verdict"),
]

T = TypeVar("T")


class Figure(NamedTuple):
    """The format of a figure in reports, and the direction that counts as better in comparisons.

    :ivar scale: factor from the measured value to the shown value
    :ivar digits: number of decimal places to show
    :ivar better: 1 if more is better, -1 if less is better, 0 to leave the figure out of comparisons
    """

    title: str
    scale: float
    digits: int
    better: int

    def text(self, value: float) -> str:
        """Return a value in the unit of the figure, as text."""
        return f"{value * self.scale:,.{self.digits}f}"


FIGURES: Mapping[str, Figure] = {
    "calls_per_s": Figure("calls/s", 1, 0, 1),
    "provider_cpu_us": Figure("CPU us a call", 1, 2, -1),
    "keys_per_s": Figure("keys/s", 1, 0, 1),
    "start_s": Figure("start ms", 1000, 0, -1),
    "start_cpu_s": Figure("start CPU ms", 1000, 0, -1),
    "idle_bytes": Figure("idle MiB", 1 / 2**20, 1, -1),
    "bytes_a_key": Figure("bytes a key", 1, 0, -1),
    "above_store_bytes": Figure("MiB above the store", 1 / 2**20, 0, -1),
    "excess_us": Figure("wait over bare us", 1, 0, 0),
    "page_cpu_us": Figure("longest page CPU us", 1, 0, -1),
    "save_s": Figure("save ms", 1000, 0, -1),
    "scrape_us": Figure("scrape us", 1, 0, -1),
    "events_per_s": Figure("events/s", 1, 0, 0),
    "p50_us": Figure("p50 us", 1, 0, -1),
    "p99_us": Figure("p99 us", 1, 0, -1),
    "max_us": Figure("max us", 1, 0, 0),
    "peak_bytes": Figure("peak MiB", 1 / 2**20, 0, -1),
    "p999_us": Figure("p99.9 us", 1, 0, 0),
    "nats_cpu_us": Figure("NATS CPU us", 1, 2, 0),
    "generator_cpu_us": Figure("load CPU us", 1, 2, 0),
}
#: The figures that Markdown leaves out, so that its tables can be read.
MINOR = ("max_us", "peak_bytes", "p999_us", "nats_cpu_us", "generator_cpu_us")
#: The format of a ratio.
RATIO = Figure("over bare", 1, 2, 0)
RESAMPLES = 2_000
#: The part of the medians that lies outside of an interval.
OUTSIDE = 0.05


class Interval(NamedTuple):
    """The median of a figure over all rounds, and the interval in which it lies."""

    median: float
    low: float
    high: float

    def text(self, figure: Figure = RATIO) -> str:
        """Return the median as text, followed by the interval unless it is a point.

        >>> Interval(0.85, 0.79, 0.89).text(), Interval(2.0, 2.0, 2.0).text()
        ('0.85 (0.79 .. 0.89)', '2.00')
        """
        middle, low, high = map(figure.text, self)
        return middle if self.low == self.high else f"{middle} ({low} .. {high})"


def verdict(found: Interval, limit: float, is_least: bool = False) -> str:
    """Return "ok", "missed" if the whole interval misses the limit, or "unclear" if only the median does.

    :param is_least: True if the limit is a minimum
    """
    median, best = (found.median, found.high) if is_least else (-found.median, -found.low)
    least = limit if is_least else -limit
    return "ok" if median >= least else "unclear" if best >= least else "missed"


@cache
def _middles(count: int, seed: int) -> Sequence[tuple[int, int]]:
    """Return the ranks of the two middle values of each resample of `count` sorted values."""
    chance = Random(seed)
    draws = (sorted(chance.choices(range(count), k=count)) for _ in range(RESAMPLES))
    return [(draw[(count - 1) // 2], draw[count // 2]) for draw in draws]


def medians(values: Iterable[float], seed: int = 0) -> list[float]:
    """Return the median of each resample of one or more values."""
    ordered = sorted(values)
    return [(ordered[low] + ordered[high]) / 2 for low, high in _middles(len(ordered), seed)]


def middle(found: Iterable[float]) -> tuple[float, float]:
    """Return the lower and the upper end of the middle 95 % of the values.

    >>> middle(range(101))
    (2, 98)
    """
    ordered = sorted(found)
    outside = int(len(ordered) * OUTSIDE / 2)
    return ordered[outside], ordered[-1 - outside]


def interval(values: Iterable[float]) -> Interval:
    """Return the median of one or more values, with its interval.

    >>> interval([3.0, 1.0, 2.0])
    Interval(median=2.0, low=1.0, high=3.0)
    """
    values = list(values)
    return Interval(median(values), *middle(medians(values)))


def values_of(rows: Iterable[Row], subject: str, figure: str) -> list[float]:
    """Return the figure of each round of a subject."""
    return [row.figures[figure] for row in rows if row.subject == subject and figure in row.figures]


def ratios(rows: Iterable[Row], figure: str, of: tuple[str, str], over: tuple[str, str]) -> list[float]:
    """Return the ratios between the figures of two (case, subject) pairs, one for each round that measured both.

    Both figures of a ratio come from the same round, because a machine's speed drifts during a run.
    """
    found = {(row.round, row.case, row.subject): row.figures[figure] for row in rows if figure in row.figures}
    return [
        value / other
        for (number, *pair), value in found.items()
        if tuple(pair) == of and (other := found.get((number, *over)))
    ]


def over_bare(rows: Iterable[Row], figure: str, case: str, subject: str) -> list[float]:
    """Return the ratios between a subject and the bare responder in a case."""
    return ratios(rows, figure, (case, subject), (case, REFERENCE))


def grouped(rows: Iterable[T], key: Callable[[T], Any]) -> Iterator[tuple[Any, list[T]]]:
    """Group rows by key. Yield the groups in the order in which their keys first appear."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    yield from groups.items()
