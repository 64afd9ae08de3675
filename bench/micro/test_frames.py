"""The direct path without a socket: the time of a call, if one read has 64 complete frames.

A figure is the time from receiving a read to writing its last answer, divided by 64. Metrics are on, as they are in the
provider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.case import Function, Load
from bench.load.workload import FUNCTIONS, Script, key_of, value_of
from keyvalue_engine import Store
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.observe.metrics import Durations
from keyvalue_transport.keyvalue import atomics, batch, store
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.nats.subscriptions import Subscription

FRAMES = 64
PREFIX = "default.bench"
ALL_KEYS = [key_of(index) for index in range(10_000)]
#: Functions that take one key, and functions that take many. A call with many keys costs about a hundred times as much.
OF_A_KEY = ["get", "set", "delete", "exists", "increment"]
OF_KEYS = ["list-keys", "get-many", "set-many", "delete-many"]
#: Number of rounds for functions whose effect must be undone after each round.
UNDONE_ROUNDS = {"delete": 2_000, "delete-many": 100}


class Unconnected(Connection):
    """A connection without a NATS server. It only adds routes for subscriptions.

    :ivar numbers: the id of the subscription to each subject
    """

    def __init__(self) -> None:
        super().__init__(ConnectionOptions(("nats://127.0.0.1:1",)))
        self.numbers: dict[str, int] = {}

    async def subscribe(self, subject: str, callback: Any, *arguments: Any, **keywords: Any) -> Subscription:
        assert self.direct is not None
        self.numbers[subject] = len(self.numbers) + 1
        self.direct.add(self.numbers[subject], keywords["route"])
        return Subscription(subject, callback)


class Socket:
    """A fake asyncio transport that counts the answers written to it."""

    ends = 0

    def write(self, frames: bytes) -> None:
        self.ends += frames.count(b".results 0\r\n")

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        raise AssertionError("the connection was aborted")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class FilledServer:
    """A server with a filled store, and a connection to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connection = Unconnected()
        engine = Store()
        service = Service(engine)
        self.bucket = engine.bucket(b"default")
        self.put(ALL_KEYS)
        self.bucket.page()
        tallies = store.store_tallies() | atomics.atomics_tallies() | batch.batch_tallies()
        served = service, service.parameter_limits, tallies
        self.server = Server(self._connection, PREFIX, on_batch=Durations(tallies).observe)
        self.server.add(store.STORE, store.store_handlers(*served))
        self.server.add(batch.BATCH, batch.batch_handlers(*served))
        self.server.add(atomics.ATOMICS, atomics.atomics_handlers(*served))
        loop.run_until_complete(self.server.start())
        assert self._connection.direct is not None
        self.socket = Socket()
        self._protocol = DirectProtocol(asyncio.StreamReader(loop=loop), self._connection.direct, loop)
        self._protocol.connection_made(self.socket)  # type: ignore[arg-type] # has the methods that it calls
        self._protocol.data_received(b'INFO {"max_payload": 1048576}\r\nPONG\r\n')

    def read(self, function: Function) -> bytes:
        """Return the bytes of one read: frames that call a function, each with other keys."""
        bucket = "counters" if function == "increment" else "default"
        load = Load(url="", prefix=PREFIX, function=function, bucket=bucket, keys=len(ALL_KEYS))
        script = Script(load, b"_INBOX." + b"c" * 22, 1024 * 1024)
        number = self._connection.numbers[invocation_subject(PREFIX, FUNCTIONS[function].instance, function)]
        frames = []
        for index in range(FRAMES):
            head, middle, tail = script.walk_frame(index * 2**58) if function == "list-keys" else script.frame(index)
            verb, subject, inbox = head.replace(b"PUB", b"MSG", 1).split()
            frames.append(b"%b %b %d %b%d%b%b" % (verb, subject, number, inbox, index, middle, tail))
        return b"".join(frames)

    def receive(self, read: bytes) -> None:
        """Receive a read, and run the loop until all its frames are answered."""
        ends = self.socket.ends + FRAMES
        self._protocol.data_received(read)
        while self.socket.ends < ends:
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
        assert self.socket.ends == ends

    def put(self, keys: Iterable[bytes]) -> None:
        """Set keys in the store."""
        for key in keys:
            self.bucket.set(key, value_of(key, 64))


@pytest.fixture
def server() -> Iterator[FilledServer]:
    loop = uvloop.new_event_loop()
    yield FilledServer(loop)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize("function", [*OF_A_KEY, *OF_KEYS])
def test_function(benchmark: BenchmarkFixture, server: FilledServer, function: Function) -> None:
    """Receive the same read again and again. Before each read of deletes, set the deleted keys again."""
    what = "many keys" if function in OF_KEYS else "one key"
    benchmark.group = f"frames: a call of {what}, a host's headers"
    read = server.read(function)
    server.receive(read)
    deleted = [key for key in ALL_KEYS if not server.bucket.exists(key)]
    if rounds := UNDONE_ROUNDS.get(function):
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            server.receive, args=(read,), setup=lambda: server.put(deleted), rounds=rounds
        )
    else:
        benchmark(server.receive, read)
    assert len(server.bucket) == len(ALL_KEYS) - len(deleted)
    assert bool(deleted) == (function in UNDONE_ROUNDS)
    assert server.server.in_flight == 0
    benchmark.extra_info["calls"] = FRAMES
