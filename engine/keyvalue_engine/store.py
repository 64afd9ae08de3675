"""The store: buckets by name, the limits they share, and the handle through which a bucket is used.

    Store ── name ──> Table ── position ──> Shard ── key ──> value
      ├── Ledger: keys and memory of all; an Account a bucket, Quotas over some
      └── Expiry: shards in which keys have deadlines

The order of keys, and the cursor
---------------------------------
position(key) = xxh3_64(key, seed), a number of 64 bits; keys are ordered by it. The seed is random, one per store, and saved with the
data. A page begins at a position and ends before one; that one is the cursor, so

- there is no state between pages, any number is a valid cursor, and cursors outlive a restart on the same data and any number of shards;
- a key's place never depends on other keys: a key that is there for the whole walk comes exactly once, one that is added or removed
  meanwhile at most once;
- a cursor is returned only if a key stands at or behind it at that moment, so a walk ends with its last key.

Keys of equal position never part over two pages. With 64 bits there are none by chance; who knows the seed could make them, so a
page refuses more than it can bear (`CrowdedPositionError`).
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from secrets import randbits
from threading import Lock
from time import monotonic_ns, time_ns
from typing import TypeAlias, TypeVar

from xxhash import xxh3_64_intdigest

from keyvalue_engine import snapshot
from keyvalue_engine.bucket import CURSOR_MAX, NS_PER_MS, Bucket
from keyvalue_engine.context import Context
from keyvalue_engine.deadlines import Expiry
from keyvalue_engine.errors import FullError, LimitError, StoreError
from keyvalue_engine.ledger import BUCKET_BYTES, Account, Ledger, Observer, Quota, bytes_size
from keyvalue_engine.options import LENGTH_MAX, TTL_MS_MAX, BucketOptions, StoreOptions
from keyvalue_engine.table import Table

__all__ = ["ObserverOf", "Store"]

T = TypeVar("T")

#: Shards that a sweep may look at for each key that it may remove.
LOOKS_PER_KEY = 4
#: Keys and shards that a write looks at when it finds no room.
ROOM_KEYS = 1_000
ROOM_SHARDS = 4_096

#: Of the handles that a file is loaded through: its lengths were allowed when they were written.
AS_WRITTEN = BucketOptions(key_bytes_max=LENGTH_MAX, value_bytes_max=LENGTH_MAX)

#: Who is told of the changes in the bucket of this name, if anyone.
ObserverOf: TypeAlias = Callable[[bytes], Observer | None]


class Store:
    """Buckets of keys and values in memory. All methods are synchronous and may be called from any thread.

    >>> store = Store()
    >>> colours = store.bucket(b"colours")
    >>> colours.set(b"sky", b"blue")
    >>> colours.get(b"sky")
    b'blue'
    >>> colours.get(b"grass") is None
    True
    >>> len(store), store.bucket_names()
    (1, [b'colours'])

    :param options: limits and shape; the defaults are generous but finite
    :param seed: of the order of keys, 64 bits; random unless given. Keep it secret: who knows it can make keys of equal position.
    :param hash_function: (key, seed) to a position of 64 bits; tests give one that collides
    :param clock: nanoseconds that never go back; tests give one that they move
    """

    __slots__ = ("_expiry", "_hash", "_ledger", "_lock", "_observer_of", "_position_of", "_seed", "_tables", "options")

    def __init__(
        self,
        options: StoreOptions | None = None,
        *,
        seed: int | None = None,
        hash_function: Callable[[bytes, int], int] = xxh3_64_intdigest,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.options = StoreOptions() if options is None else options
        self._seed = seed_now = randbits(64) if seed is None else seed
        if not 0 <= seed_now <= CURSOR_MAX:
            raise ValueError(f"seed: found {seed_now}, allowed 0 to 2**64 - 1")
        self._hash = hash_function
        self._position_of: Callable[[bytes], int] = lambda key: hash_function(key, seed_now)
        self._ledger = Ledger(self.options)
        self._expiry = Expiry(clock)
        self._observer_of: ObserverOf | None = None
        # Protects adding to and removing from _tables, and what accounts are given; a look-up is one dict operation and needs none.
        self._lock = Lock()
        self._tables: dict[bytes, Table] = {}

    def bucket(self, name: bytes, options: BucketOptions | None = None) -> Bucket:
        """A handle for the bucket of this name. Creates nothing: the first `set` does.

        :param options: of this handle alone, over the store's
        """
        return Bucket(self, name, BucketOptions() if options is None else options)

    def bucket_names(self) -> list[bytes]:
        """Names of the buckets that hold a key (with `strict_buckets`: that were ever written), in the order of their making."""
        return list(self._tables)

    @property
    def bucket_count(self) -> int:
        """How many names `bucket_names` gives. O(1)."""
        return len(self._tables)

    @property
    def expired_keys(self) -> int:
        """Keys that were removed since their time was over."""
        return self._expiry.expired_keys

    def sweep(self, keys_max: int = 1_000) -> bool:
        """Remove keys whose time is over: one bounded step; whether it stopped since it had done so much.

        Nobody sees such a key in any case; what a sweep gives back is their memory.

        :param keys_max: keys that are looked at, with those whose time was put off meanwhile; of shards four times as many
        """
        if keys_max < 1:
            raise ValueError(f"keys_max: found {keys_max}, allowed at least 1")
        return not self._sweep(keys_max, keys_max * LOOKS_PER_KEY)

    def _sweep(self, keys_max: int, shards_max: int, quota: Quota | None = None) -> int:
        """Look at so many keys in so many shards, of the quota's buckets alone if one is given; how many keys were left to look at."""
        left = keys_max
        for _ in range(min(len(self._expiry), shards_max)):
            if not left or (shard := self._expiry.rotate()) is None:  # in this order: who is rotated has had its turn
                break
            if quota is None or shard.counts_for(quota):
                left -= shard.sweep(left)
                if not shard.entries:
                    self._free_if_empty(shard.bucket_name)
        return left

    def add_quota(self, quota: Quota) -> None:
        """Count what the buckets that it covers hold, from now on; handles made with it are held to it. O(buckets).

        :raises ValueError: it is counted already
        """
        with self._lock, self._ledger.lock:
            if quota in self._ledger.quotas:
                raise ValueError("the quota is counted already")
            self._ledger.quotas += (quota,)
            quota.keys = quota.memory_bytes = 0
            for table in self._tables.values():
                account = table.account
                if quota.covers(account.name):
                    account.quotas += (quota,)
                    quota.keys += account.keys
                    quota.memory_bytes += account.memory_bytes

    def remove_quota(self, quota: Quota) -> None:
        """Count for it no more; handles made with it are held to what it says now. O(buckets)."""
        with self._lock, self._ledger.lock:
            self._ledger.quotas = tuple(known for known in self._ledger.quotas if known is not quota)
            for table in self._tables.values():
                account = table.account
                account.quotas = tuple(known for known in account.quotas if known is not quota)

    def observe(self, observer_of: ObserverOf | None) -> None:
        """Have changes told, from now on, to whom `observer_of` names for each bucket; None: to nobody. O(buckets).

        A write that is under way may still be told to whom was named before.
        """
        with self._lock:
            self._observer_of = observer_of
            for name, table in self._tables.items():
                table.account.observer = None if observer_of is None else observer_of(name)

    def __len__(self) -> int:
        """Keys in all buckets, with those that have expired and are not swept yet. O(1)."""
        return self._ledger.keys

    @property
    def memory_bytes(self) -> int:
        """Memory of all buckets by the formula of `keyvalue_engine.ledger`. O(1)."""
        return self._ledger.memory_bytes

    def save(self, path: str | PathLike[str]) -> None:
        """Write all buckets to a file, at one stroke: whoever reads `path` finds the old file or the new one.

        Each shard is saved as of one moment; writes go on meanwhile. The format is drawn in `keyvalue_engine.snapshot`.

        :raises OSError: the file could not be written; `path` is as it was
        """
        unix_ns = time_ns() - self._expiry.clock()  # of the clock's zero
        tables = self._tables.copy()
        try:
            snapshot.save(path, self._seed, tables, lambda deadline_ns: (deadline_ns + unix_ns) // NS_PER_MS)
        finally:
            for name, table in tables.items():
                if table.looks_empty():  # its keys may have expired
                    self._free_if_empty(name)

    @classmethod
    def load(cls, path: str | PathLike[str], options: StoreOptions | None = None) -> Store:
        """A store with the buckets of a file, and the seed they were saved with: cursors of before go on.

        Keys and values may be longer than the options say: a handle's options allowed it when they were written.

        :raises SnapshotError: the file is damaged, with the offset
        :raises LimitError: the file holds more, or longer names, than the options allow
        :raises OSError: the file could not be read
        """
        with snapshot.Reader(path) as reader:
            store = cls(options, seed=reader.seed)
            for name, entries in reader:
                if store.options.strict_buckets:
                    store._keep_empty(name)  # where its keys have expired, or it had none
                bucket = store.bucket(name, AS_WRITTEN)
                now_ms = time_ns() // NS_PER_MS
                for key, value, deadline_ms in entries:
                    if deadline_ms is None:
                        bucket.set(key, value)
                    elif deadline_ms > now_ms:
                        bucket.set(key, value, min(deadline_ms - now_ms, TTL_MS_MAX))
        return store

    def check(self) -> None:
        """Assert every invariant of the store. For tests, while no other thread writes. O(n)."""
        keys = 0
        memory_bytes = 0
        for name, table in self._tables.items():
            table.check()
            keys += len(table)
            assert len(table) or self.options.strict_buckets, "an emptied bucket is freed"
            memory_bytes += BUCKET_BYTES + bytes_size(len(name)) + sum(shard.memory_bytes for shard in table.shards())
        assert self._ledger.keys == keys
        assert self._ledger.memory_bytes == memory_bytes
        for quota in self._ledger.quotas:
            accounts = [table.account for name, table in self._tables.items() if quota.covers(name)]
            assert all(quota in account.quotas for account in accounts)
            assert quota.keys == sum(account.keys for account in accounts)
            assert quota.memory_bytes == sum(account.memory_bytes for account in accounts)
        assert keys <= self.options.keys_max
        assert len(self._tables) <= self.options.buckets_max

    def _write_first(self, name: bytes, write: Callable[[Table], T]) -> tuple[Table, T | None]:
        """Write the first keys of a bucket and make its table known, at one stroke; or the table that there is already, and None.

        :raises StoreError: the name is too long, the buckets are too many, or `write` raised it; no table is made
        """
        with self._lock:
            known = self._tables.get(name)
            if known is not None:
                return known, None
            table = self._new_table(name)
            try:
                written = write(table)
            except StoreError:
                self._drop_table(name, table)
                raise
            self._tables[name] = table
            return table, written

    def _keep_empty(self, name: bytes) -> None:
        """Make a bucket known that was written and emptied."""
        with self._lock:
            if name not in self._tables:
                self._tables[name] = self._new_table(name)

    def _new_table(self, name: bytes) -> Table:
        options = self.options
        if len(name) > options.bucket_name_bytes_max:
            raise LimitError("bucket name in bytes", len(name), options.bucket_name_bytes_max)
        if len(self._tables) >= options.buckets_max:
            raise FullError("buckets", len(self._tables) + 1, options.buckets_max)
        self._ledger.hold(BUCKET_BYTES + bytes_size(len(name)))
        observer = None if self._observer_of is None else self._observer_of(name)
        account = Account(name, self._ledger, observer)
        return Table(options, Context(self._position_of, self._hash, self._seed, account, self._expiry))

    def _drop_table(self, name: bytes, table: Table) -> bool:
        """Give up a table that holds no key; whether it holds none."""
        if not table.free():
            return False
        self._ledger.hold(-BUCKET_BYTES - bytes_size(len(name)))
        return True

    def _settled(self, name: bytes) -> Table | None:
        """The table of this name at a moment when none is being freed."""
        with self._lock:
            return self._tables.get(name)

    def _free_if_empty(self, name: bytes) -> None:
        with self._lock:
            table = self._tables.get(name)
            if table is None or self.options.strict_buckets or not table.looks_empty():
                return
            if self._drop_table(name, table):
                del self._tables[name]

    def _find_room(self, error: FullError) -> bool:
        """Whether keys whose time is over were removed where room is needed. Bounded: a write that is refused looks at so many shards and keys."""
        expired = self._expiry.expired_keys
        self._sweep(ROOM_KEYS, ROOM_SHARDS, error.quota)
        return self._expiry.expired_keys != expired
