"""The options of a store: its limits, the number and size of shards, and the size of a page."""

from __future__ import annotations

from dataclasses import dataclass, fields

from keyvalue_engine.arguments import own_int
from keyvalue_engine.quota import Quota

__all__ = [
    "EVICTIONS",
    "LENGTH_MAX",
    "NONE",
    "NS_PER_MS",
    "OLDEST",
    "SHARD_BITS_MAX",
    "TTL_MS_MAX",
    "UNUSED",
    "BucketOptions",
    "StoreOptions",
    "ttl_ns_of",
]

#: A bucket has at most 2**16 shards. Once a shard cannot be split again, it grows without limit.
SHARD_BITS_MAX = 16
#: A snapshot block is limited to 4 GiB, and must have room for at least one key and its value.
LENGTH_MAX = 2**30
#: About 292 years. A longer time in nanoseconds does not fit in 63 bits.
TTL_MS_MAX = 2**63 // 1_000_000
NS_PER_MS = 1_000_000
NONE, OLDEST, UNUSED = EVICTIONS = ("none", "oldest", "unused")
LENGTHS = frozenset({"key_bytes_max", "value_bytes_max", "bucket_name_bytes_max"})


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The options of a store. The constructor raises `ValueError` or `TypeError` if an option is invalid.

    >>> StoreOptions(keys_max=10).keys_max
    10
    >>> StoreOptions(shards_min=48)
    Traceback (most recent call last):
    ValueError: shards_min: found 48, allowed a power of two from 1 to 65536
    """

    #: Limit for the length of a key in bytes.
    key_bytes_max: int = 64 * 1024
    #: Limit for the length of a value in bytes. The default is well below 64 MiB, because a NATS server drops a
    #: consumer with that much unread data.
    value_bytes_max: int = 16 * 1024 * 1024
    #: Limit for the length of a bucket's name in bytes.
    bucket_name_bytes_max: int = 1024
    #: Limit for the number of buckets that hold a key.
    buckets_max: int = 65_536
    #: Limit for the number of keys in all buckets together.
    keys_max: int = 2**32
    #: Limit for the memory in bytes, as computed in `keyvalue_engine.entry`. None means no limit.
    memory_bytes_max: int | None = None
    #: Limit for the number of keys in a page.
    page_keys_max: int = 1_000
    #: Limit for the size of an encoded page in bytes. With the default, the answer fits in a NATS message of 1 MiB.
    page_bytes_max: int = 1024 * 1024 - 64
    #: Number of shards that a bucket gets when it outgrows its first shard. The number must be a power of two.
    shards_min: int = 64
    #: A shard with more keys than `shard_keys_max` is split. The limit bounds the time to sort a shard, and
    #: the time that a split holds a stripe.
    shard_keys_max: int = 2_048
    #: If True, reading a bucket that was never written to raises `NoSuchBucketError`. An emptied bucket reads as empty.
    #: The store remembers the names of the last `buckets_max` emptied buckets. It forgets the oldest first, also if a
    #: write needs their memory.
    strict_buckets: bool = False
    #: The keys that give way when the store or a quota is full: none of them, the oldest, or those that were not used
    #: lately. Expired keys always go first.
    eviction: str = NONE

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "strict_buckets":
                if type(value) is not bool:
                    raise TypeError(f"{field.name}: found {type(value).__name__}, allowed bool")
            elif field.name == "eviction":
                if value not in EVICTIONS:
                    raise ValueError(f"{field.name}: found {value!r}, allowed {', '.join(EVICTIONS)}")
            elif value is None and field.name == "memory_bytes_max":
                continue
            elif type(value) is not int:
                raise TypeError(f"{field.name}: found {type(value).__name__}, allowed int")
            elif field.name == "shards_min":
                if not 1 <= value <= 1 << SHARD_BITS_MAX or value & (value - 1):
                    raise ValueError(
                        f"{field.name}: found {value}, allowed a power of two from 1 to {1 << SHARD_BITS_MAX}"
                    )
            else:
                value_max = LENGTH_MAX if field.name in LENGTHS else 2**63 - 1
                if not 1 <= value <= value_max:
                    raise ValueError(f"{field.name}: found {value}, allowed 1 to {value_max}")


@dataclass(frozen=True, slots=True)
class BucketOptions:
    """The options of one handle. None means that the store's option applies."""

    key_bytes_max: int | None = None
    value_bytes_max: int | None = None
    page_keys_max: int | None = None
    page_bytes_max: int | None = None
    #: Milliseconds until a key that is written through the handle expires. None means never.
    ttl_ms: int | None = None
    #: If True, reading a bucket that does not exist raises `NoSuchBucketError`.
    strict_buckets: bool | None = None
    #: A write through the handle is refused if it would exceed this quota.
    quota: Quota | None = None

    def __post_init__(self) -> None:
        for field in fields(BucketOptions):  # a subclass may have more
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name == "quota":
                if not isinstance(value, Quota):
                    raise TypeError(f"{field.name}: found {type(value).__name__}, allowed Quota")
                continue
            if field.name == "strict_buckets":
                if type(value) is not bool:
                    raise TypeError(f"{field.name}: found {type(value).__name__}, allowed bool")
                continue
            if type(value) is not int:
                raise TypeError(f"{field.name}: found {type(value).__name__}, allowed int")
            value_max = LENGTH_MAX if field.name in LENGTHS else TTL_MS_MAX if field.name == "ttl_ms" else 2**63 - 1
            if not 1 <= value <= value_max:
                raise ValueError(f"{field.name}: found {value}, allowed 1 to {value_max}")


def ttl_ns_of(ttl_ms: int) -> int:
    """Return a time to live in nanoseconds.

    :raises TypeError: it is no int
    :raises ValueError: it is not positive, or too long
    """
    if type(ttl_ms) is not int:
        ttl_ms = own_int(ttl_ms, "ttl_ms")
    if not 1 <= ttl_ms <= TTL_MS_MAX:
        raise ValueError(f"ttl_ms: found {ttl_ms}, allowed 1 to {TTL_MS_MAX}")
    return ttl_ms * NS_PER_MS
