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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from urllib.request import urlopen

from bench.load.outcome import LoadError, Outcome, merged
from bench.load.usage import peak_bytes, resident_bytes, restart_peak
from bench.load.workload import PAIR_RATE, Function, Load, bucket_of
from bench.run.paths import ROOT
from bench.run.processes import GeneratorProcess, ProcessError, ProviderProcess, WatcherProcess
from bench.run.redis import redis
from bench.run.rows import Row
from bench.run.scenarios import SCENARIOS, Case
from bench.run.stage import Extent, Stage, row_of
from bench.run.subjects import BARE, EXECUTABLE, HOUR_MS, Subject

__all__ = ["EXPERIMENTS", "Experiment", "Side"]

VALUE_BYTES = 64
GROWTH_LOADS: Sequence[tuple[Function, int]] = (("get", 64), ("set", 64), ("list-keys", 4))
MEMORY_VALUE_BYTES = 2**20
MEMORY_KEYS = 64
PAGE_KEYS = 1_000
METRICS = re.compile(r"http://\S+/metrics")
SCRAPES = 5
SCRAPE_TIMEOUT_S = 10.0
#: The least number of rounds of the scenarios that launch new processes in each round.
ROUNDS_MIN = {"metrics": 20, "start": 10, "watch": 10, "against": 20}
#: Number of turns into which each load of a round is split. Within a round, a machine's speed drifts by more than the
#: two or three per cent that the bars allow.
TURNS = 10
TURN_MIN_S = 0.05
#: The line of the log about a save, with the seconds that it took.
SAVED = re.compile(r"snapshot saved: .* in (\S+) s")
#: The gets beside a save last longer than a save at this rate.
SAVED_KEYS_PER_S = 50_000
#: Seconds from the start of the gets to the start of the walk that runs at the same time.
BEGIN_S = 0.5


