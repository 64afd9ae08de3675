"""A connection that its server or nats-py's client gives up, and that comes back; requests, flushes, and missing permissions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import pytest
from nats.aio.client import Client

from keyvalue_transport.nats import opening as opening_module
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, Message, Subscription
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import DisconnectedError
from tests.conftest import DEADLINE_S, PATHS, NatsServer, RawInvocation, in_thread, settled
from tests.nats_configs import user_config
from tests.transport.nats.in_process import INSTANCE, PREFIXES, Heard, Proxy, Serve, echo, until, with_user

# Coming back


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
    with pytest.raises(
        DisconnectedError, match=r"^a message of 4 bytes was not sent: (the connection is|Connection) lost"
    ):
        await connection.publish("a.subject", b"away")
    with pytest.raises(DisconnectedError, match=r"no request to a\.subject was sent: the connection is lost"):
        await connection.request("a.subject", b"away", DEADLINE_S)
    assert connection.server == "none"
    await in_thread(server.start)
    await until(lambda: connection.reconnects == 1)
    await connection.publish("a.subject", b"after")
    assert await heard.next() == b"after", "nothing was kept while it was away"
    assert connection.server == server.url
    await connection.close()
    assert not connection.connected
    assert caplog.text.count("the connection is lost") == 1
    assert caplog.text.count("connected again") == 1


async def test_it_comes_back_when_the_server_lets_it_in_again_unless_it_is_closed(
    new_nats_server: Callable[[str], NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keyvalue_transport")
    let_in, shut_out = user_config("somebody", "first"), user_config("somebody", "second")
    server = new_nats_server(let_in)
    connection = await Connection.open(ConnectionOptions((with_user(server.url, "somebody:first"),)))
    heard = Heard()
    await connection.subscribe("a.subject", heard.hear)
    await in_thread(server.reload, shut_out)
    await until(lambda: "the NATS server refuses the connection" in caplog.text)
    assert not connection.connected
    await in_thread(server.reload, let_in)
    await until(lambda: connection.reconnects == 1)
    await connection.publish("a.subject", b"after")
    assert await heard.next() == b"after"
    assert heard.messages.empty()
    assert caplog.text.count("the connection is lost") == caplog.text.count("connected again") == 1
    await in_thread(server.reload, shut_out)
    await until(lambda: not connection.connected)
    await connection.close()
    await in_thread(server.reload, let_in)
    with pytest.raises(DisconnectedError, match="connection closed"):
        await connection.publish("a.subject", b"")
    assert (connection.connected, connection.reconnects) == (False, 1)


@pytest.mark.parametrize("error", ["User Authentication Expired", "Maximum Payload Violation"])
async def test_it_comes_back_where_nats_py_gives_up(
    serve: Serve, nats_server: NatsServer, raw: Client, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    """An error from the server makes nats-py close its client for good.

    The next client keeps the order of arrival too.
    """
    caplog.set_level(logging.INFO, "keyvalue_transport")
    proxy = Proxy()
    changes: list[object] = []
    async with proxy.before(nats_server.port) as url:
        setup = await serve({"f": echo, "changes": lambda *_: b"%d" % len(changes)}, url=url)
        counted, change = (invocation_subject(setup.server.prefix, INSTANCE, name) for name in ("changes", "change"))
        await setup.connection.subscribe_in_order(change, changes.append)
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
            for number in range(5 * turn - 4, 5 * turn + 1):
                await raw.publish(change, b"")
                assert await (await RawInvocation.begin(raw, counted, b"")).result() == b"%d" % number
        assert heard.messages.empty()
        await setup.stop(1)
        await setup.connection.close()
    assert caplog.text.count("the connection is lost") == 2
    assert caplog.text.count("connected again") == 2


@pytest.mark.parametrize("path", PATHS)
async def test_a_drain_that_outlives_its_client_ends_no_other_subscription(
    nats_server: NatsServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next client uses the same subscription ids. It takes over nothing that ends meanwhile."""
    proxy, heard = Proxy(), Heard()
    kept_subject = next(PREFIXES)
    async with proxy.before(nats_server.port) as url:
        connection = await Connection.open(ConnectionOptions((url,), path=path))
        early = await connection.subscribe(next(PREFIXES), heard.hear)
        kept = await connection.subscribe_frames(kept_subject, lambda *frame: heard.messages.put_nowait(frame[3]))
        late = await connection.subscribe(next(PREFIXES), heard.hear)
        carry = connection._carry

        async def carry_slowly(subscription: Subscription) -> None:
            await carry(subscription)
            await connection.drain([late], DEADLINE_S)

        monkeypatch.setattr(connection, "_carry", carry_slowly)
        proxy.hold()
        draining = asyncio.create_task(connection.drain([early], 1))
        await proxy.held.wait()
        proxy.say(b"-ERR 'User Authentication Expired'\r\n")
        await until(lambda: connection.reconnects == 1)
        proxy.release()
        await draining
        await connection.publish(kept_subject, b"heard")
        assert await heard.next() == b"heard"
        assert connection._subscriptions == [kept]
        assert len(connection._client._subs) == 1
        await connection.close()


