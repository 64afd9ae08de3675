"""The scenarios that are not lists of cases. Each launches its own providers and stops them."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple
from urllib.request import urlopen

from bench.load.outcome import LoadError, Outcome, merged
from bench.load.usage import peak_bytes, resident_bytes, restart_peak
from bench.load.workload import PAIR_RATE, Function, Load, bucket_of
from bench.run.paths import ROOT
from bench.run.processes import GeneratorProcess, ProcessError, ProviderProcess, WatcherProcess
from bench.run.rows import Row
from bench.run.scenarios import Case
from bench.run.stage import Stage, row_of
from bench.run.subjects import BARE, DIRECT, EXECUTABLE, EXPIRING, PLAIN, STANDALONE, STUCK, UNMETERED, WATCHED, Subject

__all__ = ["EXPERIMENTS", "Experiment", "Extent", "Side"]

GROWTH_VALUE_BYTES = 64
GROWTH_LOADS: Sequence[tuple[Function, int]] = (("get", 64), ("set", 64), ("list-keys", 4))
MEMORY_VALUE_BYTES = 2**20
MEMORY_KEYS = 64
PAGE_KEYS = 1_000
METRICS_CASES = (Case(function="get"), Case(function="get", in_flight=512), Case(function="set"))
METRICS_ROUNDS = 20
METRICS = re.compile(r"http://\S+/metrics")
SCRAPES = 5
SCRAPE_TIMEOUT_S = 10.0
WATCH_ROUNDS = 10
START_ROUNDS = 10
#: Turns per load and round. A machine's speed drifts even within a round, and the bar is only two per cent.
TURNS = 10
TURN_MIN_S = 0.05
#: Seconds between the start of the gets and the start of the walk beside them.
BEGIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a run: numbers of rounds, keys and calls, and the duration of loads.

    :ivar seconds: duration of one load
    :ivar growth_keys: numbers of keys to measure growth at, ascending
    :ivar memory_calls: number of gets in flight at once
    """

    rounds: int
    seconds: float
    growth_keys: Sequence[int]
    pages_keys: int
    expiry_keys: int
    memory_calls: int


