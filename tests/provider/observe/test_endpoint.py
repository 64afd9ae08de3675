"""The HTTP endpoint in one process: its responses, silent connections, malformed requests, start and stop."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from keyvalue_provider.health import Health
from keyvalue_provider.observe import endpoint as endpoint_module
from keyvalue_provider.observe.endpoint import CONNECTIONS_MAX, Endpoint
from tests.conftest import DEADLINE_S


class Seven(Collector):
    """A collector of one number."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("wonders", "Wonders of the world.", 7)


class Served(NamedTuple):
    """An endpoint on a port of the loopback address, and the health that it reports."""

    endpoint: Endpoint
    health: Health

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """Return the status and the body."""
        status, _, body = self.ask(path, method, **headers)
        return status, body

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Return the status, the content type and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.endpoint.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read().decode()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Open a connection that sends nothing."""
        return socket.create_connection(("127.0.0.1", self.endpoint.port), DEADLINE_S)


@pytest.fixture
def served() -> Iterator[Served]:
    health = Health([], [], [])
    endpoint = Endpoint(Seven(), lambda: health, lambda: "dead" not in health.ailments)
    endpoint.start("127.0.0.1", 0)
    yield Served(endpoint, health)
    endpoint.stop()


def test_paths(served: Served) -> None:
    status, text = served.get("/metrics")
    assert status == 200
    assert "\nwonders 7.0\n" in text
    assert "\nprocess_cpu_seconds_total " in text
    assert served.get("/livez") == (200, '{"ok": true, "message": "alive"}\n')
    assert served.get("/readyz") == (200, '{"ok": true, "message": "serving"}\n')
    status, paths = served.get("/")
    assert status == 200
    assert [line.split()[0] for line in paths.splitlines()] == ["/metrics", "/livez", "/readyz"]
    assert served.get("/other") == (404, f"no such path\n{paths}")


def test_faults_are_named(served: Served) -> None:
    served.health.unusable.append("link l is unusable")
    served.health.remarks.append("look at x")
    assert served.get("/readyz") == (200, '{"ok": true, "message": "link l is unusable; look at x"}\n')
    served.health.ailments.extend(("one", "another"))
    message = "one; another; link l is unusable; look at x"
    assert served.get("/readyz") == (503, f'{{"ok": false, "message": "{message}"}}\n')
    assert served.get("/livez")[0] == 200, "a restart mends none of these"
    served.health.ailments.append("dead")
    assert served.get("/livez") == (503, '{"ok": false, "message": "the event loop does not answer"}\n')


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/other"])
def test_head_gets_what_get_gets_without_the_body(served: Served, path: str) -> None:
    status, kind, body = served.ask(path)
    assert body
    assert served.ask(path, "HEAD") == (status, kind, "")


@given(
    st.lists(
        st.sampled_from(
            [
                "text/plain",
                "application/openmetrics-text",
                "*/*",
                "version=",
                "q=",
                "escaping=",
                ";",
                ",",
                "=",
                "x",
                "1.0.0",
                "0.5",
                " ",
            ]
        ),
        max_size=9,
    ).map("".join)
)
@example("text/plain;version=x")
@example("application/openmetrics-text;version=2.x")
def test_any_accept_header_is_answered(accept: str) -> None:
    answers: list[str] = []
    environ = {"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET", "HTTP_ACCEPT": accept}
    endpoint = Endpoint(Seven(), lambda: Health([], [], []), lambda: True)
    body = b"".join(endpoint._answer(environ, lambda status, headers: answers.append(status)))
    assert answers == ["200 OK"]
    assert b"\nwonders 7.0\n" in body


def test_idle_connections_make_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module._RequestHandler, "timeout", 3600)  # no connection ends by itself
    idle = []
    for _ in range(4):
        idle += [served.connect() for _ in range(CONNECTIONS_MAX // 2)]
        assert served.get("/livez")[0] == 200
    for connection in idle[: CONNECTIONS_MAX + 1]:  # there is room for the others next to the scrape
        assert connection.recv(1) == b""
    assert served.get("/metrics")[0] == 200
    for connection in idle:
        connection.close()


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"", b""),
        (b"GET", b"Error code: 400"),
        (b"GET /" + b"a" * 70_000, b""),  # the response may be lost with the unread request
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"Error code: 505"),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200, b""),
    ],
)
def test_a_malformed_request_is_refused_without_a_log_line(
    served: Served, capfd: pytest.CaptureFixture[str], request_bytes: bytes, answer: bytes
) -> None:
    with served.connect() as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        with suppress(ConnectionResetError):  # it is not read to its end
            while piece := connection.recv(4096):
                found += piece
    assert answer in found
    assert served.get("/livez")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_in_use(served: Served) -> None:
    second = Endpoint(Seven(), lambda: Health([], [], []), lambda: True)
    with pytest.raises(OSError, match="Address already in use"):
        second.start("127.0.0.1", served.endpoint.port)
    assert second.port == 0
    second.stop()  # there is nothing to stop
    assert served.get("/livez")[0] == 200


def test_stop_wakes_the_thread_that_listens() -> None:
    """The thread checks for a stop once an hour, so a stop that does not wake it ends by the test's timeout."""
    endpoint = Endpoint(Seven(), lambda: Health([], [], []), lambda: True)
    endpoint.start("127.0.0.1", 0)
    address = ("127.0.0.1", endpoint.port)
    socket.create_connection(address).close()
    endpoint.stop()
    assert endpoint.port == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_ipv6() -> None:
    endpoint = Endpoint(Seven(), lambda: Health([], [], []), lambda: True)
    try:
        endpoint.start("::1", 0)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    connection = http.client.HTTPConnection("::1", endpoint.port, timeout=DEADLINE_S)
    connection.request("GET", "/livez")
    assert connection.getresponse().status == 200
    connection.close()
    endpoint.stop()
