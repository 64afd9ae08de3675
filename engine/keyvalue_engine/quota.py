"""Own quotas: limits on what some of a store's buckets hold together."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["UNLIMITED", "Quota"]

#: Stands for a limit that is not set. No count reaches it.
UNLIMITED = 2**63


class Quota:
    """A limit on what some buckets hold together, with its counts.

    It counts the writes of every handle, and limits the handles that are given it. `Store.add_quota` begins the count.

    :param covers: returns True if the bucket of this name belongs to it
    :param keys_max: None is no limit
    :param memory_bytes_max: of keys and values with their deadlines, by the formula of `keyvalue_engine.entry`; None is no limit
    """

    __slots__ = ("covers", "keys", "keys_max", "memory_bytes", "memory_bytes_max")

    def __init__(self, covers: Callable[[bytes], bool], keys_max: int | None, memory_bytes_max: int | None) -> None:
        self.covers = covers
        self.keys_max = UNLIMITED if keys_max is None else keys_max
        self.memory_bytes_max = UNLIMITED if memory_bytes_max is None else memory_bytes_max
        self.keys = 0
        self.memory_bytes = 0
