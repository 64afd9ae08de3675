"""The entries of one arc of the ring, protected by one lock, the stripe.

    position   0                                                        2**64 - 1
    ring       |----- shard, depth 1 -----|- depth 2 -|-- depth 2 --|
               start                       start + 2**(64 - depth)

`entries` (a dict) holds the keys. Everything else is derived from `entries`. `deadlines` exists while any key has a
deadline. The order of the keys (keyvalue_engine.order) is built when a page needs it.

If a key has a deadline, the key's entry holds the deadline beside the value. After the deadline, no reader sees the
key. The expired key takes memory until a sweep removes it, or until a write or page finds it.

Every write goes through `_commit`, which changes the entries and everything derived from them, and calls the observer:

    set, increment, set_many ──┐
    persist, update ───────────┤                 ┌──> charge     counts, which may refuse the write (counted_entries.py)
    delete ────────────────────┼──> _commit ─────┼──> entries    with the deadline beside the value
    sweep, and each call that  │                 ├──> deadlines, order
    finds an expired key ──────┘                 └──> observer

For speed, `Bucket.set` and a few writes inline `_commit`. A comment at each inlined copy names a benchmark that covers
it. tests/engine/test_commit.py compares each copy with `_commit`.

A shard never takes another shard's stripe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import RLock

from keyvalue_engine.changes import DELETE, EXPIRE, PERSIST, SET, Change
from keyvalue_engine.context import Context, Copy
from keyvalue_engine.counted_entries import CountedEntries
from keyvalue_engine.counter import counter_sum
from keyvalue_engine.deadlines import Deadlines
from keyvalue_engine.entry import EMPTY_ENTRY_BYTES, SHARD_BYTES, Entry, Timed, batch_growth, entry_size, value_size
from keyvalue_engine.errors import VALUE_BYTES, LimitError, StoreError
from keyvalue_engine.filling import Filling
from keyvalue_engine.locks import owns
from keyvalue_engine.order import LazyOrder
from keyvalue_engine.quota import Quota

__all__ = ["Shard"]

#: The `looks_max` for a call without a limit.
ALL = 2**63
#: CPython never shrinks a dict when keys are deleted. So the entries move to a new dict when the dict takes more than
#: DICT_BYTES_MIN + DICT_BYTES_PER_KEY * keys. A newly filled dict takes 27 to 54 bytes per key, so this is rare.
DICT_BYTES_MIN = 640
DICT_BYTES_PER_KEY = 80


class Shard(CountedEntries):
    """The keys and values of one arc of the ring. `stripe` protects all attributes.

    Without the stripe, you may only use `entries.get`, `key in entries` and `len(entries)`, and compare `deadlines`
    with None. Each of these operations is atomic, with the GIL and on free-threaded builds.

    The entries of a retired shard never change again. A reader that still holds a retired shard sees the values as of
    the moment when the shard was replaced. This is correct, because the replacement happened during the reader's call.
    `keyvalue_engine.table.Table.read` explains how a reader notices that an entry has expired.
    """

    __slots__ = ("_expiry", "context", "deadlines", "depth", "long_bytes", "start")

    fixed_bytes = SHARD_BYTES  # the memory of a shard without keys
    evicts = False  # True if writes must note more about the keys

    def __init__(self, start: int, depth: int, context: Context) -> None:
        super().__init__(context.account, RLock())
        self.is_plain = not self.evicts
        #: None while no key has a deadline. A write without a deadline then need not read the clock.
        self.deadlines: Deadlines | None = None
        self.start = start
        self.depth = depth
        self.context = context
        self._expiry = context.expiry
        #: The bytes of the long keys, and perhaps of some that were overwritten or deleted (`long_keys`).
        self.long_bytes = 0
        context.account.adjust(self.fixed_bytes)

    @property
    def end(self) -> int:
        """The first position after the arc."""
        return self.start + (1 << (64 - self.depth))

    def set(self, key: bytes, value: bytes, quota: Quota | None = None, ttl_ns: int = 0) -> int:
        """Store a value. O(1). Takes the stripe.

        Return the number of keys in the shard, or perhaps 1 for an existing key. Return 0 if nothing was stored because
        the shard is retired.

        :param ttl_ns: nanoseconds until the key expires, or 0 for no deadline
        :raises LimitError: the keys or memory of the store or the quota would exceed a limit
        """
        stripe = self.stripe
        try:
            stripe.acquire()  # inside: see `locks`
            keys = self.put(key, value, quota, ttl_ns)
        except BaseException as error:
            self.abort(error)
            raise
        stripe.release()
        return keys

    def put(self, key: bytes, value: bytes, quota: Quota | None, ttl_ns: int) -> int:
        """Do what `set` does. The caller must hold the stripe."""
        if self.retired:
            return 0
        if ttl_ns or self.deadlines is not None:
            return self._set_timed(key, value, quota, ttl_ns)
        # `_commit` for a key without a deadline, inlined for speed (`scripts/bench engine`)
        entries = self.entries
        old = entries.get(key)
        if old is None:
            self.charge(1, EMPTY_ENTRY_BYTES + (len(key) & ~15) + (len(value) & ~15), quota)
            entries[key] = value
            if self.order is not None:
                self._note(key)
        else:
            growth = (len(value) & ~15) - (len(old) & ~15)
            if growth:
                self.charge(0, growth, quota)
            entries[key] = value
        observer = self._account.observer
        if observer is not None:
            observer(SET, self._account.name, key, value)
        return len(entries)

    def _set_timed(self, key: bytes, value: bytes, quota: Quota | None, ttl_ns: int) -> int:
        """Do the work of `set` when any key in the shard has a deadline, or when this key gets one."""
        now_ns = self._expiry.clock()
        entries = self.entries
        old = entries.get(key)
        if ttl_ns and old.__class__ is tuple and old[1] > now_ns:
            # `_commit` for a key that has a deadline, inlined for speed (benchmark scenario: expiry)
            old_value, before_ns = old
            account = self._account
            growth = (len(value) & ~15) - (len(old_value) & ~15)
            if growth:
                self.charge(0, growth, quota)
            deadline_ns = now_ns + ttl_ns
            entries[key] = entry = value, deadline_ns
            if deadline_ns < before_ns:
                self._put_deadline(key, deadline_ns, before_ns, True)
            observer = account.observer
            if observer is not None:
                observer(SET, account.name, key, entry)
            return 1
        self._commit(SET, key, (value, now_ns + ttl_ns) if ttl_ns else value, self._live(key, now_ns), quota)
        return len(entries)

    def delete(self, key: bytes) -> bool | None:
        """Remove a key. Return True if the key existed, or None if the shard is retired. O(1). Takes the stripe."""
        stripe = self.stripe
        try:
            stripe.acquire()
            removed = None if self.retired else self.remove(key)
        except BaseException as error:
            self.abort(error)
            raise
        stripe.release()
        return removed

    def increment(self, key: bytes, delta: int, value_bytes_max: int, quota: Quota | None, ttl_ns: int) -> int | None:
        """Add `delta` to a counter. Return the sum, or None if the shard is retired. O(1). Takes the stripe.

        :param ttl_ns: nanoseconds until the key expires, or 0 to keep the key's deadline
        :raises CounterError: the value is not a counter, or the sum is below 0 or at least 2**64
        :raises LimitError: as in `set`
        """
        stripe = self.stripe
        try:
            stripe.acquire()
            if self.is_plain and not ttl_ns and self._account.observer is None:
                # `_commit` for a counter that keeps its length, inlined for speed (benchmark scenario: increment)
                old = self.entries.get(key)
                if old is not None:
                    number = counter_sum(old, delta)  # type: ignore[arg-type] # no key has a deadline
                    value = b"%d" % number
                    if len(value) == len(old) <= value_bytes_max:
                        self.entries[key] = value
                        stripe.release()
                        return number
            total = None if self.retired else self._add(key, delta, value_bytes_max, quota, ttl_ns)
        except BaseException as error:
            self.abort(error)
            raise
        stripe.release()
        return total

    def _add(self, key: bytes, delta: int, value_bytes_max: int, quota: Quota | None, ttl_ns: int) -> int:
        now_ns = self._expiry.clock()
        old = self._live(key, now_ns)
        before, deadline_ns = old if isinstance(old, tuple) else (b"0" if old is None else old, None)
        total = counter_sum(before, delta)
        value = b"%d" % total
        if len(value) > value_bytes_max:
            raise LimitError(VALUE_BYTES, len(value), value_bytes_max)
        deadline_ns = now_ns + ttl_ns if ttl_ns else deadline_ns
        self._commit(SET, key, value if deadline_ns is None else (value, deadline_ns), old, quota)
        return total

    def persist(self, key: bytes) -> bool | None:
        """Remove a key's deadline. O(1). Takes the stripe.

        Return True if the key had a deadline, or None if the shard is retired.
        """
        with self.stripe:
            if self.retired:
                return None
            entry = None if self.deadlines is None else self._live(key, self._expiry.clock())
            if not isinstance(entry, tuple):
                return False
            self._commit(PERSIST, key, entry[0], entry)
            return True

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys. Return the number of deadlines examined, at most `looks_max`. Takes the stripe.

        The number includes deadlines that were moved or removed.
        """
        with self.stripe:
            return 0 if self.retired else self._expire_due(looks_max)

    def abort(self, error: BaseException) -> None:
        """Release the stripe after a call failed. O(n) after an interrupt, which `keyvalue_engine.locks` explains.

        The account and the entries agree, but the order and the deadlines may lack the key. So they are made again.
        """
        if owns(self.stripe):
            try:
                if not isinstance(error, StoreError) and not self.retired:
                    self.forget_order()
                    self._close_deadlines()
                    self._find_deadlines()
                    self.enter_schedules()
            finally:
                self.stripe.release()

    # The caller of each method below must hold the stripe, unless the method says that it takes the stripe.

    def _commit(
        self,
        change: Change,
        key: bytes,
        entry: Entry | None,
        old: Entry | None,
        quota: Quota | None = None,
        charged: bool = False,
    ) -> None:
        """Make a change completely or not at all, and call the observer.

        The account is updated before the entries. So another thread may use the freed memory a moment before the entry
        is removed. No parameter is keyword-only, because CPython does not specialize calls to functions with
        keyword-only parameters (`scripts/bench engine`).

        :param entry: the new entry of the key, or None to remove the key
        :param old: the current entry of the key, or None if the key is missing; an expired entry is allowed only if
            this change removes the key
        :param charged: True if the account already counts the change; a batch is charged before its first write
        :raises FullError: the keys or memory of the store or the quota would exceed a limit; nothing has changed
        """
        account = self._account
        before_ns = old[1] if isinstance(old, tuple) else None
        deadline_ns = entry[1] if isinstance(entry, tuple) else None
        if charged:
            pass
        elif old is None or entry is None:
            growth = (0 if entry is None else entry_size(key, entry)) - (0 if old is None else entry_size(key, old))
            self.charge(1 if old is None else -1, growth, quota)
        elif len(entry) != len(old) or before_ns is not None or deadline_ns is not None:
            growth = value_size(entry) - value_size(old)
            if growth:
                self.charge(0, growth, quota)
        # No call separates the account from the entries, so an interrupt finds both changed, or none (see `locks`).
        if entry is not None:
            if deadline_ns is not None:
                self._expiry.was_used = True  # before the entry is stored
            self.entries[key] = entry
        else:
            entries = self.entries
            del entries[key]
            if entries.__sizeof__() > DICT_BYTES_MIN + DICT_BYTES_PER_KEY * len(entries):
                self._shrink()
        if deadline_ns is not None:
            self._put_deadline(key, deadline_ns, before_ns, old is not None)
        elif before_ns is not None:
            self._drop_deadline(key)
        if (old is None or entry is None) and self.order is not None:
            self._note(key)
        observer = account.observer
        if observer is not None:
            observer(change, account.name, key, entry)

    def growth(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> tuple[int, int]:
        """Return the number of keys and bytes that `put_many` will add for `part`. Each key must occur only once."""
        return batch_growth(self.entries, part, entries, deadline_ns, self.deadlines is not None)

    def put_many(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> None:
        """Store the entries of the keys in `part`.

        Call `expire` for these keys, and charge the account, before this call.
        """
        known = self.entries
        if deadline_ns is None and self.deadlines is None and self.order is None and self._account.observer is None:
            for key in part:  # `_commit` for a charged change, inlined for speed (benchmark scenario: batch)
                known[key] = entries[key]
            return
        for key in part:
            value = entries[key]
            entry = value if deadline_ns is None else (value, deadline_ns)
            self._commit(SET, key, entry, known.get(key), charged=True)

    def remove(self, key: bytes) -> bool:
        """Remove a key. Return True if the key existed and had not expired."""
        entry = self.entries.get(key) if self.deadlines is None else self._live(key, self._expiry.clock())
        if entry is None:
            return False
        self._commit(DELETE, key, None, entry)
        return True

    def expire(self, keys: Iterable[bytes]) -> None:
        """Remove each of `keys` that has expired."""
        if self.deadlines is None:
            return
        now_ns = self._expiry.clock()
        for key in keys:
            self._live(key, now_ns)

    def _live(self, key: bytes, now_ns: int) -> Entry | None:
        """Return the entry of a key, or None if the key is missing or has expired. Remove an expired key."""
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
        due, looks = deadlines.take_due(self._expiry.clock(), looks_max)
        if due:
            self._remove_due(due)
        if deadlines.count:
            deadlines.settle()
        else:
            self._close_deadlines()
        return looks

    def _remove_due(self, due: Mapping[bytes, Timed]) -> None:
        """Remove expired keys: `_commit`, inlined for speed (`scripts/bench engine`).

        A key that expires must not take longer than a key that a batch writes, or writes could starve the sweep.
        """
        account, entries = self._account, self.entries
        self.charge(-len(due), -sum(map(entry_size, due, due.values())))
        for key in due:
            del entries[key]
        if entries.__sizeof__() > DICT_BYTES_MIN + DICT_BYTES_PER_KEY * len(entries):
            self._shrink()
        if self.order is not None:
            for key in due:
                self._note(key)
        observer = account.observer
        if observer is not None:
            for key in due:
                observer(EXPIRE, account.name, key, None)
        self._expiry.count(len(due))

    def _put_deadline(self, key: bytes, deadline_ns: int, before_ns: int | None, is_copy: bool) -> None:
        """Add a deadline, as `Deadlines.put` does."""
        (self.deadlines or self._open_deadlines()).put(key, deadline_ns, before_ns, is_copy)

    def _drop_deadline(self, key: bytes) -> None:
        assert self.deadlines is not None
        self.deadlines.drop(key)
        if not self.deadlines.count:
            self._close_deadlines()

    def _open_deadlines(self) -> Deadlines:
        self.settle()
        self.is_plain = False
        self.deadlines = Deadlines(self, self.entries, self.context)
        return self.deadlines

    def _close_deadlines(self) -> None:
        if self.deadlines is not None:
            self.deadlines.close()
            self.deadlines = None
            self.is_plain = not self.evicts

    def _shrink(self) -> None:
        """Move to a dict of the right size. O(n). A reader of the old dict sees the entries as of this moment."""
        entries = self.entries = {key: entry for key, entry in self.entries.items()}  # noqa: C416 - a copy keeps the size
        if self.deadlines is not None:
            self.deadlines.entries = entries
        if self.order is not None:
            self.order.entries = entries

    def _note(self, key: bytes) -> None:
        """Update the order, if there is one, after a key was added or removed."""
        if self.order is not None and not self.order.note(key):
            self.order = None

    def drop_order(self) -> int:
        """Drop the order. Return the memory that was freed. Takes the stripe."""
        with self.stripe:
            return self.forget_order()

    def forget_order(self) -> int:
        """Do what `drop_order` does. The caller must hold the stripe."""
        freed_bytes = 0 if self.order is None else self.order.drop()
        self.order = None
        return freed_bytes

    def take(self, position: int, page: Filling) -> int | None:
        """Remove expired keys, and append keys to a page as `LazyOrder.take` does.

        O(changes * log n + keys appended), or O(n log n) if the shard has no order yet. If the store has no room for
        the order, the order is used only for this page.
        """
        page.work += self._expire_due(ALL)
        order = self.order
        if order is None:
            if not self.entries:
                return None
            order = LazyOrder(self, self.entries, self.context)
            page.work += len(self.entries)
        try:
            return order.take(position, page)
        finally:
            self.settle()
            self.order = order if order.keep() else None

    def copy(self, position: int) -> Copy:
        """Return a copy of the current entries at and after `position`, also of expired ones. O(n)."""
        entries = self.entries
        if position > self.start:  # after a merge, some may be before it
            position_of = self.context.position_of
            entries = {key: entry for key, entry in entries.items() if position_of(key) >= position}
        return Copy(list(entries), list(entries.values()), self.end)

    def split(self, bits: int) -> list[Shard]:
        """Retire this shard, and return the 2**bits shards that replace it, in the ring's order.

        The entries of this shard do not change.
        """
        depth = self.depth + bits
        shift = 64 - depth
        shards = [self.__class__(self.start + (index << shift), depth, self.context) for index in range(1 << bits)]
        parts = [shard.entries for shard in shards]
        mask = len(parts) - 1
        hash_function, secret = self.context.hash_function, self.context.secret
        for key, entry in self.entries.items():
            parts[hash_function(secret, key) >> shift & mask][key] = entry
        for shard in shards:
            shard.counted_keys = len(shard.entries)
        if self.deadlines is not None:
            for shard in shards:
                shard._find_deadlines()
        self.retire()
        return shards

    def join(self, shards: Iterable[Shard]) -> None:
        """Take over the entries of shards, which are retired. This shard must be empty and not in the ring yet."""
        for shard in shards:
            self.entries.update(shard.entries)
            shard.retire()
        self.counted_keys = len(self.entries)
        self._find_deadlines()

    def _find_deadlines(self) -> None:
        """Find the deadlines of a shard that is not in the ring yet. `enter_schedules` adds them to the schedule."""
        if any(isinstance(entry, tuple) for entry in self.entries.values()):
            self._open_deadlines().find()

    def enter_schedules(self) -> None:
        """Schedule the shard for sweeps if any key has a deadline. Takes the stripe.

        Call this method for each new shard of a split or a merge, once the shard is in the ring.
        """
        with self.stripe:
            if self.deadlines is not None and not self.retired:
                self.deadlines.schedule()

    def retire(self) -> None:
        """Mark the shard as replaced. Readers may still use its entries.

        A writer that finds the shard retired must look up the key's shard again.
        """
        self.forget_order()
        self._close_deadlines()
        self.settle()
        self.retired = True
        self.is_plain = False
        self._account.adjust(-self.fixed_bytes)
