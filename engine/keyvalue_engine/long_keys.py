"""The limit for the long keys of a shard.

A split of a shard hashes all its keys, and a new order hashes them twice. Hashing a key of 64 KiB takes 24 us, two
hundred times as long as a short key. So a limit for the number of keys is not enough to bound this work.

A shard counts the bytes of its long keys only when it stores one (`Table.note_key`). So writes and deletes of short keys
do not pay for the count. Before a split, the table counts again, because long keys may have been overwritten or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["LONG_BYTES_MAX", "LONG_KEY_BYTES", "long_bytes"]

#: A key is long if it has more bytes than this.
LONG_KEY_BYTES = 1024
#: A shard is split when its long keys have more bytes than this. Hashing that many takes less than a millisecond.
LONG_BYTES_MAX = 2 * 1024 * 1024


def long_bytes(keys: Iterable[bytes]) -> int:
    """Return the total size of the long keys. O(n).

    >>> long_bytes([b"short", bytes(2_000)])
    2000
    """
    return sum(length for length in map(len, keys) if length > LONG_KEY_BYTES)
