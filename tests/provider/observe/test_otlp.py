"""Spans of calls and log records, whatever a caller sends. tests/integration/test_tracing.py exports them to a collector."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from keyvalue_provider.observe.log import HOST_NAMES, LEVELS, LogEntry
from keyvalue_provider.observe.otlp import SEVERITIES, log_record_of, span_of
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_error
from keyvalue_transport.nats.tracing import OUTCOME_BYTES, FinishedCall, Function

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
RESOURCE, SCOPE = Resource({}), InstrumentationScope("scope")


def call(outcome: bytes | str, source_id: str | None = None, ended_ns: int = 2) -> FinishedCall:
    return FinishedCall(f"00-{TRACE_ID}-{PARENT_ID}-01", Function("interface", "get"), source_id, 1, ended_ns, outcome)


@given(
    source_id=st.none() | st.text(max_size=9) | st.just("half of a surrogate pair: \udc80"),
    outcome=st.binary(max_size=OUTCOME_BYTES) | st.just("ValueError"),
    ended_ns=st.integers(0, 3),
)
def test_every_call_can_be_encoded(source_id: str | None, outcome: bytes | str, ended_ns: int) -> None:
    """One call that cannot be encoded would cost the others of its batch. A clock may be set back."""
    sent = encode_spans([span_of(call(outcome, source_id, ended_ns), RESOURCE, SCOPE)])
    (span,) = sent.resource_spans[0].scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert ("peer.service" in {attribute.key for attribute in span.attributes}) is (source_id is not None)


@pytest.mark.parametrize(
    ("error", "name"),
    [(NoSuchStoreError(), "no_such_store"), (AccessDeniedError(), "access_denied"), (OtherError("why"), "other")],
)
def test_an_error_of_the_interface_has_the_name_that_the_metrics_give_it(error: InterfaceError, name: str) -> None:
    span = span_of(call(encode_error(error)[:OUTCOME_BYTES]), RESOURCE, SCOPE)
    assert span.attributes is not None
    assert span.attributes["error.type"] == name
    assert not span.status.is_ok


@pytest.mark.parametrize("outcome", [b"\x00", b"\x00\x00", b"\x00\x01", b""])
def test_a_result_is_no_error(outcome: bytes) -> None:
    span = span_of(call(outcome), RESOURCE, SCOPE)
    assert span.attributes is not None
    assert "error.type" not in span.attributes
    assert span.status.is_ok or span.status.is_unset


@given(
    message=st.text(max_size=9) | st.just("half of a surrogate pair: \udc80"),
    traceparent=st.none() | st.text(max_size=60) | st.just(f"00-{TRACE_ID}-{PARENT_ID}-01") | st.just(f"{0:032}"),
    exception=st.none() | st.text(max_size=9),
    level=st.sampled_from(sorted(SEVERITIES)),
)
def test_every_line_can_be_encoded(message: str, traceparent: str | None, exception: str | None, level: str) -> None:
    entry = LogEntry(1, level, "target", message, traceparent, exception)
    sent = encode_logs([log_record_of(entry, RESOURCE)]).resource_logs[0].scope_logs[0]
    (record,) = sent.log_records
    assert (sent.scope.name, record.severity_text, record.severity_number) == ("target", level, SEVERITIES[level].value)
    assert record.body.string_value == message.encode(errors="replace").decode()
    is_traced = traceparent is not None and TRACE_ID in traceparent
    assert (record.trace_id.hex(), record.span_id.hex()) == ((TRACE_ID, PARENT_ID) if is_traced else ("", ""))
    assert len(record.attributes) == (exception is not None)


def test_every_level_has_a_severity() -> None:
    names = {HOST_NAMES.get(name, name) for name in map(logging.getLevelName, LEVELS.values())}
    assert names == set(SEVERITIES)
