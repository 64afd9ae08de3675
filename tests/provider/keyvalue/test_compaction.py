"""Compaction: memory that deletions leave in gaps between the keys goes back to the system, while calls go on.

A fresh process does it (`python -m tests.provider.keyvalue.test_compaction`), since nothing else has left gaps in its
memory.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from zlib import crc32

from keyvalue_engine import BucketOptions, Store
from keyvalue_provider.keyvalue import memory_return
from keyvalue_provider.keyvalue.memory_return import MemoryReturn

ROOT = Path(__file__).parents[3]
KEYS, KEPT_SHARE = 200_000, 10
ROUNDS = 2
MIB = 1024 * 1024


def is_kept(number: int) -> bool:
    return not crc32(b"%d" % number) % KEPT_SHARE


def value(number: int) -> bytes:
    return b"%d" % number * (number % 12)


async def measure() -> list[tuple[float, float]]:
    """Return the growth of the process and the counted memory, in MiB, each time that most keys have been deleted.

    A third of the keys has a deadline. Some keys change all the time. Nothing else keeps an object for each key.
    """
    store, random = Store(), Random(0)
    buckets = [store.bucket(b"b", BucketOptions(ttl_ms=ttl_ms)) for ttl_ms in (None, None, 10**9)]
    start = memory_return.resident_bytes()
    returning = asyncio.create_task(MemoryReturn(store, lambda: None).run())
    await asyncio.sleep(3 * memory_return.INTERVAL_S)
    found = []
    for first in range(0, ROUNDS * KEYS, KEYS):
        for number in range(first, first + KEYS):
            buckets[number % 3].set(b"%d" % number, value(number))
            if not number % 3_000:
                await asyncio.sleep(0.001)
        for number in range(first, first + KEYS):
            if not is_kept(number):
                buckets[0].delete(b"%d" % number)
        for _ in range(300):
            await asyncio.sleep(0.01)
            buckets[random.randrange(3)].set(b"changes", value(random.randrange(10**6)))
        found.append(((memory_return.resident_bytes() - start) / MIB, store.memory_bytes / MIB))
    returning.cancel()
    for number in range(ROUNDS * KEYS):
        assert buckets[0].get(b"%d" % number) == (value(number) if is_kept(number) else None)
    store.check()
    return found


def test_the_memory_between_the_keys_that_are_left_goes_back_to_the_system() -> None:
    command = [sys.executable, "-m", "tests.provider.keyvalue.test_compaction"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    for grown, counted in json.loads(child.stdout):
        assert grown < 1.5 * counted + 16, "without compaction, 37 MiB for 4.6 MiB counted"


if __name__ == "__main__":
    json.dump(asyncio.run(measure()), sys.stdout)
