"""The direct path without a socket: one connection of a server. The test makes its reads and takes its writes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from keyvalue_engine import Store
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_set, store_handlers
from keyvalue_transport.nats.direct.answers import FrameReplies
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer, Further
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.nats.tracing import Tracer
from keyvalue_transport.wrpc.handler import Caller, Handler
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Step, Waiting

MIB = 1024 * 1024
INBOX = "_INBOX.server"
NOBODY = "_INBOX.nobody"
RECEIPT = "receipt"  # the token of receipts
RECEIPT_SUBJECT = f"{INBOX}.{RECEIPT}.params"
GET, SET, DELETE, EXISTS, LIST_KEYS, PIECES = range(1, 7)  # routed subscriptions
OTHERS = 77  # one that is not routed
UNIT = b"\x00"
HEADERS = b"NATS/1.0\r\nlink-name: default\r\nsource-id: component\r\n\r\n"
CALLER = Caller("component", "default")

#: Lines that are not frames, so that nothing after them can be read.
MALFORMED_LINES = tuple(
    line + b"\r\n"
    for line in (
        *(b"MSG", b"MSG 5", b"MSG f 5", b"MSG \xff", b"MSG f 1 r more 5"),
        *(b"MSG f 1 r -1", b"MSG f 1 r five", b"MSG f 1 r ", b"MSG f 1 r 1.5"),
        *(b"MSG f 77 r 4294967296", b"MSG f 1 r " + b"9" * 5000),
        *(b"HMSG", b"HMSG f", b"HMSG f 1", b"HMSG f 1 12", b"HMSG f 1 r more 1 12"),
        *(b"HMSG f 1 r 12 11", b"HMSG f 1 r -1 11", b"HMSG f 1 r -2 11", b"HMSG f 1 r -12 11", b"HMSG f 1 r x 11"),
        *(b"HMSG f 1 r 12 -1", b"HMSG f 1 r 4294967296 4294967297"),
    )
)


class Socket:
    """asyncio's transport, with a peer that takes the output when it is told to.

    :param high_water_bytes: output above this pauses the protocol
    """

    def __init__(self, high_water_bytes: int = 2**40) -> None:
        self.protocol: DirectProtocol | None = None
        self.reading = True
        self.aborted = False
        self.buffer: list[bytes] = []
        self.buffer_bytes = self.buffer_bytes_max = 0
        self._high_water_bytes = high_water_bytes
        self._paused = False

    def write(self, frames: bytes, /) -> None:
        self.buffer.append(frames)
        self.buffer_bytes += len(frames)
        self.buffer_bytes_max = max(self.buffer_bytes_max, self.buffer_bytes)
        if self.buffer_bytes > self._high_water_bytes and not self._paused:
            self._paused = True
            assert self.protocol is not None
            self.protocol.pause_writing()

    def take(self) -> bytes:
        """Return all the output, as the peer reads it. Then the protocol may go on."""
        taken = b"".join(self.buffer)
        self.buffer = []
        self.buffer_bytes = 0
        if self._paused:
            self._paused = False
            assert self.protocol is not None
            self.protocol.resume_writing()
        return taken

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.buffer_bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Reader(asyncio.StreamReader):
    """asyncio's StreamReader, which records the pieces that it is fed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=64 * 1024, loop=loop)
        self.pieces: list[bytes] = []

    def feed_data(self, data: Any) -> None:
        self.pieces.append(data)
        super().feed_data(data)


class Counted(DirectProtocol):
    """A parser that records the size of each buffer it parses."""

    def __init__(self, reader: asyncio.StreamReader, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, routes, loop)
        self.parsed: list[int] = []

    def _parse(self, buffer: bytes) -> None:
        self.parsed.append(len(buffer))
        super()._parse(buffer)


def direct_core(
    limits: InvocationLimits | None = None,
    *,
    alike: bool = True,
    max_payload: int = MIB,
    room: bool = False,
    tracer: Tracer | None = None,
) -> tuple[DirectRoutes, Invocations[bytes, bytes], list[Step[bytes, bytes]]]:
    """Return routes with one for further pieces, invocations with tokens 0, 1, 2 ..., and a list of the steps taken.

    :param alike: False to parse each frame
    :param room: True to answer each call at once, so that the order of answers does not depend on time
    """
    tokens = itertools.count()
    routes = DirectRoutes()
    routes.alike.is_on = alike
    replies = FrameReplies(INBOX, NOBODY, max_payload, RECEIPT)
    invocations = Invocations(replies, lambda: str(next(tokens)), limits, (lambda: True) if room else routes.has_room)
    steps: list[Step[bytes, bytes]] = []

    def wait(waiting: Waiting[bytes]) -> None:
        steps.append(Step([], waiting))

    routes.serve(DirectServer(invocations, replies, steps.append, wait, tracer=tracer))
    routes.add(PIECES, Further.PIECES)
    return routes, invocations, steps


