"""A comparison of two runs. It finds figures that got worse by more than a threshold, with their whole interval."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from bench.report.figures import FIGURES, RATIO, Interval, grouped, interval, medians, middle, over_bare, values_of
from bench.run.results import REFERENCE, Run

__all__ = ["Change", "compared", "say_changes", "share"]

NOTHING_IN_COMMON = 2


class Change(NamedTuple):
    """A figure with its values in an old and in a new run.

    :ivar where: scenario, case and subject
    :ivar is_ratio: True if both hold ratios to the bare responder, not absolute figures
    """

    where: tuple[str, str, str]
    figure: str
    is_ratio: bool
    old: list[float]
    new: list[float]

    @property
    def worse(self) -> Interval:
        """The share by which the new figure is worse, such as 0.25; negative if the figure improved."""
        was, now = interval(self.old).median, interval(self.new).median
        pairs = zip(medians(self.old), medians(self.new, seed=1), strict=True)
        better = FIGURES[self.figure].better
        return Interval(worse_share(was, now, better), *middle(worse_share(*pair, better) for pair in pairs))

    def exceeds(self, threshold: float) -> bool:
        """Return True if the figure is worse by more than the threshold, with its whole interval."""
        return self.worse.median > threshold and self.worse.low > threshold

    @property
    def text(self) -> str:
        """The change as one line of text."""
        figure = FIGURES[self.figure]
        shown = RATIO if self.is_ratio else figure
        title = figure.title + " over bare" * self.is_ratio
        old, new, worse = interval(self.old), interval(self.new), self.worse
        return (
            f"{': '.join(self.where)}: {title}: {worse.median:.0%} worse ({worse.low:.0%} .. {worse.high:.0%}): "
            f"{old.text(shown)} -> {new.text(shown)}"
        )


def worse_share(old: float, new: float, better: int) -> float:
    """Return how much worse the new figure is, as a share. The share is negative if the figure improved.

    :param better: 1 if more is better, -1 if less is better

    >>> worse_share(100.0, 80.0, better=1), worse_share(100.0, 125.0, better=-1)
    (0.25, 0.25)
    """
    was, now = (old, new) if better < 0 else (new, old)
    return now / was - 1 if was else 0.0


def compared(old: Run, new: Run) -> Iterator[Change]:
    """Yield a change for each figure that both runs measured in the same case for the same subject.

    Skip figures for which neither more nor less is better. If both runs measured the bare responder, use ratios to the
    bare responder. Only ratios can be compared between two machines, or between two days on one machine.
    """
    new_cases = dict(grouped(new.rows, lambda row: (row.scenario, row.case)))
    told = []  # a case of several scenarios is compared once
    for (scenario, case), old_rows in grouped(old.rows, lambda row: (row.scenario, row.case)):
        both = (old_rows, new_cases.get((scenario, case), []))
        for subject in dict.fromkeys(row.subject for row in old_rows if row.subject != REFERENCE):
            for name in (name for name, figure in FIGURES.items() if figure.better):
                is_ratio = all(values_of(rows, REFERENCE, name) for rows in both)
                before, after = (
                    over_bare(rows, name, case, subject) if is_ratio else values_of(rows, subject, name)
                    for rows in both
                )
                if before and after and (figures := (case, subject, name, before, after)) not in told:
                    told.append(figures)
                    yield Change((scenario, case, subject), name, is_ratio, before, after)


def absent(old: Run, new: Run) -> list[str]:
    """Return the subjects, scenarios and cases that only the old run has.

    If a whole subject or scenario is missing, its cases are not listed.
    """
    there = {part for row in new.rows for part in (row.subject, row.scenario, (row.scenario, row.case, row.subject))}
    found = []
    for row in old.rows:
        case = (row.scenario, row.case, row.subject)
        if row.subject != REFERENCE and case not in there:
            found.append(next((part for part in (row.subject, row.scenario) if part not in there), ": ".join(case)))
    return list(dict.fromkeys(found))


def say_changes(old: Run, new: Run, threshold: float) -> int:
    """Print what got slower. Return the exit status: 1 if something did or a run is void, 2 if they share no figure."""
    changes = list(compared(old, new))
    if not changes:
        print("the runs have nothing in common: they share no case of a subject except the limit", file=sys.stderr)
        return NOTHING_IN_COMMON
    if old.about["machine"] != new.about["machine"]:
        print("the machines differ, so absolute figures compare the machines; only ratios compare the code")
    for name, run in (("old", old), ("new", new)):
        for fault in run.void:
            print(f"the {name} run is void: {fault}")
    if alone := absent(old, new):
        print(f"only the old run has: {'; '.join(alone)}")
    slower = [change for change in changes if change.exceeds(threshold)]
    for change in slower:
        print(change.text)
    if not slower:
        cases = {change.where[:2] for change in changes}
        print(f"nothing got slower by more than {threshold:.0%} and beyond its interval; cases in both: {len(cases)}")
    return int(bool(slower or old.void or new.void))


def share(text: str) -> float:
    """Parse a share from a number or a percentage.

    >>> share("10%"), share("0.1")
    (0.1, 0.1)

    :raises ValueError: the text is no share, or it is negative or ten or more
    """
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 10:
        raise ValueError(f"expected a share such as 0.1 or 10%, found {text}")
    return value
