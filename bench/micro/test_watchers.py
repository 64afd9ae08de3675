"""The cost of a watcher that never answers: sets with and without the watcher, and a push to the watcher's queue.

The queue is full, so each new event replaces the oldest event. The bucket is small, as in the end-to-end loads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.locked_dict import VALUE_BYTES, fresh, fresh_value, shuffled_keys
from bench.micro.turns import in_turns
from keyvalue_engine import Bucket, Store
from keyvalue_provider.config.options import WatchingLinkOptions
from keyvalue_provider.watching.delivery import ChangeDelivery
from keyvalue_provider.watching.patterns import Watch
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_provider.watching.routes import WatchRoutes, queue_observer

KEYS = 10_000
QUEUE_EVENTS = 10_000
QUEUE_BYTES = 16 * 1024 * 1024
BUCKET = b"bench"


class Stuck:
    """A component that receives a call and never answers it."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[None, int]],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> None:
        self.called.set()
        await asyncio.get_running_loop().create_future()


@pytest.fixture
def counts() -> WatchCounts:
    return WatchCounts()


@pytest.fixture
def watcher(counts: WatchCounts) -> Iterator[ChangeDelivery]:
    """Yield a watcher with a call in flight and a full queue."""
    component = Stuck()

    async def make() -> ChangeDelivery:
        limits = WatchLimits(QUEUE_EVENTS, QUEUE_BYTES, 5.0)
        watcher = ChangeDelivery("stuck", "default.stuck", component, lambda: True, limits, counts, lambda: None)
        for key in shuffled_keys(KEYS):
            watcher.queue.push((BUCKET, key, bytes(VALUE_BYTES)))
        await component.called.wait()
        return watcher

    with asyncio.Runner() as runner:
        watcher = runner.run(make())
        yield watcher
        watcher.close()


def bucket_of(store: Store) -> Bucket:
    bucket = store.bucket(BUCKET)
    for key in shuffled_keys(KEYS):
        bucket.set(key, bytes(VALUE_BYTES))
    return bucket


def set_all(bucket: Bucket) -> Callable[[list[tuple[bytes, bytes]]], None]:
    def act(entries: list[tuple[bytes, bytes]]) -> None:
        for key, value in entries:
            bucket.set(key, value)

    return act


def entries(_: int) -> list[tuple[bytes, bytes]]:
    return [(fresh(key), fresh_value()) for key in shuffled_keys(KEYS)]


def test_set_with_a_stuck_watcher(benchmark: BenchmarkFixture, watcher: ChangeDelivery, counts: WatchCounts) -> None:
    benchmark.group = f"watchers: {KEYS:,} sets"
    watched, unwatched = Store(), Store()
    watch = Watch.of(WatchingLinkOptions(watch="SET@*"))
    assert watch is not None
    mine, others = bucket_of(watched), bucket_of(unwatched)
    WatchRoutes(watched, queue_observer).put(watcher.queue, watch.patterns)
    before = counts.dropped
    in_turns(benchmark, KEYS, entries, set_all(mine), set_all(others), "watched", "unwatched")
    assert counts.dropped > before


def test_push_to_a_stuck_watcher(benchmark: BenchmarkFixture, watcher: ChangeDelivery, counts: WatchCounts) -> None:
    benchmark.group = "watchers: push"
    event = (BUCKET, b"key", bytes(VALUE_BYTES))
    benchmark(watcher.queue.push, event)
    assert counts.dropped > 0
    assert 0 < watcher.queue_length <= QUEUE_EVENTS
