"""The figures with their titles and units, and functions for spreads over rounds and ratios within a round.

All functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from bench.run.rows import REFERENCE, Row

__all__ = ["FIGURES", "RATIO_DIGITS", "Figure", "Spread", "case_ratios", "grouped", "has_figure", "ratios", "spread"]


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


#: Number of decimal places to show in a ratio.
RATIO_DIGITS = 2
FIGURES: Mapping[str, Figure] = {
    "calls_per_s": Figure("calls/s", 1, 0, 1),
    "keys_per_s": Figure("keys/s", 1, 0, 1),
    "p50_us": Figure("p50 us", 1, 0, -1),
    "p99_us": Figure("p99 us", 1, 0, -1),
    "p999_us": Figure("p99.9 us", 1, 0, 0),
    "max_us": Figure("max us", 1, 0, 0),
    "excess_us": Figure("excess over bare us", 1, 0, 0),
    "page_cpu_us": Figure("longest page CPU us", 1, 0, -1),
    "provider_cpu_us": Figure("provider CPU us", 1, 2, -1),
    "nats_cpu_us": Figure("NATS CPU us", 1, 2, 0),
    "generator_cpu_us": Figure("generator CPU us", 1, 2, 0),
    "peak_bytes": Figure("peak MiB", 1 / 2**20, 0, -1),
    "scrape_us": Figure("scrape us", 1, 0, -1),
    "start_s": Figure("start to first answer ms", 1000, 0, -1),
    "save_s": Figure("save ms", 1000, 0, -1),
    "idle_bytes": Figure("idle MiB", 1 / 2**20, 1, -1),
    "events_per_s": Figure("events/s", 1, 0, 0),
    "bytes_a_key": Figure("bytes per key", 1, 0, -1),
    "above_store_bytes": Figure("above the store MiB", 1 / 2**20, 0, -1),
}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, minimum and maximum of a figure over all rounds."""

    median: float
    min: float
    max: float

    def text(self, digits: int = 0, scale: float = 1) -> str:
        """Return the median as text, followed by the range unless all values are equal.

        >>> Spread(1200.0, 1000.0, 1500.0).text(), Spread(1200.0, 1200.0, 1200.0).text()
        ('1,200 (1,000 .. 1,500)', '1,200')
        """
        middle, least, greatest = (f"{value * scale:,.{digits}f}" for value in (self.median, self.min, self.max))
        return middle if self.min == self.max else f"{middle} ({least} .. {greatest})"


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of one or more values.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, min=1.0, max=3.0)
    """
    ordered = sorted(values)
    return Spread(median(ordered), ordered[0], ordered[-1])


def ratios(rows: Iterable[Row], subject: str, figure: str, reference: str = REFERENCE) -> list[float]:
    """Return the ratios between a subject's figure and the reference's figure, one for each case and round.

    Both figures of a ratio come from the same round, because a machine's speed drifts during a run.
    """
    values = {(row.scenario, row.case, row.round, row.subject): row.figures.get(figure) for row in rows}
    found = []
    for (scenario, case, number, name), value in values.items():
        other = values.get((scenario, case, number, reference))
        if name == subject and value is not None and other:
            found.append(value / other)
    return found


def case_ratios(rows: Iterable[Row], subject: str, figure: str, case: str, reference_case: str) -> list[float]:
    """Return the ratios between a subject's figures in two cases of a scenario, one for each round."""
    values = {(row.scenario, row.round, row.case): row.figures.get(figure) for row in rows if row.subject == subject}
    found = []
    for (scenario, number, name), value in values.items():
        other = values.get((scenario, number, reference_case))
        if name == case and value is not None and other:
            found.append(value / other)
    return found


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> Iterator[tuple[Any, list[Row]]]:
    """Group rows by key. Yield the groups in the order in which their keys first appear."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    yield from groups.items()


def has_figure(rows: Iterable[Row], figure: str) -> bool:
    """Return True if any of the rows has the figure."""
    return any(figure in row.figures for row in rows)
