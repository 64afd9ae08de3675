"""The server over both paths: handlers of every kind, messages that come too fast, and stopping."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from keyvalue_transport.nats import connection as connection_module
from keyvalue_transport.nats import server as server_module
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, Message
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.nats.subscriptions import InlineCallback
from keyvalue_transport.wrpc.errors import (
    DecodeError,
    DisconnectedError,
    InvocationTimeoutError,
    NeedMoreBytes,
    NoProviderError,
)
from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations
from tests.conftest import DEADLINE_S, NatsServer, RawInvocation, in_thread, settled
from tests.recorded_replies import Later
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


UNREADABLE = {
    "no line": b"HPUB %b %b 8 8\r\nNATS/1.0\r\n",
    "no block": b"HPUB %b %b 1 1\r\nN\r\n",
    "a status that is no text": b"HPUB %b %b 15 15\r\nNATS/1.0 \xff\xff\r\n\r\n\r\n",
    "a remark that is no text": b"HPUB %b %b 19 19\r\nNATS/1.0 404 \xff\xff\r\n\r\n\r\n",
    "a reply subject that is no text": b"PUB %b %b\xff 0\r\n\r\n",
}


@pytest.mark.parametrize("message", UNREADABLE)
async def test_messages_that_nats_py_cannot_read_do_not_end_its_reading(
    serve: Serve, message: str, nats_server: NatsServer
) -> None:
    setup = await serve({"f": echo})
    heard = asyncio.Event()

    async def hear(message: Message) -> None:
        if message.data:
            heard.set()

    await setup.connection.subscribe("in-process.other", hear)
    await setup.connection.flush(DEADLINE_S)
    function = invocation_subject(setup.server.prefix, INSTANCE, "f")
    _, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    for subject in (function.encode(), b"in-process.other"):
        writer.write(UNREADABLE[message] % (subject, b"reply"))
    writer.write(b"PUB in-process.other 1\r\nx\r\n")
    async with asyncio.timeout(DEADLINE_S):
        await heard.wait()
    invocation = await setup.begin("f", b"x", {"source-id": "a"})
    assert await invocation.result() == b"x from a"
    writer.close()


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

    async def wait() -> bytes:
        await asyncio.sleep(0)
        raise RuntimeError("waiting boom")

    async def find() -> bytes:
        raise DecodeError("found late that they are malformed")

    functions = {"plain": plain, "waiting": lambda *_: Later(wait()), "damaged": lambda *_: Later(find())}
    setup = await serve({**functions, "echo": echo})
    for function in ("plain", "waiting", "damaged"):
        assert await (await setup.begin(function, b"secret parameters")).result() == b""
    assert await (await setup.begin("echo", b"after")).result() == b"after from nobody"
    counts = setup.server.counts
    assert (counts.failed, counts.damaged, counts.answered) == (2, 1, 1)
    assert setup.server.in_flight == 0
    assert "RuntimeError: plain boom" in caplog.text
    assert "RuntimeError: waiting boom" in caplog.text
    assert "malformed parameters: found late that they are malformed" in caplog.text
    assert "secret parameters" not in caplog.text


async def test_failures_are_logged_at_a_limited_rate(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        raise RuntimeError("boom")

    now_s = [1000.0]
    monkeypatch.setattr(server_module, "monotonic", lambda: now_s[0])
    setup = await serve({"f": plain})
    for _ in range(20):
        assert await (await setup.begin("f", b"")).result() == b""
    ended = "an invocation was ended without a result: its handler failed"
    assert caplog.text.count("RuntimeError: boom") == server_module.LOGGED_MAX == 5
    assert [record.getMessage() for record in caplog.records] == [ended] * 5
    assert setup.server.counts.failed == 20
    now_s[0] += server_module.LOG_INTERVAL_S
    caplog.clear()
    for _ in range(2):
        assert await (await setup.begin("f", b"")).result() == b""
    assert [record.getMessage() for record in caplog.records] == [f"{ended} (15 more like it were not logged)", ended]


async def test_answers_that_find_no_connection_are_counted(
    serve: Serve, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an invocation that was read before the connection closed, and of one whose handler was waited for."""
    gate = Gate()
    setup = await serve({"wait": gate.handle, "echo": echo})
    await setup.begin("wait", b"")
    await gate.reached(1)
    (subscription,) = [each for each in setup.connection._subscriptions if each.subject.endswith(".echo")]
    assert not isinstance(subscription.take, InlineCallback)
    await setup.connection.close()
    before, late = setup.server.counts.sent_bytes, 0
    if path == "plain":  # on the direct path an invocation that was read is answered
        await subscription.take(Msg(setup.raw, subscription.subject, "_INBOX.late", b"late"))
        late = 3
    assert setup.server.unsent == late
    gate.open()
    await setup.stop(DEADLINE_S)
    assert setup.server.unsent == late + 2
    assert setup.server.counts.sent_bytes == before
    assert ("an answer is lost: 3 messages were not sent" in caplog.text) is (path == "plain")
    assert "an answer is lost: 2 messages were not sent" in caplog.text


