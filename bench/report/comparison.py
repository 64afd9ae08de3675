"""A comparison of two runs. It finds figures that got worse by more than a threshold and by more than the spread."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bench.report.figures import FIGURES, RATIO_DIGITS, Spread, grouped, has_figure, ratios, spread
from bench.report.run_file import Run
from bench.run.rows import REFERENCE, Row

__all__ = ["Change", "changes", "compared", "say_changes", "share"]

NOTHING_IN_COMMON = 2


class Change(NamedTuple):
    """A figure with its spread in an old and in a new run.

    :ivar is_ratio: True if both spreads contain ratios to the bare responder, not absolute figures
    """

    scenario: str
    case: str
    subject: str
    figure: str
    is_ratio: bool
    old: Spread
    new: Spread

    @property
    def worse(self) -> float:
        """The share by which the new figure is worse, such as 0.25; negative if the figure improved."""
        return worse_share(self.old.median, self.new.median, FIGURES[self.figure].better)

    @property
    def is_apart(self) -> bool:
        """True if the median of each run lies outside the range of the other run."""
        old, new = self.old, self.new
        return not old.min <= new.median <= old.max and not new.min <= old.median <= new.max

    @property
    def text(self) -> str:
        """The change as one line of text."""
        figure = FIGURES[self.figure]
        digits, scale = (RATIO_DIGITS, 1.0) if self.is_ratio else (figure.digits, figure.scale)
        title = figure.title + (" over bare" if self.is_ratio else "")
        return (
            f"{self.scenario}: {self.case}: {self.subject}: {title}: {self.worse:.0%} worse: "
            f"{self.old.text(digits, scale)} -> {self.new.text(digits, scale)}"
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
    new_cases = _cases(new)
    for key, old_rows in _cases(old).items():
        new_rows = new_cases.get(key, [])
        for subject, own in grouped(old_rows, lambda row: row.subject):
            if subject == REFERENCE:
                continue
            for name in (name for name, figure in FIGURES.items() if figure.better and has_figure(own, name)):
                is_ratio = all(
                    any(row.subject == REFERENCE and name in row.figures for row in rows)
                    for rows in (old_rows, new_rows)
                )
                before, after = (_spread_of(rows, subject, name, is_ratio) for rows in (old_rows, new_rows))
                if before is not None and after is not None:
                    yield Change(*key, subject, name, is_ratio, before, after)


def changes(pairs: Iterable[Change], threshold: float) -> list[Change]:
    """Return the changes that are worse by more than the threshold and by more than the spread of both runs."""
    return [change for change in pairs if change.worse > threshold and change.is_apart]


def absent(old: Run, new: Run) -> list[str]:
    """Return the subjects, scenarios and cases that only the old run has.

    If a whole subject or scenario is missing, its cases are not listed.
    """
    subjects, scenarios = ({row.subject for row in new.rows}, {row.scenario for row in new.rows})
    there = {(row.scenario, row.case, row.subject) for row in new.rows}
    found = []
    for row in old.rows:
        if row.subject == REFERENCE or (row.scenario, row.case, row.subject) in there:
            continue
        if row.subject not in subjects:
            found.append(row.subject)
        elif row.scenario not in scenarios:
            found.append(row.scenario)
        else:
            found.append(f"{row.scenario}: {row.case}: {row.subject}")
    return list(dict.fromkeys(found))


def _cases(run: Run) -> dict[tuple[str, str], list[Row]]:
    return dict(grouped(run.rows, lambda row: (row.scenario, row.case)))


def _spread_of(rows: Sequence[Row], subject: str, name: str, is_ratio: bool) -> Spread | None:
    if is_ratio:
        values = ratios(rows, subject, name)
    else:
        values = [row.figures[name] for row in rows if row.subject == subject and name in row.figures]
    return spread(values) if values else None


def say_changes(old: Run, new: Run, threshold: float) -> int:
    """Print what got slower. Return the exit status: 1 if something got slower, 2 if the runs share no figure."""
    pairs = list(compared(old, new))
    if not pairs:
        print(
            "the runs have nothing in common: they share no case of a subject other than the bare responder",
            file=sys.stderr,
        )
        return NOTHING_IN_COMMON
    found = changes(pairs, threshold)
    if old.about["machine"] != new.about["machine"]:
        print(
            "the machines differ, so absolute figures compare the machines, not the code; only ratios compare the code"
        )
    for name, run in (("old", old), ("new", new)):
        for fault in run.void:
            print(f"the {name} run is void: {fault}")
    if alone := absent(old, new):
        print(f"only the old run has: {'; '.join(alone)}")
    for change in found:
        print(change.text)
    if not found:
        cases = {(change.scenario, change.case) for change in pairs}
        print(
            f"nothing got slower by more than {threshold:.0%} and beyond the spread; cases in both runs: {len(cases)}"
        )
    return int(bool(found))


def share(text: str) -> float:
    """Parse a share from a number or a percentage.

    >>> share("10%"), share("0.1")
    (0.1, 0.1)
    """
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 10:
        raise ValueError(f"expected a share such as 0.1 or 10%, found {text}")
    return value
