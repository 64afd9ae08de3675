"""The options of the replicated store."""

from __future__ import annotations

from dataclasses import dataclass

from keyvalue_engine import BucketOptions, Quota

__all__ = ["NO_ENCODED_KEYS", "LinkedOptions", "PlainQuota", "ReplicaOptions", "plain_name"]

#: Why there is no KV bucket with encoded names.
NO_ENCODED_KEYS = "keys=encoded needs a provider with keys=encoded, or with a jetstream_bucket"


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """How an instance opens and follows its KV bucket.

    :ivar bucket: the name of the KV bucket; its stream is `KV_<bucket>`
    :ivar storage: `file` or `memory`, for a bucket that is created
    :ivar replicas: number of servers that keep the stream, 1 to 5, for a bucket that is created
    :ivar history: number of messages of a key that the stream keeps, 1 to 64, for a bucket that is created
    :ivar bytes_max: the size of a bucket that is created, or None for no limit
    :ivar creates: True to create a missing bucket, and to switch on what an existing one of ours lacks
    :ivar adopts: True to switch on what a bucket with plain names lacks that others have created
    :ivar domain: the JetStream domain, or "" for the server's own
    :ivar timeout_s: the longest time that a call waits for JetStream
    :ivar is_atomic: True if set-many and delete-many are stored together or not at all
    :ivar secret: the secret of the order of keys for a bucket that is created; None for a random one
    """

    bucket: str
    storage: str = "file"
    replicas: int = 1
    history: int = 64
    bytes_max: int | None = None
    creates: bool = True
    adopts: bool = False
    domain: str = ""
    timeout_s: float = 5.0
    is_atomic: bool = True
    secret: bytes | None = None

    @property
    def tick_s(self) -> float:
        """Return the seconds between two checks for calls that have waited for too long."""
        return min(0.25, 0.05 * self.timeout_s)


@dataclass(frozen=True, slots=True)
class LinkedOptions(BucketOptions):
    """The options of a handle of the replicated store.

    :ivar reads_latest: True if a read shows every change that was acknowledged before it; False to read what this
        instance has applied
    :ivar is_plain: True if the bucket is a KV bucket with plain names
    :ivar creates: True to create this KV bucket if it is missing
    :ivar domain: the JetStream domain of this KV bucket, or "" for that of the provider
    :ivar has_be64_counters: True if counters are 8 bytes; False if they are decimal text
    """

    reads_latest: bool = True
    is_plain: bool = False
    creates: bool = False
    domain: str = ""
    has_be64_counters: bool = False


class PlainQuota(Quota):
    """A quota over KV buckets with plain names, which are in a store of their own."""


def plain_name(domain: str, kv_bucket: bytes) -> bytes:
    """Return the name that the engine has for a KV bucket with plain names. No KV bucket has a slash in its name.

    >>> plain_name("", b"kv"), plain_name("hub", b"kv")
    (b'kv', b'hub/kv')
    """
    return b"%b/%b" % (domain.encode(), kv_bucket) if domain else kv_bucket
