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

    first page ──> kept ── note ──> kept, with changes ── too many changes ──> dropped (the shard has no order again)
                    ^                     │
                    └──── page: update ───┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from sortedcontainers import SortedKeyList

from keyvalue_engine.entry import ORDER_BYTES, Entry
from keyvalue_engine.errors import CrowdedPositionError
from keyvalue_engine.ledger import Account

__all__ = [
    "CHANGES_MIN",
    "CHANGES_SHARE",
    "CROWD_KEYS_MAX",
    "CROWD_PAGES_MAX",
    "KEY_OVERHEAD_BYTES",
    "LazyOrder",
]

#: Bytes that a key takes on a page besides the key itself. Four bytes hold the LEB128 length of a key up to 256 MiB.
KEY_OVERHEAD_BYTES = 4
#: A page refuses a position with more than CROWD_KEYS_MAX keys, or with keys that fill more than CROWD_PAGES_MAX pages.
CROWD_KEYS_MAX = 64
CROWD_PAGES_MAX = 4
#: The order is dropped once there are more than `CHANGES_MIN` changes, and more than one for each `CHANGES_SHARE` keys.
#: Applying one change takes about `CHANGES_SHARE` times as long as a new sort takes per key
#: (see bench/micro/test_order.py).
CHANGES_MIN = 64
CHANGES_SHARE = 6


class LazyOrder:
    """The keys of a shard, ordered by position.

    The shard's first page creates the order, and the shard's stripe protects it.

    :param entries: the shard's entries; the shard changes them before it calls `note`
    :param account: the account that counts the memory of the order
    """

    __slots__ = ("_account", "_entries", "_keys", "_position_of", "changes")

    def __init__(self, entries: Mapping[bytes, Entry], position_of: Callable[[bytes], int], account: Account) -> None:
        self._entries = entries
        self._position_of = position_of
        self._account = account
        self._keys: SortedKeyList[bytes] = SortedKeyList(entries, key=position_of)
        #: Keys that were added or removed since the last page. A key may occur several times.
        self.changes: list[bytes] = []
        account.adjust(self.memory_bytes)

    @property
    def memory_bytes(self) -> int:
        """Return the number of bytes that the ledger counts for the order. O(1)."""
        return ORDER_BYTES * len(self._keys)

    def note(self, key: bytes) -> bool:
        """Note that a key was added or removed. O(1).

        Return False if the order was dropped. Do not use a dropped order again.
        """
        changes = self.changes
        changes.append(key)
        if len(changes) > CHANGES_MIN and len(changes) * CHANGES_SHARE > len(self._entries):
            self.drop()
            return False
        return True

    def drop(self) -> None:
        """Release the memory of the order. Do not use a dropped order again."""
        self._account.adjust(-self.memory_bytes)

    def current(self) -> SortedKeyList[bytes]:
        """Return the current keys in order. O(changes * log n)."""
        keys = self._keys
        if self.changes:
            before_bytes = self.memory_bytes
            entries = self._entries
            for key in set(self.changes):
                if key in keys:
                    if key not in entries:
                        keys.remove(key)
                elif key in entries:
                    keys.add(key)
            self._account.adjust(self.memory_bytes - before_bytes)
            self.changes = []
        return keys

    def take(
        self, position: int, keys: list[bytes], keys_max: int, size_bytes: int, page_bytes_max: int
    ) -> tuple[int | None, int]:
        """Append keys to a page, starting at `position`. The page already holds `keys`, which take `size_bytes`.

        Return the position of the first key that did not fit, and the size of the page in bytes. The position is None
        if all keys fit. Keys with the same position stay on one page. If one of them does not fit, all of them begin
        the next page. O(changes * log n + keys appended).

        :raises CrowdedPositionError: the page is empty, and its first position has too many keys for any page
        """
        order = self.current()
        room = max(0, min(keys_max - len(keys), len(order)))  # `_take_crowd` may have exceeded keys_max
        found = list(islice(order.irange_key(position), room + 1))
        found_bytes = sum(map(len, found)) + KEY_OVERHEAD_BYTES * len(found)
        if not found or (len(found) <= room and size_bytes + found_bytes <= page_bytes_max):
            keys += found
            return None, size_bytes + found_bytes

        count = 0
        for key in islice(found, room):
            after = size_bytes + len(key) + KEY_OVERHEAD_BYTES
            if after > page_bytes_max:
                break
            size_bytes = after
            count += 1
        next_position = self._position_of(found[count])
        while count and self._position_of(found[count - 1]) == next_position:
            count -= 1
            size_bytes -= len(found[count]) + KEY_OVERHEAD_BYTES
        keys += found[:count]
        if keys:
            return next_position, size_bytes
        return self._take_crowd(next_position, keys, page_bytes_max)

    def _take_crowd(self, position: int, keys: list[bytes], page_bytes_max: int) -> tuple[int | None, int]:
        """Fill an empty page with all keys of one position, even if the keys exceed the page's limits."""
        order = self._keys
        crowd = list(islice(order.irange_key(position, position), CROWD_KEYS_MAX + 1))
        size_bytes = sum(map(len, crowd)) + KEY_OVERHEAD_BYTES * len(crowd)
        size_bytes_max = page_bytes_max * CROWD_PAGES_MAX
        if len(crowd) > 1 and (len(crowd) > CROWD_KEYS_MAX or size_bytes > size_bytes_max):
            raise CrowdedPositionError(position, len(crowd), CROWD_KEYS_MAX, size_bytes, size_bytes_max)
        keys += crowd
        for key in order.irange_key(position + 1):
            return self._position_of(key), size_bytes
        return None, size_bytes

    def check(self) -> None:
        """Assert every invariant. O(n)."""
        self._keys._check()
        assert len(self.changes) <= max(CHANGES_MIN, len(self._entries) // CHANGES_SHARE)
        changed = set(self.changes)
        assert set(self._keys) - changed == set(self._entries) - changed
        positions = [self._position_of(key) for key in self._keys]
        assert positions == sorted(positions)
        assert len(set(self._keys)) == len(self._keys)
