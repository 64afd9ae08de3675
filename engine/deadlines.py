"""Expiry: when the keys of a shard end, and which shards of a store have such keys.

A deadline is a time of the store's clock in nanoseconds. `of` is what readers ask; the heap says what is due, at the price of O(log n) for a key
that gets its first deadline. A key whose deadline moves later keeps its place in the heap and is put in again when that comes; so a key
that is written again and again stands there once, and what is out of date is at most half of the heap.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.shard import Shard

__all__ = ["Deadlines", "Expiry"]

#: The heap is made anew when it has more places than this, and more than two a deadline.
HEAP_MIN = 64


class Deadlines:
    """Deadlines of one shard's keys. Protected by its stripe, but for `of.get`, which a dict does at one instant."""

    __slots__ = ("_heap", "looks", "of")

    def __init__(self) -> None:
        self.of: dict[bytes, int] = {}
        #: Places of the heap that were out of date and looked at, so far.
        self.looks = 0
        self._heap: list[tuple[int, bytes]] = []

    def put(self, key: bytes, deadline_ns: int) -> None:
        """Give a key a deadline, or another one."""
        of = self.of
        before_ns = of.get(key)
        of[key] = deadline_ns
        if before_ns is not None and before_ns <= deadline_ns:
            return
        heappush(self._heap, (deadline_ns, key))
        self._tidy()

    def drop(self, key: bytes) -> None:
        """Forget a key's deadline, if it has one."""
        self.of.pop(key, None)
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > HEAP_MIN and len(self._heap) > 2 * len(self.of):
            self._heap = [(deadline_ns, key) for key, deadline_ns in self.of.items()]
            heapify(self._heap)

    def next_due(self, now_ns: int, looks_max: int = 2**63) -> bytes | None:
        """A key whose time is over; None if there is none, or so many places were out of date. It is to be dropped next."""
        heap, of = self._heap, self.of
        looks_end = self.looks + looks_max
        while heap and heap[0][0] <= now_ns and self.looks < looks_end:
            key = heap[0][1]
            deadline_ns = of.get(key)
            if deadline_ns is not None and deadline_ns <= now_ns:
                heappop(heap)
                return key
            self.looks += 1
            if deadline_ns is None:
                heappop(heap)
            else:
                heapreplace(heap, (deadline_ns, key))
        return None

    def check(self) -> None:
        """Assert that every deadline has a place in the heap that is not too late. O(n)."""
        earliest: dict[bytes, int] = {}
        for deadline_ns, key in self._heap:
            earliest[key] = min(deadline_ns, earliest.get(key, deadline_ns))
        assert all(earliest[key] <= deadline_ns for key, deadline_ns in self.of.items())
        assert len(self._heap) <= max(HEAP_MIN, 2 * len(self.of))


class Expiry:
    """The shards of a store in which keys have deadlines, in the order in which they are swept.

    :param clock: nanoseconds that never go back
    """

    __slots__ = ("_lock", "_shards", "clock", "expired_keys")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.expired_keys = 0
        self._lock = Lock()  # protects expired_keys and _shards; a leaf, as the ledger's
        self._shards: OrderedDict[Shard, None] = OrderedDict()  # it finds its first in O(1), where a dict would not

    def deadline_ns(self, ttl_ns: int) -> int | None:
        """When what lives so long from now on ends; None where that is 0: never."""
        return self.clock() + ttl_ns if ttl_ns else None

    def add(self, shard: Shard) -> None:
        """A shard got its first deadline."""
        with self._lock:
            self._shards[shard] = None

    def remove(self, shard: Shard) -> None:
        """A shard has none any more."""
        with self._lock:
            self._shards.pop(shard, None)

    def rotate(self) -> Shard | None:
        """The shard whose turn it is; it goes to the end of the row."""
        with self._lock:
            for shard in self._shards:
                self._shards.move_to_end(shard)
                return shard
        return None

    def count(self, keys: int) -> None:
        """Keys have expired, and are removed."""
        with self._lock:
            self.expired_keys += keys

    def __len__(self) -> int:
        return len(self._shards)
