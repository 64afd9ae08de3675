"""How a run compares with the bars, the project's performance goals, which `bench.run.scenarios` defines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.report.figures import FIGURES, RATIO, Interval, interval, ratios, values_of, verdict
from bench.run.results import Row
from bench.run.scenarios import SCENARIOS, Bar

__all__ = ["Standing", "missed", "standings", "unmeasured"]


class Standing(NamedTuple):
    """A bar, and the interval of its figure in a run, or None if the run did not measure the figure."""

    scenario: str
    bar: Bar
    found: Interval | None

    @property
    def is_least(self) -> bool:
        """True if the limit is a minimum."""
        return FIGURES[self.bar.figure].better > 0

    @property
    def verdict(self) -> str:
        """The verdict on the figure, or nothing if it was not measured."""
        return "" if self.found is None else verdict(self.found, self.bar.limit, self.is_least)

    @property
    def what(self) -> str:
        """The text of the bar: case, subject, figure, and the divisor of a ratio."""
        bar = self.bar
        subject = "" if bar.subject == "direct" else f"{bar.subject}: "
        worst = "worst " if bar.is_worst else ""
        over = f" over {bar.over}" if bar.over else ""
        return f"{bar.case}: {subject}{worst}{FIGURES[bar.figure].title}{over}"

    @property
    def text(self) -> str:
        """The bar with its figure and its limit, as one line of text."""
        what, found, limit, _ = self.cells
        return f"{what}: found {found}, allowed {limit}"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The cells of a table: text, figure, limit, verdict."""
        figure = RATIO if self.bar.over else FIGURES[self.bar.figure]
        found = "not measured" if self.found is None else self.found.text(figure)
        return self.what, found, f"{'>=' if self.is_least else '<='} {figure.text(self.bar.limit)}", self.verdict


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Return each bar with its figure in the rows of a run."""
    return [
        Standing(name, bar, _found(bar, [row for row in rows if row.scenario == name]))
        for name, scenario in SCENARIOS.items()
        for bar in scenario.bars
    ]


def _found(bar: Bar, rows: Sequence[Row]) -> Interval | None:
    if bar.over:
        is_subject = any(row.subject == bar.over for row in rows)
        over = (bar.case, bar.over) if is_subject else (bar.over, bar.subject)
        values = ratios(rows, bar.figure, (bar.case, bar.subject), over)
    else:
        values = values_of((row for row in rows if row.case == bar.case), bar.subject, bar.figure)
    if values and bar.is_worst:
        return Interval(*[max(values)] * 3)
    return interval(values) if values else None


def unmeasured(found: Iterable[Standing]) -> list[Standing]:
    """Return the bars that a run did not measure. A bar of an optional scenario is left out."""
    return [standing for standing in found if standing.found is None and not SCENARIOS[standing.scenario].is_optional]


def missed(rows: Sequence[Row]) -> list[str]:
    """Return a line for each bar that a run missed, with the figure and the limit."""
    return [f"{one.scenario}: {one.text}" for one in standings(rows) if one.verdict == "missed"]
