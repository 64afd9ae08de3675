"""Own the typed errors of the store.

Each leaves the store as it was. Messages say what was found and what is allowed. They never show a value, except one that should be a counter.
"""

from __future__ import annotations

from keyvalue_engine.quota import Quota

__all__ = [
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


class LimitError(StoreError):
    """A limit of the store would be passed: `found` is what was asked for, `allowed` the limit, `what` its name and unit."""

    def __init__(self, what: str, found: int, allowed: int) -> None:
        super().__init__(f"{what}: found {found}, allowed {allowed}")
        self.what = what
        self.found = found
        self.allowed = allowed


class FullError(LimitError):
    """There is no room in the store, or in a quota; keys whose time is over may give way.

    :ivar quota: the quota that is full; None: the store
    """

    def __init__(self, what: str, found: int, allowed: int, quota: Quota | None = None) -> None:
        super().__init__(what, found, allowed)
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