async def test_close_while_the_server_goes_away(new_nats_server: Callable[[], NatsServer], path: str) -> None:
    """Close this many steps of the event loop after the loss, while nats-py is closing too."""
    server = new_nats_server()
    connections = [await Connection.open(ConnectionOptions((server.url,), path=path)) for _ in range(8)]

    async def close(connection: Connection, steps: int) -> None:
        while connection.connected:  # noqa: ASYNC110 # the step at which it is seen matters
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        await connection.close()
        assert not connection.connected

    server.kill(wait=False)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as closing:
        for steps, connection in enumerate(connections):
            closing.create_task(close(connection, steps))


async def test_close_leaves_nothing_while_the_server_reads_nothing(
    new_nats_server: Callable[[], NatsServer], path: str
) -> None:
    """Close while nats-py's tasks wait for the socket and swallow a cancellation.

    Their unsent output is lost with the connection.
    """
    server = new_nats_server()
    before = asyncio.all_tasks()
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    transport = connection._client._transport._io_writer.transport  # type: ignore[union-attr] # nats-py's
    with server.silence():
        while transport.get_write_buffer_size() == 0:
            with suppress(TimeoutError):  # it waits for room at last
                async with asyncio.timeout(0.1):
                    await connection.publish("a.subject", bytes(1024 * 1024))
        await connection.close()
        assert asyncio.all_tasks() == before
    assert transport.get_write_buffer_size() == 0


