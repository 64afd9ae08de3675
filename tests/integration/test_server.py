"""Server, connection and client in this process, over a real NATS server: handlers of every kind, stopping, who is let in, and coming back."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count

import nats
import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from keyvalue_transport.nats import connection as connection_module
from keyvalue_transport.nats import opening as opening_module
from keyvalue_transport.nats import server as server_module
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, Message, redacted_url, split_urls
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subscriptions import InlineCallback
from keyvalue_transport.wrpc.errors import (
    ConnectError,
    DecodeError,
    DisconnectedError,
    InvocationEndedError,
    InvocationTimeoutError,
    NeedMoreBytes,
    NoProviderError,
)
from keyvalue_transport.wrpc.handler import Answer, Caller, Handler
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations
from keyvalue_transport.wrpc.subjects import invocation_subject
from tests.conftest import DEADLINE_S, NatsServer, RawInvocation, in_thread, settled

INSTANCE = "test:instance/functions@1.0.0"
PREFIXES = (f"default.in-process-{number}" for number in count())


def echo(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
    """What came, and the name of who sent it."""
    return b"%s from %s" % (buffer[start:end], (caller.source_id or "nobody").encode())


def read_all(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Takes any result of one message."""
    return buffer[at:end], end


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.cancelled = 0
        self._open = asyncio.Event()
        self._reached = asyncio.Condition()

    def open(self) -> None:
        self._open.set()

    async def reached(self, number: int) -> None:
        """Return once so many wait."""
        async with self._reached:
            await self._reached.wait_for(lambda: self.waiting >= number)

    async def handle(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        async with self._reached:
            self.waiting += 1
            self._reached.notify_all()
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"let go: " + buffer[start:end]


class Proxy:
    """Stands before a NATS server, and does what a network and a server can do at the wrong moment.

    After `hold` it lets through what its client sends before its next UNSUB, and nothing more until `release`. `say` speaks in the server's
    place.
    """

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self._holding = False
        self._released = asyncio.Event()
        self._clients: list[asyncio.StreamWriter] = []

    def hold(self) -> None:
        self._holding = True

    def release(self) -> None:
        self._released.set()

    def say(self, line: bytes) -> None:
        """A line to all clients that are there."""
        for writer in self._clients:
            if not writer.is_closing():
                writer.write(line)

    @asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[str]:
        """The URL of the proxy of the server at this port, while it stands."""
        async with AsyncExitStack() as stack:

            async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
                self._clients.append(writer)
                for end in (writer, server_writer):
                    stack.callback(end.close)
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(reader, server_writer, holds=True))
                    pumps.create_task(self._pump(server_reader, writer, holds=False))

            async with await asyncio.start_server(connect, "127.0.0.1", 0) as listener:
                yield f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, holds: bool) -> None:
        while piece := await reader.read(65_536):
            before, unsub, behind = piece.partition(b"UNSUB ")
            writer.write(before)
            if holds and self._holding and unsub:
                self._holding = False
                self.held.set()
                await self._released.wait()
            writer.write(unsub + behind)
        writer.close()


class Setup:
    """A server with its connection, and a NATS client that is not ours."""

    def __init__(self, server: Server, connection: Connection, raw: Client) -> None:
        self.server = server
        self.connection = connection
        self.raw = raw
        self.stopped = False

    async def stop(self, timeout_s: float) -> None:
        """Stop the server, once."""
        self.stopped = True
        await self.server.stop(timeout_s)

    async def begin(self, function: str, piece: bytes, headers: dict[str, str] | None = None) -> RawInvocation:
        subject = invocation_subject(self.server.prefix, INSTANCE, function)
        return await RawInvocation.begin(self.raw, subject, piece, headers)


Serve = Callable[..., Awaitable[Setup]]


@pytest.fixture
async def serve(
    nats_server: NatsServer, new_nats_server: Callable[[str], NatsServer], path: str
) -> AsyncIterator[Serve]:
    """Starts servers of the handlers given by name. They end before the NATS servers that the test started."""
    async with AsyncExitStack() as stack:

        async def start(
            handlers: dict[str, Handler], limits: InvocationLimits | None = None, url: str = nats_server.url
        ) -> Setup:
            connection = await Connection.open(ConnectionOptions((url,), path=path))
            stack.push_async_callback(connection.close)
            server = Server(connection, next(PREFIXES), limits)
            server.add(INSTANCE, handlers)
            await server.start()
            await connection.flush(DEADLINE_S)
            raw = await nats.connect(url)
            stack.push_async_callback(raw.close)
            setup = Setup(server, connection, raw)
            stack.push_async_callback(stop, setup)
            return setup

        async def stop(setup: Setup) -> None:
            if not setup.stopped:
                await setup.stop(0.5)

        yield start


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    yield connection
    await connection.close()


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds: for what has no event of its own."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 # what is waited for is in another library, and tells nobody
            await asyncio.sleep(0.005)


async def test_an_invocation_without_a_reply_subject_is_not_carried_out(serve: Serve) -> None:
    calls = []

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        calls.append(buffer[start:end])
        return b"result"

    setup = await serve({"f": handler})
    await setup.raw.publish(invocation_subject(setup.server.prefix, INSTANCE, "f"), b"without")
    invocation = await setup.begin("f", b"with")
    assert await invocation.result() == b"result"
    assert calls == [b"with"]
    assert setup.server.counts.without_reply == 1
    assert setup.server.counts.answered == 1


# Handlers


