"""Own what a key holds, and the memory that it counts as.

Memory is a formula, not a measurement, so that it is the same on every machine and costs O(1). In bytes:

    key and value                      ENTRY + bytes_size(key) + bytes_size(value)
    key with a deadline                the same + DEADLINE
    key in a shard's order             + ORDER
    shard                              SHARD
    bucket                             BUCKET + bytes_size(name)

`bytes_size` is a bytes object: 33 bytes of header and terminator, rounded up as CPython's allocator does. ENTRY is the share of
one key in a dict. DEADLINE is the pair of value and deadline, the deadline's int object, and a tuple with a place in the heap. ORDER is
the share of the sorted lists and of the position's int object. tests/engine/test_memory.py compares the formula with the growth of a
process at 200,000 keys.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = [
    "BUCKET_BYTES",
    "DEADLINE_BYTES",
    "ENTRY_BYTES",
    "ORDER_BYTES",
    "SHARD_BYTES",
    "Entry",
    "Timed",
    "bytes_size",
    "entry_size",
]

#: A value and its deadline, in nanoseconds of the store's clock. One write replaces both, so no reader sees the one without the other.
#: A plain tuple: a NamedTuple costs many times as much to make, and the garbage collector would track it for ever.
Timed: TypeAlias = tuple[bytes, int]
#: What a key holds: its value, or its value and its deadline. Hot code compares the class: `isinstance` costs more where the answer is no.
Entry: TypeAlias = bytes | Timed

ENTRY_BYTES = 40
DEADLINE_BYTES = 186
ORDER_BYTES = 62
SHARD_BYTES = 500
BUCKET_BYTES = 700


def bytes_size(length: int) -> int:
    """Return the memory of a bytes object of `length` bytes.

    Hot code has `length + 48 & ~15` written out, since a call costs more than the sum. Each such place is compared with this function
    by `Store.check`, in tests/engine/test_commit.py.

    >>> [bytes_size(length) for length in (0, 15, 16)]
    [48, 48, 64]
    """
    return length + 48 & ~15


def entry_size(key: bytes, entry: Entry) -> int:
    """Return the memory of a key with what it holds, by the formula above."""
    if entry.__class__ is tuple:
        return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(entry[0]) + 48 & ~15) + DEADLINE_BYTES
    return ENTRY_BYTES + (len(key) + 48 & ~15) + (len(entry) + 48 & ~15)


def value_size(entry: Entry) -> int:
    """Return the part of `entry_size` that depends on what the key holds."""
    if entry.__class__ is tuple:
        return (len(entry[0]) + 48 & ~15) + DEADLINE_BYTES
    return len(entry) + 48 & ~15
