"""The return of freed memory to the system.

The C library keeps the memory of freed values for later, in the gaps between values that are still in use. Without this
task, the memory of the process would hardly fall when keys are deleted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from keyvalue_engine import Store

__all__ = ["return_memory"]

INTERVAL_S = 0.25
#: The memory is returned when the unused memory has grown by this number of bytes. The call blocks the process for
#: about 0.15 ms per MiB.
GROWTH_BYTES = 16 * 1024 * 1024


async def return_memory(store: Store) -> None:
    """Return unused memory to the system until the task is cancelled. Without glibc and /proc, return soon."""
    try:
        unused_bytes = _resident_bytes() - store.memory_bytes
    except OSError:  # not Linux
        return
    await asyncio.sleep(INTERVAL_S)
    trim = _trim()
    if trim is None:
        return
    while True:
        now_bytes = _resident_bytes() - store.memory_bytes
        if now_bytes > unused_bytes + GROWTH_BYTES:
            trim(0)
            unused_bytes = _resident_bytes() - store.memory_bytes
        else:
            unused_bytes = min(unused_bytes, now_bytes)
        await asyncio.sleep(INTERVAL_S)


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
