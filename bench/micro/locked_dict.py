"""A plain dict under one lock, for comparison with the store, and functions that create keys and values."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random
from threading import Lock

__all__ = ["KEY_BYTES", "VALUE_BYTES", "LockedDict", "fresh", "fresh_value", "shuffled_keys", "tune_collector"]

KEY_BYTES = 12
VALUE_BYTES = 64


class LockedDict:
    """A plain dict to compare the store with. It has no limits, no order, and one lock for everything."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            return self._entries.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        with self._lock:
            self._entries[key] = value

    def delete(self, key: bytes) -> bool:
        with self._lock:
            return self._entries.pop(key, None) is not None

    def increment(self, key: bytes, delta: int) -> int:
        with self._lock:
            total = int(self._entries.get(key, b"0")) + delta
            self._entries[key] = b"%d" % total
            return total

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._lock:
            return list(map(self._entries.get, keys))

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        with self._lock:
            self._entries.update(entries)

    def page(self, offset: int, keys_max: int) -> list[bytes]:
        """Return a page by skipping `offset` keys, because a dict cannot start at a key. O(offset)."""
        with self._lock:
            return list(islice(self._entries, offset, offset + keys_max))


def shuffled_keys(count: int) -> list[bytes]:
    """Return keys of 12 bytes, always in the same random order."""
    keys = [b"%0*d" % (KEY_BYTES, number) for number in range(count)]
    Random(1).shuffle(keys)
    return keys


def fresh(key: bytes) -> bytes:
    """Return a copy of a key. The hash of the copy is not cached yet."""
    return key[:1] + key[1:]


def fresh_value() -> bytes:
    """Return a new value object."""
    return bytes(bytearray(VALUE_BYTES))


def tune_collector() -> None:
    """Configure the garbage collector as the provider does. Objects that already exist are never scanned again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
