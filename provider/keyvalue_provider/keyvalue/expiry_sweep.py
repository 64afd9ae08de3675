"""The sweep of expired keys. It frees their memory in short steps, so that no call waits for it."""

from __future__ import annotations

import asyncio

from keyvalue_engine import Store

__all__ = ["STEP_KEYS", "sweep_expired"]

#: Keys in one step. A step takes less than a millisecond, even on a slow machine (bench/micro/test_engine.py, sweep).
STEP_KEYS = 200
#: The pause after a step: the first if more keys have expired, otherwise the second.
PAUSE_S = 0.001
INTERVAL_S = 0.1


async def sweep_expired(store: Store) -> None:
    """Remove expired keys until cancelled. Waiting calls are served between two steps."""
    while True:
        more = store.sweep(STEP_KEYS)
        await asyncio.sleep(PAUSE_S if more else INTERVAL_S)
