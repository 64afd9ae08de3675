"""The errors of the replicated store. The service shows their texts to components."""

from __future__ import annotations

from keyvalue_engine import NoSuchBucketError, StoreError

__all__ = [
    "BucketFullError",
    "MissingBucketError",
    "NoStreamError",
    "NotAllowedError",
    "NotStoredError",
    "StreamError",
    "UnavailableError",
    "UnfitNameError",
    "UnknownOutcomeError",
]


class NotStoredError(StoreError):
    """A change was not stored, and will not be stored later. Or a read was not answered."""


class UnknownOutcomeError(StoreError):
    """A change may or may not have been stored. It is not sent again."""


class BucketFullError(NotStoredError):
    """The KV bucket has reached a limit of its stream."""


class MissingBucketError(NoSuchBucketError):
    """A KV bucket does not exist, and a call may not create it."""

    def __init__(self, bucket: bytes) -> None:
        StoreError.__init__(self, f"the KV bucket {bucket.decode(errors='replace')} does not exist")
        self.bucket = bucket


class UnfitNameError(StoreError):
    """NATS does not allow a bucket's name or a key."""


class NotAllowedError(StoreError):
    """The stream of a KV bucket does not allow what a call needs."""


class UnavailableError(Exception):
    """JetStream does not answer, or is not ready. Trying again later may help."""


class StreamError(Exception):
    """The KV bucket cannot be opened, or does not fit. The text says what was found and what is needed."""


class NoStreamError(StreamError):
    """The KV bucket does not exist, and may not be created."""
