"""The plan of a run, and the loop that measures it round by round.

A machine's speed drifts, so an absolute figure says little. For each case of a round, all subjects are measured
directly after one another, in an order that changes from round to round. Reports show ratios to the bare responder
within a round, as the median and its interval over all rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.load.case import Case
from bench.load.outcome import LoadError
from bench.run import ROOT
from bench.run.experiments import EXPERIMENTS
from bench.run.processes import ProcessError
from bench.run.results import REFERENCE, Failure, Row
from bench.run.scenarios import QUICK, REFERENCE_CASE, SCENARIOS
from bench.run.stage import Extent, NotAvailableError, Stage
from bench.run.subjects import BARE, BEFORE, DIRECT, OWN, PLAIN, Subject

__all__ = ["MEASUREMENT_ERRORS", "SUBJECTS", "Plan", "measure", "say"]

SUBJECTS = (BARE, DIRECT, PLAIN)
#: A wrong answer or none, a process that failed, or one whose usage could not be read.
MEASUREMENT_ERRORS = (LoadError, ProcessError, OSError)


@dataclass(frozen=True, slots=True)
class Plan:
    """The scenarios, subjects and size of a run.

    :ivar before: an earlier revision of this provider, or None
    """

    scenarios: Sequence[str]
    subjects: Sequence[Subject]
    is_quick: bool
    extent: Extent
    before: Subject | None = None

    def loads(self) -> dict[tuple[Case, tuple[Subject, ...]], list[str]]:
        """Return each case to measure with its subjects, and the scenarios that it belongs to.

        A case that belongs to several scenarios is measured once in a round.
        """
        loads: dict[tuple[Case, tuple[Subject, ...]], list[str]] = {(REFERENCE_CASE, (BARE,)): [REFERENCE]}
        for name in self.scenarios:
            for case in SCENARIOS[name].cases if name not in EXPERIMENTS else ():
                if not self.is_quick or case in QUICK:
                    loads.setdefault((case, tuple(self.subjects_of(name))), []).append(name)
        return loads

    def subjects_of(self, name: str) -> list[Subject]:
        """Return the subjects of a scenario that this plan includes. Variants of `direct` are measured beside it."""
        if not SCENARIOS[name].subjects:
            return list(self.subjects)
        named = [OWN.get(subject, self.before) for subject in SCENARIOS[name].subjects]
        has_direct = DIRECT in self.subjects
        return [one for one in named if one and (one in self.subjects or (has_direct and one not in SUBJECTS))]

    @property
    def settings(self) -> dict[str, object]:
        """The settings of the plan, as `run.json` stores them."""
        peers = {subject.name: " ".join(subject.command) for subject in self.subjects if subject.is_peer}
        before = {BEFORE: str(Path(self.before.command[0]).relative_to(ROOT))} if self.before else {}
        return {
            "rounds": self.extent.rounds,
            "seconds": self.extent.seconds,
            "scenarios": list(self.scenarios),
            "subjects": {subject.name: dict(subject.config) for subject in self.subjects},
            "notes": peers | before,
        }


def measure(plan: Plan, failures: list[Failure]) -> Generator[Row, None, None]:
    """Measure all scenarios of a plan. Yield each row as soon as it is measured. Append each failure of a peer.

    If a scenario fails otherwise, measure the others before the error is raised.
    """
    began_s = time.monotonic()
    errors: list[Exception] = []
    with Stage() as stage:
        parts: dict[str, Callable[[], Iterator[Row]]] = {"cases": partial(measure_cases, stage, plan, failures)}
        for name in (name for name in plan.scenarios if name in EXPERIMENTS and plan.subjects_of(name)):
            parts[name] = partial(EXPERIMENTS[name], stage, name, plan.subjects_of(name), plan.extent)
        for place, (name, rows_of) in enumerate(parts.items(), 1):
            if len(parts) > 1:
                say(f"{name}: part {place} of {len(parts)}, after {(time.monotonic() - began_s) / 60:.1f} min")
            try:
                for row in rows_of():
                    yield row
                    if row.scenario == name:
                        say(f"{name} round {row.round + 1}  {row.case:<38} {line_of([row])}")
            except NotAvailableError as error:
                say(f"bench: {name} is not measured: {error}")
            except MEASUREMENT_ERRORS as error:
                say(f"bench: {name} failed: {error}")
                errors.append(type(error)(f"{name}: {error}"))
    if errors:
        raise errors[0]


def measure_cases(stage: Stage, plan: Plan, failures: list[Failure]) -> Iterator[Row]:
    """Measure the scenarios that are lists of cases."""
    loads, extent = plan.loads(), plan.extent
    for number in range(extent.rounds):
        for place, ((case, subjects), names) in enumerate(loads.items(), 1):
            rows = []
            turn = number % max(1, len(subjects))
            for subject in (*subjects[turn:], *subjects[:turn]):
                if any(one.subject == subject.name and (one.is_gone or one.case == case.label) for one in failures):
                    continue
                try:
                    row = stage.row(names[0], case, subject, number, extent.seconds)
                except MEASUREMENT_ERRORS as error:
                    failures.append(stage.failure(error, case, subject, number))
                    say(f"bench: {failures[-1].text}")
                    continue
                rows.append(row)
                yield from (replace(row, scenario=name) for name in names)
            say(f"round {number + 1}/{extent.rounds} {place:>3}/{len(loads)}  {case.label:<34} {line_of(rows)}")


def line_of(rows: Sequence[Row]) -> str:
    """Return a progress line for the rows of one case and round: the most important figure of each subject."""
    parts = []
    for row in rows:
        name, value = next(iter(row.figures.items()))
        cpu = f" {row.figures['provider_cpu_us']:.1f} us" if "provider_cpu_us" in row.figures else f" {name}"
        shown = f"{value:,.0f}/s" if name == "calls_per_s" else f"{value:,.3g}"
        parts.append(f"{row.subject} {shown}{cpu}")
    return " | ".join(parts)


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)
