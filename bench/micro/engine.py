"""The command `scripts/bench engine`: the store beside a plain dict under one lock, and where the store's time goes.

Both do the same work on one thread, in turns of 10,000 calls, and times are CPU times, so other load on the machine
affects both equally. Keys and values are new objects, as a decoder creates them, so a key's hash is not cached yet.
Each round makes new stores. Cases with `eviction = unused` run beside a store without it, with a tenth of the keys.
"""

from __future__ import annotations

import argparse
import gc
import linecache
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median
from threading import Lock
from time import thread_time_ns
from types import FrameType
from typing import Any, NamedTuple

from bench.load.case import KEY_BYTES
from bench.load.usage import resident_bytes
from bench.report.figures import RATIO, Figure, Interval, interval, verdict
from bench.report.report_table import ReportTable
from keyvalue_engine import Bucket, Store, StoreOptions
from keyvalue_provider.keyvalue.expiry_sweep import STEP_KEYS

__all__ = ["main", "tune_collector"]

TURN_KEYS = 10_000
PAGE_KEYS = 1_000
VALUE_BYTES = 64
#: The bars of pages, and of the memory of a key's place in the order.
PAGE_MS_MAX = 0.3
ORDER_BYTES_MAX = 110
SAMPLE_S = 0.001
WHERE_PASSES = 2
LINES_SHOWN = 12
MS = Figure("ms", 1, 3, 0)

EPILOG = """\
A run takes about two minutes and 1 GB of memory; with --quick, a few seconds. A figure misses its bar if its whole
interval is over it; it is unclear if only its median is. Bars in ms are for a machine of the speed that
docs/performance.md describes. Do not compare the ratios of small and large runs, because more of a small dict fits in
the processor's caches.
"""


class LockedDict:
    """A plain dict to compare the store with. It has no limits, no order, and one lock for everything."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            return self._entries.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        with self._lock:
            self._entries[key] = value

    def delete(self, key: bytes) -> bool:
        with self._lock:
            return self._entries.pop(key, None) is not None


class EngineCase(NamedTuple):
    """Calls to two subjects of a round in turns. The bar is the largest ratio of their times, or 0 for none."""

    name: str
    method: str
    subject: str
    beside: str
    bar: float = 0.0


#: The cases in the order of a round.
CASES = (
    EngineCase("new key", "set", "store", "dict", 2.5),
    EngineCase("get", "get", "store", "dict", 2.0),
    EngineCase("overwrite", "set", "store", "dict", 2.0),
    EngineCase("delete", "delete", "store", "dict"),
    EngineCase("new key, eviction unused", "set", "evicting", "smaller store"),
    EngineCase("get, eviction unused", "get", "evicting", "smaller store"),
    EngineCase("overwrite, eviction unused", "set", "evicting", "smaller store"),
)


#: Nanoseconds per call of both subjects in each round, by the name of the case.
Calls = dict[str, list[tuple[float, float]]]
#: Milliseconds of the median, the slowest and all steps in each round, by the name of the walk.
Walks = dict[str, list[tuple[float, float, float]]]


def subjects() -> dict[str, Any]:
    """Return new subjects for a round."""
    return {
        "store": Store().bucket(b"bench"),
        "dict": LockedDict(),
        "smaller store": Store().bucket(b"bench"),
        "evicting": Store(StoreOptions(eviction="unused")).bucket(b"bench"),
    }


def shuffled_keys(count: int) -> list[bytes]:
    """Return keys of 12 bytes, always in the same random order."""
    keys = [b"%0*d" % (KEY_BYTES, number) for number in range(count)]
    Random(1).shuffle(keys)
    return keys


def fresh(key: bytes) -> bytes:
    """Return a copy of a key. The hash of the copy is not cached yet."""
    return key[:1] + key[1:]


def fresh_value() -> bytes:
    """Return a new value object."""
    return bytes(bytearray(VALUE_BYTES))


def tune_collector() -> None:
    """Configure the garbage collector as the provider does. Objects that already exist are never scanned again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def time_calls(subject: Any, method: str, keys: Sequence[bytes]) -> int:
    """Call a method for all keys. Return the time of the loop in nanoseconds of CPU."""
    call = getattr(subject, method)
    if method == "set":
        pairs = entries_of(keys)
        start = thread_time_ns()
        for key, value in pairs:
            call(key, value)
    else:
        keys = list(map(fresh, keys))
        start = thread_time_ns()
        for key in keys:
            call(key)
    return thread_time_ns() - start


