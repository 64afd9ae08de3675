"""Tracing: each sampled call becomes a span, which a thread exports to a collector by OTLP.

    loop's thread                                     thread
    Tracer ── FinishedCall ──> note ──> queue ──> batch ──> spans (otlp.py) ──> collector

`note` only appends to a queue of limited size. If the collector is away or slow, the queue becomes full, and further
calls are dropped and counted. The exporter retries until its own timeout; then it gives up the batch, which is counted.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol

from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.observe.trace_settings import TraceSettings, trace_settings
from keyvalue_transport.nats.tracing import FinishedCall, Tracer

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["NoTracing", "SpanExport", "Tracing", "tracing_of"]

log = logging.getLogger(__name__)

#: While the thread makes spans, the loop waits for Python's lock at most this long. The default is 5 ms.
SWITCH_INTERVAL_S = 0.0005


class SpanExport(Protocol):
    """The part of `OtlpExport` that this module needs. OpenTelemetry may be missing."""

    def __call__(self, calls: Sequence[FinishedCall], /) -> bool:
        """Export a batch. Return False if the collector has not taken it."""

    def close(self) -> None:
        """Release the connection."""


class Tracing:
    """The queue of calls to export, and the thread that exports them.

    :param open_export: connects to OpenTelemetry; called in the thread, because its imports take 0.3 s
    :ivar exported: number of spans that the collector has taken
    """

    def __init__(self, settings: TraceSettings, open_export: Callable[[], SpanExport]) -> None:
        self.tracer = Tracer(self.note)
        self.exported = 0
        self._settings = settings
        self._open_export = open_export
        self._calls: deque[FinishedCall] = deque()
        self._overflowed = 0  # counted by the loop's thread
        self._failed = 0  # counted by the exporting thread
        self._wake = Event()
        self._is_stopping = False
        self._thread = Thread(target=self._run, name="tracing", daemon=True)

    @property
    def dropped(self) -> int:
        """Return the number of spans that were dropped."""
        return self._overflowed + self._failed

    def note(self, call: FinishedCall) -> None:
        """Queue a call, or drop it if the queue is full. It never waits."""
        waiting = len(self._calls)
        if waiting >= self._settings.queue_max:
            self._overflowed += 1
            return
        self._calls.append(call)
        if waiting + 1 >= self._settings.batch_max and not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread export what waits, and then end."""
        self._is_stopping = True
        self._wake.set()

    async def wait_stopped(self, timeout_s: float) -> None:
        """Wait until the thread has ended, up to the timeout."""
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, max(0.0, timeout_s))
        if self._calls:
            log.warning("%d spans were not exported before the stop", len(self._calls))

    def _run(self) -> None:
        try:
            export = self._open_export()
        except Exception:  # the queue becomes full, and calls are dropped and counted
            log.exception("spans cannot be exported")
            return
        while not self._is_stopping:
            is_due = not self._wake.wait(self._settings.delay_s)
            self._wake.clear()
            while len(self._calls) >= self._settings.batch_max:
                self._export(export)
            if is_due and self._calls:
                self._export(export)
        while self._calls:
            self._export(export)
        export.close()

    def _export(self, export: SpanExport) -> None:
        count = min(len(self._calls), self._settings.batch_max)
        calls = [self._calls.popleft() for _ in range(count)]
        try:
            is_taken = export(calls)
        except Exception:  # the thread must go on
            log.exception("spans were not exported")
            is_taken = False
        if is_taken:
            self.exported += count
        else:
            self._failed += count

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics of tracing."""
        from prometheus_client.core import CounterMetricFamily

        yield CounterMetricFamily("wrpc_keyvalue_spans_exported", "Spans that the collector has taken.", self.exported)
        yield CounterMetricFamily(
            "wrpc_keyvalue_spans_dropped",
            "Spans dropped because the collector did not take them in time.",
            self.dropped,
        )


class NoTracing:
    """The same interface, if calls are not traced."""

    tracer: Tracer | None = None

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    async def wait_stopped(self, timeout_s: float) -> None:
        """Do nothing."""

    def metrics(self) -> Iterable[Metric]:
        """Return nothing."""
        return ()


def tracing_of(host_data: HostData | None, environment: Mapping[str, str]) -> Tracing | NoTracing:
    """Return the tracing that the host or the variables ask for. If it is not possible, log why."""
    try:
        settings = trace_settings({} if host_data is None else host_data.otel_config, environment)
    except ValueError as error:
        log.error("%s; calls are not traced", error)
        return NoTracing()
    if settings is None:
        return NoTracing()
    if not _is_installed(settings.protocol):
        log.warning(
            "calls are not traced, because OpenTelemetry is missing: "
            "install the Python package with `pip install 'keyvalue-inmemory[otel]'`"
        )
        return NoTracing()

    def open_export() -> SpanExport:
        from keyvalue_provider.observe.otlp import OtlpExport

        return OtlpExport(settings, "" if host_data is None else host_data.instance_id)

    log.info("sampled calls are traced: spans go to %s by %s", settings.place, settings.protocol)
    return Tracing(settings, open_export)


def _is_installed(protocol: str) -> bool:
    try:
        return find_spec(f"opentelemetry.exporter.otlp.proto.{protocol}") is not None and (
            find_spec("opentelemetry.sdk") is not None
        )
    except ModuleNotFoundError:  # a parent package is missing
        return False
