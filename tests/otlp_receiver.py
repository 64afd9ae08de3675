"""Collectors for tests: they receive spans by OTLP, over HTTP or gRPC, as a real collector does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Thread
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.conftest import DEADLINE_S

__all__ = ["Received", "Receiver", "receiving"]


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


class Receiver:
    """The spans that a collector has received. While `is_open` is not set, it takes requests and answers none."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: set[str] = set()
        self.is_open = Event()
        self.is_open.set()
        self._spans: list[Received] = []
        self._changed = Condition()

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
def receiving(protocol: str) -> Iterator[Receiver]:
    """Run a collector on a port that the system chooses. The protocol is "http" or "grpc"."""
    receiver = Receiver()
    with (_http if protocol == "http" else _grpc)(receiver):
        yield receiver
        receiver.is_open.set()


@contextmanager
def _http(receiver: Receiver) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            receiver.paths.add(self.path)
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
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield
        receiver.is_open.set()
        server.shutdown()
        thread.join(DEADLINE_S)


@contextmanager
def _grpc(receiver: Receiver) -> Iterator[None]:
    class Servicer(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
            receiver.paths.add("grpc")
            receiver.take(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield
    receiver.is_open.set()
    server.stop(0).wait(DEADLINE_S)
