"""Counts of keys and memory: one ledger for the store, one account for each bucket, and quotas for groups of buckets.

Memory is calculated with the formula in `keyvalue_engine.entry`. You may read a count without the lock. A count is a
single attribute, so you always read a number that was correct at some moment.
"""

from __future__ import annotations

from threading import RLock
from typing import Protocol

from keyvalue_engine.changes import Observer
from keyvalue_engine.entry import EVICTION_BYTES, Entry
from keyvalue_engine.errors import KEYS, MEMORY_BYTES, QUOTA_KEYS, QUOTA_MEMORY_BYTES, FullError
from keyvalue_engine.locks import owns
from keyvalue_engine.options import NONE, UNUSED, StoreOptions
from keyvalue_engine.quota import UNLIMITED, Quota, Usage, Usages
from keyvalue_engine.turns import Turns

__all__ = ["Account", "EvictingAccount", "Ledger"]


class HoldsAhead(Protocol):
    """A shard, as far as it holds room ahead."""

    entries: dict[bytes, Entry]
    counted_keys: int
    free_bytes: int

    def give_back(self) -> None:
        """Give back the room. Takes the stripe."""


class Ledger:
    """The number of keys in a store, their memory, and the limits for both.

    `keys` and `memory_bytes` include the room that shards hold ahead (`keyvalue_engine.counted_entries`). `counts`
    returns the numbers without it.

    :param is_limited: False if the options limit nothing
    :ivar counts_ahead: True if shards may hold room ahead
    :ivar ahead: the shards that hold room ahead, and perhaps some that have used it up; changed without the lock
    """

    __slots__ = (
        *("ahead", "counts_ahead", "keys", "keys_max", "lock", "memory_bytes", "memory_bytes_max"),
        *("shard_keys_max", "usages"),
    )

    def __init__(self, options: StoreOptions, is_limited: bool = True) -> None:
        #: Protects the counts in the ledger, its accounts and its usages. This is a leaf lock: a thread that holds it
        #: takes no other lock. A thread may take it while it holds a stripe. One lock for the whole store keeps the
        #: limits exact across all threads. An overwrite that does not change the memory size does not take the lock.
        self.lock = RLock()
        memory_bytes_max = options.memory_bytes_max if is_limited else None
        self.keys_max = options.keys_max if is_limited else UNLIMITED
        self.memory_bytes_max = UNLIMITED if memory_bytes_max is None else memory_bytes_max
        self.keys = 0
        self.memory_bytes = 0
        self.usages = Usages()
        self.shard_keys_max = options.shard_keys_max
        self.counts_ahead = is_limited and options.eviction == NONE
        self.ahead: set[HoldsAhead] = set()

    def counts(self) -> tuple[int, int]:
        """Return the number of keys and the memory. The numbers are exact if no write is in progress. O(shards)."""
        with self.lock:
            keys, memory_bytes = self.keys, self.memory_bytes
            for shard in [*self.ahead]:
                keys -= shard.counted_keys - len(shard.entries)
                memory_bytes -= shard.free_bytes
            return keys, memory_bytes

    def recall(self) -> None:
        """Take back all room that shards hold ahead. Takes one stripe after another. O(shards)."""
        for shard in [*self.ahead]:
            shard.give_back()

    def count_exactly(self) -> None:
        """Let no shard hold room ahead from now on, because quotas must know of each key."""
        self.counts_ahead = False  # before `recall`; see `CountedEntries._ahead_keys`
        self.recall()

    def hold(self, memory_bytes: int) -> None:
        """Add to the memory that belongs to no entry. A negative number is never refused.

        :raises FullError: the memory would exceed the limit; nothing is counted
        """
        with self.lock:
            memory_after = self.memory_bytes + memory_bytes
            if memory_after > self.memory_bytes_max and memory_bytes > 0:
                raise FullError(MEMORY_BYTES, memory_after, self.memory_bytes_max, is_exact=not self.ahead)
            self.memory_bytes = memory_after


