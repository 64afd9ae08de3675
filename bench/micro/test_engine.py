"""Calls of the engine, a million keys, one thread; a plain dict under one lock does the same in turns.

Calls on keys with deadlines are beside the same on keys without. pytest-benchmark's table gives the time of a round of calls to the store.
`extra_info` (with --benchmark-json=FILE) gives nanoseconds a call of both (of a batch: a key), and the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.engine import (
    PAGE_KEYS,
    VALUE_BYTES,
    LockedDict,
    Subject,
    fresh,
    shuffled_keys,
    tune_collector,
)
from bench.micro.turns import ROUNDS, in_turns
from bench.workload import COUNT_FROM
from engine import Bucket, BucketOptions, Store
from provider.sweep import STEP_KEYS

KEYS = 1_000_000
TURN_KEYS = KEYS // ROUNDS
BATCH_KEYS = 100
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Subjects:
    keys: list[bytes]
    store: Store
    bucket: Bucket
    plain: LockedDict


def value() -> bytes:
    return bytes(bytearray(VALUE_BYTES))


@pytest.fixture(scope="module")
def keys() -> Iterator[list[bytes]]:
    thresholds = gc.get_threshold()
    made = shuffled_keys(KEYS)
    tune_collector()
    yield made
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="module")
def filled(keys: list[bytes]) -> Subjects:
    store = Store()
    subjects = Subjects(keys, store, store.bucket(b"bench"), LockedDict())
    for key in keys:
        subjects.bucket.set(fresh(key), value())
        subjects.plain.set(fresh(key), value())
    return subjects


def keys_of_turn(keys: list[bytes]) -> Callable[[int], list[bytes]]:
    return lambda turn: [fresh(key) for key in keys[turn * TURN_KEYS : (turn + 1) * TURN_KEYS]]


def entries_of_turn(keys: list[bytes]) -> Callable[[int], list[tuple[bytes, bytes]]]:
    return lambda turn: [(key, value()) for key in keys_of_turn(keys)(turn)]


def get_all(subject: Subject) -> Callable[[list[bytes]], None]:
    get = subject.get

    def act(keys: list[bytes]) -> None:
        for key in keys:
            get(key)

    return act


def set_all(subject: Subject) -> Callable[[list[tuple[bytes, bytes]]], None]:
    set_value = subject.set

    def act(entries: list[tuple[bytes, bytes]]) -> None:
        for key, value in entries:
            set_value(key, value)

    return act


def batches(keys: list[bytes]) -> list[list[bytes]]:
    return [keys[at : at + BATCH_KEYS] for at in range(0, len(keys), BATCH_KEYS)]


def test_new_key(benchmark: BenchmarkFixture, keys: list[bytes]) -> None:
    """From the first key to the millionth, splits and all."""
    store, plain = Store(), LockedDict()
    in_turns(benchmark, TURN_KEYS, entries_of_turn(keys), set_all(store.bucket(b"bench")), set_all(plain))
    assert len(store) % TURN_KEYS == 0
    assert len(store) > 0


def test_get(benchmark: BenchmarkFixture, filled: Subjects) -> None:
    in_turns(benchmark, TURN_KEYS, keys_of_turn(filled.keys), get_all(filled.bucket), get_all(filled.plain))
    assert all(map(filled.bucket.exists, filled.keys))


def test_overwrite(benchmark: BenchmarkFixture, filled: Subjects) -> None:
    memory_bytes = filled.store.memory_bytes
    in_turns(benchmark, TURN_KEYS, entries_of_turn(filled.keys), set_all(filled.bucket), set_all(filled.plain))
    assert len(filled.store) == KEYS
    assert filled.store.memory_bytes == memory_bytes


def test_increment(benchmark: BenchmarkFixture, keys: list[bytes]) -> None:
    store, plain = Store(), LockedDict()
    bucket = store.bucket(b"bench")

    def increment_all(increment: Callable[[bytes, int], int]) -> Callable[[list[bytes]], None]:
        def act(keys: list[bytes]) -> None:
            for key in keys:
                increment(key, 1)

        return act

    for key in keys:
        bucket.increment(key, COUNT_FROM)
        plain.increment(key, COUNT_FROM)
    in_turns(benchmark, TURN_KEYS, keys_of_turn(keys), increment_all(bucket.increment), increment_all(plain.increment))
    made = sum(int(bucket.get(key) or 0) for key in keys) - KEYS * COUNT_FROM
    assert made > 0
    assert made % TURN_KEYS == 0


def test_get_many(benchmark: BenchmarkFixture, filled: Subjects) -> None:
    def get_batches(subject: Bucket | LockedDict) -> Callable[[list[list[bytes]]], None]:
        def act(batches: list[list[bytes]]) -> None:
            for batch in batches:
                subject.get_many(batch)

        return act

    keys = keys_of_turn(filled.keys)
    in_turns(
        benchmark, TURN_KEYS, lambda turn: batches(keys(turn)), get_batches(filled.bucket), get_batches(filled.plain)
    )
    assert None not in filled.bucket.get_many(filled.keys)


def test_set_many(benchmark: BenchmarkFixture, filled: Subjects) -> None:
    def set_batches(subject: Bucket | LockedDict) -> Callable[[list[dict[bytes, bytes]]], None]:
        def act(batches: list[dict[bytes, bytes]]) -> None:
            for batch in batches:
                subject.set_many(batch)

        return act

    def entries(turn: int) -> list[dict[bytes, bytes]]:
        return [{key: value() for key in batch} for batch in batches(keys_of_turn(filled.keys)(turn))]

    in_turns(benchmark, TURN_KEYS, entries, set_batches(filled.bucket), set_batches(filled.plain))
    assert len(filled.store) == KEYS


@pytest.fixture(scope="module")
def timed(keys: list[bytes]) -> Bucket:
    """A bucket of which every key has a deadline."""
    bucket = Store().bucket(b"bench", BucketOptions(ttl_ms=HOUR_MS))
    for key in keys:
        bucket.set(fresh(key), value())
    return bucket


def test_get_with_deadlines(benchmark: BenchmarkFixture, filled: Subjects, timed: Bucket) -> None:
    arguments = keys_of_turn(filled.keys)
    in_turns(benchmark, TURN_KEYS, arguments, get_all(timed), get_all(filled.bucket), "timed", "untimed")
    assert all(map(timed.exists, filled.keys))


def test_overwrite_with_deadlines(benchmark: BenchmarkFixture, filled: Subjects, timed: Bucket) -> None:
    arguments = entries_of_turn(filled.keys)
    in_turns(benchmark, TURN_KEYS, arguments, set_all(timed), set_all(filled.bucket), "timed", "untimed")
    assert None not in map(timed.ttl_ms, filled.keys)


def test_sweep(benchmark: BenchmarkFixture, keys: list[bytes]) -> None:
    """One step as the provider makes it, of keys that are all due: what a call waits for at the most."""
    now_ns = 0
    store = Store(clock=lambda: now_ns)
    bucket = store.bucket(b"bench")
    due = ROUNDS * STEP_KEYS
    for key in keys[: 2 * due]:
        bucket.set(fresh(key), value(), ttl_ms=1)
    now_ns = 1_000_000
    benchmark.pedantic(store.sweep, args=(STEP_KEYS,), rounds=ROUNDS)  # type: ignore[no-untyped-call]
    if benchmark.stats is not None:  # not with --benchmark-disable
        assert store.expired_keys == due
        benchmark.extra_info["slowest us"] = round(benchmark.stats.stats.max * 1e6)
        benchmark.extra_info["ns a key"] = round(benchmark.stats.stats.median * 1e9 / STEP_KEYS)


def test_page(benchmark: BenchmarkFixture, filled: Subjects) -> None:
    """A page of an order that exists, beside what a dict has to offer: skip and take, from another offset each round."""
    walked = list(filled.bucket.keys())
    assert len(walked) == KEYS
    cursors: list[int | None] = []
    cursor: int | None = None
    for number in range(KEYS // PAGE_KEYS):
        if number % (KEYS // PAGE_KEYS // ROUNDS) == 0:
            cursors.append(cursor)
        cursor = filled.bucket.page(cursor, PAGE_KEYS).cursor
    of_store = iter(cursors * 2)
    of_plain = iter(range(0, 2 * KEYS, KEYS // ROUNDS))

    def page_of_store(_: int) -> None:
        filled.bucket.page(next(of_store), PAGE_KEYS)

    def page_of_plain(_: int) -> None:
        filled.plain.page(next(of_plain) % KEYS, PAGE_KEYS)

    in_turns(benchmark, 1, lambda turn: turn, page_of_store, page_of_plain)
