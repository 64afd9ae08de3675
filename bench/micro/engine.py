"""The command `scripts/bench engine`: the store beside a plain dict under one lock, and where the store's time goes.

Both do the same work on one thread, in turns of 10,000 calls, and times are CPU times, so other load on the machine affects both equally. Keys
and values are new objects, as a decoder creates them, so a key's hash is not cached yet. Each round makes new stores.
Cases with deadlines and with `eviction = unused` run beside a store without them, with a tenth of the keys.
"""

from __future__ import annotations

import argparse
import linecache
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter_ns, thread_time_ns
from types import FrameType
from typing import Any, NamedTuple

from bench.micro.locked_dict import (
    KEY_BYTES,
    VALUE_BYTES,
    LockedDict,
    fresh,
    fresh_value,
    shuffled_keys,
    tune_collector,
)
from bench.report.figures import Figure, interval
from keyvalue_engine import Bucket, BucketOptions, Store, StoreOptions
from keyvalue_provider.keyvalue.expiry_sweep import STEP_KEYS

__all__ = ["main"]

TURN_KEYS = 10_000
BATCH_KEYS = 100
PAGE_KEYS = 1_000
HOUR_MS = 3_600_000
THREADS = (1, 2, 4)
#: In a mixed load, one call in this many is a set.
SET_ONE_IN = 20
#: The bars of pages, and of the memory of a key's place in the order.
PAGE_MS_MAX = 0.3
ORDER_BYTES_MAX = 110
SAMPLE_S = 0.001
WHERE_PASSES = 2
LINES_SHOWN = 12
MS, RATIO = Figure("ms", 1e-6, 3, 0), Figure("ratio", 1, 2, 0)

EPILOG = """\
examples:
  scripts/bench engine               a million keys, five rounds: about two minutes and 1 GB of memory
  scripts/bench engine --quick       a tenth of the keys, three rounds: a few seconds, for a first look
  scripts/bench engine --strict      exit status 1 if a figure is over its bar, for a pipeline

Tables go to standard output, and progress to standard error. A figure is over its bar if its whole interval is; it is
unclear if only its median is. Do not compare the ratios of small and large runs, because more of a small dict fits in
the processor's caches.
"""


class EngineCase(NamedTuple):
    """Calls to two subjects of a round in turns. The bar is the largest ratio of their times, or 0 for none."""

    name: str
    method: str
    subject: str
    beside: str
    bar: float = 0.0


#: The cases in the order of a round. Deletes empty both subjects, so the first increments create counters.
CASES = (
    EngineCase("new key", "set", "store", "dict", 2.5),
    EngineCase("get", "get", "store", "dict", 2.0),
    EngineCase("overwrite", "set", "store", "dict", 2.0),
    EngineCase(f"get-many of {BATCH_KEYS}, a key", "get_many", "store", "dict"),
    EngineCase(f"set-many of {BATCH_KEYS}, a key", "set_many", "store", "dict"),
    EngineCase("delete", "delete", "store", "dict"),
    EngineCase("increment, new counter", "increment", "store", "dict"),
    EngineCase("increment", "increment", "store", "dict"),
    EngineCase("new key, deadlines", "set", "timed", "untimed"),
    EngineCase("get, deadlines", "get", "timed", "untimed"),
    EngineCase("overwrite, deadlines", "set", "timed", "untimed"),
    EngineCase("new key, eviction unused", "set", "used", "dict"),
    EngineCase("get, eviction unused", "get", "used", "untimed"),
)


