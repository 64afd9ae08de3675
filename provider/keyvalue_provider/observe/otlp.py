"""Spans and log records for OpenTelemetry, and their export by OTLP.

Only this module imports OpenTelemetry, in the exporting threads.

The names of attributes are those of OpenTelemetry's semantic conventions 1.37 for RPC and for databases. A span
holds neither keys nor values nor the bucket's name, because these are a component's data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from ssl import create_default_context
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from keyvalue_provider.observe.export_settings import GRPC, ExportSettings
from keyvalue_provider.observe.log import LogEntry
from keyvalue_transport.keyvalue.outcomes import ACCESS_DENIED, NO_SUCH_STORE, OTHER, OUTCOMES
from keyvalue_transport.nats.tracing import FinishedCall, new_span_id

if TYPE_CHECKING:
    from grpc import ChannelCredentials
    from requests import Session

__all__ = ["LogExport", "SpanExport", "log_record_of", "span_of"]

NAME = "keyvalue-inmemory"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
#: The first bytes of a result that is an error (transport/.../keyvalue/interface.py), and the name of the error.
ERRORS = {
    b"\x01\x00": OUTCOMES[NO_SUCH_STORE],
    b"\x01\x01": OUTCOMES[ACCESS_DENIED],
    b"\x01\x02": OUTCOMES[OTHER],
}
#: The severity of each level of the log.
SEVERITIES = {
    "DEBUG": SeverityNumber.DEBUG,
    "INFO": SeverityNumber.INFO,
    "WARN": SeverityNumber.WARN,
    "ERROR": SeverityNumber.ERROR,
}
#: A valid traceparent. A caller may send any text.
TRACEPARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
UNSET, FAILED = Status(StatusCode.UNSET), Status(StatusCode.ERROR)


class SpanExport:
    """An exporter of spans by OTLP over HTTP or gRPC. OpenTelemetry's exporter retries, and reads OTEL_* variables."""

    def __init__(self, settings: ExportSettings, instance_id: str) -> None:
        self._resource = _resource_of(instance_id)
        self._scope = InstrumentationScope(NAME, version(NAME), SCHEMA_URL)
        self._exporter: SpanExporter
        if settings.protocol == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

            self._exporter = GrpcExporter(settings.endpoint, credentials=_credentials_of(settings))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

            self._exporter = HttpExporter(settings.endpoint, session=_session_of(settings))

    def __call__(self, calls: Sequence[FinishedCall], /) -> bool:
        """Export a batch. Return False if the collector has not taken it, after retries."""
        spans = [span_of(call, self._resource, self._scope) for call in calls]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Release the connection."""
        self._exporter.shutdown()


class LogExport:
    """An exporter of the log by OTLP over HTTP or gRPC."""

    def __init__(self, settings: ExportSettings, instance_id: str) -> None:
        self._resource = _resource_of(instance_id)
        self._exporter: LogRecordExporter
        if settings.protocol == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter

            self._exporter = GrpcExporter(settings.endpoint, credentials=_credentials_of(settings))
        else:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter

            self._exporter = HttpExporter(settings.endpoint, session=_session_of(settings))

    def __call__(self, entries: Sequence[LogEntry], /) -> bool:
        """Export a batch. Return False if the collector has not taken it, after retries."""
        records = [log_record_of(entry, self._resource) for entry in entries]
        return self._exporter.export(records) is LogRecordExportResult.SUCCESS

    def close(self) -> None:
        """Release the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _session_of(settings: ExportSettings) -> Session | None:
    """Return a session that also trusts the authorities of the settings. None for the exporter's own session."""
    if not settings.authorities:
        return None
    import requests
    from requests.adapters import HTTPAdapter

    context = create_default_context(cadata=settings.authorities)  # the adapter adds the usual authorities

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
            super().init_poolmanager(*arguments, **named, ssl_context=context)

    session = requests.Session()
    session.mount("https://", Adapter())
    return session


def _credentials_of(settings: ExportSettings) -> ChannelCredentials | None:
    """Return what gRPC needs to trust also the authorities of the settings. None for what the exporter chooses itself."""
    if not settings.authorities:
        return None
    from grpc import ssl_channel_credentials
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    certificate, client_key, client_certificate = settings.tls
    return ssl_channel_credentials(
        Path(certificate or DEFAULT_CA_BUNDLE_PATH).read_bytes() + b"\n" + settings.authorities.encode(),
        Path(client_key).read_bytes() if client_key else None,
        Path(client_certificate).read_bytes() if client_certificate else None,
    )


def _resource_of(instance_id: str) -> Resource:
    """Return what produces the spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our values."""
    own = {"service.name": NAME, "service.version": version(NAME)}
    if instance_id:
        own["service.instance.id"] = instance_id
    return Resource.create(own).merge(OTELResourceDetector().detect())


def span_of(call: FinishedCall, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """Return the span of a call. Its parent is the span of the caller, or of the call that has caused it."""
    _, trace_id, parent_id, flags = call.traceparent.split("-")
    instance, name = call.function
    trace, sampled = int(trace_id, 16), TraceFlags(int(flags, 16))
    attributes = {
        "rpc.system": "wrpc",
        "rpc.service": instance,
        "rpc.method": name,
    }
    if not call.is_outgoing:
        attributes |= {"db.system.name": NAME, "db.operation.name": name}
    if call.peer is not None:
        attributes["peer.service"] = _valid(call.peer)
    if error := _error_of(call.outcome):
        attributes["error.type"] = error
    return ReadableSpan(
        f"{instance}/{name}",
        SpanContext(trace, call.span_id or new_span_id(), False, sampled),
        SpanContext(trace, int(parent_id, 16), not call.is_outgoing, sampled),
        resource,
        attributes,
        kind=SpanKind.CLIENT if call.is_outgoing else SpanKind.SERVER,
        status=FAILED if error else UNSET,
        start_time=call.began_ns,
        end_time=max(call.began_ns, call.ended_ns),  # the clock may have been set back
        instrumentation_scope=scope,
    )


def _error_of(outcome: bytes | str) -> str | None:
    """Return the name of the error that a call ended with, or None if it succeeded."""
    return outcome if isinstance(outcome, str) else ERRORS.get(outcome)


def log_record_of(entry: LogEntry, resource: Resource) -> ReadableLogRecord:
    """Return the log record of a line. If the line is about a traced call, the record belongs to the caller's span."""
    context = None
    if found := TRACEPARENT.fullmatch(entry.traceparent or ""):
        trace_id, span_id, flags = (int(part, 16) for part in found.groups())
        context = set_span_in_context(NonRecordingSpan(SpanContext(trace_id, span_id, True, TraceFlags(flags))))
    record = LogRecord(
        timestamp=entry.time_ns,
        observed_timestamp=entry.time_ns,
        context=context,
        severity_text=entry.level,
        severity_number=SEVERITIES.get(entry.level),
        body=_valid(entry.message),
        attributes={} if entry.exception is None else {"exception.stacktrace": _valid(entry.exception)},
    )
    return ReadableLogRecord(record, resource, InstrumentationScope(entry.target))


def _valid(text: str) -> str:
    """Return the text as protobuf needs it, which has only valid UTF-8."""
    return text.encode(errors="replace").decode()
