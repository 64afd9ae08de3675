"""TLS: nats-py upgrades the connection after the server's INFO. Where TLS is required, nothing is sent in clear.

tests/transport/nats/test_tls.py tests what servers offer and which certificates work, and test_credentials.py the
credentials.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from urllib.parse import urlparse

import pytest

from keyvalue_engine import Store
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.store import STORE, encode_set, store_handlers
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.direct.transport import DirectTransport
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.nats.tls import TlsOptions, TlsRefusedError
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError
from tests.conftest import DEADLINE_S, PATHS, NatsServer, in_thread
from tests.log_lines import LogLines
from tests.nats_configs import Authority, user_config

NewServer = Callable[[str], NatsServer]
MAX_PAYLOAD = 100_000
PREFIX = "default.tls"
REFUSED = "TLS is required, and the server has none: nothing was sent to it"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# Required TLS


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """Choose the transport's path, in this process."""
    path: str = request.param
    return path


def options_of(port: int, authority: Authority, path: str) -> ConnectionOptions:
    tls = TlsOptions(authority.ca.read_text())
    return ConnectionOptions((f"nats://u:passw0rd@127.0.0.1:{port}",), path=path, tls=tls, open_timeout_s=DEADLINE_S)


def cipher(connection: Connection) -> object:
    """Return the cipher of the connection, or None in clear."""
    carried = connection._client._transport
    assert isinstance(carried, DirectTransport)
    assert carried._io_writer is not None
    return carried._io_writer.get_extra_info("cipher")


def is_direct(connection: Connection) -> bool:
    """Return True if the direct path reads the connection."""
    carried = connection._client._transport
    assert isinstance(carried, DirectTransport)
    assert carried._io_writer is not None
    return isinstance(carried._io_writer.transport.get_protocol(), DirectProtocol)


@asynccontextmanager
async def serving(connection: Connection) -> AsyncIterator[Store]:
    """Serve a store over a connection."""
    store = Store()
    service = Service(store)
    server = Server(connection, PREFIX)
    server.add(STORE, store_handlers(service, service.parameter_limits))
    await server.start()
    await connection.flush(DEADLINE_S)
    yield store
    await server.stop(DEADLINE_S)


