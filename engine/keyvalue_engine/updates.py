"""Writes of a bucket that depend on what a key holds, and writes of several keys.

    update(key, revise) ── stripe ──> revise(entry, now, deadline) ──> the new entry ── Shard._commit

One function, `revise`, decides about everything: the value, the deadline, and removing the key. So every such write is
atomic, and a copy of the store can make the same decision about the same entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from keyvalue_engine.arguments import own_bytes, own_keys
from keyvalue_engine.changes import DEADLINE, DELETE, PERSIST, SET, Change
from keyvalue_engine.context import HashFunction
from keyvalue_engine.entry import Entry, unless_expired, value_of
from keyvalue_engine.errors import VALUE_BYTES, LimitError
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.quota import Quota
from keyvalue_engine.shard import Shard
from keyvalue_engine.table import Table
from keyvalue_engine.tables import Tables

__all__ = ["Revise", "Revision", "Updates", "change_of"]

T = TypeVar("T")

#: A function that returns the new entry of a key, or None to remove it: revise(entry, now_ns, deadline_ns).
#:
#: `entry` is the current entry, or None if the key is missing. To change nothing, return this object itself.
#: `now_ns` is the store's time. `deadline_ns` is the deadline that the handle's options give to a written key, or None.
#: A new deadline that is not after `now_ns` removes the key. The store may call the function several times. The call
#: runs under a lock, so it must be short, must not block, and must not use the store. If it raises an exception,
#: nothing changes.
Revise: TypeAlias = Callable[[Entry | None, int, int | None], Entry | None]


class Revision(NamedTuple):
    """A key's entry before and after an update. If nothing was changed, both are the same object."""

    before: Entry | None
    after: Entry | None


