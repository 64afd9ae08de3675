"""Own the list of a store's shards in which keys have deadlines, and the clock of the deadlines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Protocol

from keyvalue_engine.entry import Entry
from keyvalue_engine.quota import Quota

__all__ = ["Expiry", "Swept"]


class Swept(Protocol):
    """A shard, as a sweep uses it."""

    @property
    def bucket_name(self) -> bytes:
        """Name of the bucket that this is a shard of."""

    @property
    def entries(self) -> Mapping[bytes, Entry]:
        """Its keys; a sweep asks only if there are any."""

    def counts_for(self, quota: Quota) -> bool:
        """Return True if its entries are counted for this quota."""

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys, after at most `looks_max` looks. Return the number of looks."""


class Expiry:
    """The shards of a store in which keys have deadlines, in the order in which they are swept.

    :param clock: nanoseconds that never go back
    """

    __slots__ = ("_lock", "_shards", "clock", "expired_keys", "was_used")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.expired_keys = 0
        #: True once any key had a deadline. Set before the first such key is written, and never unset. So a reader that finds it unset
        #: after a look-up has found a key without a deadline.
        self.was_used = False
        self._lock = Lock()  # protects expired_keys and _shards; a leaf, as the ledger's
        self._shards: OrderedDict[Swept, None] = OrderedDict()  # finds its first in O(1), where a dict would not

    def deadline_ns(self, ttl_ns: int) -> int | None:
        """Return the deadline of an entry that lives `ttl_ns` from now on; None where that is 0: it lives for ever."""
        return self.clock() + ttl_ns if ttl_ns else None

    def add(self, shard: Swept) -> None:
        """Enter a shard that is about to get its first deadline, or got it before it was in the ring."""
        self.was_used = True
        with self._lock:
            self._shards[shard] = None

    def remove(self, shard: Swept) -> None:
        """Forget a shard that has no deadline any more."""
        with self._lock:
            self._shards.pop(shard, None)

    def rotate(self) -> Swept | None:
        """Return the shard whose turn it is, and put it at the end of the row."""
        with self._lock:
            for shard in self._shards:
                self._shards.move_to_end(shard)
                return shard
        return None

    def count(self, keys: int) -> None:
        """Count keys that expired and were removed."""
        with self._lock:
            self.expired_keys += keys

    def __len__(self) -> int:
        """Return the number of shards. Without the lock: `len` of a dict is one step, and callers need only an estimate."""
        return len(self._shards)