def entries_of(keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return keys and values as new objects."""
    return [(fresh(key), fresh_value()) for key in keys]


def time_pages(bucket: Bucket) -> Iterator[int]:
    """Yield the time of each page of a walk in nanoseconds of CPU."""
    cursor: int | None = None
    while True:
        start = thread_time_ns()
        page = bucket.page(cursor, PAGE_KEYS)
        yield thread_time_ns() - start
        cursor = page.cursor
        if cursor is None:
            return


def run_round(all_keys: Sequence[bytes], calls: Calls, walks: Walks, number: int) -> None:
    """Measure each case with new subjects. Walk the store before its keys are deleted, and sweep expired keys."""
    here = subjects()
    for case in CASES:
        if case.method == "delete":
            steps = {name: list(time_pages(here["store"])) for name in ("first walk", "second walk")}
            steps[f"sweep of {STEP_KEYS} expired keys"] = list(time_sweeps(all_keys))
            for name, times in steps.items():
                walks.setdefault(name, []).append((median(times) / 1e6, max(times) / 1e6, sum(times) / 1e6))
        keys = all_keys if case.subject == "store" else all_keys[: max(100, len(all_keys) // 10)]
        spent = {case.subject: 0, case.beside: 0}
        for turn, at in enumerate(range(0, len(keys), TURN_KEYS), number):
            for name in (case.subject, case.beside)[:: 1 if turn % 2 else -1]:
                spent[name] += time_calls(here[name], case.method, keys[at : at + TURN_KEYS])
        calls.setdefault(case.name, []).append((spent[case.subject] / len(keys), spent[case.beside] / len(keys)))


def time_sweeps(keys: Sequence[bytes]) -> Iterator[int]:
    """Yield the time of each step of a sweep in nanoseconds. In a provider, a call waits for at most one step."""
    now_ns = 0
    store = Store(clock=lambda: now_ns)
    bucket = store.bucket(b"bench")
    for key in islice(keys, 20 * STEP_KEYS):
        bucket.set(key, fresh_value(), ttl_ms=1)
    now_ns = 1_000_000
    while len(store):
        start = thread_time_ns()
        store.sweep(STEP_KEYS)
        yield thread_time_ns() - start


def where(keys: Sequence[bytes]) -> Iterator[str]:
    """Yield tables with the lines of the engine in which the time of a new key and of an overwrite goes.

    A timer of CPU time interrupts the calls. Python handles the interrupt at the next call or loop, so the time of a
    line that calls nothing counts for a line that follows it.
    """
    for name in ("new key", "overwrite"):
        samples: Counter[tuple[str, int]] = Counter()
        bucket = Store().bucket(b"bench")
        spent_ns = 0
        for _ in range(WHERE_PASSES):
            if name == "new key":
                bucket = Store().bucket(b"bench")
            else:
                time_calls(bucket, "set", keys)
            spent_ns += sampled(samples, bucket, keys)
        calls = WHERE_PASSES * len(keys)
        yield f"\nwhere the {spent_ns / calls:.0f} ns of each {name} go ({samples.total()} samples)"
        for (path, line), count in samples.most_common(LINES_SHOWN):
            text = linecache.getline(path, line).strip()
            ns_each = spent_ns * count / samples.total() / calls
            yield f"{ns_each:>5.0f} ns  {f'{Path(path).name}:{line}':<17} {text}"[:100]


def sampled(samples: Counter[tuple[str, int]], bucket: Bucket, keys: Sequence[bytes]) -> int:
    """Set each key once, and count the lines that a timer interrupts. Return the nanoseconds of CPU."""

    def note(_: int, frame: FrameType | None) -> None:
        assert frame is not None
        samples[frame.f_code.co_filename, frame.f_lineno or 0] += 1  # some instructions belong to no line

    before = signal.signal(signal.SIGPROF, note)
    spent_ns = 0
    try:
        for at in range(0, len(keys), TURN_KEYS):
            entries = entries_of(keys[at : at + TURN_KEYS])
            signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
            start = thread_time_ns()
            for key, value in entries:
                bucket.set(key, value)
            spent_ns += thread_time_ns() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return spent_ns


def measure_memory(count: int) -> list[tuple[float, float]]:
    """Fill and walk a store. Return the bytes per key of keys and of their order: resident, and by the formula.

    Call this function in a new process.
    """
    store = Store()
    bucket = store.bucket(b"bench")
    found = [(resident_bytes(os.getpid()), store.memory_bytes)]
    for number in range(count):
        bucket.set(b"%0*d" % (KEY_BYTES, number), fresh_value())
    found.append((resident_bytes(os.getpid()), store.memory_bytes))
    for _ in time_pages(bucket):
        pass
    found.append((resident_bytes(os.getpid()), store.memory_bytes))
    return [tuple((b - a) / count for a, b in zip(*pair, strict=True)) for pair in pairwise(found)]  # type: ignore[misc]


def tables_of(calls: Calls, walks: Walks, memory: Sequence[tuple[float, float]]) -> Iterator[ReportTable]:
    """Yield the tables. The last cells of a row are its bar and the verdict, both empty for none."""
    rows: list[tuple[str, ...]] = []
    for case in CASES:
        pairs = calls[case.name]
        own, other = (median(column) for column in zip(*pairs, strict=True))
        ratio = interval(own / other for own, other in pairs)
        cells = (f"{own:.0f}", f"{case.beside} {other:.0f}", ratio.text(RATIO))
        rows.append((case.name, *cells, *judged(ratio, case.bar)))
    yield ReportTable(("per call", "ns", "beside", "ratio", "bar", ""), rows)
    rows = []
    for name, rounds in walks.items():
        medians, slowest, totals = zip(*rounds, strict=True)
        cells = (interval(medians).text(MS), MS.text(median(slowest)), f"{median(totals):.0f}")
        rows.append((name, *cells, *judged(interval(medians), PAGE_MS_MAX if name.endswith("walk") else 0)))
    yield ReportTable((f"pages of {PAGE_KEYS:,} keys, steps", "median ms", "slowest", "all", "bar", ""), rows)
    rows = []
    bars = (("key and value", 0), ("place in the order", ORDER_BYTES_MAX))
    for (name, bytes_max), (resident, formula) in zip(bars, memory, strict=True):
        rows.append(
            (name, f"{resident:.0f}", f"{formula:.0f}", *judged(Interval(resident, resident, resident), bytes_max))
        )
    yield ReportTable(("memory per key", "resident B", "formula B", "bar", ""), rows)


def judged(found: Interval, bar: float) -> tuple[str, str]:
    """Return the cells of a bar and of the verdict."""
    return (f"{bar:g}", verdict(found, bar)) if bar else ("", "")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench engine",
        description="Compare the engine's store with a plain dict under one lock, and say where its time goes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer keys and rounds")
    add("--rounds", type=positive, metavar="N", help="number of rounds (default 5, quick 3)")
    add("--keys", type=positive, metavar="N", help="keys in the bucket (default 1000000, quick 100000)")
    add("--strict", action="store_true", help="exit with status 1 if a figure misses its bar")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.keys = options.keys or (100_000 if options.quick else 1_000_000)
    return options


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return its exit status."""
    options = parse(arguments)
    load_before = os.getloadavg()[0]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        memory = processes.submit(measure_memory, options.keys).result()
    keys = shuffled_keys(options.keys)
    calls: Calls = {}
    walks: Walks = {}
    tune_collector()
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
        run_round(keys, calls, walks, number)
    tables = list(tables_of(calls, walks, memory))
    print(
        f"{options.keys:,} keys of {KEY_BYTES} bytes, values of {VALUE_BYTES}; one thread; {options.rounds} rounds; "
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs"
    )
    print(f"load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after\n")
    print("\n\n".join("\n".join(table.terminal()) for table in tables))
    print("\n".join(where(keys)))
    return int(options.strict and any(row[-1] == "missed" for table in tables for row in table.rows))
