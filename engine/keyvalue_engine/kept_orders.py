"""The shards of a store that keep the order of their keys. A full store drops the orders that were not used lately."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Protocol

__all__ = ["KeptOrders", "Ordered"]


class Ordered(Protocol):
    """A shard that keeps an order."""

    def drop_order(self) -> int:
        """Drop the order. Return the memory that was freed. Takes the stripe."""


class KeptOrders:
    """The shards of a store that keep an order. The least recently used shard comes first."""

    __slots__ = ("_shards", "lock")

    def __init__(self) -> None:
        self.lock = Lock()  # a leaf lock, like the ledger's
        self._shards: OrderedDict[Ordered, None] = OrderedDict()

    def use(self, shard: Ordered) -> None:
        """Record that a page used the order of a shard."""
        with self.lock:
            self._shards[shard] = None
            self._shards.move_to_end(shard)

    def remove(self, shard: Ordered) -> None:
        """Remove a shard whose order was dropped."""
        with self.lock:
            self._shards.pop(shard, None)

    def oldest(self) -> Ordered | None:
        """Return the shard whose order was not used for the longest time, or None if no shard keeps an order."""
        with self.lock:
            return next(iter(self._shards), None)
