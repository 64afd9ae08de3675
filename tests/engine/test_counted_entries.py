"""Counts ahead: no write is refused while there is room, no limit is exceeded, and what a store shows is exact.

test_model.py and test_commit.py make any calls with counts ahead, and test_interrupt.py interrupts them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from keyvalue_engine import BucketOptions, LimitError, Quota, Reach, Store, StoreOptions
from keyvalue_engine.counted_entries import AHEAD_KEYS, SHARD_KEYS_MIN
from keyvalue_engine.entry import ORDER_BYTES, ORDER_OBJECT_BYTES, entry_size
from keyvalue_engine.ledger import HoldsAhead
from tests.engine.entries import shards_of
from tests.engine.races import run_together

KEYS = 1_000
VALUE = bytes(64)


def filled(options: StoreOptions, keys: int = KEYS) -> Store:
    """Return a store with three buckets, all of which hold room ahead."""
    store = Store(options)
    for name in (b"1", b"2", b"3"):
        bucket = store.bucket(name)
        for number in range(keys):
            bucket.set(b"%012d" % number, VALUE)
    return store


def ahead_keys(store: Store) -> int:
    shards = [shard for name in store.bucket_names() for shard in shards_of(store, name)]
    return sum(shard.counted_keys - len(shard.entries) for shard in shards)


def test_a_key_is_counted_without_the_ledger() -> None:
    store = filled(StoreOptions())
    bucket, ledger = store.bucket(b"1"), store._tables.ledger
    bucket.set(b"next", VALUE)
    counted, memory_bytes = (ledger.keys, ledger.memory_bytes), store.memory_bytes
    bucket.set(b"after", VALUE)
    bucket.set(b"after", VALUE + VALUE)
    bucket.delete(b"next")
    assert (ledger.keys, ledger.memory_bytes) == counted
    assert (len(store), store.memory_bytes) == (3 * KEYS + 1, memory_bytes + 64)
    store.check()


@pytest.mark.parametrize(
    "options",
    [
        StoreOptions(keys_max=3 * KEYS + 5),
        StoreOptions(memory_bytes_max=filled(StoreOptions()).memory_bytes + 5 * entry_size(bytes(12), VALUE)),
    ],
    ids=["keys", "memory"],
)
def test_a_write_is_refused_only_if_the_store_is_full(options: StoreOptions) -> None:
    """The buckets hold room ahead for ten times as many keys."""
    assert ahead_keys(filled(StoreOptions())) > 50
    store = filled(options)
    rng = Random(1)
    for _ in range(3):
        for number in range(5):
            store.bucket(b"%d" % rng.randint(1, 3)).set(b"next%08d" % number, VALUE)
        for bucket in map(store.bucket, (b"1", b"2", b"3")):
            with pytest.raises(LimitError):
                bucket.set(b"more%08d" % 0, VALUE)
            with pytest.raises(LimitError):
                bucket.set_many({b"more%08d" % 0: VALUE})
        store.check()
        assert len(store) == 3 * KEYS + 5
        for bucket in map(store.bucket, (b"1", b"2", b"3")):
            bucket.delete_many([b"next%08d" % number for number in range(5)])


def test_a_new_bucket_and_an_order_get_the_room_that_others_hold() -> None:
    order_bytes = ORDER_OBJECT_BYTES + ORDER_BYTES * KEYS
    limit = filled(StoreOptions()).memory_bytes + order_bytes
    store = filled(StoreOptions(memory_bytes_max=limit))
    bucket = store.bucket(b"1")
    for _ in range(2):
        bucket.page()
    [order] = [shard.order for shard in shards_of(store, b"1")]
    assert order is not None
    assert store.memory_bytes == limit
    assert order.counted_bytes == order_bytes
    store.bucket(b"new").set(b"k", VALUE)
    assert store.memory_bytes < limit, "the order gave way"
    store.check()


@pytest.mark.parametrize(
    "begin", [Store.add_quota, lambda store, quota: store.bucket(b"1", BucketOptions(quota=quota))]
)
def test_a_store_with_a_quota_counts_each_key(begin: Callable[[Store, Quota], object]) -> None:
    store = filled(StoreOptions())
    assert ahead_keys(store) > 0
    quota = Quota(Reach(), 3 * KEYS, None)
    begin(store, quota)
    assert ahead_keys(store) == 0
    store.bucket(b"2").set(b"next", VALUE)
    assert ahead_keys(store) == 0
    store.check()


def test_a_quota_that_begins_as_a_shard_takes_room_counts_each_key() -> None:
    """Another thread adds the quota after the shard saw that it may hold room, but before the ledger knows the shard."""
    store = filled(StoreOptions())
    quota = Quota(Reach(), None, None)

    class Overtaken(set[HoldsAhead]):
        def add(self, shard: HoldsAhead) -> None:
            store.add_quota(quota)
            super().add(shard)

    ledger, bucket = store._tables.ledger, store.bucket(b"1")
    ledger.recall()
    ledger.ahead = Overtaken()
    bucket.set(b"next", VALUE)
    assert quota.usage.quotas == 1
    bucket.delete_many([b"%012d" % number for number in range(100)])
    assert quota.keys == len(store) == 3 * KEYS + 1 - 100
    store.check()


def test_few_keys_and_keys_that_go_leave_no_room_behind() -> None:
    store = filled(StoreOptions())
    for name in store.bucket_names():
        for number in range(KEYS - 1, SHARD_KEYS_MIN - 2, -1):
            store.bucket(name).delete(b"%012d" % number)
            assert ahead_keys(store) <= 3 * 3 * AHEAD_KEYS
    assert ahead_keys(store) == 0
    assert len(store) == 3 * (SHARD_KEYS_MIN - 1)
    for name in store.bucket_names():
        store.bucket(name).set(b"%012d" % 0, b"")  # it is shorter, which makes room
    store.check()


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [80, 2_048])
def test_threads_fill_a_store_to_the_last_key(shard_keys_max: int) -> None:
    """Threads take room ahead, lose it to others, split shards, and delete keys, while the limit holds."""
    keys_max = 1_500
    store = Store(StoreOptions(keys_max=keys_max, shard_keys_max=shard_keys_max, shards_min=2))

    def fill(thread: int) -> int:
        rng, bucket, kept = Random(thread), store.bucket(b"%d" % (thread % 3)), 0
        for number in range(600):
            try:
                bucket.set(b"%d %d" % (thread, number), VALUE)
                kept += 1
            except LimitError:
                assert len(store) > keys_max - 8, "each other thread may have deleted a key since"
            if not rng.randrange(8):
                kept -= bucket.delete(b"%d %d" % (thread, rng.randrange(number + 1)))
        return kept

    run_together(*[lambda n=n: fill(n) for n in range(6)])
    store.check()
    for number in range(keys_max - len(store)):
        store.bucket(b"1").set(b"last %d" % number, VALUE)
    with pytest.raises(LimitError, match=rf"the store would hold {keys_max + 1} keys"):
        store.bucket(b"2").set(b"more", VALUE)
    store.check()
