"""A handle for a bucket of a store with `eviction = unused`. A read marks its key as used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keyvalue_engine.arguments import own_bytes
from keyvalue_engine.bucket import Bucket

__all__ = ["UsedBucket"]


class UsedBucket(Bucket):
    """A handle whose reads mark keys as used. `keyvalue_engine.evicting_shard` explains how."""

    __slots__ = ()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, as `Bucket.get` does, and mark the key as used. O(1), without a lock."""
        if type(key) is not bytes:
            key = own_bytes(key, "key")
        try:
            table = self._by_name[self.name]  # as in `Bucket.get`
        except KeyError:
            self._absent()
            return None
        shift, shards = table.ring
        hash_function = self._hash  # as in `Bucket.get`
        shard: Any = shards[hash_function(self._secret, key) >> shift]  # an `EvictingShard`
        if key in shard.stamps:  # seldom; most reads find that the key is marked already (test_get_of_used_keys)
            shard.use(key)
        entry = shard.entries.get(key)
        if not self._expiry.was_used or entry.__class__ is not tuple:
            return entry  # type: ignore[no-any-return]
        value, deadline_ns = entry
        now_ns = self._expiry.clock()
        return value if deadline_ns > now_ns else table.read(key, now_ns)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of `keys`, as `Bucket.get_many` does, and mark the keys as used."""
        values = super().get_many(keys)
        table = self._by_name.get(self.name)
        if table is not None:
            shift, shards = table.ring
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    key = own_bytes(key, "key")
                    shard: Any = shards[self._hash(self._secret, key) >> shift]
                    if key in shard.stamps:
                        shard.use(key)
        return values
