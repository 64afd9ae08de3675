"""The HTTP endpoint: /metrics for Prometheus, and /livez and /readyz for health probes.

It runs prometheus-client's WSGI application in the standard library's server, in separate threads. So a scrape delays
the event loop by at most a thread switch. The number of connections is limited. At the limit, a new connection closes
the oldest connection, so a slow client cannot lock out other clients. An idle connection is closed after a timeout.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from keyvalue_provider.health import Health

__all__ = ["Endpoint"]

CONNECTIONS_MAX = 16
CONNECTION_TIMEOUT_S = 5.0
#: The interval at which the server's thread checks for a stop. On Linux, `stop` wakes it.
POLL_S = 3600.0 if sys.platform == "linux" else 0.5
PATHS = """\
/metrics  for Prometheus
/livez    503 if the process is stuck
/readyz   503 if the provider does not serve, and why; also links that are unusable, and remarks
"""

StartResponse = Callable[..., Any]


class Endpoint:
    """An HTTP server for a collector's metrics and the health of the process.

    :param health: returns what is wrong with the process
    :param alive: returns True if the process still responds
    """

    def __init__(self, collector: Collector, health: Callable[[], Health], alive: Callable[[], bool]) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        self._health = health
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
        Thread(target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            # Wake the server's thread, which otherwise checks for a stop only every POLL_S. Only Linux supports this.
            with suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return self._get(environ, start_response)
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self._get({**environ, "REQUEST_METHOD": "GET"}, lambda *begin: begun.append(begin)))
        ((status, headers),) = begun
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return []

    def _get(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                return self._scrape(environ, start_response)
            case "/livez":
                is_alive = self._alive()
                return _say(start_response, is_alive, "alive" if is_alive else "the event loop does not answer")
            case "/readyz":
                health = self._health()
                return _say(start_response, health.is_ready, health.message)
            case "/":
                return _text(start_response, "200 OK", PATHS)
        return _text(start_response, "404 Not Found", "no such path\n" + PATHS)

    def _scrape(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            choose_encoder(environ.get("HTTP_ACCEPT", ""))
        except (
            Exception
        ):  # prometheus-client raises at some values, for example version=x: answer in the default format
            del environ["HTTP_ACCEPT"]
        answer: Iterable[bytes] = self._metrics(environ, start_response)
        return answer


def _text(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode()]


def _say(start_response: StartResponse, is_ok: bool, message: str) -> Iterable[bytes]:
    start_response("200 OK" if is_ok else "503 Service Unavailable", [("Content-Type", "application/json")])
    return [json.dumps({"ok": is_ok, "message": message}).encode() + b"\n"]


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