async def test_a_handler_is_told_who_calls(serve: Serve) -> None:
    callers = []

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        callers.append(caller)
        return buffer[start:end]

    setup = await serve({"f": handler})
    for headers in (
        None,
        {"source-id": "component", "link-name": "default"},
        {"traceparent": "00-1-2-01", "tracestate": "", "link-name": "default", "source-id": "another"},
        {"link-name": "only"},
    ):
        invocation = await setup.begin("f", b"params", headers)
        assert await invocation.result() == b"params"
    assert callers == [
        Caller(None, None),
        Caller("component", "default"),
        Caller("another", "default"),
        Caller(None, "only"),
    ]
    assert setup.server.counts.answered == 4


async def test_waiting_handlers_block_nobody(serve: Serve) -> None:
    gate = Gate()
    setup = await serve({"wait": gate.handle, "echo": echo})
    waiting = [await setup.begin("wait", b"%d" % number) for number in range(20)]
    await gate.reached(20)
    assert setup.server.in_flight == 20
    assert await (await setup.begin("echo", b"meanwhile")).result() == b"meanwhile from nobody"
    for invocation in waiting:
        assert invocation.unread == (1, 0)
    gate.open()
    for number, invocation in enumerate(waiting):
        assert await invocation.result() == b"let go: %d" % number
    assert setup.server.in_flight == 0
    assert setup.server.counts.answered == 21


async def test_too_many_waiting_handlers_are_refused(serve: Serve) -> None:
    gate = Gate()
    setup = await serve({"wait": gate.handle}, InvocationLimits(waiting_max=2))
    waiting = [await setup.begin("wait", b"") for _ in range(2)]
    await gate.reached(2)
    refused = await setup.begin("wait", b"")
    assert await refused.result() == b""
    assert setup.server.counts.refused == 1
    gate.open()
    for invocation in waiting:
        assert await invocation.result() == b"let go: "


