"""A comparison of the engine with a plain dict under one lock. It shows the cost of key order, limits and shards.

Engine and dict do the same work on one thread. They take turns of 10,000 calls, so other load on the machine affects
both equally. Keys and values are new objects, as a decoder creates them, so a key's hash is not cached yet. Each
figure is the median over the rounds. The spread shows the smallest and the largest figure of any round.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter_ns

from bench.micro.locked_dict import (
    KEY_BYTES,
    VALUE_BYTES,
    KeyedStore,
    LockedDict,
    fresh,
    fresh_value,
    shuffled_keys,
    tune_collector,
)
from keyvalue_engine import Bucket, Store

__all__ = ["main"]

TURN_KEYS = 10_000
PAGE_KEYS = 1_000
#: The bars, which no figure should exceed. The bars of calls are ratios: the store's time divided by the dict's time.
TIMES_MAX = {"new key": 2.5, "get": 2.0, "overwrite": 2.0}
PAGE_MS_MAX = 0.3
ORDER_BYTES_MAX = 110

EPILOG = """\
examples:
  scripts/bench engine               a million keys, five rounds: about a minute and 1 GB of memory
  scripts/bench engine --quick       a tenth of the keys, three rounds: a few seconds, for a first look
  scripts/bench engine --strict      exit status 1 if a figure is over its bar, for a pipeline

The table goes to standard output, and progress to standard error. "ok" and "over" compare a median with its bar. Do
not compare the ratios of small and large runs, because more of a small dict fits in the processor's caches.
"""


def time_gets(subject: KeyedStore, keys: Sequence[bytes]) -> int:
    """Get each key once. Return the time of the loop in nanoseconds."""
    keys = [fresh(key) for key in keys]
    get = subject.get
    start = perf_counter_ns()
    for key in keys:
        get(key)
    return perf_counter_ns() - start


def time_sets(subject: KeyedStore, keys: Sequence[bytes]) -> int:
    """Set each key once. Return the time of the loop in nanoseconds."""
    entries = [(fresh(key), fresh_value()) for key in keys]
    set_value = subject.set
    start = perf_counter_ns()
    for key, value in entries:
        set_value(key, value)
    return perf_counter_ns() - start


def time_pages(bucket: Bucket) -> Iterator[int]:
    """Yield the time of each page of a walk in nanoseconds."""
    cursor: int | None = None
    while True:
        start = perf_counter_ns()
        page = bucket.page(cursor, PAGE_KEYS)
        yield perf_counter_ns() - start
        cursor = page.cursor
        if cursor is None:
            return


@dataclass
class Comparison:
    """The nanoseconds per call for store and dict in each round."""

    store: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [store / plain for store, plain in zip(self.store, self.plain, strict=True)]


@dataclass
class Walks:
    """The median, slowest and total time of a walk's pages in each round, in milliseconds."""

    medians: list[float] = field(default_factory=list)
    maxima: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)

    def add(self, pages: Sequence[int]) -> None:
        self.medians.append(median(pages) / 1e6)
        self.maxima.append(max(pages) / 1e6)
        self.totals.append(sum(pages) / 1e6)


@dataclass
class Timings:
    calls: dict[str, Comparison] = field(default_factory=lambda: {name: Comparison() for name in TIMES_MAX})
    walks: dict[str, Walks] = field(default_factory=lambda: {"first walk": Walks(), "second walk": Walks()})
    skips_ms: list[float] = field(default_factory=list)


