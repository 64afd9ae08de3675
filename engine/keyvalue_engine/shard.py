"""Own the entries of one arc of the ring, under one lock, the stripe.

    position   0                                                        2**64 - 1
    ring       |----- shard, depth 1 -----|- depth 2 -|-- depth 2 --|
               start                       start + 2**(64 - depth)

`entries` (a dict) is what the shard holds. All else is worked out from it and kept beside it: `deadlines` while any key has one, and the
order of the keys (keyvalue_engine.order) from the first page on.

A key may have a deadline, which its entry then holds beside the value. After the deadline no reader sees the key; it is removed by the sweep,
or by a write or a page that comes across it.

Every write is one call of `_commit`, which changes the entries and all that depends on them, and tells the observer:

    set, increment, set_many ──┐
    persist ───────────────────┤                 ┌──> account    counts, which may refuse the write
    delete ────────────────────┼──> _commit ─────┼──> entries    with the deadline beside the value
    sweep, and whatever finds  │                 ├──> deadlines, order
    an expired key ────────────┘                 └──> observer

A few writes are written out, next to the name of the benchmark that pays for them. tests/engine/test_commit.py holds each against `_commit`.

A shard knows of its bucket what all its shards share, the account, and never takes another shard's stripe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

from keyvalue_engine.changes import DELETE, EXPIRE, PERSIST, SET, Change
from keyvalue_engine.context import Context, Copy
from keyvalue_engine.counter import counter_sum
from keyvalue_engine.deadlines import Deadlines
from keyvalue_engine.entry import ENTRY_BYTES, SHARD_BYTES, Entry, entry_size, value_size
from keyvalue_engine.errors import VALUE_BYTES, LimitError
from keyvalue_engine.order import LazyOrder
from keyvalue_engine.quota import Quota

__all__ = ["Shard"]

#: No bound on the looks at expired keys.
ALL = 2**63


class Shard:
    """Keys and values of an arc. `stripe` protects everything else here.

    Without the stripe only `entries.get`, `key in entries` and `len(entries)` may be used, and `deadlines` compared with None: each is one
    step, with the GIL and on free-threaded builds. The entries of a retired shard are never changed again. So a reader that still holds
    one sees the values of the moment at which the shard was replaced, which is within the time of its call. How a reader learns
    if an entry has expired: `keyvalue_engine.table.Table.read`.
    """

    __slots__ = (
        "_account",
        "_context",
        "_expiry",
        "_order",
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
        #: None while no key has a deadline: then a write need not look at the clock.
        self.deadlines: Deadlines | None = None
        self.retired = False
        self.start = start
        self.depth = depth
        self._context = context
        self._account = context.account
        self._expiry = context.expiry
        self._order: LazyOrder | None = None
        context.account.adjust(SHARD_BYTES)

    @property
    def end(self) -> int:
        """Return the position after the arc."""
        return self.start + (1 << (64 - self.depth))

    @property
    def bucket_name(self) -> bytes:
        """Return the name of the bucket that this is a shard of."""
        return self._account.name

    def counts_for(self, quota: Quota) -> bool:
        """Return True if the shard's entries are counted for this quota. Without the stripe: the tuple is replaced, never changed."""
        return quota in self._account.quotas

    def set(self, key: bytes, value: bytes, quota: Quota | None = None, ttl_ns: int = 0) -> int:
        """Store a value. O(1). Takes the stripe.

        Return 0 when the shard is retired and took nothing, the number of keys it holds when the key is new, at least 1 when it is not.

        :param ttl_ns: the key's deadline, from now on; 0: it has none
        :raises LimitError: keys or memory of the store or the quota would pass their limit
        """
        stripe = self.stripe
        stripe.acquire()  # a with statement costs 70 ns more
        try:
            if self.retired:
                return 0
            if ttl_ns or self.deadlines is not None:
                return self._set_timed(key, value, quota, ttl_ns)
            # `_commit` of a key without a deadline, written out; pays: bench engine overwrite, new key
            entries = self.entries
            account = self._account
            old = entries.get(key)
            if old is None:
                account.charge(1, ENTRY_BYTES + (len(key) + 48 & ~15) + (len(value) + 48 & ~15), quota)
                entries[key] = value
                if self._order is not None:
                    self._note(key)
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
                observer(SET, account.name, key, value)
            return keys
        finally:
            stripe.release()

    def _set_timed(self, key: bytes, value: bytes, quota: Quota | None, ttl_ns: int) -> int:
        """`set` where this key or another one has a deadline."""
        now_ns = self._expiry.clock()
        entries = self.entries
        old = entries.get(key)
        if ttl_ns and old.__class__ is tuple and old[1] > now_ns:
            # `_commit` of a key that has a deadline, written out; pays: bench end-to-end expiry
            old_value, before_ns = old
            account = self._account
            if len(value) != len(old_value):
                growth = (len(value) + 48 & ~15) - (len(old_value) + 48 & ~15)
                if growth:
                    account.charge(0, growth, quota)
            deadline_ns = now_ns + ttl_ns
            entries[key] = entry = value, deadline_ns
            if deadline_ns < before_ns:
                self._timed().put(key, deadline_ns, before_ns)
            observer = account.observer
            if observer is not None:
                observer(SET, account.name, key, entry)
            return 1
        self._commit(SET, key, (value, now_ns + ttl_ns) if ttl_ns else value, self._live(key, now_ns), quota)
        return len(entries)

    def delete(self, key: bytes) -> bool | None:
        """Remove a key. Return True if it was there, None when the shard is retired. O(1). Takes the stripe."""
        stripe = self.stripe
        stripe.acquire()
        try:
            return None if self.retired else self.remove(key)
        finally:
            stripe.release()

    def increment(self, key: bytes, delta: int, value_bytes_max: int, quota: Quota | None, ttl_ns: int) -> int | None:
        """Add to a counter, which is the decimal text of a number. Return the sum, or None when the shard is retired. O(1). Takes the stripe.

        :param ttl_ns: the key's deadline, from now on; 0: it keeps the one that it has
        :raises CounterError: the value is no such text, or the sum would not be below 2**64; the value is as before
        :raises LimitError: as `set`
        """
        stripe = self.stripe
        stripe.acquire()
        try:
            if self.retired:
                return None
            now_ns = 0
            if ttl_ns or self.deadlines is not None:
                now_ns = self._expiry.clock()
                old = self._live(key, now_ns)
            else:
                old = self.entries.get(key)
            deadline_ns = None
            if isinstance(old, tuple):
                before, deadline_ns = old
            else:
                before = b"0" if old is None else old
            total = counter_sum(before, delta)
            value = b"%d" % total
            if len(value) > value_bytes_max:
                raise LimitError(VALUE_BYTES, len(value), value_bytes_max)
            if ttl_ns:
                deadline_ns = now_ns + ttl_ns
            self._commit(SET, key, value if deadline_ns is None else (value, deadline_ns), old, quota)
            return total
        finally:
            stripe.release()

    def persist(self, key: bytes) -> bool | None:
        """Take a key's deadline away. Return True if it had one, None when the shard is retired. O(1). Takes the stripe."""
        with self.stripe:
            if self.retired:
                return None
            entry = None if self.deadlines is None else self._live(key, self._expiry.clock())
            if not isinstance(entry, tuple):
                return False
            self._commit(PERSIST, key, entry[0], entry)
            return True

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys, after at most `looks_max` looks at keys, expired or with a deadline that moved. Return the looks. Takes the stripe."""
        with self.stripe:
            return 0 if self.retired else self._expire_due(looks_max)

    # Under the stripe, which the caller holds, from here on.

    def _commit(
        self,
        change: Change,
        key: bytes,
        entry: Entry | None,
        old: Entry | None,
        quota: Quota | None = None,
        charged: bool = False,
    ) -> None:
        """Make a change, in whole or not at all, and tell the observer.

        Room that the change gives back is given back first: another thread may take it a moment before it is there. There is no
        keyword-only parameter, since CPython does not specialize calls of functions that have one (bench/micro/test_engine.py, delete).

        :param entry: what the key will hold; None: it is removed
        :param old: what the key holds, not expired unless it is removed now; None: it is not there
        :param charged: the account knows of it already: a batch is charged whole, before its first write
        :raises FullError: keys or memory of the store or the quota would pass their limit; nothing has changed
        """
        account = self._account
        before_ns = old[1] if isinstance(old, tuple) else None
        if charged:
            pass
        elif old is None or entry is None:
            growth = (0 if entry is None else entry_size(key, entry)) - (0 if old is None else entry_size(key, old))
            account.charge(1 if old is None else -1, growth, quota)
        elif len(entry) != len(old) or before_ns is not None or isinstance(entry, tuple):
            growth = value_size(entry) - value_size(old)
            if growth:
                account.charge(0, growth, quota)
        if isinstance(entry, tuple):
            deadlines = self._timed()  # before the entry: see `Expiry.was_used`
            self.entries[key] = entry
            deadlines.put(key, entry[1], before_ns)
        else:
            if entry is None:
                del self.entries[key]
            else:
                self.entries[key] = entry
            if before_ns is not None:
                self._drop_deadline()
        if (old is None or entry is None) and self._order is not None:
            self._note(key)
        observer = account.observer
        if observer is not None:
            observer(change, account.name, key, entry)

    def growth(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> tuple[int, int]:
        """Return the keys and the memory that `put_many` of this part of the entries needs; each key stands there once."""
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
        """Store this part of the entries, for which the account was charged. None of the keys has expired: see `expire`."""
        known = self.entries
        if deadline_ns is None and self.deadlines is None and self._order is None and self._account.observer is None:
            for key in part:  # `_commit` of what is charged, written out; pays: bench end-to-end batch
                known[key] = entries[key]
            return
        for key in part:
            value = entries[key]
            entry = value if deadline_ns is None else (value, deadline_ns)
            self._commit(SET, key, entry, known.get(key), charged=True)

    def remove(self, key: bytes) -> bool:
        """Remove a key. Return True if it was there, and not expired."""
        entry = self.entries.get(key) if self.deadlines is None else self._live(key, self._expiry.clock())
        if entry is None:
            return False
        self._commit(DELETE, key, None, entry)
        return True

    def expire(self, keys: Iterable[bytes]) -> None:
        """Remove those of the keys that have expired."""
        if self.deadlines is None:
            return
        now_ns = self._expiry.clock()
        for key in keys:
            self._live(key, now_ns)

    def _live(self, key: bytes, now_ns: int) -> Entry | None:
        """Return what a key holds. An expired key is removed, and holds nothing."""
        entry = self.entries.get(key)
        if entry.__class__ is tuple and entry[1] <= now_ns:
            self._commit(EXPIRE, key, None, entry)
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
            self._commit(EXPIRE, key, None, self.entries[key])
            removed += 1
            left = looks_max - removed - (deadlines.looks - looks_before)
        if removed:
            self._expiry.count(removed)
        return removed + deadlines.looks - looks_before

    def _timed(self) -> Deadlines:
        """Return the deadlines, to which one is to be added."""
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

    def _note(self, key: bytes) -> None:
        """Tell the order, which there is, that a key was added or removed."""
        if self._order is not None and not self._order.note(key):
            self._order = None

    def take(
        self, position: int, keys: list[bytes], keys_max: int, size_bytes: int, page_bytes_max: int
    ) -> tuple[int | None, int]:
        """Append keys to a page, as `LazyOrder.take`. O(changes * log n + keys taken); O(n log n) where there is no order yet."""
        self._expire_due(ALL)
        if self._order is None:
            self._order = LazyOrder(self.entries, self._context.position_of, self._account)
        return self._order.take(position, keys, keys_max, size_bytes, page_bytes_max)

    def copy(self) -> Copy:
        """Return what is there now. O(n)."""
        self._expire_due(ALL)
        return Copy(list(self.entries.items()), self.end)

    def split(self, bits: int) -> list[Shard]:
        """Return the 2**bits shards that take this one's place, in the ring's order. This one is retired; its entries stay as they are."""
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
        """Be swept from now on, if a key has a deadline: for a piece of a shard that was split, once it is in the ring. Takes the stripe."""
        with self.stripe:
            if self.deadlines is not None and not self.retired:
                self._expiry.add(self)

    def retire(self) -> None:
        """Mark the shard as replaced: a writer that takes the stripe next must look for its successor. Its entries stay, for readers."""
        if self._order is not None:
            self._order.drop()
            self._order = None
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
            assert self.start <= self._context.position_of(key) < self.end
        if self.deadlines is not None:
            self.deadlines.check()
            assert self.deadlines.count, "a shard without deadlines says so"
        if self._order is not None:
            self._order.check()

    @property
    def entries_bytes(self) -> int:
        """Return what the account must hold for this shard, counted anew. O(n)."""
        return sum(entry_size(*entry) for entry in self.entries.items())

    @property
    def memory_bytes(self) -> int:
        """Return what the ledger must hold for this shard, counted anew. O(n)."""
        return SHARD_BYTES + (0 if self._order is None else self._order.memory_bytes) + self.entries_bytes
