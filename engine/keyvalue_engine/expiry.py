"""The clock of a store, and the schedule of the shards that have keys with deadlines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from operator import attrgetter
from threading import Lock
from typing import Protocol

from sortedcontainers import SortedKeyList

from keyvalue_engine.entry import Entry

__all__ = ["Expiry", "Place", "Swept"]


class Swept(Protocol):
    """The part of a shard that a sweep uses."""

    @property
    def bucket_name(self) -> bytes:
        """The name of the shard's bucket."""

    @property
    def entries(self) -> Mapping[bytes, Entry]:
        """The shard's entries. A sweep only checks whether the shard has any."""

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys. Examine at most `looks_max` deadlines, and return the number examined."""


class Place:
    """A shard's place in the schedule.

    It is not a tuple, because Python keeps up to 2,000 freed tuples of each size for reuse. If a shard's place changes
    often, such a tuple would hardly ever be freed, and each of them can keep 1 MiB of Python's memory.

    :param due_ns: a time that is not after the shard's earliest deadline
    :param number: a number that no other place has
    """

    __slots__ = ("due_ns", "order", "shard")

    def __init__(self, shard: Swept, due_ns: int, number: int) -> None:
        self.shard = shard
        self.due_ns = due_ns
        self.order = due_ns << 64 | number


class Expiry:
    """The shards of a store that have keys with deadlines, sorted by their earliest deadline.

    So a sweep finds the keys that expired first, and learns in O(1) that no key has expired.

    :param clock: returns a time in nanoseconds that never goes back
    """

    __slots__ = ("_number", "_schedule", "clock", "expired_keys", "lock", "was_used")

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.expired_keys = 0
        #: True once any key has had a deadline. The flag is set before the first such key is written, and is never
        #: cleared. So if the flag is still False after a look-up, the entry that the reader found has no deadline.
        self.was_used = False
        self.lock = Lock()  # protects all that follows, and expired_keys; a leaf lock, like the ledger's
        self._schedule: SortedKeyList[Place, int] = SortedKeyList(key=attrgetter("order"))
        self._number = 0

    def deadline_ns(self, ttl_ns: int) -> int | None:
        """Return the deadline `ttl_ns` from now, or None if `ttl_ns` is 0."""
        return self.clock() + ttl_ns if ttl_ns else None

    def schedule(self, shard: Swept, due_ns: int, before: Place | None) -> Place:
        """Give a shard a place in the schedule, instead of the place `before`, if any. O(log shards)."""
        with self.lock:
            if before is not None:
                self._schedule.remove(before)
            self._number += 1
            place = Place(shard, due_ns, self._number)
            self._schedule.add(place)
            return place

    def remove(self, place: Place) -> None:
        """Remove a shard that no longer has deadlines, or that was replaced. O(log shards)."""
        with self.lock:
            self._schedule.discard(place)  # an interrupted call may have removed it

    def next_due(self, now_ns: int) -> Swept | None:
        """Return the shard whose earliest deadline passed first, or None if no deadline has passed. O(1)."""
        with self.lock:
            if self._schedule and self._schedule[0].due_ns <= now_ns:
                shard: Swept = self._schedule[0].shard
                return shard
        return None

    @property
    def overdue_ns(self) -> float:
        """Return how long ago the earliest deadline of a key that is still stored passed.

        The result is negative if the deadline lies ahead, and minus infinity if no key has a deadline.
        """
        with self.lock:
            return self.clock() - self._schedule[0].due_ns if self._schedule else -inf

    def __len__(self) -> int:
        """Return the number of shards in the schedule. O(1)."""
        return len(self._schedule)

    def count(self, keys: int) -> None:
        """Add to the number of expired keys that were removed."""
        with self.lock:
            self.expired_keys += keys