class Direct:
    """The routes of a store's handlers, and one connection that uses them. `reconnect` makes another."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        alike: bool = True,
        high_water_bytes: int = 2**40,
        greeting: bytes | None = None,
        limits: InvocationLimits | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._loop = loop
        self._high_water_bytes = high_water_bytes
        self.store = Store()
        self.routes, self.invocations, self.steps = direct_core(limits, alike=alike, tracer=tracer)
        service = Service(self.store)
        self.limits = service.parameter_limits
        for number, handler in enumerate(store_handlers(service, self.limits).values(), GET):
            self.routes.add(number, handler)
        self.connect(info(MIB) + b"PONG\r\n" if greeting is None else greeting)

    def connect(self, greeting: bytes) -> None:
        """Make a new connection. The greeting is not recorded as passed on."""
        self.socket = Socket(self._high_water_bytes)
        self.reader = Reader(self._loop)
        self.protocol = Counted(self.reader, self.routes, self._loop)
        self.socket.protocol = self.protocol
        self.protocol.connection_made(self.socket)  # type: ignore[arg-type] # what is used of it
        if greeting:
            self.protocol.data_received(greeting)
            self.reader.pieces.clear()
            self.protocol.parsed.clear()

    def read(self, *pieces: bytes) -> list[Send]:
        """Read these bytes, and return what is sent."""
        for piece in pieces:
            self.protocol.data_received(piece)
        return publications(self.socket.take())

    @property
    def passed(self) -> bytes:
        """Return the bytes that nats-py was given."""
        return b"".join(self.reader.pieces)

    def route(self, subscription: int) -> Handler:
        """Return the handler of a subscription."""
        handler = self.routes.routes[b"%d" % subscription]
        assert callable(handler)
        return handler

    def get(self, key: bytes) -> bytes | None:
        return self.store.bucket(b"b").get(key)


#: Makes a `Direct` in a test's loop.
NewDirect: TypeAlias = Callable[..., Direct]


def info(max_payload: object) -> bytes:
    return b"INFO %b \r\n" % json.dumps({"server_id": "N", "headers": True, "max_payload": max_payload}).encode()


def msg(subscription: int, payload: bytes, reply: bytes = b"r", subject: bytes = b"f") -> bytes:
    """Return a frame without headers."""
    to = b"%b %d %b" % (subject, subscription, reply + b" " if reply else b"")
    return b"MSG %b%d\r\n%b\r\n" % (to, len(payload), payload)


def hmsg(subscription: int, payload: bytes, reply: bytes = b"r", headers: bytes = HEADERS) -> bytes:
    """Return a frame with headers."""
    to = b"f %d %b" % (subscription, reply + b" " if reply else b"")
    return b"HMSG %b%d %d\r\n%b%b\r\n" % (to, len(headers), len(headers) + len(payload), headers, payload)


def set_params(key: bytes, value: bytes) -> bytes:
    return encode_set(b"b", key, value)


def get_params(key: bytes) -> bytes:
    return encode_bucket_key(b"b", key)


def piece(token: str, payload: bytes) -> bytes:
    """Return the frame of a further piece of parameters."""
    return msg(PIECES, payload, b"", b"%b.%b.params" % (INBOX.encode(), token.encode()))


def answer(reply: str, *pieces: bytes, handshake: bool = True) -> list[Send]:
    """Return what is sent for an invocation whose parameters arrive whole."""
    handshakes = [Send(reply, b"", NOBODY)] if handshake else []
    return [*handshakes, *(Send(reply + ".results", piece) for piece in pieces), Send(reply + ".results", b"")]


def publications(stream: bytes) -> list[Send]:
    """Return the messages of a client's stream. It must consist of whole PUB frames."""
    sends = []
    at = 0
    while at < len(stream):
        line_end = stream.index(b"\r\n", at)
        command, subject, *reply, size = stream[at:line_end].decode(errors="surrogateescape").split(" ")
        start, at = line_end + 2, line_end + 2 + int(size)
        assert command == "PUB"
        assert stream[at : at + 2] == b"\r\n"
        sends.append(Send(subject, stream[start:at], *reply))
        at += 2
    return sends


def cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return the stream in pieces, none of them empty."""
    edges = sorted({0, *cuts, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(edges)]