def run_round(keys: Sequence[bytes], report: Timings, is_store_first: bool) -> None:
    """Fill, read, overwrite and walk a new store and a new dict, in turns."""
    bucket = Store().bucket(b"bench")
    plain = LockedDict()
    timers: dict[str, Callable[[KeyedStore, Sequence[bytes]], int]] = {
        "new key": time_sets,
        "get": time_gets,
        "overwrite": time_sets,
    }
    for name, timer in timers.items():
        store_ns = plain_ns = 0
        for start in range(0, len(keys), TURN_KEYS):
            turn = keys[start : start + TURN_KEYS]
            if is_store_first:
                store_ns += timer(bucket, turn)
                plain_ns += timer(plain, turn)
            else:
                plain_ns += timer(plain, turn)
                store_ns += timer(bucket, turn)
            is_store_first = not is_store_first
        report.calls[name].store.append(store_ns / len(keys))
        report.calls[name].plain.append(plain_ns / len(keys))
    for walk in report.walks.values():
        walk.add(list(time_pages(bucket)))
    skips = []
    for offset in range(0, len(keys), max(PAGE_KEYS, len(keys) // 20)):
        start = perf_counter_ns()
        plain.page(offset, PAGE_KEYS)
        skips.append(perf_counter_ns() - start)
    report.skips_ms.append(median(skips) / 1e6)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes per key, as measured for the process and as computed by the engine's formula."""

    key: float
    key_formula: float
    order: float
    order_formula: float


def measure_memory(count: int) -> Memory:
    """Fill and walk a store, and return its memory per key. Call this function in a new process."""
    store = Store()
    bucket = store.bucket(b"bench")
    start = resident_bytes()
    for number in range(count):
        bucket.set(b"%0*d" % (KEY_BYTES, number), fresh_value())
    filled, filled_formula = resident_bytes() - start, store.memory_bytes
    for _ in time_pages(bucket):
        pass
    return Memory(
        filled / count,
        filled_formula / count,
        (resident_bytes() - start - filled) / count,
        (store.memory_bytes - filled_formula) / count,
    )


def verdict(figure: float, bar: float) -> str:
    return "ok" if figure <= bar else "over"


def lines_of(report: Timings, memory: Memory) -> Iterator[str]:
    """Yield the lines of the tables. Each line that has a bar ends in "ok" or "over"."""
    yield f"{'per call':<22}{'store':>10}{'dict+lock':>12}{'ratio':>9}{'spread':>16}{'bar':>10}"
    for name, comparison in report.calls.items():
        ratios, bar = comparison.ratios, TIMES_MAX[name]
        ratio = median(ratios)
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        times = f"{median(comparison.store):>7.0f} ns{median(comparison.plain):>9.0f} ns"
        yield f"{name:<22}{times}{ratio:>8.2f}x{spread:>16}{f'{bar:.1f}x':>10}  {verdict(ratio, bar)}"
    yield ""
    yield f"{f'page of {PAGE_KEYS:,} keys':<22}{'median':>10}{'slowest':>12}{'walk':>9}{'spread':>16}{'bar':>10}"
    for name, walks in report.walks.items():
        page_ms = median(walks.medians)
        spread = f"{min(walks.medians):.3f} .. {max(walks.medians):.3f}"
        times = f"{page_ms:>7.3f} ms{median(walks.maxima):>9.2f} ms{median(walks.totals):>6.0f} ms"
        yield f"{name:<22}{times}{spread:>16}{f'{PAGE_MS_MAX} ms':>10}  {verdict(page_ms, PAGE_MS_MAX)}"
    spread = f"{min(report.skips_ms):.3f} .. {max(report.skips_ms):.3f}"
    yield f"{'dict: skip and take':<22}{median(report.skips_ms):>7.3f} ms{'':>21}{spread:>16}"
    yield ""
    yield f"{'memory per key':<22}{'resident':>10}{'formula':>12}{'':>25}{'bar':>10}"
    yield f"{'key and value':<22}{memory.key:>8.0f} B{memory.key_formula:>10.0f} B"
    order = f"{memory.order:>8.0f} B{memory.order_formula:>10.0f} B"
    order_bar = f"{ORDER_BYTES_MAX} B"
    yield f"{'place in the order':<22}{order}{'':>25}{order_bar:>10}  {verdict(memory.order, ORDER_BYTES_MAX)}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench engine",
        description="Compare the engine's store with a plain dict under one lock, and measure its memory per key.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="number of rounds (default 5, quick 3)")
    parser.add_argument("--keys", type=int, metavar="N", help="keys in the bucket (default 1000000, quick 100000)")
    parser.add_argument("--quick", action="store_true", help="fewer keys and rounds")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure is over its bar")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 3 if options.quick else 5
    if options.keys is None:
        options.keys = 100_000 if options.quick else 1_000_000
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}; the minimum is 1")
    if not 1 <= options.keys <= 10**KEY_BYTES:
        parser.error(f"--keys: found {options.keys}, allowed 1 to {10**KEY_BYTES}")
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load() -> str:
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return its exit status."""
    options = parse(arguments)
    load_before = load()
    say(f"measuring the memory of {options.keys:,} keys, in a new process ...")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        memory = processes.submit(measure_memory, options.keys).result()
    keys = shuffled_keys(options.keys)
    report = Timings()
    tune_collector()
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds} ...")
        run_round(keys, report, is_store_first=number % 2 == 0)
    print(f"{options.keys:,} keys of {KEY_BYTES} bytes, values of {VALUE_BYTES}; one thread; {options.rounds} rounds")
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs"
    )
    print(f"load average {load_before} before, {load()} after\n")
    lines = list(lines_of(report, memory))
    print("\n".join(lines))
    return int(options.strict and any(line.endswith(" over") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