class Updates:
    """The part of `Bucket` with batches of writes and conditional writes."""

    __slots__ = ()

    # The attributes of a bucket.
    name: bytes
    _by_name: dict[bytes, Table]
    _expiry: Expiry
    _hash: HashFunction
    _key_bytes_max: int
    _quota: Quota | None
    _secret: bytes
    _short_key_max: int
    _tables: Tables
    _ttl_ns: int
    _value_bytes_max: int

    def set_each(self, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        """Store values, as one `set` for each key does, in order, and return their number. O(keys).

        It stops before the first key whose `set` raises an error. Only overwriting values of the same size is faster.
        """
        if {*map(type, keys), *map(type, values)} - {bytes}:
            return self.set_each(own_keys(keys), [own_bytes(value, "value") for value in values])
        table = self._by_name.get(self.name)
        is_quick = (
            not self._ttl_ns
            and max(map(len, keys), default=0) <= self._short_key_max
            and max(map(len, values), default=0) <= self._value_bytes_max
        )
        hash_function, secret = self._hash, self._secret
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            if is_quick and table is not None:
                shift, shards = table.ring
                shard = shards[hash_function(secret, key) >> shift]
                stripe = shard.stripe
                try:
                    stripe.acquire()  # inside: see `locks`
                    if shard.is_plain:
                        # `Shard._commit`, inlined for speed (benchmark scenario: in-flight)
                        entries = shard.entries
                        old = entries.get(key)
                        if old is not None and len(old) == len(value):
                            entries[key] = value
                            observer = table.account.observer
                            if observer is not None:
                                observer(SET, self.name, key, value)
                            stripe.release()
                            continue
                    stripe.release()
                except BaseException as error:
                    shard.abort(error)
                    raise
            try:
                self.set(key, value)
            except Exception:  # the caller gets it from `set`
                return number
            table = self._by_name.get(self.name)
        return len(keys)

    def increment_each(self, keys: Sequence[bytes], deltas: Sequence[int]) -> list[int]:
        """Add to counters, as one `increment` for each does, in order, and return their sums. O(keys).

        It stops before the first key whose `increment` raises an error.
        """
        sums: list[int] = []
        try:
            for key, delta in zip(keys, deltas, strict=True):
                sums.append(self.increment(key, delta))
        except Exception:  # the caller gets it from `increment`
            pass
        return sums

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Store all entries or none. O(keys).

        `get_many` sees either all entries or none. Separate gets may see some new values and some old ones.

        :raises LimitError: as in `set`
        """
        self._set_many(entries, False)

    def set_missing(self, entries: Mapping[bytes, bytes]) -> bool:
        """Store all entries if all their keys are missing. Return True if they were stored. O(keys).

        :raises LimitError: as in `set`
        """
        if stored := self._set_many(entries, True):
            return stored
        self._tables.tidy(self.name)  # keys of this call may have expired
        return False

    def _set_many(self, entries: Mapping[bytes, bytes], only_missing: bool) -> bool:
        if type(entries) is not dict and not isinstance(entries, Mapping):
            raise TypeError(f"entries: found {type(entries).__name__}, allowed a mapping")
        entries = dict(entries)  # the caller may change its own
        short_key_max, value_bytes_max = self._short_key_max, self._value_bytes_max
        has_long = False
        for key, value in entries.items():
            if type(key) is not bytes or type(value) is not bytes:
                owned = {own_bytes(key, "key"): own_bytes(value, "value") for key, value in entries.items()}
                return self._set_many(owned, only_missing)
            if len(key) > short_key_max:
                self._check_key(key)
                has_long = True
            if len(value) > value_bytes_max:
                raise LimitError(VALUE_BYTES, len(value), value_bytes_max)
        if not entries:
            return True
        return self._write(
            lambda table: table.set_many(entries, self._quota, self._ttl_ns, has_long, only_missing), entries
        )

    def update(self, key: bytes, revise: Revise) -> Revision:
        """Replace the entry of a key by the result of `revise`, atomically. Return both entries. O(1).

        >>> from keyvalue_engine import Store
        >>> bucket = Store().bucket(b"b")
        >>> bucket.update(b"k", lambda entry, now_ns, deadline_ns: entry or b"first")
        Revision(before=None, after=b'first')
        >>> bucket.update(b"k", lambda entry, now_ns, deadline_ns: None)
        Revision(before=b'first', after=None)

        :raises LimitError: as in `set`
        :raises NoSuchBucketError: with `strict_buckets`, if nothing is stored
        """
        key = own_bytes(key, "key")
        self._check_key(key)
        if self.name not in self._by_name:
            now_ns = self._expiry.clock()
            if unless_expired(revise(None, now_ns, self._deadline_ns(now_ns)), now_ns) is None:
                self._absent()
                return Revision(None, None)
        revision = self._write(lambda table: self._update(table, key, revise), (key,))
        if revision.after is None:
            self._tables.tidy(self.name)
        return revision

    def remove(self, keys: Sequence[bytes]) -> int:
        """Remove keys, and return the number of those that existed, as `delete` and `delete_many` do. O(keys)."""
        return self.delete(keys[0]) if len(keys) == 1 else self.delete_many(keys)

    def _update(self, table: Table, key: bytes, revise: Revise) -> Revision | None:
        """Update a key in its shard. Return None if the shard is retired."""
        shard = table.shard_of(key)
        with shard.stripe:
            if shard.retired:
                return None
            now_ns = self._expiry.clock()
            before = shard._live(key, now_ns)
            after = unless_expired(revise(before, now_ns, self._deadline_ns(now_ns)), now_ns)
            if after is not before:
                self._commit(shard, key, before, after)
        if after is not None and after is not before:
            table.note_key(shard, key)
        return Revision(before, after)

    def _commit(self, shard: Shard, key: bytes, before: Entry | None, after: Entry | None) -> None:
        if after is not None:
            value = after[0] if isinstance(after, tuple) else after
            if len(value) > self._value_bytes_max and value is not value_of(before):
                raise LimitError(VALUE_BYTES, len(value), self._value_bytes_max)
        shard._commit(change_of(before, after), key, after, before, self._quota)

    def _deadline_ns(self, now_ns: int) -> int | None:
        return now_ns + self._ttl_ns if self._ttl_ns else None

    # The methods of a bucket.

    def _absent(self) -> None:
        raise NotImplementedError

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value."""
        raise NotImplementedError

    def increment(self, key: bytes, delta: int) -> int:
        """Add to a counter."""
        raise NotImplementedError

    def delete(self, key: bytes) -> bool:
        """Remove a key."""
        raise NotImplementedError

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Remove keys."""
        raise NotImplementedError

    def _check_key(self, key: bytes) -> None:
        raise NotImplementedError

    def _write(self, write: Callable[[Table], T | None], keys: Collection[bytes]) -> T:
        raise NotImplementedError


def change_of(before: Entry | None, after: Entry | None) -> Change:
    """Return the kind of a change.

    >>> change_of(b"v", None) == DELETE, change_of(b"v", b"w") == SET
    (True, True)
    """
    if after is None:
        return DELETE
    if before is None or value_of(after) is not value_of(before):
        return SET
    return DEADLINE if isinstance(after, tuple) else PERSIST
