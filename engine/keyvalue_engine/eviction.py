"""Room for a write in a full store: which keys give way, and when the write is refused instead.

    FullError of a write ──> expired keys, orders, names of emptied buckets go first (`Tables.find_room`)
                        └──> make_room: the write fits, if other keys go? ── no ──> the error stays, nothing is changed
                                  └── yes ──> a full quota evicts keys of its own buckets, and a full store those
                                              of any bucket, one after another, until the write fits

A write evicts none of its own keys, so a batch and an increment find their keys as they were. The refusal comes before
the first eviction. (Only if other threads write meanwhile, a write may be refused after evictions.)

The work of a write is bounded. A write that would have to evict more than about EVICTIONS_MAX keys is refused. The
number is estimated from the average size of the keys. If the keys that go are much smaller, the write stops after twice
as many evictions. After FORCED_LOOKS looks at used keys, the next key goes although it was used.
"""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock
from typing import NamedTuple, Protocol

from keyvalue_engine.entry import BUCKET_BYTES, ENTRY_BYTES, bytes_size, entry_size
from keyvalue_engine.errors import EVICTIONS, KEYS, MEMORY_BYTES, QUOTA_KEYS, QUOTA_MEMORY_BYTES, FullError, Limit
from keyvalue_engine.evicting_shard import EvictingShard
from keyvalue_engine.kept_orders import KeptOrders
from keyvalue_engine.ledger import EvictingAccount, Ledger
from keyvalue_engine.quota import Quota, Reach
from keyvalue_engine.table import Table
from keyvalue_engine.turns import Evictable, StampClock, Turn, Turns

__all__ = ["EVICTING_OPTIONS", "EVICTIONS_MAX", "FORCED_LOOKS", "Evictor"]

#: The options whose limits make room by evictions.
EVICTING_OPTIONS = tuple(limit.option for limit in (KEYS, MEMORY_BYTES, QUOTA_KEYS, QUOTA_MEMORY_BYTES))

#: A write is refused if it needs more evictions, by the average size of the keys. A batch may also evict as many keys
#: as it adds.
EVICTIONS_MAX = 10_000
#: A write passes at most about this many used keys for one eviction. Then it evicts one although it was used.
FORCED_LOOKS = 1_000
#: The looks of a write that do not find a key to evict, besides those at its own keys.
LOOKS_MAX = 20_000
#: For each eviction, a quota compares at most this many of its buckets, chosen at random.
BUCKETS_COMPARED = 16
#: An eviction frees at least this much memory. (The heap of deadlines may hold the evicted key for a while.)
FREED_BYTES_MIN = ENTRY_BYTES + bytes_size(0)
WHOLE_STORE = Reach()


class Buckets(Protocol):
    """The part of `Tables` that evictions use."""

    by_name: dict[bytes, Table]
    ledger: Ledger
    orders: KeptOrders

    def new_bucket_bytes(self, name: bytes) -> int:
        """Return the memory that a new bucket of this name adds."""

    def names_of(self, reach: Reach, names_max: int) -> list[bytes]:
        """Return the names of the reach's buckets, or a random choice of them if there are more than `names_max`."""

    def tidy(self, name: bytes) -> None:
        """Free the table of a bucket if it is empty, or merge its shards if few keys are left."""


class Write(NamedTuple):
    """A write that needs room.

    :ivar name: the bucket
    :ivar own: the keys that it writes, which must stay
    :ivar keys: number of keys that it adds
    :ivar entries_bytes: memory of entries that it adds
    :ivar memory_bytes: all memory that it adds
    """

    name: bytes
    quota: Quota | None
    own: Collection[bytes]
    keys: int
    entries_bytes: int
    memory_bytes: int