def growth(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get, set and a page at growing numbers of keys. Measure the memory per key, including the key order."""
    stores = {subject: stage.launch(subject) for subject in subjects if subject.is_store}
    empty = {subject: resident_bytes(provider.pid) for subject, provider in stores.items()}
    bucket = bucket_of(GROWTH_VALUE_BYTES)
    filled = 0
    for keys in extent.growth_keys:
        for subject, provider in stores.items():
            stage.fill(provider, bucket, keys - filled, GROWTH_VALUE_BYTES, first_key=filled)
            # A complete walk builds the key order. So no measured page has to build it, and memory includes all of it.
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
                        yield row_of("growth", case, subject, number, stage.generator.run(load), {})
                    else:
                        yield stage.row("growth", case, subject, number, extent.seconds)
        for subject, provider in stores.items():
            row = memory_row("growth", subject, keys, resident_bytes(provider.pid) - empty[subject])
            scrape_us = time_scrape(provider)
            yield row if scrape_us is None else replace(row, figures={**row.figures, "scrape_us": scrape_us})
    for provider in stores.values():
        provider.stop()


def memory_row(scenario: str, subject: Subject, keys: int, size_bytes: int) -> Row:
    """Return a row with the memory per key."""
    return Row(
        scenario=scenario,
        case=f"memory, {keys:,} keys",
        fields={"function": "memory", "keys": keys, "value_bytes": GROWTH_VALUE_BYTES},
        subject=subject.name,
        round=0,
        figures={"bytes_a_key": size_bytes / keys},
    )


def time_scrape(provider: ProviderProcess) -> float | None:
    """Return the median time of a few scrapes in microseconds, or None if the provider has no metrics."""
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


def memory(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure how much memory rises above the filled store's during many simultaneous gets of large values."""
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
            yield row_of("memory", case, subject, number, outcome, {"above_store_bytes": float(above)})
            provider.stop()


def pages(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure a first and a second walk with gets beside them, and the same gets alone.

    The keys were never listed before the first walk, so each of its pages has to sort. For each get, another get is
    due at the same time on the bare responder. The get on the bare responder never waits for a page, so its latency
    shows the delay that the machine causes.
    """
    bucket = bucket_of(GROWTH_VALUE_BYTES)
    keys = extent.pages_keys
    get = Case(function="get", rate=PAIR_RATE, keys=keys)
    walk = Case(function="list-keys", in_flight=1, page_keys=PAGE_KEYS, keys=keys)
    bare = stage.provider(BARE, get)
    with GeneratorProcess(stage.directory, "load-beside") as beside:
        for number in range(extent.rounds):
            for subject in subjects:
                provider = stage.launch(subject)
                stage.fill(provider, bucket, keys, GROWTH_VALUE_BYTES)
                gets = stage.load(provider, subject, get, bucket, 2 * (BEGIN_S + extent.seconds))
                gets = replace(gets, beside=bare.prefix)
                walks = stage.load(provider, subject, walk, bucket, extent.seconds)
                walks = replace(walks, calls=-(-keys // PAGE_KEYS), warm_calls=0)
                outcomes = {"gets alone": stage.generator.run(gets)}
                for name in ("first walk", "second walk"):
                    beside.begin(gets)
                    time.sleep(BEGIN_S)
                    outcomes[name] = stage.generator.run(walks)
                    outcomes[f"gets beside the {name}"] = beside.end()
                for name, outcome in outcomes.items():
                    if name.startswith("gets"):
                        row = row_of("pages", get, subject, number, outcome, {"excess_us": outcome.excess_us})
                    else:
                        row = row_of("pages", walk, subject, number, outcome, {"page_cpu_us": outcome.page_cpu_us})
                    yield replace(row, case=f"{name}, {keys:,} keys")
                provider.stop()


def metrics(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get and set with and without metrics, in turns.

    Each round uses new processes, because two processes of the same program differ by more than the cost of metrics.
    """
    bucket = bucket_of(METRICS_CASES[0].value_bytes)
    turn_s = turn_seconds(extent.seconds, TURNS)
    for number in range(max(METRICS_ROUNDS, extent.rounds)):
        providers = {subject: stage.launch(subject) for subject in (subjects if number % 2 else subjects[::-1])}
        for provider in providers.values():
            stage.fill(provider, bucket, METRICS_CASES[0].key_space, METRICS_CASES[0].value_bytes)
        for case in METRICS_CASES:
            sides = [
                Side(subject, stage.load(provider, subject, case, bucket, turn_s), provider)
                for subject, provider in providers.items()
            ]
            take_turns(stage, sides, number, TURNS)
            for side in sides:
                yield row_of("metrics", case, side.subject, number, merged(side.outcomes), {})
        for provider in providers.values():
            provider.stop()


def expiry(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure get and set on keys with and without deadlines, in turns. Measure the memory per key without an order."""
    bucket = bucket_of(GROWTH_VALUE_BYTES)
    keys = extent.expiry_keys
    providers = {}
    for subject in subjects:
        provider = providers[subject] = stage.launch(subject)
        empty = resident_bytes(provider.pid)
        stage.fill(provider, bucket, keys, GROWTH_VALUE_BYTES)
        yield memory_row("expiry", subject, keys, resident_bytes(provider.pid) - empty)
    for number in range(extent.rounds):
        for case in (Case(function="get", keys=keys), Case(function="set", keys=keys)):
            for subject in subjects if number % 2 else reversed(subjects):
                load = stage.load(providers[subject], subject, case, bucket, extent.seconds)
                yield row_of("expiry", case, subject, number, stage.generator.run(load), {})
    for provider in providers.values():
        provider.stop()


def start(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure time to first answer, idle memory and gets of a provider that is started in each of three ways.

    A host starts it, or it runs as `serve`, or it is the self-contained executable.
    """
    if EXECUTABLE in subjects:
        status = subprocess.run([ROOT / "scripts" / "build"]).returncode
        if status:
            raise ProcessError(f"scripts/build ended with exit status {status}")
    get = Case(function="get")
    bucket = bucket_of(get.value_bytes)
    for number in range(max(START_ROUNDS, extent.rounds)):
        sides = []
        for subject in subjects if number % 2 else reversed(subjects):
            provider = stage.launch(subject)
            idle_bytes = float(sum(resident_bytes(pid) for pid in provider.pids))
            yield Row(
                scenario="start",
                case="start",
                fields={"function": "start"},
                subject=subject.name,
                round=number,
                figures={"start_s": provider.start_s, "idle_bytes": idle_bytes},
            )
            stage.fill(provider, bucket, get.key_space, get.value_bytes)
            load = stage.load(provider, subject, get, bucket, turn_seconds(extent.seconds, TURNS))
            sides.append(Side(subject, load, provider))
        take_turns(stage, sides, number, TURNS)
        for side in sides:
            yield row_of("start", get, side.subject, number, merged(side.outcomes), {})
            side.provider.stop()


def watch(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Measure set with and without watchers.

    Each round launches new processes, because two processes of the same program differ in speed.
    """
    for number in range(max(WATCH_ROUNDS, extent.rounds)):
        # After its load, an answering watcher is still called for queued events. This would disturb the other turns.
        alone = [subject for subject in subjects if subject.watcher == "answering"]
        others = [subject for subject in subjects if subject not in alone]
        yield from watched_rows(stage, others, number, extent.seconds, TURNS)
        yield from watched_rows(stage, alone, number, extent.seconds, turns=1)


def watched_rows(stage: Stage, subjects: Sequence[Subject], number: int, seconds: float, turns: int) -> Iterator[Row]:
    """Measure one round of set on new processes, each with its own watcher if it has one."""
    case = Case(function="set")
    bucket = bucket_of(case.value_bytes)
    turn_s = turn_seconds(seconds, turns)
    with ExitStack() as stack:
        sides = []
        for subject in subjects:
            watcher = None
            if subject.watcher:
                name = f"watcher-{subject.name}-{number}"
                is_stuck = subject.watcher == "stuck"
                watcher = stack.enter_context(WatcherProcess(name, stage.nats, stage.directory, is_stuck))
            provider = stage.launch(subject, watcher="" if watcher is None else watcher.name)
            stack.callback(provider.stop)
            stage.fill(provider, bucket, case.key_space, case.value_bytes)
            sides.append(Side(subject, stage.load(provider, subject, case, bucket, turn_s), provider, watcher))
        take_turns(stage, sides, number, turns)
        for side in sides:
            yield row_of("watch", case, side.subject, number, merged(side.outcomes), side.figures())


def turn_seconds(seconds: float, turns: int) -> float:
    """Return the duration of each turn of a load."""
    return max(seconds / turns, TURN_MIN_S)


def take_turns(stage: Stage, sides: Sequence[Side], number: int, turns: int) -> None:
    """Run the loads of all sides, one after the other, `turns` times."""
    for turn in range(turns):
        for side in sides if (number + turn) % 2 else reversed(sides):
            side.run(stage.generator)


@dataclass(slots=True)
class Side:
    """One of the subjects that take turns, with its load, process and watcher."""

    subject: Subject
    load: Load
    provider: ProviderProcess
    watcher: WatcherProcess | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    told: int = 0
    told_s: float = 0.0

    def run(self, generator: GeneratorProcess) -> None:
        """Run the load for one turn, and count the events that the watcher receives."""
        if self.watcher is None:
            self.outcomes.append(generator.run(self.load))
            return
        before, began_s = self.watcher.told(), time.monotonic()
        self.outcomes.append(generator.run(self.load))
        self.told += self.watcher.told() - before
        self.told_s += time.monotonic() - began_s

    def figures(self) -> dict[str, float]:
        """Return the events per second that an answering watcher received. Return no figure for any other side.

        :raises LoadError: the watcher received no event
        """
        if self.watcher is None:
            return {}
        if not self.watcher.told():
            raise LoadError(f"{self.watcher.name} received no event, expected one for each set")
        return {"events_per_s": self.told / self.told_s} if self.subject.watcher == "answering" else {}


class Experiment(NamedTuple):
    """A scenario of this module, and the subjects that it compares."""

    measure: Callable[[Stage, Sequence[Subject], Extent], Iterator[Row]]
    subjects: tuple[Subject, ...]


EXPERIMENTS: Mapping[str, Experiment] = {
    "growth": Experiment(growth, (BARE, DIRECT)),
    "memory": Experiment(memory, (DIRECT, PLAIN)),
    "pages": Experiment(pages, (DIRECT,)),
    "metrics": Experiment(metrics, (DIRECT, UNMETERED)),
    "expiry": Experiment(expiry, (DIRECT, EXPIRING)),
    "start": Experiment(start, (DIRECT, STANDALONE, EXECUTABLE)),
    "watch": Experiment(watch, (DIRECT, WATCHED, STUCK)),
}
