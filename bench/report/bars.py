"""How a run compares with the bars, the project's performance goals, which `bench.run.scenarios` defines.

The bare responder shows if the machine was busy, which makes a run void, or is slow. On a slow machine, ratios say as much
as elsewhere, but a bar without a ratio is neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.report.figures import FIGURES, RATIO, Interval, interval, ratios, values_of, verdict
from bench.run.results import REFERENCE, Row
from bench.run.scenarios import REFERENCE_CASE, SCENARIOS, Bar

__all__ = ["Standing", "faults", "slowness", "standings", "unmeasured", "unmet"]

#: On a machine of the speed that the bars assume, the bare responder uses at most this much CPU per call.
REFERENCE_CPU_US_MAX = 2.2
#: On a quiet machine, its fastest round has at most this many times the calls/s of its slowest round. Eleven runs on a
#: quiet machine had 1.03 to 1.51, ten runs beside other programs 1.8 to 8.
SPREAD_MAX = 1.6
#: Fewer rounds do not show if a machine is slow or busy.
SLOW_ROUNDS_MIN = 3


class Standing(NamedTuple):
    """A bar, and the interval of its figure in a run, or None if the run did not measure the figure."""

    scenario: str
    bar: Bar
    found: Interval | None
    is_slow: bool = False

    @property
    def is_least(self) -> bool:
        """True if the limit is a minimum."""
        return FIGURES[self.bar.figure].better > 0

    @property
    def verdict(self) -> str:
        """The verdict on the figure, or nothing if it was not measured."""
        if self.found is None:
            return ""
        if self.is_slow and not self.bar.over and self.bar.figure.endswith(("_us", "_s")):  # memory needs no speed
            return "not judged"
        return verdict(self.found, self.bar.limit, self.is_least)

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
    is_slow = bool(slowness(rows))
    return [
        Standing(name, bar, _found(bar, [row for row in rows if row.scenario == name]), is_slow)
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


def unmet(rows: Sequence[Row]) -> list[str]:
    """Return a line for each bar that a run missed, or could not judge, with the figure and the limit."""
    found = (one for one in standings(rows) if one.verdict in ("missed", "not judged"))
    return [f"bar {one.verdict}: {one.scenario}: {one.text}" for one in found]


def faults(rows: Sequence[Row]) -> list[str]:
    """Return the reasons why a run is void, as far as its rows show them."""
    rates = _of_reference(rows, "calls_per_s")
    if rates and (spread := max(rates) / min(rates)) > SPREAD_MAX:
        text = f"the fastest round of the bare responder has {spread:.1f} times the calls/s of the slowest"
        return [f"{text}; the limit is {SPREAD_MAX}, so the machine was busy with something else"]
    slow = slowness(rows) if len(rates) < SLOW_ROUNDS_MIN else ""
    return [f"{slow}, or it was busy; {SLOW_ROUNDS_MIN} rounds would show which"] if slow else []


def slowness(rows: Sequence[Row]) -> str:
    """Return a text about a machine that is slower than the bars assume, or nothing."""
    costs = _of_reference(rows, "provider_cpu_us")
    if not costs or (cost := interval(costs)).median <= REFERENCE_CPU_US_MAX:
        return ""
    used = f"the bare responder took {cost.text()} us of CPU per call ({REFERENCE_CASE.label})"
    return f"{used}; the limit is {REFERENCE_CPU_US_MAX}, so the machine or its Python is slow"


def _of_reference(rows: Sequence[Row], figure: str) -> list[float]:
    return values_of((row for row in rows if row.scenario == REFERENCE), REFERENCE, figure)
