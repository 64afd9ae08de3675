"""Own the deadlines of one shard's keys: how many there are, and which are due.

A deadline stands in the shard's entries beside its value, where readers find it; a heap says what is due, at the price of O(log n) for a
key that gets its first deadline. A key whose deadline moves later keeps its place in the heap, and is put in again when that place comes
up. So a key that is written again and again stands there once, and at most half of the heap is out of date.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from keyvalue_engine.entry import Entry

__all__ = ["Deadlines"]

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
