"""Expiry: what it costs, how a sweep is bounded, how it frees memory, and faults that only threads can cause.

The model (test_model.py) shows that no reader sees an expired key, and that its memory is freed. test_overtaken.py
shows what a call returns if time passes during it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count, cycle
from math import inf
from random import Random
from threading import Thread, local
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import Bucket, BucketOptions, CounterError, LimitError, Quota, Reach, Store, StoreOptions
from keyvalue_engine.context import Context
from keyvalue_engine.counter import COUNTER_MAX
from keyvalue_engine.deadlines import STALE_BYTES, Deadlines
from keyvalue_engine.entry import (
    BUCKET_BYTES,
    DEADLINE_BYTES,
    DEADLINES_BYTES,
    SHARD_BYTES,
    Entry,
    bytes_size,
    entry_size,
    spare_max,
)
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.kept_orders import KeptOrders
from keyvalue_engine.ledger import Account, Ledger
from keyvalue_engine.options import TTL_MS_MAX
from keyvalue_engine.shard import Shard
from keyvalue_engine.tables import ROOM_WORK_MAX
from tests.engine.clock import NS_PER_MS, Clock
from tests.engine.entries import deadlines_of, shards_of
from tests.engine.races import TIMEOUT_S, AnnouncedLock, placed, run_together

SECRET = bytes(16)
#: A place in the schedule needs a shard, which `Deadlines` does not use.
SWEPT: Any = None


# The life of a key


@pytest.mark.parametrize("wrong", [0, -1, TTL_MS_MAX + 1])
def test_a_time_to_live_is_positive_and_fits_the_clock(wrong: int, clock: Clock) -> None:
    store = Store(clock=clock)
    with pytest.raises(ValueError, match=f"^ttl_ms: found {wrong}, allowed 1 to {TTL_MS_MAX}$"):
        store.bucket(b"b").set(b"k", b"v", wrong)
    assert store.bucket_names() == []
    store.bucket(b"b").set(b"k", b"v", TTL_MS_MAX)
    assert store.bucket(b"b").ttl_ms(b"k") == TTL_MS_MAX
    assert TTL_MS_MAX * NS_PER_MS < 2**63


# Memory


def test_a_key_without_deadline_pays_nothing_for_other_keys_deadlines(clock: Clock) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"name")
    bucket.set(b"k", b"v")
    assert store.sweep() is False
    clock.looks = 0
    [shard] = shards_of(store, b"name")
    plain_bytes = BUCKET_BYTES + bytes_size(4) + SHARD_BYTES + entry_size(b"k", b"v")
    assert (shard.deadlines, store.memory_bytes, len(store._tables.expiry)) == (None, plain_bytes, 0)
    bucket.set(b"l", b"v", ttl_ms=1)
    assert store.memory_bytes == plain_bytes + entry_size(b"l", b"v") + DEADLINE_BYTES + DEADLINES_BYTES
    assert deadlines_of(store, b"name") == {b"l": NS_PER_MS}
    assert len(store._tables.expiry) == 1
    assert clock.looks == 1, "only the timed key read the clock"


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (
            lambda bucket: bucket.increment(b"k", COUNTER_MAX + 1),
            CounterError,
            f"^the sum 0 .+ {COUNTER_MAX + 1} is outside",
        ),
        (lambda bucket: bucket.set(b"k", bytes(4_000)), LimitError, r"the limit is 4000 \(memory_bytes_max\)$"),
        (lambda bucket: bucket.set_many({b"k": bytes(4_000)}), LimitError, r"the limit is 4000 \(memory_bytes_max\)$"),
    ],
)
def test_a_refused_write_that_found_the_last_key_expired_frees_the_bucket(
    write: Callable[[Bucket], object], error: type[Exception], message: str, clock: Clock
) -> None:
    store = Store(StoreOptions(memory_bytes_max=4_000), clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"v", ttl_ms=1)
    clock.move_ms(1)
    with pytest.raises(error, match=message):
        write(bucket)
    assert (store.bucket_names(), store.memory_bytes, store.expired_keys) == ([], 0, 1)
    store.check()


# The sweep


def test_a_sweep_removes_the_keys_that_expired_first(clock: Clock) -> None:
    """A sweep that finds nothing expired costs one look at the clock, even if many shards have deadlines."""
    store = Store(clock=clock)
    for number in range(50):
        store.bucket(b"%d" % (number % 7)).set(b"%d" % number, b"v", ttl_ms=50 - number)
    for now_ms in range(1, 51):
        clock.now_ns = now_ms * NS_PER_MS - 1
        clock.looks = 0
        assert (store.sweep(1), clock.looks, store.overdue_ms) == (False, 1, -1 / NS_PER_MS)
        clock.now_ns += 2
        assert store.overdue_ms == 1 / NS_PER_MS
        assert store.sweep(1) is True
        assert store.expired_keys == now_ms
        assert store.overdue_ms == (1 / NS_PER_MS - 1 if now_ms < 50 else -inf)
        store.check()


# A split


class OvertakenRing(list[Shard]):
    """The shards of a table. Once, another call runs before they are iterated."""

    def __init__(self, shards: Iterable[Shard], overtake: Callable[[], object]) -> None:
        super().__init__(shards)
        self.calls = [overtake]

    def __iter__(self) -> Iterator[Shard]:
        while self.calls:
            self.calls.pop()()
        return super().__iter__()


def test_a_split_shows_no_expired_key_and_sweeps_no_key_too_early(clock: Clock) -> None:
    store = Store(StoreOptions(shard_keys_max=2, shards_min=1), hash_function=placed, clock=clock)
    bucket, timed = store.bucket(b"b"), store.bucket(b"b", BucketOptions(ttl_ms=1))
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
        sweeper.start()
        assert stripe.awaited.wait(TIMEOUT_S), "the sweep has neither ended nor reached the split"
        found.append(bucket.get_many([b"0", b"1", b"2"]))

    table.ring = (shift, OvertakenRing([shard], overtake))
    timed.set(b"2", b"v")
    sweeper.join(TIMEOUT_S)
    assert found == [[None] * 3]
    store.check()
    store.sweep()
    assert (store.expired_keys, store.bucket_names(), store.memory_bytes) == (3, [], 0)


# Reads by threads


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [2, 4_096])
def test_no_read_returns_an_expired_value(shard_keys_max: int) -> None:
    """Read while a writer notes when each value expired.

    That is the deadline it was given, counted from the time that the clock last told the writer's thread. It is never
    before the end of the write, since a write in progress may be seen.
    """
    ticks = count(step=NS_PER_MS // 50)
    told = local()

    def clock() -> int:
        told.now_ns = next(ticks)
        return int(told.now_ns)

    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=clock, secret=SECRET)
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


# At a limit, a write first sweeps as many expired keys as it needs

TIMED_KEYS = 3 * ROOM_WORK_MAX


def full(clock: Clock, limit: str) -> Store:
    """Return a store at this limit. The keys of three buckets expire in a millisecond; the key of the fourth stays."""
    memory_bytes = 4 * (BUCKET_BYTES + bytes_size(1) + SHARD_BYTES) + entry_size(b"stay", b"v")
    memory_bytes += TIMED_KEYS * (entry_size(b"0000", b"v") + DEADLINE_BYTES) + 3 * DEADLINES_BYTES
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
        ("keys_max", b"0"),  # a bucket that is freed by the sweep
        ("memory_bytes_max", b"s"),
        ("memory_bytes_max", b"n"),
        ("memory_bytes_max", b"0"),
        ("buckets_max", b"n"),
    ],
)
def test_a_write_sweeps_only_as_many_expired_keys_as_it_needs(
    write: Callable[[Bucket], object], limit: str, name: bytes, clock: Clock
) -> None:
    store = full(clock, limit)
    with pytest.raises(LimitError, match=rf"^the store would .*; the limit is \d+ \({limit}\)$"):
        write(store.bucket(b"n"))
    assert store.expired_keys == 0, "nothing has expired"
    clock.move_ms(1)
    write(store.bucket(name))
    assert store.bucket(name).get(b"new") == b"1"
    assert 0 <= store.expired_keys - ROOM_WORK_MAX <= 1
    assert store.bucket(b"s").get(b"stay") == b"v"
    store.check()


def test_a_large_write_sweeps_many_expired_keys(clock: Clock) -> None:
    store = full(clock, "keys_max")
    clock.move_ms(1)
    store.bucket(b"n").set_many({b"%d" % number: b"v" for number in range(ROOM_WORK_MAX + 1)})
    assert store.expired_keys == 2 * ROOM_WORK_MAX + 1
    store.check()


def test_a_write_that_never_fits_is_refused_after_bounded_work(clock: Clock) -> None:
    store = full(clock, "memory_bytes_max")
    clock.move_ms(1)
    for swept in (ROOM_WORK_MAX, 2 * ROOM_WORK_MAX, TIMED_KEYS, TIMED_KEYS):
        with pytest.raises(
            LimitError, match=r"^the store would take \d+ bytes of memory; the limit is \d+ \(memory_bytes_max\)$"
        ):
            store.bucket(b"n").set(b"new", bytes(10**6))
        assert store.expired_keys == swept
        store.check()
    assert store.bucket_names() == [b"s"]


def test_a_refused_write_does_not_look_for_expired_keys_in_vain(clock: Clock) -> None:
    count = 2 * ROOM_WORK_MAX
    store = Store(StoreOptions(keys_max=count), clock=clock)
    for number in range(count):
        store.bucket(b"%d" % number).set(b"k", b"v", ttl_ms=1 if number == count - 1 else 9)
    clock.move_ms(1)
    store.bucket(b"new").set(b"k", b"v")
    assert store.expired_keys == 1
    assert b"%d" % (count - 1) not in store.bucket_names()
    clock.looks = 0
    with pytest.raises(
        LimitError, match=rf"^the store would hold {count + 1} keys; the limit is {count} \(keys_max\)$"
    ):
        store.bucket(b"newer").set(b"k", b"v")
    assert clock.looks <= 2
    store.check()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("options", [StoreOptions(key_bytes_max=2), StoreOptions(bucket_name_bytes_max=2)])
def test_a_length_above_its_limit_sweeps_nothing(
    write: Callable[[Bucket], object], options: StoreOptions, clock: Clock
) -> None:
    store = Store(options, clock=clock)
    store.bucket(b"b").set(b"k", b"v", ttl_ms=1)
    clock.move_ms(1)
    with pytest.raises(
        LimitError, match=r"^(key|bucket name) is 3 bytes; the limit is 2 \((key|bucket_name)_bytes_max\)$"
    ):
        write(store.bucket(b"new"))
    assert store.expired_keys == 0


# Deadlines of a shard


class Keys:
    """Keys with deadlines, changed as a shard changes them."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.account = Account(b"b", Ledger(StoreOptions()))
        self.expiry = Expiry(lambda: 0)
        context = Context(lambda key: 0, lambda secret, key: 0, SECRET, self.account, self.expiry, KeptOrders())
        self.deadlines = Deadlines(SWEPT, self.entries, context)

    def put(self, key: bytes, deadline_ns: int) -> None:
        before_ns, is_copy = self.deadlines.of(key), key in self.entries
        self.entries[key] = b"", deadline_ns
        self.deadlines.put(key, deadline_ns, before_ns, is_copy)

    def drop(self, key: bytes, persist: bool = False) -> None:
        if self.entries.pop(key, None) is not None:
            if persist:
                self.entries[key] = b""
            self.deadlines.drop(key)

    def due(self, now_ns: int) -> set[bytes]:
        """Remove the expired keys, in steps of one item."""
        keys: set[bytes] = set()
        looks = 1
        while looks:
            due, looks = self.deadlines.take_due(now_ns, 1)
            for key in due:
                del self.entries[key]
            self.deadlines.settle()
            keys |= due.keys()
        return keys

    def check(self) -> None:
        if self.deadlines.count:
            self.deadlines.check()
        assert self.account.ledger.memory_bytes == self.deadlines.counted_bytes