async def test_a_handler_that_fails_ends_its_invocation_alone(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def plain(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise RuntimeError("plain boom")

    async def waiting(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        await asyncio.sleep(0)
        raise RuntimeError("waiting boom")

    async def damaged(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise DecodeError("found late that they are damaged")

    setup = await serve({"plain": plain, "waiting": waiting, "damaged": damaged, "echo": echo})
    for function in ("plain", "waiting", "damaged"):
        assert await (await setup.begin(function, b"secret parameters")).result() == b""
    assert await (await setup.begin("echo", b"after")).result() == b"after from nobody"
    counts = setup.server.counts
    assert (counts.failed, counts.damaged, counts.answered) == (2, 1, 1)
    assert setup.server.in_flight == 0
    assert "RuntimeError: plain boom" in caplog.text
    assert "RuntimeError: waiting boom" in caplog.text
    assert "damaged parameters: found late that they are damaged" in caplog.text
    assert "secret parameters" not in caplog.text


async def test_failures_are_logged_at_a_limited_rate(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def plain(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise RuntimeError("boom")

    setup = await serve({"f": plain})
    for _ in range(20):
        assert await (await setup.begin("f", b"")).result() == b""
    assert caplog.text.count("RuntimeError: boom") == server_module.FAILURES_LOGGED_MAX
    assert setup.server.counts.failed == 20


async def test_answers_that_find_no_connection_are_counted(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Of an invocation that was read before the connection closed, and of one whose handler was waited for."""
    gate = Gate()
    setup = await serve({"wait": gate.handle, "echo": echo})
    await setup.begin("wait", b"")
    await gate.reached(1)
    (subscription,) = [each for each in setup.connection._subscriptions if each.subject.endswith(".echo")]
    assert not isinstance(subscription.take, InlineCallback)
    await setup.connection.close()
    before = setup.server.counts.sent_bytes
    await subscription.take(Msg(setup.raw, subscription.subject, "_INBOX.late", b"late"))
    assert setup.server.unsent == 3
    gate.open()
    await setup.stop(DEADLINE_S)
    assert setup.server.unsent == 5
    assert setup.server.counts.sent_bytes == before
    assert "an answer is lost: 3 messages were not sent" in caplog.text
    assert "an answer is lost: 2 messages were not sent" in caplog.text


async def test_results_over_max_payload_go_in_pieces(
    serve: Serve, new_nats_server: Callable[[str], NatsServer]
) -> None:
    server = new_nats_server("max_payload: 1024")
    result = os.urandom(10_000)
    setup = await serve({"f": lambda caller, buffer, start, end: result[: int(buffer[start:end])]}, url=server.url)
    assert setup.connection.max_payload == 1024
    for size in (1023, 1024, 1025, 2048, 10_000):
        assert await (await setup.begin("f", b"%d" % size)).result() == result[:size]
    assert setup.server.unsent == 0


async def test_results_fit_a_server_that_came_back_with_less_room(
    serve: Serve, new_nats_server: Callable[[str], NatsServer]
) -> None:
    server = new_nats_server("max_payload: 4096")
    result = os.urandom(5000)
    setup = await serve({"f": lambda caller, buffer, start, end: result}, url=server.url)
    assert await (await setup.begin("f", b"")).result() == result
    await in_thread(server.kill)
    await in_thread(server.start, "max_payload: 1024")
    await until(lambda: setup.connection.reconnects == 1)
    assert setup.connection.max_payload == 1024
    raw = await nats.connect(server.url)
    assert await (await Setup(setup.server, setup.connection, raw).begin("f", b"")).result() == result
    await raw.close()


async def test_servers_of_one_prefix_share_invocations(serve: Serve, path: str, nats_server: NatsServer) -> None:
    first = await serve({"f": lambda caller, buffer, start, end: b"first"})
    connection = await Connection.open(ConnectionOptions((nats_server.url,), path=path))
    second = Server(connection, first.server.prefix)
    second.add(INSTANCE, {"f": lambda caller, buffer, start, end: b"second"})
    await second.start()
    await connection.flush(DEADLINE_S)
    results = [await (await first.begin("f", b"")).result() for _ in range(50)]
    assert set(results) == {b"first", b"second"}
    assert first.server.counts.answered + second.counts.answered == 50
    await second.stop(1)
    assert {await (await first.begin("f", b"")).result() for _ in range(20)} == {b"first"}
    await connection.close()


async def test_half_open_invocations_expire(serve: Serve) -> None:
    def needs_more(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise NeedMoreBytes(end + 1)

    setup = await serve({"f": needs_more}, InvocationLimits(half_open_timeout_s=0.01))
    half = await setup.begin("f", b"p")
    assert await half.result() == b""
    assert setup.server.counts.expired == 1
    assert setup.server.in_flight == 0


async def test_the_death_of_the_background_task_is_seen(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Invocations, now_s: float) -> None:
        raise RuntimeError("boom")

    setup = await serve({"f": echo})
    assert setup.server.failed is None
    monkeypatch.setattr(Invocations, "expire", die)
    await until(lambda: setup.server.failed is not None)
    assert str(setup.server.failed) == "boom"
    assert await (await setup.begin("f", b"still")).result() == b"still from nobody"


# Too fast


async def test_messages_that_had_to_be_dropped_are_refused(
    serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "PENDING_MESSAGES_MAX", 3)
    setup = await serve({"f": echo})
    subject = invocation_subject(setup.server.prefix, INSTANCE, "f")
    inbox = setup.raw.new_inbox()
    results = await setup.raw.subscribe(f"{inbox}.*.results")
    for number in range(200):  # in one write, so in one read of the server
        await setup.raw.publish(subject, b"x", f"{inbox}.{number}")
    await setup.raw.publish(subject, b"x")
    await setup.raw.flush()
    ended: dict[str, bytes] = {}
    came: dict[str, bytes] = {}
    while len(ended) < 200:
        message = await results.next_msg(DEADLINE_S)
        if message.data:
            came[message.subject] = message.data
        else:
            ended[message.subject] = came.get(message.subject, b"")
    dropped = list(ended.values()).count(b"")
    assert (dropped > 0) is (path == "plain")  # on the direct path nothing waits for a callback
    assert list(ended.values()).count(b"x from nobody") == 200 - dropped
    assert setup.connection.dropped >= dropped
    assert setup.server.counts.refused == dropped
    assert setup.server.counts.answered == 200 - dropped
    assert await (await setup.begin("f", b"after")).result() == b"after from nobody"


# Stopping


async def test_stop_answers_what_is_in_flight(serve: Serve) -> None:
    gate = Gate()
    setup = await serve({"wait": gate.handle})
    waiting = [await setup.begin("wait", b"%d" % number) for number in range(5)]
    await gate.reached(5)
    stopping = asyncio.create_task(setup.stop(DEADLINE_S))
    with pytest.raises(NoProviderError):
        await refusal(setup)
    assert not stopping.done()
    gate.open()
    for number, invocation in enumerate(waiting):
        assert await invocation.result() == b"let go: %d" % number
    await stopping
    assert setup.server.in_flight == 0
    assert setup.server.counts.answered == 5


async def refusal(setup: Setup) -> None:
    """Invoke until the server takes no more; what is taken until then is not waited for."""
    invoker = Invoker(setup.connection)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "wait")
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with suppress(InvocationTimeoutError):
                await invoker.invoke(subject, b"late", read_all, 0.01)


async def test_stop_loses_nothing_that_comes_while_it_unsubscribes(
    serve: Serve, nats_server: NatsServer, raw: Client
) -> None:
    """What is behind its first PING is late: what NATS sends until it has the UNSUBs is answered, or refused by NATS."""
    proxy = Proxy()
    async with proxy.before(nats_server.port) as url:
        setup = await serve({"f": echo}, url=url)
        subject = invocation_subject(setup.server.prefix, INSTANCE, "f")
        assert await (await RawInvocation.begin(raw, subject, b"before")).result() == b"before from nobody"
        proxy.hold()
        stopping = asyncio.create_task(setup.stop(DEADLINE_S))
        await proxy.held.wait()
        await settled(raw)  # so that the answer to a PING that overtook the UNSUB has gone before
        late = [await RawInvocation.begin(raw, subject, b"%d" % number) for number in range(3)]
        await settled(raw)
        proxy.release()
        for number, invocation in enumerate(late):
            if await invocation.taken():
                assert await invocation.result() == b"%d from nobody" % number
        await stopping
        with pytest.raises(NoRespondersError):
            await raw.request(subject, timeout=DEADLINE_S)
        await setup.connection.close()
        await setup.raw.close()


async def test_stop_ends_what_is_not_answered_in_time(serve: Serve) -> None:
    gate = Gate()
    setup = await serve({"wait": gate.handle})
    waiting = [await setup.begin("wait", b"") for _ in range(3)]
    await gate.reached(3)
    began_s = time.monotonic()
    await setup.stop(0.05)
    assert 0.05 <= time.monotonic() - began_s < 1
    for invocation in waiting:
        assert await invocation.result() == b""
    assert gate.cancelled == 3
    assert setup.server.counts.failed == 3
    assert setup.server.in_flight == 0


async def test_stop_ends_half_open_invocations(serve: Serve) -> None:
    def needs_more(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise NeedMoreBytes(end + 1)

    setup = await serve({"f": needs_more})
    half = [await setup.begin("f", b"p") for _ in range(3)]
    for invocation in half:
        await invocation.handshake()
    await setup.stop(0.01)
    for invocation in half:
        assert await invocation.result() == b""
    assert setup.server.counts.refused == 3
    assert setup.server.in_flight == 0


async def test_stop_at_rest_is_immediate(serve: Serve) -> None:
    setup = await serve({"f": echo})
    assert await (await setup.begin("f", b"")).result() == b" from nobody"
    began_s = time.monotonic()
    await setup.stop(60)
    assert time.monotonic() - began_s < 1
    assert setup.server.failed is None


async def test_stop_without_time_is_immediate(serve: Serve) -> None:
    setup = await serve({"f": echo})
    began_s = time.monotonic()
    await setup.stop(0)
    assert time.monotonic() - began_s < 1
    assert setup.connection.connected


async def test_stop_again_does_nothing(serve: Serve) -> None:
    setup = await serve({"f": echo})
    await setup.stop(1)
    await setup.stop(1)
    assert setup.server.in_flight == 0


async def test_a_server_that_never_started_stops(connection: Connection) -> None:
    await Server(connection, "default.never").stop(60)


async def test_a_server_does_not_start_on_a_closed_connection(nats_server: NatsServer) -> None:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    server = Server(connection, "default.closed")
    server.add(INSTANCE, {"f": echo})
    await connection.close()
    with pytest.raises(DisconnectedError, match="not subscribed: connection closed"):
        await server.start()
    await server.stop(0)


# Client


async def test_a_call_has_a_time_out(serve: Serve) -> None:
    gate = Gate()
    setup = await serve({"wait": gate.handle, "echo": echo})
    invoker = Invoker(setup.connection)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "wait")
    with pytest.raises(InvocationTimeoutError, match=r"functions@1\.0\.0\.wait: no result within 0\.02 s$"):
        await invoker.invoke(subject, b"", read_all, 0.02)
    gate.open()
    assert (
        await invoker.invoke(subject, b"again", read_all, DEADLINE_S) == b"let go: again"
    )  # the late result is not taken
    assert setup.server.counts.answered == 2
    assert invoker._calls == {}


async def test_a_cancelled_call_leaves_nothing_behind(serve: Serve) -> None:
    gate = Gate()
    setup = await serve({"wait": gate.handle})
    invoker = Invoker(setup.connection)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "wait")
    calls = [asyncio.create_task(invoker.invoke(subject, b"", read_all, DEADLINE_S)) for _ in range(3)]
    await gate.reached(3)
    for call in calls[:2]:
        call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    assert len(invoker._calls) == 1
    gate.open()
    assert await calls[2] == b"let go: "
    assert invoker._calls == {}


async def test_a_call_cancelled_before_anything_was_sent(serve: Serve) -> None:
    setup = await serve({"f": echo})
    invoker = Invoker(setup.connection, {"source-id": "me"})
    subject = invocation_subject(setup.server.prefix, INSTANCE, "f")
    call = asyncio.create_task(invoker.invoke(subject, b"", read_all, DEADLINE_S))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await invoker.invoke(subject, b"the next", read_all, DEADLINE_S) == b"the next from me"
    assert invoker._calls == {}


@pytest.mark.parametrize("size", [0, 1023, 1024, 5000])
@pytest.mark.parametrize("headers", [{}, {"source-id": "component-with-a-name"}])
async def test_parameters_in_pieces(
    serve: Serve, new_nats_server: Callable[[str], NatsServer], size: int, headers: dict[str, str]
) -> None:
    server = new_nats_server("max_payload: 1024")
    taken = []

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        if end - start < size:
            raise NeedMoreBytes(size)
        taken.append(buffer[start:end])
        return b"taken"

    setup = await serve({"f": handler}, url=server.url)
    params = os.urandom(size)
    invoker = Invoker(setup.connection, headers)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "f")
    assert await invoker.invoke(subject, params, read_all, DEADLINE_S) == b"taken"
    assert taken == [params]
    assert setup.server.counts.stray_pieces == 0


async def test_errors_of_a_call(serve: Serve) -> None:
    def fails(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise DecodeError("found nothing good")

    def refuse(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
        raise DecodeError("found nothing that a client could read")

    setup = await serve({"fails": fails, "echo": echo})
    invoker = Invoker(setup.connection)

    def call(function: str, decode: Callable[[bytes, int, int], tuple[bytes, int]] = read_some) -> Awaitable[bytes]:
        return invoker.invoke(invocation_subject(setup.server.prefix, INSTANCE, function), b"", decode, DEADLINE_S)

    with pytest.raises(InvocationEndedError, match="after 0 bytes of its result"):
        await call("fails")
    with pytest.raises(DecodeError, match="found nothing that a client could read"):
        await call("echo", refuse)
    with pytest.raises(NoProviderError, match="nobody serves this function"):
        await call("of-nobody")
    assert await call("echo") == b" from nobody"


def read_some(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Takes a result that has at least a byte."""
    if at == end:
        raise NeedMoreBytes(at + 1)
    return read_all(buffer, at, end)


async def test_a_client_must_be_open(nats_server: NatsServer, connection: Connection) -> None:
    client = KeyValueClient(nats_server.url, "default.nobody")
    with pytest.raises(RuntimeError, match="the client is not open: use `async with`, or `open`"):
        await client.get("b", "k")
    await client.close()  # of what was never opened: nothing
    async with client:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")
    with pytest.raises(RuntimeError, match="the client is not open"):
        await client.get("b", "k")
    async with KeyValueClient(connection, "default.nobody") as client:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")
    assert connection.connected  # it was the caller's


async def test_a_client_of_a_closed_connection(nats_server: NatsServer) -> None:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    async with KeyValueClient(connection, "default.nobody") as client, KeyValueClient(connection, "default.b") as fresh:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")
        await connection.close()
        for closed in (client, fresh):
            with pytest.raises(DisconnectedError, match="connection closed"):
                await closed.get("b", "k")


@pytest.mark.parametrize("prefix", ["", "a b", "a.*", ">", "a..b", ".a"])
def test_a_prefix_is_a_subject(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"prefix: found .* allowed printable tokens without white space"):
        KeyValueClient("127.0.0.1", prefix)


# Opening a connection: what else may listen


async def opening_error(*urls: str, timeout_s: float = 1.0, **credentials: str) -> tuple[str, float]:
    """What `Connection.open` says, and how long it took."""
    began_s = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await Connection.open(ConnectionOptions(urls, open_timeout_s=timeout_s, **credentials))  # type: ignore[arg-type] # texts
    return str(caught.value), time.monotonic() - began_s


@asynccontextmanager
async def listening(greeting: bytes | None) -> AsyncIterator[str]:
    """A TCP server that is no NATS server: says the greeting and waits, or closes at once (None)."""
    async with AsyncExitStack() as stack:

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if greeting:
                writer.write(greeting)
            if greeting is not None:
                stack.callback(writer.close)
            else:
                writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server:
            yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_nothing_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        url = f"nats://127.0.0.1:{bound.getsockname()[1]}"
        message, took_s = await opening_error(url, timeout_s=0.3)
    assert re.search(f"^{url}: no NATS server reached within 0.3 s: Connect", message), message
    assert 0.3 <= took_s < 1.3


NOT_NATS = "what listens there is not a NATS server"


@pytest.mark.parametrize(
    ("greeting", "timeout_s", "reason"),
    [
        (b"", 0.3, "no (answer|greeting)"),
        (b"", 2.3, "no greeting of a NATS server within 2 s"),
        (b"INFO", 0.3, "no (answer|greeting)"),
        (None, 0.3, NOT_NATS),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.3, NOT_NATS),
        (b"\x15\x03\x01\x00\x02\x02\x0a\n", 0.3, NOT_NATS),
        (b"x" * 100_000, 0.3, NOT_NATS),
        (b"INFO\n", 0.3, NOT_NATS),
        (b"INFO {]\r\n", 0.3, NOT_NATS),
        (b"INFO []\r\n", 0.3, NOT_NATS),
    ],
)
async def test_what_listens_is_not_nats(greeting: bytes | None, timeout_s: float, reason: str) -> None:
    async with listening(greeting) as url:
        message, took_s = await opening_error(url, timeout_s=timeout_s)
    assert re.search(f"^{url}: .*: {reason}$", message), message
    assert took_s < timeout_s + 1


async def test_the_first_server_that_is_there_is_taken(nats_server: NatsServer) -> None:
    async with listening(None) as other:
        connection = await Connection.open(ConnectionOptions((other, nats_server.url)))
    assert connection.server == nats_server.url
    await connection.close()


async def test_all_servers_are_named_where_none_is_there() -> None:
    async with listening(None) as first, listening(b"no") as second:
        secret = second.replace("//", "//token-of-mine@")
        message, _ = await opening_error(first, secret, timeout_s=0.3)
    assert message.startswith(f"{first}, {second.replace('//', '//<redacted>@')}: ")


# Credentials


def user_config(password: str) -> str:
    return f'authorization {{ user: somebody, password: "{password}" }}'


async def admitted(url: str, **credentials: str) -> None:
    connection = await Connection.open(ConnectionOptions((url,), **credentials))  # type: ignore[arg-type] # texts
    await connection.flush(DEADLINE_S)
    assert "pass" not in connection.server
    await connection.close()


def with_user(url: str, user: str) -> str:
    return url.replace("//", f"//{user}@")


async def refused(url: str, *secrets: str, **credentials: str) -> None:
    """The server refuses: told at once, and without a secret."""
    options = ConnectionOptions((url,), open_timeout_s=DEADLINE_S, **credentials)  # type: ignore[arg-type] # texts
    message, took_s = await opening_error(url, timeout_s=DEADLINE_S, **credentials)
    assert "the NATS server refuses the connection: " in message
    assert "authorization" in message.lower()
    assert took_s < DEADLINE_S / 3
    for secret in secrets:
        assert secret not in message
        assert secret not in repr(options)


async def test_user_and_password(new_nats_server: Callable[[str], NatsServer]) -> None:
    url = new_nats_server(user_config("passw0rd")).url
    await admitted(with_user(url, "somebody:passw0rd"))
    await refused(with_user(url, "somebody:passw1rd"), "passw1rd")
    await refused(with_user(url, "passw0rd"), "passw0rd")
    await refused(url)


async def test_token(new_nats_server: Callable[[str], NatsServer]) -> None:
    url = new_nats_server('authorization { token: "t0ken-pass" }').url
    await admitted(with_user(url, "t0ken-pass"))
    await refused(with_user(url, "t1ken-pass"), "t1ken-pass")


def new_key(kind: int) -> tuple[str, str]:
    """Seed and public key."""
    seed = nkeys.encode_seed(os.urandom(32), kind)
    return seed.decode(), nkeys.from_seed(seed).public_key.decode()


async def test_nkey(new_nats_server: Callable[[str], NatsServer]) -> None:
    seed, public_key = new_key(nkeys.PREFIX_BYTE_USER)
    url = new_nats_server(f"authorization {{ users: [ {{ nkey: {public_key} }} ] }}").url
    await admitted(url, user_seed=seed)
    other_seed, _ = new_key(nkeys.PREFIX_BYTE_USER)
    await refused(url, other_seed, user_seed=other_seed)
    await refused(url)


@pytest.mark.parametrize("seed", ["SUNOSEED", "S", "not base32 at all", "\u00e9"])
@pytest.mark.parametrize("user_jwt", ["", "of.a.user"])
async def test_a_seed_that_is_none(new_nats_server: Callable[[str], NatsServer], seed: str, user_jwt: str) -> None:
    _, public_key = new_key(nkeys.PREFIX_BYTE_USER)
    url = new_nats_server(f"authorization {{ users: [ {{ nkey: {public_key} }} ] }}").url
    message, took_s = await opening_error(url, timeout_s=5, user_seed=seed, user_jwt=user_jwt)
    assert "seed" in message
    assert seed not in message
    assert took_s < 1


def signed(seed: str, claims: dict[str, object]) -> str:
    """A JWT of the claims, as nsc writes them."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    header = json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()
    body = f"{encoded(header)}.{encoded(json.dumps(claims).encode())}"
    return f"{body}.{encoded(nkeys.from_seed(seed.encode()).sign(body.encode()))}"


async def test_user_jwt_and_seed(new_nats_server: Callable[[str], NatsServer]) -> None:
    operator_seed, operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
    account_seed, account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    user_seed, user = new_key(nkeys.PREFIX_BYTE_USER)
    unlimited: dict[str, object] = {"subs": -1, "data": -1, "payload": -1}

    def jwt(seed: str, issuer: str, subject: str, name: str, claims: dict[str, object]) -> str:
        issued = {"jti": name, "iat": 1_700_000_000, "iss": issuer, "sub": subject, "name": name}
        return signed(seed, issued | {"nats": claims | {"version": 2}})

    limits = unlimited | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    account_jwt = jwt(operator_seed, operator, account, "account", {"type": "account", "limits": limits})
    user_jwt = jwt(account_seed, account, user, "user", {"type": "user", "pub": {}, "sub": {}} | unlimited)
    url = new_nats_server(
        f'operator: "{jwt(operator_seed, operator, operator, "operator", {"type": "operator"})}"\n'
        f"resolver: MEMORY\nresolver_preload: {{ {account}: {account_jwt} }}"
    ).url
    await admitted(url, user_jwt=user_jwt, user_seed=user_seed)
    other_seed, _ = new_key(nkeys.PREFIX_BYTE_USER)
    await refused(url, other_seed, user_jwt, user_jwt=user_jwt, user_seed=other_seed)
    await refused(url, user_seed, user_seed=user_seed)


async def test_the_log_holds_no_secret(
    new_nats_server: Callable[[str], NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = new_nats_server(user_config("passw0rd")).url
    await admitted(with_user(url, "somebody:passw0rd"))
    await refused(with_user(url, "somebody:passw1rd"))
    async with listening(None) as other:
        await opening_error(with_user(other, "somebody:passw2rd"), timeout_s=0.1)
    assert "trying again for up to 0.1 s" in caplog.text
    for secret in ("passw0rd", "passw1rd", "passw2rd"):
        assert secret not in caplog.text


# URLs


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("127.0.0.1", ("nats://127.0.0.1:4222",)),
        ("127.0.0.1:4223", ("nats://127.0.0.1:4223",)),
        ("nats://a", ("nats://a:4222",)),
        ("nats://a:", ("nats://a:4222",)),
        ("nats://user:pass@a", ("nats://user:pass@a:4222",)),
        ("token@a:1", ("nats://token@a:1",)),
        ("nats://[::1]", ("nats://[::1]:4222",)),
        ("nats://[::1]:1", ("nats://[::1]:1",)),
        (" a , nats://b:2,, ", ("nats://a:4222", "nats://b:2")),
    ],
)
def test_urls_are_split_and_completed(text: str, urls: tuple[str, ...]) -> None:
    assert split_urls(text) == urls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no URL, allowed nats://HOST:PORT or tls://HOST:PORT"),
        (" , ", "found no URL, allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("ws://a:1", "found 'ws://a:1', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("http://user:pass@a:1", "found 'http://<redacted>@a:1', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("nats://", "found 'nats://', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("nats://:4222", "found 'nats://:4222', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("user:pass@a:http", "found a URL whose host or port is none, allowed nats://HOST:PORT or tls://HOST:PORT"),
        (
            "nats://user:pass@a:65536",
            "found a URL whose host or port is none, allowed nats://HOST:PORT or tls://HOST:PORT",
        ),
        ("a:1,nats://pass@[b", "found a URL whose host or port is none, allowed nats://HOST:PORT or tls://HOST:PORT"),
    ],
)
def test_what_is_no_url_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="allowed") as caught:
        split_urls(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("nats://a:1", "nats://a:1"),
        ("nats://user:pass@a:1", "nats://<redacted>@a:1"),
        ("nats://token@a:1", "nats://<redacted>@a:1"),
        ("user:pass@a", "<redacted>@a"),
        ("a", "a"),
        ("nats://user:p@ss@a:1", "nats://<redacted>@a:1"),
        ("nats://user:p://ss@a:1", "nats://<redacted>@a:1"),
    ],
)
def test_urls_are_redacted(url: str, redacted: str) -> None:
    assert redacted_url(url) == redacted


@given(st.text(), st.text())
def test_no_user_and_password_shows(user: str, password: str) -> None:
    assert redacted_url(f"nats://{user}:{password}@host:4222") == "nats://<redacted>@host:4222"


def test_options_show_no_secret() -> None:
    options = ConnectionOptions(("nats://user:secret@a",), user_jwt="secret", user_seed="secret")
    assert "secret" not in repr(options)


# Coming back


class Heard:
    """A subscription's messages."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(self, message: Message) -> None:
        await self.messages.put(message.data)

    async def next(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.messages.get()


async def test_subscriptions_outlive_the_server(
    new_nats_server: Callable[[], NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keyvalue_transport")
    server = new_nats_server()
    connection = await Connection.open(ConnectionOptions((server.url,)))
    heard = Heard()
    await connection.subscribe("a.subject", heard.hear)
    await in_thread(server.kill)
    await until(lambda: not connection.connected)
    await connection.publish("a.subject", b"kept while it is away")
    with pytest.raises(
        DisconnectedError, match=r"a message of 1048576 bytes was not sent: outbound buffer limit exceeded"
    ):
        for _ in range(3):
            await connection.publish("a.subject", bytes(1024 * 1024))
    assert connection.server == "none"
    await in_thread(server.start)
    await until(lambda: connection.reconnects == 1)
    await connection.publish("a.subject", b"after")
    assert await heard.next() == b"kept while it is away"
    while (message := await heard.next()) == bytes(1024 * 1024):
        pass
    assert message == b"after"
    assert connection.server == server.url
    await connection.close()
    assert not connection.connected
    assert caplog.text.count("the connection is lost") == 1
    assert caplog.text.count("connected again") == 1


async def test_comes_back_when_the_server_lets_it_in_again(
    new_nats_server: Callable[[str], NatsServer], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keyvalue_transport")
    server = new_nats_server(user_config("first"))
    connection = await Connection.open(ConnectionOptions((with_user(server.url, "somebody:first"),), path=path))
    heard = Heard()
    await connection.subscribe("a.subject", heard.hear)
    functions = Server(connection, next(PREFIXES))
    functions.add(INSTANCE, {"f": echo})
    await functions.start()
    await connection.flush(DEADLINE_S)
    await in_thread(server.reload, user_config("second"))
    await until(lambda: "the connection is lost" in caplog.text)
    raw = await nats.connect(with_user(server.url, "somebody:second"))
    await raw.flush()
    assert not connection.connected
    await in_thread(server.reload, user_config("first"))
    await until(lambda: connection.reconnects == 1)
    await raw.close()
    raw = await nats.connect(with_user(server.url, "somebody:first"))
    setup = Setup(functions, connection, raw)
    assert await (await setup.begin("f", b"after")).result() == b"after from nobody"
    await raw.publish("a.subject", b"after")
    assert await heard.next() == b"after"
    assert heard.messages.empty()
    await functions.stop(1)
    await raw.close()
    await connection.close()
    assert caplog.text.count("the connection is lost") == 1
    assert caplog.text.count("connected again") == 1


@pytest.mark.parametrize("error", ["User Authentication Expired", "Maximum Connections Exceeded"])
async def test_comes_back_where_nats_py_gives_up(
    serve: Serve, nats_server: NatsServer, raw: Client, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    """An error that the server sends makes nats-py close its client for good."""
    caplog.set_level(logging.INFO, "keyvalue_transport")
    proxy = Proxy()
    async with proxy.before(nats_server.port) as url:
        setup = await serve({"f": echo}, url=url)
        subject = invocation_subject(setup.server.prefix, INSTANCE, "f")
        heard = Heard()
        await setup.connection.subscribe(f"{setup.server.prefix}.heard", heard.hear)
        await setup.raw.close()
        for turn in (1, 2):
            proxy.say(f"-ERR '{error}'\r\n".encode())
            await until(lambda turn=turn: setup.connection.reconnects == turn)  # type: ignore[misc] # a default
            await setup.connection.publish(f"{setup.server.prefix}.heard", b"after")
            assert await heard.next() == b"after"
            assert await (await RawInvocation.begin(raw, subject, b"after")).result() == b"after from nobody"
        assert heard.messages.empty()
        await setup.stop(1)
        await setup.connection.close()
    assert caplog.text.count("the connection is lost") == 2
    assert caplog.text.count("connected again") == 2


async def test_comes_back_with_less_room(serve: Serve, new_nats_server: Callable[[str], NatsServer]) -> None:
    """A server that takes smaller messages since today closes the connection at one that is too large."""
    server = new_nats_server("max_payload: 4096")
    setup = await serve({"f": echo}, url=server.url)
    assert await (await setup.begin("f", b"before")).result() == b"before from nobody"
    await in_thread(server.reload, "max_payload: 1024")
    await setup.connection.publish("a.subject", bytes(4096))
    await until(lambda: setup.connection.reconnects == 1)
    assert setup.connection.max_payload == 1024
    assert await (await setup.begin("f", b"after")).result() == b"after from nobody"


async def test_close_while_it_is_shut_out(new_nats_server: Callable[[str], NatsServer], path: str) -> None:
    server = new_nats_server(user_config("first"))
    connection = await Connection.open(ConnectionOptions((with_user(server.url, "somebody:first"),), path=path))
    await in_thread(server.reload, user_config("second"))
    await until(lambda: not connection.connected)
    await connection.close()
    await in_thread(server.reload, user_config("first"))
    with pytest.raises(DisconnectedError, match="connection closed"):
        await connection.publish("a.subject", b"")
    assert not connection.connected
    assert connection.reconnects == 0


async def test_close_while_the_server_is_away(new_nats_server: Callable[[], NatsServer], path: str) -> None:
    server = new_nats_server()
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    await in_thread(server.kill)
    await until(lambda: not connection.connected)
    await connection.publish("a.subject", b"never sent")
    await connection.close()
    assert not connection.connected


@pytest.mark.parametrize("steps", range(8))
async def test_close_as_the_server_goes(new_nats_server: Callable[[], NatsServer], path: str, steps: int) -> None:
    """Closing, so many steps of the event loop after the loss: nats-py is in the middle of its own closing then."""
    server = new_nats_server()
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    server.kill(wait=False)
    async with asyncio.timeout(DEADLINE_S):
        while connection.connected:  # noqa: ASYNC110 # the step at which it is seen matters
            await asyncio.sleep(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    await connection.close()
    assert not connection.connected


async def test_nothing_goes_on_after_close(
    new_nats_server: Callable[[], NatsServer], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py's reconnecting can swallow a cancellation that comes as an attempt fails; it must not go on for ever."""
    monkeypatch.setattr(opening_module, "RECONNECT_WAIT_S", 0)
    server = new_nats_server()
    before = asyncio.all_tasks()
    connections = [await Connection.open(ConnectionOptions((server.url,), path=path)) for _ in range(20)]
    await in_thread(server.kill)
    await until(lambda: not any(connection.connected for connection in connections))
    for steps, connection in enumerate(connections):
        for _ in range(steps):  # so that each is at another step of its attempt
            await asyncio.sleep(0)
        await connection.close()
    going_on = asyncio.all_tasks() - before
    if going_on:
        _, going_on = await asyncio.wait(going_on, timeout=1)
    for task in (left := list(going_on)):
        while not task.done():  # or the event loop of this test would never end
            task.cancel()
            await asyncio.sleep(0)
    assert left == []


async def test_requests(connection: Connection, raw: Client) -> None:
    async def answer(message: Message) -> None:
        await connection.publish(message.reply, b"answer to " + message.data)

    subject = f"{next(PREFIXES)}.asked"
    subscription = await connection.subscribe(subject, answer)
    assert await connection.request(subject, b"question", DEADLINE_S) == b"answer to question"
    await connection.drain([subscription], DEADLINE_S)
    with pytest.raises(TimeoutError, match=f"^no answer to {subject}$"):
        await connection.request(subject, b"question", DEADLINE_S)
    silent = await raw.subscribe(subject)
    await settled(raw)
    with pytest.raises(TimeoutError, match=f"^no answer to {subject}$"):
        await connection.request(subject, b"question", 0.02)
    assert (await silent.next_msg(DEADLINE_S)).data == b"question"
    await connection.close()
    with pytest.raises(DisconnectedError, match="connection closed"):
        await connection.request(subject, b"question", DEADLINE_S)
    with pytest.raises(DisconnectedError, match="connection closed"):
        await connection.flush(DEADLINE_S)


async def test_flush_waits_for_subscriptions(connection: Connection, raw: Client) -> None:
    async def answer(message: Message) -> None:
        await connection.publish(message.reply, b"answer")

    for _ in range(50):
        subject = f"{next(PREFIXES)}.asked"
        await connection.subscribe(subject, answer)
        await connection.flush(DEADLINE_S)
        assert (await raw.request(subject, timeout=DEADLINE_S)).data == b"answer"


async def test_a_flush_that_is_too_late_does_no_harm(new_nats_server: Callable[[], NatsServer], path: str) -> None:
    server = new_nats_server()
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    heard = Heard()
    await connection.subscribe("a.subject", heard.hear)
    await connection.flush(DEADLINE_S)
    with server.silence(), pytest.raises(DisconnectedError):
        await connection.flush(0.05)
    await connection.publish("a.subject", b"after")
    assert await heard.next() == b"after"
    assert connection.reconnects == 0
    await connection.close()


async def test_a_message_over_max_payload_is_not_sent(connection: Connection) -> None:
    with pytest.raises(DisconnectedError, match="a message of 1048577 bytes was not sent: maximum payload exceeded"):
        await connection.publish("a.subject", bytes(connection.max_payload + 1))


async def test_what_is_not_permitted_is_noted(new_nats_server: Callable[[str], NatsServer]) -> None:
    permissions = 'permissions: { publish: "allowed.>", subscribe: ["allowed.>", "_INBOX.>"] }'
    server = new_nats_server(f"authorization {{ users: [ {{ user: u, password: p, {permissions} }} ] }}")
    connection = await Connection.open(ConnectionOptions((with_user(server.url, "u:p"),)))
    heard = Heard()
    await connection.subscribe("allowed.subject", heard.hear)
    await connection.flush(DEADLINE_S)
    refusals = [connection.refusal]
    await connection.subscribe("forbidden.subject", heard.hear)
    await until(lambda: connection.refusal is not None)
    assert refusals == [None]
    assert connection.refusal == 'permissions violation for subscription to "forbidden.subject"'
    await connection.publish("allowed.subject", b"still there")
    assert await heard.next() == b"still there"
    assert connection.connected
    await connection.close()
