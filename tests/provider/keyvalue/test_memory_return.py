"""The return of freed memory: a process that frees every other value gets smaller.

A fresh process does it (`python -m tests.provider.keyvalue.test_memory_return`), since nothing else has left holes in
its memory.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from keyvalue_engine import Store
from keyvalue_provider.keyvalue import memory_return
from keyvalue_provider.keyvalue.memory_return import MemoryReturn

ROOT = Path(__file__).parents[3]
VALUES, VALUE_BYTES = 4_000, 40_000
MIB = 1024 * 1024


async def measure() -> list[float]:
    """Return how much the process has grown, in MiB: when the store is full, when half is deleted, and in the end."""
    store = Store()
    memory_return.INTERVAL_S = 0.01
    start = memory_return._resident_bytes()
    bucket = store.bucket(b"b")
    for number in range(VALUES):
        bucket.set(b"%d" % number, bytes(VALUE_BYTES))
    grown = [memory_return._resident_bytes()]
    returning = asyncio.create_task(MemoryReturn(store, lambda: None).run())
    await asyncio.sleep(0)
    for number in range(0, VALUES, 2):
        bucket.delete(b"%d" % number)
    grown.append(memory_return._resident_bytes())
    for _ in range(1_000):
        await asyncio.sleep(0.01)
        if memory_return._resident_bytes() - start < 1.2 * store.memory_bytes:
            break
    returning.cancel()
    grown.append(memory_return._resident_bytes())
    return [(resident_bytes - start) / MIB for resident_bytes in grown]


def test_the_memory_of_deleted_values_goes_back_to_the_system() -> None:
    command = [sys.executable, "-m", "tests.provider.keyvalue.test_memory_return"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    full, half, end = json.loads(child.stdout)
    assert half == pytest.approx(full, rel=0.1), "freeing alone returns nothing"
    assert end < 0.7 * full, "half is deleted; the trim leaves the parts of pages"


if __name__ == "__main__":
    json.dump(asyncio.run(measure()), sys.stdout)
