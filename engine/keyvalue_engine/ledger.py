"""What the store holds, counted: keys, memory. One ledger a store, one account a bucket, and quotas over buckets.

Memory is a formula, not a measurement, so that it is the same everywhere and costs O(1). In bytes:

    a key and its value   ENTRY + (len(key) + 48 & ~15) + (len(value) + 48 & ~15)
    a key with a deadline, besides                DEADLINE
    a key that is in a shard's order, besides     ORDER
    a shard               SHARD
    a bucket              BUCKET + (len(name) + 48 & ~15)

`len + 48 & ~15` is a bytes object: 33 bytes of header and terminator, rounded up as CPython's allocator does. ENTRY is a dict's
share for one key, DEADLINE the pair of value and deadline, the deadline's int object, and a place in the heap with its tuple, ORDER the share
of the sorted lists and of the position's int object. tests/engine/test_memory.py compares the formula with the growth of the process at a
million keys.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TypeAlias

from keyvalue_engine.deadlines import Entry
from keyvalue_engine.errors import FullError
from keyvalue_engine.options import StoreOptions

__all__ = [
    "BUCKET_BYTES",
    "DEADLINE_BYTES",
    "ENTRY_BYTES",
    "ORDER_BYTES",
    "SHARD_BYTES",
    "Account",
    "Ledger",
    "Observer",
    "Quota",
    "bytes_size",
    "entry_size",
]

ENTRY_BYTES = 40
DEADLINE_BYTES = 186
ORDER_BYTES = 62
SHARD_BYTES = 500
BUCKET_BYTES = 700
UNLIMITED = 2**63

#: Told of a change: bucket, key, and the value, or None where the key was deleted or has expired. Called under the stripe, so in the
#: order of writes to a key: it must not block, nor raise, nor use the store.
Observer: TypeAlias = Callable[[bytes, bytes, bytes | None], None]


def bytes_size(length: int) -> int:
    """Memory of a bytes object of `length` bytes."""
    return length + 48 & ~15


def entry_size(key: bytes, entry: Entry) -> int:
    """Memory of a key with what it holds, by the formula above."""
    if entry.__class__ is tuple:
        return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(entry[0]) + 48 & ~15) + DEADLINE_BYTES
    return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(entry) + 48 & ~15)


class Quota:
    """What some buckets may hold together, for the handles that are given it; counted whoever writes. `Store.add_quota` begins the count.

    :param covers: whether a bucket of this name belongs to it
    :param keys_max: None is no limit
    :param memory_bytes_max: of keys and values with their deadlines, by the formula above; None is no limit
    """

    __slots__ = ("covers", "keys", "keys_max", "memory_bytes", "memory_bytes_max")

    def __init__(self, covers: Callable[[bytes], bool], keys_max: int | None, memory_bytes_max: int | None) -> None:
        self.covers = covers
        self.keys_max = UNLIMITED if keys_max is None else keys_max
        self.memory_bytes_max = UNLIMITED if memory_bytes_max is None else memory_bytes_max
        self.keys = 0
        self.memory_bytes = 0


class Ledger:
    """Keys and memory of one store, and their limits."""

    __slots__ = ("keys", "keys_max", "lock", "memory_bytes", "memory_bytes_max", "quotas")

    def __init__(self, options: StoreOptions) -> None:
        #: Protects all counts: of the ledger, its accounts, its quotas. A leaf: taken under a stripe, and nothing is taken under it. One
        #: for the whole store keeps limits exact over all threads; an overwrite by a value of the same memory size, the common one,
        #: does not come here.
        self.lock = Lock()
        self.keys_max = options.keys_max
        self.memory_bytes_max = UNLIMITED if options.memory_bytes_max is None else options.memory_bytes_max
        self.keys = 0
        self.memory_bytes = 0
        self.quotas: tuple[Quota, ...] = ()

    def hold(self, memory_bytes: int) -> None:
        """Count memory of what is no entry. Less than before is never refused.

        :raises FullError: the limit would be passed; nothing is counted then
        """
        with self.lock:
            memory_after = self.memory_bytes + memory_bytes
            if memory_after > self.memory_bytes_max and memory_bytes > 0:
                raise FullError("memory limit in bytes", memory_after, self.memory_bytes_max)
            self.memory_bytes = memory_after


class Account:
    """Keys and memory of one bucket's entries, which its ledger counts too; and what all shards of the bucket share beside that.

    :ivar observer: told of each change in the bucket, if there is one
    """

    __slots__ = ("keys", "ledger", "memory_bytes", "name", "observer", "quotas")

    def __init__(self, name: bytes, ledger: Ledger, observer: Observer | None = None) -> None:
        self.name = name
        self.ledger = ledger
        self.observer = observer
        self.keys = 0
        self.memory_bytes = 0
        with ledger.lock:
            self.quotas = tuple(quota for quota in ledger.quotas if quota.covers(name))

    def charge(self, keys: int, memory_bytes: int, quota: Quota | None = None) -> None:
        """Count new keys, and memory that entries take or give back; what grows nothing is never refused.

        :raises FullError: a limit of the store or of the quota would be passed; nothing is counted then
        """
        ledger = self.ledger
        lock = ledger.lock
        lock.acquire()  # a with statement costs 70 ns more
        try:
            keys_after = ledger.keys + keys
            memory_after = ledger.memory_bytes + memory_bytes
            if keys_after > ledger.keys_max and keys > 0:
                raise FullError("keys limit", keys_after, ledger.keys_max)
            if memory_after > ledger.memory_bytes_max and memory_bytes > 0:
                raise FullError("memory limit in bytes", memory_after, ledger.memory_bytes_max)
            if self.quotas or quota is not None:
                self._charge_quotas(keys, memory_bytes, quota)
            ledger.keys = keys_after
            ledger.memory_bytes = memory_after
            self.keys += keys
            self.memory_bytes += memory_bytes
        finally:
            lock.release()

    def _charge_quotas(self, keys: int, memory_bytes: int, limited_by: Quota | None) -> None:
        if limited_by is not None:
            keys_after = limited_by.keys + keys
            memory_after = limited_by.memory_bytes + memory_bytes
            if keys_after > limited_by.keys_max and keys > 0:
                raise FullError("keys of this link's buckets", keys_after, limited_by.keys_max, limited_by)
            if memory_after > limited_by.memory_bytes_max and memory_bytes > 0:
                raise FullError(
                    "memory in bytes of this link's buckets", memory_after, limited_by.memory_bytes_max, limited_by
                )
        for quota in self.quotas:
            quota.keys += keys
            quota.memory_bytes += memory_bytes

    def adjust(self, memory_bytes: int) -> None:
        """Count memory of shards and orders, in the ledger alone: no limit applies."""
        with self.ledger.lock:
            self.ledger.memory_bytes += memory_bytes
