"""Expiry: a key whose time is over is gone for every reader at once, and its memory soon after; a key without deadline pays nothing for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count, cycle, pairwise
from random import Random
from threading import Thread, local
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from keyvalue_engine import Bucket, BucketOptions, CounterError, LimitError, Page, Quota, Store, StoreOptions
from keyvalue_engine.counter import COUNTER_MAX
from keyvalue_engine.deadlines import HEAP_MIN, Deadlines
from keyvalue_engine.entry import BUCKET_BYTES, DEADLINE_BYTES, SHARD_BYTES, Entry, bytes_size, entry_size
from keyvalue_engine.options import TTL_MS_MAX
from keyvalue_engine.shard import Shard
from keyvalue_engine.store import LOOKS_PER_KEY
from keyvalue_engine.tables import ROOM_KEYS
from tests.engine.clock import NS_PER_MS, Clock, OvertakingClock
from tests.engine.entries import OvertakenEntries, deadlines_of, shards_of
from tests.engine.races import TIMEOUT_S, AnnouncedLock, overtaken, placed, run_together

SEED = 13


# The life of a key


def test_a_key_is_there_until_its_deadline(clock: Clock) -> None:
    bucket = Store(clock=clock).bucket(b"b")
    bucket.set(b"k", b"v", ttl_ms=5)
    clock.now_ns = 5 * NS_PER_MS - 1
    assert (bucket.get(b"k"), bucket.exists(b"k"), bucket.get_many([b"k"])) == (b"v", True, [b"v"])
    assert bucket.page() == Page([b"k"], None)
    clock.now_ns = 5 * NS_PER_MS
    assert (bucket.get(b"k"), bucket.exists(b"k"), bucket.get_many([b"k"])) == (None, False, [None])
    assert bucket.page() == Page([], None)


READERS: list[tuple[Callable[[Bucket], object], object]] = [
    (lambda bucket: bucket.get(b"k"), None),
    (lambda bucket: bucket.exists(b"k"), False),
    (lambda bucket: bucket.get_many([b"k", b"stays"]), [None, b"v"]),
    (lambda bucket: bucket.page(), Page([b"stays"], None)),
    (lambda bucket: list(bucket.keys()), [b"stays"]),
    (lambda bucket: bucket.ttl_ms(b"k"), None),
    (lambda bucket: bucket.persist(b"k"), False),
    (lambda bucket: bucket.delete(b"k"), False),
    (lambda bucket: bucket.delete_many([b"k"]), 0),
    (lambda bucket: bucket.increment(b"k", 3), 3),
]


@pytest.mark.parametrize(("read", "expected"), READERS)
@pytest.mark.parametrize("walked", [False, True])
def test_a_key_whose_time_is_over_is_gone_for_every_reader(
    read: Callable[[Bucket], object], expected: object, walked: bool, clock: Clock
) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"7", ttl_ms=5)
    bucket.set(b"stays", b"v")
    if walked:
        assert len(list(bucket.keys())) == 2
    clock.move_ms(5)
    assert read(bucket) == expected
    store.check()


@pytest.mark.parametrize(
    ("left_ns", "ttl_ms"), [(0, None), (1, 1), (NS_PER_MS, 1), (NS_PER_MS + 1, 2), (9_999_999, 10), (10_000_000, 10)]
)
def test_what_is_left_is_rounded_up(left_ns: int, ttl_ms: int | None, clock: Clock) -> None:
    bucket = Store(clock=clock).bucket(b"b")
    bucket.set(b"k", b"v", ttl_ms=10)
    clock.now_ns = 10 * NS_PER_MS - left_ns
    assert bucket.ttl_ms(b"k") == ttl_ms
    assert bucket.exists(b"k") is (ttl_ms is not None)


@pytest.mark.parametrize("strict", [False, True])
def test_a_key_without_deadline_has_none_to_say(strict: bool) -> None:
    store = Store(StoreOptions(strict_buckets=strict))
    bucket = store.bucket(b"b")
    assert (bucket.ttl_ms(b"k"), bucket.persist(b"k")) == (None, False)
    bucket.set(b"k", b"v")
    for key in (b"k", b"missing"):
        assert (bucket.ttl_ms(key), bucket.persist(key)) == (None, False)
    assert bucket.get(b"k") == b"v"
    store.check()


@pytest.mark.parametrize("wrong", [0, -1, TTL_MS_MAX + 1])
def test_a_time_to_live_is_positive_and_fits_the_clock(wrong: int) -> None:
    store = Store()
    with pytest.raises(ValueError, match=f"^ttl_ms: found {wrong}, allowed 1 to {TTL_MS_MAX}$"):
        store.bucket(b"b").set(b"k", b"v", wrong)
    assert store.bucket_names() == []
    store.bucket(b"b").set(b"k", b"v", TTL_MS_MAX)
    assert store.bucket(b"b").ttl_ms(b"k") == TTL_MS_MAX
    assert TTL_MS_MAX * NS_PER_MS < 2**63


@pytest.mark.parametrize(
    ("write", "ttl_ms"),
    [
        (lambda bucket: bucket.set(b"k", b"new"), None),
        (lambda bucket: bucket.set(b"k", b"v"), None),
        (lambda bucket: bucket.set_many({b"k": b"new"}), None),
        (lambda bucket: bucket.set(b"k", b"new", ttl_ms=1), 1),
        (lambda bucket: bucket.set(b"k", b"new", ttl_ms=5), 5),
        (lambda bucket: bucket.set(b"k", b"new", ttl_ms=500), 500),
        (lambda bucket: bucket.increment(b"k", 1), 5),
        (lambda bucket: bucket.persist(b"k"), None),
        (lambda bucket: bucket.delete(b"k") and bucket.set(b"k", b"new"), None),
    ],
)
def test_a_write_says_what_becomes_of_a_deadline(
    write: Callable[[Bucket], object], ttl_ms: int | None, clock: Clock
) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"1", ttl_ms=9)
    clock.move_ms(4)
    write(bucket)
    assert bucket.ttl_ms(b"k") == ttl_ms
    assert len(store) == 1
    shell_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"k", b"new")
    assert store.memory_bytes == shell_bytes + (ttl_ms is not None) * DEADLINE_BYTES
    store.check()
    clock.move_ms((ttl_ms or 10**6) - 1)
    assert bucket.exists(b"k")
    clock.move_ms(1)
    assert bucket.exists(b"k") is (ttl_ms is None)
    store.check()


def test_a_larger_value_with_a_deadline_in_place_of_another_is_charged_or_refused(clock: Clock) -> None:
    memory_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"k", (bytes(100), 0))
    store = Store(StoreOptions(memory_bytes_max=memory_bytes), clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"v", ttl_ms=5)
    bucket.set(b"k", bytes(100), ttl_ms=6)
    assert store.memory_bytes == memory_bytes
    with pytest.raises(LimitError, match=f"memory limit in bytes: found {memory_bytes + 16}, allowed {memory_bytes}"):
        bucket.set(b"k", bytes(116), ttl_ms=7)
    assert (bucket.get(b"k"), bucket.ttl_ms(b"k")) == (bytes(100), 6)
    store.check()
    bucket.set(b"k", b"", ttl_ms=5)
    assert store.memory_bytes == memory_bytes - bytes_size(100) + bytes_size(0)
    store.check()


def test_a_handle_may_have_all_that_it_writes_expire(clock: Clock) -> None:
    store = Store(clock=clock)
    timed, plain = store.bucket(b"b", BucketOptions(ttl_ms=10)), store.bucket(b"b")
    timed.set(b"1", b"v")
    timed.set(b"2", b"v", ttl_ms=3)
    timed.set_many({b"3": b"v"})
    timed.increment(b"4", 1)
    plain.set(b"5", b"v")
    assert [plain.ttl_ms(b"%d" % number) for number in range(1, 6)] == [10, 3, 10, 10, None]
    plain.set(b"1", b"v")
    assert timed.ttl_ms(b"1") is None
    store.check()


# Memory

PLAIN_BYTES = BUCKET_BYTES + bytes_size(4) + SHARD_BYTES + entry_size(b"k", b"v")


def test_a_key_without_deadline_costs_nothing_for_others_deadlines(clock: Clock) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"name")
    bucket.set(b"k", b"v")
    [shard] = shards_of(store, b"name")
    assert (shard.deadlines, store.memory_bytes, len(store._tables.expiry)) == (None, PLAIN_BYTES, 0)
    bucket.set(b"l", b"v", ttl_ms=1)
    assert store.memory_bytes == PLAIN_BYTES + entry_size(b"l", b"v") + DEADLINE_BYTES
    assert deadlines_of(store, b"name") == {b"l": NS_PER_MS}
    assert len(store._tables.expiry) == 1
    assert clock.looks == 1, "nothing but the timed key looked at the clock"


ENDS_OF_A_DEADLINE: list[tuple[Callable[[Store, Bucket], object], int]] = [
    (lambda store, bucket: bucket.persist(b"l"), 0),
    (lambda store, bucket: bucket.set(b"l", b"v"), 0),
    (lambda store, bucket: bucket.set_many({b"l": b"v", b"k": b"v"}), 0),
    (lambda store, bucket: bucket.delete(b"l"), 0),
    (lambda store, bucket: bucket.delete_many([b"l"]), 0),
    (lambda store, bucket: store.sweep(), 1),
    (lambda store, bucket: bucket.page(), 1),
    (lambda store, bucket: bucket.delete(b"l"), 1),
    (lambda store, bucket: bucket.persist(b"l"), 1),
    (lambda store, bucket: bucket.set(b"l", b"v"), 1),
    (lambda store, bucket: bucket.set_many({b"l": b"v"}), 1),
    (lambda store, bucket: bucket.increment(b"l", 1), 1),
]


@pytest.mark.parametrize(("end", "ms"), ENDS_OF_A_DEADLINE)
def test_a_shard_whose_last_deadline_goes_is_as_one_that_never_had_any(
    end: Callable[[Store, Bucket], object], ms: int, clock: Clock
) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"name")
    bucket.set(b"k", b"v")
    bucket.set(b"l", b"v", ttl_ms=1)
    clock.move_ms(ms)
    end(store, bucket)
    [shard] = shards_of(store, b"name")
    assert shard.deadlines is None
    assert len(store._tables.expiry) == 0
    assert not store.sweep()
    bucket.delete(b"l")
    bucket.page()
    store.check()
    assert store.memory_bytes - shard.memory_bytes == PLAIN_BYTES - SHARD_BYTES - entry_size(b"k", b"v")


def increment_too_far(store: Store, bucket: Bucket) -> None:
    with pytest.raises(CounterError, match="counter: found 0 "):
        bucket.increment(b"k", COUNTER_MAX + 1)


def set_too_large(store: Store, bucket: Bucket) -> None:
    with pytest.raises(LimitError, match="memory limit in bytes: found "):
        bucket.set(b"k", bytes(4_000))


def set_many_too_large(store: Store, bucket: Bucket) -> None:
    with pytest.raises(LimitError, match="memory limit in bytes: found "):
        bucket.set_many({b"k": bytes(4_000)})


REMOVALS: list[Callable[[Store, Bucket], object]] = [
    lambda store, bucket: store.sweep(),
    lambda store, bucket: bucket.page(),
    lambda store, bucket: list(bucket.keys()),
    lambda store, bucket: bucket.delete(b"k"),
    lambda store, bucket: bucket.delete_many([b"k"]),
    lambda store, bucket: bucket.persist(b"k"),
    increment_too_far,
    set_too_large,
    set_many_too_large,
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("walked", [False, True])
@pytest.mark.parametrize("remove", REMOVALS)
def test_the_last_key_that_expires_takes_the_bucket_with_it(
    remove: Callable[[Store, Bucket], object], walked: bool, strict: bool, clock: Clock
) -> None:
    store = Store(StoreOptions(strict_buckets=strict, memory_bytes_max=4_000), clock=clock)
    store.bucket(b"stays").set(b"k", b"v")
    memory_bytes = store.memory_bytes
    bucket = store.bucket(b"goes")
    bucket.set(b"k", b"v", ttl_ms=1)
    if walked:
        assert list(bucket.keys()) == [b"k"]
    clock.move_ms(1)
    assert (len(store), bucket.get(b"k")) == (2, None)
    remove(store, bucket)
    assert (len(store), len(store._tables.expiry), store.expired_keys) == (1, 0, 1)
    assert store.bucket_names() == ([b"stays", b"goes"] if strict else [b"stays"])
    if not strict:
        assert store.memory_bytes == memory_bytes
    store.check()
    bucket.set(b"k", b"again")
    assert bucket.get(b"k") == b"again"


@pytest.mark.parametrize("fails", [False, True])
def test_a_save_frees_a_bucket_whose_last_key_has_expired(fails: bool, clock: Clock, tmp_path: Any) -> None:
    store = Store(clock=clock)
    store.bucket(b"b").set(b"k", b"v", ttl_ms=1)
    clock.move_ms(1)
    if fails:
        with pytest.raises(IsADirectoryError):
            store.save(tmp_path)
    else:
        store.save(tmp_path / "snapshot")
    store.check()
    store.sweep()
    assert (store.bucket_names(), store.memory_bytes) == ([], 0)


@pytest.mark.parametrize("shard_keys_max", [8, 4_096])
@pytest.mark.parametrize("walked", [False, True])
def test_memory_comes_back_after_expiry(shard_keys_max: int, walked: bool, clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=clock, seed=SEED)
    for name in (b"b", b"other"):
        store.bucket(name).set_many({b"stays %d" % number: b"v" for number in range(500)})
    memory_bytes = store.memory_bytes
    timed = store.bucket(b"gone", BucketOptions(ttl_ms=9))
    timed.set_many({b"%d" % number: bytes(number % 50) for number in range(2_000)})
    for number in range(500):
        store.bucket(b"b").set(b"stays %d" % number, b"v", ttl_ms=9)
        store.bucket(b"b").set(b"stays %d" % number, b"v", ttl_ms=8)
    assert store.memory_bytes > memory_bytes + 2_500 * DEADLINE_BYTES
    for number in range(500):
        assert store.bucket(b"b").persist(b"stays %d" % number)
    if walked:
        assert len(list(timed.keys())) == 2_000
    clock.move_ms(9)
    while store.sweep(100):
        store.check()
    store.check()
    assert (len(store), store.expired_keys, store.memory_bytes) == (1_000, 2_000, memory_bytes)


def test_keys_whose_time_is_over_count_until_they_are_swept(clock: Clock) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"b", BucketOptions(ttl_ms=1))
    bucket.set_many({b"1": b"v", b"2": b"v"})
    clock.move_ms(1)
    assert (len(store), len(bucket), store.expired_keys) == (2, 2, 0)
    assert bucket.delete(b"1") is False
    assert (len(store), len(bucket), store.expired_keys) == (1, 1, 1)
    assert store.sweep() is False
    assert (len(store), len(bucket), store.expired_keys) == (0, 0, 2)


# The sweep


@pytest.mark.parametrize("buckets", [1, 7, 100])
@pytest.mark.parametrize("keys_max", [1, 10, 33])
def test_a_step_of_a_sweep_is_bounded_by_keys(buckets: int, keys_max: int, clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=9, shards_min=1), clock=clock)
    for number in range(100):
        store.bucket(b"%d" % (number % buckets)).set(b"%d" % number, b"v", ttl_ms=1 + number % 2)
    assert store.sweep(keys_max) is False
    assert len(store) == 100
    for due, left in ((50, 50), (50, 0)):
        clock.move_ms(1)
        steps = 0
        while True:
            before = len(store)
            is_more_due = store.sweep(keys_max)
            store.check()
            steps += before != len(store)
            assert before - len(store) <= keys_max
            assert is_more_due or before - len(store) < keys_max
            if not is_more_due:
                assert len(store) == left or keys_max * LOOKS_PER_KEY < 100, "it looked at every shard"
                if len(store) == left:
                    break
        assert steps <= due
    assert (store.expired_keys, store.memory_bytes) == (100, 0)


@pytest.mark.parametrize(("keys_max", "looks"), [(1, LOOKS_PER_KEY), (5, 5 * LOOKS_PER_KEY), (1_000, 50)])
def test_a_step_of_a_sweep_looks_at_a_bounded_number_of_shards(keys_max: int, looks: int, clock: Clock) -> None:
    store = Store(clock=clock)
    for number in range(50):
        store.bucket(b"%d" % number).set(b"k", b"v", ttl_ms=10)
    clock.looks = 0
    assert store.sweep(keys_max) is False
    assert clock.looks == looks


def test_every_shard_has_its_turn(clock: Clock) -> None:
    """Also while the shards before it have more to give than a step takes."""
    store = Store(clock=clock)
    for number in range(1_000):
        store.bucket(b"full").set(b"%d" % number, b"v", ttl_ms=1)
    for number in range(20):
        store.bucket(b"%d" % number).set(b"k", b"v", ttl_ms=1 if number == 19 else 10)
    clock.move_ms(1)
    for _ in range(20 // LOOKS_PER_KEY + 2):
        store.sweep(1)
    assert b"19" not in store.bucket_names()
    assert len(store.bucket(b"full")) > 990
    store.check()


def test_shards_that_all_have_more_to_give_take_turns(clock: Clock) -> None:
    store = Store(clock=clock)
    for name in (b"1", b"2"):
        store.bucket(name, BucketOptions(ttl_ms=1)).set_many({b"%d" % number: b"v" for number in range(10)})
    clock.move_ms(1)
    left = []
    for _ in range(4):
        assert store.sweep(3) is True
        left.append((len(store.bucket(b"1")), len(store.bucket(b"2"))))
    assert left == [(7, 10), (7, 7), (4, 7), (4, 4)]


def test_a_sweep_of_nothing_does_nothing(clock: Clock) -> None:
    store = Store(clock=clock)
    assert store.sweep() is False
    store.bucket(b"b").set(b"k", b"v")
    assert store.sweep() is False
    assert clock.looks == 0
    assert len(store) == 1


@pytest.mark.parametrize("walked", [False, True])
def test_a_split_takes_deadlines_along(walked: bool, clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=4, shards_min=1), clock=clock, seed=SEED)
    bucket = store.bucket(b"b")
    deadlines_ns = {}
    for number in range(200):
        key = b"%d" % number
        bucket.set(key, b"v", ttl_ms=number + 1 if number % 3 == 0 else None)
        if number % 3 == 0:
            deadlines_ns[key] = (number + 1) * NS_PER_MS
        if walked:
            bucket.page()
        store.check()
    assert len(shards_of(store)) > 200 // 4
    assert deadlines_of(store) == deadlines_ns
    assert {*store._tables.expiry._shards} == {shard for shard in shards_of(store) if shard.deadlines is not None}
    assert any(shard.deadlines is None for shard in shards_of(store))
    for number in range(200):
        clock.move_ms(1)
        store.sweep(3)
        assert bucket.exists(b"%d" % number) is (number % 3 != 0)
    store.check()
    assert len(store) == 200 - len(deadlines_ns)


# What a sweep overtakes, and what overtakes it


def test_a_sweep_overtaken_by_a_split_leaves_the_rest_to_the_next(clock: Clock) -> None:
    store, bucket, by = overtaken(2, b"0", clock=clock)
    bucket.set(b"1", b"v", ttl_ms=1)
    clock.move_ms(1)
    by(lambda: bucket.set(b"2", b"v"))
    store.sweep()
    store.sweep()
    assert (store.expired_keys, sorted(bucket.keys())) == (1, [b"0", b"2"])
    store.check()


def test_a_sweep_overtaken_by_who_takes_all_deadlines_away_ends(clock: Clock) -> None:
    store, bucket, by = overtaken(9, b"0", clock=clock)
    bucket.set(b"0", b"v", ttl_ms=1)
    store.bucket(b"other").set(b"0", b"v", ttl_ms=1)
    clock.move_ms(1)

    def delete() -> None:
        for name in (b"b", b"other"):
            store.bucket(name).delete(b"0")

    by(delete)
    assert store.sweep() is False
    assert (store.expired_keys, store.memory_bytes) == (2, 0)


@pytest.mark.parametrize("again", [False, True])
def test_a_sweep_overtaken_by_the_last_delete(again: bool, clock: Clock) -> None:
    store, bucket, by = overtaken(9, b"0", clock=clock)
    bucket.set(b"0", b"v", ttl_ms=1)
    clock.move_ms(1)

    def delete() -> None:
        bucket.delete(b"0")
        if again:
            bucket.set(b"0", b"new")

    by(delete)
    assert store.sweep() is False
    assert store.bucket_names() == [b"b"] * again
    assert bucket.get(b"0") == (b"new" if again else None)
    store.check()


def test_the_freeing_by_a_sweep_overtaken_by_a_set_does_not_happen(clock: Clock) -> None:
    store, bucket, by = overtaken(9, b"0", clock=clock)
    bucket.set(b"0", b"v", ttl_ms=1)
    clock.move_ms(1)
    by(lambda: by(lambda: bucket.set(b"1", b"new")))  # before the second taking: that of the freeing
    store.sweep()
    assert list(bucket.keys()) == [b"1"]
    store.check()


@pytest.mark.parametrize("by_split", [False, True])
def test_a_persist_overtaken(by_split: bool, clock: Clock) -> None:
    store, bucket, by = overtaken(2, b"0", clock=clock)
    bucket.set(b"0", b"v", ttl_ms=1)

    def split() -> None:
        bucket.set(b"1", b"v")
        bucket.set(b"2", b"v")

    by(split if by_split else (lambda: bucket.delete(b"0")))
    assert bucket.persist(b"0") is by_split
    assert len(store) == (3 if by_split else 0)
    assert deadlines_of(store) == {}
    assert by_split or store.memory_bytes == 0
    store.check()


class OvertakenRing(list[Shard]):
    """The shards of a table; before they are gone through, another call gets in, once."""

    def __init__(self, shards: Iterable[Shard], overtake: Callable[[], object]) -> None:
        super().__init__(shards)
        self.calls = [overtake]

    def __iter__(self) -> Iterator[Shard]:
        while self.calls:
            self.calls.pop()()
        return super().__iter__()


def test_between_a_shard_and_its_pieces_nothing_that_has_expired_is_seen_and_nothing_is_swept_too_early(
    clock: Clock,
) -> None:
    store, bucket, _ = overtaken(2, b"0", clock=clock)
    timed = store.bucket(b"b", BucketOptions(ttl_ms=1))
    timed.set_many({b"0": b"v", b"1": b"v"})
    table: Any = store._tables.by_name[b"b"]
    shift, (shard,) = table.ring
    stripe = shard.stripe = AnnouncedLock(shard.stripe)
    found: list[list[bytes | None]] = []

    def sweep() -> None:
        store.sweep()
        stripe.awaited.set()

    sweeper = Thread(target=sweep)

    def overtake() -> None:  # the shard is retired, and its pieces are not in the ring yet
        assert shard.retired
        clock.move_ms(1)
        store._tables.expiry.rotate()  # behind the pieces, if they were in the row already
        sweeper.start()
        assert stripe.awaited.wait(TIMEOUT_S), "the sweep has neither ended nor come upon the split"
        found.append(bucket.get_many([b"0", b"1", b"2"]))

    table.ring = (shift, OvertakenRing([shard], overtake))
    timed.set(b"2", b"v")
    sweeper.join(TIMEOUT_S)
    assert found == [[None] * 3]
    store.check()
    store.sweep()
    assert (store.expired_keys, store.bucket_names(), store.memory_bytes) == (3, [], 0)


# Lock-free reads: another thread gets in between the look-up and the look at the clock, or behind that


def persist_and_pass(bucket: Bucket, clock: Clock) -> None:
    assert bucket.persist(b"0")
    clock.move_ms(10)


def prolong_and_pass(bucket: Bucket, clock: Clock) -> None:
    bucket.set(b"0", b"new", ttl_ms=100)
    clock.move_ms(10)


def renew(bucket: Bucket, clock: Clock) -> None:
    clock.move_ms(10)
    bucket.set(b"0", b"new")


def expire_and_sweep(bucket: Bucket, clock: Clock) -> None:
    clock.move_ms(10)
    bucket._tables.sweep(1_000, 4_000)


@pytest.mark.parametrize("read", [lambda bucket: bucket.get(b"0"), lambda bucket: bucket.get_many([b"0"])[0]])
@pytest.mark.parametrize(
    ("overtake", "allowed"),
    [
        (persist_and_pass, {b"old"}),
        (prolong_and_pass, {b"old", b"new"}),
        (renew, {None, b"old", b"new"}),
        (expire_and_sweep, {b"old", None}),
        (lambda bucket, clock: bucket.delete(b"0"), {b"old", None}),
    ],
)
def test_a_read_overtaken_gives_what_was_there_during_it(
    read: Callable[[Bucket], bytes | None],
    overtake: Callable[[Bucket, Clock], object],
    allowed: set[bytes | None],
    clock: Clock,
) -> None:
    store, bucket, _ = overtaken(9, b"1", clock=clock)
    bucket.set(b"0", b"old", ttl_ms=5)
    [shard] = shards_of(store)
    entries = OvertakenEntries(shard)
    entries.behind_gets = [lambda: overtake(bucket, clock)]
    assert read(bucket) in allowed
    store.check()


@pytest.mark.parametrize("read", [lambda bucket: bucket.get(b"0"), lambda bucket: bucket.get_many([b"0"])[0]])
@pytest.mark.parametrize("look", [0, 1])
@pytest.mark.parametrize("ttl_ms", [5, None])
def test_a_read_after_the_deadline_that_is_overtaken_by_a_new_value(
    read: Callable[[Bucket], bytes | None], look: int, ttl_ms: int | None, clock: Clock
) -> None:
    """Behind its first look-up, and behind the second, by which it makes sure that the value is not there any more."""
    store, bucket, _ = overtaken(9, b"1", clock=clock)
    bucket.set(b"0", b"old", ttl_ms=5)
    clock.move_ms(5)
    [shard] = shards_of(store)
    entries = OvertakenEntries(shard)
    entries.behind_gets = [*[lambda: None] * look, lambda: bucket.set(b"0", b"new", ttl_ms)]
    assert read(bucket) == (None if look else b"new")
    assert entries.behind_gets == []
    assert read(bucket) == b"new"
    store.check()


@pytest.mark.parametrize("before_ms", [None, 4, 100])
@pytest.mark.parametrize(
    "write",
    [
        lambda bucket: bucket.set(b"0", b"7"),
        lambda bucket: bucket.set(b"2", b"7"),
        lambda bucket: bucket.increment(b"0", 1),
        lambda bucket: bucket.set_many({b"0": b"7", b"2": b"7"}),
    ],
)
def test_a_value_whose_write_was_held_up_beyond_its_time_is_not_shown(
    write: Callable[[Bucket], object], before_ms: int | None, clock: Clock
) -> None:
    """It comes with its deadline, not before it."""
    store, bucket, _ = overtaken(9, b"1", clock=clock)
    bucket.set(b"0", b"6", before_ms)
    [shard] = shards_of(store)
    entries = OvertakenEntries(shard)
    found: list[bytes | None] = []

    def pass_and_read() -> None:
        clock.move_ms(5)
        found.extend([bucket.get(b"0"), bucket.get(b"2")])

    entries.behind_writes = [pass_and_read]
    write(store.bucket(b"b", BucketOptions(ttl_ms=5)))
    assert entries.behind_writes == []
    assert b"7" not in [*found, bucket.get(b"0"), bucket.get(b"2")]
    store.check()


@pytest.mark.usefixtures("hasty_threads")
def test_no_read_gives_the_value_of_one_write_with_the_deadline_of_another() -> None:
    """A key is written with times to live that its values say, and the clock stands, so that what is left is what was given."""
    clock = Clock()
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"1", ttl_ms=1)
    writers_left = [None] * 2
    found: set[tuple[bytes | None, int | None]] = set()

    def write(writer: int) -> None:
        rng = Random(writer)
        try:
            for _ in range(4_000):
                ttl_ms = rng.randrange(1, 6)
                bucket.set(b"k", b"%d" % ttl_ms, ttl_ms if ttl_ms < 5 else None)
        finally:
            writers_left.pop()

    def read() -> None:
        entries = shards_of(store)[0].entries
        while writers_left:
            entry = entries.get(b"k")
            assert entry is not None
            found.add(entry if isinstance(entry, tuple) else (entry, None))
            assert bucket.get(b"k") is not None
            assert bucket.ttl_ms(b"k") in {None, 1, 2, 3, 4}

    run_together(*[lambda n=n: write(n) for n in range(2)], read, read)
    assert found <= {
        (b"1", NS_PER_MS),
        (b"2", 2 * NS_PER_MS),
        (b"3", 3 * NS_PER_MS),
        (b"4", 4 * NS_PER_MS),
        (b"5", None),
    }
    assert len(found) > 1
    store.check()


@pytest.mark.parametrize("read", [lambda bucket: bucket.get(b"3"), lambda bucket: bucket.get_many([b"3"])[0]])
@pytest.mark.parametrize("freed", [False, True])
def test_a_read_overtaken_by_a_split_knows_of_a_deadline_that_was_moved_since(
    read: Callable[[Bucket], bytes | None], freed: bool
) -> None:
    """The other calls get in as the reader looks at the clock."""
    clock = OvertakingClock()
    store, bucket, _ = overtaken(2, b"1", clock=clock)
    bucket.set(b"3", b"old", ttl_ms=5)

    def split_and_persist() -> None:
        bucket.set(b"2", b"v")
        assert len(list(store._tables.by_name[b"b"].shards())) == 4
        assert bucket.persist(b"3")
        clock.move_ms(5)
        if freed:
            bucket.delete_many([b"3", b"1", b"2"])

    clock.calls.append(split_and_persist)
    assert read(bucket) in ({None, b"old"} if freed else {b"old"})
    assert clock.calls == []
    store.check()


@pytest.mark.parametrize("overtake", [expire_and_sweep, renew])
def test_what_was_written_as_a_batch_is_read_as_one_though_it_expires_meanwhile(
    overtake: Callable[[Bucket, Clock], None], clock: Clock
) -> None:
    store, bucket, _ = overtaken(9, b"1", clock=clock)
    store.bucket(b"b", BucketOptions(ttl_ms=5)).set_many({b"0": b"old", b"2": b"old", b"3": b"old"})
    [shard] = shards_of(store)
    entries = OvertakenEntries(shard)
    entries.behind_gets = [lambda: overtake(bucket, clock)]
    values = bucket.get_many([b"0", b"1", b"2", b"3"])
    assert values == [b"new" if overtake is renew else None, b"old", None, None]
    store.check()


def test_a_time_to_live_that_is_prolonged_as_it_is_read_is_not_over() -> None:
    """The other calls get in as the reader looks at the clock."""
    clock = OvertakingClock()
    store, bucket, _ = overtaken(2, b"1", clock=clock)
    bucket.set(b"0", b"v", ttl_ms=5)

    def split_and_prolong() -> None:
        bucket.set(b"2", b"v")
        bucket.set(b"0", b"v", ttl_ms=50)
        clock.move_ms(5)

    clock.calls.append(split_and_prolong)
    assert bucket.ttl_ms(b"0") == 45
    assert len(shards_of(store)) == 4
    store.check()


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("persisted", [False, True])
def test_a_get_many_overtaken_by_a_split_and_the_end_of_all_deadlines(
    is_over: bool, persisted: bool, clock: Clock
) -> None:
    """What the replaced shard still holds is not given for what is there."""
    store, bucket, _ = overtaken(2, b"1", clock=clock)
    bucket.set(b"0", b"old", ttl_ms=5)
    if is_over:
        clock.move_ms(5)

    def split_and_end() -> None:
        bucket.set(b"2", b"v")
        if persisted:
            assert bucket.persist(b"0") is not is_over
        clock.move_ms(5)
        store.sweep()

    [shard] = shards_of(store)
    entries = OvertakenEntries(shard)
    entries.behind_gets = [split_and_end]
    values = bucket.get_many([b"0", b"1"])
    assert len(shards_of(store)) == 4
    assert len(store._tables.expiry) == 0
    if is_over:
        assert values == [None, b"old"]
    else:
        assert values == [b"old" if persisted else None, b"old"]
    store.check()


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [2, 4_096])
def test_no_read_gives_a_value_whose_time_was_over(shard_keys_max: int) -> None:
    """Its writer notes when a value ended: at the deadline that it got, from what the clock last told that thread, and not before the
    write was over, since a write that is under way may be seen.
    """
    ticks = count(step=NS_PER_MS // 50)
    told = local()

    def clock() -> int:
        told.now_ns = next(ticks)
        return int(told.now_ns)

    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=clock, seed=SEED)
    bucket = store.bucket(b"b")
    ends_ns: dict[bytes, int] = {}
    reads: list[tuple[int, bytes]] = []
    keys = [b"%d" % number for number in range(4)]
    writers_left = [None] * 3

    def write(writer: int) -> None:
        rng = Random(writer)
        for step in range(1_500):
            value = b"%d %d" % (writer, step)
            key = rng.choice(keys)
            ttl_ms = rng.choice([1, 2, None])
            bucket.set(key, value, ttl_ms)
            if ttl_ms is not None:
                ends_ns[value] = max(told.now_ns + ttl_ms * NS_PER_MS, next(ticks))
            if step % 7 == 0:
                bucket.delete(rng.choice(keys))
            if step % 11 == 0:
                store.sweep(2)

    def write_and_tell_end(writer: int) -> None:
        try:
            write(writer)
        finally:
            writers_left.pop()

    def read(many: bool) -> None:
        turns = cycle(keys)
        while writers_left:
            begun_ns = next(ticks)
            values = bucket.get_many(keys) if many else [bucket.get(next(turns))]
            reads.extend((begun_ns, value) for value in values if value is not None)

    run_together(
        *[lambda n=n: write_and_tell_end(n) for n in range(3)], *[lambda n=n: read(n % 2 == 0) for n in range(4)]
    )
    assert len(reads) > 0
    assert [(begun_ns, value) for begun_ns, value in reads if ends_ns.get(value, begun_ns + 1) <= begun_ns] == []
    store.check()


# Pages and walks


@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
@pytest.mark.parametrize("keys_max", [1, 2, 3, 4])
def test_a_cursor_comes_only_if_a_key_is_left_whose_time_is_not_over(
    shard_keys_max: int, keys_max: int, clock: Clock
) -> None:
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), hash_function=placed, clock=clock)
    bucket = store.bucket(b"b")
    for key, ttl_ms in ((b"0", None), (b"1", None), (b"2", 1), (b"3", 1)):
        bucket.set(key, b"v", ttl_ms)
    assert bucket.page(keys_max=2) == Page([b"0", b"1"], 2 << 62)
    clock.move_ms(1)
    page = bucket.page(keys_max=keys_max)
    assert page == (Page([b"0"], 1 << 62) if keys_max == 1 else Page([b"0", b"1"], None))
    store.check()


def test_a_page_that_is_full_by_bytes_meets_keys_whose_time_is_over(clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=1, shards_min=1, page_bytes_max=9), hash_function=placed, clock=clock)
    bucket = store.bucket(b"b")
    large = b"0" + b"x" * 50
    for key, ttl_ms in ((large, None), (b"1", 1), (b"2", 1), (b"3", None)):
        bucket.set(key, b"v", ttl_ms)
    clock.move_ms(1)
    assert bucket.page() == Page([large], 3 << 62)
    assert bucket.page(1 << 62) == Page([b"3"], None)
    store.check()


def test_a_crowd_beyond_a_page_meets_keys_whose_time_is_over(clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=9, shards_min=1, page_keys_max=2), hash_function=placed, clock=clock)
    bucket = store.bucket(b"b")
    crowd = [b"0 %d" % number for number in range(8)]
    for key, ttl_ms in (*[(key, None) for key in crowd], (b"1", 1), (b"2", 1), (b"3", 9)):
        bucket.set(key, b"v", ttl_ms)
    assert len(shards_of(store)) == 4
    clock.move_ms(1)
    page = bucket.page()
    assert (sorted(page.keys), page.cursor) == (crowd, 3 << 62)
    clock.move_ms(9)
    assert bucket.page().cursor is None
    store.check()


@pytest.mark.parametrize(("shards_min", "shard_keys_max"), [(1, 2**20), (1, 60), (64, 500)])
@pytest.mark.parametrize("swept", [False, True])
def test_walks_during_which_keys_expire(shards_min: int, shard_keys_max: int, swept: bool, clock: Clock) -> None:
    """Those that stay come exactly once, those that expire at most once, and no more once they have."""
    options = StoreOptions(shards_min=shards_min, shard_keys_max=shard_keys_max, page_keys_max=50)
    store = Store(options, seed=SEED, clock=clock)
    bucket = store.bucket(b"b")
    rng = Random(SEED)
    ends_ms: dict[bytes, int | None] = {}
    for number in range(6_000):
        key = b"%d" % number
        ends_ms[key] = rng.choice([None, rng.randrange(1, 300), 10**6])
        bucket.set(key, b"v", ends_ms[key])
    cursors: dict[int, int | None] = {0: None, 2**63: 2**63, 2**64 - 2**62: 2**64 - 2**62}
    seen: dict[int, list[bytes]] = {start: [] for start in cursors}
    steps = 0
    while cursors:
        for start, cursor in [*cursors.items()]:
            page = bucket.page(cursor)
            ends = [ends_ms[key] for key in page.keys]
            assert all(end_ms is None or end_ms > clock.now_ns // NS_PER_MS for end_ms in ends)
            seen[start] += page.keys
            cursors[start] = page.cursor
            if page.cursor is None:
                del cursors[start]
        clock.move_ms(3)
        steps += 1
        if swept:
            store.sweep(70)
    assert steps > 50
    stayed = {key for key, end_ms in ends_ms.items() if end_ms is None or end_ms == 10**6}
    for start, keys in seen.items():
        assert len(keys) == len({*keys})
        assert {key for key in stayed if xxh3_64_intdigest(key, SEED) >= start} <= {*keys}
        assert len(keys) > len(stayed & {*keys}), "some came before they expired"
    while store.sweep():
        pass
    store.check()
    clock.move_ms(1_000)
    assert {*bucket.keys()} == stayed


# At a limit what has expired is swept first, as far as is needed

TIMED_KEYS = 3 * ROOM_KEYS


def full(clock: Clock, limit: str) -> Store:
    """A store at this limit: of three buckets all keys expire in a millisecond, in one stands a key that stays."""
    memory_bytes = 4 * (BUCKET_BYTES + bytes_size(1) + SHARD_BYTES) + entry_size(b"stay", b"v")
    memory_bytes += TIMED_KEYS * (entry_size(b"0000", b"v") + DEADLINE_BYTES)
    limits: dict[str, Any] = {
        limit: {"memory_bytes_max": memory_bytes, "keys_max": TIMED_KEYS + 1, "buckets_max": 4}[limit]
    }
    store = Store(replace(StoreOptions(shard_keys_max=10_000), **limits), clock=clock)
    store.bucket(b"s").set(b"stay", b"v")
    for number in range(TIMED_KEYS):
        store.bucket(b"%d" % (number % 3)).set(b"%04d" % number, b"v", ttl_ms=1)
    assert store.memory_bytes == memory_bytes
    return store


WRITES: list[Callable[[Bucket], object]] = [
    lambda bucket: bucket.set(b"new", b"1"),
    lambda bucket: bucket.set_many({b"new": b"1"}),
    lambda bucket: bucket.increment(b"new", 1),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("keys_max", b"s"),
        ("keys_max", b"n"),
        ("keys_max", b"0"),  # a bucket that goes as room is made
        ("memory_bytes_max", b"s"),
        ("memory_bytes_max", b"n"),
        ("memory_bytes_max", b"0"),
        ("buckets_max", b"n"),
    ],
)
def test_room_is_made_of_what_has_expired_as_far_as_is_needed(
    write: Callable[[Bucket], object], limit: str, name: bytes, clock: Clock
) -> None:
    store = full(clock, limit)
    with pytest.raises(LimitError, match=r"^(keys limit|memory limit in bytes|buckets): found "):
        write(store.bucket(b"n"))
    assert store.expired_keys == 0, "nothing has expired"
    clock.move_ms(1)
    write(store.bucket(name))
    assert store.bucket(name).get(b"new") == b"1"
    assert store.expired_keys == ROOM_KEYS
    assert store.bucket(b"s").get(b"stay") == b"v"
    store.check()


def test_room_for_many_is_made_of_many(clock: Clock) -> None:
    store = full(clock, "keys_max")
    clock.move_ms(1)
    store.bucket(b"n").set_many({b"%d" % number: b"v" for number in range(ROOM_KEYS + 1)})
    assert store.expired_keys == 2 * ROOM_KEYS
    store.check()


def test_what_never_finds_room_is_refused_though_all_that_has_expired_is_swept(clock: Clock) -> None:
    store = full(clock, "memory_bytes_max")
    clock.move_ms(1)
    with pytest.raises(LimitError, match="memory limit in bytes: found "):
        store.bucket(b"n").set(b"new", bytes(10**6))
    assert (store.expired_keys, store.bucket_names()) == (TIMED_KEYS, [b"s"])
    store.check()


def test_room_is_made_of_a_key_behind_many_shards_that_have_none_to_give(clock: Clock) -> None:
    count = LOOKS_PER_KEY * ROOM_KEYS + 10
    store = Store(StoreOptions(keys_max=count), clock=clock)
    for number in range(count):
        store.bucket(b"%d" % number).set(b"k", b"v", ttl_ms=1 if number == count - 1 else 9)
    clock.move_ms(1)
    store.bucket(b"new").set(b"k", b"v")
    assert store.expired_keys == 1
    assert b"%d" % (count - 1) not in store.bucket_names()
    with pytest.raises(LimitError, match=f"keys limit: found {count + 1}, allowed {count}"):
        store.bucket(b"newer").set(b"k", b"v")
    store.check()


@pytest.mark.parametrize("write", WRITES)
def test_the_limits_of_lengths_sweep_nothing(write: Callable[[Bucket], object], clock: Clock) -> None:
    store = Store(StoreOptions(key_bytes_max=2), clock=clock)
    store.bucket(b"b").set(b"k", b"v", ttl_ms=1)
    clock.move_ms(1)
    with pytest.raises(LimitError, match="key in bytes: found 3, allowed 2"):
        write(store.bucket(b"b"))
    assert store.expired_keys == 0


# Deadlines of a shard


class Keys:
    """Keys with deadlines, as a shard changes them."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.deadlines = Deadlines(self.entries)

    def put(self, key: bytes, deadline_ns: int) -> None:
        before_ns = self.deadlines.of(key)
        self.entries[key] = b"", deadline_ns
        self.deadlines.put(key, deadline_ns, before_ns)

    def drop(self, key: bytes, persist: bool = False) -> None:
        if self.entries.pop(key, None) is not None:
            if persist:
                self.entries[key] = b""
            self.deadlines.drop()


