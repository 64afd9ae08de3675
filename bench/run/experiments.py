"""The scenarios that are more than a list of cases, such as memory, watchers and the time to start.

`bench.run.plan.measure` calls these functions through `EXPERIMENTS`. Each function takes a stage, the name of the
scenario, the subjects to compare and the extent of the run. It launches its own providers, yields a `Row` for each
measurement, and stops the providers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import median
from urllib.request import urlopen

from bench.load.case import Case, Load
from bench.load.outcome import LoadError, Outcome, merged
from bench.load.usage import peak_bytes, resident_bytes, restart_peak
from bench.run import ROOT
from bench.run.processes import GeneratorProcess, ProcessError, ProviderProcess
from bench.run.redis import redis
from bench.run.results import Row
from bench.run.scenarios import SCENARIOS
from bench.run.stage import Extent, Stage, row_of
from bench.run.subjects import ANSWERING, BARE, BUILT, HOUR_MS, Subject

__all__ = ["EXPERIMENTS", "GROWTH_CASES", "Experiment"]

GROWTH_CASES = (Case(), Case(function="set"), Case(function="list-keys", in_flight=4))
WALK = Case(function="list-keys", in_flight=1)
#: Batches fill a store in a quarter of the time, but their keys use 3 to 13 % less memory, for example for deadlines.
MANY = Case(function="set-many", in_flight=256)
MEMORY_CASE = Case(value_bytes=2**20, keys=64)
METRICS = re.compile(r"http://\S+/metrics")
EVENTS = re.compile(r"^wrpc_keyvalue_watch_(?:events|dropped)_total(?:{.*})? (\S+)$", re.MULTILINE)
SCRAPES = 5
SCRAPE_TIMEOUT_S = 10.0
#: Number of turns into which each load of a round is split. Within a round, a machine's speed drifts by more than the
#: two or three per cent that the bars allow.
TURNS = 5
#: Two gets are due at the same time, one on each provider, at this rate of gets per second.
PAIRS = Case(rate=2_000.0)
#: Seconds from the start of the gets to the start of the walk or the save that runs at the same time.
BEGIN_S = 0.5
#: The line of the log about a save, with the seconds that it took.
SAVED = re.compile(r"snapshot saved: .* in (\S+) s")
#: A save beside gets takes at most this many times as long as a save alone (found: 1.3); a walk, as a load (found: 4.3).
SAVE_SHARE, WALK_SHARE = 2.0, 5.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A provider that was launched for a subject, and the scenario and round to which its figures belong."""

    stage: Stage
    scenario: str
    subject: Subject
    provider: ProviderProcess
    number: int = 0

    def load(self, case: Case, seconds: float, calls: int = 0) -> Load:
        """Return the load of a case, as `Stage.load` does."""
        return self.stage.load(self.provider, self.subject, case, seconds, calls=calls)

    def walk(self, keys: int) -> Outcome:
        """List all keys once."""
        calls = -(-keys // WALK.page_keys)
        return self.stage.generator.run(self.load(replace(WALK, keys=keys), 0.0, calls))

    def row(self, case: Case, outcome: Outcome, label: str = "", **more: float) -> Row:
        """Return the row of a load, as `row_of` does."""
        return row_of(self.scenario, case, self.subject, self.number, outcome, label, **more)

    def row_without_load(self, case: str, **figures: float) -> Row:
        """Return a row of figures that belong to no load."""
        where = {"scenario": self.scenario, "subject": self.subject.name, "round": self.number}
        return Row(**where, case=case, fields={}, figures=figures)  # type: ignore[arg-type]

    def start_row(self, case: str = "start") -> Row:
        """Return a row with the time and the CPU time to the first answer, and the memory at that moment."""
        on = self.provider
        idle_bytes = float(sum(map(resident_bytes, on.pids)))
        return self.row_without_load(case, start_s=on.start_s, start_cpu_s=on.start_cpu_s, idle_bytes=idle_bytes)

    def scrape(self) -> str:
        """Return the metrics of the provider. Raise LoadError if it does not answer."""
        address = self.provider.try_until(lambda: METRICS.findall(self.provider.log)[0], (IndexError,))
        try:
            with urlopen(address, timeout=SCRAPE_TIMEOUT_S) as answer:
                return str(answer.read(), "utf-8")
        except (OSError, ValueError) as error:
            raise LoadError(f"{self.provider.name}: no metrics: {error}") from None

    def save_s(self, saves: int) -> float:
        """Wait until this number of saves have ended. Return the duration of the last one, in seconds."""
        return self.provider.try_until(lambda: float(SAVED.findall(self.provider.log)[saves - 1]), (IndexError,))

    def events(self) -> float:
        """Return the number of changes that a watcher was called for, or that were dropped because it was too slow."""
        return sum(float(number) for number in EVENTS.findall(self.scrape()))


def launched(stage: Stage, name: str, subjects: Sequence[Subject], rounds: int = 1, keys: int = 0) -> Iterator[Trial]:
    """Launch a provider for each subject in each round, with this number of keys. Stop it before the next one."""
    for number in range(rounds):
        for subject in subjects:
            with stage.launch(subject) as provider:
                if keys:
                    load = stage.load(provider, subject, replace(MANY, keys=keys), 0.0, calls=keys // MANY.batch_keys)
                    stage.generator.run(replace(load, each_once=True))
                yield Trial(stage, name, subject, provider, number)


def growth(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get, set and list-keys as the number of keys grows. Also measure the memory per key after sorting."""
    for store in launched(stage, name, [subject for subject in subjects if subject.is_store]):
        empty = resident_bytes(store.provider.pid)
        filled = 0
        for keys in extent.growth_keys:
            stage.fill(store.provider, keys - filled, first_key=filled)
            store.walk(keys)  # the first walk sorts the keys, so no measured page has to, and the memory includes it
            filled = keys
            for number, case in product(range(extent.rounds), (replace(case, keys=keys) for case in GROWTH_CASES)):
                for subject in subjects:
                    if subject is store.subject:
                        outcome = stage.generator.run(store.load(case, extent.seconds))
                        yield replace(store, number=number).row(case, outcome)
                    else:
                        yield stage.row(name, case, subject, number, extent.seconds)
            grown = resident_bytes(store.provider.pid) - empty
            times_s = timeit.repeat(store.scrape, number=1, repeat=SCRAPES)
            figures = {"bytes_a_key": grown / keys, "scrape_us": 1e6 * median(times_s)}
            yield store.row_without_load(f"memory, {keys:,} keys", **figures)


def expiry(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get and set on keys with and without deadlines. Also measure the memory per key before sorting."""
    keys = extent.keys
    with ExitStack() as stack:
        trials = [Trial(stage, name, subject, stack.enter_context(stage.launch(subject))) for subject in subjects]
        for trial in trials:
            empty = resident_bytes(trial.provider.pid)
            stage.fill(trial.provider, keys)
            bytes_a_key = (resident_bytes(trial.provider.pid) - empty) / keys
            yield trial.row_without_load(f"memory, {keys:,} keys", bytes_a_key=bytes_a_key)
        for number, case in product(range(extent.rounds), (Case(keys=keys), Case(function="set", keys=keys))):
            for trial in trials[:: 1 if number % 2 else -1]:
                outcome = stage.generator.run(trial.load(case, extent.seconds))
                yield replace(trial, number=number).row(case, outcome)


def memory(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure how much memory many simultaneous gets of large values use, in addition to the filled store."""
    case = replace(MEMORY_CASE, in_flight=extent.memory_calls)
    for trial in launched(stage, name, subjects, extent.rounds):
        pid = trial.provider.pid
        stage.fill(trial.provider, case.keys, case.value_bytes)
        before = resident_bytes(pid)
        restart_peak(pid)
        outcome = stage.generator.run(trial.load(case, extent.seconds, extent.memory_calls))
        yield trial.row(case, outcome, above_store_bytes=peak_bytes(pid) - before)


def pages(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure gets alone, then the same gets during a first and during a second walk over all keys.

    The keys have never been listed before the first walk, so each page of that walk has to sort keys.
    """
    for trial in launched(stage, name, subjects, extent.rounds, extent.keys):
        walks = dict.fromkeys(("the first walk", "the second walk"), partial(trial.walk, extent.keys))
        yield from gets_beside(trial, extent.keys, walks, 2 * BEGIN_S + WALK_SHARE * extent.seconds)


def snapshot(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure gets alone, gets beside a save of all keys, which a first save shows how long to send, and a start."""
    path = stage.directory / "snapshot"
    config = {"snapshot_path": str(path), "snapshot_interval_ms": str(HOUR_MS)}
    saving = [replace(subject, config={**subject.config, **config}) for subject in subjects]
    for trial in launched(stage, name, saving, extent.rounds, extent.keys):
        save = partial(os.kill, trial.provider.pid, signal.SIGUSR1)
        save()
        seconds = 2 * BEGIN_S + SAVE_SHARE * trial.save_s(1)
        *rows, last = gets_beside(trial, extent.keys, {"a save": save}, seconds)
        yield from (*rows, replace(last, figures={**last.figures, "save_s": trial.save_s(2)}))
        trial.provider.popen.kill()  # at an orderly stop, it would save once more
        trial.provider.stop()
        for again in launched(stage, name, [trial.subject]):
            yield replace(again, number=trial.number).start_row(f"start, {extent.keys:,} keys")
            again.provider.popen.kill()
        path.unlink()


def gets_beside(
    trial: Trial, keys: int, actions: Mapping[str, Callable[[], Outcome | None]], seconds: float
) -> Iterator[Row]:
    """Measure gets alone, then the same gets beside each action. Also yield the row of an action that is a walk.

    Each get has a partner: a get that is due at the same time on the bare responder. The partner never waits for the
    action, so its latency shows how much of a delay comes from the machine.

    :param seconds: duration of the gets beside each action
    """
    get = replace(PAIRS, keys=keys)
    gets = replace(trial.load(get, seconds), beside=trial.stage.provider(BARE, get).prefix)
    of_keys = f", {keys:,} keys"
    with GeneratorProcess(trial.stage.directory, "load-beside") as beside:
        alone = beside.run(replace(gets, seconds=2 * BEGIN_S))
        yield trial.row(get, alone, f"gets alone{of_keys}", excess_us=alone.excess_us)
        for what, act in actions.items():
            beside.begin(gets)
            time.sleep(BEGIN_S)
            walk = act()
            outcome = beside.end()
            if walk is not None:
                yield trial.row(WALK, walk, what.removeprefix("the ") + of_keys, page_cpu_us=walk.page_cpu_us)
            yield trial.row(get, outcome, f"gets beside {what}{of_keys}", excess_us=outcome.excess_us)


def fresh(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure the cases of a scenario. Each round launches new processes, which take turns.

    Two processes of the same program can differ in speed by more than the bars allow.
    """
    if any(subject.command is BUILT for subject in subjects):
        status = subprocess.run([ROOT / "scripts" / "build"]).returncode
        if status:
            raise ProcessError(f"scripts/build ended with exit status {status}")
    # After a load, the provider still delivers queued events to an answering watcher. The delivery would slow down the
    # turns of other subjects, so the subject with this watcher runs alone.
    alone = [subject for subject in subjects if subject.watcher is ANSWERING]
    others = [subject for subject in subjects if subject not in alone]
    for number in range(max(SCENARIOS[name].rounds_min, extent.rounds)):
        for group, turns in [pair for pair in ((others, TURNS), (alone, 1)) if pair[0]]:
            with ExitStack() as stack:
                trials = []
                for subject in group[:: 1 if number % 2 else -1]:
                    watcher = stack.enter_context(stage.launch(subject.watcher)).name if subject.watcher else ""
                    provider = stack.enter_context(stage.launch(subject, watcher=watcher))
                    trials.append(Trial(stage, name, subject, provider, number))
                    if name in ("start", "listening"):
                        yield trials[-1].start_row()
                    stage.fill(provider, SCENARIOS[name].cases[0].key_space)
                for case in SCENARIOS[name].cases:
                    yield from in_turns(trials, case, extent.seconds, turns)


def in_turns(trials: Sequence[Trial], case: Case, seconds: float, turns: int) -> Iterator[Row]:
    """Measure a case with several providers, which take turns. Raise LoadError if a watcher received no event."""
    loads = {trial: trial.load(case, seconds / turns) for trial in trials}
    outcomes: dict[Trial, list[Outcome]] = {trial: [] for trial in trials}
    told = {trial: trial.events() for trial in trials if trial.subject.watcher}
    for turn in range(turns):
        for trial in trials[:: 1 if (trials[0].number + turn) % 2 else -1]:
            outcomes[trial].append(trial.stage.generator.run(loads[trial]))
    for trial in trials:
        outcome = merged(outcomes[trial])
        figures = {}
        if trial in told:
            events = trial.events() - told[trial]
            if not events:
                raise LoadError(f"{trial.subject.name}: the watcher received no event, expected one for each set")
            if trial.subject.watcher is ANSWERING:
                figures["events_per_s"] = events / outcome.seconds
        yield trial.row(case, outcome, case.label, **figures)


Experiment = Callable[[Stage, str, Sequence[Subject], Extent], Iterator[Row]]
EXPERIMENTS: Mapping[str, Experiment] = {
    "growth": growth,
    "memory": memory,
    "pages": pages,
    "snapshot": snapshot,
    "expiry": expiry,
    "redis": redis,
    **{name: fresh for name, scenario in SCENARIOS.items() if scenario.rounds_min},
}
