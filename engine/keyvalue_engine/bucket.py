"""A handle for a bucket, and pages of its keys. `keyvalue_engine.store` explains the cursor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from keyvalue_engine.arguments import own_bytes, own_int, own_keys
from keyvalue_engine.counted_entries import FREE_BYTES_MAX, SHARD_KEYS_MIN
from keyvalue_engine.entry import EMPTY_ENTRY_BYTES, Entry
from keyvalue_engine.errors import KEY_BYTES, VALUE_BYTES, FullError, LimitError, NoSuchBucketError, StoreError
from keyvalue_engine.long_keys import LONG_KEY_BYTES
from keyvalue_engine.options import NS_PER_MS, BucketOptions, ttl_ns_of
from keyvalue_engine.table import Table
from keyvalue_engine.tables import Tables
from keyvalue_engine.updates import Updates

__all__ = ["CURSOR_MAX", "Bucket", "Page"]

T = TypeVar("T")

CURSOR_MAX = 2**64 - 1


class Page(NamedTuple):
    """A page of keys in the bucket's order. `cursor` is the start of the next page, or None after the last page."""

    keys: list[bytes]
    cursor: int | None


class Bucket(Updates):
    """A handle for one bucket of a store. Handles are cheap and stateless, and the bucket need not exist.

    A bucket that was never written to reads as empty. With `strict_buckets`, `get`, `exists` and `delete` raise
    `NoSuchBucketError` instead.

    Keys and values are bytes, or any object with a buffer of bytes, such as a bytearray or a memoryview. The bucket
    copies such a buffer, so a later change of the buffer does not change the bucket. Every method raises TypeError for
    a key, value or number of another type, and then changes nothing.

    A bucket has the operators of a mapping, and `keys`, `values` and `items`. These return iterators, which read page by
    page. The keys have no meaningful order. Other threads may write during an iteration, and `keys` says what it finds.
    An empty bucket is false, as an empty dict is, so test for a missing handle with `bucket is None`.

    >>> from keyvalue_engine import Store
    >>> bucket = Store().bucket(b"b")
    >>> bucket[b"sky"] = b"blue"
    >>> bucket[b"sky"], b"grass" in bucket, len(bucket), list(bucket), dict(bucket.items())
    (b'blue', False, 1, [b'sky'], {b'sky': b'blue'})
    """

    __slots__ = (
        *("_by_name", "_expiry", "_hash", "_is_strict", "_key_bytes_max", "_page_bytes_max", "_page_keys_max", "_quota"),
        *("_secret", "_shard_keys_max", "_short_key_max", "_tables", "_ttl_ns", "_value_bytes_max", "name"),
    )  # fmt: skip

    def __init__(self, tables: Tables, name: bytes, options: BucketOptions) -> None:
        of_store = tables.options
        self.name = name
        self._tables = tables
        self._by_name = tables.by_name
        self._expiry = tables.expiry
        self._hash = tables.hash_function
        self._secret = tables.secret_of(name)
        self._shard_keys_max = of_store.shard_keys_max
        self._key_bytes_max = options.key_bytes_max or of_store.key_bytes_max
        self._short_key_max = min(self._key_bytes_max, LONG_KEY_BYTES)  # the fast paths are for keys up to this length
        self._value_bytes_max = options.value_bytes_max or of_store.value_bytes_max
        self._page_keys_max = options.page_keys_max or of_store.page_keys_max
        self._page_bytes_max = options.page_bytes_max or of_store.page_bytes_max
        self._ttl_ns = (options.ttl_ms or 0) * NS_PER_MS
        self._quota = options.quota
        if options.quota is not None:
            tables.ledger.count_exactly()  # usually `Tables.add_quota` has done so
        self._is_strict = of_store.strict_buckets if options.strict_buckets is None else options.strict_buckets

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None. O(1), without a lock.

        `keyvalue_engine.table.Table.read` explains why reads need no lock.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        if type(key) is not bytes:
            key = own_bytes(key, "key")
        try:
            table = self._by_name[self.name]  # `_by_name.get` takes 9 ns longer if the bucket exists
        except KeyError:
            self._absent()
            return None
        shift, shards = table.ring
        hash_function = self._hash  # a call of `self._hash` takes 10 ns longer, because it looks for a method
        entry = shards[hash_function(self._secret, key) >> shift].entries.get(key)
        if not self._expiry.was_used or entry.__class__ is not tuple:  # testing `was_used` first saves 15 ns
            return entry  # type: ignore[return-value]  # mypy does not see that this is not a tuple
        value, deadline_ns = entry
        now_ns = self._expiry.clock()
        return value if deadline_ns > now_ns else table.read(key, now_ns)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of `keys`, in the same order, with None for each missing key.

        A call sees all entries of a `set_many` or none of them, even if the keys expire during the call.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        table = self._by_name.get(self.name)
        if table is None:
            self._absent()
            return [None] * len(own_keys(keys))
        return table.get_many(keys)

    def get_each(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of `keys`, as one `get` for each does, in any order. It raises the same errors."""
        return self.get_many(keys)

    def exists(self, key: bytes) -> bool:
        """Return True if the key exists. O(1), without a lock.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        return self.get(key) is not None

    def set(self, key: bytes, value: bytes, ttl_ms: int | None = None) -> None:
        """Store a value. O(1), unless the write splits a shard. A split moves about `shard_keys_max` keys.

        >>> from keyvalue_engine import Store, StoreOptions
        >>> Store(StoreOptions(value_bytes_max=3)).bucket(b"b").set(b"k", b"long")
        Traceback (most recent call last):
        keyvalue_engine.errors.LimitError: value is 4 bytes; the limit is 3 (value_bytes_max)

        :param ttl_ms: milliseconds until the key expires; None means the handle's `ttl_ms` option
        :raises LimitError: the key or value is too long, or the store or the quota is full even after
            expired keys are removed
        """
        if type(key) is not bytes:
            key = own_bytes(key, "key")
        if type(value) is not bytes:
            value = own_bytes(value, "value")
        key_bytes, value_bytes = len(key), len(value)
        if value_bytes > self._value_bytes_max:
            raise LimitError(VALUE_BYTES, value_bytes, self._value_bytes_max)
        ttl_ns = self._ttl_ns if ttl_ms is None else ttl_ns_of(ttl_ms)
        if key_bytes > self._short_key_max:
            self._check_key(key)
            self._set(key, value, ttl_ns)
            return
        try:
            table = self._by_name[self.name]  # as in `get`
        except KeyError:
            self._set(key, value, ttl_ns)
            return
        shift, shards = table.ring
        hash_function = self._hash  # as in `get`
        shard = shards[hash_function(self._secret, key) >> shift]
        stripe = shard.stripe
        try:
            stripe.acquire()  # inside: see `locks`
            if shard.is_plain and not ttl_ns and table.account.observer is None:
                # `Shard._commit`, inlined for speed (`scripts/bench engine`)
                entries = shard.entries
                old = entries.get(key)
                if old is None:
                    free_bytes = shard.free_bytes - EMPTY_ENTRY_BYTES - (key_bytes & ~15) - (value_bytes & ~15)
                    if free_bytes >= 0 and len(entries) < shard.counted_keys:  # if so, there is no order
                        entries[key] = value
                        shard.free_bytes = free_bytes
                        stripe.release()
                        return
                elif value_bytes == len(old):
                    entries[key] = value
                    stripe.release()
                    return
                elif shard.is_ahead and shard.counted_keys >= SHARD_KEYS_MIN:
                    free_bytes = shard.free_bytes + (len(old) & ~15) - (value_bytes & ~15)
                    if 0 <= free_bytes <= FREE_BYTES_MAX:
                        entries[key] = value
                        shard.free_bytes = free_bytes
                        stripe.release()
                        return
            keys = shard.put(key, value, self._quota, ttl_ns)
            stripe.release()
        except BaseException as error:
            shard.abort(error)
            if not isinstance(error, FullError):
                raise
            keys = 0  # `_set` may make room
        if not keys:
            self._set(key, value, ttl_ns)
        elif keys > self._shard_keys_max:
            table.split(shard)

    def _set(self, key: bytes, value: bytes, ttl_ns: int) -> None:
        """Store a value on the slow path: a long key, no table yet, a retired shard, or a full store."""

        def put(table: Table) -> int | None:
            shard = table.shard_of(key)
            keys = shard.set(key, value, self._quota, ttl_ns)
            table.note_key(shard, key)
            return keys or None

        self._write(put, (key,))

    def set_until(self, key: bytes, value: bytes, deadline_ns: int | None) -> None:
        """Store a value that expires at a time of the store's clock, or never. A time in the past removes the key."""
        ttl_ns = 0 if deadline_ns is None else deadline_ns - self._expiry.clock()
        if ttl_ns < 0 or (deadline_ns is not None and not ttl_ns):
            self.delete(key)
        else:
            self._set(key, value, ttl_ns)

    def increment(self, key: bytes, delta: int) -> int:
        """Add `delta` to a counter, and return the sum. O(1).

        A counter is a number stored as decimal text. A missing key counts as 0. The key keeps its deadline, unless the
        handle's options set a new one.

        >>> from keyvalue_engine import Store
        >>> bucket = Store().bucket(b"b")
        >>> bucket.increment(b"n", 2), bucket.increment(b"n", 3), bucket.get(b"n")
        (2, 5, b'5')

        :raises CounterError: the value is not a counter, or the sum is below 0 or at least 2**64
        :raises LimitError: as in `set`
        """
        if type(key) is not bytes:
            key = own_bytes(key, "key")
        if type(delta) is not int:
            delta = own_int(delta, "delta")
        if len(key) > self._short_key_max:
            self._check_key(key)
            return self._write(lambda table: self._add(table, key, delta), (key,))
        table = self._by_name.get(self.name)
        if table is not None:  # `_add`, inlined for speed (benchmark scenario: increment)
            shift, shards = table.ring
            hash_function = self._hash  # as in `get`
            shard = shards[hash_function(self._secret, key) >> shift]
            try:
                total = shard.increment(key, delta, self._value_bytes_max, self._quota, self._ttl_ns)
            except StoreError:
                total = None  # `_write` makes room, or raises the error again
            if total is not None:
                if len(shard.entries) > self._shard_keys_max:
                    table.split(shard)
                return total
        return self._write(lambda table: self._add(table, key, delta), (key,))

    def _add(self, table: Table, key: bytes, delta: int) -> int | None:
        shard = table.shard_of(key)
        total = shard.increment(key, delta, self._value_bytes_max, self._quota, self._ttl_ns)
        table.note_key(shard, key)
        return total

    def _check_key(self, key: bytes) -> None:
        if len(key) > self._key_bytes_max:
            raise LimitError(KEY_BYTES, len(key), self._key_bytes_max)

    def _write(self, write: Callable[[Table], T | None], keys: Collection[bytes]) -> T:
        """Call `write` with the bucket's table, and create the table if necessary.

        `write` returns None if a shard or the table was retired. Then this method calls `write` again.
        """
        table = self._by_name.get(self.name)
        work = 0
        while True:
            try:
                if table is None:
                    table, written = self._tables.write_first(self.name, write)
                else:
                    written = write(table)
            except StoreError as error:
                if isinstance(error, FullError):
                    if not error.is_exact:
                        self._tables.ledger.recall()
                        continue
                    done = self._tables.make_room(self.name, error, self._quota, keys, work)
                    if done:
                        work += done
                        continue
                self._tables.free_if_empty(self.name)  # the write may have removed the last key because it had expired
                raise
            if written is not None:
                return written
            table = self._tables.settled(self.name)

    def delete(self, key: bytes) -> bool:
        """Remove a key. Return True if the key existed. Removing the last key frees the bucket.

        O(1), or O(shards) if the removal leaves the key's shard empty.

        :raises NoSuchBucketError: with `strict_buckets`
        """
        if type(key) is not bytes:
            key = own_bytes(key, "key")
        table = self._by_name.get(self.name)
        while table is not None:
            shift, shards = table.ring
            hash_function = self._hash  # as in `get`
            shard = shards[hash_function(self._secret, key) >> shift]
            removed = shard.delete(key)
            if removed is None:
                table = self._tables.settled(self.name)
                continue
            if not shard.entries or table.account.keys <= table.merge_keys:
                self._tables.tidy(self.name)
            return removed
        self._absent()
        return False

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Remove keys. Return the number of keys that existed. O(keys).

        :raises NoSuchBucketError: with `strict_buckets`
        """
        keys = own_keys(keys)
        table = self._by_name.get(self.name)
        while table is not None:
            removed = table.delete_many(keys)
            if removed is None:
                table = self._tables.settled(self.name)
                continue
            self._tables.tidy(self.name)
            return removed
        self._absent()
        return 0

    def is_known(self) -> bool:
        """Return True if the bucket holds a key. O(1), without a lock."""
        return self.name in self._by_name

    def entry(self, key: bytes) -> Entry | None:
        """Return a key's value, with its deadline on the store's clock if it has one, or None. O(1), without a lock."""
        table = self._by_name.get(self.name)
        entry = None if table is None else table.shard_of(key).entries.get(key)
        return None if isinstance(entry, tuple) and entry[1] <= self._expiry.clock() else entry

    def ttl_ms(self, key: bytes) -> int | None:
        """Return the milliseconds until a key expires (at least 1), or None if the key is missing or has no deadline.

        O(1), without a lock.

        >>> from keyvalue_engine import Store
        >>> bucket = Store(clock=lambda: 0).bucket(b"b")
        >>> bucket.set(b"k", b"v", ttl_ms=1500)
        >>> bucket.ttl_ms(b"k"), bucket.persist(b"k"), bucket.ttl_ms(b"k")
        (1500, True, None)
        """
        key = own_bytes(key, "key")
        table = self._by_name.get(self.name)
        if table is None:
            return None
        now_ns = self._expiry.clock()
        entry = table.shard_of(key).entries.get(key)
        if not isinstance(entry, tuple) or entry[1] <= now_ns:
            return None
        return -((now_ns - entry[1]) // NS_PER_MS)

    def persist(self, key: bytes) -> bool:
        """Remove a key's deadline. Return True if the key had a deadline. O(1)."""
        key = own_bytes(key, "key")
        table = self._by_name.get(self.name)
        while table is not None:
            shard = table.shard_of(key)
            persisted = shard.persist(key)
            if persisted is not None:
                if not shard.entries:
                    self._tables.tidy(self.name)
                return persisted
            table = self._tables.settled(self.name)
        return False

    def page(self, cursor: int | None = None, keys_max: int | None = None, bytes_max: int | None = None) -> Page:
        """Return a page of keys that starts at `cursor`, or at the beginning if `cursor` is None.

        A page stays within `keys_max` and `page_bytes_max`, but holds at least one key if any key is left, and all keys
        that share the position of this key. The page of a missing bucket is empty, even with `strict_buckets`. The cost
        is O(changes since the last page + log n + page), plus a sort for each shard whose keys are not sorted yet, plus
        the removal of expired keys.

        >>> from keyvalue_engine import Store
        >>> bucket = Store().bucket(b"b")
        >>> for key in (b"x", b"y", b"z"):
        ...     bucket.set(key, b"")
        >>> first = bucket.page(keys_max=2)
        >>> second = bucket.page(first.cursor)
        >>> sorted(first.keys + second.keys), second.cursor
        ([b'x', b'y', b'z'], None)

        :param keys_max: limit for the number of keys; None means the `page_keys_max` of the handle or the store
        :param bytes_max: lowers the handle's `page_bytes_max` for this page
        """
        page = self.partial_page(cursor, keys_max, bytes_max)
        while not page.keys and page.cursor is not None:
            page = self.partial_page(page.cursor, keys_max, bytes_max)
        return page

    def partial_page(
        self, cursor: int | None = None, keys_max: int | None = None, bytes_max: int | None = None
    ) -> Page:
        """Return a page as `page` does, in bounded time.

        If many keys have expired, the page may be empty although it has a cursor. The next page then continues there.

        The parameters are those of `page`.
        """
        cursor = None if cursor is None else own_int(cursor, "cursor")
        keys_max = None if keys_max is None else own_int(keys_max, "keys_max")
        bytes_max = None if bytes_max is None else own_int(bytes_max, "bytes_max")
        if cursor is not None and not 0 <= cursor <= CURSOR_MAX:
            raise ValueError(f"cursor: found {cursor}, allowed 0 to 2**64 - 1")
        if keys_max is None:
            keys_max = self._page_keys_max
        elif keys_max < 1:
            raise ValueError(f"keys_max: found {keys_max}, allowed at least 1")
        bytes_max = self._page_bytes_max if bytes_max is None else min(bytes_max, self._page_bytes_max)
        table = self._by_name.get(self.name)
        if table is None:
            return Page([], None)
        page = Page(*table.page(cursor or 0, keys_max, bytes_max))
        if not page.keys:
            self._tables.tidy(self.name)  # the bucket's keys may have expired
        return page

    def keys(self) -> Iterator[bytes]:
        """Yield all keys in the bucket's order, page by page.

        A key that exists during the whole walk is yielded exactly once.

        >>> from keyvalue_engine import Store
        >>> bucket = Store().bucket(b"b")
        >>> bucket.set(b"k", b"v")
        >>> list(bucket.keys())
        [b'k']
        """
        return (key for page in self._pages() for key in page.keys)

    def values(self) -> Iterator[bytes]:
        """Yield the values of the keys that `keys` yields, page by page."""
        return (value for _, value in self.items())

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys that `keys` yields, with their values, page by page.

        The value is the one at the time when the page is read. A key that is deleted before is left out.
        """
        for page in self._pages():
            for key, value in zip(page.keys, self.get_many(page.keys), strict=True):
                if value is not None:
                    yield key, value

    def _pages(self) -> Iterator[Page]:
        cursor: int | None = None
        while True:
            page = self.page(cursor)
            yield page
            cursor = page.cursor
            if cursor is None:
                return

    __iter__ = keys

    __setitem__ = set

    def __getitem__(self, key: bytes) -> bytes:
        """Return the value of a key, as `get` does.

        :raises KeyError: the key is missing
        """
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __delitem__(self, key: bytes) -> None:
        """Remove a key, as `delete` does.

        :raises KeyError: the key is missing
        """
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: bytes) -> bool:
        """Return True if the key exists, as `exists` does."""
        return self.get(key) is not None

    def __len__(self) -> int:
        """Return the number of keys in this bucket. The number is exact if no write is in progress. O(shards)."""
        table = self._by_name.get(self.name)
        return 0 if table is None else len(table)

    def __repr__(self) -> str:
        return f"Bucket({self.name[:64]!r})"

    def _absent(self) -> None:
        """Raise an error if the bucket was never written to and the handle is strict. Only this takes a lock."""
        if self._is_strict and not self._tables.was_written(self.name):
            raise NoSuchBucketError(self.name)