def test_a_key_that_is_written_again_and_again_has_one_place_in_the_heap() -> None:
    keys = Keys()
    for now_ns in range(10_000):
        keys.put(b"k", now_ns + 100)
        assert keys.deadlines.next_due(now_ns) is None
    assert len(keys.deadlines._heap) == 1
    assert keys.deadlines.next_due(9_999 + 100) == b"k"


@pytest.mark.parametrize("persist", [False, True])
def test_a_heap_holds_at_most_as_much_that_is_out_of_date_as_not(persist: bool) -> None:
    keys = Keys()
    deadlines = keys.deadlines
    for number in range(5_000):
        keys.put(b"%d" % number, number)
    for number in range(4_990):
        keys.drop(b"%d" % number, persist)
        assert len(deadlines._heap) <= max(HEAP_MIN, 2 * deadlines.count)
    deadlines.check()
    assert deadlines.count == 10
    for number in range(10_000):
        keys.put(b"k", 20_000 - number)
        assert len(deadlines._heap) <= HEAP_MIN
    deadlines.check()
    assert deadlines.next_due(20_000) == b"4990"


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([b"1", b"2", b"3"]), st.booleans() | st.integers(1, 50)) | st.integers(1, 9),
        max_size=300,
    )
)
def test_what_is_due_is_what_a_dict_says(steps: list[tuple[bytes, int] | int]) -> None:
    keys = Keys()
    deadlines = keys.deadlines
    model: dict[bytes, int] = {}
    now_ns = 0
    for step in steps:
        match step:
            case (key, bool(persist)):
                if key in model:
                    keys.drop(key, persist)
                    del model[key]
            case (key, int(ttl_ns)):
                keys.put(key, now_ns + ttl_ns)
                model[key] = now_ns + ttl_ns
            case int(ns):
                now_ns += ns
                due = set()
                while (key := deadlines.next_due(now_ns)) is not None:  # type: ignore[assignment]
                    keys.drop(key)
                    due.add(key)
                assert due == {key for key, deadline_ns in model.items() if deadline_ns <= now_ns}
                model = {key: deadline_ns for key, deadline_ns in model.items() if key not in due}
        assert {key: deadlines.of(key) for key in keys.entries if deadlines.of(key)} == model
        deadlines.check()


