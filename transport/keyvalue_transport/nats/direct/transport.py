"""The direct path's transport for nats-py. It relies on nats-py internals.

`DirectTransport` is a subclass of nats-py's TcpTransport, and replaces it. nats-py still connects, starts TLS,
authenticates, reconnects and drains. nats-py also handles every subscription that has no route. It receives only
complete frames.

Invariant: if TLS is required, no unencrypted frame is handled, and nothing is written before TLS is established. Each
connection is checked, because an attacker may answer a reconnect.
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

from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.direct.read_flow import HIGH_WATER_BYTES
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.tls import TlsRefusedError, require_tls

__all__ = ["NATS_PY_VERSIONS", "DirectTransport", "direct_path_unknown"]

#: The first and last version of nats-py that the direct path supports. The test module
#: tests/transport/nats/direct/test_nats_py_contract.py lists the nats-py internals that the direct path relies on.
NATS_PY_VERSIONS = ((2, 10), (2, 16))


def direct_path_unknown(installed: str | None = None) -> str | None:
    """Return why the direct path does not support the installed nats-py, or None if nats-py is supported."""
    installed = installed or version("nats-py")
    first, last = NATS_PY_VERSIONS
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if first <= numbers <= last:
        return None
    known = " to ".join(".".join(map(str, number)) for number in NATS_PY_VERSIONS)
    return f"the direct path does not support nats-py {installed}, only {known}"


NO_WORD = "the server closed the connection without a reason"
NO_GREETING = "the server closed the connection before its INFO: handshake_first is not supported"


class DirectTransport(TcpTransport):
    """A transport for nats-py that uses `DirectProtocol`. One object serves all connections of a client.

    :param routes: the routes of the direct path; None to use asyncio's StreamReaderProtocol
    :param tls_required: True to refuse a server without TLS, and to write nothing unencrypted
    :param has_certificate: True if we have a client certificate to present to the server
    """

    def __init__(self, routes: DirectRoutes | None, tls_required: bool = False, has_certificate: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # nats-py's
        self._routes = routes
        self._tls_required, self._has_certificate = tls_required, has_certificate
        self._clear = tls_required  # TLS is required, but not established yet
        self._info = b""  # the server's first line
        self._judged = False  # True while the server may still reject our certificate

    def __bool__(self) -> bool:
        """Always return True, because nats-py replaces a transport that is false."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect without TLS. `connect_tls` adds TLS later."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()  # nats-py leaves a refused connection open when it reconnects
        self._clear, self._info, self._judged = self._tls_required, b"", False
        loop = asyncio.get_running_loop()
        reader, protocol = self._new_protocol(buffer_size, self._clear)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname or "", uri.port or 4222)
        self._use(reader, protocol, transport)
        # Keep the writer while TLS uses its transport: a StreamWriter that is garbage-collected closes its transport.
        self._bare_io_reader, self._bare_io_writer = self._io_reader, self._io_writer

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Start TLS. Drop unencrypted bytes that follow the server's INFO."""
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
            replaced.connection_lost(None)  # nothing else calls this method, and nats-py waits for the call
            raise
        assert transport is not None
        protocol.connection_made(transport)  # start_tls does not call this method
        self._use(reader, protocol, transport)
        self._clear = False

    async def readline(self) -> bytes:
        """Return a line from the server while nats-py connects. `require_tls` may change the INFO line."""
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
        """Wait until more can be written."""
        with self._judgement():
            await super().drain()  # type: ignore[no-untyped-call] # nats-py's

    def write(self, payload: bytes) -> None:
        """Write bytes. Raise TlsRefusedError if TLS is required but not established."""
        self._check_tls()
        super().write(payload)  # type: ignore[no-untyped-call] # nats-py's

    def writelines(self, payload: list[bytes]) -> None:
        """Write pieces of bytes. Raise TlsRefusedError if TLS is required but not established."""
        if self._clear and self._io_writer is not None:
            self._io_writer.transport.abort()  # nats-py's `close` leaves the connection open if this write fails
        self._check_tls()
        super().writelines(payload)  # type: ignore[no-untyped-call] # nats-py's

    def close(self) -> None:
        """Close the connection, if any."""
        if self._io_writer is not None:
            super().close()  # type: ignore[no-untyped-call] # nats-py's

    @contextmanager
    def _judgement(self) -> Iterator[None]:
        # In TLS 1.3, the server's alert about our certificate arrives after the handshake. If a write fails before the
        # alert is read, only the failed write is reported.
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
            raise TlsRefusedError("TLS is required but not established: nothing is sent")

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
