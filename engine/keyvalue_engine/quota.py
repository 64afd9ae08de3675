"""Quotas: limits on the total keys and memory of a group of buckets."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["UNLIMITED", "Quota"]

#: The number that stands for no limit. No count ever reaches it.
UNLIMITED = 2**63


class Quota:
    """A limit on the total keys and memory of a group of buckets, with the current counts.

    A quota counts all writes to its buckets, but limits only the writes through handles that have the quota.
    `Store.add_quota` starts the counting.

    :param covers: returns True if the quota covers the bucket with this name
    :param keys_max: limit for the number of keys, or None
    :param memory_bytes_max: limit for the memory of entries, as computed in `keyvalue_engine.entry`, or None
    """

    __slots__ = ("covers", "keys", "keys_max", "memory_bytes", "memory_bytes_max")

    def __init__(self, covers: Callable[[bytes], bool], keys_max: int | None, memory_bytes_max: int | None) -> None:
        self.covers = covers
        self.keys_max = UNLIMITED if keys_max is None else keys_max
        self.memory_bytes_max = UNLIMITED if memory_bytes_max is None else memory_bytes_max
        self.keys = 0
        self.memory_bytes = 0
