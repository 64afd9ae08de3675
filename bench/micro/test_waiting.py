"""Calls with delayed answers, on the direct path without a socket. One read has 64 frames.

The answers are ready in the next turn of the event loop. Each figure is the time from receiving the bytes of a read
to writing the last answer. `extra_info` has the nanoseconds per call. The two variants take turns:

- "future": the handler returns a future, and a callback sets the future's result, as in a replicated store.
- "coroutine": the handler returns a coroutine, and the server has to create a task for each call.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.workload import header_block, key_of
from bench.micro.test_frames import Socket, connected
from bench.micro.turns import in_turns
from keyvalue_transport.keyvalue.interface import NEVER, AwaitedResult, encode_bucket_key
from keyvalue_transport.keyvalue.outcomes import new_tally
from keyvalue_transport.keyvalue.store import encode_get_result
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subscriptions import Subscription
from keyvalue_transport.wrpc.handler import Caller, Pending

FRAMES = 64
TURN_READS = 10
VALUE = b"v" * 64
PIECES, GET, BESIDE = 1, 2, 3  # ids of subscriptions


class Unconnected(Connection):
    """A connection without a NATS server. It only adds routes for subscriptions."""

    def __init__(self) -> None:
        super().__init__(ConnectionOptions(("nats://127.0.0.1:1",)))
        self._numbers = itertools.count(1)

    async def subscribe(self, subject: str, callback: Any, *arguments: Any, **keywords: Any) -> Subscription:
        assert self.direct is not None
        self.direct.add(next(self._numbers), keywords["route"])
        return Subscription(subject, callback)


class AwaitedSocket(Socket):
    """A socket that counts answers and returns receipts. `answered` is done when all frames of a read are answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receipt: bytes) -> None:
        super().__init__()
        self.answered = loop.create_future()
        self.receive: Callable[[bytes], None]
        self._loop = loop
        self._receipt = receipt

    def write(self, frames: bytes) -> None:
        super().write(frames)
        if self._receipt in frames:
            self._loop.call_soon(self.receive, b"MSG %b %d 0\r\n\r\n" % (self._receipt.split()[1], PIECES))
        if self.ends == FRAMES:
            self.answered.set_result(None)


async def in_coroutine() -> bytes:
    """Return the value in the next turn of the loop."""
    await asyncio.sleep(0)
    return VALUE


class WaitingServer:
    """A server with two functions whose answers are delayed, and a connection to the server."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        connection = Unconnected()
        server = Server(connection, "default.bench")
        server.add(
            "bench:waiting/store", {"get": self._handler(self._in_future), "beside": self._handler(in_coroutine)}
        )
        loop.run_until_complete(server.start())
        assert connection.direct is not None
        self.server = server
        assert connection.direct.server is not None
        self.socket = AwaitedSocket(loop, connection.direct.server.replies.receipt)
        self.protocol = connected(self.socket, connection.direct, loop)
        self.socket.receive = self.protocol.data_received
        self.socket.receive(b"PONG\r\n")  # only then does the protocol send delayed answers

    def _in_future(self) -> asyncio.Future[bytes]:
        """Return a future. A callback sets its result in the next turn of the loop."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._loop.call_soon(future.set_result, VALUE)
        return future

    def _handler(self, later: Callable[[], Awaitable[bytes]]) -> Callable[[Caller, bytes, int, int], Pending]:
        tally = new_tally()
        return lambda caller, buffer, start, end: AwaitedResult(later(), encode_get_result, NEVER, tally)

    def receive(self, read: bytes) -> None:
        """Receive a read, and wait until all its frames are answered."""
        self.socket.ends = 0
        self.socket.answered = self._loop.create_future()
        self._loop.call_soon(self.protocol.data_received, read)
        self._loop.run_until_complete(self.socket.answered)


def read_of(number: int) -> bytes:
    """Return the bytes of one read: frames that call a function."""
    block, params = header_block("host"), encode_bucket_key(b"default", key_of(1))
    sizes = b"%d %d" % (len(block), len(block) + len(params))
    frame = b"HMSG default.bench.get %d _INBOX.%b.%d %b\r\n%b%b\r\n"
    return b"".join(frame % (number, b"c" * 22, index, sizes, block, params) for index in range(10, 10 + FRAMES))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_waiting(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    """Answer with futures and with coroutines, in turns."""
    benchmark.group = f"waiting: {TURN_READS} reads of {FRAMES} calls that wait, a host's headers"
    waiting = WaitingServer(loop)
    reads = {name: read_of(number) for name, number in (("future", GET), ("coroutine", BESIDE))}

    def receive(name: str) -> Callable[[int], None]:
        def act(turn: int) -> None:
            for _ in range(TURN_READS):
                waiting.receive(reads[name])

        return act

    calls = TURN_READS * FRAMES
    in_turns(benchmark, calls, lambda _: 0, receive("future"), receive("coroutine"), "future", "coroutine")
    assert waiting.server.counts.answered % calls == 0
    assert waiting.server.in_flight == 0
