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
from threading import enumerate as threads
from time import monotonic, thread_time
from zlib import crc32

import pytest

from keyvalue_engine import Bucket, BucketOptions, Store
from keyvalue_engine.renewal import Renewal
from keyvalue_provider.keyvalue import memory_return
from keyvalue_provider.keyvalue.compaction import KEYS_MIN, Compaction
from keyvalue_provider.keyvalue.memory_return import MemoryReturn
from keyvalue_provider.keyvalue.small_objects import SmallObjects

ROOT = Path(__file__).parents[3]
KEYS, KEPT_SHARE = 200_000, 10
ROUNDS = 2
#: The turns of the loop in which the memory must return, and the CPU time that calls take in each of them.
TURNS, OCCUPIED_S = 100, 0.06
MIB = 1024 * 1024


def is_kept(number: int) -> bool:
    return not crc32(b"%d" % number) % KEPT_SHARE


def value(number: int) -> bytes:
    return b"%d" % number * (number % 12)


def is_low(grown: float, counted: float) -> bool:
    """Return True if the process has grown by no more than the counted memory allows. Both are in MiB."""
    return grown < 1.5 * counted + 16


def occupy(buckets: list[Bucket], random: Random) -> None:
    """Call the store for as long as the calls of one read from a busy connection may take."""
    end_s = thread_time() + OCCUPIED_S
    while thread_time() < end_s:
        buckets[random.randrange(3)].set(b"changes", value(random.randrange(10**6)))


async def measure() -> list[tuple[float, float]]:
    """Return the growth of the process and the counted memory, in MiB, each time that most keys have been deleted.

    A third of the keys has a deadline. Calls occupy the loop all the time. Nothing else keeps an object for each key.
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
        for _ in range(TURNS):
            await asyncio.sleep(0)
            occupy(buckets, random)
            grown, counted = (memory_return.resident_bytes() - start) / MIB, store.memory_bytes / MIB
            if is_low(grown, counted):
                break
        found.append((grown, counted))
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
        assert is_low(grown, counted), "without compaction, 37 MiB for 4.6 MiB counted"


@pytest.mark.parametrize("ends_early", [False, True])
def test_a_pass_goes_on_while_the_loop_is_busy_until_it_is_closed(ends_early: bool) -> None:
    store, random, small_objects = Store(), Random(0), SmallObjects()
    bucket = store.bucket(b"b")
    for number in range(KEYS // KEPT_SHARE):
        bucket.set(b"%d" % number, b"value %d" % number)
    values = [bucket.get(b"%d" % number) for number in range(KEYS // KEPT_SHARE)]
    compaction, interval_s = Compaction(store, small_objects), sys.getswitchinterval()
    try:
        compaction.step(100 * MIB, store.memory_bytes)
        assert compaction.is_running
        end_s = monotonic() + 60
        while not ends_early and not compaction.end():
            assert monotonic() < end_s
            occupy([bucket] * 3, random)
    finally:
        compaction.close()
        small_objects.use_malloc(False)
    assert not [thread for thread in threads() if thread.name.startswith("compaction")]
    assert sys.getswitchinterval() == interval_s
    after = [bucket.get(b"%d" % number) for number in range(KEYS // KEPT_SHARE)]
    assert after == values
    moved = sum(new is not old for new, old in zip(after, values, strict=True))
    assert moved < len(values) if ends_early else moved == len(values)
    store.check()


def test_an_error_of_a_pass_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Renewal) -> int:
        raise MemoryError

    store, small_objects = Store(), SmallObjects()
    store.bucket(b"b").set_many({b"%d" % number: b"" for number in range(KEYS_MIN)})
    monkeypatch.setattr(Renewal, "replace", fail)
    compaction = Compaction(store, small_objects)
    try:
        compaction.step(100 * MIB, store.memory_bytes)
        with pytest.raises(MemoryError):
            while not compaction.end():
                pass
    finally:
        compaction.close()
        small_objects.use_malloc(False)


if __name__ == "__main__":
    json.dump(asyncio.run(measure()), sys.stdout)
