"""The direct path without a socket: one read of 64 complete frames, answered in one write.

Each figure is the time of one read. `extra_info` has the nanoseconds per call. Metrics are on, as they are in the provider. Before each read of deletes, the deleted keys are set again. That setup is not timed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.workload import INSTANCES, NO_SPAN, SPAN_BYTES, Headers, header_block, key_of, value_of
from keyvalue_engine import Store
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.observe.metrics import Durations
from keyvalue_transport.keyvalue.atomics import atomics_handlers, atomics_tallies, encode_increment
from keyvalue_transport.keyvalue.batch import BATCH, batch_handlers, batch_tallies, encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_list_keys, encode_set, store_handlers, store_tallies
from keyvalue_transport.nats.direct.answers import FrameReplies
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.handler import Handler
from keyvalue_transport.wrpc.invocation import Invocations

FRAMES = 64
BUCKET = b"default"
COUNTERS = b"counters"
KEYS = 10_000
BATCH_KEYS = 100
STRIDE = KEYS // FRAMES
#: Functions that take one key, and functions that take many. A call with many keys costs about a hundred times as much.
OF_A_KEY = ["get", "set", "delete", "exists", "increment"]
OF_KEYS = ["list-keys", "get-many", "set-many", "delete-many"]
#: Number of rounds for functions whose effect must be undone after each round.
UNDONE_ROUNDS = {"delete": 2_000, "delete-many": 100}


class Socket:
    """A fake asyncio transport that counts the answers written to it."""

    def __init__(self) -> None:
        self.ends = 0

    def write(self, frames: bytes) -> None:
        self.ends += frames.count(b".results 0\r\n")

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        raise AssertionError("the connection was aborted")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def connected(socket: Socket, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> DirectProtocol:
    """Return a protocol that a server has greeted on a socket."""
    protocol = DirectProtocol(asyncio.StreamReader(loop=loop), routes, loop)
    protocol.connection_made(socket)  # type: ignore[arg-type] # has the methods that the protocol calls
    protocol.data_received(b'INFO {"max_payload": 1048576}\r\n')
    return protocol


class FilledProtocol:
    """A direct protocol that serves a filled store."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        store = Store()
        service = Service(store)
        self.bucket = store.bucket(BUCKET)
        self.put(map(key_of, range(KEYS)))
        self.bucket.page()
        tallies = store_tallies() | atomics_tallies() | batch_tallies()
        limits = service.parameter_limits
        self.handlers: Mapping[str, Handler] = {
            **store_handlers(service, limits, tallies),
            **atomics_handlers(service, limits, tallies),
            **batch_handlers(service, limits, tallies),
        }
        routes = DirectRoutes()
        replies = FrameReplies("_INBOX." + "a" * 22, "_INBOX." + "b" * 22, 1024 * 1024, "receipt")
        on_batch = Durations(tallies).observe
        routes.serve(
            DirectServer(
                Invocations(replies, lambda: "token"), replies, lambda step: None, lambda waiting: None, on_batch
            )
        )
        for number, handler in enumerate(self.handlers.values(), 1):
            routes.add(number, handler)
        self.socket = Socket()
        self.protocol = connected(self.socket, routes, loop)

    def receive(self, read: bytes) -> None:
        """Receive a read, and wait until all its frames are answered. A long read is handled in several turns."""
        ends = self.socket.ends + FRAMES
        self.protocol.data_received(read)
        while self.socket.ends < ends:
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
        assert self.socket.ends == ends

    def put(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.bucket.set(key, value_of(key, 64))

    def read(self, function: str, headers: Headers) -> bytes:
        """Return the bytes of one read: frames that call a function, each with other keys."""
        number = list(self.handlers).index(function) + 1
        instance = INSTANCES.get(function, BATCH)  # `INSTANCES` lacks delete-many, which the load never calls
        subject = invocation_subject("default.keyvalue-inmemory", instance, function).encode()
        frames = []
        for index in range(FRAMES):
            params = params_of(function, index)
            block = header_block(headers).replace(NO_SPAN, b"%0*d" % (SPAN_BYTES, index + 1))
            reply = b"_INBOX.%b.%d" % (b"c" * 22, index)
            sizes = b"%d %d" % (len(block), len(block) + len(params)) if block else b"%d" % len(params)
            verb = b"HMSG" if block else b"MSG"
            frames.append(b"%b %b %d %b %b\r\n%b%b\r\n" % (verb, subject, number, reply, sizes, block, params))
        return b"".join(frames)


def batch_of(frame: int) -> list[bytes]:
    """Return the keys of a frame's batch. The keys are spread over the bucket, and no two frames share a key."""
    return [key_of(frame + place * FRAMES) for place in range(BATCH_KEYS)]


def keys_of(function: str, frame: int) -> list[bytes]:
    return batch_of(frame) if function in OF_KEYS else [key_of(frame * STRIDE)]


def params_of(function: str, frame: int) -> bytes:
    key = key_of(frame * STRIDE)
    match function:
        case "set":
            return encode_set(BUCKET, key, value_of(key, 64))
        case "list-keys":
            return encode_list_keys(BUCKET, frame * STRIDE * 2**50)
        case "increment":
            return encode_increment(COUNTERS, key, 1)
        case "get-many" | "delete-many":
            return encode_bucket_keys(BUCKET, batch_of(frame))
        case "set-many":
            return encode_set_many(BUCKET, [(key, value_of(key, 64)) for key in batch_of(frame)])
        case _:
            return encode_bucket_key(BUCKET, key)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def receive_all(benchmark: BenchmarkFixture, subject: FilledProtocol, function: str, headers: Headers) -> None:
    read = subject.read(function, headers)
    subject.receive(read)
    keys: list[bytes] = []
    if rounds := UNDONE_ROUNDS.get(function):
        keys = [key for frame in range(FRAMES) for key in keys_of(function, frame)]
        assert not any(map(subject.bucket.exists, keys))
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            subject.receive, args=(read,), setup=lambda: subject.put(keys), rounds=rounds
        )
    else:
        benchmark(subject.receive, read)
    assert len(subject.bucket) == KEYS - len(keys)
    if benchmark.stats is not None:  # not with --benchmark-disable
        benchmark.extra_info["ns a call"] = round(benchmark.stats.stats.median * 1e9 / FRAMES)


@pytest.mark.parametrize("function", [*OF_A_KEY, *OF_KEYS])
def test_function(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, function: str) -> None:
    what = "many keys" if function in OF_KEYS else "one key"
    benchmark.group = f"frames: {FRAMES} calls of {what}, a host's headers"
    receive_all(benchmark, FilledProtocol(loop), function, "host")


@pytest.mark.parametrize("headers", ["none", "host", "traced"])
def test_headers(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, headers: Headers) -> None:
    benchmark.group = f"frames: {FRAMES} gets with headers"
    receive_all(benchmark, FilledProtocol(loop), "get", headers)
