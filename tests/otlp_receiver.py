"""Collectors for tests: they receive spans and log records by OTLP, over HTTP or gRPC, as a real collector does."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Thread
from typing import Any, NamedTuple

import grpc
import trustme
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.conftest import DEADLINE_S

__all__ = ["Line", "Received", "Receiver", "receiving"]


class Received(NamedTuple):
    """A span, with its ids in hexadecimal and its attributes as a dictionary."""

    name: str
    trace_id: str
    parent_id: str
    span_id: str
    kind: int
    is_error: bool
    duration_ns: int
    attributes: dict[str, str]
    resource: dict[str, str]
    raw: bytes


class Line(NamedTuple):
    """A log record."""

    level: str
    target: str
    message: str
    trace_id: str
    attributes: dict[str, str]
    resource: dict[str, str]


class Receiver:
    """The spans and log records that a collector has received. While `is_open` is not set, it takes requests and answers none."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: set[str] = set()
        self.is_open = Event()
        self.is_open.set()
        self.raw: list[bytes] = []
        self._spans: list[Received] = []
        self._lines: list[Line] = []
        self._changed = Condition()

    def take_lines(self, request: ExportLogsServiceRequest) -> None:
        """Note the log records of a request."""
        assert self.is_open.wait(DEADLINE_S)
        found = [
            Line(
                record.severity_text,
                of_scope.scope.name,
                record.body.string_value,
                record.trace_id.hex(),
                _texts(record.attributes),
                _texts(of_resource.resource.attributes),
            )
            for of_resource in request.resource_logs
            for of_scope in of_resource.scope_logs
            for record in of_scope.log_records
        ]
        with self._changed:
            self._lines += found
            self.raw.append(request.SerializeToString())
            self._changed.notify_all()

    def wait_for_line(self, text: str) -> list[Line]:
        """Return the log records, once one contains the text."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: any(text in line.message for line in self._lines), DEADLINE_S)
            assert is_there, (text, self._lines)
            return list(self._lines)

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Note the spans of a request."""
        assert self.is_open.wait(DEADLINE_S)
        found = [
            Received(
                span.name,
                span.trace_id.hex(),
                span.parent_span_id.hex(),
                span.span_id.hex(),
                span.kind,
                span.status.code == span.status.STATUS_CODE_ERROR,
                span.end_time_unix_nano - span.start_time_unix_nano,
                _texts(span.attributes),
                _texts(of_resource.resource.attributes),
                request.SerializeToString(),
            )
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        with self._changed:
            self._spans += found
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[Received]:
        """Return the spans, once there are as many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._spans) >= count, DEADLINE_S), self._spans
            return list(self._spans)


def _texts(attributes: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in attributes}


@contextmanager
def receiving(protocol: str, authority: trustme.CA | None = None) -> Iterator[Receiver]:
    """Run a collector on a port that the system chooses. The protocol is "http" or "grpc".

    :param authority: signs the certificate of a collector with TLS; None for one without
    """
    receiver = Receiver()
    with (_http if protocol == "http" else _grpc)(receiver, authority):
        yield receiver
        receiver.is_open.set()


@contextmanager
def _http(receiver: Receiver, authority: trustme.CA | None) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            receiver.paths.add(self.path)
            if self.path.endswith("logs"):
                receiver.take_lines(ExportLogsServiceRequest.FromString(body))
                answer = ExportLogsServiceResponse().SerializeToString()
            else:
                receiver.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the provider's end closes the connection

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            receiver.url = receiver.url.replace("http", "https", 1)
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield
        receiver.is_open.set()
        server.shutdown()
        thread.join(DEADLINE_S)


@contextmanager
def _grpc(receiver: Receiver, authority: trustme.CA | None) -> Iterator[None]:
    class Spans(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
            receiver.paths.add("grpc")
            receiver.take(request)
            return ExportTraceServiceResponse()

    class Lines(LogsServiceServicer):
        def Export(self, request: ExportLogsServiceRequest, context: Any) -> ExportLogsServiceResponse:
            receiver.take_lines(request)
            return ExportLogsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Spans(), server)  # type: ignore[no-untyped-call]
    add_LogsServiceServicer_to_server(Lines(), server)  # type: ignore[no-untyped-call]
    if authority is None:
        receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        certificate = authority.issue_cert("127.0.0.1")
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
        receiver.url = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    yield
    receiver.is_open.set()
    server.stop(0).wait(DEADLINE_S)