def growth(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get, set and list-keys as the number of keys grows. Also measure the memory per key after sorting."""
    stores = {subject: stage.launch(subject) for subject in subjects if subject.is_store}
    empty = {subject: resident_bytes(provider.pid) for subject, provider in stores.items()}
    bucket = bucket_of(VALUE_BYTES)
    filled = 0
    for keys in extent.growth_keys:
        for subject, provider in stores.items():
            stage.fill(provider, bucket, keys - filled, VALUE_BYTES, first_key=filled)
            # The first complete walk sorts the keys. It runs before the measurement, so no measured page has to sort,
            # and the measured memory includes the sorted keys.
            walk = Case(function="list-keys", in_flight=1, page_keys=PAGE_KEYS, keys=keys)
            load = stage.load(provider, subject, walk, bucket, extent.seconds)
            stage.generator.run(replace(load, calls=-(-keys // PAGE_KEYS), warm_calls=0))
        filled = keys
        for number in range(extent.rounds):
            for function, in_flight in GROWTH_LOADS:
                case = Case(function=function, in_flight=in_flight, keys=keys)
                for subject in subjects:
                    if subject in stores:
                        load = stage.load(stores[subject], subject, case, bucket, extent.seconds)
                        yield row_of(name, case, subject, number, stage.generator.run(load), {})
                    else:
                        yield stage.row(name, case, subject, number, extent.seconds)
        for subject, provider in stores.items():
            row = memory_row(name, subject, keys, resident_bytes(provider.pid) - empty[subject])
            scrape_us = time_scrape(provider)
            yield row if scrape_us is None else replace(row, figures={**row.figures, "scrape_us": scrape_us})
    for provider in stores.values():
        provider.stop()


def memory_row(scenario: str, subject: Subject, keys: int, size_bytes: int) -> Row:
    """Return a row with the memory per key.

    :param size_bytes: memory of all keys together
    """
    return Row(
        scenario=scenario,
        case=f"memory, {keys:,} keys",
        fields={"function": "memory", "keys": keys, "value_bytes": VALUE_BYTES},
        subject=subject.name,
        round=0,
        figures={"bytes_a_key": size_bytes / keys},
    )


def time_scrape(provider: ProviderProcess) -> float | None:
    """Return the median time of a few metrics scrapes in microseconds, or None if the provider has no metrics."""
    address = METRICS.search(provider.log)
    if address is None:
        return None
    times_us = []
    for _ in range(SCRAPES):
        began_ns = time.perf_counter_ns()
        try:
            with urlopen(address[0], timeout=SCRAPE_TIMEOUT_S) as answer:
                answer.read()
        except OSError as error:
            raise LoadError(f"{address[0]}: {error}") from None
        times_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    return median(times_us)


def memory(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure how much memory many simultaneous gets of large values use, in addition to the filled store."""
    case = Case(
        function="get", value_bytes=MEMORY_VALUE_BYTES, in_flight=extent.memory_calls, keys=MEMORY_KEYS
    )  # fmt: skip
    bucket = bucket_of(MEMORY_VALUE_BYTES)
    for number in range(extent.rounds):
        for subject in subjects:
            provider = stage.launch(subject)
            stage.fill(provider, bucket, MEMORY_KEYS, MEMORY_VALUE_BYTES)
            load = stage.load(provider, subject, case, bucket, extent.seconds)
            before = resident_bytes(provider.pid)
            restart_peak(provider.pid)
            outcome = stage.generator.run(replace(load, calls=extent.memory_calls, warm_calls=0))
            above = peak_bytes(provider.pid) - before
            yield row_of(name, case, subject, number, outcome, {"above_store_bytes": float(above)})
            provider.stop()


def pages(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure gets alone, then the same gets during a first and during a second walk over all keys.

    The keys have never been listed before the first walk, so each page of that walk has to sort keys. Each get has a
    partner: a get that is due at the same time on the bare responder. The partner never waits for a page, so its
    latency shows how much of a delay comes from the machine.
    """
    bucket = bucket_of(VALUE_BYTES)
    keys = extent.keys
    get = Case(function="get", rate=PAIR_RATE, keys=keys)
    walk = Case(function="list-keys", in_flight=1, page_keys=PAGE_KEYS, keys=keys)
    bare = stage.provider(BARE, get)
    with GeneratorProcess(stage.directory, "load-beside") as beside:
        for number in range(extent.rounds):
            for subject in subjects:
                provider = stage.launch(subject)
                stage.fill(provider, bucket, keys, VALUE_BYTES)
                gets = stage.load(provider, subject, get, bucket, 2 * (BEGIN_S + extent.seconds))
                gets = replace(gets, beside=bare.prefix)
                walks = stage.load(provider, subject, walk, bucket, extent.seconds)
                walks = replace(walks, calls=-(-keys // PAGE_KEYS), warm_calls=0)
                outcomes = {"gets alone": stage.generator.run(gets)}
                for what in ("first walk", "second walk"):
                    beside.begin(gets)
                    time.sleep(BEGIN_S)
                    outcomes[what] = stage.generator.run(walks)
                    outcomes[f"gets beside the {what}"] = beside.end()
                for what, outcome in outcomes.items():
                    if what.startswith("gets"):
                        row = row_of(name, get, subject, number, outcome, {"excess_us": outcome.excess_us})
                    else:
                        row = row_of(name, walk, subject, number, outcome, {"page_cpu_us": outcome.page_cpu_us})
                    yield replace(row, case=f"{what}, {keys:,} keys")
                provider.stop()


def snapshot(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure gets alone, the same gets beside a save of all keys, and a start that loads them.

    Each get has a partner, as in `pages`. The save begins at SIGUSR1, and must end before the gets.

    :raises LoadError: a save took too long
    """
    bucket = bucket_of(VALUE_BYTES)
    keys = extent.keys
    get = Case(function="get", rate=PAIR_RATE, keys=keys)
    bare = stage.provider(BARE, get)
    seconds = 2 * (BEGIN_S + extent.seconds)
    seconds_beside = seconds + keys / SAVED_KEYS_PER_S
    for number in range(extent.rounds):
        for subject in subjects:
            path = stage.directory / f"{subject.name}-{number}.snapshot"
            config = {"snapshot_path": str(path), "snapshot_interval_ms": str(HOUR_MS)}
            provider = stage.launch(subject, config)
            stage.fill(provider, bucket, keys, VALUE_BYTES)
            gets = replace(stage.load(provider, subject, get, bucket, seconds), beside=bare.prefix)
            outcomes = {"gets alone": stage.generator.run(gets)}
            stage.generator.begin(replace(gets, seconds=seconds_beside))
            time.sleep(BEGIN_S)
            os.kill(provider.pid, signal.SIGUSR1)
            outcomes["gets beside a save"] = stage.generator.end()
            saved = SAVED.search(provider.log)
            if saved is None:
                raise LoadError(f"{subject.name}: no save of {keys:,} keys ended within {seconds_beside:g} s")
            for what, outcome in outcomes.items():
                more = {"excess_us": outcome.excess_us} | ({"save_s": float(saved[1])} if "save" in what else {})
                row = row_of(name, get, subject, number, outcome, more)
                yield replace(row, case=f"{what}, {keys:,} keys")
            provider.stop()
            again = stage.launch(subject, config)
            yield start_row(name, subject, number, again, f"start, {keys:,} keys")
            again.stop()


def expiry(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get and set on keys with and without deadlines. Also measure the memory per key before sorting."""
    bucket = bucket_of(VALUE_BYTES)
    keys = extent.keys
    providers = {}
    for subject in subjects:
        provider = providers[subject] = stage.launch(subject)
        empty = resident_bytes(provider.pid)
        stage.fill(provider, bucket, keys, VALUE_BYTES)
        yield memory_row(name, subject, keys, resident_bytes(provider.pid) - empty)
    for number in range(extent.rounds):
        for case in (Case(function="get", keys=keys), Case(function="set", keys=keys)):
            for subject in subjects if number % 2 else reversed(subjects):
                load = stage.load(providers[subject], subject, case, bucket, extent.seconds)
                yield row_of(name, case, subject, number, stage.generator.run(load), {})
    for provider in providers.values():
        provider.stop()


def fresh(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure the cases of a scenario. Each round launches new processes, which take turns.

    Two processes of the same program can differ in speed by more than the bars allow.
    """
    if EXECUTABLE in subjects:
        status = subprocess.run([ROOT / "scripts" / "build"]).returncode
        if status:
            raise ProcessError(f"scripts/build ended with exit status {status}")
    # After a load, the provider still delivers queued events to an answering watcher. The delivery would slow down the
    # turns of other subjects, so the subject with this watcher runs alone.
    alone = [subject for subject in subjects if subject.watcher == "answering"]
    others = [subject for subject in subjects if subject not in alone]
    for number in range(max(ROUNDS_MIN[name], extent.rounds)):
        for group, turns in ((others, TURNS), (alone, 1)):
            yield from _fresh_round(stage, name, group[:: 1 if number % 2 else -1], number, extent.seconds, turns)


def _fresh_round(
    stage: Stage, name: str, subjects: Sequence[Subject], number: int, seconds: float, turns: int
) -> Iterator[Row]:
    """Launch a new provider for each subject, and a watcher if the subject has one. Measure each case in turns."""
    cases = SCENARIOS[name].cases
    bucket = bucket_of(VALUE_BYTES)
    with ExitStack() as stack:
        providers: dict[Subject, tuple[ProviderProcess, WatcherProcess | None]] = {}
        for subject in subjects:
            watcher = None
            if subject.watcher:
                is_stuck = subject.watcher == "stuck"
                component = f"watcher-{subject.name}-{number}"
                watcher = stack.enter_context(WatcherProcess(component, stage.nats, stage.directory, is_stuck))
            provider = stage.launch(subject, watcher="" if watcher is None else watcher.name)
            stack.callback(provider.stop)
            providers[subject] = provider, watcher
            if name == "start":
                yield start_row(name, subject, number, provider)
            stage.fill(provider, bucket, cases[0].key_space, VALUE_BYTES)
        for case in cases:
            sides = [
                Side(subject, stage.load(provider, subject, case, bucket, max(seconds / turns, TURN_MIN_S)), watcher)
                for subject, (provider, watcher) in providers.items()
            ]
            for turn in range(turns):
                for side in sides[:: 1 if (number + turn) % 2 else -1]:
                    side.run(stage.generator)
            for side in sides:
                yield row_of(name, case, side.subject, number, merged(side.outcomes), side.figures())


def start_row(name: str, subject: Subject, number: int, provider: ProviderProcess, case: str = "start") -> Row:
    """Return a row with the time and the CPU time to a provider's first answer, and its memory at that moment."""
    idle_bytes = float(sum(map(resident_bytes, provider.pids)))
    figures = {"start_s": provider.start_s, "start_cpu_s": provider.start_cpu_s, "idle_bytes": idle_bytes}
    fields = {"function": "start"}
    return Row(scenario=name, case=case, fields=fields, subject=subject.name, round=number, figures=figures)


@dataclass(slots=True)
class Side:
    """A subject that takes turns with other subjects, with its load and its watcher.

    :ivar told: number of events that the watcher received during the loads
    :ivar told_s: seconds during which these events were counted
    """

    subject: Subject
    load: Load
    watcher: WatcherProcess | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    told: int = 0
    told_s: float = 0.0

    def run(self, generator: GeneratorProcess) -> None:
        """Run the load for one turn, and count the events that the watcher receives in this turn."""
        if self.watcher is None:
            self.outcomes.append(generator.run(self.load))
            return
        before, began_s = self.watcher.told(), time.monotonic()
        self.outcomes.append(generator.run(self.load))
        self.told += self.watcher.told() - before
        self.told_s += time.monotonic() - began_s

    def figures(self) -> dict[str, float]:
        """Return the events per second that the watcher received. Return an empty dict unless the watcher answers.

        :raises LoadError: the watcher received no event
        """
        if self.watcher is None:
            return {}
        if not self.watcher.told():
            raise LoadError(f"{self.watcher.name} received no event, expected one for each set")
        return {"events_per_s": self.told / self.told_s} if self.subject.watcher == "answering" else {}


Experiment = Callable[[Stage, str, Sequence[Subject], Extent], Iterator[Row]]
EXPERIMENTS: Mapping[str, Experiment] = {
    "growth": growth,
    "memory": memory,
    "pages": pages,
    "snapshot": snapshot,
    "expiry": expiry,
    "redis": redis,
    **dict.fromkeys(ROUNDS_MIN, fresh),
}
