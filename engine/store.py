"""The store: buckets by name, the limits they share, and the handle through which a bucket is used.

    Store ── name ──> Table ── position ──> Shard ── key ──> value
      └── Ledger: keys and memory of all

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

from collections.abc import Callable, Iterator
from os import PathLike
from secrets import randbits
from threading import Lock
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from engine import snapshot
from engine.errors import LimitError, NoSuchBucketError
from engine.ledger import BUCKET_BYTES, Ledger, bytes_size
from engine.options import StoreOptions
from engine.table import Table

__all__ = ["Bucket", "Page", "Store"]

CURSOR_MAX = 2**64 - 1


class Page(NamedTuple):
    """Keys in the bucket's order, and the cursor of the next page (None: no key is left)."""

    keys: list[bytes]
    cursor: int | None


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
    """

    __slots__ = ("_hash", "_ledger", "_lock", "_position_of", "_seed", "_tables", "options")

    def __init__(
        self,
        options: StoreOptions | None = None,
        *,
        seed: int | None = None,
        hash_function: Callable[[bytes, int], int] = xxh3_64_intdigest,
    ) -> None:
        self.options = StoreOptions() if options is None else options
        self._seed = seed_now = randbits(64) if seed is None else seed
        if not 0 <= seed_now <= CURSOR_MAX:
            raise ValueError(f"seed: found {seed_now}, allowed 0 to 2**64 - 1")
        self._hash = hash_function
        self._position_of: Callable[[bytes], int] = lambda key: hash_function(key, seed_now)
        self._ledger = Ledger(self.options)
        self._lock = (
            Lock()
        )  # protects adding to and removing from _tables; a look-up is one dict operation and needs none
        self._tables: dict[bytes, Table] = {}

    def bucket(self, name: bytes) -> Bucket:
        """A handle for the bucket of this name. Creates nothing: the first `set` does."""
        return Bucket(self, name)

    def bucket_names(self) -> list[bytes]:
        """Names of the buckets that hold a key (with `strict_buckets`: that were ever written), in the order of their making."""
        return list(self._tables)

    @property
    def bucket_count(self) -> int:
        """How many names `bucket_names` gives. O(1)."""
        return len(self._tables)

    def __len__(self) -> int:
        """Keys in all buckets. O(1)."""
        return self._ledger.keys

    @property
    def memory_bytes(self) -> int:
        """Memory of all buckets by the formula of `engine.ledger`. O(1)."""
        return self._ledger.memory_bytes

    def save(self, path: str | PathLike[str]) -> None:
        """Write all buckets to a file, at one stroke: whoever reads `path` finds the old file or the new one.

        Each shard is saved as of one moment; writes go on meanwhile. The format is drawn in `engine.snapshot`.

        :raises OSError: the file could not be written; `path` is as it was
        """
        snapshot.save(path, self._seed, self._tables.copy())

    @classmethod
    def load(cls, path: str | PathLike[str], options: StoreOptions | None = None) -> Store:
        """A store with the buckets of a file, and the seed they were saved with: cursors of before go on.

        :raises SnapshotError: the file is damaged, with the offset
        :raises LimitError: the file holds more than the options allow
        :raises OSError: the file could not be read
        """
        with snapshot.Reader(path) as reader:
            store = cls(options, seed=reader.seed)
            for name, entries in reader:
                if not entries:
                    if store.options.strict_buckets:
                        store._keep_empty(name)
                    continue
                bucket = store.bucket(name)
                for key, value in entries:
                    bucket.set(key, value)
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
        assert keys <= self.options.keys_max
        assert len(self._tables) <= self.options.buckets_max

    def _set_first(self, name: bytes, key: bytes, value: bytes) -> Table | None:
        """Store the first key of a bucket and make its table known, at one stroke; the table instead, if there is one already.

        :raises LimitError: the name is too long, the buckets are too many, or the key finds no room; no table is made
        """
        with self._lock:
            known = self._tables.get(name)
            if known is not None:
                return known
            table = self._new_table(name)
            try:
                table.ring[1][0].set(key, value)
            except LimitError:
                self._drop_table(name, table)
                raise
            self._tables[name] = table
            return None

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
            raise LimitError("buckets", len(self._tables) + 1, options.buckets_max)
        self._ledger.grow(BUCKET_BYTES + bytes_size(len(name)))
        return Table(options, self._position_of, self._ledger)

    def _drop_table(self, name: bytes, table: Table) -> bool:
        """Give up a table that holds no key; whether it holds none."""
        if not table.free():
            return False
        self._ledger.adjust(0, -BUCKET_BYTES - bytes_size(len(name)))
        return True

    def _settled(self, name: bytes) -> Table | None:
        """The table of this name at a moment when none is being freed."""
        with self._lock:
            return self._tables.get(name)

    def _free_if_empty(self, name: bytes) -> None:
        with self._lock:
            table = self._tables.get(name)
            if table is not None and self._drop_table(name, table):
                del self._tables[name]


class Bucket:
    """A handle for one bucket of a store: cheap, stateless, good for ever, also while the bucket does not exist.

    Reading a bucket that was never written is reading an empty one, unless the store is strict about buckets: then `get`, `exists` and
    `delete` raise `NoSuchBucketError`.
    """

    __slots__ = ("_hash", "_key_bytes_max", "_seed", "_shard_keys_max", "_store", "_tables", "_value_bytes_max", "name")

    def __init__(self, store: Store, name: bytes) -> None:
        self.name = name
        self._store = store
        self._tables = store._tables
        self._hash = store._hash
        self._seed = store._seed
        self._key_bytes_max = store.options.key_bytes_max
        self._value_bytes_max = store.options.value_bytes_max
        self._shard_keys_max = store.options.shard_keys_max

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None. O(1), takes no lock: see `engine.shard.Shard`.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        table = self._tables.get(self.name)
        if table is None:
            self._absent()
            return None
        shift, shards = table.ring
        return shards[self._hash(key, self._seed) >> shift].entries.get(key)

    def exists(self, key: bytes) -> bool:
        """Whether the key is there. O(1), takes no lock.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        return self.get(key) is not None

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value. O(1); now and then a shard is split, which moves at most `shard_keys_max` keys.

        >>> Store(StoreOptions(value_bytes_max=3)).bucket(b"b").set(b"k", b"long")
        Traceback (most recent call last):
        engine.errors.LimitError: value in bytes: found 4, allowed 3

        :raises LimitError: key, value, or the store would pass a limit; the store is as before
        """
        if len(key) > self._key_bytes_max:
            raise LimitError("key in bytes", len(key), self._key_bytes_max)
        if len(value) > self._value_bytes_max:
            raise LimitError("value in bytes", len(value), self._value_bytes_max)
        position = self._hash(key, self._seed)
        table = self._tables.get(self.name)
        keys = 0  # 0 until a shard took the value
        while keys == 0:
            if table is None:
                table = self._store._set_first(self.name, key, value)
                if table is None:
                    return
            shift, shards = table.ring
            shard = shards[position >> shift]
            keys = shard.set(key, value)
            if keys > self._shard_keys_max:
                table.split(shard)
            elif keys == 0:  # retired: by a split, or with its table
                table = self._store._settled(self.name)

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there. O(1), and O(shards) when a shard's last key goes. The last key takes the bucket with it.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        position = self._hash(key, self._seed)
        table = self._tables.get(self.name)
        while table is not None:
            shift, shards = table.ring
            removed = shards[position >> shift].delete(key)
            if removed is None:
                table = self._store._settled(self.name)
                continue
            if removed and table.looks_empty(position) and not self._store.options.strict_buckets:
                self._store._free_if_empty(self.name)
            return removed
        self._absent()
        return False

    def page(self, cursor: int | None = None, keys_max: int | None = None) -> Page:
        """Keys from `cursor` on (None: from the beginning), at most `keys_max` (default: the store's `page_keys_max`).

        A page holds fewer keys where it would pass `page_bytes_max`, and at least one if any is left. Never raises
        `NoSuchBucketError`. O(changes since the last page + log n + page), and the sort of a shard that never had a page.

        >>> bucket = Store().bucket(b"b")
        >>> for key in (b"x", b"y", b"z"):
        ...     bucket.set(key, b"")
        >>> first = bucket.page(keys_max=2)
        >>> second = bucket.page(first.cursor)
        >>> sorted(first.keys + second.keys), second.cursor
        ([b'x', b'y', b'z'], None)

        :raises CrowdedPositionError: more keys stand at one position than a page may hold
        """
        options = self._store.options
        if cursor is not None and not 0 <= cursor <= CURSOR_MAX:
            raise ValueError(f"cursor: found {cursor}, allowed 0 to 2**64 - 1")
        if keys_max is None:
            keys_max = options.page_keys_max
        elif keys_max < 1:
            raise ValueError(f"keys_max: found {keys_max}, allowed at least 1")
        table = self._tables.get(self.name)
        if table is None:
            return Page([], None)
        return Page(*table.page(cursor or 0, keys_max, options.page_bytes_max))

    def keys(self) -> Iterator[bytes]:
        """All keys, in the bucket's order, page by page: each that is there for the whole walk exactly once.

        >>> bucket = Store().bucket(b"b")
        >>> bucket.set(b"k", b"v")
        >>> list(bucket.keys())
        [b'k']
        """
        cursor: int | None = None
        while True:
            page = self.page(cursor)
            yield from page.keys
            cursor = page.cursor
            if cursor is None:
                return

    def __len__(self) -> int:
        """Keys in this bucket: exact when no write is under way. O(shards)."""
        table = self._tables.get(self.name)
        return 0 if table is None else len(table)

    def __repr__(self) -> str:
        return f"Bucket({self.name[:64]!r})"

    def _absent(self) -> None:
        if self._store.options.strict_buckets:
            raise NoSuchBucketError(self.name)
