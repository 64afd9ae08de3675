"""Own the typed errors of the store.

Each leaves the store as it was. Messages say what was found and what is allowed. They never show a value, except one that should be a counter.
"""

from __future__ import annotations

from typing import NamedTuple

from keyvalue_engine.quota import Quota

__all__ = [
    "BUCKETS",
    "BUCKET_NAME_BYTES",
    "KEYS",
    "KEY_BYTES",
    "MEMORY_BYTES",
    "QUOTA_KEYS",
    "QUOTA_MEMORY_BYTES",
    "VALUE_BYTES",
    "CounterError",
    "CrowdedPositionError",
    "FullError",
    "LimitError",
    "NoSuchBucketError",
    "SnapshotError",
    "StoreError",
]


class StoreError(Exception):
    """Base of all errors that the engine raises for what its caller asked."""


class Limit(NamedTuple):
    """A limit, for error texts: what a call would need, with {} for the number, and the option that sets the limit."""

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


class LimitError(StoreError):
    """A call would pass a limit of the store.

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
    """The store or a quota is full, even after expired keys were removed.

    :ivar quota: the quota that is full, or None for the store
    """

    def __init__(self, limit: Limit, found: int, allowed: int, quota: Quota | None = None) -> None:
        super().__init__(limit, found, allowed)
        self.quota = quota


class CounterError(StoreError):
    """A value that is no counter was to be incremented, or a counter beyond its largest number."""


class NoSuchBucketError(StoreError):
    """A bucket that was never written was read, and the store is strict about buckets."""

    def __init__(self, bucket: bytes) -> None:
        super().__init__(f"no bucket {bucket[:64]!r} was ever written")
        self.bucket = bucket


class CrowdedPositionError(StoreError):
    """Too many keys stand at one position for a page to hold them; a page never parts them.

    With a 64-bit hash and a secret seed this does not happen by chance.
    """

    def __init__(self, position: int, keys: int, keys_max: int, size_bytes: int, size_bytes_max: int) -> None:
        super().__init__(
            f"position {position}: found at least {keys} keys of {size_bytes} bytes, "
            f"allowed {keys_max} keys and {size_bytes_max} bytes"
        )
        self.position = position


class SnapshotError(StoreError):
    """A snapshot file is damaged or of another format; `offset` is the byte at which the reader gave up."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path}: byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason
