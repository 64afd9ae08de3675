"""A minimal NATS client for the benchmark's own processes. It keeps the cost of a NATS library out of the figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple, cast

from bench.load.outcome import LoadError

__all__ = ["NatsProtocol", "WireSubscription", "split_address"]


class WireSubscription(NamedTuple):
    """A subject to subscribe to. The id on the wire is the subscription's position in the sequence, counted from 1."""

    subject: bytes
    queue: bytes = b""


def split_address(url: str) -> tuple[str, int]:
    """Return host and port of the URL nats://HOST:PORT."""
    host, port = url.removeprefix("nats://").split(":")
    return host, int(port)


class NatsProtocol(asyncio.Protocol):
    """A connection that subscribes and then passes all bytes to `receive`.

    The future `ended` is done when the connection has ended. It holds an exception if the connection failed.
    """

    transport: asyncio.Transport

    def __init__(self, name: str, subscriptions: Sequence[WireSubscription]) -> None:
        self._name = name
        self._subscriptions = subscriptions
        self._greeting = b""
        self._greeted = False
        self.max_payload = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def serve(self) -> None:
        """Start the work of the subclass. Called after the server has processed the subscriptions."""

    def receive(self, read: bytes) -> None:
        """Process bytes from the server. A read may begin and end anywhere in a frame."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """End the connection with an error."""
        if not self.ended.done():
            self.ended.set_exception(error)
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. Called by asyncio."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from this class

    def data_received(self, read: bytes) -> None:
        """Process the server's greeting, and pass all later bytes to `receive`. Called by asyncio."""
        if self._greeted:
            self.receive(read)
            return
        *lines, self._greeting = (self._greeting + read).split(b"\r\n")
        for line in lines:
            if line.startswith(b"INFO "):
                self._introduce(json.loads(line[5:]))
            elif line.startswith(b"-ERR"):
                self.fail(LoadError(f"the NATS server reports {line.decode(errors='replace')}"))
            elif line == b"PING":
                self.transport.write(b"PONG\r\n")
            elif line == b"PONG":
                self._greeted = True
                self.serve()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail unless `ended` is already done. Called by asyncio."""
        if not self.ended.done():
            self.ended.set_exception(LoadError(f"the NATS connection was lost: {error or 'closed by the server'}"))

    def _introduce(self, info: dict[str, object]) -> None:
        max_payload = info["max_payload"]
        assert isinstance(max_payload, int)
        self.max_payload = max_payload
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "name": self._name}
        lines = [b"CONNECT " + json.dumps(options).encode()]
        for number, (subject, queue) in enumerate(self._subscriptions, 1):
            lines.append(b" ".join(filter(None, (b"SUB", subject, queue, b"%d" % number))))
        self.transport.write(b"\r\n".join((*lines, b"PING", b"")))
