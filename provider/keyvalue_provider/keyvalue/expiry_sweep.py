"""The sweep of expired keys. It frees the keys' memory in short steps, so that no call waits long for the sweep."""

from __future__ import annotations

import asyncio

from keyvalue_engine import Store

__all__ = ["STEP_KEYS", "sweep_expired"]

#: Number of keys in one step. A step takes less than a millisecond, even on a slow machine. Measured by `test_sweep`
#: in bench/micro/test_engine.py.
STEP_KEYS = 200
#: The pauses after a step: the first pause if more keys have expired, otherwise the second pause.
PAUSE_S = 0.001
INTERVAL_S = 0.1


async def sweep_expired(store: Store) -> None:
    """Remove expired keys until the task is cancelled. Waiting calls are served between the steps."""
    while True:
        more = store.sweep(STEP_KEYS)
        await asyncio.sleep(PAUSE_S if more else INTERVAL_S)
