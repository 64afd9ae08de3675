"""A server for TLS that counts a connection from the start of its handshake.

The servers of asyncio tell nobody of a connection before its handshake has ended. So a client could open any number of
connections, and leave each in its handshake until the timeout.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from typing import Any, Protocol

__all__ = ["Gate", "TlsServer"]

#: The time in which a client must finish the handshake.
HANDSHAKE_TIMEOUT_S = 10.0
#: The time until connections are accepted again, after the system has refused that, for example for lack of files.
RETRY_S = 1.0


class Gate(Protocol):
    """Limits the connections."""

    def begin_handshake(self) -> asyncio.Protocol | None:
        """Return the protocol of a new connection, or None if there are too many connections."""

    def end_handshake(self, protocol: asyncio.Protocol, /) -> None:
        """Take note that a handshake has ended or failed."""


class TlsServer:
    """Accepts connections, and makes their handshakes.

    :ivar sockets: the sockets that listen
    """

    def __init__(self, gate: Gate, context: ssl.SSLContext) -> None:
        self.sockets: list[socket.socket] = []
        self._gate = gate
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int, backlog: int) -> None:
        """Listen on the addresses of a host.

        :raises OSError: an address is not available
        """
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            self._listen(found, backlog)
        except OSError:
            self.close()
            raise
        for listening in self.sockets:
            self._begin(self._accept(listening))

    def _listen(self, found: list[Any], backlog: int) -> None:
        for family, kind, number, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, number)
            self.sockets.append(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(backlog)

    def close(self) -> None:
        """Stop listening, and end the handshakes."""
        for task in self._tasks:
            task.cancel()
        for listening in self.sockets:
            listening.close()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, _ = await self._loop.sock_accept(listening)
            except OSError as failure:
                self._loop.call_exception_handler({"message": "no connection was accepted", "exception": failure})
                await asyncio.sleep(RETRY_S)
                continue
            protocol = self._gate.begin_handshake()
            if protocol is None:
                accepted.close()
            else:
                self._begin(self._shake_hands(protocol, accepted))

    async def _shake_hands(self, protocol: asyncio.Protocol, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except OSError:  # the client speaks no TLS, is too slow, or has gone
            accepted.close()
        finally:
            self._gate.end_handshake(protocol)
