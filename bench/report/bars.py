"""How a run compares with the bars, the project's performance goals, which `bench.run.scenarios` defines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.report.figures import FIGURES, RATIO, Interval, interval, ratios, values_of
from bench.run.rows import Row
from bench.run.scenarios import SCENARIOS, Bar
from bench.run.subjects import DIRECT

__all__ = ["Standing", "missed", "standings", "unmeasured"]


class Standing(NamedTuple):
    """A bar, and the interval of its figure in a run, or None if the run did not measure the figure."""

    scenario: str
    bar: Bar
    found: Interval | None

    @property
    def verdict(self) -> str:
        """Return "ok", "missed", "unclear" if the median misses the limit but its interval does not, or nothing."""
        if self.found is None:
            return ""
        bar, (middle, low, high) = self.bar, self.found
        median, best = (middle, high) if bar.is_least else (-middle, -low)
        limit = bar.limit if bar.is_least else -bar.limit
        return "ok" if median >= limit else "unclear" if best >= limit else "missed"

    @property
    def what(self) -> str:
        """The text of the bar: case, subject, figure, and the divisor of a ratio."""
        bar = self.bar
        subject = "" if bar.subject == DIRECT.name else f"{bar.subject}: "
        worst = "worst " if bar.is_worst else ""
        over = f" over {bar.over}" if bar.over else ""
        return f"{bar.case}: {subject}{worst}{FIGURES[bar.figure].title}{over}"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The cells of a table: text, figure, limit, verdict."""
        figure = RATIO if self.bar.over else FIGURES[self.bar.figure]
        limit = f"{self.bar.limit * figure.scale:,.{figure.digits}f}"
        found = "not measured" if self.found is None else self.found.text(figure)
        return self.what, found, f"{'>=' if self.bar.is_least else '<='} {limit}", self.verdict


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
    texts = ((one.scenario, *one.cells) for one in standings(rows) if one.verdict == "missed")
    return [f"{scenario}: {what}: found {found}, allowed {limit}" for scenario, what, found, limit, _ in texts]
