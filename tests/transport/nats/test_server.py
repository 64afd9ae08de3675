"""The server over both paths: handlers of every kind, messages that come too fast, and stopping."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress

import nats
import pytest
from keyvalue_transport.nats.subjects import invocation_subject
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from keyvalue_transport.nats import connection as connection_module
from keyvalue_transport.nats import server as server_module
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subscriptions import InlineCallback
from keyvalue_transport.wrpc.errors import (
    DecodeError,
    DisconnectedError,
    InvocationTimeoutError,
    NeedMoreBytes,
    NoProviderError,
)
from keyvalue_transport.wrpc.handler import Caller
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations
from tests.conftest import DEADLINE_S, NatsServer, RawInvocation, in_thread, settled
from tests.transport.nats.in_process import INSTANCE, Gate, Proxy, Serve, Setup, echo, read_all, until


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
