"""The HTTP endpoint: /metrics for Prometheus, and /livez and /readyz for health probes.

It runs prometheus-client's WSGI application in the standard library's server, in separate threads. So a scrape delays
the event loop by at most a thread switch. The number of connections is limited. At the limit, a new connection closes
the oldest connection, so a slow client cannot lock out other clients. An idle connection is closed after a timeout.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector

__all__ = ["Endpoint"]

CONNECTIONS_MAX = 16
CONNECTION_TIMEOUT_S = 5.0

StartResponse = Callable[..., Any]


class Endpoint:
    """An HTTP server for a collector's metrics and the health of the process.

    :param ailments: returns the reasons why the process is not ready; an empty list if it is ready
    :param alive: returns True if the process still responds
    """

    def __init__(self, collector: Collector, ailments: Callable[[], list[str]], alive: Callable[[], bool]) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        self._ailments = ailments
        self._alive = alive
        self._server: WSGIServer | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on; 0 before `start`."""
        return 0 if self._server is None else self._server.server_port

    def start(self, host: str, port: int) -> None:
        """Start listening.

        :raises OSError: the address is not available
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = type("Server", (_Server,), {"address_family": family})((host, port), _RequestHandler)
        self._server.set_app(self._answer)
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            # Wake the server's thread, which otherwise checks for a stop only twice a second. Some platforms do not
            # support this shutdown.
            with suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start_response)
                return answer
            case "/livez":
                return _say(start_response, [] if self._alive() else ["the event loop does not answer"])
            case "/readyz":
                return _say(start_response, self._ailments())
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"no such path; the paths are /metrics, /livez and /readyz\n"]


def _say(start_response: StartResponse, ailments: list[str]) -> Iterable[bytes]:
    status = "503 Service Unavailable" if ailments else "200 OK"
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps({"ok": not ailments, "message": "; ".join(ailments) or "serving"}).encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._lock = Lock()  # protects `_open`, which connection threads change too
        self._open: dict[socket.socket, None] = {}  # oldest connection first
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without looking up the host name, because the look-up may query a DNS server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a new thread. At the limit, close the oldest connection."""
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):  # the client is gone
                    oldest.shutdown(socket.SHUT_RDWR)  # the connection's thread then reads the end of the stream
            self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection in this thread, and then forget it."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors from clients that disconnect."""


class _RequestHandler(WSGIRequestHandler):
    timeout = CONNECTION_TIMEOUT_S

    def log_message(self, format: str, *arguments: Any) -> None:
        """Suppress the server's own request log."""
