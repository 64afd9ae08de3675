"""Own the store as a user sees it: the way to its buckets, its counts, quotas and observers, and its file.

    Store ── Tables ── name ──> Table ── position ──> Shard ── key ──> Entry      (keyvalue_engine.tables has the rest)

The order of keys, and the cursor
---------------------------------
position(key) = xxh3_64(key, seed), a number of 64 bits; keys are ordered by it. The seed is random, one per store, and saved with the
data. A page begins at a position and ends before one; that one is the cursor, so

- there is no state between pages, any number is a valid cursor, and cursors outlive a restart on the same data and any number of shards;
- a key's place never depends on other keys: a key that is there for the whole walk comes exactly once, one that is added or removed
  meanwhile at most once;
- a cursor is returned only if a key stands at or after it at that moment, so a walk ends with its last key.

Keys of equal position are never split over two pages. With 64 bits there are none by chance. A caller that knew the seed could make them,
so a page refuses more than it can hold (`CrowdedPositionError`).
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from secrets import randbits
from time import monotonic_ns, time_ns

from xxhash import xxh3_64_intdigest

from keyvalue_engine import snapshot
from keyvalue_engine.bucket import CURSOR_MAX, NS_PER_MS, Bucket
from keyvalue_engine.changes import ObserverOf
from keyvalue_engine.options import LENGTH_MAX, TTL_MS_MAX, BucketOptions, StoreOptions
from keyvalue_engine.quota import Quota
from keyvalue_engine.tables import Tables

__all__ = ["Store"]

#: Shards that a sweep may look at for each key that it may remove.
LOOKS_PER_KEY = 4

#: For the handles through which a file is loaded: its lengths were allowed when they were written.
AS_WRITTEN = BucketOptions(key_bytes_max=LENGTH_MAX, value_bytes_max=LENGTH_MAX)


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
    :param seed: of the order of keys, 64 bits; random unless given. Keep it secret: a caller that knows it can make keys of equal position.
    :param hash_function: (key, seed) to a position of 64 bits; tests give one that collides
    :param clock: nanoseconds that never go back; tests give one that they move
    """

    __slots__ = ("_tables", "options")

    def __init__(
        self,
        options: StoreOptions | None = None,
        *,
        seed: int | None = None,
        hash_function: Callable[[bytes, int], int] = xxh3_64_intdigest,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.options = StoreOptions() if options is None else options
        seed = randbits(64) if seed is None else seed
        if not 0 <= seed <= CURSOR_MAX:
            raise ValueError(f"seed: found {seed}, allowed 0 to 2**64 - 1")
        self._tables = Tables(self.options, seed, hash_function, clock)

    def bucket(self, name: bytes, options: BucketOptions | None = None) -> Bucket:
        """Return a handle for the bucket of this name. Creates nothing: the first `set` does.

        :param options: of this handle alone, over the store's
        """
        return Bucket(self._tables, name, BucketOptions() if options is None else options)

    def bucket_names(self) -> list[bytes]:
        """Return the names of the buckets that hold a key (with `strict_buckets`: that were ever written), in the order of their making."""
        return list(self._tables.by_name)

    @property
    def bucket_count(self) -> int:
        """Return the number of buckets. O(1)."""
        return len(self._tables.by_name)

    @property
    def expired_keys(self) -> int:
        """Return the number of keys that expired and were removed."""
        return self._tables.expiry.expired_keys

    def sweep(self, keys_max: int = 1_000) -> bool:
        """Remove expired keys in one bounded step. Return True if more may remain.

        No reader sees an expired key in any case. A sweep gives back its memory.

        :param keys_max: keys to look at, including those whose deadline has moved; four times as many shards
        """
        if keys_max < 1:
            raise ValueError(f"keys_max: found {keys_max}, allowed at least 1")
        return not self._tables.sweep(keys_max, keys_max * LOOKS_PER_KEY)

    def add_quota(self, quota: Quota) -> None:
        """Begin to count what the buckets that it covers hold; handles made with it are limited by it. O(buckets).

        :raises ValueError: it is counted already
        """
        self._tables.add_quota(quota)

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota; handles made with it are limited by its last counts. O(buckets)."""
        self._tables.remove_quota(quota)

    def observe(self, observer_of: ObserverOf | None) -> None:
        """Register `observer_of`, which returns the observer of a bucket, or None for no observer. O(buckets).

        It replaces the one before; None removes it. A write that is under way may still be told to the observer of before.
        """
        self._tables.observe(observer_of)

    def __len__(self) -> int:
        """Return the number of keys in all buckets, including expired keys that are not swept yet. O(1)."""
        return self._tables.ledger.keys

    @property
    def memory_bytes(self) -> int:
        """Return the memory of all buckets by the formula of `keyvalue_engine.entry`. O(1)."""
        return self._tables.ledger.memory_bytes

    def save(self, path: str | PathLike[str]) -> None:
        """Write all buckets to a file, in one step: a reader of `path` finds the old file or the new one.

        Each shard is saved as of one moment; writes go on meanwhile. The format is drawn in `keyvalue_engine.snapshot`.

        :raises OSError: the file could not be written; `path` is as it was
        """
        unix_ns = time_ns() - self._tables.expiry.clock()  # of the clock's zero
        tables = self._tables.by_name.copy()
        try:
            snapshot.save(path, self._tables.seed, tables, lambda deadline_ns: (deadline_ns + unix_ns) // NS_PER_MS)
        finally:
            for name, table in tables.items():
                if table.looks_empty():  # its keys may have expired
                    self._tables.free_if_empty(name)

    @classmethod
    def load(cls, path: str | PathLike[str], options: StoreOptions | None = None) -> Store:
        """Return a store with the buckets of a file, and the seed they were saved with, so that cursors stay valid.

        Keys and values may be longer than the options say: a handle's options allowed it when they were written.

        :raises SnapshotError: the file is damaged, with the offset
        :raises LimitError: the file holds more, or longer names, than the options allow
        :raises OSError: the file could not be read
        """
        with snapshot.Reader(path) as reader:
            store = cls(options, seed=reader.seed)
            for name, entries in reader:
                if store.options.strict_buckets:
                    store._tables.keep_empty(name)  # where its keys have expired, or it had none
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
        self._tables.check()
