"""Calls to the engine on one thread, in turns with calls to a plain dict under one lock.

Calls for keys with deadlines take turns with the same calls for keys without deadlines.

pytest-benchmark's table shows the time of one round of calls to the store. `extra_info` is printed below the table,
with the nanoseconds per call for store and dict, and the median of the rounds' ratios. For batches, it has the
nanoseconds per key.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.workload import COUNT_FROM
from bench.micro.locked_dict import LockedDict, fresh, fresh_value, shuffled_keys
from bench.micro.store_beside_dict import PAGE_KEYS
from bench.micro.stores import TURN_KEYS, Filled, call_all, entries_of_turn, keys_of_turn, set_all
from bench.micro.turns import ROUNDS, in_turns
from keyvalue_engine import Bucket, BucketOptions, Store, StoreOptions
from keyvalue_provider.keyvalue.expiry_sweep import STEP_KEYS

KEYS = 1_000_000
FILL_KEYS = KEYS // ROUNDS
BATCH_KEYS = 100
USED_KEYS = 20_000
HOUR_MS = 3_600_000


def batches(keys: list[bytes]) -> list[list[bytes]]:
    return [keys[at : at + BATCH_KEYS] for at in range(0, len(keys), BATCH_KEYS)]


def test_get(benchmark: BenchmarkFixture, filled: Filled) -> None:
    benchmark.group = f"engine: {TURN_KEYS:,} gets"
    in_turns(benchmark, TURN_KEYS, keys_of_turn(filled.keys), call_all(filled.bucket.get), call_all(filled.plain.get))
    assert all(map(filled.bucket.exists, filled.keys))


def test_get_of_used_keys(benchmark: BenchmarkFixture) -> None:
    """Get keys of a store with `eviction = unused`, beside a store without eviction."""
    benchmark.group = f"engine: {TURN_KEYS:,} gets of used keys"
    keys = [b"key-%08d" % number for number in range(USED_KEYS)]
    unused, none = (Store(StoreOptions(eviction=eviction)).bucket(b"b") for eviction in ("unused", "none"))
    for bucket in (unused, none):
        bucket.set_many(dict.fromkeys(keys, bytes(64)))
    assert None not in unused.get_many(keys)
    in_turns(benchmark, TURN_KEYS, keys_of_turn(keys), call_all(unused.get), call_all(none.get), "unused", "none")


def test_set_new(benchmark: BenchmarkFixture, filled: Filled) -> None:
    """Add keys to a filled store. The new keys are deleted after each round."""
    benchmark.group = f"engine: {TURN_KEYS:,} sets of new keys"

    def undo(entries: list[tuple[bytes, bytes]]) -> None:
        filled.remove([key for key, _ in entries])

    entries = entries_of_turn(filled.absent)
    in_turns(benchmark, TURN_KEYS, entries, set_all(filled.bucket), set_all(filled.plain), undo=undo)
    assert len(filled.store) == len(filled.keys)


def test_overwrite(benchmark: BenchmarkFixture, filled: Filled) -> None:
    benchmark.group = f"engine: {TURN_KEYS:,} sets of existing keys"
    memory_bytes = filled.store.memory_bytes
    in_turns(benchmark, TURN_KEYS, entries_of_turn(filled.keys), set_all(filled.bucket), set_all(filled.plain))
    assert len(filled.store) == len(filled.keys)
    assert filled.store.memory_bytes == memory_bytes


def test_delete(benchmark: BenchmarkFixture, filled: Filled) -> None:
    """Delete existing keys. The deleted keys are set again after each round."""
    benchmark.group = f"engine: {TURN_KEYS:,} deletes of existing keys"
    keys = keys_of_turn(filled.keys)
    in_turns(benchmark, TURN_KEYS, keys, call_all(filled.bucket.delete), call_all(filled.plain.delete), undo=filled.put)
    assert all(map(filled.bucket.exists, filled.keys))
    assert len(filled.store) == len(filled.keys)


def test_fill(benchmark: BenchmarkFixture) -> None:
    """Fill an empty store with a million keys. The time includes the splitting of shards."""
    benchmark.group = f"engine: {FILL_KEYS:,} sets of new keys, up to a million"
    store, plain = Store(), LockedDict()
    entries = entries_of_turn(shuffled_keys(KEYS), FILL_KEYS)
    in_turns(benchmark, FILL_KEYS, entries, set_all(store.bucket(b"bench")), set_all(plain))
    assert len(store) % FILL_KEYS == 0
    assert len(store) > 0


def test_increment(benchmark: BenchmarkFixture, million: Filled) -> None:
    benchmark.group = f"engine: {TURN_KEYS:,} increments"
    keys, bucket, plain = million.keys, Store().bucket(b"bench"), LockedDict()

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


def test_get_many(benchmark: BenchmarkFixture, million: Filled) -> None:
    benchmark.group = f"engine: get-many, {TURN_KEYS // BATCH_KEYS} batches of {BATCH_KEYS}"

    def get_batches(subject: Bucket | LockedDict) -> Callable[[list[list[bytes]]], None]:
        def act(batches: list[list[bytes]]) -> None:
            for batch in batches:
                subject.get_many(batch)

        return act

    keys = keys_of_turn(million.keys)
    in_turns(
        benchmark, TURN_KEYS, lambda turn: batches(keys(turn)), get_batches(million.bucket), get_batches(million.plain)
    )
    assert None not in million.bucket.get_many(million.keys)


def test_set_many(benchmark: BenchmarkFixture, million: Filled) -> None:
    benchmark.group = f"engine: set-many, {TURN_KEYS // BATCH_KEYS} batches of {BATCH_KEYS}"

    def set_batches(subject: Bucket | LockedDict) -> Callable[[list[dict[bytes, bytes]]], None]:
        def act(batches: list[dict[bytes, bytes]]) -> None:
            for batch in batches:
                subject.set_many(batch)

        return act

    def entries(turn: int) -> list[dict[bytes, bytes]]:
        return [{key: fresh_value() for key in batch} for batch in batches(keys_of_turn(million.keys)(turn))]

    in_turns(benchmark, TURN_KEYS, entries, set_batches(million.bucket), set_batches(million.plain))
    assert len(million.store) == KEYS


@pytest.fixture(scope="module")
def timed(million: Filled) -> Bucket:
    """Return a bucket in which every key has a deadline."""
    bucket = Store().bucket(b"bench", BucketOptions(ttl_ms=HOUR_MS))
    for key in million.keys:
        bucket.set(fresh(key), fresh_value())
    return bucket


def test_get_with_deadlines(benchmark: BenchmarkFixture, million: Filled, timed: Bucket) -> None:
    benchmark.group = f"engine: {TURN_KEYS:,} gets of keys with deadlines"
    arguments = keys_of_turn(million.keys)
    in_turns(benchmark, TURN_KEYS, arguments, call_all(timed.get), call_all(million.bucket.get), "timed", "untimed")
    assert all(map(timed.exists, million.keys))


def test_overwrite_with_deadlines(benchmark: BenchmarkFixture, million: Filled, timed: Bucket) -> None:
    benchmark.group = f"engine: {TURN_KEYS:,} sets of keys with deadlines"
    arguments = entries_of_turn(million.keys)
    in_turns(benchmark, TURN_KEYS, arguments, set_all(timed), set_all(million.bucket), "timed", "untimed")
    assert None not in map(timed.ttl_ms, million.keys)


def test_sweep(benchmark: BenchmarkFixture, million: Filled) -> None:
    """Remove expired keys in steps of the same size as in the provider. A call waits for at most one step."""
    benchmark.group = f"engine: one step of a sweep, {STEP_KEYS} keys"
    now_ns = 0
    store = Store(clock=lambda: now_ns)
    bucket = store.bucket(b"bench")
    due = ROUNDS * STEP_KEYS
    for key in million.keys[: 2 * due]:
        bucket.set(fresh(key), fresh_value(), ttl_ms=1)
    now_ns = 1_000_000
    benchmark.pedantic(store.sweep, args=(STEP_KEYS,), rounds=ROUNDS)  # type: ignore[no-untyped-call]
    if benchmark.stats is not None:  # not with --benchmark-disable
        assert store.expired_keys == due
        benchmark.extra_info["slowest us"] = round(benchmark.stats.stats.max * 1e6)
        benchmark.extra_info["ns a key"] = round(benchmark.stats.stats.median * 1e9 / STEP_KEYS)


def test_page(benchmark: BenchmarkFixture, million: Filled) -> None:
    """Read pages of a bucket whose key order already exists. The dict skips to another offset in each round."""
    benchmark.group = f"engine: page of {PAGE_KEYS:,} keys"
    walked = list(million.bucket.keys())
    assert len(walked) == KEYS
    cursors: list[int | None] = []
    cursor: int | None = None
    for number in range(KEYS // PAGE_KEYS):
        if number % (KEYS // PAGE_KEYS // ROUNDS) == 0:
            cursors.append(cursor)
        cursor = million.bucket.page(cursor, PAGE_KEYS).cursor
    of_store = iter(cursors * 2)
    of_plain = iter(range(0, 2 * KEYS, KEYS // ROUNDS))

    def page_of_store(_: int) -> None:
        million.bucket.page(next(of_store), PAGE_KEYS)

    def page_of_plain(_: int) -> None:
        million.plain.page(next(of_plain) % KEYS, PAGE_KEYS)

    in_turns(benchmark, 1, lambda turn: turn, page_of_store, page_of_plain)
