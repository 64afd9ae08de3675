"""Own the tables of a store by bucket name: what the store and the handles of its buckets share.

    Store ──┐
            ├──> Tables ── name ──> Table ── position ──> Shard ── key ──> Entry
    Bucket ─┘      ├── Ledger: keys and memory of all; an Account a bucket, Quotas over some
                   └── Expiry: shards in which keys have deadlines

A table begins with its bucket's first key, and is freed with its last one, unless the store is strict about buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from keyvalue_engine.changes import ObserverOf
from keyvalue_engine.context import Context
from keyvalue_engine.entry import BUCKET_BYTES, bytes_size
from keyvalue_engine.errors import BUCKET_NAME_BYTES, BUCKETS, FullError, LimitError, StoreError
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.ledger import Account, Ledger
from keyvalue_engine.options import StoreOptions
from keyvalue_engine.quota import Quota
from keyvalue_engine.table import Table

__all__ = ["ROOM_KEYS", "ROOM_SHARDS", "Tables"]

T = TypeVar("T")

#: Keys and shards that a write looks at when it finds no room.
ROOM_KEYS = 1_000
ROOM_SHARDS = 4_096


class Tables:
    """Tables by bucket name. All methods may be called from any thread.

    :param hash_function: (key, seed) to a position of 64 bits
    :param clock: nanoseconds that never go back
    :ivar by_name: read without a lock, since a look-up is one operation of a dict; only this class adds and removes
    """

    __slots__ = (
        "_lock",
        "_observer_of",
        "_position_of",
        "by_name",
        "expiry",
        "hash_function",
        "ledger",
        "options",
        "seed",
    )

    def __init__(
        self, options: StoreOptions, seed: int, hash_function: Callable[[bytes, int], int], clock: Callable[[], int]
    ) -> None:
        self.options = options
        self.seed = seed
        self.hash_function = hash_function
        self.ledger = Ledger(options)
        self.expiry = Expiry(clock)
        self.by_name: dict[bytes, Table] = {}
        self._position_of: Callable[[bytes], int] = lambda key: hash_function(key, seed)
        self._observer_of: ObserverOf | None = None
        self._lock = Lock()  # protects adding to and removing from by_name, _observer_of, and what accounts are given

    def write_first(self, name: bytes, write: Callable[[Table], T]) -> tuple[Table, T | None]:
        """Write the first keys of a bucket and publish its table, in one step. If there is a table already, return it, and None.

        :raises StoreError: the name is too long, the buckets are too many, or `write` raised it; no table is made
        """
        with self._lock:
            known = self.by_name.get(name)
            if known is not None:
                return known, None
            table = self._new_table(name)
            try:
                written = write(table)
            except StoreError:
                self._drop_table(name, table)
                raise
            self.by_name[name] = table
            return table, written

    def keep_empty(self, name: bytes) -> None:
        """Make a bucket known that was written and emptied."""
        with self._lock:
            if name not in self.by_name:
                self.by_name[name] = self._new_table(name)

    def _new_table(self, name: bytes) -> Table:
        options = self.options
        if len(name) > options.bucket_name_bytes_max:
            raise LimitError(BUCKET_NAME_BYTES, len(name), options.bucket_name_bytes_max)
        if len(self.by_name) >= options.buckets_max:
            raise FullError(BUCKETS, len(self.by_name) + 1, options.buckets_max)
        self.ledger.hold(BUCKET_BYTES + bytes_size(len(name)))
        observer = None if self._observer_of is None else self._observer_of(name)
        account = Account(name, self.ledger, observer)
        return Table(options, Context(self._position_of, self.hash_function, self.seed, account, self.expiry))

    def _drop_table(self, name: bytes, table: Table) -> bool:
        """Give up a table that holds no key. Return False if it holds one."""
        if not table.free():
            return False
        self.ledger.hold(-BUCKET_BYTES - bytes_size(len(name)))
        return True

    def settled(self, name: bytes) -> Table | None:
        """Return the table of this name at a moment when none is being freed."""
        with self._lock:
            return self.by_name.get(name)

    def free_if_empty(self, name: bytes) -> None:
        """Free the table of this name if no key is left in it. With `strict_buckets` it stays."""
        with self._lock:
            table = self.by_name.get(name)
            if table is None or self.options.strict_buckets or not table.looks_empty():
                return
            if self._drop_table(name, table):
                del self.by_name[name]

    def sweep(self, keys_max: int, shards_max: int, quota: Quota | None = None) -> int:
        """Remove expired keys, after looks at `keys_max` keys in `shards_max` shards at most. Return the number of looks that were left.

        :param quota: look only into the buckets that it covers
        """
        left = keys_max
        for _ in range(min(len(self.expiry), shards_max)):
            if (
                not left or (shard := self.expiry.rotate()) is None
            ):  # in this order: a shard that is rotated has had its turn
                break
            if quota is None or shard.counts_for(quota):
                left -= shard.sweep(left)
                if not shard.entries:
                    self.free_if_empty(shard.bucket_name)
        return left

    def find_room(self, error: FullError) -> bool:
        """Remove expired keys where room is missing. Return True if any were removed. Bounded by ROOM_KEYS and ROOM_SHARDS."""
        expired = self.expiry.expired_keys
        self.sweep(ROOM_KEYS, ROOM_SHARDS, error.quota)
        return self.expiry.expired_keys != expired

    def add_quota(self, quota: Quota) -> None:
        """Begin to count what the buckets that it covers hold. O(buckets).

        :raises ValueError: it is counted already
        """
        with self._lock, self.ledger.lock:
            if quota in self.ledger.quotas:
                raise ValueError("the quota is counted already")
            self.ledger.quotas += (quota,)
            quota.keys = quota.memory_bytes = 0
            for table in self.by_name.values():
                account = table.account
                if quota.covers(account.name):
                    account.quotas += (quota,)
                    quota.keys += account.keys
                    quota.memory_bytes += account.memory_bytes

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota. O(buckets)."""
        with self._lock, self.ledger.lock:
            self.ledger.quotas = tuple(known for known in self.ledger.quotas if known is not quota)
            for table in self.by_name.values():
                account = table.account
                account.quotas = tuple(known for known in account.quotas if known is not quota)

    def observe(self, observer_of: ObserverOf | None) -> None:
        """Give each bucket, also each that is made later, the observer that `observer_of` returns. O(buckets)."""
        with self._lock:
            self._observer_of = observer_of
            for name, table in self.by_name.items():
                table.account.observer = None if observer_of is None else observer_of(name)

    def check(self) -> None:
        """Assert every invariant, recounting keys and memory by the formula. For tests, while no other thread writes. O(n)."""
        keys = 0
        memory_bytes = 0
        for name, table in self.by_name.items():
            table.check()
            keys += len(table)
            assert len(table) or self.options.strict_buckets, "an emptied bucket is freed"
            memory_bytes += BUCKET_BYTES + bytes_size(len(name)) + sum(shard.memory_bytes for shard in table.shards())
        assert self.ledger.keys == keys
        assert self.ledger.memory_bytes == memory_bytes
        for quota in self.ledger.quotas:
            accounts = [table.account for name, table in self.by_name.items() if quota.covers(name)]
            assert all(quota in account.quotas for account in accounts)
            assert quota.keys == sum(account.keys for account in accounts)
            assert quota.memory_bytes == sum(account.memory_bytes for account in accounts)
        assert keys <= self.options.keys_max
        assert len(self.by_name) <= self.options.buckets_max
