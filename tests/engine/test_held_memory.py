"""Everything that a store holds is counted: a hostile mix of calls, with the allocated memory measured on the way.

tests/engine/test_memory.py compares the formula for many equal keys. Here the keys come and go, and are up to 64 KiB
long, so that memory which is held but not counted stands out.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from keyvalue_engine import Bucket, LimitError, NoSuchBucketError, Store, StoreOptions
from keyvalue_engine.entry import ORDER_BYTES, ORDER_OBJECT_BYTES
from keyvalue_engine.table import MERGE_SHARE
from tests.engine.clock import Clock
from tests.engine.entries import shards_of

# Coverage's own data would count as memory, too.
pytestmark = pytest.mark.bulk

MIB = 1024 * 1024
KEY_LENGTHS = [1, 8, 12, 12, 40, 200, 4_000, 65_000]
VALUE_LENGTHS = [0, 10, 100, 5_000]


@contextmanager
def allocated() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes allocated since the start."""
    gc.collect()
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()


class Adversary:
    """A caller that makes a random mix of calls. It forgets its keys, since they would be measured too."""

    def __init__(self, store: Store, clock: Clock, seed: int, buckets: int) -> None:
        self.rng = Random(seed)
        self.store, self.clock = store, clock
        self.names = [b"bucket %d" % number for number in range(buckets)]
        self.refused = 0

    def key(self) -> bytes:
        """Return one of a thousand keys. Each has its own length."""
        number = self.rng.randrange(1_000)
        return b"%d" % number + b"k" * KEY_LENGTHS[number % len(KEY_LENGTHS)]

    def act(self, bucket: Bucket, *, grows: bool) -> None:
        rng = self.rng
        kind = rng.random()
        if kind < (0.5 if grows else 0.05):
            ttl_ms = rng.choice([None, None, 1, 50, 100_000])
            bucket.set(self.key(), bytes(rng.choice(VALUE_LENGTHS)), ttl_ms)
        elif kind < 0.8:
            bucket.delete(self.key())
        elif kind < 0.85:
            bucket.delete_many([self.key() for _ in range(20)])
        elif kind < 0.88 and grows:
            bucket.set_many({self.key(): b"v" for _ in range(5)})
        elif kind < 0.93:
            bucket.persist(self.key())
        elif kind < 0.97:
            bucket.page(rng.choice([None, rng.getrandbits(64)]), rng.choice([1, 1_000]))
        else:
            self.clock.move_ms(rng.choice([0, 1, 60]))
            self.store.sweep(1_000)

    def run(self, steps: int, *, grows: bool) -> None:
        for _ in range(steps):
            try:
                self.act(self.store.bucket(self.rng.choice(self.names)), grows=grows)
            except LimitError:
                self.refused += 1


@pytest.mark.parametrize("memory_bytes_max", [None, 4 * MIB])
@pytest.mark.parametrize(("buckets", "shard_keys_max"), [(1, 2_048), (3, 64), (100, 2_048)])
def test_a_hostile_caller_takes_no_memory_that_is_not_counted(
    buckets: int, shard_keys_max: int, memory_bytes_max: int | None
) -> None:
    clock = Clock()
    with allocated() as allocated_bytes:
        store = Store(
            StoreOptions(memory_bytes_max=memory_bytes_max, shard_keys_max=shard_keys_max, shards_min=4), clock=clock
        )
        adversary = Adversary(store, clock, buckets, buckets)
        for grows in (True, True, False, True, False, False):
            for _ in range(10):
                adversary.run(300, grows=grows)
                held_bytes, counted_bytes = allocated_bytes(), store.memory_bytes
                assert held_bytes <= 1.5 * counted_bytes + MIB / 2
                if memory_bytes_max is not None:
                    assert counted_bytes <= 1.1 * memory_bytes_max
            store.check()
        assert (adversary.refused > 0) is (memory_bytes_max is not None and buckets > 1)
        for name in adversary.names:
            for key in store.bucket(name):
                store.bucket(name).delete(key)
        gc.collect()
        assert (len(store), store.memory_bytes) == (0, 0)
        assert allocated_bytes() < MIB / 2


