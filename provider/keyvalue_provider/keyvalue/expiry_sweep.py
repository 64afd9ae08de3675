"""Gives back the memory of expired keys, a little at a time, so that no call waits for it."""

from __future__ import annotations

import asyncio

from keyvalue_engine import Store

__all__ = ["STEP_KEYS", "sweep_expired"]

#: Keys of one step: below a millisecond, also on a slow machine (bench/micro/test_engine.py, sweep).
STEP_KEYS = 200
#: The pause between two steps while more keys are due, and the interval at which it looks for them else.
PAUSE_S = 0.001
INTERVAL_S = 0.1


async def sweep_expired(store: Store) -> None:
    """Remove expired keys until it is cancelled. Between two steps every call that waits is served."""
    while True:
        more = store.sweep(STEP_KEYS)
        await asyncio.sleep(PAUSE_S if more else INTERVAL_S)
