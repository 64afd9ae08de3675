"""The public interface of a store: its buckets, counts, quotas, observers and snapshot file.

    Store ── Tables ── name ──> Table ── position ──> Shard ── key ──> Entry      (keyvalue_engine.tables has the rest)

The order of keys, and the cursor
---------------------------------
Keys are ordered by position(key) = SipHash-2-4(secret, key), a 64-bit number. Each store has its own random secret of
128 bits, which is saved with the data. The cursor is the position at which the next page begins. This order has three
consequences:

- The store keeps no state between pages, and every 64-bit number is a valid cursor. A cursor stays valid when a shard
  is split, and after a restart with the same data.
- A key's position does not depend on other keys. A walk returns each key at most once. It returns a key exactly once if
  the key exists during the whole walk.
- A page has a cursor only if more keys follow when the page is read. So the page with the last key ends the walk.

Keys with the same position are always on the same page, even if they exceed the limits of the page. So no keys can stop
a walk or make it skip a key. In practice, such a page has one key too many: among a billion keys, two share a position
with a probability of 3 %, and three with a probability of 5e-13.

A caller cannot raise these probabilities. SipHash is a pseudo-random function: cursors and orders reveal nothing about
the secret, and so nobody can compute which keys share a position. XXH3 with a secret seed was not enough. One cursor
and the first key of its page revealed the seed, and the seed revealed more than a thousand keys of one position.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from os import PathLike
from secrets import token_bytes
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING

from siphashc import siphash

from keyvalue_engine.arguments import own_bytes, own_int
from keyvalue_engine.bucket import Bucket
from keyvalue_engine.changes import Observer, ObserverOf
from keyvalue_engine.context import SECRET_BYTES, HashFunction
from keyvalue_engine.eviction import EVICTING_OPTIONS
from keyvalue_engine.options import LENGTH_MAX, NS_PER_MS, TTL_MS_MAX, UNUSED, BucketOptions, StoreOptions
from keyvalue_engine.quota import Quota
from keyvalue_engine.room import NOTHING, Growth
from keyvalue_engine.tables import Tables
from keyvalue_engine.used_bucket import UsedBucket

if TYPE_CHECKING:
    from keyvalue_engine.renewal import Renewal
    from keyvalue_engine.snapshot import Reader

__all__ = ["Store"]

#: The bucket options for loading a file. Each length in the file was allowed when the key was written.
AS_WRITTEN = BucketOptions(key_bytes_max=LENGTH_MAX, value_bytes_max=LENGTH_MAX)


class Store:
    """A store of buckets, keys and values in memory. All methods are synchronous, and any thread may call them.

    A signal handler may raise an exception, such as KeyboardInterrupt, in the middle of a call. If that call is `get`,
    `exists`, `set`, `increment` or `delete` of one key, then the change is made completely or not at all, no lock stays
    held, and the counts are right. This does not apply to a call that creates a bucket, removes its last key, splits a
    shard or finds the store full, or to a key with a deadline. After an interrupt in such a call, or in another method, do
    not use the store again. An interrupted call may not reach the observer. To be safe, let signal handlers only set a
    flag, or call the store in threads other than the main thread, where no handler runs. A handler must not use the store.

    After a fork, the child must not use the store if other threads of the parent were using it. The child cannot release
    the locks that these threads held. `save` refuses to run then. Other methods would wait for ever.

    >>> store = Store()
    >>> colours = store.bucket(b"colours")
    >>> colours.set(b"sky", b"blue")
    >>> colours.get(b"sky")
    b'blue'
    >>> colours.get(b"grass") is None
    True
    >>> len(store), store.bucket_names()
    (1, [b'colours'])

    :param options: the limits of the store and the size of its shards; each option has a default
    :param secret: 16 bytes that determine the order of keys; random by default. Keep it from callers, because a page
        holds all keys of one position, and a caller who knows the secret can look for such keys.
    :param hash_function: returns the 64-bit position for (secret, key); tests use a function that produces collisions
    :param clock: returns a time in nanoseconds that never goes back; tests use a clock that they control
    :param is_limited: False for a copy of another store, which must take every write. Then no write is refused, and
        the owner checks the limits itself (`check_room`)
    """

    __slots__ = ("_bucket_class", "_process", "_tables", "options")

    def __init__(
        self,
        options: StoreOptions | None = None,
        *,
        secret: bytes | None = None,
        hash_function: HashFunction = siphash,
        clock: Callable[[], int] = monotonic_ns,
        is_limited: bool = True,
    ) -> None:
        self.options = StoreOptions() if options is None else options
        secret = token_bytes(SECRET_BYTES) if secret is None else _checked_secret(secret)
        self._tables = Tables(self.options, secret, hash_function, clock, is_limited)
        self._bucket_class = UsedBucket if self.options.eviction == UNUSED else Bucket
        self._process = os.getpid()

    def bucket(self, name: bytes, options: BucketOptions | None = None) -> Bucket:
        """Return a handle for the bucket with this name. The first write creates the bucket; this call does not.

        :param name: bytes, or a buffer, which is copied
        :param options: options for this handle, which override the store's options
        :raises TypeError: the name has another type
        """
        return self._bucket_class(
            self._tables, own_bytes(name, "bucket name"), BucketOptions() if options is None else options
        )

    def set_secret(self, name: bytes, secret: bytes | None) -> None:
        """Give a bucket its own secret, or take it away with None. Handles that exist already must not be used any more.

        :raises ValueError: the bucket holds keys, or the secret does not have 16 bytes
        """
        self._tables.set_secret(name, None if secret is None else _checked_secret(secret))

    def bucket_names(self) -> list[bytes]:
        """Return the names of all buckets, oldest first.

        A bucket exists while it holds a key.
        """
        return list(self._tables.by_name)

    @property
    def bucket_count(self) -> int:
        """Return the number of buckets that hold a key. O(1)."""
        return len(self._tables.by_name)

    @property
    def expired_keys(self) -> int:
        """Return the number of expired keys that have been removed so far."""
        return self._tables.expiry.expired_keys

    @property
    def evicted_keys(self) -> dict[str, int]:
        """Return the number of keys that were evicted so far, by the option whose limit was reached.

        >>> from keyvalue_engine import StoreOptions
        >>> store = Store(StoreOptions(keys_max=2, eviction="oldest"))
        >>> for key in (b"x", b"y", b"z"):
        ...     store.bucket(b"b").set(key, b"")
        >>> len(store), store.evicted_keys["keys_max"]
        (2, 1)
        """
        evictor = self._tables.evictor
        return dict.fromkeys(EVICTING_OPTIONS, 0) if evictor is None else evictor.evicted_keys.copy()

    def sweep(self, keys_max: int = 1_000) -> bool:
        """Remove expired keys in one bounded step, in the order of their deadlines. Return True if more may remain.

        Readers never see an expired key, but the key takes memory until it is removed.

        :param keys_max: limit for the number of deadlines to examine; some may belong to keys that were written again
        """
        keys_max = own_int(keys_max, "keys_max")
        if keys_max < 1:
            raise ValueError(f"keys_max: found {keys_max}, allowed at least 1")
        return not self._tables.sweep(keys_max)

    @property
    def overdue_ms(self) -> float:
        """Return the milliseconds since the first of the keys to be removed expired. O(1).

        The result is negative if none has expired, and minus infinity if no key has a deadline. The time may belong to a
        deadline that was replaced meanwhile. The next sweep examines it.
        """
        return self._tables.expiry.overdue_ns / NS_PER_MS

    def add_quota(self, quota: Quota, buckets_max: int | None = None) -> None:
        """Start counting the keys and memory of the buckets that a quota covers. O(counted buckets).

        The first quota of a store also takes O(shards). The quota limits only the writes through handles that have the
        quota. Quotas with equal reaches share their counts, so adding a second one is O(1).

        :param buckets_max: limit for the number of existing buckets to count in this call; None means no limit. Until
            `count_quota` has counted the others, the quota allows too much. `Quota.is_counted` tells.
        :raises ValueError: the quota was already added
        """
        self._tables.add_quota(quota, buckets_max)

    def count_quota(self, quota: Quota, buckets_max: int) -> None:
        """Count at most `buckets_max` more buckets of a quota that `add_quota` has not counted completely."""
        self._tables.count_quota(quota, buckets_max)

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota. O(1), or O(names) if the quota's reach is a set of names.

        Handles that have the quota are still limited by its last counts.
        """
        self._tables.remove_quota(quota)

    def check_room(
        self,
        name: bytes,
        growth: Growth,
        pending: Growth = NOTHING,
        quota: Quota | None = None,
        in_quota: Growth = NOTHING,
    ) -> None:
        """Check that a write would not exceed a limit of the options or the quota.

        Before it fails, it removes a limited number of expired keys and orders, as a write does.

        :param name: the bucket to write to
        :param growth: what the write adds
        :param pending: what other writes will add before
        :param in_quota: the part of `pending` in the buckets of the quota
        :raises LimitError: the bucket's name is too long, or the store or the quota is full
        """
        self._tables.check_room(name, growth, pending, quota, in_quota)

    def now_ns(self) -> int:
        """Return the time of the store's clock, on which deadlines are based."""
        return self._tables.expiry.clock()

    def observe(self, observer_of: ObserverOf | None) -> None:
        """Register `observer_of`, which returns the observer of a bucket, or None for no observer. O(buckets).

        `observer_of` replaces the previously registered function. Pass None to remove all observers. A write in
        progress may still call the previous observer.
        """
        self._tables.observe(observer_of)

    def replace_observer(self, before: Observer | None, after: Observer | None) -> None:
        """Give the observer `after` to each bucket that has the observer `before`. O(buckets).

        Call this method when the function that `observe` registered returns `after` in place of `before`. It takes a
        fifth of the time that `observe` takes.
        """
        self._tables.replace_observer(before, after)

    def observe_bucket(self, name: bytes) -> None:
        """Ask the function that `observe` registered for the observer of one bucket again. O(1)."""
        self._tables.observe_bucket(name)

    def __len__(self) -> int:
        """Return the number of keys in all buckets, including expired keys that are not removed yet. O(shards)."""
        return self._tables.ledger.counts()[0]

    def renewals(self) -> Iterator[Renewal]:
        """Yield the renewals of all keys and values, which close the gaps in memory: see `keyvalue_engine.renewal`."""
        from keyvalue_engine.renewal import renewals  # here, because few stores need it

        return renewals(self._tables.copy()[0].values())

    @property
    def memory_bytes(self) -> int:
        """Return the memory of all buckets in bytes, as computed in `keyvalue_engine.entry`. O(shards)."""
        return self._tables.ledger.counts()[1]

    def save(self, path: str | PathLike[str]) -> None:
        """Write all buckets to a file. Another process sees either the complete old file or the complete new one.

        Other threads may write during the save. Each shard is saved as of a single moment, but different shards may
        be saved as of different moments. `keyvalue_engine.snapshot` describes the format.

        If `path` is a symbolic link, the file that the link names is replaced.

        :raises OSError: the file could not be written; `path` is unchanged
        :raises RuntimeError: this process is a fork, and another thread used the store at the time of the fork
        :raises ValueError: a bucket has its own secret, which a file cannot hold
        """
        from keyvalue_engine.snapshot_writer import SnapshotFile  # here, because importing it takes 4 ms

        with SnapshotFile(path) as file:
            for parts in self.frames():
                if file.add(parts):
                    file.write()
            file.commit()

    def frames(self) -> Iterator[list[bytes]]:
        """Yield the content of a snapshot in steps of bounded work, as parts to write to a `SnapshotFile`.

        The store may change between two steps. A step copies one shard at most, or packs about 32 KiB, and may give no
        parts.

        :raises RuntimeError: as in `save`
        :raises ValueError: as in `save`
        """
        if self._tables.own_secrets:
            raise ValueError("a bucket has its own secret")
        from keyvalue_engine.snapshot_writer import frames  # here, because importing it takes 4 ms

        if self._process != os.getpid():
            self._tables.check_locks()
            self._process = os.getpid()
        clock = self._tables.expiry.clock
        unix_ns = time_ns() - clock()  # the Unix time at which the clock was 0
        tables, emptied = self._tables.copy()
        return frames(self._tables.secret, tables, emptied, clock, lambda time: (time + unix_ns) // NS_PER_MS)

    @classmethod
    def load(cls, path: str | PathLike[str], options: StoreOptions | None = None) -> Store:
        """Return a store with the buckets of a file. `fill` says which, and raises the same errors.

        :raises OSError: the file could not be read
        """
        from keyvalue_engine.snapshot import Reader  # here, because importing it takes 4 ms

        store = cls(options)
        with Reader(path) as reader:
            for _ in store.fill(reader):
                pass
        return store

    def fill(self, reader: Reader) -> Iterator[int]:
        """Fill this store, which must be empty, with the keys of a file. Yield the number of keys read, block by block.

        The store uses the saved secret from now on, so cursors stay valid. A file of format version 1 or 2 holds no
        secret, so walks must start again. Keys that have expired since the save are left out.

        Loaded keys and values may be longer than the options allow, because a handle's options may have allowed them.

        :raises SnapshotError: the file is damaged; the store holds the keys of the blocks before
        :raises LimitError: the file has more keys or buckets, or longer bucket names, than the options allow; with
            eviction, keys are evicted instead if the file has too many
        """
        keys = 0
        if reader.secret is not None:
            self._tables.use_secret(reader.secret)
        for name, entries in reader:
            if self.options.strict_buckets:
                self._tables.remember_emptied(name)  # until the bucket's first key is set below
            bucket = self.bucket(name, AS_WRITTEN)
            now_ms = time_ns() // NS_PER_MS
            for key, value, deadline_ms in entries:
                if deadline_ms is None:
                    bucket.set(key, value)
                elif deadline_ms > now_ms:
                    bucket.set(key, value, min(deadline_ms - now_ms, TTL_MS_MAX))
            keys += len(entries)
            yield keys

    def check(self) -> None:
        """Assert every invariant of the store. Call it only in tests, while no other thread writes. O(n)."""
        self._tables.check()


def _checked_secret(secret: bytes) -> bytes:
    if not isinstance(secret, bytes):
        raise TypeError(f"secret: found {type(secret).__name__}, allowed bytes")
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret: found {len(secret)} bytes, allowed {SECRET_BYTES}")
    return secret