async def test_lost_answers_are_logged_apart_from_failures(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were said to be invocations that were ended without a result, and were hidden by these."""
    now_s = [1000.0]
    monkeypatch.setattr(server_module, "monotonic", lambda: now_s[0])
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)})
    for _ in range(22):
        await setup.begin("wait", b"")
    await until(lambda: setup.server.in_flight == 22)
    for answer in answers[:8]:
        answer.set_exception(RuntimeError("boom"))
    await until(lambda: setup.server.counts.failed == 8)
    await setup.connection.close()
    lost = "an answer is lost: 2 messages were not sent: "

    async def lose_one(answer: asyncio.Future[bytes]) -> None:
        unsent = setup.server.unsent
        answer.set_result(b"result")
        await until(lambda: setup.server.unsent == unsent + 2)

    async def lose(those: list[asyncio.Future[bytes]]) -> list[str]:
        caplog.clear()
        for answer in those:
            await lose_one(answer)
        return [record.getMessage() for record in caplog.records]

    lines = await lose(answers[8:20])
    assert len(lines) == 5
    assert all(line.startswith(lost) and not line.endswith(")") for line in lines)
    now_s[0] += server_module.LOG_INTERVAL_S
    (line,) = await lose(answers[20:21])
    assert line.startswith(lost)
    assert line.endswith(" (7 more like it were not logged)")
    (line,) = await lose(answers[21:])
    assert not line.endswith(")")


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


async def test_an_answer_that_was_waited_for_fits_a_server_that_came_back_with_less_room(
    serve: Serve, new_nats_server: Callable[[str], NatsServer]
) -> None:
    """Although no other invocation came in between."""
    server = new_nats_server("max_payload: 4096")
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)}, url=server.url)
    reply, result = "_INBOX.who-comes-back", os.urandom(5000)
    await setup.raw.publish(invocation_subject(setup.server.prefix, INSTANCE, "wait"), b"", reply)
    await until(lambda: setup.server.in_flight == 1)
    await in_thread(server.kill)
    await in_thread(server.start, "max_payload: 1024")
    await until(lambda: setup.connection.reconnects == 1)
    raw = await nats.connect(server.url)
    results = await raw.subscribe(f"{reply}.results")
    await settled(raw)
    answers[0].set_result(result)
    pieces = []
    while piece := (await results.next_msg(DEADLINE_S)).data:
        pieces.append(piece)
    assert b"".join(pieces) == result
    assert setup.server.unsent == 0
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
    def die(self: Invocations[Any, Any], now_s: float) -> None:
        raise RuntimeError("boom")

    setup = await serve({"f": echo})
    assert setup.server.failed is None
    monkeypatch.setattr(Invocations, "expire", die)
    await until(lambda: setup.server.failed is not None)
    assert str(setup.server.failed) == "boom"
    assert await (await setup.begin("f", b"still")).result() == b"still from nobody"


def test_a_second_server_on_a_direct_connection_is_refused() -> None:
    """It would take the invocations of the first."""
    direct, plain = (Connection(ConnectionOptions(("nats://127.0.0.1:1",), path=path)) for path in ("direct", "plain"))
    Server(direct, "default.first")
    with pytest.raises(ValueError, match=r"^found a second server on one direct connection, allowed one: open a conn"):
        Server(direct, "default.second")
    for prefix in ("default.first", "default.second"):
        Server(plain, prefix)


# Answers that are waited for


def waiting_in(answers: list[asyncio.Future[bytes]]) -> Handler:
    """Return a handler whose answers are futures, which it adds to a list."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answers.append(answer)
        return Later(answer)

    return handle


@pytest.mark.parametrize("is_future", [True, False])
async def test_a_future_costs_no_task(serve: Serve, is_future: bool) -> None:
    answers: list[asyncio.Future[bytes]] = []
    gate = Gate()
    setup = await serve({"wait": waiting_in(answers) if is_future else gate.handle, "echo": echo})
    assert await (await setup.begin("echo", b"")).result() == b" from nobody"
    before = asyncio.all_tasks()
    waiting = [await setup.begin("wait", b"") for _ in range(20)]
    await until(lambda: setup.server.in_flight == 20)
    await settled(setup.raw)
    assert len(asyncio.all_tasks() - before) == (0 if is_future else 20)
    gate.open()
    for answer in answers:
        answer.set_result(b"let go: ")
    for invocation in waiting:
        await invocation.handshake()
        assert await invocation.result() == b"let go: "
    assert setup.server.in_flight == 0
    assert setup.server.counts.answered == 21
    assert setup.server._answers == set()


async def test_futures_are_answered_as_they_are_done_in_any_order(serve: Serve) -> None:
    """One in the turn in which it was asked for, and some together, with results of many messages."""
    answers: list[asyncio.Future[bytes]] = []
    handler = waiting_in(answers)

    def done(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        pending = handler(caller, buffer, start, end)
        answers.pop().set_result(b"done")
        return pending

    setup = await serve({"wait": handler, "done": done})
    waiting = [await setup.begin("wait", b"") for _ in range(6)]
    await until(lambda: len(answers) == 6)
    assert await (await setup.begin("done", b"")).result() == b"done"
    large = os.urandom(setup.connection.max_payload * 2 + 1)
    for number in (4, 1, 5):
        answers[number].set_result(b"%d" % number)
    answers[0].set_result(large)
    assert await waiting[0].result() == large
    for number in (1, 4, 5):
        assert await waiting[number].result() == b"%d" % number
    answers[2].set_result(b"")
    answers[3].set_exception(RuntimeError("boom"))
    assert await waiting[2].result() == await waiting[3].result() == b""
    counts = setup.server.counts
    assert (counts.answered, counts.failed, setup.server.in_flight) == (6, 1, 0)


async def test_futures_are_bounded_counted_and_ended_by_a_stop(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)}, InvocationLimits(waiting_max=3))
    waiting = [await setup.begin("wait", b"") for _ in range(3)]
    await until(lambda: setup.server.in_flight == 3)
    refused = await setup.begin("wait", b"")
    assert await refused.result() == b""
    assert answers[3].cancelled()
    assert (setup.server.in_flight, setup.server.counts.refused) == (3, 1)
    answers[0].cancel()
    assert await waiting[0].result() == b""
    await setup.stop(0.01)
    for invocation in waiting[1:]:
        assert await invocation.result() == b""
    assert all(answer.cancelled() for answer in answers)
    assert (setup.server.in_flight, setup.server.counts.failed, setup.server.counts.answered) == (0, 3, 0)
    raised = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [repr(error) for error in raised] == [
        "TimeoutError('the answer was cancelled')",
        "TimeoutError('the server stops')",
        "TimeoutError('the server stops')",
    ]


