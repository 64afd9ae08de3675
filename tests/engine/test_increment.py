"""Counters: which values are counters and which sums are allowed, and increments by threads.

What an increment does to a store is in the model (test_model.py).
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
        ("٣".encode(), r"'\xd9\xa3'"),  # a digit, though not a decimal one
        (b"\x00\xff'", r'"' + r"\x00\xff'" + r'"'),
        (b"0" * 21, "'" + "0" * 21 + "'"),
        (b"x" * 32, "'" + "x" * 32 + "'"),
        (b"x" * 33, "'" + "x" * 32 + "'..."),
        (b"\xff" * 1_000_000, "'" + r"\xff" * 32 + "'..."),
    ],
)
def test_a_value_that_is_no_number_is_refused(value: bytes, shown: str) -> None:
    with pytest.raises(CounterError) as caught:
        counter_sum(value, 1)
    assert str(caught.value) == f"value: found {shown}, allowed a decimal number from 0 to 18446744073709551615"
    assert isinstance(caught.value, StoreError)


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
    with pytest.raises(CounterError) as caught:
        counter_sum(value, delta)
    assert str(caught.value) == f"counter: found {int(value)} + {delta}, allowed a sum up to 18446744073709551615"


# Threads


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
