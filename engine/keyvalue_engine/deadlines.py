"""The deadlines of the keys in one shard. This module counts the deadlines, and finds the keys that have expired.

Each entry holds the deadline beside the value, where readers find it. A heap of (deadline, key) items finds the expired
keys. Adding a key's first deadline to the heap takes O(log n). If a deadline moves to a later time, the heap keeps the
old item, and corrects the item when it reaches the top. So a key that is written repeatedly still has only one item.
In a large heap, at most half of the items are stale.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from keyvalue_engine.entry import Entry

__all__ = ["Deadlines"]

#: The heap is rebuilt when it has more than HEAP_MIN items and more than two items per deadline.
HEAP_MIN = 64


class Deadlines:
    """The deadlines in a shard. The shard's stripe protects this object.

    :param entries: the shard's entries; the shard changes an entry before it calls `put` or `drop`
    """

    __slots__ = ("_entries", "_heap", "count", "looks")

    def __init__(self, entries: dict[bytes, Entry]) -> None:
        self.count = 0
        #: The number of stale heap items examined so far.
        self.looks = 0
        self._entries = entries
        self._heap: list[tuple[int, bytes]] = []

    def of(self, key: bytes) -> int | None:
        """Return the deadline of a key, or None."""
        entry = self._entries.get(key)
        return entry[1] if isinstance(entry, tuple) else None

    def put(self, key: bytes, deadline_ns: int, before_ns: int | None) -> None:
        """Add a key's new deadline. `before_ns` is the deadline that it replaces, or None."""
        if before_ns is None:
            self.count += 1
        elif before_ns <= deadline_ns:
            return
        heappush(self._heap, (deadline_ns, key))
        self._tidy()

    def drop(self) -> None:
        """Decrement the count, after a deadline was removed from its entry."""
        self.count -= 1
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > HEAP_MIN and len(self._heap) > 2 * self.count:
            keys = {key for _, key in self._heap}
            self._heap = [(deadline_ns, key) for key in keys if (deadline_ns := self.of(key)) is not None]
            heapify(self._heap)

    def next_due(self, now_ns: int, looks_max: int = 2**63) -> bytes | None:
        """Return an expired key. The caller must remove the key before the next call.

        Return None if no key has expired, or if the first `looks_max` items were all stale.
        """
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
        """Assert that every deadline is counted, and has a heap item that is not later than the deadline. O(n)."""
        deadlines_ns = {key: entry[1] for key, entry in self._entries.items() if isinstance(entry, tuple)}
        assert self.count == len(deadlines_ns)
        earliest: dict[bytes, int] = {}
        for deadline_ns, key in self._heap:
            earliest[key] = min(deadline_ns, earliest.get(key, deadline_ns))
        assert all(earliest[key] <= deadline_ns for key, deadline_ns in deadlines_ns.items())
        assert len(self._heap) <= max(HEAP_MIN, 2 * self.count)
