"""What tests of races share: threads that begin at one moment, and a lock that says that it is awaited."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock

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
