"""Own the options of a store: limits, the shape of its buckets, the size of a page."""

from __future__ import annotations

from dataclasses import dataclass, fields

from keyvalue_engine.quota import Quota

__all__ = ["LENGTH_MAX", "SHARD_BITS_MAX", "TTL_MS_MAX", "BucketOptions", "StoreOptions"]

#: A bucket has at most 2**16 shards; a shard that may not be split again just grows.
SHARD_BITS_MAX = 16
#: A block of a snapshot holds at least one key with its value, and has at most 4 GiB.
LENGTH_MAX = 2**30
#: About 292 years: more would not fit in 63 bits of nanoseconds.
TTL_MS_MAX = 2**63 // 1_000_000
LENGTHS = frozenset({"key_bytes_max", "value_bytes_max", "bucket_name_bytes_max"})


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How large things may be. All are checked when made; a wrong one raises `ValueError` or `TypeError`.

    >>> StoreOptions(keys_max=10).keys_max
    10
    >>> StoreOptions(shards_min=48)
    Traceback (most recent call last):
    ValueError: shards_min: found 48, allowed a power of two from 1 to 65536
    """

    #: Bytes of a key.
    key_bytes_max: int = 64 * 1024
    #: Bytes of a value. A NATS server drops a consumer that is 64 MiB behind, so the default stays well below.
    value_bytes_max: int = 16 * 1024 * 1024
    #: Bytes of a bucket's name.
    bucket_name_bytes_max: int = 1024
    #: Buckets that hold a key (with `strict_buckets`: that were ever written).
    buckets_max: int = 65_536
    #: Keys in all buckets together.
    keys_max: int = 2**32
    #: Memory by the formula of `keyvalue_engine.entry`, in bytes; None is no limit.
    memory_bytes_max: int | None = None
    #: Keys a page.
    page_keys_max: int = 1_000
    #: Bytes of a page as it is encoded; the default leaves room for the rest of the answer in one NATS message of 1 MiB.
    page_bytes_max: int = 1024 * 1024 - 64
    #: Shards of a bucket once it outgrows its first shard; a power of two.
    shards_min: int = 64
    #: Keys after which a shard is split. Bounds how long a page may sort and how long a split holds a stripe.
    shard_keys_max: int = 2_048
    #: Reading a bucket that was never written raises `NoSuchBucketError`, and an emptied bucket stays known.
    strict_buckets: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "strict_buckets":
                if type(value) is not bool:
                    raise TypeError(f"{field.name}: found {type(value).__name__}, allowed bool")
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
    """How one handle uses its bucket; None stands for what the store's options say."""

    key_bytes_max: int | None = None
    value_bytes_max: int | None = None
    page_keys_max: int | None = None
    page_bytes_max: int | None = None
    #: Milliseconds after which what is written through the handle expires; None: never.
    ttl_ms: int | None = None
    #: As the store's: reading a bucket that the store does not know raises `NoSuchBucketError`.
    strict_buckets: bool | None = None
    #: Writes through the handle are refused where they would pass it.
    quota: Quota | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name == "quota":
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
