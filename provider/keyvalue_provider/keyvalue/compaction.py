"""Compaction: the keys and values that are left after many deletions move together, so that the gaps become free.

Two threads take turns as the one that copies (`keyvalue_engine.renewal`). The C library gives each its own area of
memory. A pass copies everything from anywhere into the area of one thread, which leaves the other's area empty for the
next pass. So no copy fills a gap between old objects.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

__all__ = ["Compaction", "Copying", "RenewedStore"]

log = logging.getLogger(__name__)

#: The interpreter's switch interval during a pass, instead of 5 ms. Without it, each step waits that long for the lock
#: of the interpreter while calls keep coming. New objects fill gaps meanwhile, so a pass must be short.
SWITCH_S = 0.0005
#: The rest after each step, which takes 0.3 to 0.6 ms. So a pass takes less than a third of the time.
REST_S = 0.001
#: A pass begins when this memory and half of the counted memory are unused. While many keys are being deleted, which
#: would make most of its work vain, it begins when this and twice the counted memory are.
UNUSED_BYTES = 8 * 1024 * 1024
#: Many keys are being deleted if the counted memory has fallen by one part in this number since the last step.
FALL_SHARE = 64
#: If a pass did not help, the next one waits until the unused memory has grown, or the counted memory has fallen, by one
#: part in this number.
CHANGE_SHARE = 4


class Copying(Protocol):
    """The part of `keyvalue_engine.renewal.Renewal` that this module needs."""

    def copy(self) -> bool: ...

    def replace(self) -> int: ...


class RenewedStore(Protocol):
    """The part of a store that this module needs."""

    def renewals(self) -> Iterator[Copying]: ...


class Compaction:
    """Moves the keys and values of a store together when much memory is unused."""

    def __init__(self, store: RenewedStore) -> None:
        self._store = store
        self._threads = [ThreadPoolExecutor(1, f"compaction-{number}") for number in range(2)]
        self._pass: asyncio.Task[None] | None = None
        self._counted_bytes = 0  # at the last step
        self._begun_unused_bytes = 0  # at the beginning of the last pass
        # After the last pass, if it did not help: the memory that stayed unused, and the memory that was counted.
        self._noted_unused_bytes = self._noted_counted_bytes = 0

    @property
    def is_running(self) -> bool:
        """True while a pass runs. Small objects must come from the C library then."""
        return self._pass is not None

    @property
    def has_ended(self) -> bool:
        """True from the end of a pass until the next step."""
        return self._pass is not None and self._pass.done()

    def step(self, unused_bytes: int, counted_bytes: int) -> None:
        """Begin a pass if there is reason to. Take note of the memory when one has ended.

        :raises Exception: an error of the last pass
        """
        before_bytes, self._counted_bytes = self._counted_bytes, counted_bytes
        if self._pass is not None:
            if self._pass.done():
                self._pass.result()
                self._pass = None
                has_helped = unused_bytes < self._begun_unused_bytes - self._begun_unused_bytes // CHANGE_SHARE
                self._noted_unused_bytes = 0 if has_helped else unused_bytes
                self._noted_counted_bytes = counted_bytes
            return
        is_falling = counted_bytes < before_bytes - before_bytes // FALL_SHARE
        if (
            unused_bytes > UNUSED_BYTES + (2 * counted_bytes if is_falling else counted_bytes // 2)
            and counted_bytes
            and (
                unused_bytes > self._noted_unused_bytes + self._noted_unused_bytes // CHANGE_SHARE
                or counted_bytes < self._noted_counted_bytes - self._noted_counted_bytes // CHANGE_SHARE
            )
        ):
            self._begun_unused_bytes = unused_bytes
            self._pass = asyncio.create_task(self.run())

    async def run(self) -> None:
        """Move all keys and values, in steps with rests between them. Small objects must come from the C library."""
        loop = asyncio.get_running_loop()
        start_s, keys = loop.time(), 0
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            for renewal in self._store.renewals():
                more = True
                while more:
                    more = await loop.run_in_executor(self._threads[0], renewal.copy)
                    if not more:
                        keys += renewal.replace()
                    await asyncio.sleep(REST_S)
        finally:
            sys.setswitchinterval(interval_s)
        self._threads.reverse()
        log.debug("memory was unused between the keys: moved %d keys together in %.2f s", keys, loop.time() - start_s)

    def close(self) -> None:
        """End the pass and the threads, without waiting for a step that is running."""
        if self._pass is not None:
            self._pass.cancel()
        for thread in self._threads:
            thread.shutdown(wait=False)
