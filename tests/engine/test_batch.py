"""Batches: many keys at one stroke. They are stored whole or not at all, and are seen so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from threading import Lock, Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import Bucket, BucketOptions, Change, Entry, LimitError, NoSuchBucketError, Store, StoreOptions
from keyvalue_engine.entry import BUCKET_BYTES, DEADLINE_BYTES, SHARD_BYTES, bytes_size, entry_size
from tests.engine.clock import Clock
from tests.engine.entries import deadlines_of
from tests.engine.races import TIMEOUT_S, AnnouncedLock, overtaken, placed, run_together


def numbered(count: int, value: bytes = b"v") -> dict[bytes, bytes]:
    return {b"%d" % number: value for number in range(count)}


# What a batch does


def test_values_come_in_the_order_of_the_keys() -> None:
    bucket = Store().bucket(b"b")
    bucket.set_many({b"1": b"one", b"2": b"", b"": b"empty"})
    assert bucket.get_many([b"2", b"missing", b"1", b"", b"1"]) == [b"", None, b"one", b"empty", b"one"]
    assert bucket.get_many((b"1",)) == [b"one"]
    assert bucket.get_many([]) == []


def test_a_bucket_that_was_never_written_holds_nothing() -> None:
    store = Store()
    bucket = store.bucket(b"b")
    assert bucket.get_many([b"1", b"2"]) == [None, None]
    assert bucket.delete_many([b"1"]) == 0
    bucket.set_many({})
    assert (store.bucket_names(), store.memory_bytes) == ([], 0)


def test_a_strict_store_refuses_to_read_a_bucket_that_was_never_written() -> None:
    store = Store(StoreOptions(strict_buckets=True))
    bucket = store.bucket(b"b")
    calls: list[Callable[[list[bytes]], object]] = [bucket.get_many, bucket.delete_many]
    bucket.set_many({})
    for call in calls:
        for keys in ([], [b"k"]):
            with pytest.raises(NoSuchBucketError, match="no bucket b'b' was ever written"):
                call(keys)
    bucket.set_many({b"k": b"v"})
    assert bucket.delete_many([b"k"]) == 1
    assert bucket.get_many([b"k"]) == [None]
    assert bucket.delete_many([b"k"]) == 0
    assert store.bucket_names() == [b"b"]
    store.check()


@pytest.mark.parametrize("shard_keys_max", [1, 5, 4_096])
@pytest.mark.parametrize("walked", [False, True])
def test_batches_do_what_single_calls_do(shard_keys_max: int, walked: bool) -> None:
    options = StoreOptions(shard_keys_max=shard_keys_max, shards_min=1)
    stores = [Store(options, seed=3), Store(options, seed=3)]
    many, single = (store.bucket(b"b") for store in stores)
    rng = Random(3)
    for step in range(30):
        entries = {b"%d" % rng.randrange(300): b"%d" % step * rng.randrange(20) for _ in range(rng.randrange(60))}
        many.set_many(entries)
        for key, value in entries.items():
            single.set(key, value)
        keys = [b"%d" % rng.randrange(300) for _ in range(rng.randrange(60))]
        assert many.get_many(keys) == [single.get(key) for key in keys]
        assert many.delete_many(keys) == sum(single.delete(key) for key in keys)
        if walked:
            assert list(many.keys()) == list(single.keys())
        for store in stores:
            store.check()
    every_key = [b"%d" % number for number in range(300)]
    assert many.get_many(every_key) == single.get_many(every_key)
    assert many.delete_many(every_key) == len(single)
    assert (stores[0].bucket_names(), stores[0].memory_bytes) == ([], 0)


def test_a_batch_splits_the_shards_that_it_filled() -> None:
    store = Store(StoreOptions(shard_keys_max=8, shards_min=4), seed=1)
    bucket = store.bucket(b"b")
    bucket.set_many(numbered(1_000))
    store.check()
    assert len(list(store._tables.by_name[b"b"].shards())) >= 1_000 // 8
    assert sorted(bucket.keys()) == sorted(numbered(1_000))


class RecordedStripe:
    """A stripe that notes when it is taken."""

    def __init__(self, stripe: Lock, number: int, taken: list[int]) -> None:
        self.stripe = stripe
        self.number = number
        self.taken = taken

    def acquire(self) -> bool:
        self.taken.append(self.number)
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
    assert taken == [0, 2, 3, 1, 3], "a reader takes none"


@given(keys=st.lists(st.binary(max_size=2), max_size=30))
def test_equal_keys_count_once(keys: list[bytes]) -> None:
    store = Store()
    bucket = store.bucket(b"b")
    bucket.set_many(dict.fromkeys(keys, b"v"))
    assert len(store) == len({*keys})
    assert bucket.delete_many(keys) == len({*keys})
    assert store.memory_bytes == 0


def test_a_batch_of_a_handle_with_a_deadline(clock: Clock) -> None:
    store = Store(clock=clock)
    timed, plain = store.bucket(b"b", BucketOptions(ttl_ms=10)), store.bucket(b"b")
    timed.set_many({b"1": b"v", b"2": b"v", b"3": b"v"})
    plain.set_many({b"1": b"stays", b"4": b"stays"})
    assert [plain.ttl_ms(key) for key in (b"1", b"2", b"3", b"4")] == [None, 10, 10, None]
    store.check()
    clock.move_ms(10)
    assert plain.get_many([b"1", b"2", b"3", b"4"]) == [b"stays", None, None, b"stays"]
    assert plain.delete_many([b"1", b"2"]) == 1, "what has expired was not there"
    assert store.expired_keys == 1
    timed.set_many({b"3": b"again"})
    assert (store.expired_keys, timed.ttl_ms(b"3")) == (2, 10)
    store.check()


@pytest.mark.parametrize("left_ns", range(12))
def test_what_expires_during_a_batch_is_counted_right(left_ns: int) -> None:
    """The clock moves at each look."""
    clock = Clock(tick_ns=1)
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    bucket.set_many(numbered(3))
    bucket.set(b"1", b"ends", ttl_ms=1)
    clock.move_ms(1)
    clock.now_ns -= left_ns
    bucket.set_many(numbered(3, b"new"))
    store.check()
    assert bucket.get_many([*numbered(3)]) == [b"new"] * 3
    assert len(store) == 3


@pytest.mark.parametrize("left_ns", range(12))
@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_a_batch_expires_whole(left_ns: int, shard_keys_max: int) -> None:
    """The clock moves at each look."""
    clock = Clock(tick_ns=1)
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=clock)
    bucket = store.bucket(b"b", BucketOptions(ttl_ms=1))
    bucket.set_many(numbered(3))
    clock.now_ns = max(deadlines_of(store).values()) - left_ns
    assert bucket.get_many([*numbered(3)]) in ([b"v"] * 3, [None] * 3)


# Limits: nothing is stored

FULL = {b"1": b"v", b"2": b"v", b"3": b"v"}
FULL_BYTES = BUCKET_BYTES + bytes_size(4) + SHARD_BYTES + 3 * entry_size(b"1", b"v")
NEW_BYTES = entry_size(b"4", b"new")
REFUSALS: list[tuple[StoreOptions, bytes, dict[bytes, bytes], str, int, int]] = [
    (StoreOptions(key_bytes_max=4), b"full", {b"1": b"new", b"12345": b""}, "key in bytes", 5, 4),
    (StoreOptions(value_bytes_max=4), b"full", {b"1": b"new", b"4": b"12345"}, "value in bytes", 5, 4),
    (StoreOptions(value_bytes_max=4), b"b", {b"1": b"new", b"4": b"12345"}, "value in bytes", 5, 4),
    (StoreOptions(bucket_name_bytes_max=4), b"longer", {b"1": b"v"}, "bucket name in bytes", 6, 4),
    (StoreOptions(buckets_max=1), b"b", {b"1": b"v"}, "buckets", 2, 1),
    (StoreOptions(keys_max=4), b"full", {b"1": b"new", b"4": b"", b"5": b""}, "keys limit", 5, 4),
    (StoreOptions(keys_max=4), b"b", {b"1": b"", b"2": b""}, "keys limit", 5, 4),
    (
        StoreOptions(memory_bytes_max=FULL_BYTES + 2 * NEW_BYTES - 1),
        b"full",
        {b"1": b"new", b"4": b"new", b"5": b"new"},
        "memory limit in bytes",
        FULL_BYTES + 2 * NEW_BYTES,
        FULL_BYTES + 2 * NEW_BYTES - 1,
    ),
    (  # overwrites that grow
        StoreOptions(memory_bytes_max=FULL_BYTES + 31),
        b"full",
        {b"1": bytes(16), b"2": bytes(16)},
        "memory limit in bytes",
        FULL_BYTES + 32,
        FULL_BYTES + 31,
    ),
    (  # the bucket finds room, its keys do not
        StoreOptions(memory_bytes_max=FULL_BYTES + BUCKET_BYTES + bytes_size(1)),
        b"b",
        {b"1": b"v", b"2": b"v"},
        "memory limit in bytes",
        FULL_BYTES + BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + 2 * entry_size(b"1", b"v"),
        FULL_BYTES + BUCKET_BYTES + bytes_size(1),
    ),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("options", "name", "entries", "what", "found", "allowed"), REFUSALS)
def test_a_batch_that_passes_a_limit_stores_nothing(
    options: StoreOptions, name: bytes, entries: dict[bytes, bytes], what: str, found: int, allowed: int, strict: bool
) -> None:
    store = Store(replace(options, strict_buckets=strict))
    store.bucket(b"full").set_many(FULL)
    memory_bytes = store.memory_bytes
    for _ in range(2):
        with pytest.raises(LimitError) as caught:
            store.bucket(name).set_many(entries)
        assert str(caught.value) == f"{what}: found {found}, allowed {allowed}"
    assert (store.bucket_names(), store.memory_bytes, len(store)) == ([b"full"], memory_bytes, 3)
    assert store.bucket(b"full").get_many([b"1", b"2", b"3", b"4", b"5"]) == [b"v", b"v", b"v", None, None]
    store.check()


def test_a_batch_over_many_shards_that_passes_a_limit_stores_nothing() -> None:
    store = Store(StoreOptions(shard_keys_max=1, shards_min=1, keys_max=60))
    bucket = store.bucket(b"b")
    bucket.set_many(numbered(50, b"old"))
    with pytest.raises(LimitError, match="keys limit: found 61, allowed 60"):
        bucket.set_many(numbered(61, b"new"))
    assert bucket.get_many([*numbered(61)]) == [b"old"] * 50 + [None] * 11
    bucket.set_many(numbered(60, b"new"))
    store.check()


def test_what_just_fits_every_limit_is_stored(clock: Clock) -> None:
    shell_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES
    memory_bytes = shell_bytes + entry_size(b"1", b"1234") + 2 * (entry_size(b"1", b"1234") + DEADLINE_BYTES)
    options = StoreOptions(key_bytes_max=1, value_bytes_max=4, buckets_max=1, keys_max=3, memory_bytes_max=memory_bytes)
    store = Store(options, clock=clock)
    bucket = store.bucket(b"b")
    bucket.set_many({b"1": b"1234"})
    store.bucket(b"b", BucketOptions(ttl_ms=1)).set_many({b"2": b"1234", b"3": b"1234"})
    assert store.memory_bytes == memory_bytes
    bucket.set_many({b"1": b"", b"2": b"", b"3": b""})
    assert store.memory_bytes == shell_bytes + 3 * entry_size(b"1", b"")
    store.check()


def test_a_batch_that_makes_as_much_room_as_it_takes_is_stored() -> None:
    full_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"1", bytes(100)) + entry_size(b"2", b"")
    store = Store(StoreOptions(memory_bytes_max=full_bytes))
    bucket = store.bucket(b"b")
    bucket.set_many({b"1": bytes(100), b"2": b""})
    bucket.set_many({b"1": b"", b"2": bytes(100)})
    assert bucket.get_many([b"1", b"2"]) == [b"", bytes(100)]
    assert store.memory_bytes == full_bytes
    store.check()


# A batch is overtaken before it takes a stripe


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_set_many_overtaken_by_the_last_delete_is_not_lost(strict: bool, again: bool) -> None:
    store, bucket, by = overtaken(9, b"1", strict=strict)

    def delete() -> None:
        bucket.delete(b"1")
        if again:
            bucket.set(b"3", b"again")

    by(delete)
    bucket.set_many({b"1": b"new", b"2": b"new"})
    assert bucket.get_many([b"1", b"2", b"3"]) == [b"new", b"new", b"again" if again else None]
    assert store.bucket_names() == [b"b"]
    store.check()


def test_a_set_many_overtaken_by_a_split_is_not_lost() -> None:
    store, bucket, by = overtaken(2, b"0", b"1")
    by(lambda: bucket.set(b"3", b"v"))
    bucket.set_many({b"0": b"new", b"2": b"new", b"3": b"new"})
    assert bucket.get_many([b"0", b"1", b"2", b"3"]) == [b"new", b"old", b"new", b"new"]
    store.check()


@pytest.mark.parametrize("again", [False, True])
def test_a_delete_many_overtaken_by_the_last_delete(again: bool) -> None:
    store, bucket, by = overtaken(9, b"1")

    def delete() -> None:
        bucket.delete(b"1")
        if again:
            bucket.set(b"1", b"new")

    by(delete)
    assert bucket.delete_many([b"1", b"2"]) == again
    assert (store.bucket_names(), store.memory_bytes) == ([], 0)


def test_a_delete_many_overtaken_by_a_split_removes_all() -> None:
    store, bucket, by = overtaken(2, b"0", b"1")
    by(lambda: bucket.set(b"2", b"v"))
    assert bucket.delete_many([b"0", b"2", b"3"]) == 2
    assert list(bucket.keys()) == [b"1"]
    store.check()


def test_the_freeing_of_a_bucket_overtaken_by_a_set_many_does_not_happen() -> None:
    store, bucket, by = overtaken(9, b"1")
    by(
        lambda: by(lambda: bucket.set_many({b"2": b"new", b"3": b"new"}))
    )  # before the second taking: that of the freeing
    assert bucket.delete(b"1") is True
    assert bucket.get_many([b"1", b"2", b"3"]) == [None, b"new", b"new"]
    store.check()


# A reader is overtaken by a batch


class OvertakenHash:
    """Places keys by their quarter of the ring; before it places a certain key, another call gets in, once."""

    def __init__(self) -> None:
        self.calls: dict[bytes, Callable[[], object]] = {}

    def __call__(self, key: bytes, seed: int) -> int:
        self.calls.pop(key, int)()
        return placed(key, seed)


def refill(bucket: Bucket, keys: list[bytes]) -> None:
    bucket.delete_many(keys)
    bucket.set_many(dict.fromkeys(keys, b"new"))


def split_and_set_many(bucket: Bucket, keys: list[bytes]) -> None:
    bucket.set(b"1 more", b"v")
    bucket.set_many(dict.fromkeys(keys, b"new"))


@pytest.mark.parametrize(
    ("overtake", "value"),
    [
        (lambda bucket, keys: bucket.set_many(dict.fromkeys(keys, b"new")), b"new"),
        (lambda bucket, keys: bucket.delete_many(keys), None),
        (refill, b"new"),
        (split_and_set_many, b"new"),
    ],
    ids=["set_many", "delete_many", "both", "split"],
)
@pytest.mark.parametrize("split_before", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_get_many_overtaken_by_a_batch_reads_again(
    overtake: Callable[[Bucket, list[bytes]], object], value: bytes | None, split_before: bool, at: int
) -> None:
    hash_function = OvertakenHash()
    options = StoreOptions(shard_keys_max=2 if split_before else 3, shards_min=1)
    store = Store(options, hash_function=hash_function)
    bucket = store.bucket(b"b")
    keys = [b"0", b"1", b"3"]
    bucket.set_many(dict.fromkeys(keys, b"old"))
    assert len(list(store._tables.by_name[b"b"].shards())) == (4 if split_before else 1)
    hash_function.calls[keys[at]] = lambda: overtake(bucket, keys)
    found = bucket.get_many(keys)
    assert hash_function.calls == {}
    # a table that is freed before the reader's first look at it is an empty one
    assert found in ([value] * 3, [None] * 3)
    assert found == [value] * 3 or overtake is refill
    store.check()


@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_a_get_many_that_comes_upon_a_batch_at_work_waits_for_its_end(shard_keys_max: int) -> None:
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
    """While shards split, and the bucket is emptied and made anew."""
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1, strict_buckets=strict), seed=5)
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
    assert store.bucket_names() == ([b"b"] if strict else [])
    assert len(store) == 0


@pytest.mark.usefixtures("hasty_threads")
def test_batches_of_threads_that_empty_and_refill_a_bucket_lose_no_write() -> None:
    store = Store(StoreOptions(shard_keys_max=4, shards_min=1), seed=5)

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
