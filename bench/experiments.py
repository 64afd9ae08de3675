"""The scenarios that are more than a list of cases. Each launches providers of its own, and ends them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple
from urllib.request import urlopen

from bench.figures import Row
from bench.processes import LoadGenerator, Provider
from bench.scenarios import Case
from bench.stage import BARE, DIRECT, PLAIN, UNMETERED, Stage, Subject, row_of
from bench.usage import peak_bytes, resident_bytes, restart_peak
from bench.workload import Function, bucket_of

__all__ = ["EXPERIMENTS", "Experiment", "Extent"]

GROWTH_VALUE_BYTES = 64
GROWTH_LOADS: Sequence[tuple[Function, int]] = (("get", 64), ("set", 64), ("list-keys", 4))
MEMORY_VALUE_BYTES = 2**20
MEMORY_KEYS = 64
PAGE_KEYS = 1_000
METRICS_CASES = (Case(function="get"), Case(function="get", in_flight=512), Case(function="set"))
METRICS_ROUNDS = 10
METRICS = re.compile(r"http://\S+/metrics")
SCRAPES = 5
SCRAPE_TIMEOUT_S = 10.0
#: Gets a second beside a walk: few enough that they do not wait for each other.
BESIDE_RATE = 2_000.0
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
            figures = {"bytes_a_key": (resident_bytes(provider.pid) - empty[subject]) / keys}
            if (scrape_us := time_scrape(provider)) is not None:
                figures["scrape_us"] = scrape_us
            yield Row(
                scenario="growth",
                case=f"memory, {keys:,} keys",
                fields={"function": "memory", "keys": keys, "value_bytes": GROWTH_VALUE_BYTES},
                subject=subject.name,
                round=0,
                figures=figures,
            )
    for provider in stores.values():
        provider.stop()


def time_scrape(provider: Provider) -> float | None:
    """Microseconds of a scrape, the median of some; None where the provider has no metrics."""
    address = METRICS.search(provider.log)
    if address is None:
        return None
    times_us = []
    for _ in range(SCRAPES):
        began_ns = time.perf_counter_ns()
        with urlopen(address[0], timeout=SCRAPE_TIMEOUT_S) as answer:
            answer.read()
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
    """A walk of keys that nobody has listed, so that each page sorts, with gets beside it; the same gets alone; and a second walk."""
    bucket = bucket_of(GROWTH_VALUE_BYTES)
    keys = extent.pages_keys
    get = Case(function="get", rate=BESIDE_RATE, keys=keys)
    walk = Case(function="list-keys", in_flight=1, page_keys=PAGE_KEYS, keys=keys)
    with LoadGenerator(stage.directory, "load-beside") as beside:
        for number in range(extent.rounds):
            for subject in subjects:
                provider = stage.launch(subject)
                stage.fill(provider, bucket, keys, GROWTH_VALUE_BYTES)
                gets = stage.load(provider, subject, get, bucket, 2 * (BEGIN_S + extent.seconds))
                walks = stage.load(provider, subject, walk, bucket, extent.seconds)
                walks = replace(walks, calls=-(-keys // PAGE_KEYS), warm_calls=0)
                outcomes = {"gets alone": stage.generator.run(gets)}
                for name in ("first walk", "second walk"):
                    beside.begin(gets)
                    time.sleep(BEGIN_S)
                    outcomes[name] = stage.generator.run(walks)
                    outcomes[f"gets beside the {name}"] = beside.end()
                for name, outcome in outcomes.items():
                    case = get if name.startswith("gets") else walk
                    row = row_of("pages", case, subject, number, outcome, {})
                    yield replace(row, case=f"{name}, {keys:,} keys")
                provider.stop()


def metrics(stage: Stage, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """The same with metrics and without, in turns."""
    for number in range(max(METRICS_ROUNDS, extent.rounds)):
        for case in METRICS_CASES:
            for subject in subjects if number % 2 else reversed(subjects):
                yield stage.row("metrics", case, subject, number, extent.seconds)


class Experiment(NamedTuple):
    """A scenario of this module, and the subjects that it is about."""

    measure: Callable[[Stage, Sequence[Subject], Extent], Iterator[Row]]
    subjects: tuple[Subject, ...]


EXPERIMENTS: Mapping[str, Experiment] = {
    "growth": Experiment(growth, (BARE, DIRECT)),
    "memory": Experiment(memory, (DIRECT, PLAIN)),
    "pages": Experiment(pages, (DIRECT,)),
    "metrics": Experiment(metrics, (DIRECT, UNMETERED)),
}
