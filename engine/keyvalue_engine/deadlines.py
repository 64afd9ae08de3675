"""The deadlines of the keys in one shard. This module counts the deadlines, and finds the keys that have expired.

Each entry holds the deadline beside the value, where readers find it. A heap of (deadline, key) items finds the expired
keys. Adding a key's first deadline to the heap takes O(log n). If a deadline moves to a later time, the heap keeps the
old item, and corrects the item when it reaches the top. So a key whose deadline only moves to later times has one item.

An old item may hold a key that was removed, or a second copy of a stored key. Such keys may be long. So the heap counts
their bytes, the spare bytes. If there are too many, the heap is rebuilt from the entries.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from keyvalue_engine.context import Context
from keyvalue_engine.entry import DEADLINES_BYTES, SPARE_STEP, Entry, Timed, spare_max
from keyvalue_engine.expiry import Place, Swept

__all__ = ["Deadlines"]

#: Memory of a heap item whose key is stored nowhere else, besides the key's length: the tuple, the int object, the
#: place in the heap, and a bytes object without its content.
STALE_BYTES = 168


class Deadlines:
    """The deadlines in a shard, and the shard's place in the schedule of sweeps. The shard's stripe protects this object.

    :param shard: the shard, which has no other `Deadlines`
    :param entries: the shard's entries; the shard changes an entry before it calls `put` or `drop`
    """

    __slots__ = (
        *("_account", "_expiry", "_heap", "_place", "_shard", "_spare_bytes"),
        *("count", "counted_bytes", "entries"),
    )

    def __init__(self, shard: Swept, entries: dict[bytes, Entry], context: Context) -> None:
        self.count = 0
        self.entries = entries
        self._shard = shard
        self._expiry = context.expiry
        self._place: Place | None = None
        self._heap: list[tuple[int, bytes]] = []
        self._spare_bytes = 0
        self._account = context.account
        #: The memory that the ledger counts for this object, besides the entries.
        self.counted_bytes = DEADLINES_BYTES
        self._account.adjust(DEADLINES_BYTES)

    def find(self) -> None:
        """Find the deadlines in the entries. O(n). Call this first, and `schedule` once the shard is in the ring."""
        self._rebuild()
        self.count = len(self._heap)

    def schedule(self) -> None:
        """Give the shard its right place in the schedule. At least one key must have a deadline. O(log shards)."""
        due_ns = self._heap[0][0]
        if self._place is None or self._place.due_ns != due_ns:
            self._place = self._expiry.schedule(self._shard, due_ns, self._place)

    def of(self, key: bytes) -> int | None:
        """Return the deadline of a key, or None."""
        entry = self.entries.get(key)
        return entry[1] if isinstance(entry, tuple) else None

    def put(self, key: bytes, deadline_ns: int, before_ns: int | None, is_copy: bool) -> None:
        """Add a key's new deadline. O(log n + log shards).

        :param before_ns: the deadline that the new one replaces, or None
        :param is_copy: True if `key` is not the stored object, because the key was stored earlier
        """
        if before_ns is None:
            self.count += 1
        elif before_ns <= deadline_ns:
            return
        heappush(self._heap, (deadline_ns, key))
        if is_copy:
            self._spare(key)
        if self._place is None or deadline_ns < self._place.due_ns:
            self.schedule()

    def drop(self, key: bytes) -> None:
        """Decrement the count, after the deadline of a key was removed from its entry."""
        self.count -= 1
        self._spare(key)

    def close(self) -> None:
        """Release the memory and the place in the schedule. Do not use this object again."""
        self._account.adjust(-self.counted_bytes)
        self.counted_bytes = 0
        if self._place is not None:
            self._expiry.remove(self._place)

    def settle(self) -> None:
        """Update the place in the schedule and the count of memory, after a call of `take_due`."""
        self._limit_spare()
        if self.count and self._place is not None:
            self.schedule()

    def renew(self, entries: dict[bytes, Entry], pairs: list[tuple[int, bytes]]) -> None:
        """Take equal entries in place of the current ones. O(n).

        :param pairs: each deadline with the key's object in `entries`
        """
        self.entries = entries
        heapify(pairs)
        self._heap = pairs
        self._spare_bytes = 0
        self.settle()

    def _spare(self, key: bytes) -> None:
        """Count an item whose key is not the stored object."""
        self._spare_bytes += STALE_BYTES + len(key)
        self._limit_spare()

    def _limit_spare(self) -> None:
        """Rebuild the heap if it holds too many spare bytes. Count its memory."""
        if self._spare_bytes > spare_max(len(self.entries)):
            self._rebuild()
        self._count_memory()

    def _rebuild(self) -> None:
        self._heap = [(entry[1], key) for key, entry in self.entries.items() if isinstance(entry, tuple)]
        heapify(self._heap)
        self._spare_bytes = 0

    def _count_memory(self) -> None:
        growth = DEADLINES_BYTES + self._spare_bytes - self.counted_bytes
        if not -SPARE_STEP < growth < SPARE_STEP:
            self._account.adjust(growth)
            self.counted_bytes += growth

    def take_due(self, now_ns: int, looks_max: int) -> tuple[dict[bytes, Timed], int]:
        """Take the expired keys out of the heap, and subtract them from the count. Examine at most `looks_max` items.

        The caller must remove the keys, and then call `settle`.

        :return: the keys with their entries, and the number of examined items
        """
        heap, entries = self._heap, self.entries
        due: dict[bytes, Timed] = {}
        looks = 0
        while looks < looks_max and heap and heap[0][0] <= now_ns:
            looks += 1
            key = heap[0][1]
            entry = entries.get(key)
            if entry.__class__ is tuple and key not in due:
                deadline_ns = entry[1]
                if deadline_ns > now_ns:
                    heapreplace(heap, (deadline_ns, key))
                    continue
                due[key] = entry
            else:
                self._spare_bytes = max(0, self._spare_bytes - STALE_BYTES - len(key))
            heappop(heap)
        self.count -= len(due)
        return due, looks

    def check(self) -> None:
        """Assert that every deadline is counted, and has a heap item that is not later than the deadline. O(n)."""
        deadlines_ns = {key: entry[1] for key, entry in self.entries.items() if isinstance(entry, tuple)}
        assert self.count == len(deadlines_ns)
        earliest: dict[bytes, int] = {}
        for deadline_ns, key in self._heap:
            earliest[key] = min(deadline_ns, earliest.get(key, deadline_ns))
        assert all(earliest[key] <= deadline_ns for key, deadline_ns in deadlines_ns.items())
        stored = {id(key) for key in self.entries}
        copies = [key for _, key in self._heap if id(key) not in stored or key not in deadlines_ns]
        assert sum(STALE_BYTES + len(key) for key in copies) <= self._spare_bytes
        assert abs(DEADLINES_BYTES + self._spare_bytes - self.counted_bytes) < SPARE_STEP
        assert self._place is not None
        assert self._place.due_ns <= min(deadlines_ns.values())
