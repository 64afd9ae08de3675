"""The sweep for expired keys. It frees memory in short steps, so that no call waits long."""

from __future__ import annotations

import asyncio

from keyvalue_engine import Store

__all__ = ["STEP_KEYS", "sweep_expired"]

#: Number of keys in one step. `test_sweep` in bench/micro/test_engine.py shows that a step takes less than a
#: millisecond, even on a slow machine.
STEP_KEYS = 200
#: Pause after a step if more expired keys remain.
PAUSE_S = 0.001
#: Pause after a step if no expired keys remain.
INTERVAL_S = 0.1


async def sweep_expired(store: Store) -> None:
    """Remove expired keys until the task is cancelled. Waiting calls are served between steps."""
    while True:
        more = store.sweep(STEP_KEYS)
        await asyncio.sleep(PAUSE_S if more else INTERVAL_S)
