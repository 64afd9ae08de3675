"""What the store holds, counted: keys, buckets, memory. One ledger a store.

Memory is a formula, not a measurement, so that it is the same everywhere and costs O(1). In bytes:

    a key and its value   ENTRY + (len(key) + 48 & ~15) + (len(value) + 48 & ~15)
    a key that is in a shard's order, besides     ORDER
    a shard               SHARD
    a bucket              BUCKET + (len(name) + 48 & ~15)

`len + 48 & ~15` is a bytes object: 33 bytes of header and terminator, rounded up as CPython's allocator does. ENTRY is a dict's
share for one key, ORDER the share of the sorted lists and of the position's int object. tests/engine/test_memory.py compares the formula with
the growth of the process at a million keys.
"""

from __future__ import annotations

from threading import Lock

from engine.errors import LimitError
from engine.options import StoreOptions

__all__ = ["BUCKET_BYTES", "ENTRY_BYTES", "ORDER_BYTES", "SHARD_BYTES", "Ledger", "bytes_size", "entry_size"]

ENTRY_BYTES = 40
ORDER_BYTES = 62
SHARD_BYTES = 500
BUCKET_BYTES = 700


def bytes_size(length: int) -> int:
    """Memory of a bytes object of `length` bytes."""
    return length + 48 & ~15


def entry_size(key: bytes, value: bytes) -> int:
    """Memory of a key with its value, by the formula above."""
    return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(value) + 48 & ~15)


class Ledger:
    """Counts keys and memory of one store, and refuses what would pass a limit.

    The lock is a leaf: it is taken under a stripe, and nothing is taken under it. One lock for the whole store keeps the limits exact
    over all threads; an overwrite by a value of the same memory size, the common one, does not come here.
    """

    __slots__ = ("_keys_max", "_lock", "_memory_bytes_max", "keys", "memory_bytes")

    def __init__(self, options: StoreOptions) -> None:
        self._lock = Lock()  # protects keys and memory_bytes
        self._keys_max = options.keys_max
        self._memory_bytes_max = 2**63 if options.memory_bytes_max is None else options.memory_bytes_max
        self.keys = 0
        self.memory_bytes = 0

    def admit(self, memory_bytes: int) -> None:
        """Count a new key of so much memory.

        :raises LimitError: a limit would be passed; nothing is counted then
        """
        lock = self._lock
        lock.acquire()  # as in Shard.set
        try:
            keys = self.keys + 1
            memory_after = self.memory_bytes + memory_bytes
            if keys > self._keys_max:
                raise LimitError("keys limit", keys, self._keys_max)
            if memory_after > self._memory_bytes_max:
                raise LimitError("memory limit in bytes", memory_after, self._memory_bytes_max)
            self.keys = keys
            self.memory_bytes = memory_after
        finally:
            lock.release()

    def grow(self, memory_bytes: int) -> None:
        """Count memory that something new, or a larger value, will take. Less memory than before is never refused.

        :raises LimitError: the limit would be passed; nothing is counted then
        """
        with self._lock:
            memory_after = self.memory_bytes + memory_bytes
            if memory_after > self._memory_bytes_max and memory_bytes > 0:
                raise LimitError("memory limit in bytes", memory_after, self._memory_bytes_max)
            self.memory_bytes = memory_after

    def adjust(self, keys: int, memory_bytes: int) -> None:
        """Count what is there already or is gone: no limit applies."""
        with self._lock:
            self.keys += keys
            self.memory_bytes += memory_bytes
