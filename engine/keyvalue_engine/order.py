"""The keys of a shard, sorted by position. This module keeps the order up to date, and fills pages with its keys.

The order is lazy
-----------------
Most buckets are never listed, and sorting the keys on each write would cost more than the write itself. So the order
is built and updated only when a page needs it:

- A shard has no order until its first page. The first page sorts the keys. The sort takes O(n log n), and splits keep
  n small.
- From then on, a write that adds or removes a key appends the key to `changes`. Appending takes O(1). An overwrite
  moves no key, so it appends nothing.
- The next page applies the changes in O(changes * log n). The page looks up each changed key in the shard's entries.
  So it does not matter how often the key was added and removed.
- If applying the changes would cost more than sorting again, the order and its changes are dropped. The next page
  then builds a new order. So `changes` stays bounded even if no page is read.
- The order and its changes hold removed keys, which may be long. If these keys take too many bytes, the write applies
  the changes itself, so that the keys are released.

    first page ──> kept ── note ──> kept, with changes ── too many changes ──> dropped (the shard has no order again)
                    ^                     │
                    └─ page: update ──────┤
                    └─ note: many bytes ──┘

The ledger counts the memory of a kept order. If the store has no room for an order, the page uses the order once, and
the order is not kept. A write that finds the store full drops the orders that were not used for the longest time.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from sortedcontainers import SortedKeyList

from keyvalue_engine.context import Context
from keyvalue_engine.entry import ORDER_BYTES, ORDER_OBJECT_BYTES, SPARE_STEP, Entry
from keyvalue_engine.errors import FullError
from keyvalue_engine.filling import KEY_OVERHEAD_BYTES, Filling
from keyvalue_engine.kept_orders import Ordered

__all__ = ["CHANGES_MIN", "CHANGES_SHARE", "LazyOrder"]

#: The order is dropped once there are more than `CHANGES_MIN` changes since the last page, and more than one for each
#: `CHANGES_SHARE` keys. Applying one change takes about `CHANGES_SHARE` times as long as a new sort takes per key: with
#: one change for seven keys, a page took 0.9 times as long as with a new order, for 256, 1,024 and 4,096 keys.
CHANGES_MIN = 64
CHANGES_SHARE = 6
#: Memory of a change besides the key's length: two bytes objects without their content, and a place in `changes`.
#: There are two objects, because the order may hold the stored key, and `changes` the key of the caller who removed it.
CHANGE_BYTES = 104
#: The changes are applied when they take more than CHANGES_BYTES_MIN + CHANGES_BYTES_PER_KEY * keys. Short keys are
#: bounded by their number first.
CHANGES_BYTES_MIN = 16 * 1024
CHANGES_BYTES_PER_KEY = 24


class LazyOrder:
    """The keys of a shard, ordered by position.

    A page of the shard creates the order, and the shard's stripe protects it.

    :param shard: the shard, which has no other order
    :param entries: the shard's entries; the shard changes them before it calls `note`
    """

    __slots__ = (
        *("_account", "_changes_bytes", "_count_at", "_keys", "_noted", "_orders", "_position_of", "_shard"),
        *("changes", "counted_bytes", "entries"),
    )

    def __init__(self, shard: Ordered, entries: Mapping[bytes, Entry], context: Context) -> None:
        self.entries = entries
        self._shard = shard
        self._position_of = context.position_of
        self._account = context.account
        self._orders = context.orders
        self._keys: SortedKeyList[bytes] = SortedKeyList(entries, key=context.position_of)
        #: Keys that were added or removed, and are not applied yet. A key may occur several times.
        self.changes: list[bytes] = []
        self._changes_bytes = 0
        self._noted = 0  # changes since the last page
        #: The memory that the ledger counts for the order.
        self.counted_bytes = 0
        self._count_at = SPARE_STEP  # the `_changes_bytes` at which `note` updates the count

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the order. O(1)."""
        return ORDER_OBJECT_BYTES + ORDER_BYTES * len(self._keys) + self._changes_bytes

    def note(self, key: bytes) -> bool:
        """Note that a key was added or removed. O(1), or O(changes * log n) if the changes take too much memory.

        Return False if the order was dropped. Do not use a dropped order again.
        """
        self.changes.append(key)
        self._changes_bytes += 2 * len(key) + CHANGE_BYTES
        self._noted += 1
        keys = len(self.entries)
        if not keys or (self._noted > CHANGES_MIN and self._noted * CHANGES_SHARE > keys):
            self.drop()
            return False
        if self._changes_bytes >= self._count_at:
            if self._changes_bytes > CHANGES_BYTES_MIN + CHANGES_BYTES_PER_KEY * keys:
                self._apply()
            self._follow()
        return True

    def drop(self) -> int:
        """Release the memory of the order, and return it in bytes. Do not use a dropped order again."""
        freed_bytes, self.counted_bytes = self.counted_bytes, 0
        self._account.adjust(-freed_bytes)
        self._orders.remove(self._shard)
        return freed_bytes

    def keep(self) -> bool:
        """Count the current memory of the order, after a page. Drop the order, and return False, if there is no room."""
        growth = self.memory_bytes - self.counted_bytes
        if growth:
            try:
                self._account.ledger.hold(growth)
            except FullError:
                self.drop()
                return False
            self.counted_bytes += growth
        self._count_at = self._changes_bytes + SPARE_STEP
        self._orders.use(self._shard)
        return True

    def _follow(self) -> None:
        """Count the current memory of the order, even if it exceeds the limit of the store."""
        memory_bytes = self.memory_bytes
        self._account.adjust(memory_bytes - self.counted_bytes)
        self.counted_bytes = memory_bytes
        self._count_at = self._changes_bytes + SPARE_STEP

    def _apply(self) -> None:
        keys, entries = self._keys, self.entries
        for key in set(self.changes):
            if key in keys:
                if key not in entries:
                    keys.remove(key)
            elif key in entries:
                keys.add(key)
        self.changes = []
        self._changes_bytes = 0

    def take(self, position: int, page: Filling) -> int | None:
        """Append the keys at and after `position` to a page.

        Return the position of the first key that did not fit, or None if all keys fit. Keys with the same position stay
        together. If they do not all fit, the next page begins with them, and takes them even if they exceed its limits.
        O(changes * log n + keys appended).
        """
        if self.changes:
            self._apply()
        self._noted = 0
        order = self._keys
        room = max(0, min(page.keys_max - len(page.keys), len(order)))  # one position's keys may exceed keys_max
        found = list(islice(order.irange_key(position), room + 1))
        found_bytes = sum(map(len, found)) + KEY_OVERHEAD_BYTES * len(found)
        if not found or (len(found) <= room and page.size_bytes + found_bytes <= page.bytes_max):
            page.keys += found
            page.size_bytes += found_bytes
            return None

        size_bytes = page.size_bytes
        count = 0
        for key in islice(found, room):
            after = size_bytes + len(key) + KEY_OVERHEAD_BYTES
            if after > page.bytes_max:
                break
            size_bytes = after
            count += 1
        next_position = self._position_of(found[count])
        while count and self._position_of(found[count - 1]) == next_position:
            count -= 1
            size_bytes -= len(found[count]) + KEY_OVERHEAD_BYTES
        page.keys += found[:count]
        page.size_bytes = size_bytes
        if page.keys:
            return next_position
        page.keys += order.irange_key(next_position, next_position)
        page.size_bytes = sum(map(len, page.keys)) + KEY_OVERHEAD_BYTES * len(page.keys)
        following = next(order.irange_key(next_position + 1), None)
        return None if following is None else self._position_of(following)

    def check(self) -> None:
        """Assert every invariant of a kept order. O(n)."""
        self._keys._check()
        assert len(self.changes) <= max(CHANGES_MIN, len(self.entries) // CHANGES_SHARE)
        assert self._changes_bytes == sum(2 * len(key) + CHANGE_BYTES for key in self.changes)
        assert self._changes_bytes < self._count_at
        assert 0 <= self.memory_bytes - self.counted_bytes < SPARE_STEP
        changed = set(self.changes)
        assert set(self._keys) - changed == set(self.entries) - changed
        positions = [self._position_of(key) for key in self._keys]
        assert positions == sorted(positions)
        assert len(set(self._keys)) == len(self._keys)
