"""The server over both paths: handlers of every kind, messages that arrive too fast, and stopping."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from keyvalue_transport.nats import connection as connection_module
from keyvalue_transport.nats import rate_limit
from keyvalue_transport.nats import server as server_module
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, Message
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import (
    DecodeError,
    DisconnectedError,
    InvocationTimeoutError,
    NeedMoreBytes,
    NoProviderError,
)
from keyvalue_transport.wrpc.handler import Caller, Handler, HandlerResult
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations
from tests.conftest import DEADLINE_S, NatsServer, RawInvocation, in_thread, settled
from tests.recorded_replies import Later
from tests.transport.nats.in_process import INSTANCE, Proxy, Serve, Setup, echo, read_all, until, waiting_in


def needs_more(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
    raise NeedMoreBytes(end + 1)


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


async def test_a_handler_that_fails_ends_only_its_own_invocation(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """It may fail at once, later, or with an answer that cannot be awaited."""

    def fail(*_: object) -> bytes:
        raise RuntimeError("boom at once")

    async def wait() -> bytes:
        await asyncio.sleep(0)
        raise RuntimeError("boom later")

    async def find() -> bytes:
        raise DecodeError("found late that they are malformed")

    not_awaitable: Any = 17
    handlers: dict[str, Handler] = {
        "fail": fail,
        "wait": lambda *_: Later(wait()),
        "no-result": lambda *_: not_awaitable,
        "no-awaitable": lambda *_: Later(not_awaitable),
        "damaged": lambda *_: Later(find()),
    }
    setup = await serve({**handlers, "echo": echo})
    for name in handlers:
        assert await (await setup.begin(name, b"secret parameters")).result() == b""
    assert await (await setup.begin("echo", b"after")).result() == b"after from nobody"
    counts = setup.server.counts
    assert (counts.failed, counts.damaged, counts.answered) == (4, 1, 1)
    assert (setup.server.in_flight, setup.connection.reconnects) == (0, 0)
    assert "RuntimeError: boom at once" in caplog.text
    assert "RuntimeError: boom later" in caplog.text
    assert "malformed parameters: found late that they are malformed" in caplog.text
    assert caplog.text.count("its handler failed") == 4
    assert "secret parameters" not in caplog.text


async def test_failures_and_lost_answers_have_their_own_log_rate_limit(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(server_module, "monotonic", lambda: now_s[0])
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)})
    for _ in range(29):
        await setup.begin("wait", b"")
    await until(lambda: len(answers) == 29)

    async def end(number: int, outcome: bytes | Exception) -> list[str]:
        """End several of them, one after another. Return what is logged, without the reason of a loss."""
        caplog.clear()
        for _ in range(number):
            before = ended()
            if isinstance(outcome, Exception):
                answers.pop().set_exception(outcome)
            else:
                answers.pop().set_result(outcome)
            await until(lambda before=before: ended() > before)  # type: ignore[misc] # a default
        return [
            re.sub(": (connection closed|the connection is lost)", "", record.getMessage()) for record in caplog.records
        ]

    def ended() -> int:
        return setup.server.counts.failed + setup.server.unsent

    failed = "an invocation was ended without a result: its handler failed"
    assert await end(8, RuntimeError("boom")) == [failed] * rate_limit.LINES_MAX == [failed] * 5
    now_s[0] += rate_limit.INTERVAL_S
    assert await end(2, RuntimeError("boom")) == [f"{failed} (3 more like it were not logged)", failed]
    assert await end(10, RuntimeError("boom")) == [failed] * 3
    await setup.connection.close()
    sent_bytes, lost = setup.server.counts.sent_bytes, "an answer is lost: 2 messages were not sent"
    assert await end(7, b"result") == [lost] * 5
    now_s[0] += rate_limit.INTERVAL_S
    assert await end(2, b"result") == [f"{lost} (2 more like it were not logged)", lost]
    assert (setup.server.unsent, setup.server.counts.sent_bytes) == (18, sent_bytes)


async def test_results_are_cut_for_the_server_that_is_connected_when_they_are_sent(
    serve: Serve, new_nats_server: Callable[[str], NatsServer]
) -> None:
    """The server that came back allows less.

    The first answer was pending then, and no other invocation came in between.
    """
    server = new_nats_server("max_payload: 4096")
    answers: list[asyncio.Future[bytes]] = []
    result = os.urandom(5000)
    handlers = {"wait": waiting_in(answers), "f": lambda caller, buffer, start, end: result}
    setup = await serve(handlers, url=server.url)
    assert await (await setup.begin("f", b"")).result() == result
    await setup.raw.publish(invocation_subject(setup.server.prefix, INSTANCE, "wait"), b"", "_INBOX.who-comes-back")
    await until(lambda: setup.server.in_flight == 1)
    await in_thread(server.kill)
    await in_thread(server.start, "max_payload: 1024")
    await until(lambda: setup.connection.reconnects == 1)
    raw = await nats.connect(server.url)
    results = await raw.subscribe("_INBOX.who-comes-back.results")
    await settled(raw)
    answers[0].set_result(result)
    pieces = [(await results.next_msg(DEADLINE_S)).data for _ in range(6)]
    assert pieces == [*(result[at : at + 1024] for at in range(0, 5000, 1024)), b""]
    assert await (await Setup(setup.server, setup.connection, raw).begin("f", b"")).result() == result
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


async def test_half_open_invocations_expire_until_the_task_that_ends_them_dies(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "EXPIRY_INTERVAL_S", 0.01)
    setup = await serve({"half": needs_more, "f": echo}, InvocationLimits(half_open_timeout_s=0.01))
    assert await (await setup.begin("half", b"p")).result() == b""
    assert (setup.server.counts.expired, setup.server.in_flight, setup.server.failed) == (1, 0, None)

    def die(self: Invocations[Any, Any], now_s: float) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(Invocations, "expire", die)
    await until(lambda: setup.server.failed is not None)
    assert str(setup.server.failed) == "boom"
    assert await (await setup.begin("f", b"still")).result() == b"still from nobody"


def test_a_second_server_on_a_direct_connection_is_refused() -> None:
    """It would receive the invocations of the first."""
    direct, plain = (Connection(ConnectionOptions(("nats://127.0.0.1:1",), path=path)) for path in ("direct", "plain"))
    Server(direct, "default.first")
    with pytest.raises(ValueError, match=r"^found a second server on one direct connection, allowed one: open a conn"):
        Server(direct, "default.second")
    for prefix in ("default.first", "default.second"):
        Server(plain, prefix)


# Answers that are awaited


@pytest.mark.parametrize("in_task", [False, True])
async def test_awaited_answers_block_nobody(serve: Serve, in_task: bool) -> None:
    """A future needs no task, a coroutine needs one."""
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers, in_task), "echo": echo})
    assert await (await setup.begin("echo", b"")).result() == b" from nobody"
    before = asyncio.all_tasks()
    waiting = [await setup.begin("wait", b"") for _ in range(20)]
    await until(lambda: len(answers) == 20)
    await settled(setup.raw)
    assert len(asyncio.all_tasks() - before) == (20 if in_task else 0)
    assert await (await setup.begin("echo", b"meanwhile")).result() == b"meanwhile from nobody"
    assert [invocation.unread for invocation in waiting] == [(1, 0)] * 20
    for answer in answers:
        answer.set_result(b"let go")
    for invocation in waiting:
        assert await invocation.result() == b"let go"
    assert (setup.server.in_flight, setup.server.counts.answered, len(setup.server._waits)) == (0, 22, 0)


async def test_futures_are_answered_as_they_are_done_in_any_order(serve: Serve) -> None:
    """Complete one in the turn that asked for it, and some together, with results of many messages."""
    answers: list[asyncio.Future[bytes]] = []
    handler = waiting_in(answers)

    def done(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
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


async def test_futures_are_limited_and_end_when_they_are_cancelled(serve: Serve) -> None:
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)}, InvocationLimits(waiting_max=1))
    waiting = await setup.begin("wait", b"")
    await until(lambda: setup.server.in_flight == 1)
    assert await (await setup.begin("wait", b"")).result() == b""
    assert answers[1].cancelled()
    assert (setup.server.in_flight, setup.server.counts.refused) == (1, 1)
    answers[0].cancel()
    assert await waiting.result() == b""
    assert setup.server.counts.failed == 1


async def test_invocations_may_share_one_future(serve: Serve) -> None:
    """Begin one of them when the future is already done."""
    shared: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    setup = await serve({"wait": lambda *_: Later(shared)})
    waiting = [await setup.begin("wait", b"") for _ in range(2)]
    await until(lambda: setup.server.in_flight == 2)
    shared.set_result(b"shared")
    waiting.append(await setup.begin("wait", b""))
    assert [await invocation.result() for invocation in waiting] == [b"shared"] * 3
    assert (setup.server.counts.answered, setup.server.in_flight) == (3, 0)


# Too fast


async def test_dropped_messages_are_refused(serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_stop_takes_no_new_call_and_waits_for_the_last_answer(serve: Serve) -> None:
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)})
    waiting = [await setup.begin("wait", b"") for _ in range(3)]
    await until(lambda: len(answers) == 3)
    stopping = asyncio.create_task(setup.stop(DEADLINE_S))
    with pytest.raises(NoProviderError):
        await refusal(setup)
    late, waiting_answers = len(answers) - 3, list(answers)
    for invocation, answer in zip(waiting, waiting_answers, strict=False):
        await setup.connection.flush(DEADLINE_S)
        assert not stopping.done()
        answer.set_result(b"in time")
        assert await invocation.result() == b"in time"
    for answer in answers[3:]:
        answer.set_result(b"")
    await stopping
    assert setup.server.counts.answered == 3 + late


async def refusal(setup: Setup) -> None:
    """Invoke until the server refuses. Do not wait for the invocations that it takes before."""
    invoker = Invoker(setup.connection)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "wait")
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with suppress(InvocationTimeoutError, DisconnectedError):  # the latter: not sent within this time
                await invoker.invoke(subject, b"late", read_all, 0.01)


async def test_stop_loses_no_message_that_arrives_while_it_unsubscribes(
    serve: Serve, nats_server: NatsServer, raw: Client
) -> None:
    """Invocations after its first PING are late.

    Those that NATS sends before it gets the UNSUBs are answered; NATS refuses the others.
    """
    proxy = Proxy()
    async with proxy.before(nats_server.port) as url:
        setup = await serve({"f": echo}, url=url)
        subject = invocation_subject(setup.server.prefix, INSTANCE, "f")
        assert await (await RawInvocation.begin(raw, subject, b"before")).result() == b"before from nobody"
        proxy.hold()
        stopping = asyncio.create_task(setup.stop(DEADLINE_S))
        await proxy.held.wait()
        await settled(raw)  # so that the answer to a PING that overtook the UNSUB has already passed
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


async def test_stop_ends_the_calls_that_still_wait_for_their_handler(serve: Serve, raw: Client) -> None:
    """Under overload, a stop on the plain path took seconds, and the calls in nats-py's queue were lost."""

    def slow(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        sleep(0.002)
        return b"r"

    setup = await serve({"slow": slow})
    results = await raw.subscribe("burst.*.results")
    for number in range(300):
        await raw.publish(invocation_subject(setup.server.prefix, INSTANCE, "slow"), b"", f"burst.{number}")
    await settled(raw)
    await setup.connection.flush(DEADLINE_S)
    await setup.stop(0.05)
    ended: set[str] = set()
    while len(ended) < 300:
        message = await results.next_msg(DEADLINE_S)
        if not message.data:
            ended.add(message.subject)
    counts = setup.server.counts
    assert counts.answered + counts.refused == 300
    assert (counts.refused > 0) is (setup.connection.direct is None)


async def test_stop_ends_invocations_that_are_not_answered_in_time(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """End a coroutine, two invocations that share a future, and incomplete parameters."""
    answers: list[asyncio.Future[bytes]] = []
    shared: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    handlers = {"wait": waiting_in(answers, in_task=True), "shared": lambda *_: Later(shared), "half": needs_more}
    setup = await serve(handlers)
    begun = [await setup.begin(function, b"p") for function in ("wait", "shared", "shared", "half")]
    await until(lambda: setup.server.in_flight == 4)
    await setup.stop(0.05)
    for invocation in begun:
        assert await invocation.result() == b""
    assert answers[0].cancelled()
    assert shared.cancelled()
    counts = setup.server.counts
    assert (setup.server.in_flight, counts.failed, counts.refused, counts.answered) == (0, 3, 1, 0)
    raised = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [repr(error) for error in raised] == ["TimeoutError('the server stops')"] * 3


async def test_stop_does_not_wait_for_an_answer_that_ignores_its_cancellation(
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
    async with asyncio.timeout(DEADLINE_S):
        await setup.stop(0.01)
    assert "1 answers did not end when they were cancelled, and are abandoned" in caplog.text
    let_go.set()
    await until(lambda: setup.server.in_flight == 0)


async def test_an_idle_server_stops_at_once(serve: Serve, connection: Connection) -> None:
    """It may have had invocations, have been stopped before, or never have been started."""
    setup = await serve({"f": echo})
    assert await (await setup.begin("f", b"")).result() == b" from nobody"
    async with asyncio.timeout(DEADLINE_S):
        await setup.stop(600)
        await setup.stop(600)
        await Server(connection, "default.never").stop(600)
    assert setup.server.failed is None
    assert setup.connection.connected
    assert not setup.connection._subscriptions


async def test_a_server_does_not_start_on_a_closed_connection(nats_server: NatsServer) -> None:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    server = Server(connection, "default.closed")
    server.add(INSTANCE, {"f": echo})
    await connection.close()
    with pytest.raises(DisconnectedError, match="not subscribed: connection closed"):
        await server.start()
    await server.stop(0)
