"""A shard: the keys of one arc of the ring, under one lock, its stripe.

    position   0                                                        2**64 - 1
    ring       |----- shard, depth 1 -----|- depth 2 -|-- depth 2 --|
               start                       start + 2**(64 - depth)

`entries` (a dict) is the data. The order of the keys is lazy: there is none until a page is asked for; from then on a write appends
its key to `changes`, and the next page brings `order` up to date from the entries. When that would cost more than to sort anew, order and
changes are dropped, so that writes without pages never make anything grow.

A key may have a deadline, which its entry then holds beside the value. From then on no reader sees it; it is removed by the sweep, or by a write
or a page that comes across it.

A shard knows of its bucket what all its shards share, the account, and never takes another shard's stripe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from threading import Lock

from sortedcontainers import SortedKeyList

from keyvalue_engine.context import Context, Copy
from keyvalue_engine.counter import counter_sum
from keyvalue_engine.deadlines import Deadlines
from keyvalue_engine.entry import DEADLINE_BYTES, ENTRY_BYTES, ORDER_BYTES, SHARD_BYTES, Entry, entry_size
from keyvalue_engine.errors import CrowdedPositionError, LimitError
from keyvalue_engine.quota import Quota

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
ALL = 2**63


class Shard:
    """Keys and values of an arc. `stripe` protects everything else here.

    Without the stripe only `entries.get`, `key in entries` and `len(entries)` may be used: a dict does each of them at one instant, with
    the GIL and on free-threaded builds. The entries of a retired shard are never changed again, so a reader that still
    holds one sees the values of the moment at which the shard was replaced, which is within the time of its call. How it learns whether the
    time of a value is over: `keyvalue_engine.table.Table.read`.
    """

    __slots__ = (
        "_account",
        "_changes",
        "_context",
        "_expiry",
        "_order",
        "_position_of",
        "deadlines",
        "depth",
        "entries",
        "retired",
        "start",
        "stripe",
    )

    def __init__(self, start: int, depth: int, context: Context) -> None:
        self.stripe = Lock()
        self.entries: dict[bytes, Entry] = {}
        #: None while no key has a deadline, and then a write need not ask.
        self.deadlines: Deadlines | None = None
        self.retired = False
        self.start = start
        self.depth = depth
        self._context = context
        self._position_of = context.position_of
        self._account = context.account
        self._expiry = context.expiry
        self._order: SortedKeyList[bytes] | None = None
        self._changes: list[bytes] = []
        context.account.adjust(SHARD_BYTES)

    @property
    def end(self) -> int:
        """The position behind the arc."""
        return self.start + (1 << (64 - self.depth))

    @property
    def bucket_name(self) -> bytes:
        """Name of the bucket that this is a shard of."""
        return self._account.name

    def set(self, key: bytes, value: bytes, quota: Quota | None = None, ttl_ns: int = 0) -> int:
        """Store a value. O(1). Takes the stripe. Pays: bench engine overwrite.

        Returns 0 when the shard is retired and took nothing, how many keys it holds when the key is new, at least 1 when it is not.

        :param ttl_ns: the key has a deadline after so long; 0: it has none
        :raises LimitError: keys or memory of the store or the quota would pass their limit
        """
        stripe = self.stripe
        stripe.acquire()  # a with statement costs 70 ns more
        try:
            if self.retired:
                return 0
            if ttl_ns or self.deadlines is not None:
                return self._set_timed(key, value, quota, ttl_ns)
            # `put` without deadlines, written out.
            entries = self.entries
            account = self._account
            old = entries.get(key)
            if old is None:
                account.charge(1, ENTRY_BYTES + (len(key) + 48 & ~15) + (len(value) + 48 & ~15), quota)
                entries[key] = value
                if self._order is not None:
                    self._note_change(key)
                keys = len(entries)
            else:
                if len(value) != len(old):
                    growth = (len(value) + 48 & ~15) - (len(old) + 48 & ~15)
                    if growth:
                        account.charge(0, growth, quota)
                entries[key] = value
                keys = 1
            observer = account.observer
            if observer is not None:
                observer(account.name, key, value)
            return keys
        finally:
            stripe.release()

    def _set_timed(self, key: bytes, value: bytes, quota: Quota | None, ttl_ns: int) -> int:
        now_ns = self._expiry.clock()
        entries = self.entries
        old = entries.get(key)
        if ttl_ns and old.__class__ is tuple and old[1] > now_ns:
            # `put` of a key that has a deadline, written out; pays: bench end-to-end expiry
            old_value, before_ns = old
            account = self._account
            if len(value) != len(old_value):
                growth = (len(value) + 48 & ~15) - (len(old_value) + 48 & ~15)
                if growth:
                    account.charge(0, growth, quota)
            deadline_ns = now_ns + ttl_ns
            entries[key] = value, deadline_ns
            if deadline_ns < before_ns:
                self._deadlines().put(key, deadline_ns, before_ns)
            observer = account.observer
            if observer is not None:
                observer(account.name, key, value)
            return 1
        self.put(key, (value, now_ns + ttl_ns) if ttl_ns else value, self._live(key, now_ns), quota)
        return len(entries)

    def delete(self, key: bytes) -> bool | None:
        """Remove a key; whether it was there, or None when the shard is retired. O(1). Takes the stripe."""
        with self.stripe:
            return None if self.retired else self.remove(key)

    def increment(self, key: bytes, delta: int, value_bytes_max: int, quota: Quota | None, ttl_ns: int) -> int | None:
        """Add to a counter, which is the decimal text of a number; the sum, or None when the shard is retired. O(1). Takes the stripe.

        :param ttl_ns: 0: the key keeps the deadline that it has
        :raises CounterError: the value is no such text, or the sum would not be below 2**64; the value is as before
        :raises LimitError: as `set`
        """
        with self.stripe:
            if self.retired:
                return None
            deadline_ns: int | None = None
            is_timed = ttl_ns > 0 or self.deadlines is not None
            if is_timed:
                now_ns = self._expiry.clock()
                old = self._live(key, now_ns)
                before, deadline_ns = old if isinstance(old, tuple) else (old, None)
                if ttl_ns:
                    deadline_ns = now_ns + ttl_ns
            else:
                before = old = self.entries.get(key)  # type: ignore[assignment]  # no key has a deadline
            total = counter_sum(b"0" if before is None else before, delta)
            value = b"%d" % total
            if len(value) > value_bytes_max:
                raise LimitError("value in bytes", len(value), value_bytes_max)
            if is_timed or before is None or self._account.observer is not None:
                self.put(key, value if deadline_ns is None else (value, deadline_ns), old, quota)
                return total
            # `put` of a key that is there, written out.
            growth = (len(value) + 48 & ~15) - (len(before) + 48 & ~15)
            if growth:
                self._account.charge(0, growth, quota)
            self.entries[key] = value
            return total

    def persist(self, key: bytes) -> bool | None:
        """Take a key's deadline away; whether it had one, or None when the shard is retired. Takes the stripe."""
        with self.stripe:
            if self.retired:
                return None
            entry = None if self.deadlines is None else self._live(key, self._expiry.clock())
            if not isinstance(entry, tuple):
                return False
            self._account.charge(0, -DEADLINE_BYTES)
            self.entries[key] = entry[0]
            self._drop_deadline()
            return True

    def sweep(self, looks_max: int) -> int:
        """Remove keys whose time is over, looking at so many at most, with those whose time was put off; at how many. Takes the stripe."""
        with self.stripe:
            return 0 if self.retired else self._expire_due(looks_max)

    def counts_for(self, quota: Quota) -> bool:
        """Whether what the shard holds is counted for this quota."""
        return quota in self._account.quotas

    def copy(self) -> Copy:
        """What is there now. Under the stripe. O(n)."""
        self._expire_due(ALL)
        return Copy(list(self.entries.items()), self.end)

    # Under the stripe, which the caller holds, from here on.

    def put(
        self, key: bytes, entry: Entry, old: Entry | None, quota: Quota | None = None, *, charged: bool = False
    ) -> None:
        """`set`, in the general case.

        :param old: what the key holds, its time not over
        :param charged: the account knows of it already: a batch is charged whole, before its first write
        """
        account = self._account
        if not charged:
            growth = entry_size(key, entry) - (0 if old is None else entry_size(key, old))
            if growth or old is None:
                account.charge(int(old is None), growth, quota)
        before_ns = old[1] if isinstance(old, tuple) else None
        if isinstance(entry, tuple):
            value, deadline_ns = entry
            deadlines = self._deadlines()  # first: see `Expiry.was_used`
            self.entries[key] = entry
            deadlines.put(key, deadline_ns, before_ns)
        else:
            self.entries[key] = value = entry
            if before_ns is not None:
                self._drop_deadline()
        if old is None and self._order is not None:
            self._note_change(key)
        observer = account.observer
        if observer is not None:
            observer(account.name, key, value)

    def growth(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> tuple[int, int]:
        """Keys and memory that `put_many` would charge for this part of the entries; each key stands there once."""
        keys = memory_bytes = 0
        old_of = self.entries.get
        if self.deadlines is None and deadline_ns is None:  # written out; pays: bench end-to-end batch
            for key in part:
                old, length = old_of(key), len(entries[key])
                if old is None:
                    keys += 1
                    memory_bytes += ENTRY_BYTES + (len(key) + 48 & ~15) + (length + 48 & ~15)
                elif len(old) != length:
                    memory_bytes += (length + 48 & ~15) - (len(old) + 48 & ~15)
            return keys, memory_bytes
        for key in part:
            value, old = entries[key], old_of(key)
            keys += old is None
            memory_bytes += entry_size(key, value if deadline_ns is None else (value, deadline_ns))
            memory_bytes -= 0 if old is None else entry_size(key, old)
        return keys, memory_bytes

    def put_many(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> None:
        """Store this part of the entries, for which the account was charged."""
        known = self.entries
        if deadline_ns is None and self.deadlines is None and self._order is None and self._account.observer is None:
            for key in part:
                known[key] = entries[key]
            return
        for key in part:
            value = entries[key]
            self.put(key, value if deadline_ns is None else (value, deadline_ns), known.get(key), charged=True)

    def remove(self, key: bytes) -> bool:
        """Remove a key; whether it was there, its time not over."""
        if self.deadlines is not None and self._live(key, self._expiry.clock()) is None:
            return False
        return self._remove(key)

    def expire(self, keys: Iterable[bytes]) -> None:
        """Remove those of the keys whose time is over."""
        if self.deadlines is None:
            return
        now_ns = self._expiry.clock()
        for key in keys:
            self._live(key, now_ns)

    def _live(self, key: bytes, now_ns: int) -> Entry | None:
        """What a key holds; where its time is over it is removed, and that is None."""
        entry = self.entries.get(key)
        if entry.__class__ is tuple and entry[1] <= now_ns:
            self._remove(key)
            self._expiry.count(1)
            return None
        return entry

    def _expire_due(self, looks_max: int) -> int:
        deadlines = self.deadlines
        if deadlines is None:
            return 0
        removed, looks_before, left = 0, deadlines.looks, looks_max
        now_ns = self._expiry.clock()
        while left > 0 and (key := deadlines.next_due(now_ns, left)) is not None:
            self._remove(key)
            removed += 1
            left = looks_max - removed - (deadlines.looks - looks_before)
        if removed:
            self._expiry.count(removed)
        return removed + deadlines.looks - looks_before

    def _remove(self, key: bytes) -> bool:
        entry = self.entries.pop(key, None)
        if entry is None:
            return False
        account = self._account
        account.charge(-1, -entry_size(key, entry))
        if isinstance(entry, tuple):
            self._drop_deadline()
        if self._order is not None:
            self._note_change(key)
        observer = account.observer
        if observer is not None:
            observer(account.name, key, None)
        return True

    def _deadlines(self) -> Deadlines:
        """The deadlines, to which one is to be added."""
        deadlines = self.deadlines
        if deadlines is None:
            deadlines = self.deadlines = Deadlines(self.entries)
            self._expiry.add(self)
        return deadlines

    def _drop_deadline(self) -> None:
        assert self.deadlines is not None
        self.deadlines.drop()
        if not self.deadlines.count:
            self.deadlines = None
            self._expiry.remove(self)

    def take(
        self, position: int, keys: list[bytes], keys_max: int, size_bytes: int, page_bytes_max: int
    ) -> tuple[int | None, int]:
        """Append the keys at and behind `position` to a page that holds `keys` of `size_bytes` so far.

        Returns the position of the first key that found no room (None: all had room), and the page's bytes. Keys of one position
        never part: they come whole, or begin the next page. O(changes + log n + keys taken).

        :raises CrowdedPositionError: the page is empty, and the keys of its first position are too many for any page
        """
        self._expire_due(ALL)
        order = self._current_order()
        room = max(0, min(keys_max - len(keys), len(order)))  # a crowd may have passed keys_max
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
        shards = [Shard(self.start + (index << shift), depth, self._context) for index in range(1 << bits)]
        parts = [shard.entries for shard in shards]
        mask = len(parts) - 1
        hash_function, seed = self._context.hash_function, self._context.seed
        for key, entry in self.entries.items():
            parts[hash_function(key, seed) >> shift & mask][key] = entry
        if self.deadlines is not None:
            for shard in shards:
                shard._find_deadlines()
        self.retire()
        return shards

    def _find_deadlines(self) -> None:
        deadlines = Deadlines(self.entries)
        for key, entry in self.entries.items():
            if isinstance(entry, tuple):
                deadlines.put(key, entry[1], None)
        if deadlines.count:
            self.deadlines = deadlines

    def enter_expiry(self) -> None:
        """Be swept from now on, if a key has a deadline: of a piece of a shard that was split, once it is in the ring. Takes the stripe."""
        with self.stripe:
            if self.deadlines is not None and not self.retired:
                self._expiry.add(self)

    def retire(self) -> None:
        """Mark the shard as replaced: whoever takes the stripe next must look for its successor. Its entries stay, for who still reads here."""
        self._drop_order()
        self.retired = True
        self._account.adjust(-SHARD_BYTES)

    def check(self) -> None:
        """Assert every invariant of a shard that is not retired. O(n)."""
        assert not self.retired
        assert 0 <= self.start < self.end <= 1 << 64
        assert self.start % (1 << (64 - self.depth)) == 0
        for key, entry in self.entries.items():
            assert type(key) is bytes
            assert type(entry[0] if isinstance(entry, tuple) else entry) is bytes
            assert type(entry) is bytes or self.deadlines is not None
            assert self.start <= self._position_of(key) < self.end
        if self.deadlines is not None:
            self.deadlines.check()
            assert self.deadlines.count, "a shard without deadlines says so"
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
    def entries_bytes(self) -> int:
        """What the account must hold for this shard, counted anew. O(n)."""
        return sum(entry_size(*entry) for entry in self.entries.items())

    @property
    def memory_bytes(self) -> int:
        """What the ledger must hold for this shard, counted anew. O(n)."""
        ordered = 0 if self._order is None else len(self._order)
        return SHARD_BYTES + ORDER_BYTES * ordered + self.entries_bytes

    def _note_change(self, key: bytes) -> None:
        changes = self._changes
        changes.append(key)
        if len(changes) > CHANGES_MIN and len(changes) * CHANGES_SHARE > len(self.entries):
            self._drop_order()

    def _drop_order(self) -> None:
        if self._order is not None:
            self._account.adjust(-ORDER_BYTES * len(self._order))
            self._order = None
            self._changes = []

    def _current_order(self) -> SortedKeyList[bytes]:
        order = self._order
        if order is None:
            order = self._order = SortedKeyList(self.entries, key=self._position_of)
            self._account.adjust(ORDER_BYTES * len(order))
        elif self._changes:
            length_before = len(order)
            entries = self.entries
            for key in set(self._changes):
                if key in order:
                    if key not in entries:
                        order.remove(key)
                elif key in entries:
                    order.add(key)
            self._account.adjust(ORDER_BYTES * (len(order) - length_before))
            self._changes = []
        return order