async def test_nothing_goes_on_after_close(
    new_nats_server: Callable[[], NatsServer], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconnect of nats-py can swallow a cancellation that arrives as an attempt fails. It must not go on forever."""
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
    with pytest.raises(DisconnectedError, match="a message of 1048577 bytes was not sent: maximum payload exceeded"):
        await connection.publish(subject, bytes(connection.max_payload + 1))
    await connection.close()
    with pytest.raises(DisconnectedError, match="connection closed"):
        await connection.request(subject, b"question", DEADLINE_S)
    with pytest.raises(DisconnectedError, match="connection closed"):
        await connection.flush(DEADLINE_S)


@pytest.mark.parametrize("path", PATHS)
async def test_a_flush_ends_with_the_connection(new_nats_server: Callable[[], NatsServer], path: str) -> None:
    server = new_nats_server()
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    with server.silence():
        flushing = asyncio.create_task(connection.flush(DEADLINE_S * 100))
        await asyncio.sleep(0.1)  # until the PING is written
        await in_thread(server.kill)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(DisconnectedError):
            await flushing
        await in_thread(server.start)
        await until(lambda: connection.connected)
        await connection.flush(DEADLINE_S)
    await connection.close()


async def test_flush_waits_for_subscriptions(connection: Connection, raw: Client) -> None:
    async def answer(message: Message) -> None:
        await connection.publish(message.reply, b"answer")

    for _ in range(50):
        subject = f"{next(PREFIXES)}.asked"
        await connection.subscribe(subject, answer)
        await connection.flush(DEADLINE_S)
        assert (await raw.request(subject, timeout=DEADLINE_S)).data == b"answer"


async def test_a_late_flush_does_no_harm(new_nats_server: Callable[[], NatsServer], path: str) -> None:
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


@pytest.mark.parametrize("path", PATHS)
async def test_a_reading_that_ends_is_begun_again(
    path: str, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """nats-py still claims to be connected, and would notice after 60 s."""
    connection = await Connection.open(ConnectionOptions((nats_server.url,), path=path))
    heard = Heard()
    await connection.subscribe("revived", heard.hear)
    parser = connection._client._ps
    parse, parser.parse = parser.parse, None  # type: ignore[method-assign, assignment] # the next read raises
    await connection._client._send_ping()
    await until(lambda: connection.reading.ended > 0)
    parser.parse = parse  # type: ignore[method-assign]
    await until(lambda: connection.reconnects > 0)
    await connection.publish("revived", b"again")
    assert await heard.next() == b"again"
    assert caplog.text.count("the reading has ended") == connection.reading.ended
    await connection.close()


async def test_a_missing_permission_is_recorded(new_nats_server: Callable[[str], NatsServer]) -> None:
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
    assert connection.refusal == 'Permissions Violation for Subscription to "forbidden.subject"'
    await connection.publish("allowed.subject", b"still there")
    assert await heard.next() == b"still there"
    assert connection.connected
    await connection.close()


async def test_a_client_that_gives_up_as_it_comes_back_is_replaced(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reports this only once, while another client takes its place and nobody listens."""
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    flush = connection.flush
    lost: list[object] = []

    async def flush_and_lose(timeout_s: float) -> None:
        await flush(timeout_s)
        if not lost:
            lost.append(connection._client)
            await connection._client.close()

    with monkeypatch.context() as patches:
        patches.setattr(connection, "flush", flush_and_lose)
        await connection._client.close()
        await until(lambda: connection.reconnects == 1)
    assert lost
    await connection.flush(DEADLINE_S)
    assert (connection.connected, connection.reconnects, connection.failed) == (True, 1, None)
    await connection.close()


async def test_nothing_is_subscribed_while_another_client_connects(new_nats_server: Callable[[], NatsServer]) -> None:
    """The subscription would be lost with the first failed attempt, or made twice."""
    server = new_nats_server()
    connections = [await Connection.open(ConnectionOptions((server.url,))) for _ in range(6)]
    heard = Heard()
    with server.silence():  # so that no client connects
        for steps, connection in enumerate(connections):
            await connection._client.close()
            for _ in range(steps):
                await asyncio.sleep(0)
            with pytest.raises(DisconnectedError, match=r"^a\.subject: not subscribed: "):
                await connection.subscribe("a.subject", heard.hear)
    for connection in connections:
        await until(lambda connection=connection: connection.reconnects == 1)  # type: ignore[misc] # a default
        await connection.subscribe("a.subject", heard.hear)
        await connection.publish("a.subject", b"once")
        assert await heard.next() == b"once"
        await connection.flush(DEADLINE_S)
        await connection.close()
        assert heard.messages.empty()


async def test_a_drain_ends_though_nats_py_swallows_its_cancellation(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fill the socket: the UNSUB waits for it, and then for a PONG that never arrives."""

    async def ignore(message: Message) -> None:
        pass

    subscription = await connection.subscribe("connection.swallowed", ignore)
    waits = 0

    async def swallow(*_: object) -> None:
        nonlocal waits
        waits += 1
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(connection._client, "_send_unsubscribe", swallow)
    monkeypatch.setattr(connection._client, "flush", swallow)
    async with asyncio.timeout(DEADLINE_S):
        await connection.drain([subscription], 0.01)
    assert waits >= 2
