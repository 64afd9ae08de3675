"""The store of a provider with `store = jetstream`: one KV bucket with encoded names, and any with plain names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from keyvalue_engine import BucketOptions, Quota, Store, StoreError, StoreOptions
from keyvalue_replica.bucket import ReplicaBucket, ReplicaStore
from keyvalue_replica.open_buckets import OpenBuckets
from keyvalue_replica.options import NO_ENCODED_KEYS, LinkedOptions, PlainQuota
from keyvalue_replica.waiting_bucket import RefusingBucket, WaitingBucket

if TYPE_CHECKING:
    from keyvalue_engine.renewal import Renewal

__all__ = ["KvStores", "StoreSum"]


class KvStores:
    """Opens the buckets of both stores. `BucketStore` in the provider lists the methods.

    :param encoded: None if the provider has only plain names
    """

    def __init__(self, encoded: ReplicaStore | None, plain: OpenBuckets) -> None:
        self.options: StoreOptions = plain.options
        self._encoded = encoded
        self._plain = plain

    def bucket(self, name: bytes, options: BucketOptions) -> ReplicaBucket | WaitingBucket | RefusingBucket:
        """Open a bucket."""
        if isinstance(options, LinkedOptions) and options.is_plain:
            return self._plain.bucket(name, options)
        return (
            RefusingBucket(StoreError(NO_ENCODED_KEYS))
            if self._encoded is None
            else self._encoded.bucket(name, options)
        )

    def now_ns(self) -> int:
        """Return the server's time."""
        return self._plain.store.now_ns() if self._encoded is None else self._encoded.now_ns()

    def add_quota(self, quota: Quota, buckets_max: int) -> None:
        """Start counting for a quota. Count at most `buckets_max` buckets now."""
        self._counting(quota).add_quota(quota, buckets_max)

    def count_quota(self, quota: Quota, buckets_max: int) -> None:
        """Count at most `buckets_max` more buckets."""
        self._counting(quota).count_quota(quota, buckets_max)

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota."""
        self._counting(quota).remove_quota(quota)

    def _counting(self, quota: Quota) -> ReplicaStore | OpenBuckets:
        return self._plain if self._encoded is None or isinstance(quota, PlainQuota) else self._encoded


class StoreSum:
    """Both engines, for those who count keys and memory, and remove expired keys. It has a part of the methods of `Store`."""

    def __init__(self, *stores: Store) -> None:
        self.options = stores[0].options
        self._stores = stores

    def renewals(self) -> Iterator[Renewal]:
        """Yield the renewals of all keys and values."""
        return chain.from_iterable(store.renewals() for store in self._stores)

    def now_ns(self) -> int:
        """Return the time of the first engine's clock."""
        return self._stores[0].now_ns()

    @property
    def bucket_count(self) -> int:
        """Return the number of buckets that hold a key."""
        return sum(store.bucket_count for store in self._stores)

    @property
    def memory_bytes(self) -> int:
        """Return the memory of all buckets in bytes."""
        return sum(store.memory_bytes for store in self._stores)

    @property
    def expired_keys(self) -> int:
        """Return the number of expired keys that have been removed so far."""
        return sum(store.expired_keys for store in self._stores)

    @property
    def evicted_keys(self) -> dict[str, int]:
        """Return the number of keys that were evicted. None is, because copies must hold everything that is stored."""
        return self._stores[0].evicted_keys

    @property
    def overdue_ms(self) -> float:
        """Return the milliseconds since the first of the keys to be removed expired; negative if none has."""
        return max(store.overdue_ms for store in self._stores)

    def __len__(self) -> int:
        """Return the number of keys."""
        return sum(map(len, self._stores))

    def sweep(self, keys_max: int) -> bool:
        """Remove expired keys in one bounded step. Return True if more may remain."""
        more = [store.sweep(keys_max) for store in self._stores]
        return any(more)
