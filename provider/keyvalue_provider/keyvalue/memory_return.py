"""The return of freed memory to the system.

Without this task, the memory of the process would hardly fall when keys are deleted. Freed memory stays in two places:

- The C library keeps freed values for later, in the gaps between values that are still in use. `malloc_trim` returns
  the gaps.
- Python keeps small objects in blocks of 1 MiB, and returns a block when it holds no object any more. Some objects of
  caches and of Python's own lists of free objects are in many blocks. So while the store grows or shrinks fast, small
  objects do not come from blocks (`small_objects`). And if much memory is unused, the caches are dropped, and a full
  garbage collection clears the lists.

If much memory is unused because the keys that are left are spread over it, they move together (`compaction`). The
caches are dropped then too, because the objects of 2,000 handles can keep 7 MiB.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from typing import Protocol

from keyvalue_provider.keyvalue.compaction import Compaction, RenewedStore
from keyvalue_provider.keyvalue.small_objects import SmallObjects

__all__ = ["MemoryReturn", "resident_bytes"]

INTERVAL_S = 0.25
#: The gaps are returned when the unused memory has grown by this number of bytes, or by CHANGE_BYTES while the store
#: grows or shrinks fast. `malloc_trim` blocks the process for about 0.15 ms per MiB that it returns, and for more if
#: there are many gaps: up to 9 ms with 150,000 small keys, and 33 ms with a million, of which a random half is deleted.
GROWTH_BYTES = 8 * 1024 * 1024
#: The blocks are freed, at most once in this time, when more than GROWTH_BYTES and half of the counted memory are
#: unused, and the store has at most this number of keys. So the garbage collection takes a few milliseconds.
BLOCKS_INTERVAL_S = 1.0
BLOCKS_KEYS_MAX = 100_000
CHANGE_BYTES = 4 * 1024 * 1024
#: The store grows fast if the counted memory grows by this number of bytes in INTERVAL_S.
FILL_BYTES = 256 * 1024
#: Small objects come from the C library for these times after the store last grew or shrank fast.
GROWTH_S = 1.0
SHRINK_S = 3.0


class SizedStore(RenewedStore, Protocol):
    """The part of a store that this module needs."""

    @property
    def memory_bytes(self) -> int: ...


class MemoryReturn:
    """Returns unused memory of the process to the system.

    :param drop_caches: drops objects that are created again when they are needed
    """

    def __init__(self, store: SizedStore, drop_caches: Callable[[], None]) -> None:
        self._store = store
        self._drop_caches = drop_caches
        self._base_bytes = 0
        self._kept_bytes = 0  # the unused memory that the last trim did not return
        self._counted_bytes = 0  # at the last step
        self._malloc_until_s = 0.0
        # When much memory was last found unused: the time, the memory that stayed unused, and the memory that was counted.
        self._noted_s = 0.0
        self._noted_unused_bytes = self._noted_counted_bytes = 0

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
        small_objects = SmallObjects()
        compaction = Compaction(self._store, small_objects)
        try:
            while True:
                await asyncio.sleep(INTERVAL_S - loop.time() % INTERVAL_S)  # wake up together with the sweep
                self._step(loop.time(), small_objects, compaction, trim)
        finally:
            small_objects.use_malloc(False)
            compaction.close()

    def _step(
        self, now_s: float, small_objects: SmallObjects, compaction: Compaction, trim: Callable[[int], int]
    ) -> None:
        unused_bytes = self._unused_bytes()
        self._kept_bytes = min(self._kept_bytes, unused_bytes)
        growth_bytes = CHANGE_BYTES if small_objects.uses_malloc else GROWTH_BYTES
        if has_moved := compaction.end():
            self._clear()
        if has_moved or unused_bytes > self._kept_bytes + growth_bytes:
            trim(0)
            unused_bytes = self._kept_bytes = self._unused_bytes()
        before_bytes, self._counted_bytes = self._counted_bytes, self._store.memory_bytes
        if small_objects.has_choice:
            compaction.step(unused_bytes, self._counted_bytes)
        has_changed = self._has_changed(unused_bytes)
        if has_changed or compaction.is_running:
            self._malloc_until_s = now_s + SHRINK_S
        elif self._counted_bytes > before_bytes + FILL_BYTES:
            self._malloc_until_s = max(self._malloc_until_s, now_s + GROWTH_S)
        small_objects.use_malloc(now_s < self._malloc_until_s)
        if has_changed and now_s >= self._noted_s + BLOCKS_INTERVAL_S:
            if len(self._store) <= BLOCKS_KEYS_MAX:
                self._clear()
                trim(0)
                self._kept_bytes = self._unused_bytes()
            self._noted_s = now_s
            self._noted_unused_bytes = self._unused_bytes()
            self._noted_counted_bytes = self._counted_bytes

    def _clear(self) -> None:
        """Drop caches, and Python's lists of free objects, which can keep a page for each object."""
        self._drop_caches()
        if len(self._store) <= BLOCKS_KEYS_MAX:
            gc.collect()

    def _has_changed(self, unused_bytes: int) -> bool:
        """Return True if much memory is unused, and more than after the last time, or more keys were deleted."""
        counted_bytes = self._counted_bytes
        return unused_bytes > counted_bytes // 2 + GROWTH_BYTES and (
            unused_bytes > self._noted_unused_bytes + CHANGE_BYTES
            or counted_bytes < self._noted_counted_bytes - CHANGE_BYTES
        )

    def _unused_bytes(self) -> int:
        """Return the memory that has been added since the start and that the store does not count."""
        return resident_bytes() - self._store.memory_bytes - self._base_bytes


def _trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`, or None if this system lacks it."""
    import ctypes  # here, because importing it takes 2 ms, and the provider answers its first call before

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not Linux, or another C library
        return None
    return trim


def resident_bytes() -> int:
    """Return the memory of the process that is in RAM.

    :raises OSError: the system does not tell
    """
    # Not with `Path.read_text`: a text file looks up the name of its decoder in Python's cache of attributes, which
    # keeps a new copy of the name for each file, and each copy can keep a block.
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(statm, 256).split()[1]) * os.sysconf("SC_PAGESIZE")
    finally:
        os.close(statm)
