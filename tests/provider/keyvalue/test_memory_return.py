"""The return of freed memory: a process that frees every other value, or all small keys, gets smaller.

A fresh process does it (`python -m tests.provider.keyvalue.test_memory_return NAME`), since nothing else has left holes
in its memory.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvalue_engine import Store
from keyvalue_provider.keyvalue import memory_return
from keyvalue_provider.keyvalue.compaction import Compaction, Copying
from keyvalue_provider.keyvalue.memory_return import MemoryReturn
from keyvalue_provider.keyvalue.small_objects import SmallObjects

ROOT = Path(__file__).parents[3]
VALUES, VALUE_BYTES = 4_000, 40_000
STEPS, STEP_KEYS = 150, 2_000
MIB = 1024 * 1024


async def measure_small_keys() -> list[float]:
    """Return how much the process has grown, in MiB: when the store is full of small keys, and after their deletion.

    Objects that are created meanwhile stay, as counters and timers do.
    """
    store = Store()
    memory_return.INTERVAL_S = 0.01
    bucket = store.bucket(b"b")
    start = memory_return.resident_bytes()
    returning = asyncio.create_task(MemoryReturn(store, lambda: None).run())
    others = []
    for step in range(STEPS):
        await asyncio.sleep(0.02)
        for number in range(step * STEP_KEYS, (step + 1) * STEP_KEYS):
            bucket.set(b"%d" % number, b"v" * (number % 64))
            if not number % 500:
                others += [float(number), b"%d" % number, [number]]
    full = memory_return.resident_bytes()
    for step in range(STEPS):
        await asyncio.sleep(0.02)
        bucket.delete_many([b"%d" % number for number in range(step * STEP_KEYS, (step + 1) * STEP_KEYS)])
    await asyncio.sleep(0.5)
    returning.cancel()
    return [(resident_bytes - start) / MIB for resident_bytes in (full, memory_return.resident_bytes())]


async def measure() -> list[float]:
    """Return how much the process has grown, in MiB: when the store is full, when half is deleted, and in the end."""
    store = Store()
    memory_return.INTERVAL_S = 0.01
    start = memory_return.resident_bytes()
    bucket = store.bucket(b"b")
    for number in range(VALUES):
        bucket.set(b"%d" % number, bytes(VALUE_BYTES))
    grown = [memory_return.resident_bytes()]
    returning = asyncio.create_task(MemoryReturn(store, lambda: None).run())
    await asyncio.sleep(0)
    for number in range(0, VALUES, 2):
        bucket.delete(b"%d" % number)
    grown.append(memory_return.resident_bytes())
    for _ in range(1_000):
        await asyncio.sleep(0.01)
        if memory_return.resident_bytes() - start < 1.2 * store.memory_bytes:
            break
    returning.cancel()
    grown.append(memory_return.resident_bytes())
    return [(resident_bytes - start) / MIB for resident_bytes in grown]


class FixedStore:
    """A store whose size the test sets."""

    memory_bytes = passes = 0

    def __len__(self) -> int:
        return 10 * memory_return.BLOCKS_KEYS_MAX

    def renewals(self) -> Iterator[Copying]:
        self.passes += 1
        return iter(())


def test_small_objects_use_malloc_only_while_memory_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unused memory stays, as if it were not the store's. The store must not become slow or move its keys for ever."""
    store, small_objects = FixedStore(), SmallObjects()
    resident_bytes = 0
    monkeypatch.setattr(memory_return, "resident_bytes", lambda: resident_bytes)
    drops: list[float] = []
    returning, now_s = MemoryReturn(store, lambda: drops.append(now_s)), 0.0
    compaction = Compaction(store, small_objects)

    def uses_malloc(seconds: float) -> bool:
        nonlocal now_s
        end_s = now_s + seconds
        while now_s < end_s:
            now_s += memory_return.INTERVAL_S
            returning._step(now_s, small_objects, compaction, lambda pad: 1)
            if compaction._pass is not None:
                compaction._pass.result()
        return small_objects.uses_malloc

    try:
        assert not uses_malloc(10)
        resident_bytes = store.memory_bytes = 400 * MIB
        assert uses_malloc(0.5), "it grew"
        assert not uses_malloc(1), "it grows no more, and a set takes longer with the C library"
        store.memory_bytes = 100 * MIB
        assert uses_malloc(1), "it shrank"
        assert not uses_malloc(10)
        assert store.passes == len(drops) == 1, "the caches' objects lie between the keys"
        store.memory_bytes = 90 * MIB
        assert uses_malloc(1), "it shrank further"
        assert not uses_malloc(10)
        resident_bytes = 95 * MIB
        assert not uses_malloc(1), "all is returned"
        assert store.passes == 1
    finally:
        small_objects.use_malloc(False)
        compaction.close()


def measured(name: str) -> list[float]:
    command = [sys.executable, "-m", "tests.provider.keyvalue.test_memory_return", name]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    found: list[float] = json.loads(child.stdout)
    return found


def test_the_memory_of_deleted_values_goes_back_to_the_system() -> None:
    full, half, end = measured("values")
    assert half == pytest.approx(full, rel=0.1), "freeing alone returns nothing"
    assert end < 0.7 * full, "half is deleted; the trim leaves the parts of pages"


def test_the_memory_of_deleted_small_keys_goes_back_to_the_system() -> None:
    """Half of it stayed, in the blocks of the objects that were created between the keys."""
    full, end = measured("small keys")
    assert full > 40
    assert end < 16


if __name__ == "__main__":
    json.dump(asyncio.run(measure_small_keys() if sys.argv[1] == "small keys" else measure()), sys.stdout)
