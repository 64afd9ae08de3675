"""A key's entry, and the formula for its memory.

Memory is calculated, not measured. So the result is the same on every machine, and takes O(1). In bytes:

    key and value                      ENTRY + bytes_size(key) + bytes_size(value)
    key with a deadline                as above, + DEADLINE
    key in a shard's order             + ORDER
    shard                              SHARD
    shard with a deadline              + DEADLINES, and the spare bytes of the heap
    shard with an order                + ORDER_OBJECT, and the spare bytes of the order
    bucket                             BUCKET + bytes_size(name)
    key, with eviction                 + EVICTION_BYTES[eviction]
    shard, with eviction               + EVICTING_SHARD
    name of an emptied bucket          EMPTIED + bytes_size(name)      with strict_buckets

`bytes_size` is the size of a bytes object: its length plus 33 bytes of header and terminator, rounded up as CPython's
allocator does. ENTRY is one key's share of a dict. DEADLINE covers the tuple of value and deadline, the deadline's int
object, and the heap item. DEADLINES and ORDER_OBJECT cover the objects that a shard has only once. ORDER covers one
key's share of the sorted lists, and the int object of the key's position.

Spare bytes belong to keys that are gone, or to second copies of keys. The heap of deadlines and the order hold such
keys until they are next tidied. The spare bytes are bounded, and the ledger counts them in steps of SPARE_STEP.
tests/engine/test_memory.py compares the formula with the memory growth of a process that stores 200,000 keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = [
    "BUCKET_BYTES",
    "DEADLINES_BYTES",
    "DEADLINE_BYTES",
    "EMPTIED_BYTES",
    "EMPTY_ENTRY_BYTES",
    "ENTRY_BYTES",
    "EVICTING_SHARD_BYTES",
    "EVICTION_BYTES",
    "ORDER_BYTES",
    "ORDER_OBJECT_BYTES",
    "SHARD_BYTES",
    "SPARE_STEP",
    "Entry",
    "Timed",
    "batch_growth",
    "bytes_size",
    "entry_size",
    "spare_max",
    "unless_expired",
    "value_of",
    "value_size",
]

#: A value and its deadline, in nanoseconds of the store's clock. One write replaces the value and the deadline
#: together, so no reader sees a new value with an old deadline. `Timed` is a plain tuple, because creating a NamedTuple
#: takes much longer. Also, the garbage collector never stops tracking a NamedTuple.
Timed: TypeAlias = tuple[bytes, int]
#: The entry of a key: its value, or its value and its deadline. Hot code compares the class, because `isinstance`
#: takes longer when the result is False.
Entry: TypeAlias = bytes | Timed

ENTRY_BYTES = 40
DEADLINE_BYTES = 186
ORDER_BYTES = 62
SHARD_BYTES = 500
#: By the option `eviction`: a key's share of the dict of stamps.
EVICTION_BYTES = {"none": 0, "oldest": 8, "unused": 40}
EVICTING_SHARD_BYTES = 900
BUCKET_BYTES = 700
EMPTIED_BYTES = 150
#: These two include the up to SPARE_STEP bytes that are not counted yet.
DEADLINES_BYTES = 900
ORDER_OBJECT_BYTES = 1_500

SPARE_MIN = 1024
SPARE_PER_KEY = 16
SPARE_STEP = 512


def bytes_size(length: int) -> int:
    """Return the memory that a bytes object of this length takes.

    Hot code inlines `length + 48 & ~15`, or `length & ~15` in differences, because a call takes longer.
    tests/engine/test_commit.py uses `Store.check` to compare each inlined copy with this function.

    >>> [bytes_size(length) for length in (0, 15, 16)]
    [48, 48, 64]
    """
    return length + 48 & ~15


#: The memory of an empty key with an empty value. Each of them takes `length & ~15` bytes more if it is not empty.
EMPTY_ENTRY_BYTES = ENTRY_BYTES + 2 * bytes_size(0)


def value_of(entry: Entry | None) -> bytes | None:
    """Return the value of an entry."""
    return entry[0] if isinstance(entry, tuple) else entry


def unless_expired(entry: Entry | None, now_ns: int) -> Entry | None:
    """Return an entry, or None if its deadline has passed."""
    return None if isinstance(entry, tuple) and entry[1] <= now_ns else entry


def entry_size(key: bytes, entry: Entry) -> int:
    """Return the memory that a key and its entry take, by the formula above."""
    if entry.__class__ is tuple:
        return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(entry[0]) + 48 & ~15) + DEADLINE_BYTES
    return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(entry) + 48 & ~15)


def value_size(entry: Entry) -> int:
    """Return the part of `entry_size` that depends on the value and the deadline."""
    if entry.__class__ is tuple:
        return (len(entry[0]) + 48 & ~15) + DEADLINE_BYTES
    return len(entry) + 48 & ~15


def batch_growth(
    known: Mapping[bytes, Entry],
    keys: Sequence[bytes],
    entries: Mapping[bytes, bytes],
    deadline_ns: int | None,
    has_deadlines: bool,
) -> tuple[int, int]:
    """Return the number of keys and bytes that a batch adds to the known entries of a shard. O(keys).

    :param keys: the keys of the batch that belong to the shard; each occurs once
    :param deadline_ns: the deadline of the new entries, or None
    :param has_deadlines: True if known entries may have deadlines
    """
    new_keys = memory_bytes = 0
    if deadline_ns is None and not has_deadlines:  # inlined for speed (benchmark scenario: batch)
        for key in keys:
            old, length = known.get(key), len(entries[key])
            if old is None:
                new_keys += 1
                memory_bytes += ENTRY_BYTES + (len(key) + 48 & ~15) + (length + 48 & ~15)
            elif len(old) != length:
                memory_bytes += (length + 48 & ~15) - (len(old) + 48 & ~15)
        return new_keys, memory_bytes
    for key in keys:
        value, old = entries[key], known.get(key)
        new_keys += old is None
        memory_bytes += entry_size(key, value if deadline_ns is None else (value, deadline_ns))
        memory_bytes -= 0 if old is None else entry_size(key, old)
    return new_keys, memory_bytes


def spare_max(keys: int) -> int:
    """Return how many spare bytes the heap of a shard with this number of keys may hold."""
    return SPARE_MIN + SPARE_PER_KEY * keys
