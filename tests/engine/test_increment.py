"""Counters: which values are counters, which sums are allowed, and increments by threads.

The model (test_model.py) tests the effect of an increment on a store.
"""

from __future__ import annotations

import pytest

from keyvalue_engine import CounterError, Store, StoreError, StoreOptions
from keyvalue_engine.counter import COUNTER_MAX, counter_sum
from tests.engine.races import run_together


@pytest.mark.parametrize(
    ("value", "delta", "total"),
    [
        (b"0", 0, 0),
        (b"9", 1, 10),
        (b"007", 1, 8),
        (b"00000000000000000000", 5, 5),
        (b"00000000000000000009", 1, 10),
        (b"%d" % (COUNTER_MAX - 1), 1, COUNTER_MAX),
        (b"%d" % COUNTER_MAX, 0, COUNTER_MAX),
        (b"5", -5, 0),
    ],
)
def test_a_counter_is_decimal_text(value: bytes, delta: int, total: int) -> None:
    assert counter_sum(value, delta) == total


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"", "''"),
        (b"ten", "'ten'"),
        (b"-1", "'-1'"),
        (b"+1", "'+1'"),
        (b" 1", "' 1'"),
        (b"1\n", r"'1\n'"),
        (b"1_000", "'1_000'"),
        (b"1e3", "'1e3'"),
        ("٣".encode(), r"'\xd9\xa3'"),  # a digit, but not a decimal one
        (b"\x00\xff'", r'"' + r"\x00\xff'" + r'"'),
        (b"0" * 21, "'" + "0" * 21 + "'"),
        (b"x" * 32, "'" + "x" * 32 + "'"),
        (b"x" * 33, "'" + "x" * 32 + "'..."),
        (b"\xff" * 1_000_000, "'" + r"\xff" * 32 + "'..."),
    ],
)
def test_an_increment_refuses_a_value_that_is_not_a_number(value: bytes, shown: str) -> None:
    with pytest.raises(CounterError) as caught:
        counter_sum(value, 1)
    assert str(caught.value) == f"the value {shown} is not a decimal number from 0 to 18446744073709551615"
    assert isinstance(caught.value, StoreError)


@pytest.mark.parametrize(
    ("value", "delta"),
    [
        (b"%d" % COUNTER_MAX, 1),
        (b"%d" % COUNTER_MAX, COUNTER_MAX),
        (b"1", COUNTER_MAX),
        (b"99999999999999999999", 0),  # of twenty digits, and above the largest number by itself
        (b"99999999999999999999", 1),
        (b"4", -5),
    ],
)
def test_a_counter_never_passes_its_largest_number(value: bytes, delta: int) -> None:
    with pytest.raises(CounterError) as caught:
        counter_sum(value, delta)
    assert str(caught.value) == f"the sum {int(value)} + {delta} is outside the range 0 to 18446744073709551615"


# Threads


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_increments_of_one_key_by_threads_are_all_counted(shard_keys_max: int) -> None:
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
def test_no_increment_is_lost_to_threads_that_delete_the_counter() -> None:
    """Start each counter with a sum of 1, and end it with a delete that finds it."""
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
