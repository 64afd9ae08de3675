"""The client of any interface, against a server in this process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from keyvalue_transport.nats import invoker as invoker_module
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.denials import Denials
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import (
    DecodeError,
    DisconnectedError,
    InvocationEndedError,
    InvocationTimeoutError,
    NeedMoreBytes,
    NoProviderError,
    PermissionDeniedError,
)
from keyvalue_transport.wrpc.handler import Caller
from tests.conftest import DEADLINE_S, NatsServer, in_thread
from tests.transport.nats.in_process import INSTANCE, Serve, echo, read_all, until, waiting_in, with_user


async def test_a_call_has_a_timeout(serve: Serve) -> None:
    """The late result is not mistaken for the result of the next call."""
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)})
    invoker = Invoker(setup.connection)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "wait")
    first = asyncio.create_task(invoker.invoke(subject, b"", read_all, DEADLINE_S))  # it makes the subscription
    await until(lambda: len(answers) == 1)
    answers[0].set_result(b"first")
    assert await first == b"first"
    with pytest.raises(InvocationTimeoutError, match=r"functions@1\.0\.0\.wait: no result within 0\.02 s$"):
        await invoker.invoke(subject, b"", read_all, 0.02)
    again = asyncio.create_task(invoker.invoke(subject, b"", read_all, DEADLINE_S))
    await until(lambda: len(answers) == 3)
    for answer, result in zip(answers[1:], (b"late", b"in time"), strict=True):
        answer.set_result(result)
    assert await again == b"in time"
    assert setup.server.counts.answered == 3
    assert invoker._calls == {}


async def test_a_cancelled_call_leaves_nothing(serve: Serve) -> None:
    """Cancel the first call before anything is sent, since it makes the subscription for the others."""
    answers: list[asyncio.Future[bytes]] = []
    setup = await serve({"wait": waiting_in(answers)})
    invoker = Invoker(setup.connection)
    subject = invocation_subject(setup.server.prefix, INSTANCE, "wait")

    def call() -> asyncio.Task[bytes]:
        return asyncio.create_task(invoker.invoke(subject, b"", read_all, DEADLINE_S))

    async def cancel(call: asyncio.Task[bytes]) -> None:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    first = call()
    await asyncio.sleep(0)
    await cancel(first)
    given_up, kept = call(), call()
    await until(lambda: len(answers) == 2)
    await cancel(given_up)
    assert len(invoker._calls) == 1
    for answer in answers:
        answer.set_result(b"result")
    assert await kept == b"result"
    assert invoker._calls == {}


class Published:
    """A connection that records what is published. Its provider accepts and answers everything at once."""

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self.connected = True
        self.denials = Denials()
        self.published: list[tuple[str, bytes, str, Mapping[str, str] | None]] = []

    def new_inbox(self) -> str:
        return "R_c"

    async def subscribe(self, subject: str, callback: Callable[[Any], Awaitable[None]]) -> None:
        assert subject == "R_c.>"
        self._hear = callback

    async def wait_connected(self) -> None:
        pass

    async def flush(self, timeout_s: float) -> None:
        assert not self.published, "the server must know the inbox first"

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.published.append((subject, payload, reply, headers))
        if reply:
            await self._hear(SimpleNamespace(subject=reply, data=b"", reply="R_s", headers=None))
            await self._hear(SimpleNamespace(subject=f"{reply}.results", data=b"result", reply="", headers=None))


#: Its block is NATS/1.0 CRLF a: b CRLF CRLF.
HEADERS = {"a": "b"}
HEADERS_BYTES = 18


@pytest.mark.parametrize(
    ("max_payload", "subject", "headers", "pieces"),
    [
        # subject and inbox take 15 bytes
        (25, "prefix.get", None, [b"0123456789"]),
        (24, "prefix.get", {}, [b"012345678", b"9"]),
        (25 + HEADERS_BYTES, "prefix.get", HEADERS, [b"0123456789"]),
        (22 + HEADERS_BYTES, "prefix.get", HEADERS, [b"0123456", b"789"]),
        (17, "prefix.get", None, [b"01", b"23456789"]),
        (16, "prefix.get", None, [b"0", b"123456789"]),
        (8, "prefix.get", None, [b"0", b"12345678", b"9"]),
        (3, "prefix.get", HEADERS, [b"0", b"123", b"456", b"789"]),
        (1, "prefix.get", None, [b"%d" % digit for digit in range(10)]),
        (17, "ключ", None, [b"0123", b"456789"]),
        (16, "", {"я": "ж"}, [b"0", b"123456789"]),
        (24, "", {"я": "ж"}, [b"0", b"123456789"]),
        (27, "", {"я": "ж"}, [b"01", b"23456789"]),
    ],
)
async def test_the_first_message_leaves_room_for_subjects_and_headers(
    max_payload: int, subject: str, headers: dict[str, str] | None, pieces: list[bytes]
) -> None:
    """Count bytes, as peers in other languages do."""
    connection: Any = Published(max_payload)
    invoker = Invoker(connection, headers)
    assert await invoker.invoke(subject, b"0123456789", read_some, DEADLINE_S) == b"result"
    first, *further = connection.published
    assert first == (subject, pieces[0], "R_c.1", headers or None)
    assert further == [("R_s.params", piece, "", None) for piece in [*pieces[1:], b""]]


@pytest.mark.parametrize(
    ("permissions", "subject"),
    [
        ('publish: ["_INBOX.>"]', r"publishing to default\.in-process-\d+\.wrpc\.0\.0\.1\.test:instance/.*\.echo"),
        ('publish: ["default.>"]', r"publishing to _INBOX\.\w+\.\w+\.params"),
        ('subscribe: ["default.>"]', r"subscribing to _INBOX\.\w+\.>, where results arrive"),
    ],
)
async def test_a_missing_permission_ends_a_call_at_once(
    serve: Serve, new_nats_server: Callable[[str], NatsServer], permissions: str, subject: str
) -> None:
    """Such a call took its whole timeout. Now, NATS' answer ends it, and the next call works with the permission."""
    users = "authorization {{ users: [{{ user: s, password: s }}, {{ user: c, password: c{} }}] }}"
    nats_server = new_nats_server(users.format(f", permissions: {{ {permissions} }}"))
    calls: list[bytes] = []

    def take(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        calls.append(buffer[start:end])
        if end - start < 3 * 1024 * 1024:
            raise NeedMoreBytes(3 * 1024 * 1024)
        return b"taken"

    setup = await serve({"echo": take}, url=with_user(nats_server.url, "s:s"))
    connection = await Connection.open(ConnectionOptions((with_user(nats_server.url, "c:c"),), path="plain"))
    invoker = Invoker(connection)
    function = invocation_subject(setup.server.prefix, INSTANCE, "echo")
    for _ in range(2):
        with pytest.raises(PermissionDeniedError, match=f"^NATS does not allow {subject}$"):
            await invoker.invoke(function, bytes(3 * 1024 * 1024), read_some, 100 * DEADLINE_S)
        await connection.flush(DEADLINE_S)
        assert bytes(3 * 1024 * 1024) not in calls
    assert invoker._calls == {}
    await in_thread(nats_server.reload, users.format(""))
    assert await invoker.invoke(function, bytes(3 * 1024 * 1024), read_some, DEADLINE_S) == b"taken"
    await invoker.close()
    await connection.close()


async def test_a_subscription_that_fails_when_no_call_waits_for_it_is_not_logged(
    new_nats_server: Callable[[str], NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call subscribes again. asyncio logged "Task exception was never retrieved"."""
    monkeypatch.setattr(invoker_module, "FLUSH_TIMEOUT_S", 0.1)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    server = new_nats_server("")
    connection = await Connection.open(ConnectionOptions((server.url,), path="plain"))
    invoker = Invoker(connection)

    async def give_up() -> None:
        with server.silence():
            with pytest.raises(DisconnectedError, match="the NATS server takes no more data"):
                await invoker.invoke("subject", b"", read_some, 0.01)
            assert invoker._subscribing is not None
            await asyncio.wait((invoker._subscribing,))
        with pytest.raises(NoProviderError):
            await invoker.invoke("subject", b"", read_some, DEADLINE_S)

    await asyncio.create_task(give_up())
    gc.collect()
    assert not reported
    await invoker.close()
    await connection.close()


async def test_a_call_waits_again_if_nats_is_lost_while_it_subscribes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = await serve({"echo": echo})
    flush, lost = setup.connection.flush, [1, 2]

    async def lose(timeout_s: float) -> None:
        if lost:
            raise DisconnectedError(f"the connection is lost {lost.pop()}")
        await flush(timeout_s)

    monkeypatch.setattr(setup.connection, "flush", lose)
    invoker = Invoker(setup.connection)
    function = invocation_subject(setup.server.prefix, INSTANCE, "echo")
    assert await invoker.invoke(function, b"", read_some, DEADLINE_S) == b" from nobody"
    await invoker.close()


@pytest.mark.parametrize("wait", ["wait_connected", "flush"])
async def test_a_closed_invoker_refuses_calls(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    """It also refuses those that wait for the connection or the subscription. Nothing stays subscribed."""
    go_on, waits = asyncio.Event(), asyncio.Event()
    original = getattr(connection, wait)

    async def block(*arguments: float) -> None:
        waits.set()
        await go_on.wait()
        await original(*arguments)

    monkeypatch.setattr(connection, wait, block)
    invoker = Invoker(connection)
    call = asyncio.create_task(invoker.invoke("subject", b"", read_some, DEADLINE_S))
    await waits.wait()
    closing = asyncio.create_task(invoker.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    for refused in (call, invoker.invoke("subject", b"", read_some, DEADLINE_S)):
        with pytest.raises(DisconnectedError, match=r"^the invoker is closed$"):
            await refused
    assert (connection._subscriptions, connection._client._subs) == ([], {})


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
    """Read a result that has at least a byte."""
    if at == end:
        raise NeedMoreBytes(at + 1)
    return read_all(buffer, at, end)
