"""The return of freed memory to the system.

Without this task, the memory of the process would hardly fall when keys are deleted. Freed memory stays in two places:

- The C library keeps freed values for later, in the gaps between values that are still in use. `malloc_trim` returns
  the gaps.
- Python keeps small objects in blocks of 1 MiB, and returns a block when it holds no object any more. Some objects of
  caches and of Python's own lists of free objects are in many blocks. So if much memory is unused, the caches are
  dropped, and a full garbage collection clears the lists.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

__all__ = ["MemoryReturn"]

INTERVAL_S = 0.25
#: The gaps are returned when the unused memory has grown by this number of bytes. `malloc_trim` blocks the process for
#: about 0.15 ms per MiB that it returns.
GROWTH_BYTES = 16 * 1024 * 1024
#: The blocks are freed, at most once in this time, when more than GROWTH_BYTES and half of the counted memory are
#: unused, and the store has at most this number of keys. So the garbage collection takes a few milliseconds.
BLOCKS_INTERVAL_S = 1.0
BLOCKS_KEYS_MAX = 100_000
CHANGE_BYTES = 4 * 1024 * 1024


class SizedStore(Protocol):
    """The part of a store that this module needs."""

    @property
    def memory_bytes(self) -> int: ...

    def __len__(self) -> int: ...


class MemoryReturn:
    """Returns unused memory of the process to the system.

    :param drop_caches: drops objects that are created again when they are needed
    """

    def __init__(self, store: SizedStore, drop_caches: Callable[[], None]) -> None:
        self._store = store
        self._drop_caches = drop_caches
        self._base_bytes = 0
        self._kept_bytes = 0  # the unused memory that the last trim did not return
        # When the blocks were last freed: the time, the memory that stayed unused, and the memory that was counted.
        self._freed_s = 0.0
        self._pinned_bytes = self._pinned_at_bytes = 0

    async def run(self) -> None:
        """Return memory until the task is cancelled. Without glibc and /proc, return soon."""
        loop = asyncio.get_running_loop()
        try:
            self._base_bytes = self._unused_bytes()
        except OSError:  # not Linux
            return
        await asyncio.sleep(INTERVAL_S)
        trim = _trim()
        if trim is None:
            return
        while True:
            await asyncio.sleep(INTERVAL_S)
            unused_bytes = self._unused_bytes()
            self._kept_bytes = min(self._kept_bytes, unused_bytes)
            if unused_bytes > self._kept_bytes + GROWTH_BYTES:
                trim(0)
                unused_bytes = self._kept_bytes = self._unused_bytes()
            if loop.time() >= self._freed_s + BLOCKS_INTERVAL_S and self._may_free_blocks(unused_bytes):
                self._drop_caches()
                gc.collect()
                trim(0)
                self._kept_bytes = self._pinned_bytes = self._unused_bytes()
                self._pinned_at_bytes = self._store.memory_bytes
                self._freed_s = loop.time()

    def _may_free_blocks(self, unused_bytes: int) -> bool:
        """Return True if much memory is unused, and more than after the last time, or more keys were deleted."""
        counted_bytes = self._store.memory_bytes
        has_changed = unused_bytes > self._pinned_bytes + CHANGE_BYTES or (
            counted_bytes < self._pinned_at_bytes - CHANGE_BYTES
        )
        is_much = unused_bytes > counted_bytes // 2 + GROWTH_BYTES
        return is_much and has_changed and len(self._store) <= BLOCKS_KEYS_MAX

    def _unused_bytes(self) -> int:
        """Return the memory that has been added since the start and that the store does not count."""
        return _resident_bytes() - self._store.memory_bytes - self._base_bytes


def _trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`, or None if this system lacks it."""
    import ctypes  # here, because importing it takes 2 ms, and the provider answers its first call before

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not Linux, or another C library
        return None
    return trim


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