class Timings:
    """The figures of all rounds, in nanoseconds, by name."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[float, float]]] = {case.name: [] for case in CASES}
        self.walks: dict[str, list[tuple[float, float, float]]] = {}


def subjects() -> dict[str, Any]:
    """Return new subjects for a round."""
    return {
        "store": Store().bucket(b"bench"),
        "dict": LockedDict(),
        "timed": Store().bucket(b"bench", BucketOptions(ttl_ms=HOUR_MS)),
        "untimed": Store().bucket(b"bench"),
        "used": Store(StoreOptions(eviction="unused")).bucket(b"bench"),
    }


def arguments_of(method: str, keys: Sequence[bytes]) -> list[Any]:
    """Return the arguments of each call for these keys, as new objects."""
    if method == "set":
        return [(fresh(key), fresh_value()) for key in keys]
    if method == "increment":
        return [(fresh(key), 1) for key in keys]
    batches = [keys[at : at + BATCH_KEYS] for at in range(0, len(keys), BATCH_KEYS)]
    if method == "get_many":
        return [list(map(fresh, batch)) for batch in batches]
    if method == "set_many":
        return [{fresh(key): fresh_value() for key in batch} for batch in batches]
    return list(map(fresh, keys))


def time_calls(subject: Any, method: str, keys: Sequence[bytes]) -> int:
    """Call a method for all keys. Return the time of the loop in nanoseconds of CPU."""
    arguments, call = arguments_of(method, keys), getattr(subject, method)
    start = thread_time_ns()
    if method in ("set", "increment"):
        for key, value in arguments:
            call(key, value)
    else:
        for argument in arguments:
            call(argument)
    return thread_time_ns() - start


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


def run_round(all_keys: Sequence[bytes], found: Timings, number: int) -> None:
    """Measure each case with new subjects. Walk the store before its keys are deleted, and sweep expired keys."""
    here = subjects()
    for case in CASES:
        if case.method == "delete":
            skips = range(0, len(all_keys), max(PAGE_KEYS, len(all_keys) // 20))
            walks = {name: list(time_pages(here["store"])) for name in ("first walk", "second walk")}
            walks["dict: skip and take"] = [time_skip(here["dict"], offset) for offset in skips]
            walks[f"sweep of {STEP_KEYS} expired keys"] = list(time_sweeps(all_keys))
            for name, times in walks.items():
                found.walks.setdefault(name, []).append((median(times), max(times), sum(times)))
        keys = all_keys if case.subject == "store" else all_keys[: max(BATCH_KEYS, len(all_keys) // 10)]
        beside = LockedDict() if case.subject == "used" and case.method == "set" else here[case.beside]
        spent = {case.subject: 0, case.beside: 0}
        for turn, at in enumerate(range(0, len(keys), TURN_KEYS), number):
            pair = [(case.subject, here[case.subject]), (case.beside, beside)]
            for name, subject in pair[:: 1 if turn % 2 else -1]:
                spent[name] += time_calls(subject, case.method, keys[at : at + TURN_KEYS])
        found.calls[case.name].append((spent[case.subject] / len(keys), spent[case.beside] / len(keys)))


def time_skip(plain: LockedDict, offset: int) -> int:
    """Return the time of a page of the dict in nanoseconds of CPU."""
    start = thread_time_ns()
    plain.page(offset, PAGE_KEYS)
    return thread_time_ns() - start


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


def time_threads(keys: Sequence[bytes], method: str, threads: int) -> float:
    """Return the nanoseconds per call if this number of threads shares the calls for all keys."""
    bucket = Store().bucket(b"bench")
    time_calls(bucket, "set", keys)
    value = fresh_value()

    def mixed(part: Sequence[bytes]) -> None:
        for number, key in enumerate(part):
            if number % SET_ONE_IN:
                bucket.get(key)
            else:
                bucket.set(key, value)

    def act(part: Sequence[bytes]) -> None:
        time_calls(bucket, method, part)

    with ThreadPoolExecutor(threads) as pool:
        start = perf_counter_ns()
        list(pool.map(mixed if method == "mixed" else act, [keys[place::threads] for place in range(threads)]))
        return (perf_counter_ns() - start) / len(keys)


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
            arguments = arguments_of("set", keys[at : at + TURN_KEYS])
            signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
            start = thread_time_ns()
            for key, value in arguments:
                bucket.set(key, value)
            spent_ns += thread_time_ns() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return spent_ns


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure_memory(count: int) -> list[tuple[float, float]]:
    """Fill and walk a store. Return the bytes per key of keys and of their order: resident, and by the formula.

    Call this function in a new process.
    """
    store = Store()
    bucket = store.bucket(b"bench")
    found = [(resident_bytes(), store.memory_bytes)]
    for number in range(count):
        bucket.set(b"%0*d" % (KEY_BYTES, number), fresh_value())
    found.append((resident_bytes(), store.memory_bytes))
    for _ in time_pages(bucket):
        pass
    found.append((resident_bytes(), store.memory_bytes))
    return [tuple((b - a) / count for a, b in zip(*pair, strict=True)) for pair in pairwise(found)]  # type: ignore[misc]


def verdict(low: float, middle: float, bar: float) -> str:
    return "" if not bar else "ok" if middle <= bar else "unclear" if low <= bar else "over"


def lines_of(found: Timings, memory: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Yield the lines of the tables. Each line that has a bar ends in "ok", "unclear" or "over"."""
    yield f"{'per call':<26}{'ns':>7}{'beside':>17}{'ratio':>22}{'bar':>8}"
    for case in CASES:
        pairs = found.calls[case.name]
        ratio = interval(own / other for own, other in pairs)
        own, other = (median(column) for column in zip(*pairs, strict=True))
        text = f"{case.name:<26}{own:>7.0f}{f'{case.beside} {other:.0f}':>17}{ratio.text(RATIO):>22}{case.bar or '':>8}"
        yield f"{text}  {verdict(ratio.low, ratio.median, case.bar)}".rstrip()
    yield f"\n{f'pages of {PAGE_KEYS:,} keys, steps':<30}{'median ms':>24}{'slowest':>10}{'all':>9}{'bar':>6}"
    for name, rounds in found.walks.items():
        times, slowest, total = zip(*rounds, strict=True)
        bar = PAGE_MS_MAX if name.endswith("walk") else 0.0
        time = interval(times)
        text = f"{name:<30}{time.text(MS):>24}{median(slowest) / 1e6:>10.2f}{median(total) / 1e6:>9.0f}{bar or '':>6}"
        yield f"{text}  {verdict(time.low / 1e6, time.median / 1e6, bar)}".rstrip()
    yield f"\n{'memory per key':<26}{'resident B':>12}{'formula B':>12}{'bar':>8}"
    bars = (("key and value", 0), ("place in the order", ORDER_BYTES_MAX))
    for (name, bytes_max), (resident, formula) in zip(bars, memory, strict=True):
        text = f"{name:<26}{resident:>12.0f}{formula:>12.0f}{bytes_max or '':>8}"
        yield f"{text}  {verdict(resident, resident, bytes_max)}".rstrip()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench engine",
        description="Compare the engine's store with a plain dict under one lock, and say where its time goes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer keys and rounds")
    add("--rounds", type=int, metavar="N", help="number of rounds (default 5, quick 3)")
    add("--keys", type=int, metavar="N", help="keys in the bucket (default 1000000, quick 100000)")
    add("--strict", action="store_true", help="exit with status 1 if a figure is over its bar")
    options = parser.parse_args(arguments)
    parser.set_defaults(rounds=3 if options.quick else 5, keys=100_000 if options.quick else 1_000_000)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}; the minimum is 1")
    if not 1 <= options.keys <= 10**KEY_BYTES:
        parser.error(f"--keys: found {options.keys}, allowed 1 to {10**KEY_BYTES}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return its exit status."""
    options = parse(arguments)
    load_before = os.getloadavg()[0]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        memory = processes.submit(measure_memory, options.keys).result()
    keys = shuffled_keys(options.keys)
    found = Timings()
    tune_collector()
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
        run_round(keys, found, number)
    lines = list(lines_of(found, memory))
    print(
        f"{options.keys:,} keys of {KEY_BYTES} bytes, values of {VALUE_BYTES}; one thread; {options.rounds} rounds; "
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs"
    )
    print(f"load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after\n")
    print("\n".join((*lines, *where(keys), "\nns per call with threads")))
    some = keys[:100_000]
    for method in ("get", "set", "mixed"):
        cells = [f"{threads} threads {time_threads(some, method, threads):>6.0f}" for threads in THREADS]
        print(f"{method:<26}{'   '.join(cells)}")
    return int(options.strict and any(line.endswith(" over") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
