"""The typed errors of the store.

A call that raises one of these errors leaves the store unchanged. The message of a LimitError gives the limit and what
the call needs. Messages never show stored values, except in a CounterError.
"""

from __future__ import annotations

from typing import NamedTuple

from keyvalue_engine.quota import Quota

__all__ = [
    "BUCKETS",
    "BUCKET_NAME_BYTES",
    "EVICTIONS",
    "KEYS",
    "KEY_BYTES",
    "MEMORY_BYTES",
    "QUOTA_KEYS",
    "QUOTA_MEMORY_BYTES",
    "VALUE_BYTES",
    "CounterError",
    "FullError",
    "LimitError",
    "NoSuchBucketError",
    "SnapshotError",
    "StoreError",
]


class StoreError(Exception):
    """Base class of the errors that a caller's request can cause."""


class Limit(NamedTuple):
    """A limit, and its wording in error messages.

    :ivar need: message that says what the call needs; {} stands for the number
    :ivar option: the option that sets the limit
    """

    need: str
    option: str


KEY_BYTES = Limit("key is {} bytes", "key_bytes_max")
VALUE_BYTES = Limit("value is {} bytes", "value_bytes_max")
BUCKET_NAME_BYTES = Limit("bucket name is {} bytes", "bucket_name_bytes_max")
BUCKETS = Limit("the store would hold {} buckets", "buckets_max")
KEYS = Limit("the store would hold {} keys", "keys_max")
MEMORY_BYTES = Limit("the store would take {} bytes of memory", "memory_bytes_max")
QUOTA_KEYS = Limit("the buckets of this quota would hold {} keys", "quota_keys")
QUOTA_MEMORY_BYTES = Limit("the buckets of this quota would take {} bytes of memory", "quota_bytes")
EVICTIONS = Limit("about {} keys would have to be evicted for this write", "eviction")


class LimitError(StoreError):
    """A call would exceed a limit of the store.

    :ivar found: the length, number or memory that the call needs
    :ivar allowed: the limit
    :ivar option: the option that sets the limit
    """

    def __init__(self, limit: Limit, found: int, allowed: int) -> None:
        super().__init__(f"{limit.need.format(found)}; the limit is {allowed} ({limit.option})")
        self.found = found
        self.allowed = allowed
        self.option = limit.option


class FullError(LimitError):
    """The store or a quota is full. A write raises this error only after a limited number of expired keys was removed.

    :ivar quota: the quota that is full, or None for the store
    :ivar needed_keys: number of keys by which the limit would be exceeded; 0 if the limit is one of memory or buckets
    :ivar growth: the keys and bytes of entries that the write would add, or None if they are not known
    :ivar is_exact: False if shards may hold room ahead, which `Ledger.recall` takes back (`counted_entries`)
    """

    def __init__(
        self,
        limit: Limit,
        found: int,
        allowed: int,
        quota: Quota | None = None,
        growth: tuple[int, int] | None = None,
        is_exact: bool = True,
    ) -> None:
        super().__init__(limit, found, allowed)
        self.is_exact = is_exact
        self.quota = quota
        self.growth = growth
        self.needed_keys = found - allowed if limit in (KEYS, QUOTA_KEYS) else 0


class CounterError(StoreError):
    """An increment failed: the value is not a counter, or the sum does not fit in 64 bits."""


class NoSuchBucketError(StoreError):
    """The bucket was never written to, and `strict_buckets` is set."""

    def __init__(self, bucket: bytes) -> None:
        super().__init__(f"bucket {bucket[:64]!r} was never written, and strict_buckets is set")
        self.bucket = bucket


class SnapshotError(StoreError):
    """A snapshot file is damaged or has another format.

    :ivar offset: the offset of the byte at which the reader stopped
    """

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path}: byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason
