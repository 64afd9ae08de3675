"""The plan of a run, and the loop that measures it round by round.

A machine's speed drifts, so an absolute figure says little. For each case of a round, all subjects are measured
directly after one another, in an order that changes from round to round. Reports show ratios to the bare responder
within a round, as the median and the range over all rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.run.experiments import EXPERIMENTS, Experiment, Extent
from bench.run.rows import REFERENCE, Failure, Row
from bench.run.scenarios import CASES, QUICK_CASES, REFERENCE_CASE, Case
from bench.run.stage import PeerError, Stage
from bench.run.subjects import BARE, DIRECT, PLAIN, VARIANTS, Subject

__all__ = ["SUBJECTS", "Plan", "faults", "measure", "say", "settings"]

#: Maximum CPU time that the bare responder may use per call in `REFERENCE_CASE`. If it uses more, the machine is busy
#: or slow, and the figures of the run say little about providers.
REFERENCE_CPU_US_MAX = 2.2
SUBJECTS = (BARE, DIRECT, PLAIN)


@dataclass(frozen=True, slots=True)
class Plan:
    """The scenarios, subjects and size of a run."""

    scenarios: Sequence[str]
    subjects: Sequence[Subject]
    is_quick: bool
    extent: Extent

    def cases(self) -> list[tuple[str, Case]]:
        """Return each case with the name of its scenario, for all scenarios that are lists of cases.

        The first case is `REFERENCE_CASE`, which decides if the run is void.
        """
        table = QUICK_CASES if self.is_quick else CASES
        cases = [(name, case) for name in self.scenarios for case in table.get(name, ())]
        return [(REFERENCE, REFERENCE_CASE), *cases]

    def subjects_of(self, experiment: Experiment) -> list[Subject]:
        """Return those subjects of an experiment that this plan includes."""
        chosen = (*self.subjects, *(VARIANTS if DIRECT in self.subjects else ()))
        return [subject for subject in experiment.subjects if subject in chosen]


def measure(plan: Plan, failures: list[Failure]) -> Generator[Row, None, None]:
    """Measure all scenarios of a plan. Yield each row as soon as it is measured.

    :param failures: list to which this function appends each failure of a peer
    """
    with Stage() as stage:
        cases = plan.cases()
        extent = plan.extent
        for number in range(extent.rounds):
            turn = number % len(plan.subjects)
            order = [*plan.subjects[turn:], *plan.subjects[:turn]]
            for place, (scenario, case) in enumerate(cases, 1):
                rows = []
                for subject in [BARE] if scenario == REFERENCE else order:
                    if any(failure.covers(subject.name, case.label) for failure in failures):
                        continue
                    try:
                        row = stage.row(scenario, case, subject, number, extent.seconds)
                    except PeerError as error:
                        failure = Failure(subject.name, case.label, number, str(error), error.is_gone)
                        failures.append(failure)
                        say(f"bench: {failure.text}")
                        continue
                    rows.append(row)
                    yield row
                say(f"round {number + 1}/{extent.rounds} {place:>3}/{len(cases)}  {case.label:<34} {line_of(rows)}")
        for name, experiment in EXPERIMENTS.items():
            if name in plan.scenarios:
                for row in experiment.measure(stage, plan.subjects_of(experiment), extent):
                    yield row
                    say(f"{name} round {row.round + 1}  {row.case:<46} {line_of([row])}")


def line_of(rows: Sequence[Row]) -> str:
    """Return a progress line for the rows of one case and round, with ratios if the bare responder was measured."""
    bare = next((row for row in rows if row.subject == REFERENCE), None)
    parts = []
    for row in sorted(rows, key=lambda row: row.subject != REFERENCE):
        figures = row.figures
        if "start_s" in figures:
            parts.append(f"{row.subject} {figures['start_s']:.2f} s, {figures['idle_bytes'] / 2**20:.1f} MiB idle")
            continue
        if "bytes_a_key" in figures:
            parts.append(f"{row.subject} {figures['bytes_a_key']:.0f} B per key")
            continue
        text = f"{row.subject} {figures['calls_per_s']:,.0f}/s"
        if bare is not None and row is not bare:
            text += f" ({figures['calls_per_s'] / bare.figures['calls_per_s']:.2f}x)"
        text += f" {figures['provider_cpu_us']:.1f} us CPU, p50 {figures['p50_us']:,.0f} us"
        if "keys_per_s" in figures:
            text += f", {figures['keys_per_s']:,.0f} keys/s"
        if "events_per_s" in figures:
            text += f", {figures['events_per_s']:,.0f} events/s"
        if "above_store_bytes" in figures:
            text += f", {figures['above_store_bytes'] / 2**20:.0f} MiB above the store"
        parts.append(text)
    return " | ".join(parts)


def faults(rows: Sequence[Row]) -> list[str]:
    """Return the reasons why a run is void."""
    costs = [row.figures["provider_cpu_us"] for row in rows if row.scenario == REFERENCE]
    if costs and median(costs) > REFERENCE_CPU_US_MAX:
        return [
            f"the bare responder took {median(costs):.2f} us of CPU per call ({REFERENCE_CASE.label}); the limit is "
            f"{REFERENCE_CPU_US_MAX}: the machine is busy with something else, "
            "or its Python is slow (docs/performance.md)"
        ]
    return []


def settings(plan: Plan) -> dict[str, object]:
    """Return the settings of the plan, as `run.json` stores them."""
    return {
        "rounds": plan.extent.rounds,
        "seconds": plan.extent.seconds,
        "scenarios": list(plan.scenarios),
        "subjects": {subject.name: dict(subject.config) for subject in plan.subjects},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