def test_a_bucket_that_was_large_takes_little_memory() -> None:
    with allocated() as allocated_bytes:
        store = Store()
        bucket = store.bucket(b"b")
        for number in range(30_000):
            bucket.set(b"%d" % number, b"v")
        bucket.page()
        assert len({*shards_of(store)}) > 2_048 // 128
        for number in range(2_048 // MERGE_SHARE, 30_000):
            bucket.delete(b"%d" % number)
        store.check()
        assert len(shards_of(store)) == 1
        assert sorted(bucket.keys()) == sorted(b"%d" % number for number in range(2_048 // MERGE_SHARE))
        gc.collect()
        assert allocated_bytes() <= 1.5 * store.memory_bytes + 20_000


def test_pages_take_no_memory_past_the_limit_and_writes_get_the_memory_of_pages_back() -> None:
    names = [b"%d" % number for number in range(10)]
    plain = Store()
    for name in names:
        plain.bucket(name).set_many({b"%03d" % number: b"v" for number in range(100)})
    room_bytes = 3 * (ORDER_OBJECT_BYTES + 100 * ORDER_BYTES) + 1
    limit = plain.memory_bytes + room_bytes
    store = Store(StoreOptions(memory_bytes_max=limit))
    for name in names:
        store.bucket(name).set_many({b"%03d" % number: b"v" for number in range(100)})
    for _ in range(3):
        for name in names:
            assert sorted(store.bucket(name).page().keys) == [b"%03d" % number for number in range(100)]
        assert store.memory_bytes == limit - 1, "three of the ten orders are kept"
        store.check()
    for length in (1_000, 5_000, 10_000, 15_000):
        store.bucket(b"0").set(b"value", bytes(length))
        assert store.memory_bytes <= limit
        store.check()
    with pytest.raises(LimitError, match=r"memory_bytes_max"):
        store.bucket(b"0").set(b"value", bytes(room_bytes))
    assert store.memory_bytes < plain.memory_bytes + 16_000, "a write that is refused has dropped all orders"


def test_a_partial_page_does_the_work_of_a_page_whatever_has_expired() -> None:
    clock = Clock()
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    for number in range(60_000):
        bucket.set(b"%d" % number, b"v", ttl_ms=1)
    for number in range(10):
        bucket.set(b"stays %d" % number, b"v")
    clock.move_ms(1)
    cursor: int | None = None
    found: list[bytes] = []
    while True:
        expired_keys = store.expired_keys
        page = bucket.partial_page(cursor)
        assert store.expired_keys - expired_keys < 4_096 + 2_048
        found += page.keys
        if page.cursor is None:
            break
        assert page.cursor > (cursor or 0)
        cursor = page.cursor
    assert sorted(found) == [b"stays %d" % number for number in range(10)]
    store.check()


@pytest.mark.parametrize("value_bytes", [10, 1_000, 90_000])
def test_names_of_emptied_buckets_give_way_to_keys(value_bytes: int) -> None:
    """They took all memory for ever, although the store held no key, and each write was refused."""
    store = Store(StoreOptions(strict_buckets=True, memory_bytes_max=100_000))
    for name_bytes in (1_000, 1):
        for number in range(1_000):
            bucket = store.bucket(b"%d" % number + b"n" * name_bytes)
            bucket.set(b"k", b"")
            bucket.delete(b"k")
    assert store.memory_bytes > 90_000
    store.check()
    store.bucket(b"b").set(b"k", bytes(value_bytes))
    store.check()
    with pytest.raises(NoSuchBucketError):
        store.bucket(b"0" + b"n" * 1_000).get(b"k")  # the oldest names are forgotten first
    if value_bytes <= 1_000:
        assert store.bucket(b"999n").get(b"k") is None