def test_a_key_that_is_written_again_and_again_has_one_place_in_the_heap() -> None:
    keys = Keys()
    for now_ns in range(10_000):
        keys.put(b"k", now_ns + 100)
        assert keys.due(now_ns) == set()
    assert len(keys.deadlines._heap) == 1
    assert keys.due(9_999 + 100) == {b"k"}


@pytest.mark.parametrize("persist", [False, True])
def test_a_heap_holds_few_bytes_of_keys_that_are_gone(persist: bool) -> None:
    keys = Keys()
    deadlines = keys.deadlines
    numbers = [b"%d" % number for number in range(5_000)]
    for number, key in enumerate(numbers):
        keys.put(key, number)
    for key in numbers[:4_990]:
        keys.drop(key, persist)
        assert len(deadlines._heap) <= deadlines.count + spare_max(len(keys.entries)) // STALE_BYTES
    keys.check()
    assert deadlines.count == 10
    long = bytes(60_000)
    for number in range(1_000):
        keys.put(b"k", 20_000 - number)
        keys.put(long, number)
        keys.drop(long)
        keys.check()
    assert keys.due(20_000) == {*numbers[4_990:], b"k"}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([b"1", b"2", b"3"]), st.booleans() | st.integers(1, 50)) | st.integers(1, 9),
        max_size=300,
    )
)
def test_the_due_keys_are_those_of_a_dict(steps: list[tuple[bytes, int] | int]) -> None:
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
                due = keys.due(now_ns)
                assert due == {key for key, deadline_ns in model.items() if deadline_ns <= now_ns}
                model = {key: deadline_ns for key, deadline_ns in model.items() if key not in due}
        assert {key: deadlines.of(key) for key in keys.entries if deadlines.of(key)} == model
        keys.check()


