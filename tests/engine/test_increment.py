"""Counters: decimal text that increments add to, what is none, and sums that would be too large."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import BucketOptions, CounterError, LimitError, Store, StoreError, StoreOptions
from keyvalue_engine.counter import COUNTER_MAX
from keyvalue_engine.entry import BUCKET_BYTES, SHARD_BYTES, bytes_size, entry_size
from tests.engine.clock import Clock
from tests.engine.entries import deadlines_of
from tests.engine.races import overtaken, run_together


@pytest.mark.parametrize(
    ("value", "delta", "total"),
    [
        (None, 0, 0),
        (None, 1, 1),
        (None, COUNTER_MAX, COUNTER_MAX),
        (b"0", 0, 0),
        (b"0", 7, 7),
        (b"9", 1, 10),
        (b"41", 1, 42),
        (b"007", 1, 8),
        (b"007", 0, 7),
        (b"00000000000000000000", 5, 5),
        (b"00000000000000000009", 1, 10),
        (b"%d" % (COUNTER_MAX - 1), 1, COUNTER_MAX),
        (b"%d" % COUNTER_MAX, 0, COUNTER_MAX),
        (b"5", -5, 0),
    ],
)
def test_a_counter_is_decimal_text(value: bytes | None, delta: int, total: int) -> None:
    store = Store()
    bucket = store.bucket(b"b")
    if value is not None:
        bucket.set(b"n", value)
    assert bucket.increment(b"n", delta) == total
    assert bucket.get(b"n") == b"%d" % total
    assert bucket.increment(b"n", 0) == total
    assert (len(store), store.bucket_names()) == (1, [b"b"])
    store.check()


@given(deltas=st.lists(st.integers(0, 2**61), max_size=8))
def test_increments_add_up(deltas: list[int]) -> None:
    bucket = Store().bucket(b"b")
    totals = [bucket.increment(b"n", delta) for delta in deltas]
    assert totals == [sum(deltas[: count + 1]) for count in range(len(deltas))]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"", "''"),
        (b"ten", "'ten'"),
        (b"1.5", "'1.5'"),
        (b"-1", "'-1'"),
        (b"+1", "'+1'"),
        (b" 1", "' 1'"),
        (b"1\n", r"'1\n'"),
        (b"1_000", "'1_000'"),
        (b"0x10", "'0x10'"),
        (b"1e3", "'1e3'"),
        ("٣".encode(), r"'\xd9\xa3'"),  # a digit, though not a decimal one
        (b"\x00\xff'", r'"' + r"\x00\xff'" + r'"'),
        (b"0" * 21, "'" + "0" * 21 + "'"),
        (b"x" * 32, "'" + "x" * 32 + "'"),
        (b"x" * 33, "'" + "x" * 32 + "'..."),
        (b"\xff" * 1_000_000, "'" + r"\xff" * 32 + "'..."),
    ],
)
def test_a_value_that_is_no_number_stays(value: bytes, shown: str) -> None:
    store = Store()
    bucket = store.bucket(b"b")
    bucket.set(b"n", value)
    memory_bytes = store.memory_bytes
    with pytest.raises(CounterError) as caught:
        bucket.increment(b"n", 1)
    assert str(caught.value) == f"value: found {shown}, allowed a decimal number from 0 to 18446744073709551615"
    assert isinstance(caught.value, StoreError)
    assert (bucket.get(b"n"), store.memory_bytes) == (value, memory_bytes)
    store.check()


@pytest.mark.parametrize(
    ("value", "delta"),
    [
        (b"%d" % COUNTER_MAX, 1),
        (b"%d" % COUNTER_MAX, COUNTER_MAX),
        (b"1", COUNTER_MAX),
        (b"99999999999999999999", 0),  # of twenty digits, and beyond the largest number by itself
        (b"99999999999999999999", 1),
        (b"4", -5),
    ],
)
def test_a_counter_never_passes_its_largest_number(value: bytes, delta: int) -> None:
    store = Store()
    bucket = store.bucket(b"b")
    bucket.set(b"n", value)
    with pytest.raises(CounterError) as caught:
        bucket.increment(b"n", delta)
    assert str(caught.value) == f"counter: found {int(value)} + {delta}, allowed a sum up to 18446744073709551615"
    assert bucket.get(b"n") == value
    store.check()


def test_an_increment_that_failed_makes_no_bucket() -> None:
    store = Store()
    with pytest.raises(CounterError, match=f"counter: found 0 \\+ {2**64}, allowed a sum up to {COUNTER_MAX}"):
        store.bucket(b"b").increment(b"n", 2**64)
    assert (store.bucket_names(), store.memory_bytes) == ([], 0)


# Deadlines


def test_an_increment_keeps_the_deadline(clock: Clock) -> None:
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"n", b"1", ttl_ms=100)
    memory_bytes = store.memory_bytes
    clock.move_ms(60)
    assert bucket.increment(b"n", 1) == 2
    assert bucket.ttl_ms(b"n") == 40
    assert store.memory_bytes == memory_bytes
    store.check()
    clock.move_ms(40)
    assert bucket.get(b"n") is None
    assert bucket.increment(b"n", 5) == 5, "a counter whose time is over begins anew"
    assert bucket.ttl_ms(b"n") is None
    store.check()


def test_an_increment_gives_the_deadline_of_its_handle(clock: Clock) -> None:
    store = Store(clock=clock)
    timed = store.bucket(b"b", BucketOptions(ttl_ms=100))
    assert timed.increment(b"n", 1) == 1
    assert timed.ttl_ms(b"n") == 100
    clock.move_ms(60)
    assert timed.increment(b"n", 1) == 2
    assert timed.ttl_ms(b"n") == 100
    assert store.bucket(b"b").increment(b"n", 1) == 3
    assert timed.ttl_ms(b"n") == 100
    store.check()


@pytest.mark.parametrize("left_ns", range(8))
def test_a_counter_that_expires_during_its_increment_is_no_counter_for_ever(left_ns: int) -> None:
    """The clock moves at each look: the sum is of what was there, and ends with it, or is the first of a new counter."""
    clock = Clock(tick_ns=1)
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    bucket.set(b"n", b"7", ttl_ms=1)
    clock.now_ns = deadlines_of(store)[b"n"] - left_ns
    total = bucket.increment(b"n", 1)
    store.check()
    clock.tick_ns = 0
    clock.move_ms(1)
    if total == 8:
        assert bucket.get(b"n") is None
    else:
        assert (total, bucket.get(b"n"), store.expired_keys) == (1, b"1", 1)


# Limits


def test_a_key_of_a_counter_has_the_limit_of_any_key() -> None:
    store = Store(StoreOptions(key_bytes_max=3))
    with pytest.raises(LimitError, match=r"^key in bytes: found 4, allowed 3$"):
        store.bucket(b"b").increment(b"long", 1)
    assert store.bucket(b"b", BucketOptions(key_bytes_max=4)).increment(b"long", 1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (StoreOptions(keys_max=1), "keys limit: found 2, allowed 1"),
        (StoreOptions(buckets_max=1), "buckets: found 2, allowed 1"),
        (StoreOptions(bucket_name_bytes_max=4), "bucket name in bytes: found 7, allowed 4"),
    ],
)
def test_a_new_counter_that_finds_no_room_leaves_the_store_as_it_was(options: StoreOptions, message: str) -> None:
    store = Store(options)
    store.bucket(b"full").set(b"k", b"v")
    memory_bytes = store.memory_bytes
    with pytest.raises(LimitError, match=f"^{message}$"):
        store.bucket(b"counter").increment(b"n", 1)
    assert (store.bucket_names(), len(store), store.memory_bytes) == ([b"full"], 1, memory_bytes)
    store.check()


def test_a_counter_that_finds_no_room_to_grow_stays() -> None:
    digits = b"9" * 15
    full_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"n", digits)
    store = Store(StoreOptions(memory_bytes_max=full_bytes))
    bucket = store.bucket(b"b")
    bucket.set(b"n", digits)
    with pytest.raises(LimitError, match=f"^memory limit in bytes: found {full_bytes + 16}, allowed {full_bytes}$"):
        bucket.increment(b"n", 1)
    assert bucket.get(b"n") == digits
    assert bucket.increment(b"n", 0) == int(digits)
    store.check()


# Threads, and calls that overtake


@pytest.mark.parametrize("by_split", [False, True])
def test_an_increment_overtaken_is_not_lost(by_split: bool) -> None:
    store, bucket, by = overtaken(2, *([b"0", b"1"] if by_split else [b"1"]))
    by((lambda: bucket.set(b"2", b"v")) if by_split else (lambda: bucket.delete(b"1")))
    assert bucket.increment(b"3", 4) == 4
    assert bucket.get(b"3") == b"4"
    assert len(store) == (4 if by_split else 1)
    store.check()


def test_increments_split_shards() -> None:
    store = Store(StoreOptions(shard_keys_max=2, shards_min=1))
    bucket = store.bucket(b"b")
    for number in range(100):
        assert bucket.increment(b"%d" % number, number) == number
        store.check()
    assert bucket.get_many([b"%d" % number for number in range(100)]) == [b"%d" % number for number in range(100)]


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_threads_that_increment_one_key_lose_none(shard_keys_max: int) -> None:
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1))
    totals: list[list[int]] = [[] for _ in range(8)]

    def count(thread: int) -> None:
        bucket = store.bucket(b"b")
        for number in range(1_000):
            totals[thread].append(bucket.increment(b"n", 1))
            if number % 50 == 0:
                bucket.set(b"%d %d" % (thread, number), b"")  # so that shards are split meanwhile

    run_together(*[lambda n=n: count(n) for n in range(8)])
    assert store.bucket(b"b").get(b"n") == b"8000"
    assert all(own == sorted(own) for own in totals)
    assert sorted(total for own in totals for total in own) == list(range(1, 8_001)), "no sum was returned twice"
    store.check()


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_increment_and_take_the_last_key_away_lose_none() -> None:
    """Each counter begins with a sum of 1, and ends with a delete that finds it."""
    store = Store()

    bucket = store.bucket(b"b")
    begun: list[int] = []
    ended: list[int] = []

    def increment() -> None:
        begun.append(sum(bucket.increment(b"n", 1) == 1 for _ in range(2_000)))

    def delete() -> None:
        ended.append(sum(bucket.delete(b"n") for _ in range(2_000)))

    run_together(*[increment] * 4, *[delete] * 4)
    assert sum(begun) == sum(ended) + bucket.exists(b"n")
    store.check()


def test_a_counter_is_no_longer_than_a_value_may_be() -> None:
    store = Store()
    bucket = store.bucket(b"b", BucketOptions(value_bytes_max=2))
    assert bucket.increment(b"n", 99) == 99
    with pytest.raises(LimitError, match="value in bytes: found 3, allowed 2"):
        bucket.increment(b"n", 1)
    assert bucket.get(b"n") == b"99"
    store.check()
