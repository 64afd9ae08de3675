"""The growth of a store by a write, and the limits for it. For a store that is a copy of another one."""

from __future__ import annotations

from typing import NamedTuple

from keyvalue_engine.entry import Entry, entry_size
from keyvalue_engine.errors import KEYS, MEMORY_BYTES, QUOTA_KEYS, QUOTA_MEMORY_BYTES, FullError
from keyvalue_engine.ledger import Ledger
from keyvalue_engine.options import StoreOptions
from keyvalue_engine.quota import UNLIMITED, Quota

__all__ = ["NOTHING", "Growth", "growth_of", "lack_of_room"]


class Growth(NamedTuple):
    """The numbers of keys, of bytes of memory, and of buckets that writes add."""

    keys: int
    memory_bytes: int
    buckets: int = 0


NOTHING = Growth(0, 0)


def growth_of(key: bytes, old: Entry | None, new: Entry) -> Growth:
    """Return what a new entry of a key adds in place of its old one, without the memory of orders and shards.

    >>> growth_of(b"k", b"12345678", b"1")
    Growth(keys=0, memory_bytes=0, buckets=0)
    """
    before = 0 if old is None else entry_size(key, old)
    return Growth(old is None, entry_size(key, new) - before)


def lack_of_room(
    ledger: Ledger, options: StoreOptions, growth: Growth, pending: Growth, quota: Quota | None, in_quota: Growth
) -> FullError | None:
    """Return the error for the limit that a write would exceed, or None.

    :param pending: what other writes will add before
    :param in_quota: the part of `pending` in the buckets of the quota
    """
    keys = ledger.keys + pending.keys + growth.keys
    if growth.keys > 0 and keys > options.keys_max:
        return FullError(KEYS, keys, options.keys_max)
    memory_max = UNLIMITED if options.memory_bytes_max is None else options.memory_bytes_max
    memory = ledger.memory_bytes + pending.memory_bytes + growth.memory_bytes
    if growth.memory_bytes > 0 and memory > memory_max:
        return FullError(MEMORY_BYTES, memory, memory_max)
    if quota is None:
        return None
    keys = quota.keys + in_quota.keys + growth.keys
    if growth.keys > 0 and keys > quota.keys_max:
        return FullError(QUOTA_KEYS, keys, quota.keys_max, quota)
    memory = quota.memory_bytes + in_quota.memory_bytes + growth.memory_bytes
    if growth.memory_bytes > 0 and memory > quota.memory_bytes_max:
        return FullError(QUOTA_MEMORY_BYTES, memory, quota.memory_bytes_max, quota)
    return None
