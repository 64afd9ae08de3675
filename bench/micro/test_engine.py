"""Calls of the engine, a million keys, one thread; before each round a plain dict under one lock does the same.

pytest-benchmark's table gives the time of a round of calls to the store. `extra_info` (with --benchmark-json=FILE) gives
nanoseconds a call of both, and the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns
from typing import TypeVar

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
from engine import Bucket, Store

KEYS = 1_000_000
ROUNDS = 50
TURN_KEYS = KEYS // ROUNDS

T = TypeVar("T")


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


def in_turns(
    benchmark: BenchmarkFixture,
    calls: int,
    arguments: Callable[[int], T],
    act_on_store: Callable[[T], None],
    act_on_plain: Callable[[T], None],
) -> None:
    """Benchmark rounds of `calls` on the store, each after the same on the dict. Arguments are made anew, untimed."""
    plain_ns: list[float] = []

    def setup() -> tuple[tuple[T], dict[str, object]]:
        turn = len(plain_ns) % ROUNDS
        mine, others = arguments(turn), arguments(turn)
        start = perf_counter_ns()
        act_on_plain(others)
        plain_ns.append((perf_counter_ns() - start) / calls)
        return (mine,), {}

    benchmark.pedantic(act_on_store, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:  # --benchmark-disable
        return
    store_ns = [seconds * 1e9 / calls for seconds in benchmark.stats.stats.data]
    ratios = [store / plain for store, plain in zip(store_ns, plain_ns, strict=True)]
    benchmark.extra_info["store ns a call"] = round(median(store_ns))
    benchmark.extra_info["dict+lock ns a call"] = round(median(plain_ns))
    benchmark.extra_info["ratio"] = round(median(ratios), 3)


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