# Threads


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [2, 4_096])
def test_threads_that_write_while_others_sweep_lose_nothing(shard_keys_max: int) -> None:
    """In a bucket that empties and fills, while the clock runs fast; each thread knows what became of its own keys."""
    ticks = count(step=NS_PER_MS // 20)
    clock = ticks.__next__
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=clock, seed=SEED)
    bucket = store.bucket(b"b")
    timed = store.bucket(b"b", BucketOptions(ttl_ms=3))
    removals: list[int] = []

    def write(writer: int) -> None:
        rng = Random(writer)
        own = [b"%d %d" % (writer, number) for number in range(8)]
        stays: set[bytes] = set()
        for step in range(500):
            key, value = rng.choice(own), b"%d" % step
            match rng.randrange(6):
                case 0:
                    bucket.set(key, value)
                    stays.add(key)
                case 1:
                    bucket.set(key, value, ttl_ms=rng.randrange(1, 5))
                    stays.discard(key)
                case 2:
                    timed.set_many(dict.fromkeys(own, value))
                    stays.clear()
                case 3 if bucket.persist(key):
                    stays.add(key)
                case 4 if key in stays:
                    assert bucket.delete(key)
                    stays.discard(key)
                case 5:
                    assert {found for found, value in zip(own, bucket.get_many(own), strict=True) if value} >= stays
            assert all(bucket.exists(key) for key in stays)
        removals.append(bucket.delete_many([*stays]) - len(stays))

    def sweep() -> None:
        for step in range(500):
            store.sweep(1 + step % 9)
            bucket.page(keys_max=3)

    run_together(*[lambda n=n: write(n) for n in range(6)], *[sweep] * 2)
    assert removals == [0] * 6
    store.check()
    for _ in range(100):
        clock()
    while len(store):
        store.sweep()
    assert (store.bucket_names(), store.memory_bytes, len(store._tables.expiry)) == ([], 0, 0)


