"""The scenarios that are more than a list of cases. Each launches providers of its own, and ends them."""

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
#: Of each load of a round, since machines drift within one too, and the bar is at two per cent.
TURNS = 10
TURN_MIN_S = 0.05
#: In which the gets beside a walk have begun.
BEGIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    :ivar seconds: of one load
    :ivar growth_keys: ascending
    :ivar memory_calls: gets at once
    """

    rounds: int
    seconds: float
    growth_keys: Sequence[int]
    pages_keys: int
    expiry_keys: int
    memory_calls: int


def growth(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """get, set and a page with more and more keys; and what a key weighs by the resident memory, its place in the order included."""
    stores = {subject: stage.launch(subject) for subject in subjects if subject.is_store}
    empty = {subject: resident_bytes(provider.pid) for subject, provider in stores.items()}
    bucket = bucket_of(GROWTH_VALUE_BYTES)
    filled = 0
    for keys in extent.growth_keys:
        for subject, provider in stores.items():
            stage.fill(provider, bucket, keys - filled, GROWTH_VALUE_BYTES, first_key=filled)
            # A whole walk, so that the pages that are measured find their order, and memory has all of it.
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
    """What keys weigh."""
    return Row(
        scenario=scenario,
        case=f"memory, {keys:,} keys",
        fields={"function": "memory", "keys": keys, "value_bytes": GROWTH_VALUE_BYTES},
        subject=subject.name,
        round=0,
        figures={"bytes_a_key": size_bytes / keys},
    )


def time_scrape(provider: ProviderProcess) -> float | None:
    """Microseconds of a scrape, the median of some; None where the provider has no metrics."""
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
    """Gets of large values, all at once: how far memory rises above what it was with the store filled."""
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
    """A walk of keys that nobody has listed, so that each page sorts, with gets beside it; the same gets alone; and a second walk.

    At the moment of each get the bare responder gets one too: what that waits for is the machine, and no page.
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
    """The same with metrics and without, in turns, on new processes each round: two of the same differ by more than what is looked for."""
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
    """get and set, in turns, over keys that have a deadline and over keys without; and what a key weighs, which nobody listed."""
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
    """The command as a host starts it, alone, and as a self-contained executable: the time to a first answer, memory when idle, calls."""
    if EXECUTABLE in subjects:
        status = subprocess.run([ROOT / "scripts" / "build"]).returncode
        if status:
            raise ProcessError(f"scripts/build: it ended with exit status {status}")
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
    """set, watched and not. A round launches its processes: else a ratio would be more of two processes than of a watcher."""
    for number in range(max(WATCH_ROUNDS, extent.rounds)):
        # A watcher that answers is told of what is queued when the load is over, too: nobody takes turns with it.
        alone = [subject for subject in subjects if subject.watcher == "answering"]
        others = [subject for subject in subjects if subject not in alone]
        yield from watched_rows(stage, others, number, extent.seconds, TURNS)
        yield from watched_rows(stage, alone, number, extent.seconds, turns=1)


def watched_rows(stage: Stage, subjects: Sequence[Subject], number: int, seconds: float, turns: int) -> Iterator[Row]:
    """A round of set on new processes of these, each with its watcher."""
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
    """Of each turn of a load."""
    return max(seconds / turns, TURN_MIN_S)


def take_turns(stage: Stage, sides: Sequence[Side], number: int, turns: int) -> None:
    """The loads of all, one after the other, so many times."""
    for turn in range(turns):
        for side in sides if (number + turn) % 2 else reversed(sides):
            side.run(stage.generator)


@dataclass(slots=True)
class Side:
    """One of those that take turns: its load, its process, and who watches it."""

    subject: Subject
    load: Load
    provider: ProviderProcess
    watcher: WatcherProcess | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    told: int = 0
    told_s: float = 0.0

    def run(self, generator: GeneratorProcess) -> None:
        """Take a turn."""
        if self.watcher is None:
            self.outcomes.append(generator.run(self.load))
            return
        before, began_s = self.watcher.told(), time.monotonic()
        self.outcomes.append(generator.run(self.load))
        self.told += self.watcher.told() - before
        self.told_s += time.monotonic() - began_s

    def figures(self) -> dict[str, float]:
        """How many events a second an answering watcher was told of.

        :raises LoadError: there is a watcher that nobody called
        """
        if self.watcher is None:
            return {}
        if not self.watcher.told():
            raise LoadError(f"{self.watcher.name}: found no call, expected them for what is set")
        return {"events_per_s": self.told / self.told_s} if self.subject.watcher == "answering" else {}


class Experiment(NamedTuple):
    """A scenario of this module, and the subjects that it is about."""

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
