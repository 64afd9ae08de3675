"""The sweep for expired keys. It frees memory in short steps, so that no call waits long.

The sweep's share of the event loop's time grows with the delay: the time since the first of the keys to be removed
expired. If the sweep keeps up, it takes almost no time. At a delay of `FULL_DELAY_MS`, it takes as long as everything
else together. So it keeps up with any rate of writes, although calls arrive all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import thread_time
from typing import Protocol

__all__ = ["STEP_KEYS", "Sweep"]

#: Number of keys that are removed before the clock is read again. `scripts/bench engine` shows that
#: this takes less than a millisecond, even on a slow machine.
STEP_KEYS = 200
#: The delay at which the sweep takes half of the time.
FULL_DELAY_MS = 100
SHARE_MAX = 0.5
#: The longest turn of the sweep, in seconds of processor time. Other calls wait during a turn, but never longer than
#: they waited for the work before it. Two batches of 10,000 keys take 0.1 s, and with a limit below that, a caller that
#: sends such batches would write more keys than the sweep removes.
TURN_MAX_S = 0.25
#: Pause after a turn if no expired keys remain.
INTERVAL_S = 0.05
#: The longest pause, for a key that is written meanwhile and expires soon. The pauses of an idle provider end together
#: (`memory_return`, and the transport's `server`), because waking up costs more than the work of each.
IDLE_S = 0.25


class ExpiringStore(Protocol):
    """The part of a store that the sweep needs."""

    @property
    def overdue_ms(self) -> float: ...

    def sweep(self, keys_max: int, /) -> bool: ...


class Sweep:
    """Removes the expired keys of a store.

    :param clock: returns the processor time of this thread in seconds, so that other processes do not shorten the
        turns; tests use a clock that they control
    """

    def __init__(self, store: ExpiringStore, clock: Callable[[], float] = thread_time) -> None:
        self._store = store
        self._clock = clock
        self._ended_s = clock()

    async def run(self) -> None:
        """Remove expired keys until the task is cancelled. Other tasks run between two turns."""
        loop = asyncio.get_running_loop()
        while True:
            if self.turn():
                await asyncio.sleep(0)
            else:
                due_s = max(INTERVAL_S, self._store.overdue_ms / -1000)
                await asyncio.sleep(min(due_s, IDLE_S - loop.time() % IDLE_S))

    def turn(self) -> bool:
        """Remove expired keys during the sweep's share of the time. Return True if more may remain."""
        began_s = self._clock()
        share = min(SHARE_MAX, SHARE_MAX * max(0.0, self._store.overdue_ms) / FULL_DELAY_MS)
        budget_s = min(TURN_MAX_S, (began_s - self._ended_s) * share / (1 - share))
        while more := self._store.sweep(STEP_KEYS):
            if self._clock() - began_s >= budget_s:
                break
        self._ended_s = self._clock()
        return more
