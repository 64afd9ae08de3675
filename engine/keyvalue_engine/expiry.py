"""The clock of a store, and the shards that have keys with deadlines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Protocol

from keyvalue_engine.entry import Entry
from keyvalue_engine.quota import Quota

__all__ = ["Expiry", "Swept"]


class Swept(Protocol):
    """The part of a shard that a sweep uses."""

    @property
    def bucket_name(self) -> bytes:
        """The name of the shard's bucket."""

    @property
    def entries(self) -> Mapping[bytes, Entry]:
        """The shard's entries. A sweep only checks whether the shard has any."""

    def counts_for(self, quota: Quota) -> bool:
        """Return True if the quota covers the shard's bucket."""

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys. Examine at most `looks_max` deadlines, and return the number examined."""


class Expiry:
    """The shards of a store that have keys with deadlines, in the order in which a sweep visits them.

    :param clock: returns a time in nanoseconds that never goes back
    """

    __slots__ = ("_lock", "_shards", "clock", "expired_keys", "was_used")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.expired_keys = 0
        #: True once any key has had a deadline. The flag is set before the first such key is written, and is never
        #: cleared. So if the flag is still False after a look-up, the entry that the reader found has no deadline.
        self.was_used = False
        self._lock = Lock()  # protects expired_keys and _shards; a leaf lock, like the ledger's
        self._shards: OrderedDict[Swept, None] = OrderedDict()  # finds its first item in O(1), unlike a dict

    def deadline_ns(self, ttl_ns: int) -> int | None:
        """Return the deadline `ttl_ns` from now, or None if `ttl_ns` is 0."""
        return self.clock() + ttl_ns if ttl_ns else None

    def add(self, shard: Swept) -> None:
        """Add a shard before its first deadline is stored, or when a shard with deadlines enters the ring."""
        self.was_used = True
        with self._lock:
            self._shards[shard] = None

    def remove(self, shard: Swept) -> None:
        """Remove a shard that no longer has deadlines."""
        with self._lock:
            self._shards.pop(shard, None)

    def rotate(self) -> Swept | None:
        """Return the next shard, and move it to the end. Return None if there are no shards."""
        with self._lock:
            for shard in self._shards:
                self._shards.move_to_end(shard)
                return shard
        return None

    def count(self, keys: int) -> None:
        """Add to the number of expired keys that were removed."""
        with self._lock:
            self.expired_keys += keys

    def __len__(self) -> int:
        """Return the number of shards. This needs no lock, because `len` of a dict is atomic."""
        return len(self._shards)