class Middle:
    """A proxy before a NATS server: it passes on what it receives, or answers in clear itself.

    :ivar answer: what it sends in place of the server; None to pass on
    :ivar inject: what it sends after the server's first words
    :ivar heard: all that it received while it answered
    """

    def __init__(self, port: int) -> None:
        self.answer: bytes | None = None
        self.inject = b""
        self.heard = bytearray()
        self.connected = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    @asynccontextmanager
    async def before(cls, port: int) -> AsyncIterator[tuple[Middle, int]]:
        """Open a proxy before a port. Yield it and its own port."""
        middle = cls(port)
        server = await asyncio.start_server(middle._take, "127.0.0.1", 0)
        try:
            yield middle, server.sockets[0].getsockname()[1]
        finally:
            server.close()
            middle.cut()

    def cut(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connected.release()
        with suppress(ConnectionError):
            if self.answer is not None:
                writer.write(self.answer)
                while piece := await reader.read(65536):
                    self.heard += piece
            else:
                await self._pass_on(reader, writer)
        writer.transport.abort()
        self.ended.release()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(server_writer)
        writer.write(await server_reader.readline() + self.inject)
        ways = [asyncio.create_task(self._copy(*way)) for way in ((reader, server_writer), (server_reader, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        server_writer.transport.abort()
        writer.transport.abort()
        await asyncio.wait(ways)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()


def info(**fields: object) -> bytes:
    """Return the first line of a NATS server that requires credentials."""
    known = {"server_id": "A", "version": "2.12.0", "proto": 1, "headers": True, "max_payload": 1_048_576}
    return b"INFO %b \r\n" % json.dumps(known | {"auth_required": True, "nonce": "abcdefgh"} | fields).encode()


def frames() -> bytes:
    """Return invocations that would change the store, under every possible subscription number."""
    subject = invocation_subject(PREFIX, STORE, "set").encode()
    params = encode_set(b"b", b"k", b"forged")
    lines = (b"MSG %b %d _INBOX.forger %d\r\n%b\r\n" % (subject, sid, len(params), params) for sid in range(1, 20))
    return b"".join(lines) + b"PING\r\n"


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_nothing_is_sent_to_a_server_without_tls(path: str, scheme: str, authority: Authority) -> None:
    async with Middle.before(0) as (middle, port):
        middle.answer = info() + frames()
        options = options_of(port, authority, path)
        if scheme == "tls":
            url = options.urls[0].replace("nats:", "tls:")
            options = ConnectionOptions((url,), path=path, open_timeout_s=DEADLINE_S)
        with pytest.raises(ConnectError) as caught:
            await Connection.open(options)
        assert str(caught.value) == f"{scheme}://<redacted>@127.0.0.1:{port}: {REFUSED}"
        await asyncio.wait_for(middle.ended.acquire(), DEADLINE_S)
        assert middle.heard == b""


async def test_one_url_with_tls_requires_it_of_all(path: str, new_nats_server: NewServer, authority: Authority) -> None:
    good = new_nats_server(authority.config())
    async with Middle.before(0) as (middle, port):
        middle.answer = info()
        with pytest.raises(ConnectError, match=REFUSED):
            await Connection.open(ConnectionOptions((f"nats://127.0.0.1:{port}", f"tls://127.0.0.1:{port}"), path=path))
        urls = (f"nats://127.0.0.1:{port}", good.url.replace("nats:", "tls:"))
        connection = await Connection.open(ConnectionOptions(urls, path=path, tls=TlsOptions(str(authority.ca))))
        assert cipher(connection)
        assert connection.server == urls[1]
        await connection.close()
        assert middle.heard == b""


@pytest.mark.parametrize(
    ("path", "greeting"),
    [("direct", info()), ("plain", info()), ("direct", info(tls_required=True)), ("plain", b"")],
    ids=["direct, none", "plain, none", "direct, offered", "plain, silent"],
)
async def test_nothing_is_sent_in_clear_at_a_reconnect(
    path: str, greeting: bytes, new_nats_server: NewServer, authority: Authority, log_lines: LogLines
) -> None:
    """A man in the middle answers the reconnect in clear, offers TLS without a certificate, or stays silent."""
    server = new_nats_server(authority.config() + user_config("u", "passw0rd"))
    async with Middle.before(server.port) as (middle, port):
        connection = await Connection.open(options_of(port, authority, path))
        await asyncio.wait_for(middle.connected.acquire(), DEADLINE_S)
        async with serving(connection) as store:
            store.bucket(b"b").set(b"k", b"kept")
            middle.answer = greeting + frames() if greeting else b""
            middle.cut()
            for _ in range(1 + bool(greeting)):
                await asyncio.wait_for(middle.connected.acquire(), DEADLINE_S)
                with suppress(DisconnectedError):
                    await connection.publish("a.subject", b"never written")
                with suppress(DisconnectedError):
                    await connection.flush(0.05)
                if greeting:
                    await asyncio.wait_for(middle.ended.acquire(), DEADLINE_S)
            middle.answer = None
            middle.cut()
            await log_lines.wait_for("INFO NATS: connected again", 1)
            assert cipher(connection)
            async with KeyValueClient(
                server.url.replace("//", "//u:passw0rd@"), PREFIX, tls=options_of(port, authority, path).tls
            ) as client:
                assert await client.get("b", "k") == b"kept"
        await connection.close()
        # If TLS was offered, its first message arrived, which names only the host.
        assert b"passw0rd" not in middle.heard
        if b'"tls_required": true' in greeting:
            assert re.match(rb"\x16\x03[\x00-\x03]", middle.heard)
            assert not re.search(rb"CONNECT|PING|PONG|S?UB ", middle.heard)
        else:
            assert middle.heard == b""
        if greeting and b'"tls_required": true' not in greeting:
            assert f"WARNING NATS: {REFUSED}; still reconnecting" in log_lines.lines


@pytest.mark.parametrize("routes", [None, DirectRoutes()], ids=PATHS)
async def test_a_transport_writes_nothing_in_clear(routes: DirectRoutes | None) -> None:
    """Do not rely on nats-py, whose flush writes a PING between the connection and TLS."""
    async with Middle.before(0) as (middle, port):
        middle.answer = info()
        carried = DirectTransport(routes, tls_required=True)
        await carried.connect(urlparse(f"nats://127.0.0.1:{port}"), 32768, 2)
        with pytest.raises(TlsRefusedError, match="TLS is required but not established: nothing is sent"):
            carried.write(b"PING\r\n")
        with pytest.raises(TlsRefusedError, match=REFUSED):
            await carried.readline()
        with pytest.raises(TlsRefusedError, match="TLS is required but not established: nothing is sent"):
            carried.writelines([b"CONNECT {}\r\n"])
        await asyncio.wait_for(middle.ended.acquire(), DEADLINE_S)
        assert middle.heard == b""


async def test_waiting_output_is_not_sent_in_clear_at_the_close(
    path: str, new_nats_server: NewServer, authority: Authority
) -> None:
    server = new_nats_server(authority.config() + user_config("u", "passw0rd"))
    async with Middle.before(server.port) as (middle, port):
        connection = await Connection.open(options_of(port, authority, path))
        await asyncio.wait_for(middle.connected.acquire(), DEADLINE_S)
        middle.answer = b""
        middle.cut()
        await asyncio.wait_for(middle.connected.acquire(), DEADLINE_S)
        with pytest.raises(DisconnectedError):
            await connection.publish("a.subject", b"never sent")
        connection._client._pending = [b"PUB a.subject 10\r\nnever sent\r\n"]  # as if nats-py kept it
        connection._client._pending_data_size = 1
        await connection.close()
        for _ in range(2):  # connections, which both end
            await asyncio.wait_for(middle.ended.acquire(), DEADLINE_S)
        assert middle.heard == b""


async def test_bytes_in_clear_before_tls_are_not_handled(
    path: str, new_nats_server: NewServer, authority: Authority, log_lines: LogLines
) -> None:
    server = new_nats_server(authority.config() + user_config("u", "passw0rd"))
    async with Middle.before(server.port) as (middle, port):
        connection = await Connection.open(options_of(port, authority, path))
        async with serving(connection) as store:
            store.bucket(b"b").set(b"k", b"kept")
            middle.inject = frames()
            middle.cut()
            await log_lines.wait_for("INFO NATS: connected again")
            await connection.flush(DEADLINE_S)
            assert cipher(connection)
            assert store.bucket(b"b").get(b"k") == b"kept"
        await connection.close()


# Service over TLS


async def test_it_serves_over_tls(
    path: str, new_nats_server: NewServer, authority: Authority, log_lines: LogLines
) -> None:
    """The server would also accept a connection in clear.

    Values take many messages, and the next connection serves too.
    """
    user = user_config("u", "passw0rd")
    server = new_nats_server(f"max_payload: {MAX_PAYLOAD}\n{authority.config()}allow_non_tls: true\n{user}")
    options = options_of(server.port, authority, path)
    connection = await Connection.open(options)
    url = options.urls[0].replace("nats:", "tls:")
    async with serving(connection):
        for turn in (1, 2):
            assert cipher(connection)
            assert is_direct(connection) is (path == "direct")
            async with KeyValueClient(url, PREFIX, tls=options.tls, timeout_s=DEADLINE_S) as client:
                for size in (0, 64, 10 * MAX_PAYLOAD):
                    value = bytes((number + turn) % 251 for number in range(size))
                    await client.set("b", "k", value)
                    assert await client.get("b", "k") == value
                assert await asyncio.gather(*(client.get("b", "k") for _ in range(8))) == [value] * 8
            if turn == 1:
                await in_thread(server.kill)
                await in_thread(server.start)
                await log_lines.wait_for("INFO NATS: connected again")
    await connection.close()


async def test_discovered_servers_of_a_cluster_are_reached_over_tls(
    path: str, new_nats_server: NewServer, authority: Authority, log_lines: LogLines
) -> None:
    """Use the user of the URL for them too, though the server's announcement names none."""
    config = authority.config() + user_config("u", "passw0rd")
    first = new_nats_server(config + 'cluster { name: c, listen: "127.0.0.1:-1" }\n')
    route = re.search(r"connections on (\S+)", first._process.wait_for("Listening for route"))
    assert route is not None
    second = new_nats_server(f'{config}cluster {{ name: c, listen: "127.0.0.1:-1", routes: ["nats://{route[1]}"] }}\n')
    connection = await Connection.open(options_of(first.port, authority, path))
    await in_thread(second._process.wait_for, "Route connection created")
    async with asyncio.timeout(DEADLINE_S):
        while len(connection._client.servers) < 2:  # news comes before each answer
            await connection.flush(DEADLINE_S)
    await in_thread(first.kill)
    await log_lines.wait_for("INFO NATS: connected again")
    assert connection.server.endswith(f"://127.0.0.1:{second.port}")
    assert cipher(connection)
    await connection.close()


async def test_a_server_whose_certificate_is_not_accepted_is_skipped(
    path: str, new_nats_server: NewServer, authority: Authority
) -> None:
    other = new_nats_server(authority.config("localhost"))
    good = new_nats_server(authority.config() + user_config("u", "passw0rd"))
    options = options_of(other.port, authority, path)
    urls = (*options.urls, *options_of(good.port, authority, path).urls)
    for _ in range(6):  # nats-py begins with any of them
        connection = await Connection.open(replace(options, urls=urls))
        assert connection.server == good.url
        await connection.close()


async def test_a_server_that_requires_tls_first_is_not_reached(
    new_nats_server: NewServer, authority: Authority
) -> None:
    server = new_nats_server(authority.config(more="handshake_first: true, timeout: 0.1"))
    options = ConnectionOptions((server.url,), tls=TlsOptions(str(authority.ca)), open_timeout_s=1.5)
    with pytest.raises(ConnectError, match="before its INFO: handshake_first is not supported"):
        await Connection.open(options)
