"""Helpers for tests of races: threads that start together, and a lock that says when it is awaited."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock

#: Seconds to wait for something that must happen.
TIMEOUT_S = 30.0


def run_together(*calls: Callable[[], object]) -> None:
    """Start each call at the same moment in its own thread. Raise the first one's error, if any."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        call()

    with ThreadPoolExecutor(len(calls)) as threads:
        for future in [threads.submit(run, call) for call in calls]:
            future.result()


class AnnouncedLock:
    """A lock that says when a thread is about to wait for it."""

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


def placed(secret: bytes, key: bytes) -> int:
    """Hash a key by the quarter of the ring that its text names: b"3 any"."""
    return int(key[:1]) << 62
