"""A socket that keeps the written bytes, and the messages that a server sends to it."""

from __future__ import annotations

import asyncio

from bench.load.case import Load
from bench.load.generator_base import Generator
from bench.load.wire import NatsProtocol
from keyvalue_transport.keyvalue.interface import ParameterLimits

INBOX = b"_INBOX.client"
MAX_PAYLOAD = 1024
INFO = b'INFO {"max_payload": 1024}\r\n'
LIMITS = ParameterLimits()


def load_of(**fields: object) -> Load:
    return Load(url="nats://127.0.0.1:1", prefix="default.kv", **fields)  # type: ignore[arg-type]


class Socket(asyncio.Transport):
    """A socket that keeps the written bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


def connected(protocol: NatsProtocol) -> Socket:
    """Return the socket of a protocol that a server has greeted."""
    socket = Socket()
    protocol.connection_made(socket)
    protocol.data_received(INFO + b"PONG\r\n")
    return socket


def answer(generator: Generator, number: int, result: bytes) -> bytes:
    """Return a server's answer to a call. A large result comes in pieces."""
    reply = b"%b.%d" % (generator.inbox, number)
    frames = [b"MSG %b 1 _INBOX.server.%d 0\r\n\r\n" % (reply, number)]
    for at in range(0, len(result), MAX_PAYLOAD):
        piece = result[at : at + MAX_PAYLOAD]
        frames.append(b"MSG %b.results 1 %d\r\n%b\r\n" % (reply, len(piece), piece))
    frames.append(b"MSG %b.results 1 0\r\n\r\n" % reply)
    return b"".join(frames)


def answers(generator: Generator, result: bytes, calls: int) -> bytes:
    """Return a server's answers to the first calls, all with the same result."""
    return b"".join(answer(generator, number, result) for number in range(calls))


def invocation(number: int, call: int, params: bytes) -> bytes:
    """Return a call as the server passes it on."""
    block = b"NATS/1.0\r\n\r\n"
    sizes = b"%d %d" % (len(block), len(block) + len(params))
    return b"HMSG some.subject %d _INBOX.c.%d %b\r\n%b%b\r\n" % (number, call, sizes, block, params)
