"""The shards of a store that have keys with deadlines, and the clock of the deadlines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Protocol

from keyvalue_engine.entry import Entry
from keyvalue_engine.quota import Quota

__all__ = ["Expiry", "Swept"]


class Swept(Protocol):
    """A shard, as a sweep sees it."""

    @property
    def bucket_name(self) -> bytes:
        """The name of the shard's bucket."""

    @property
    def entries(self) -> Mapping[bytes, Entry]:
        """The shard's entries. A sweep only asks if there are any."""

    def counts_for(self, quota: Quota) -> bool:
        """Return True if the shard's entries count towards this quota."""

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys, with at most `looks_max` looks. Return the number of looks."""


class Expiry:
    """The shards of a store that have keys with deadlines, in the order of the sweep.

    :param clock: returns nanoseconds that never go back
    """

    __slots__ = ("_lock", "_shards", "clock", "expired_keys", "was_used")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.expired_keys = 0
        #: True once any key has had a deadline. It is set before the first such key is written, and never unset. So
        #: if a reader finds it unset after a look-up, the key that it found has no deadline.
        self.was_used = False
        self._lock = Lock()  # protects expired_keys and _shards; a leaf lock, like the ledger's
        self._shards: OrderedDict[Swept, None] = OrderedDict()  # finds its first item in O(1), unlike a dict

    def deadline_ns(self, ttl_ns: int) -> int | None:
        """Return the deadline that is `ttl_ns` from now, or None if `ttl_ns` is 0."""
        return self.clock() + ttl_ns if ttl_ns else None

    def add(self, shard: Swept) -> None:
        """Add a shard that is about to get its first deadline, or got one before it was in the ring."""
        self.was_used = True
        with self._lock:
            self._shards[shard] = None

    def remove(self, shard: Swept) -> None:
        """Remove a shard that has no more deadlines."""
        with self._lock:
            self._shards.pop(shard, None)

    def rotate(self) -> Swept | None:
        """Return the shard that is next, and move it to the end."""
        with self._lock:
            for shard in self._shards:
                self._shards.move_to_end(shard)
                return shard
        return None

    def count(self, keys: int) -> None:
        """Count expired keys that were removed."""
        with self._lock:
            self.expired_keys += keys

    def __len__(self) -> int:
        """Return the number of shards. `len` of a dict is atomic, so it needs no lock for an estimate."""
        return len(self._shards)
