"""Batches under threads, and the stripes that they take. The model (test_model.py) tests what a batch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from threading import Lock, Thread
from typing import Any

import pytest

from keyvalue_engine import Change, Entry, Store, StoreOptions
from tests.engine.races import TIMEOUT_S, AnnouncedLock, placed, run_together


def numbered(count: int, value: bytes = b"v") -> dict[bytes, bytes]:
    return {b"%d" % number: value for number in range(count)}


class RecordedStripe:
    """A stripe that records each time it is taken."""

    def __init__(self, stripe: Lock, number: int, taken: list[int]) -> None:
        self.stripe = stripe
        self.number = number
        self.taken = taken

    def acquire(self) -> bool:
        self.taken.append(self.number)
        assert len(self.taken) < 100, "the batch never ends"
        return self.stripe.acquire()

    def release(self) -> None:
        self.stripe.release()


def test_a_batch_takes_each_stripe_once_and_in_the_order_of_the_ring() -> None:
    store = Store(StoreOptions(shard_keys_max=3, shards_min=1), hash_function=placed)
    bucket = store.bucket(b"b")
    bucket.set_many({b"0": b"", b"1": b"", b"2": b"", b"3": b""})
    taken: list[int] = []
    shards: list[Any] = [*store._tables.by_name[b"b"].shards()]
    assert len(shards) == 4
    for number, shard in enumerate(shards):
        shard.stripe = RecordedStripe(shard.stripe, number, taken)
    bucket.set_many({b"3": b"", b"0": b"", b"2": b"", b"3 more": b"", b"0 more": b""})
    assert taken == [0, 2, 3]
    assert bucket.delete_many([b"3", b"1", b"3 more", b"3"]) == 3
    assert taken == [0, 2, 3, 1, 3]
    bucket.get_many([b"3", b"0", b"2"])
    assert taken == [0, 2, 3, 1, 3], "a reader takes no stripe"


@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_a_get_many_that_meets_a_running_batch_waits_for_its_end(shard_keys_max: int) -> None:
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), hash_function=placed)
    bucket = store.bucket(b"b")
    keys = [b"0", b"1", b"2", b"3"]
    bucket.set_many(dict.fromkeys(keys, b"old"))
    table: Any = store._tables.by_name[b"b"]
    batch = table._batch = AnnouncedLock(table._batch)
    found: list[list[bytes | None]] = []
    reader = Thread(target=lambda: found.append(bucket.get_many(keys)))

    def read_meanwhile(change: Change, name: bytes, key: bytes, entry: Entry | None) -> None:
        if key == b"1":
            reader.start()
            assert batch.awaited.wait(TIMEOUT_S)

    store.observe(lambda name: read_meanwhile)
    bucket.set_many(dict.fromkeys(keys, b"new"))
    reader.join(TIMEOUT_S)
    assert found == [[b"new"] * 4]


# Threads


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shard_keys_max", [1, 7, 4_096])
def test_a_batch_is_seen_whole_or_not_at_all(shard_keys_max: int, strict: bool) -> None:
    """Split shards meanwhile, and empty and recreate the bucket."""
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1, strict_buckets=strict), secret=bytes(16))
    bucket = store.bucket(b"b")
    keys = [*numbered(20)]
    bucket.set_many(numbered(20, b"first"))
    writers_left = [None] * 6

    def tell_end(write: Callable[[], None]) -> None:
        try:
            write()
        finally:
            writers_left.pop()

    def write(writer: int) -> None:
        rng = Random(writer)
        for step in range(150):
            bucket.set_many(dict.fromkeys(rng.sample(keys, 20), b"%d %d" % (writer, step)))

    def empty() -> None:
        for _ in range(150):
            bucket.delete_many(keys)

    def split() -> None:
        for number in range(600):
            bucket.set(b"more %d" % (number % 40), b"v")
            bucket.delete(b"more %d" % ((number + 20) % 40))
        bucket.delete_many([b"more %d" % number for number in range(40)])

    def read() -> None:
        while writers_left:
            assert len({*bucket.get_many(keys)}) == 1

    writers: list[Callable[[], None]] = [*[partial(write, number) for number in range(3)], *[empty] * 2, split]
    run_together(*[partial(tell_end, writer) for writer in writers], *[read] * 3)
    store.check()
    bucket.delete_many(keys)
    assert store.bucket_names() == []
    assert len(store) == 0


@pytest.mark.usefixtures("hasty_threads")
def test_batches_of_threads_that_empty_and_refill_a_bucket_lose_no_write() -> None:
    store = Store(StoreOptions(shard_keys_max=4, shards_min=1), secret=bytes(16))

    def act(thread: int) -> None:
        bucket = store.bucket(b"b")
        keys = [b"%d %d" % (thread, number) for number in range(5)]
        for step in range(400):
            bucket.set_many(dict.fromkeys(keys, b"%d" % step))
            assert bucket.get_many(keys) == [b"%d" % step] * 5
            assert bucket.increment(keys[0], 1) == step + 1
            assert bucket.delete_many(keys) == 5
            assert bucket.get_many(keys) == [None] * 5

    run_together(*[lambda n=n: act(n) for n in range(8)])
    store.check()
    assert (store.bucket_names(), store.memory_bytes) == ([], 0)
