"""The exports by OTLP: a span for each sampled call, and the log.

sampled call ── Tracer ──> FinishedCall ──> ExportQueue ──> spans (otlp.py) ─────────> collector
log line ── LimitedHandler ──> LogEntry ──> ExportQueue ──> log records (otlp.py) ───> collector
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.observe.export_queue import Export, ExportQueue
from keyvalue_provider.observe.export_settings import LOGS, TRACES, ExportSettings, Signal, export_settings
from keyvalue_provider.observe.log import LogEntry, export_log
from keyvalue_transport.nats.tracing import FinishedCall, Tracer

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Exports", "exports_of"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Time limit for importing OpenTelemetry after a start that has failed. It takes 0.3 s on a machine without other load.
OPENING_TIMEOUT_S = 10.0
#: The consequence if a signal cannot be exported.
CONSEQUENCES = {TRACES: "calls are not traced", LOGS: "the log is not exported"}


class Exports:
    """The signals that are exported.

    :param spans: the queue of sampled calls; None if calls are not traced
    :param entries: the queue of the log's lines; None if the log is not exported
    :ivar tracer: notes sampled calls; None if calls are not traced
    """

    def __init__(self, spans: ExportQueue[FinishedCall] | None, entries: ExportQueue[LogEntry] | None) -> None:
        self.tracer = None if spans is None else Tracer(spans.add)
        self._spans = spans
        self._entries = entries
        self._queues: list[ExportQueue[Any]] = [queue for queue in (spans, entries) if queue is not None]
        if entries is not None:
            export_log(lambda entry: None if entries.is_current else entries.add(entry))

    def start(self) -> None:
        """Begin to export, after the start."""
        for queue in self._queues:
            queue.start()

    def stop(self) -> None:
        """Export the last spans, and no more."""
        if self._spans is not None:
            self._spans.stop()

    async def wait_stopped(self, timeout_s: float) -> None:
        """Wait until the last spans are exported. Then export the last lines of the log, and no more."""
        ends_s = monotonic() + timeout_s
        if self._spans is not None:
            await self._spans.wait_stopped(timeout_s)
        if self._entries is not None:
            self._entries.stop()
            await self._entries.wait_stopped(ends_s - monotonic())

    def close(self, timeout_s: float) -> None:
        """Export the log of a start that has failed. The log is not exported any more."""
        if self._entries is not None:
            export_log(None)
            if not self._entries.is_stopping:
                self._entries.stop()
                self._entries.wait(timeout_s, OPENING_TIMEOUT_S)

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics of the signals."""
        for queue in self._queues:
            yield from queue.metrics()


def exports_of(host_data: HostData | None, environment: Mapping[str, str]) -> Exports:
    """Return the exports that the host or the variables ask for. If one is not possible, log why."""
    return Exports(
        _queue(TRACES, host_data, environment, _span_export), _queue(LOGS, host_data, environment, _log_export)
    )


def _queue(
    signal: Signal,
    host_data: HostData | None,
    environment: Mapping[str, str],
    open_export: Callable[[ExportSettings, str], Export[T]],
) -> ExportQueue[T] | None:
    settings = _settings(signal, {} if host_data is None else host_data.otel_config, environment)
    if settings is None:
        return None
    instance_id = "" if host_data is None else host_data.instance_id
    return ExportQueue(signal, settings, partial(open_export, settings, instance_id))


def _span_export(settings: ExportSettings, instance_id: str) -> Export[FinishedCall]:
    from keyvalue_provider.observe.otlp import SpanExport

    return SpanExport(settings, instance_id)


def _log_export(settings: ExportSettings, instance_id: str) -> Export[LogEntry]:
    from keyvalue_provider.observe.otlp import LogExport

    return LogExport(settings, instance_id)


def _settings(signal: Signal, otel_config: Mapping[str, Any], environment: Mapping[str, str]) -> ExportSettings | None:
    """Return the settings of a signal that is asked for and can be exported. Otherwise log why, or return None."""
    try:
        settings = export_settings(signal, otel_config, environment)
    except ValueError as error:
        log.error("%s; %s", error, CONSEQUENCES[signal])
        return None
    if settings is None:
        return None
    if not _is_installed(settings.protocol):
        log.warning(
            "%s, because OpenTelemetry is missing: "
            "install the Python package with `pip install 'keyvalue-inmemory[otel]'`",
            CONSEQUENCES[signal],
        )
        return None
    log.info("%s go to %s by %s", signal.entries, settings.place, settings.protocol)
    return settings


def _is_installed(protocol: str) -> bool:
    try:
        return find_spec(f"opentelemetry.exporter.otlp.proto.{protocol}") is not None and (
            find_spec("opentelemetry.sdk") is not None
        )
    except ModuleNotFoundError:  # a parent package is missing
        return False
