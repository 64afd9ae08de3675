"""The engine with 1, 2 and 4 threads. The same total number of calls is divided among the threads.

With the GIL, the figures show the cost of locks. Without the GIL, they show how well threads scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.locked_dict import VALUE_BYTES, shuffled_keys
from keyvalue_engine import Bucket, Store

KEYS = 100_000
CALLS = 100_000
ROUNDS = 20
#: In a mixed load, one call in this many is a set.
SET_ONE_IN = 20


@pytest.fixture(scope="module")
def keys() -> list[bytes]:
    return shuffled_keys(KEYS)


@pytest.fixture
def bucket(keys: list[bytes]) -> Bucket:
    bucket = Store().bucket(b"bench")
    for key in keys:
        bucket.set(key, bytes(VALUE_BYTES))
    return bucket


@pytest.fixture(params=[1, 2, 4], ids=lambda number: f"{number}-threads")
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def in_threads(
    benchmark: BenchmarkFixture, threads: int, keys: Sequence[bytes], act: Callable[[Sequence[bytes]], int]
) -> None:
    """Benchmark `act` on all keys, divided among the threads. `act` returns the number of calls that succeeded."""
    shares = [keys[number::threads] for number in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        assert benchmark.pedantic(lambda: sum(pool.map(act, shares)), rounds=ROUNDS, warmup_rounds=1) == CALLS  # type: ignore[no-untyped-call]
    if benchmark.stats is not None:  # not with --benchmark-disable
        benchmark.extra_info["calls a second"] = round(CALLS / benchmark.stats.stats.median)


def test_get(benchmark: BenchmarkFixture, threads: int, keys: list[bytes], bucket: Bucket) -> None:
    benchmark.group = f"threads: {CALLS:,} gets"

    def get_all(keys: Sequence[bytes]) -> int:
        get = bucket.get
        return sum(get(key) is not None for key in keys)

    in_threads(benchmark, threads, keys, get_all)


def test_set(benchmark: BenchmarkFixture, threads: int, keys: list[bytes], bucket: Bucket) -> None:
    benchmark.group = f"threads: {CALLS:,} sets of existing keys"
    value = bytes(VALUE_BYTES)

    def set_all(keys: Sequence[bytes]) -> int:
        set_value = bucket.set
        for key in keys:
            set_value(key, value)
        return len(keys)

    in_threads(benchmark, threads, keys, set_all)
    assert len(bucket) == KEYS


def test_mixed(benchmark: BenchmarkFixture, threads: int, keys: list[bytes], bucket: Bucket) -> None:
    benchmark.group = f"threads: {CALLS:,} calls, 95 % get and 5 % set"
    value = bytes(VALUE_BYTES)

    def act(keys: Sequence[bytes]) -> int:
        right = 0
        for number, key in enumerate(keys):
            if number % SET_ONE_IN:
                right += bucket.get(key) is not None
            else:
                bucket.set(key, value)
                right += 1
        return right

    in_threads(benchmark, threads, keys, act)
