"""A shard: the keys of one arc of the ring, under one lock, its stripe.

    position   0                                                        2**64 - 1
    ring       |----- shard, depth 1 -----|- depth 2 -|-- depth 2 --|
               start                       start + 2**(64 - depth)

`entries` (a dict) is the data. The order of the keys is lazy: there is none until a page is asked for; from then on a write appends
its key to `changes`, and the next page brings `order` up to date from the entries. When that would cost more than to sort anew, order and
changes are dropped, so that writes without pages never make anything grow.

A shard does not know its bucket, and never takes another shard's stripe.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from threading import Lock

from sortedcontainers import SortedKeyList

from engine.errors import CrowdedPositionError
from engine.ledger import ENTRY_BYTES, ORDER_BYTES, SHARD_BYTES, Ledger, entry_size

__all__ = ["CROWD_KEYS_MAX", "CROWD_PAGES_MAX", "KEY_OVERHEAD_BYTES", "Shard"]

#: A key counts its length and this against a page's bytes: enough for a LEB128 length of a key up to 256 MiB.
KEY_OVERHEAD_BYTES = 4
#: More keys than this, or more than so many pages of bytes, at one position are refused.
CROWD_KEYS_MAX = 64
CROWD_PAGES_MAX = 4
#: The order is dropped when more than `CHANGES_MIN` and more than one key in `CHANGES_SHARE` changed since the last page: to bring in a
#: change costs about so many times what a key costs in a new order (bench/micro/test_order.py).
CHANGES_MIN = 64
CHANGES_SHARE = 6


class Shard:
    """Keys and values of an arc. `stripe` protects everything else here.

    Without the stripe only `entries.get`, `key in entries` and `len(entries)` may be used: a dict does each of them at one instant, with
    the GIL and on free-threaded builds. The entries of a retired shard are never changed again, so a reader that still
    holds one sees the values of the moment at which the shard was replaced, which is within the time of its call.
    """

    __slots__ = ("_changes", "_ledger", "_order", "_position_of", "depth", "entries", "retired", "start", "stripe")

    def __init__(self, start: int, depth: int, position_of: Callable[[bytes], int], ledger: Ledger) -> None:
        self.stripe = Lock()
        self.entries: dict[bytes, bytes] = {}
        self.retired = False
        self.start = start
        self.depth = depth
        self._position_of = position_of
        self._ledger = ledger
        self._order: SortedKeyList[bytes] | None = None
        self._changes: list[bytes] = []
        ledger.adjust(0, SHARD_BYTES)

    @property
    def end(self) -> int:
        """The position behind the arc."""
        return self.start + (1 << (64 - self.depth))

    def set(self, key: bytes, value: bytes) -> int:
        """Store a value. O(1). Takes the stripe. Pays: bench engine overwrite.

        Returns 0 when the shard is retired and took nothing, how many keys it holds when the key is new, 1 when it is not.

        :raises LimitError: keys or memory of the store would pass their limit
        """
        stripe = self.stripe
        stripe.acquire()  # a with statement costs 70 ns more
        try:
            if self.retired:
                return 0
            entries = self.entries
            old = entries.get(key)
            if old is None:
                self._ledger.admit(ENTRY_BYTES + (len(key) + 48 & ~15) + (len(value) + 48 & ~15))
                entries[key] = value
                if self._order is not None:
                    self._note_change(key)
                return len(entries)
            if len(value) != len(old):
                growth = (len(value) + 48 & ~15) - (len(old) + 48 & ~15)
                if growth:
                    self._ledger.grow(growth)
            entries[key] = value
            return 1
        finally:
            stripe.release()

    def delete(self, key: bytes) -> bool | None:
        """Remove a key; whether it was there, or None when the shard is retired. O(1). Takes the stripe."""
        with self.stripe:
            if self.retired:
                return None
            value = self.entries.pop(key, None)
            if value is None:
                return False
            self._ledger.adjust(-1, -entry_size(key, value))
            if self._order is not None:
                self._note_change(key)
            return True

    # Under the stripe, which the caller holds, from here on.

    def take(
        self, position: int, keys: list[bytes], keys_max: int, size_bytes: int, page_bytes_max: int
    ) -> tuple[int | None, int]:
        """Append the keys at and behind `position` to a page that holds `keys` of `size_bytes` so far.

        Returns the position of the first key that found no room (None: all had room), and the page's bytes. Keys of one position
        never part: they come whole, or begin the next page. O(changes + log n + keys taken).

        :raises CrowdedPositionError: the page is empty, and the keys of its first position are too many for any page
        """
        order = self._current_order()
        room = min(keys_max - len(keys), len(order))
        found = list(islice(order.irange_key(position), room + 1))
        found_bytes = sum(map(len, found)) + KEY_OVERHEAD_BYTES * len(found)
        if len(found) <= room and size_bytes + found_bytes <= page_bytes_max:
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
        """Fill an empty page with all keys of one position, which are more than a page holds."""
        order = self._current_order()
        crowd = list(islice(order.irange_key(position, position), CROWD_KEYS_MAX + 1))
        size_bytes = sum(map(len, crowd)) + KEY_OVERHEAD_BYTES * len(crowd)
        size_bytes_max = page_bytes_max * CROWD_PAGES_MAX
        if len(crowd) > 1 and (len(crowd) > CROWD_KEYS_MAX or size_bytes > size_bytes_max):
            raise CrowdedPositionError(position, len(crowd), CROWD_KEYS_MAX, size_bytes, size_bytes_max)
        keys += crowd
        for key in order.irange_key(position + 1):
            return self._position_of(key), size_bytes
        return None, size_bytes

    def split(self, bits: int) -> list[Shard]:
        """The 2**bits shards that take this one's place, in the ring's order. This one is retired, its entries stay as they are."""
        depth = self.depth + bits
        shift = 64 - depth
        shards = [
            Shard(self.start + (index << shift), depth, self._position_of, self._ledger) for index in range(1 << bits)
        ]
        parts = [shard.entries for shard in shards]
        mask = len(parts) - 1
        position_of = self._position_of
        for key, value in self.entries.items():
            parts[position_of(key) >> shift & mask][key] = value
        self.retire()
        return shards

    def retire(self) -> None:
        """Mark the shard as replaced: whoever takes the stripe next must look for its successor."""
        self._drop_order()
        self.retired = True
        self._ledger.adjust(0, -SHARD_BYTES)

    def check(self) -> None:
        """Assert every invariant of a shard that is not retired. O(n)."""
        assert not self.retired
        assert 0 <= self.start < self.end <= 1 << 64
        assert self.start % (1 << (64 - self.depth)) == 0
        for key, value in self.entries.items():
            assert type(key) is bytes
            assert type(value) is bytes
            assert self.start <= self._position_of(key) < self.end
        if self._order is None:
            assert not self._changes
            return
        self._order._check()
        assert len(self._changes) <= max(CHANGES_MIN, len(self.entries) // CHANGES_SHARE)
        changed = set(self._changes)
        assert set(self._order) - changed == set(self.entries) - changed
        positions = [self._position_of(key) for key in self._order]
        assert positions == sorted(positions)
        assert len(set(self._order)) == len(self._order)

    @property
    def memory_bytes(self) -> int:
        """What the ledger must hold for this shard, counted anew. O(n)."""
        ordered = 0 if self._order is None else len(self._order)
        return SHARD_BYTES + ORDER_BYTES * ordered + sum(entry_size(*entry) for entry in self.entries.items())

    def _note_change(self, key: bytes) -> None:
        changes = self._changes
        changes.append(key)
        if len(changes) > CHANGES_MIN and len(changes) * CHANGES_SHARE > len(self.entries):
            self._drop_order()

    def _drop_order(self) -> None:
        if self._order is not None:
            self._ledger.adjust(0, -ORDER_BYTES * len(self._order))
            self._order = None
            self._changes = []

    def _current_order(self) -> SortedKeyList[bytes]:
        order = self._order
        if order is None:
            order = self._order = SortedKeyList(self.entries, key=self._position_of)
            self._ledger.adjust(0, ORDER_BYTES * len(order))
        elif self._changes:
            length_before = len(order)
            entries = self.entries
            for key in set(self._changes):
                if key in order:
                    if key not in entries:
                        order.remove(key)
                elif key in entries:
                    order.add(key)
            self._ledger.adjust(0, ORDER_BYTES * (len(order) - length_before))
            self._changes = []
        return order
