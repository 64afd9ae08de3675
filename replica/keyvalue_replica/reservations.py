"""Room for changes that are published but not applied. A change is checked against the limits before it is published."""

from __future__ import annotations

from keyvalue_engine import Quota, Store
from keyvalue_engine.room import NOTHING, Growth

__all__ = ["Reservation", "Reservations"]

#: With more buckets than this, all reservations count for each quota, because adding up those of its buckets takes long.
BUCKETS_MAX = 64
#: No machine has the memory for so many keys.
KEYS_OF_A_MACHINE = 2**32


class Reservation:
    """Room that is reserved for one change, until `release`."""

    __slots__ = ("_growth", "_name", "_reservations")

    def __init__(self, reservations: Reservations, name: bytes, growth: Growth) -> None:
        self._reservations = reservations
        self._name = name
        self._growth = growth

    def release(self) -> None:
        """Free the room, because the change is applied or given up."""
        self._reservations.release(self._name, self._growth)


class Reservations:
    """The room that all published changes of an instance need, in total and by bucket.

    :param beside: another store, whose keys count for the same limits
    """

    def __init__(self, store: Store, beside: Store | None = None) -> None:
        options = store.options
        #: True if a write may be refused although it has no quota and its bucket exists.
        self.is_limited = options.memory_bytes_max is not None or options.keys_max < KEYS_OF_A_MACHINE
        self.beside = beside
        self._store = store
        self._by_name: dict[bytes, tuple[int, int, int]] = {}  # keys, bytes, and the number of reservations
        self._keys = self._memory_bytes = 0

    def reserve(self, name: bytes, growth: Growth, quota: Quota | None) -> Reservation:
        """Reserve room in a bucket.

        :raises LimitError: the bucket's name is too long, or the store or the quota would be full
        """
        self.check(name, growth, quota)
        return self.hold(name, growth)

    def hold(self, name: bytes, growth: Growth) -> Reservation:
        """Reserve room in a bucket, without a check."""
        by_name = self._by_name
        growth = Growth(max(growth.keys, 0), max(growth.memory_bytes, 0))
        keys, memory_bytes, number = by_name.get(name, (0, 0, 0))
        by_name[name] = keys + growth.keys, memory_bytes + growth.memory_bytes, number + 1
        self._keys += growth.keys
        self._memory_bytes += growth.memory_bytes
        return Reservation(self, name, growth)

    def check(self, name: bytes, growth: Growth, quota: Quota | None) -> None:
        """Check that there is room in a bucket.

        :raises LimitError: the bucket's name is too long, or the store or the quota would be full
        """
        by_name = self._by_name
        pending = Growth(self._keys, self._memory_bytes, len(by_name) - (name in by_name))
        if (beside := self.beside) is not None:
            pending = Growth(
                pending.keys + len(beside),
                pending.memory_bytes + beside.memory_bytes,
                pending.buckets + beside.bucket_count,
            )
        self._store.check_room(name, growth, pending, quota, NOTHING if quota is None else self._in_quota(quota))

    def excess(self) -> dict[str, int]:
        """Return by how much the store exceeds each of its limits. Changes that others have stored are never refused."""
        stores, options = [self._store, *([] if self.beside is None else [self.beside])], self._store.options
        counts = {
            "memory_bytes_max": (sum(store.memory_bytes for store in stores), options.memory_bytes_max),
            "keys_max": (sum(map(len, stores)), options.keys_max),
            "buckets_max": (sum(store.bucket_count for store in stores), options.buckets_max),
        }
        return {name: 0 if limit is None else max(0, count - limit) for name, (count, limit) in counts.items()}

    def release(self, name: bytes, growth: Growth) -> None:
        """Free the room of one reservation."""
        keys, memory_bytes, number = self._by_name.pop(name)
        if number > 1:
            self._by_name[name] = keys - growth.keys, memory_bytes - growth.memory_bytes, number - 1
        self._keys -= growth.keys
        self._memory_bytes -= growth.memory_bytes

    def _in_quota(self, quota: Quota) -> Growth:
        if len(self._by_name) > BUCKETS_MAX:
            return Growth(self._keys, self._memory_bytes)
        covered = [sizes for name, sizes in self._by_name.items() if quota.reach.covers(name)]
        return Growth(sum(keys for keys, _, _ in covered), sum(memory_bytes for _, memory_bytes, _ in covered))
