"""NATS at its least: enough to measure with, so that a NATS library's cost is in what is measured and never in the measure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple, cast

__all__ = ["NatsProtocol", "WireError", "WireSubscription", "split_address"]


class WireError(Exception):
    """The NATS server refused something, or went away."""


class WireSubscription(NamedTuple):
    """What is listened to. Its id on the wire is its place in the sequence, from 1."""

    subject: bytes
    queue: bytes = b""


def split_address(url: str) -> tuple[str, int]:
    """Host and port of a NATS URL.

    >>> split_address("nats://127.0.0.1:4222")
    ('127.0.0.1', 4222)

    :raises ValueError: it is none
    """
    host, _, port = url.rpartition("://")[2].rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError(f"found the URL {url!r}, allowed nats://HOST:PORT")
    return host, int(port)


class NatsProtocol(asyncio.Protocol):
    """Greets a server and subscribes; from then on all bytes go to `receive`. `ended` is done when the connection is over, for good or ill."""

    transport: asyncio.Transport

    def __init__(self, name: str, subscriptions: Sequence[WireSubscription]) -> None:
        self._name = name
        self._subscriptions = subscriptions
        self._greeting = b""
        self._greeted = False
        self.max_payload = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def serve(self) -> None:
        """Called once the server knows the subscriptions."""

    def receive(self, read: bytes) -> None:
        """Bytes from the server, cut anywhere."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """End the connection, with what went wrong."""
        if not self.ended.done():
            self.ended.set_exception(error)
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's word that the connection is there."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, read: bytes) -> None:
        """asyncio's word that bytes came."""
        if self._greeted:
            self.receive(read)
            return
        *lines, self._greeting = (self._greeting + read).split(b"\r\n")
        for line in lines:
            if line.startswith(b"INFO "):
                self._introduce(json.loads(line[5:]))
            elif line.startswith(b"-ERR"):
                self.fail(WireError(f"the NATS server says {line.decode(errors='replace')}"))
            elif line == b"PING":
                self.transport.write(b"PONG\r\n")
            elif line == b"PONG":
                self._greeted = True
                self.serve()

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's word that the connection is over."""
        if not self.ended.done():
            self.ended.set_exception(WireError(f"the NATS connection is lost: {error or 'closed by the server'}"))

    def _introduce(self, info: dict[str, object]) -> None:
        max_payload = info["max_payload"]
        assert isinstance(max_payload, int)
        self.max_payload = max_payload
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "name": self._name}
        lines = [b"CONNECT " + json.dumps(options).encode()]
        for number, (subject, queue) in enumerate(self._subscriptions, 1):
            lines.append(b" ".join(filter(None, (b"SUB", subject, queue, b"%d" % number))))
        self.transport.write(b"\r\n".join((*lines, b"PING", b"")))
