"""Compaction: the keys and values that are left after many deletions move together, so that the gaps become free.

Two threads do it while calls go on, without the event loop, which may be busy for long (`keyvalue_engine.renewal`):

    step() ──> one thread: copy, rest, copy, ... ──> the other thread: replace, which frees the old objects
                     ^───────────────────────────────────────────┘

The C library gives each thread its own area of memory. A pass copies everything from anywhere into the area of the
first thread. Then the threads change roles. So the area of the other thread, which is empty now, takes the next pass,
and no copy fills a gap between old objects.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, sleep
from typing import Protocol

from keyvalue_provider.keyvalue.small_objects import SmallObjects

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
#: Fewer keys are not worth a pass, because they can hardly keep UNUSED_BYTES: a page or two each.
KEYS_MIN = 1_000
#: Many keys are being deleted if the counted memory has fallen by one part in FALL_SHARE in the last FALL_STEPS steps.
FALL_SHARE = 32
FALL_STEPS = 8
#: If a pass did not help, the next one waits until the unused memory has grown, or the counted memory has fallen, by one
#: part in this number.
CHANGE_SHARE = 4


class Copying(Protocol):
    """The part of `keyvalue_engine.renewal.Renewal` that this module needs."""

    def copy(self) -> bool: ...

    def replace(self) -> int: ...


class RenewedStore(Protocol):
    """The part of a store that this module needs."""

    def __len__(self) -> int: ...

    def renewals(self) -> Iterator[Copying]: ...


class Compaction:
    """Moves the keys and values of a store together when much memory is unused."""

    def __init__(self, store: RenewedStore, small_objects: SmallObjects) -> None:
        self._store = store
        self._small_objects = small_objects
        self._threads = [ThreadPoolExecutor(1, f"compaction-{number}") for number in range(2)]
        self._pass: Future[None] | None = None
        self._is_closed = False
        self._counted_bytes: deque[int] = deque(maxlen=FALL_STEPS)  # at the last steps
        self._begun_unused_bytes = 0  # at the beginning of the last pass, until a step has taken note of its end
        # After the last pass, if it did not help: the memory that stayed unused, and the memory that was counted.
        self._noted_unused_bytes = self._noted_counted_bytes = 0

    @property
    def is_running(self) -> bool:
        """True while a pass runs. Small objects must come from the C library then."""
        return self._pass is not None

    def end(self) -> bool:
        """Return True if a pass has ended since the last call.

        :raises Exception: an error of the pass
        """
        ended = self._pass
        if ended is None or not ended.done():
            return False
        self._pass = None
        self._threads.reverse()
        ended.result()
        return True

    def step(self, unused_bytes: int, counted_bytes: int) -> None:
        """Begin a pass if there is reason to, or take note of the memory after one has ended."""
        self._counted_bytes.append(counted_bytes)
        if self._pass is not None:
            return
        if self._begun_unused_bytes:
            has_helped = unused_bytes < self._begun_unused_bytes - self._begun_unused_bytes // CHANGE_SHARE
            self._noted_unused_bytes = 0 if has_helped else unused_bytes
            self._noted_counted_bytes = counted_bytes
            self._begun_unused_bytes = 0
            return
        before_bytes = self._counted_bytes[0]
        is_falling = counted_bytes < before_bytes - before_bytes // FALL_SHARE
        if (
            unused_bytes > UNUSED_BYTES + (2 * counted_bytes if is_falling else counted_bytes // 2)
            and (
                unused_bytes > self._noted_unused_bytes + self._noted_unused_bytes // CHANGE_SHARE
                or counted_bytes < self._noted_counted_bytes - self._noted_counted_bytes // CHANGE_SHARE
            )
            and len(self._store) >= KEYS_MIN
        ):
            self._begun_unused_bytes = unused_bytes
            self._small_objects.use_malloc(True)
            self._pass = self._threads[0].submit(self._run)

    def _run(self) -> None:
        """Move all keys and values, in steps with rests between them."""
        start_s, keys = monotonic(), 0
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            for renewal in self._store.renewals():
                while renewal.copy() and not self._is_closed:
                    sleep(REST_S)
                if self._is_closed:
                    return
                keys += self._threads[1].submit(renewal.replace).result()
                sleep(REST_S)
        finally:
            sys.setswitchinterval(interval_s)
        log.debug("memory was unused between the keys: moved %d keys together in %.2f s", keys, monotonic() - start_s)

    def close(self) -> None:
        """End the pass and the threads. Wait for the step that is running."""
        self._is_closed = True
        for thread in self._threads:
            thread.shutdown()
        if self._pass is not None:
            self._pass.result()
