"""Spans for OpenTelemetry, and their export by OTLP. Only this module imports OpenTelemetry, in the exporting thread.

The names of attributes are those of OpenTelemetry's semantic conventions 1.37 for RPC and for databases. A span
holds neither keys nor values nor the bucket's name, because these are a component's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from keyvalue_provider.observe.trace_settings import GRPC, TraceSettings
from keyvalue_transport.keyvalue.outcomes import ACCESS_DENIED, NO_SUCH_STORE, OTHER, OUTCOMES
from keyvalue_transport.nats.tracing import FinishedCall, new_span_id

__all__ = ["OtlpExport", "span_of"]

NAME = "keyvalue-inmemory"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
#: The first bytes of a result that is an error (transport/.../keyvalue/interface.py), and the name of the error.
ERRORS = {
    b"\x01\x00": OUTCOMES[NO_SUCH_STORE],
    b"\x01\x01": OUTCOMES[ACCESS_DENIED],
    b"\x01\x02": OUTCOMES[OTHER],
}
UNSET, FAILED = Status(StatusCode.UNSET), Status(StatusCode.ERROR)


class OtlpExport:
    """An exporter by OTLP over HTTP or gRPC. OpenTelemetry's exporter retries, and reads most OTEL_* variables."""

    def __init__(self, settings: TraceSettings, instance_id: str) -> None:
        self._resource = _resource_of(instance_id)
        self._scope = InstrumentationScope(NAME, version(NAME), SCHEMA_URL)
        self._exporter = _exporter_of(settings)

    def __call__(self, calls: Sequence[FinishedCall], /) -> bool:
        """Export a batch. Return False if the collector has not taken it, after retries."""
        spans = [span_of(call, self._resource, self._scope) for call in calls]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Release the connection."""
        self._exporter.shutdown()


def _exporter_of(settings: TraceSettings) -> SpanExporter:
    if settings.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(settings.endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(settings.endpoint)


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
        attributes["peer.service"] = call.peer.encode(errors="replace").decode()  # protobuf has only valid text
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