class Evictor:
    """Makes room in a full store. Any thread may call any method.

    :ivar turns: the turns of all shards
    :ivar evicted_keys: number of evicted keys, by the option whose limit was reached
    """

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._ledger = buckets.ledger
        self.turns = Turns(StampClock(lambda: buckets.ledger.keys))
        self._lock = Lock()  # protects evicted_keys; a leaf lock, like the ledger's
        self.evicted_keys = dict.fromkeys(EVICTING_OPTIONS, 0)

    def make_room(self, name: bytes, error: FullError, quota: Quota | None, own: Collection[bytes]) -> int:
        """Evict keys until a write fits that raised `error`. Return their number, or 0 if the write can't fit.

        :raises FullError: the write would need too many evictions
        """
        if error.growth is None:
            return 0
        keys, entries_bytes = error.growth
        is_new = name not in self._buckets.by_name
        bucket_bytes = self._buckets.new_bucket_bytes(name) + EvictingShard.fixed_bytes if is_new else 0
        write = Write(name, quota, own, keys, entries_bytes, entries_bytes + bucket_bytes)
        if not self._can_fit(write):
            return 0
        evictions_max = EVICTIONS_MAX + keys
        needed = self._needed_evictions(write)
        if needed <= evictions_max:
            return self._evict(write, 2 * EVICTIONS_MAX + keys)
        if quota is not None and (quota.keys > quota.keys_max or quota.memory_bytes > quota.memory_bytes_max):
            self._evict(write, evictions_max)  # the quota was lowered: each write does a part of the work
        raise FullError(EVICTIONS, needed, evictions_max)

    def _lack(self, write: Write) -> Limit | None:
        """Return a limit that the write would exceed, or None. The quota's limits come first."""
        quota, ledger = write.quota, self._ledger
        if quota is not None:
            if write.keys > 0 and quota.keys + write.keys > quota.keys_max:
                return QUOTA_KEYS
            if write.entries_bytes > 0 and quota.memory_bytes + write.entries_bytes > quota.memory_bytes_max:
                return QUOTA_MEMORY_BYTES
        if write.keys > 0 and ledger.keys + write.keys > ledger.keys_max:
            return KEYS
        if write.entries_bytes > 0 and ledger.memory_bytes + write.memory_bytes > ledger.memory_bytes_max:
            return MEMORY_BYTES
        return None

    def _can_fit(self, write: Write) -> bool:
        """Return True if the write fits once all other keys are evicted. O(own keys), and seldom O(shards)."""
        quota, ledger = write.quota, self._ledger
        table = self._buckets.by_name.get(write.name)
        own_keys = own_bytes = 0
        if table is not None:
            for key in write.own:
                entry = table.shard_of(key).entries.get(key)
                if entry is not None:
                    own_keys += 1
                    own_bytes += entry_size(key, entry) + table.account.key_bytes
        keys, entries_bytes = own_keys + write.keys, own_bytes + write.entries_bytes
        if quota is not None and (keys > quota.keys_max or entries_bytes > quota.memory_bytes_max):
            return False
        if keys > ledger.keys_max:
            return False
        over_bytes = ledger.memory_bytes + write.memory_bytes - ledger.memory_bytes_max
        if over_bytes <= (ledger.keys - own_keys) * FREED_BYTES_MIN:
            return True
        bucket_bytes = 0
        if table is not None:
            shards = [*table.shards()]
            shards = shards[:1] if own_keys <= table.merge_keys else shards
            deadlines_bytes = sum(0 if shard.deadlines is None else shard.deadlines.counted_bytes for shard in shards)
            bucket_bytes = BUCKET_BYTES + bytes_size(len(write.name)) + len(shards) * EvictingShard.fixed_bytes
            bucket_bytes += deadlines_bytes
        return bucket_bytes + own_bytes + write.memory_bytes <= ledger.memory_bytes_max

    def _needed_evictions(self, write: Write) -> int:
        """Return about how many keys must go, by their average size."""
        quota, ledger = write.quota, self._ledger
        over_bytes = ledger.memory_bytes + write.memory_bytes - ledger.memory_bytes_max
        needed = [ledger.keys + write.keys - ledger.keys_max, over_bytes * ledger.keys // max(1, ledger.memory_bytes)]
        if quota is not None:
            over_bytes = quota.memory_bytes + write.entries_bytes - quota.memory_bytes_max
            needed.append(quota.keys + write.keys - quota.keys_max)
            needed.append(over_bytes * quota.keys // max(1, quota.memory_bytes))
        return max(needed)

    def _evict(self, write: Write, evictions_max: int) -> int:
        """Evict keys until the write fits, or until no other key can be found.

        Return their number, but at least 1 if the write fits, since another thread may have made room.
        """
        buckets = self._buckets
        evicted = looks = looks_since = 0
        looks_max = LOOKS_MAX + 2 * len(write.own)
        passed: set[Evictable] = set()
        while (lack := self._lack(write)) is not None and looks < looks_max and evicted < evictions_max:
            if lack is MEMORY_BYTES and (ordered := buckets.orders.oldest()) is not None:
                ordered.drop_order()  # otherwise it would note each evicted key
                looks += 1
                continue
            of_quota = write.quota if lack in (QUOTA_KEYS, QUOTA_MEMORY_BYTES) else None
            place = self._next(of_quota)
            if place is None:
                break
            shard, name = place.shard, place.shard.bucket_name
            own: Collection[bytes] = ()
            if name == write.name:
                own = write.own
                passed.add(shard)
            shard_looks, is_evicted = shard.evict(place.stamp, own, looks_since >= FORCED_LOOKS)
            if is_evicted:
                evicted += 1
                looks_since = 0
                with self._lock:
                    self.evicted_keys[lack.option] += 1
                buckets.tidy(name)
            else:
                looks += shard_looks
                looks_since += shard_looks
        for shard in passed:
            shard.rewind()
        return evicted if evicted or lack is not None else 1

    def _next(self, quota: Quota | None) -> Turn | None:
        """Return the place of the shard that is next in the store, or in the buckets of a quota."""
        if quota is None or quota.reach == WHOLE_STORE:
            return self.turns.first()
        places: list[Turn] = []
        for name in self._buckets.names_of(quota.reach, BUCKETS_COMPARED):
            table = self._buckets.by_name.get(name)
            if table is not None:
                assert isinstance(table.account, EvictingAccount)
                place = table.account.turns.first()
                if place is not None:
                    places.append(place)
        return min(places, key=lambda place: place.order, default=None)
