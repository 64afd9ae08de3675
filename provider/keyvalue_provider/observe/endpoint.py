"""The HTTP endpoint: /metrics for Prometheus, /livez and /readyz for whoever watches the process.

prometheus-client's WSGI application behind the standard library's server, in threads of its own: a scrape never holds up the event loop for
longer than a switch of threads. Connections are bounded by number, and by the time in which nothing comes; who is slow on purpose gives way to whoever
comes next.
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
    """Serves a collector's metrics, and the state of the process.

    :param ailments: what keeps the process from serving; ready when there is none
    :param alive: whether the process does its work at all
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
        """The port that is listened on; 0 before `start`."""
        return 0 if self._server is None else self._server.server_port

    def start(self, host: str, port: int) -> None:
        """Listen.

        :raises OSError: the address can't be had
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = type("Server", (_Server,), {"address_family": family})((host, port), _RequestHandler)
        self._server.set_app(self._answer)
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            with suppress(
                OSError
            ):  # wakes the thread, which else looks for a stop twice a second; not on every platform
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
        return [b"found another path, allowed /metrics, /livez and /readyz\n"]


def _say(start_response: StartResponse, ailments: list[str]) -> Iterable[bytes]:
    status = "503 Service Unavailable" if ailments else "200 OK"
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps({"ok": not ailments, "message": "; ".join(ailments) or "serving"}).encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._lock = Lock()  # protects _open, which the threads of connections leave
        self._open: dict[socket.socket, None] = {}  # the oldest first
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without the look-up of the own name, which may ask a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. Where too many connections are open the oldest is ended, so that idle ones keep no scrape out."""
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):  # its client is gone
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end
            self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the thread: answer, and leave."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to tell."""


class _RequestHandler(WSGIRequestHandler):
    timeout = CONNECTION_TIMEOUT_S

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not events of the log."""
