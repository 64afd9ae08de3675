"""Expiry: when the keys of a shard end, and which shards of a store have such keys.

A deadline is a time of the store's clock in nanoseconds. It stands in the shard's entries beside its value, where readers find it; a heap says
what is due, at the price of O(log n) for a key that gets its first deadline. A key whose deadline moves later keeps its place in the heap
and is put in again when that comes; so a key that is written again and again stands there once, and what is out of date is at most half of the
heap.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from keyvalue_engine.shard import Shard

__all__ = ["Deadlines", "Entry", "Expiry", "Timed"]

#: A value and its deadline. A write replaces both at one stroke, so nobody sees the one without the other. A plain tuple: a NamedTuple costs
#: many times as much to make, and the garbage collector would never cease to track it.
Timed: TypeAlias = tuple[bytes, int]
#: What a key holds. Who asks often compares the class: `isinstance` costs more where the answer is no.
Entry: TypeAlias = bytes | Timed

#: The heap is made anew when it has more places than this, and more than two a deadline.
HEAP_MIN = 64


class Deadlines:
    """How many keys of a shard have deadlines, and what is due. Protected by the shard's stripe.

    :param entries: the shard's, which are changed first: what they say is the deadline of a key
    """

    __slots__ = ("_entries", "_heap", "count", "looks")

    def __init__(self, entries: dict[bytes, Entry]) -> None:
        self.count = 0
        #: Places of the heap that were out of date and looked at, so far.
        self.looks = 0
        self._entries = entries
        self._heap: list[tuple[int, bytes]] = []

    def of(self, key: bytes) -> int | None:
        """The deadline of a key, if it has one."""
        entry = self._entries.get(key)
        return entry[1] if isinstance(entry, tuple) else None

    def put(self, key: bytes, deadline_ns: int, before_ns: int | None) -> None:
        """A key got a deadline, in place of another one or none."""
        if before_ns is None:
            self.count += 1
        elif before_ns <= deadline_ns:
            return
        heappush(self._heap, (deadline_ns, key))
        self._tidy()

    def drop(self) -> None:
        """A key has none any more."""
        self.count -= 1
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > HEAP_MIN and len(self._heap) > 2 * self.count:
            keys = {key for _, key in self._heap}
            self._heap = [(deadline_ns, key) for key in keys if (deadline_ns := self.of(key)) is not None]
            heapify(self._heap)

    def next_due(self, now_ns: int, looks_max: int = 2**63) -> bytes | None:
        """A key whose time is over; None if there is none, or so many places were out of date. It is to be removed next."""
        heap = self._heap
        looks_end = self.looks + looks_max
        while heap and heap[0][0] <= now_ns and self.looks < looks_end:
            key = heap[0][1]
            deadline_ns = self.of(key)
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
        """Assert that every deadline is counted, and has a place in the heap that is not too late. O(n)."""
        deadlines_ns = {key: entry[1] for key, entry in self._entries.items() if isinstance(entry, tuple)}
        assert self.count == len(deadlines_ns)
        earliest: dict[bytes, int] = {}
        for deadline_ns, key in self._heap:
            earliest[key] = min(deadline_ns, earliest.get(key, deadline_ns))
        assert all(earliest[key] <= deadline_ns for key, deadline_ns in deadlines_ns.items())
        assert len(self._heap) <= max(HEAP_MIN, 2 * self.count)


class Expiry:
    """The shards of a store in which keys have deadlines, in the order in which they are swept.

    :param clock: nanoseconds that never go back
    """

    __slots__ = ("_lock", "_shards", "clock", "expired_keys", "was_used")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.expired_keys = 0
        #: Whether any key ever had a deadline. Set before the first is written, so who finds it unset after a look-up has found none.
        self.was_used = False
        self._lock = Lock()  # protects expired_keys and _shards; a leaf, as the ledger's
        self._shards: OrderedDict[Shard, None] = OrderedDict()  # it finds its first in O(1), where a dict would not

    def deadline_ns(self, ttl_ns: int) -> int | None:
        """When what lives so long from now on ends; None where that is 0: never."""
        return self.clock() + ttl_ns if ttl_ns else None

    def add(self, shard: Shard) -> None:
        """A shard is about to get its first deadline, or got it before it was in the ring."""
        self.was_used = True
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