# Threads


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [2, 4_096])
def test_threads_that_write_while_others_sweep_lose_nothing(shard_keys_max: int) -> None:
    """Write to a bucket that empties and fills, while the clock runs fast.

    Each thread knows what became of its own keys.
    """
    ticks = count(step=NS_PER_MS // 20)
    clock = ticks.__next__
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=clock, secret=SECRET)
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
    store = Store(StoreOptions(shard_keys_max=50, shards_min=1), clock=clock, secret=SECRET)
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


# The work of a step is bounded, even if it finds nothing to remove


def test_a_step_of_a_sweep_is_bounded_by_keys_removed_and_put_off_together(clock: Clock) -> None:
    """Write keys again before they expire. Their old places in the heap are out of date, and each costs a look."""
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
        put_off = sum(due_ns > clock.now_ns for due_ns, _ in shard.deadlines._heap)
        assert store.expired_keys + put_off == 10 * step
        assert (store.expired_keys > 0) is (put_off > 0)
    store.check()


@pytest.mark.parametrize("keys_max", [0, -1])
def test_a_sweep_of_no_keys_is_refused(keys_max: int) -> None:
    with pytest.raises(ValueError, match=f"keys_max: found {keys_max}, allowed at least 1"):
        Store().sweep(keys_max)


def test_a_full_quota_sweeps_its_own_bucket_first(clock: Clock) -> None:
    store = Store(clock=clock)
    quota = Quota(Reach(frozenset({b"mine"})), 1, None)
    store.add_quota(quota)
    for number in range(ROOM_WORK_MAX):
        store.bucket(b"other").set(b"%d" % number, b"v", ttl_ms=1)
    mine = store.bucket(b"mine", BucketOptions(quota=quota))
    mine.set(b"k", b"v", ttl_ms=2)
    clock.move_ms(2)
    mine.set(b"more", b"v")
    assert store.expired_keys == 1
    for _ in range(2):
        with pytest.raises(
            LimitError, match=r"^the buckets of this quota would hold 2 keys; the limit is 1 \(quota_keys\)$"
        ):
            mine.set(b"k", b"v")
        assert store.expired_keys == ROOM_WORK_MAX + 1
    store.check()
