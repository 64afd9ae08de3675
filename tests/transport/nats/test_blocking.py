"""The blocking client: it gives the results of `KeyValueClient`, or makes way before anything is executed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.blocking import BlockingClient, BlockingConnection, GiveWayError
from keyvalue_transport.wrpc.errors import InvocationTimeoutError, NoProviderError, TransportError
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider

INFO = b'INFO {"max_payload": 1048576}\r\n'


@pytest.fixture(scope="module")
def path() -> None:
    """Use only the default path, since nothing here depends on it."""


def result(coroutine: Any) -> Any:
    """Return the result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it suspended")


@contextmanager
def connected(url: str, prefix: str, headers: dict[str, str] | None = None) -> Iterator[BlockingClient]:
    with BlockingConnection(url, DEADLINE_S) as connection:
        yield BlockingClient(connection, prefix, headers or {}, DEADLINE_S)


def test_each_function(nats_server: NatsServer, provider: Provider, bucket: str) -> None:
    large = bytes(range(256)) * 20_000  # parameters and results of several messages
    with connected(nats_server.url, provider.prefix) as client:
        assert result(client.set(bucket, "ключ", b"v")) is None
        assert result(client.get(bucket, "ключ")) == b"v"
        assert result(client.get(bucket, "none")) is None
        assert result(client.exists(bucket, "ключ")) is True
        assert result(client.set(bucket, "large", large)) is None
        assert result(client.get(bucket, "large")) == large
        assert result(client.increment(bucket, "n", 3)) == 3
        assert result(client.set_many(bucket, {"a": large, "b": b""})) is None
        assert result(client.get_many(bucket, ["a", "none", "b"])) == [large, None, b""]
        assert result(client.delete_many(bucket, ["a", "large"])) is None
        assert result(client.delete(bucket, "n")) is None
        assert {*result(client.list_keys(bucket)).keys} == {"ключ".encode(), b"b"}
        with pytest.raises(OtherError, match="key_bytes_max"):
            result(client.set(bucket, "k" * 65_537, b""))


def test_headers_and_missing_providers(launch: Launch, nats_server: NatsServer) -> None:
    link = {"source_id": "component", "target": "linked", "target_config": {"bucket": "own"}}
    provider = launch({"require_link": "true"}, provider_key="linked", link_definitions=[link])
    with connected(nats_server.url, provider.prefix, {"source-id": "component", "link-name": "default"}) as client:
        assert result(client.set("b", "k", b"v" * 2_000_000)) is None
        assert result(client.get("other", "k")) == b"v" * 2_000_000, "the link names one bucket"
    with connected(nats_server.url, "default.nobody") as client, pytest.raises(NoProviderError, match="nobody serves"):
        result(client.get("b", "k"))


def test_it_makes_way(new_nats_server: Callable[[str], NatsServer]) -> None:
    """Another client then says what is wrong, or does what this one cannot do."""
    user = '{ user: u, password: "p:/@", permissions: { publish: "nothing" } }'
    server = new_nats_server(f"authorization {{ users: [{user}] }}")
    for login, error in (("", "Authorization"), ("u:wrong@", "Authorization")):
        with pytest.raises(GiveWayError, match=error):
            BlockingConnection(server.url.replace("//", f"//{login}"), DEADLINE_S)
    with (
        connected(server.url.replace("//", "//u:p%3A%2F%40@"), "default.kv") as client,
        pytest.raises(GiveWayError, match="Permissions Violation for Publish"),
    ):
        result(client.set("b", "k", b"v"))
    with pytest.raises(GiveWayError, match="TLS"):
        BlockingConnection("tls://127.0.0.1:4222", DEADLINE_S)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(GiveWayError, match="refused"):
            BlockingConnection(f"nats://127.0.0.1:{bound.getsockname()[1]}", DEADLINE_S)


@contextmanager
def scripted(*answers: bytes) -> Iterator[str]:
    """Serve one connection: send each answer when something arrives, the first at once. Then close. Yield the URL."""

    def serve() -> None:
        with listener.accept()[0] as peer:
            peer.settimeout(DEADLINE_S)
            for number, answer in enumerate(answers):
                if number:
                    peer.recv(65536)
                peer.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        thread = Thread(target=serve)
        thread.start()
        yield f"nats://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    "answers",
    [
        (b"",), (b"HTTP/1.1 400 Bad Request\r\n\r\n",), (b"INFO {\r\n",), (b"INFO []\r\n",), (b"INFO {}",), (b'INFO {"max_payload": null}\r\n',), (b"MSG a 1 0\r\n\r\n",),
        (b'INFO {"tls_required": true}\r\n',), (INFO, b"-ERR 'Authorization Violation'\r\n"), (b"x" * 70_000,), (INFO, b""),
    ],
)  # fmt: skip
def test_a_server_that_does_not_accept_it(answers: tuple[bytes, ...]) -> None:
    with scripted(*answers) as url, pytest.raises(GiveWayError):
        BlockingConnection(url, DEADLINE_S)


@pytest.mark.parametrize("answer", [
        b"", b"MSG ", b"-ERR 'Stale Connection'\r\n", b"MSG a 1 5\r\nabc", b"MSG a 1 x\r\n", b"MSG\r\n",
        b"MSG a 1 99999999999\r\n", b"HMSG a 1 9 5\r\n", b"MSG \xff 1 0\r\n\r\n",
    ])  # fmt: skip
def test_a_connection_that_is_lost_during_a_call(answer: bytes) -> None:
    with (
        scripted(INFO, b"PONG\r\n", answer) as url,
        connected(url, "default.kv") as client,
        pytest.raises(TransportError, match=r"the connection was lost .*; the provider may have executed the call"),
    ):
        result(client.set("b", "k", b"v"))


def test_no_result_in_time(nats_server: NatsServer) -> None:
    with socket.create_connection(("127.0.0.1", nats_server.port), DEADLINE_S) as listener:
        listener.sendall(b"CONNECT {}\r\nSUB default.silent.> 1\r\nPING\r\n")
        while not listener.recv(65536).endswith(b"PONG\r\n"):
            pass
        with BlockingConnection(nats_server.url, DEADLINE_S) as connection:
            client = BlockingClient(connection, "default.silent", {}, 0.05)
            with pytest.raises(InvocationTimeoutError, match=r"\.get: no result within 0\.05 s"):
                result(client.get("b", "k"))
            with pytest.raises(TimeoutError):
                connection.request("default.silent.health", b"", 0.05)
            with pytest.raises(TimeoutError, match="nobody listens"):
                connection.request("default.nobody.health", b"", DEADLINE_S)


def test_pings_and_stray_messages_during_a_call() -> None:
    noise = (
        b"PING\r\n+OK\r\nINFO {}\r\nMSG _INBOX.other.1.results 1 2\r\nab\r\nHMSG x 1 y 12 14\r\nNATS/1.0\r\n\r\nab\r\n"
    )
    with (
        scripted(INFO, noise + b"PONG\r\n", noise + noise) as url,
        connected(url, "default.kv") as client,
        pytest.raises(TransportError, match="the connection was lost"),
    ):
        result(client.get("b", "k"))
