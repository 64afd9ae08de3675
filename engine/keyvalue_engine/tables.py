"""The tables of a store, by bucket name. The store and the handles of its buckets share one `Tables` object.

    Store ──┐
            ├──> Tables ── name ──> Table ── position ──> Shard ── key ──> Entry
    Bucket ─┘      ├── Ledger: counts of keys and memory, with an Account for each bucket, and Quotas
                   ├── Expiry: the shards that have keys with deadlines, sorted by the earliest deadline
                   └── KeptOrders: the shards that keep the order of their keys

Writing the first key of a bucket creates the bucket's table. Removing the last key frees the table, except with
`strict_buckets`.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from keyvalue_engine.changes import ObserverOf
from keyvalue_engine.context import Context
from keyvalue_engine.entry import BUCKET_BYTES, bytes_size
from keyvalue_engine.errors import BUCKET_NAME_BYTES, BUCKETS, MEMORY_BYTES, FullError, LimitError, StoreError
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.kept_orders import KeptOrders
from keyvalue_engine.ledger import Account, Ledger
from keyvalue_engine.options import StoreOptions
from keyvalue_engine.quota import Quota
from keyvalue_engine.table import Table

__all__ = ["ROOM_WORK_MAX", "Tables"]

T = TypeVar("T")

#: The number of expired keys and orders that a write removes, at most, to make room in a full store.
ROOM_WORK_MAX = 1_000


class Tables:
    """The tables of a store, by bucket name. Any thread may call any method.

    :param hash_function: returns the 64-bit position for (key, seed)
    :param clock: returns a time in nanoseconds that never goes back
    :ivar by_name: the tables; only this class adds or removes tables; a look-up is atomic and needs no lock
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
        "orders",
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
        self.orders = KeptOrders()
        self.by_name: dict[bytes, Table] = {}
        self._position_of: Callable[[bytes], int] = lambda key: hash_function(key, seed)
        self._observer_of: ObserverOf | None = None
        self._lock = Lock()  # protects changes of by_name, _observer_of, and the quotas and observers of accounts

    def write_first(self, name: bytes, write: Callable[[Table], T]) -> tuple[Table, T | None]:
        """Create a bucket's table, call `write` with it, and publish it. Return the table and the result of `write`.

        If the table already exists, return the table and None.

        :raises StoreError: the name is too long, there are too many buckets, or `write` raised the error; no table is
            created
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
        """Create an empty bucket, unless the bucket exists. `Store.load` uses this method for `strict_buckets`."""
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
        context = Context(self._position_of, self.hash_function, self.seed, account, self.expiry, self.orders)
        return Table(options, context)

    def _drop_table(self, name: bytes, table: Table) -> bool:
        """Free a table, and subtract its memory from the ledger. Return False if the table holds a key."""
        if not table.free():
            return False
        self.ledger.hold(-BUCKET_BYTES - bytes_size(len(name)))
        return True

    def settled(self, name: bytes) -> Table | None:
        """Return the table of the bucket with this name, or None. Wait for any table that is being created or freed."""
        with self._lock:
            return self.by_name.get(name)

    def free_if_empty(self, name: bytes) -> None:
        """Free the table of the bucket with this name if the table is empty and `strict_buckets` is not set."""
        with self._lock:
            table = self.by_name.get(name)
            if table is None or self.options.strict_buckets or not table.looks_empty():
                return
            if self._drop_table(name, table):
                del self.by_name[name]

    def tidy(self, name: bytes) -> None:
        """Free the table of a bucket if it is empty, or merge its shards if few keys are left."""
        table = self.by_name.get(name)
        if table is not None:
            if table.looks_empty():
                self.free_if_empty(name)
            if table.looks_sparse():
                table.merge()

    def sweep(self, keys_max: int) -> int:
        """Remove expired keys, in the order of their deadlines. Examine at most `keys_max` deadlines.

        Return `keys_max` minus the number of deadlines examined.
        """
        left = keys_max
        while left > 0 and (shard := self.expiry.next_due(self.expiry.clock())) is not None:
            left -= max(1, shard.sweep(left))  # a shard that another thread has just swept counts too
            if not shard.entries:
                self.tidy(shard.bucket_name)
        return left

    def find_room(self, name: bytes, error: FullError, work_max: int) -> int:
        """Remove expired keys, or drop the orders that were not used for the longest time, to make room for a write.

        Return the amount of work that made room, or 0 if there was nothing to remove. The work is bounded.

        :param name: the bucket to write to; if a quota is full, its own expired keys are removed first
        """
        work = 0
        if error.quota is not None and (table := self.by_name.get(name)) is not None:
            work = table.sweep(work_max)
        if not work:
            work = work_max - self.sweep(work_max)
        if error.option == MEMORY_BYTES.option:
            needed_bytes = error.found - error.allowed
            while needed_bytes > 0 and work < work_max and (shard := self.orders.oldest()) is not None:
                needed_bytes -= shard.drop_order()
                work += 1
        return work

    def add_quota(self, quota: Quota) -> None:
        """Start counting the keys and memory of the buckets that a quota covers. O(buckets).

        :raises ValueError: the quota was already added
        """
        with self._lock, self.ledger.lock:
            if quota in self.ledger.quotas:
                raise ValueError("the quota was already added")
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
        """Set each bucket's observer to the result of `observer_of`, now and for each new bucket. O(buckets)."""
        with self._lock:
            self._observer_of = observer_of
            for name, table in self.by_name.items():
                table.account.observer = None if observer_of is None else observer_of(name)

    def check(self) -> None:
        """Assert every invariant, and recount all keys and memory. Only tests call this method."""
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
