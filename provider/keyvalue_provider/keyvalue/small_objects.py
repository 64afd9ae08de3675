"""The allocator of Python's small objects.

Python puts objects of up to 512 bytes into blocks of 1 MiB, and returns a block only when the last of its objects is
gone. So after most keys are deleted, a counter or a timer that was created meanwhile keeps 1 MiB. The C library
returns memory page by page, but takes longer: a get takes 1.1 to 1.2 times as long. So small objects come from the C
library only while the store grows or shrinks fast (`memory_return`).

An object may be freed by either allocator at any time: Python's own `free` and `realloc` pass memory that is outside
the blocks to the C library, as they do with larger objects. So only the functions that allocate are replaced.
"""

from __future__ import annotations

import sys

__all__ = ["SmallObjects"]

#: The domains of Python's C interface, in the order of `PyMemAllocatorDomain`.
RAW, MEM, OBJ = 0, 1, 2


class SmallObjects:
    """Switches the allocator of small objects.

    It does nothing on interpreters other than CPython, on free-threaded builds, and under PYTHONMALLOC, the
    development mode or tracemalloc, which have allocators of their own.
    """

    def __init__(self) -> None:
        import ctypes  # here, because importing it takes 2 ms, and the provider answers its first call before

        class Allocator(ctypes.Structure):  # PyMemAllocatorEx
            _fields_ = [(name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free")]

        self.uses_malloc = False
        #: For each domain: the usual allocator, and the one that takes memory from the C library.
        self._allocators: dict[int, tuple[Allocator, Allocator]] = {}
        if sys.implementation.name != "cpython" or "t" in sys.abiflags:
            return
        try:
            get, self._set = ctypes.pythonapi.PyMem_GetAllocator, ctypes.pythonapi.PyMem_SetAllocator
        except AttributeError:  # the interpreter does not export its C interface
            return
        get.restype = self._set.restype = None
        found = [Allocator(), Allocator(), Allocator()]
        for domain, allocator in enumerate(found):
            get(domain, ctypes.byref(allocator))
        raw = found[RAW]
        if any(each.context is not None for each in found) or raw.malloc in (found[MEM].malloc, found[OBJ].malloc):
            return
        for domain in (MEM, OBJ):
            usual = found[domain]
            self._allocators[domain] = usual, Allocator(None, raw.malloc, raw.calloc, usual.realloc, usual.free)

    @property
    def has_choice(self) -> bool:
        """True if this object does anything."""
        return bool(self._allocators)

    def use_malloc(self, uses_malloc: bool) -> None:
        """Take memory for new small objects from the C library, or from Python's blocks. O(1)."""
        if uses_malloc != self.uses_malloc:
            from ctypes import byref

            self.uses_malloc = uses_malloc
            for domain, allocators in self._allocators.items():
                self._set(domain, byref(allocators[uses_malloc]))