class Account:
    """The number of keys in one bucket, and the memory of its entries. The ledger holds the totals of the store.

    `keys` and `memory_bytes` include the room that shards hold ahead. A bucket without keys has none.

    An account also holds the bucket's name and observer for the shards.

    :ivar observer: the function to call for each change in the bucket, or None
    :ivar key_bytes: memory that a key takes besides its entry
    """

    key_bytes = 0

    __slots__ = ("_all_usages", "_usages", "_version", "keys", "ledger", "memory_bytes", "name", "observer")

    def __init__(self, name: bytes, ledger: Ledger, observer: Observer | None = None) -> None:
        self.name = name
        self.ledger = ledger
        self.observer = observer
        self.keys = 0
        self.memory_bytes = 0
        self._all_usages = ledger.usages
        self._usages: tuple[Usage, ...] = ()
        self._version = 0  # the version of `_all_usages` in which `_usages` was looked up; 0 is the empty one

    def charge(self, keys: int, memory_bytes: int, quota: Quota | None = None) -> None:
        """Add to the counts of keys and memory. A removal passes negative numbers, and is never refused.

        :raises FullError: the counts would exceed a limit of the store or the quota; nothing is counted
        """
        ledger = self.ledger
        lock = ledger.lock
        is_charged = False
        try:
            lock.acquire()  # inside: see `locks`
            keys_after = ledger.keys + keys
            memory_after = ledger.memory_bytes + memory_bytes
            if keys_after > ledger.keys_max and keys > 0:
                raise FullError(KEYS, keys_after, ledger.keys_max, None, (keys, memory_bytes), not ledger.ahead)
            if memory_after > ledger.memory_bytes_max and memory_bytes > 0:
                raise FullError(
                    MEMORY_BYTES, memory_after, ledger.memory_bytes_max, None, (keys, memory_bytes), not ledger.ahead
                )
            if self._all_usages.version or quota is not None:  # the version is 0 until the store has a first quota
                self._charge_quotas(keys, memory_bytes, quota)
            ledger.keys = keys_after
            ledger.memory_bytes = memory_after
            self.keys += keys
            self.memory_bytes += memory_bytes
            is_charged = True
            lock.release()
        except BaseException:
            if is_charged:  # an interrupt after `release`
                self._take_back(keys, memory_bytes)
            elif owns(lock):
                lock.release()
            raise

    def _take_back(self, keys: int, memory_bytes: int) -> None:
        """Undo a charge. No limit applies, although another thread may have used the memory that a removal freed."""
        ledger = self.ledger
        with ledger.lock:
            for usage in self._all_usages.of(self.name):
                if usage.counts(self.name):
                    usage.add(-keys, -memory_bytes)
            ledger.keys -= keys
            ledger.memory_bytes -= memory_bytes
            self.keys -= keys
            self.memory_bytes -= memory_bytes

    def _charge_quotas(self, keys: int, memory_bytes: int, limited_by: Quota | None) -> None:
        if self._version != self._all_usages.version:
            self._usages = self._all_usages.of(self.name)
            self._version = self._all_usages.version
        if limited_by is not None:
            limited_usage = limited_by.usage
            keys_after = limited_usage.keys + keys
            memory_after = limited_usage.memory_bytes + memory_bytes
            if keys_after > limited_by.keys_max and keys > 0:
                raise FullError(QUOTA_KEYS, keys_after, limited_by.keys_max, limited_by, (keys, memory_bytes))
            if memory_after > limited_by.memory_bytes_max and memory_bytes > 0:
                raise FullError(
                    QUOTA_MEMORY_BYTES, memory_after, limited_by.memory_bytes_max, limited_by, (keys, memory_bytes)
                )
        charged = 0
        try:
            for usage in self._usages:
                boundary = usage.boundary
                if boundary is None or self.name < boundary:  # `Usage.counts` and `add`, inlined for speed
                    usage.keys += keys
                    usage.memory_bytes += memory_bytes
                charged += 1
        except BaseException:  # an interrupt between two usages
            for usage in self._usages[:charged]:
                if usage.counts(self.name):
                    usage.add(-keys, -memory_bytes)
            raise

    def adjust(self, memory_bytes: int) -> None:
        """Add the memory of shards and orders to the ledger's count, or raise what a signal handler raised and add nothing."""
        ledger = self.ledger
        is_done = False
        try:
            with ledger.lock:
                ledger.memory_bytes += memory_bytes
                is_done = True
        except BaseException:
            if is_done:  # an interrupt at the end of `with`
                with ledger.lock:
                    ledger.memory_bytes -= memory_bytes
            raise


class EvictingAccount(Account):
    """An account of a store that evicts keys.

    :param turns: the turns of the bucket's shards
    :ivar notes_use: True if shards must know which keys were used
    """

    __slots__ = ("key_bytes", "notes_use", "turns")

    def __init__(self, name: bytes, ledger: Ledger, observer: Observer | None, eviction: str, turns: Turns) -> None:
        super().__init__(name, ledger, observer)
        self.turns = turns
        self.notes_use = eviction == UNUSED
        self.key_bytes = EVICTION_BYTES[eviction]

    def charge(self, keys: int, memory_bytes: int, quota: Quota | None = None) -> None:
        """Add to the counts, as `Account.charge` does, and count the memory that eviction takes for each key."""
        super().charge(keys, memory_bytes + keys * self.key_bytes, quota)
