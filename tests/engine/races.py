"""What tests of races share: threads that begin at one moment, and calls that overtake each other where they can."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock
from time import monotonic_ns
from typing import Any

from keyvalue_engine import Bucket, Store, StoreOptions

#: For what must happen.
TIMEOUT_S = 30.0


def run_together(*calls: Callable[[], object]) -> None:
    """Run each call in a thread of its own, begun at one moment; raises what the first of them raised."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        call()

    with ThreadPoolExecutor(len(calls)) as threads:
        for future in [threads.submit(run, call) for call in calls]:
            future.result()


class OvertakenStripe:
    """A stripe before which another call gets in, once."""

    def __init__(self, stripe: Lock, overtake: Callable[[], object]) -> None:
        self.stripe = stripe
        self.calls = [overtake]

    def acquire(self) -> bool:
        while self.calls:
            self.calls.pop()()
        return self.stripe.acquire()

    def release(self) -> None:
        self.stripe.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class AnnouncedLock:
    """A lock that says when somebody is about to wait for it."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.awaited = Event()

    def acquire(self) -> bool:
        if self.lock.acquire(blocking=False):
            return True
        self.awaited.set()
        return self.lock.acquire()

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def placed(key: bytes, seed: int) -> int:
    """A hash function under which a key says its quarter of the ring: b"3 any"."""
    return int(key[:1]) << 62


def overtaken(
    shard_keys_max: int, *keys: bytes, strict: bool = False, clock: Callable[[], int] = monotonic_ns
) -> tuple[Store, Bucket, Callable[..., None]]:
    """A store of one shard that holds these keys, its bucket, and what sets a call to overtake the next one."""
    options = StoreOptions(shard_keys_max=shard_keys_max, shards_min=1, strict_buckets=strict)
    store = Store(options, hash_function=placed, clock=clock)
    bucket = store.bucket(b"b")
    for key in keys:
        bucket.set(key, b"old")
    shards: list[Any] = list(store._tables.by_name[b"b"].shards())
    assert len(shards) == 1

    def by(overtake: Callable[[], object]) -> None:
        shards[0].stripe = OvertakenStripe(shards[0].stripe, overtake)

    return store, bucket, by
