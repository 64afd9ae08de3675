"""Gives back the memory of keys that have expired, a little at a time, so that no call waits for it."""

from __future__ import annotations

import asyncio

from keyvalue_engine import Store

__all__ = ["sweep"]

#: Keys of one step: below a millisecond, also on a slow machine (bench/micro/test_engine.py, sweep).
STEP_KEYS = 200
#: Between two steps while more is due; else until the next look.
PAUSE_S = 0.001
INTERVAL_S = 0.1


async def sweep(store: Store) -> None:
    """Sweep for ever. Between two steps every call that waits is served."""
    while True:
        more = store.sweep(STEP_KEYS)
        await asyncio.sleep(PAUSE_S if more else INTERVAL_S)
