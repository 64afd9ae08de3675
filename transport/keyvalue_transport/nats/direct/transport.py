"""nats-py's transport over the direct path, and what is known of nats-py's inside.

nats-py is given `DirectTransport` in place of the TcpTransport that it is a subclass of. It still does connect, TLS, credentials, reconnect, drain,
and every subscription that the direct path does not answer, and is never in the middle of a frame.

Invariant: where TLS is required no frame that comes in clear is handled, and nothing is written before TLS is up. Each connection is checked, since
who answers a reconnect may be somebody in the middle.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport

from keyvalue_transport.nats.direct.protocol import HIGH_WATER_BYTES, DirectProtocol
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.tls import TlsRefusedError, require_tls

__all__ = ["NATS_PY_VERSIONS", "DirectTransport", "direct_path_unknown"]

#: Versions of nats-py whose inside the direct path knows, first and last: tests/transport/nats/direct/test_nats_py_contract.py says what it uses of it.
NATS_PY_VERSIONS = ((2, 10), (2, 16))


def direct_path_unknown(installed: str | None = None) -> str | None:
    """Why the direct path can't be used with the nats-py that is installed; None if it can."""
    installed = installed or version("nats-py")
    first, last = NATS_PY_VERSIONS
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if first <= numbers <= last:
        return None
    known = " to ".join(".".join(map(str, number)) for number in NATS_PY_VERSIONS)
    return f"nats-py {installed} is not known to the direct path, known are {known}"


NO_WORD = "the server closed the connection, and did not say why"
NO_GREETING = "the server closed the connection before its INFO: handshake_first is not supported"


class DirectTransport(TcpTransport):
    """nats-py's transport over `DirectProtocol`, or without routes over asyncio's. One object serves all connections of one client.

    :param tls_required: refuse a server that has no TLS, and write nothing in clear
    :param has_certificate: TLS shows one
    """

    def __init__(self, routes: DirectRoutes | None, tls_required: bool = False, has_certificate: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # nats-py's
        self._routes = routes
        self._tls_required, self._has_certificate = tls_required, has_certificate
        self._clear = tls_required  # TLS is required, and not up
        self._info = b""  # the first line of the connection
        self._judged = False  # the server has our certificate to judge, and has said nothing since

    def __bool__(self) -> bool:
        """True from the start: nats-py replaces a transport that is false."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect in clear."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()  # nats-py leaves a connection that the server refused at a reconnect
        self._clear, self._info, self._judged = self._tls_required, b"", False
        loop = asyncio.get_running_loop()
        reader, protocol = self._new_protocol(buffer_size, self._clear)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname or "", uri.port or 4222)
        self._use(reader, protocol, transport)
        # TLS goes over it: a StreamWriter that nobody holds closes its transport.
        self._bare_io_reader, self._bare_io_writer = self._io_reader, self._io_writer

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Go on with TLS; what came in clear behind the server's INFO is lost. `start_tls` does not call connection_made."""
        assert self._io_writer is not None, "connect comes first"
        loop = asyncio.get_running_loop()
        reader, protocol = self._new_protocol(buffer_size, clear=False)
        if self._info and isinstance(protocol, DirectProtocol):
            protocol.follow(self._info)
        clear, name = self._io_writer.transport, uri if isinstance(uri, str) else uri.hostname
        replaced = clear.get_protocol()
        try:
            async with asyncio.timeout(connect_timeout):
                transport = await loop.start_tls(clear, protocol, ssl_context, server_hostname=name)
        except BaseException:
            replaced.connection_lost(None)  # nobody else tells it, and nats-py waits for that
            raise
        assert transport is not None
        protocol.connection_made(transport)
        self._use(reader, protocol, transport)
        self._clear = False

    async def readline(self) -> bytes:
        """A line of the server; of INFO what `require_tls` makes of it. nats-py reads by lines until the server has taken it."""
        with self._judgement():
            line: bytes = await super().readline()  # type: ignore[no-untyped-call] # nats-py's
            if not line and (self._info or self._clear):
                raise ConnectionResetError(NO_WORD if self._info else NO_GREETING)
        self._judged = False
        if not self._info:
            self._info = line
            if self._clear:
                line, self._judged = require_tls(line, self._has_certificate)
        return line

    async def drain(self) -> None:
        """Wait until more may be written."""
        with self._judgement():
            await super().drain()  # type: ignore[no-untyped-call] # nats-py's

    def write(self, payload: bytes) -> None:
        """Write, but never in clear where TLS is required."""
        self._check_tls()
        super().write(payload)  # type: ignore[no-untyped-call] # nats-py's

    def writelines(self, payload: list[bytes]) -> None:
        """Write, but never in clear where TLS is required."""
        if self._clear and self._io_writer is not None:
            self._io_writer.transport.abort()  # at its close nats-py writes what waits, and leaves a connection that fails
        self._check_tls()
        super().writelines(payload)  # type: ignore[no-untyped-call] # nats-py's

    def close(self) -> None:
        """Close, if there was a connection."""
        if self._io_writer is not None:
            super().close()  # type: ignore[no-untyped-call] # nats-py's

    @contextmanager
    def _judgement(self) -> Iterator[None]:
        # Over TLS 1.3 the server's alert about a certificate follows the handshake, and is lost where a write fails before it is read.
        try:
            yield
        except ConnectionError:
            if self._judged and not self._clear:
                raise TlsRefusedError(
                    "the server does not accept the client certificate: it ended the connection"
                ) from None
            raise

    def _check_tls(self) -> None:
        if self._clear:
            raise TlsRefusedError("TLS is required and not up: nothing is sent")

    def _new_protocol(self, buffer_size: int, clear: bool) -> tuple[asyncio.StreamReader, asyncio.StreamReaderProtocol]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=buffer_size, loop=loop)
        if self._routes is None or clear:
            return reader, asyncio.StreamReaderProtocol(reader, loop=loop)
        return reader, DirectProtocol(reader, self._routes, loop)

    def _use(
        self, reader: asyncio.StreamReader, protocol: asyncio.StreamReaderProtocol, transport: asyncio.WriteTransport
    ) -> None:
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._io_reader = reader
        self._io_writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
