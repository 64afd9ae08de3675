"""The sweep: it removes expired keys in steps, and other tasks of the event loop run between two steps."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from keyvalue_engine import Store
from keyvalue_provider.keyvalue.expiry_sweep import STEP_KEYS, sweep_expired
from tests.conftest import DEADLINE_S
from tests.engine.clock import Clock


async def test_expired_keys_are_removed_step_by_step() -> None:
    clock = Clock()
    store = Store(clock=clock)
    bucket = store.bucket(b"b")
    for number in range(3 * STEP_KEYS):
        bucket.set(b"%d" % number, b"v", ttl_ms=1000)
    bucket.set(b"stays", b"v")
    sweeping = asyncio.create_task(sweep_expired(store))
    await asyncio.sleep(0)
    assert len(store) == 3 * STEP_KEYS + 1
    clock.move_ms(1000)
    seen = [len(store)]
    async with asyncio.timeout(DEADLINE_S):
        while seen[-1] > 1:
            await asyncio.sleep(0)
            if len(store) != seen[-1]:
                seen.append(len(store))
    sweeping.cancel()
    assert all(0 < before - after <= STEP_KEYS for before, after in pairwise(seen))
    assert store.expired_keys == 3 * STEP_KEYS
    store.check()
