"""The turns of shards to give up keys when a store or a quota is full.

A key's *stamp* says since when the key has waited: since it was created, or since the hand of its shard passed it
(`keyvalue_engine.evicting_shard`). A shard's place has the stamp of the key whose turn it is in the shard. The shard
with the least stamp is next.

Stamps are numbers of one count for the whole store. One in STAMPS_SHARE of the store's keys may share a stamp, so that
the objects of the stamps take hardly any memory.

    whole store    SortedKeyList of places ──┐
                                             ├── Turn: shard, stamp
    each bucket    SortedKeyList of places ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import count
from operator import attrgetter
from threading import Lock
from typing import Protocol

from sortedcontainers import SortedKeyList

__all__ = ["Evictable", "Turn", "Turns"]

STAMPS_SHARE = 1_024


class Evictable(Protocol):
    """The part of a shard that evictions use."""

    @property
    def bucket_name(self) -> bytes:
        """The name of the shard's bucket."""

    def evict(self, stamp: int, own: Container[bytes], is_forced: bool) -> tuple[int, bool]:
        """Remove a key, unless the shard's turn is over. Return the number of looks, and True if a key was removed."""

    def rewind(self) -> None:
        """Let the hand go back to the keys that it passed because a write spared them."""


class Turn:
    """A shard's place among the turns. It is not a tuple for the reason that `keyvalue_engine.expiry.Place` gives."""

    __slots__ = ("order", "shard", "stamp")

    def __init__(self, shard: Evictable, stamp: int, number: int) -> None:
        self.shard = shard
        self.stamp = stamp
        self.order = stamp << 64 | number


class StampClock:
    """Gives stamps. Threads may lose one another's counts, which only lets more keys share a stamp.

    :param keys_of: returns the number of keys in the store
    """

    __slots__ = ("_given", "_keys_of", "_stamp")

    def __init__(self, keys_of: Callable[[], int]) -> None:
        self._keys_of = keys_of
        self._stamp = 1
        self._given = 0

    def stamp(self) -> int:
        """Return the stamp of a key that begins to wait. O(1)."""
        self._given += 1
        if self._given * STAMPS_SHARE > self._keys_of():
            return self.advance()
        return self._stamp

    def advance(self) -> int:
        """Return a stamp that is greater than all stamps so far."""
        self._given = 0
        self._stamp += 1
        return self._stamp


class Turns:
    """The places of a bucket's shards, or those of all shards of a store. Any thread may call any method.

    :param clock: gives the stamps of the store
    :param whole: the turns of the store, if these are the turns of a bucket
    """

    __slots__ = ("_number", "_places", "_whole", "clock", "lock")

    def __init__(self, clock: StampClock, whole: Turns | None = None) -> None:
        self._whole = whole
        self.clock = clock
        #: Protects the places of the store and of all buckets. A leaf lock, like the ledger's.
        self.lock: Lock = Lock() if whole is None else whole.lock
        self._number: Callable[[], int] = count().__next__ if whole is None else whole._number
        self._places: SortedKeyList[Turn, int] = SortedKeyList(key=attrgetter("order"))

    def put(self, shard: Evictable, stamp: int, before: Turn | None) -> Turn:
        """Give a shard a place in a bucket's turns, instead of the place `before`, if any. O(log shards)."""
        place = Turn(shard, stamp, self._number())
        with self.lock:
            if before is not None:
                self._discard(before)
            self._places.add(place)
            if self._whole is not None:
                self._whole._places.add(place)
        return place

    def remove(self, place: Turn) -> None:
        """Remove the place of a shard that has no keys, or that was replaced. O(log shards)."""
        with self.lock:
            self._discard(place)

    def _discard(self, place: Turn) -> None:
        self._places.discard(place)  # an interrupted call may have removed it
        if self._whole is not None:
            self._whole._places.discard(place)

    def first(self) -> Turn | None:
        """Return the place of the shard that is next, or None if no shard has a key. O(1)."""
        with self.lock:
            if not self._places:
                return None
            place: Turn = self._places[0]
            return place

    def __len__(self) -> int:
        """Return the number of places. O(1)."""
        return len(self._places)
