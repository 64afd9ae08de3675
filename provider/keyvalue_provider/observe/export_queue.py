"""A queue of entries to export, such as spans, and the thread that exports them in batches.

    loop's thread                             thread of the queue
    add ──> queue, at most queue_max ──> batch ──> export (otlp.py) ──> collector

`add` only appends to the queue. If the collector is away or slow, the queue becomes full, and further entries are
dropped and counted. The exporter retries until its own timeout. Then it gives up the batch, which is counted.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import Event, Thread, current_thread
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from keyvalue_provider.observe.export_settings import ExportSettings, Signal

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Export", "ExportQueue"]

log = logging.getLogger(__name__)

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

#: While the thread makes spans, the loop waits for Python's lock at most this long. The default is 5 ms.
SWITCH_INTERVAL_S = 0.0005


class Export(Protocol[T_contra]):
    """The part of `OtlpExport` that this module needs. OpenTelemetry may be missing."""

    def __call__(self, batch: Sequence[T_contra], /) -> bool:
        """Export a batch. Return False if the collector has not taken it."""

    def close(self) -> None:
        """Release the connection."""


class ExportQueue(Generic[T]):
    """The entries of one signal that wait for their export, and the thread that exports them.

    :param open_export: connects to OpenTelemetry; called in the thread, because its imports take 0.3 s
    :ivar exported: number of entries that the collector has taken
    :ivar is_stopping: True after `stop`
    """

    def __init__(self, signal: Signal, settings: ExportSettings, open_export: Callable[[], Export[T]]) -> None:
        self.exported = 0
        self._signal = signal
        self._settings = settings
        self._open_export = open_export
        self._entries: deque[T] = deque()
        self._overflowed = 0  # counted by `add`
        self._failed = 0  # counted by the exporting thread
        self._in_flight = 0  # the same
        self._wake = Event()
        self._opened = Event()
        self.is_stopping = False
        self._thread = Thread(target=self._run, name=signal.name, daemon=True)

    @property
    def dropped(self) -> int:
        """Return the number of entries that were dropped."""
        return self._overflowed + self._failed

    @property
    def is_current(self) -> bool:
        """Return True in the exporting thread."""
        return current_thread() is self._thread

    def add(self, entry: T) -> None:
        """Queue an entry, or drop it if the queue is full. It never waits. Only one thread at a time may call it."""
        waiting = len(self._entries)
        if waiting >= self._settings.queue_max:
            self._overflowed += 1
            return
        self._entries.append(entry)
        if waiting + 1 >= self._settings.batch_max and not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread export what waits, and then end. If it was not started, start it for that."""
        self.is_stopping = True
        self._wake.set()
        if self._entries and self._thread.ident is None:
            self._thread.start()

    def wait(self, timeout_s: float, opening_timeout_s: float = 0.0) -> None:
        """Wait until the thread has ended, up to the timeout.

        :param opening_timeout_s: seconds that the imports may take besides
        """
        if self._thread.ident is not None:
            self._opened.wait(opening_timeout_s)
            self._thread.join(max(0.0, timeout_s))

    async def wait_stopped(self, timeout_s: float) -> None:
        """Wait until the thread has ended, up to the timeout."""
        await asyncio.to_thread(self.wait, timeout_s)
        if left := len(self._entries) + self._in_flight:
            log.warning("%d %s were not exported before the stop", left, self._signal.entries)

    def _run(self) -> None:
        try:
            export = self._open_export()
        except Exception:  # the queue becomes full, and entries are dropped and counted
            log.exception("%s cannot be exported", self._signal.entries)
            return
        finally:
            self._opened.set()
        while not self.is_stopping:
            is_due = not self._wake.wait(self._settings.delay_s)
            self._wake.clear()
            while len(self._entries) >= self._settings.batch_max:
                self._export(export)
            if is_due and self._entries:
                self._export(export)
        while self._entries:
            self._export(export)
        export.close()

    def _export(self, export: Export[T]) -> None:
        count = self._in_flight = min(len(self._entries), self._settings.batch_max)
        batch = [self._entries.popleft() for _ in range(count)]
        try:
            is_taken = export(batch)
        except Exception:  # the thread must go on
            log.exception("%s were not exported", self._signal.entries)
            is_taken = False
        if is_taken:
            self.exported += count
        else:
            self._failed += count
        self._in_flight = 0

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics of this signal."""
        from prometheus_client.core import CounterMetricFamily

        entries = self._signal.entries
        name = f"wrpc_keyvalue_{entries.replace(' ', '_')}"
        yield CounterMetricFamily(
            f"{name}_exported", f"{entries.capitalize()} that the collector has taken.", self.exported
        )
        yield CounterMetricFamily(
            f"{name}_dropped",
            f"{entries.capitalize()} dropped because the collector did not take them in time.",
            self.dropped,
        )