@pytest.mark.usefixtures("hasty_threads")
def test_expired_keys_are_counted_once_by_threads(clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=50, shards_min=1), clock=clock, seed=SEED)
    bucket = store.bucket(b"b", BucketOptions(ttl_ms=1))
    keys = [b"%d" % number for number in range(4_000)]
    bucket.set_many(dict.fromkeys(keys, b"v"))
    clock.move_ms(1)

    def sweep() -> None:
        while store.sweep(10):
            pass

    def delete(keys: list[bytes]) -> None:
        assert not any(bucket.delete(key) for key in keys)

    run_together(*[sweep] * 4, *[lambda n=n: delete(keys[n::4]) for n in range(3)], lambda: list(bucket.keys()))
    assert (store.expired_keys, len(store), store.memory_bytes) == (4_000, 0, 0)
    store.check()


# What a step looks at is bounded, also where it finds nothing to remove.


def test_a_sweep_of_keys_whose_time_was_put_off_is_bounded(clock: Clock) -> None:
    """Sessions that are written again before they end: their places in the heap are out of date, and cost a look each."""
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    for _ in range(2):
        for number in range(3_000):
            bucket.set(b"%d" % number, b"v", ttl_ms=10)
        clock.move_ms(9)
    looks = [
        sum(shard.deadlines.looks for shard in store._tables.by_name[b"b"].shards() if shard.deadlines is not None)
    ]
    steps = 1
    while store.sweep(100):
        steps += 1
        looks.append(
            sum(shard.deadlines.looks for shard in store._tables.by_name[b"b"].shards() if shard.deadlines is not None)
        )
    assert max(after - before for before, after in pairwise(looks)) <= 100
    assert steps >= 30
    assert (len(store), store.expired_keys) == (3_000, 0)
    store.check()