@pytest.mark.parametrize("outcome", [b"shared", RuntimeError("boom")])
async def test_two_invocations_may_share_one_future(serve: Serve, outcome: bytes | Exception) -> None:
    shared: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    setup = await serve({"wait": lambda *_: Later(shared)})
    waiting = [await setup.begin("wait", b"") for _ in range(2)]
    await until(lambda: setup.server.in_flight == 2)
    if isinstance(outcome, bytes):
        shared.set_result(outcome)
    else:
        shared.set_exception(outcome)
    waiting.append(await setup.begin("wait", b""))
    for invocation in waiting:
        assert await invocation.result() == (outcome if isinstance(outcome, bytes) else b"")
    counts = setup.server.counts
    assert (counts.answered, counts.failed) == ((3, 0) if isinstance(outcome, bytes) else (0, 3))
    assert setup.server.in_flight == 0


async def test_a_shared_future_is_ended_by_a_stop(serve: Serve) -> None:
    shared: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    setup = await serve({"wait": lambda *_: Later(shared)})
    waiting = [await setup.begin("wait", b"") for _ in range(2)]
    await until(lambda: setup.server.in_flight == 2)
    await setup.stop(0)
    for invocation in waiting:
        assert await invocation.result() == b""
    assert (setup.server.in_flight, setup.server.counts.failed) == (0, 2)


async def test_an_answer_that_nobody_can_wait_for_ends_its_invocation_alone(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours. It must not reach the loop that reads."""
    not_awaitable: Any = 17
    setup = await serve({"f": lambda *_: not_awaitable, "g": lambda *_: Later(not_awaitable), "echo": echo})
    for function in ("f", "g"):
        assert await (await setup.begin(function, b"")).result() == b""
    assert await (await setup.begin("echo", b"after")).result() == b"after from nobody"
    assert (setup.server.counts.failed, setup.server.in_flight, setup.connection.reconnects) == (2, 0, 0)
    assert caplog.text.count("its handler failed") == 2


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


async def test_stop_waits_for_the_last_answer(serve: Serve) -> None:
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)})
    waiting = [await setup.begin("wait", b"") for _ in range(3)]
    await until(lambda: len(answers) == 3)
    stopping = asyncio.create_task(setup.stop(DEADLINE_S))
    for invocation, answer in zip(waiting, answers, strict=True):
        await setup.connection.flush(DEADLINE_S)
        assert not stopping.done()
        answer.set_result(b"in time")
        assert await invocation.result() == b"in time"
    await stopping
    assert setup.server.counts.answered == 3


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


async def test_stop_waits_for_no_answer_that_does_not_end_when_it_is_cancelled(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    let_go = asyncio.Event()

    async def stubborn() -> bytes:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()
        return b"late"

    setup = await serve({"f": lambda *_: Later(stubborn())})
    await setup.begin("f", b"")
    await until(lambda: setup.server.in_flight == 1)
    async with asyncio.timeout(5):
        await setup.stop(0.01)
    assert "1 answers did not end when they were cancelled" in caplog.text
    let_go.set()
    await until(lambda: setup.server.in_flight == 0)


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