def test_a_step_of_a_sweep_is_bounded_by_keys_removed_and_put_off_together(clock: Clock) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"b", BucketOptions(ttl_ms=1))
    keys = [b"%d" % number for number in range(40)]
    bucket.set_many(dict.fromkeys(keys, b"v"))
    for key in sorted(keys)[::2]:
        bucket.set(key, b"v", ttl_ms=10)
    clock.move_ms(1)
    [shard] = shards_of(store)
    for step in range(1, 4):
        assert store.sweep(10) is True
        assert shard.deadlines is not None
        assert store.expired_keys + shard.deadlines.looks == 10 * step
        assert (store.expired_keys > 0) is (shard.deadlines.looks > 0)
    store.check()


@pytest.mark.parametrize("keys_max", [0, -1])
def test_a_sweep_of_no_keys_is_refused(keys_max: int) -> None:
    with pytest.raises(ValueError, match=f"keys_max: found {keys_max}, allowed at least 1"):
        Store().sweep(keys_max)


def test_a_full_quota_sweeps_its_own_buckets_alone(clock: Clock) -> None:
    store = Store(clock=clock)
    quota = Quota(lambda name: name == b"mine", 1, None)
    store.add_quota(quota)
    for number in range(50):
        store.bucket(b"other").set(b"%d" % number, b"v", ttl_ms=1)
    mine = store.bucket(b"mine", BucketOptions(quota=quota))
    mine.set(b"k", b"v")
    clock.move_ms(1)
    with pytest.raises(LimitError, match="keys of this link's buckets: found 2, allowed 1"):
        mine.set(b"more", b"v")
    assert store.expired_keys == 0
    mine.set(b"k", b"v", ttl_ms=1)
    clock.move_ms(1)
    mine.set(b"more", b"v")
    assert store.expired_keys == 1
    store.check()


def test_what_expired_keys_cannot_mend_sweeps_nothing(clock: Clock) -> None:
    store = Store(StoreOptions(bucket_name_bytes_max=9), clock=clock)
    store.bucket(b"b").set(b"k", b"v", ttl_ms=1)
    clock.move_ms(1)
    with pytest.raises(LimitError, match="bucket name in bytes: found 10, allowed 9"):
        store.bucket(b"0123456789").set(b"k", b"v")
    assert store.expired_keys == 0
