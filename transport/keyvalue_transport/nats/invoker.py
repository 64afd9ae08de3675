"""The client side of wRPC over NATS. It can invoke any function of any interface.

An invocation that has ended is never sent. While NATS is away, an invocation waits for the connection within its own
timeout. NATS is often back within a second, and an error at once would only make callers wait and repeat their calls.
When the timeout is over, the invocation raises DisconnectedError, and nothing of it is left in any buffer. Bytes that
the socket has taken cannot be called back. So after InvocationTimeoutError, the invocation may still be executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from keyvalue_transport.nats.connection import Connection, Message, Subscription
from keyvalue_transport.nats.headers import TRACEPARENT
from keyvalue_transport.nats.subjects import params_subject
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import (
    DisconnectedError,
    InvocationTimeoutError,
    NoProviderError,
    PermissionDeniedError,
)

__all__ = ["Invoker"]

T = TypeVar("T")

#: Size of a header block without headers: "NATS/1.0" and two line ends.
HEADER_BLOCK_BYTES = 12
#: Size that each header adds to its name and its value: ": " and a line end.
HEADER_BYTES = 4
CLOSE_TIMEOUT_S = 1.0
FLUSH_TIMEOUT_S = 10.0
#: Seconds between two attempts to subscribe.
RETRY_S = 0.05
STATUS = "Status"
NO_RESPONDERS = "503"


class Invoker:
    """A client that invokes functions over a connection. Concurrent invocations share one inbox.

    :param headers: headers to send with every invocation, for example a host's `source-id` and `link-name`
    """

    def __init__(self, connection: Connection, headers: Mapping[str, str] | None = None) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._headers = dict(headers) if headers else None
        self._header_bytes = _size_of(self._headers)
        self._tokens = 0
        self._calls: dict[str, _Pending] = {}
        self._subscribing: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._inbox_denied = False
        self._results_arrive = False  # True while the inbox is subscribed
        self._closed = False
        connection.denials.listeners.add(self._on_denied)

    async def close(self) -> None:
        """Stop receiving results. Calls in flight will time out, and others raise DisconnectedError."""
        self._closed = True  # so that no call subscribes again
        self._connection.denials.listeners.discard(self._on_denied)
        self._results_arrive = False
        subscribing, self._subscribing = self._subscribing, None
        if subscribing is not None:
            subscribing.cancel()
            await asyncio.wait((subscribing,))
        await self._unsubscribe()

    async def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[T, int]],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> T:
        """Invoke a function and return its result. While the connection is lost, wait for it within `timeout_s`.

        :param traceparent: a header that makes the invocation a part of a trace
        :raises Exception: the result is an error that the interface defines; `decode` raises it
        :raises NoProviderError: the subject has no subscribers
        :raises PermissionDeniedError: NATS does not allow us to send the parameters or to receive the result
        :raises InvocationTimeoutError: no complete result arrived in time
        :raises InvocationEndedError: the provider ended the invocation without a complete result
        :raises DecodeError: the result is malformed
        :raises DisconnectedError: the parameters were not sent, or not all of them, and will not be sent later
        """
        self._tokens += 1
        token = f"{self._tokens:x}"
        connection = self._connection
        inbox = f"{self._inbox}.{token}"
        headers, header_bytes = self._headers, self._header_bytes
        if traceparent is not None:
            headers = {**(headers or {}), TRACEPARENT: traceparent}
            header_bytes = _size_of(headers)
        call: Call[T] | None = None
        pending: _Pending | None = None
        try:
            async with asyncio.timeout(timeout_s):
                if not self._results_arrive or not connection.connected:
                    await self._get_ready()
                # Leave room in the first message for its subjects and headers, as clients in other languages do.
                size_max = connection.max_payload
                first_bytes_max = size_max - header_bytes - len(subject.encode()) - len(inbox.encode())
                call = Call(params, decode, first_bytes_max, size_max)
                del params  # the call holds what is not sent yet
                pending = self._calls[token] = _Pending(call)
                await connection.publish(subject, call.start(), inbox, headers)
                pending.subjects.append(subject)
                while not call.done:
                    await pending.woken.wait()
                    pending.woken.clear()
                    await self._send_rest(pending)
                await self._send_rest(pending)
        except TimeoutError:
            if call is None or pending is None or not pending.subjects:
                reason = "the NATS server takes no more data" if connection.connected else "NATS is not connected"
                raise DisconnectedError(f"{subject}: not sent within {timeout_s:g} s: {reason}") from None
            if not call.done:
                raise InvocationTimeoutError(f"{subject}: no result within {timeout_s:g} s") from None
        finally:
            self._calls.pop(token, None)
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[return-value] # the call is done and has no error

    async def _send_rest(self, pending: _Pending) -> None:
        """Send the remaining pieces and the closing message, if a handshake has arrived."""
        inbox, pending.server_inbox = pending.server_inbox, ""
        if inbox:
            params = params_subject(inbox)
            pending.subjects.append(params)
            for piece in pending.call.accepted():
                try:
                    await self._connection.publish(params, piece)
                except DisconnectedError:
                    if piece and not pending.call.done:
                        raise
                    return  # the provider has all parameters, and may have executed the call

    async def _get_ready(self) -> None:
        """Wait until the connection is up and results can arrive. If NATS is lost meanwhile, wait for it again."""
        while True:
            self._check_open()
            await self._connection.wait_connected()
            self._check_open()
            if self._results_arrive:
                return
            if self._subscribing is None or self._subscribing.done():
                self._subscribing = asyncio.create_task(self._subscribe())
                self._subscribing.add_done_callback(_note_error)
            subscribing = self._subscribing
            await asyncio.wait((subscribing,))  # it goes on if this call ends
            if not subscribing.cancelled():  # `close` cancels it
                try:
                    subscribing.result()
                except DisconnectedError:
                    await asyncio.sleep(RETRY_S)

    def _check_open(self) -> None:
        if self._closed:
            raise DisconnectedError("the invoker is closed")

    async def _subscribe(self) -> None:
        """Subscribe to the inbox. Wait for the server, so that nothing is sent if NATS denies the subscription."""
        await self._unsubscribe()
        self._inbox_denied = False
        self._subscription = await self._connection.subscribe(f"{self._inbox}.>", self._on_message)
        await self._connection.flush(FLUSH_TIMEOUT_S)
        if self._inbox_denied:
            raise self._inbox_denial()
        self._results_arrive = True

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.drain([subscription], CLOSE_TIMEOUT_S)

    def _inbox_denial(self) -> PermissionDeniedError:
        return PermissionDeniedError(f"NATS does not allow subscribing to {self._inbox}.>, where results arrive")

    def _on_denied(self, denied: str) -> None:
        """End the calls that need a subject that NATS denies. `denied` is in lowercase."""
        if denied == f"{self._inbox}.>".lower():
            self._inbox_denied, self._results_arrive = True, False
            for pending in self._calls.values():
                pending.fail(self._inbox_denial())
            return
        for pending in self._calls.values():
            for subject in pending.subjects:
                if subject.lower() == denied:
                    pending.fail(PermissionDeniedError(f"NATS does not allow publishing to {subject}"))

    async def _on_message(self, message: Message) -> None:
        token, _, part = message.subject[len(self._inbox) + 1 :].partition(".")
        pending = self._calls.get(token)
        if pending is None:
            return
        call = pending.call
        if part == "results":
            call.result(message.data)
        elif message.reply:
            pending.server_inbox = message.reply
        elif message.headers and message.headers.get(STATUS) == NO_RESPONDERS:
            call.fail(NoProviderError("nobody serves this function: is the provider running, and is the prefix right?"))
        if call.done or pending.server_inbox:
            pending.woken.set()


class _Pending:
    """A call in flight.

    :ivar server_inbox: where more parameters can be sent; empty until then
    :ivar subjects: the subjects to which parameters were sent
    :ivar woken: set when the call is done, or when more can be sent
    """

    __slots__ = ("call", "server_inbox", "subjects", "woken")

    def __init__(self, call: Call[Any]) -> None:
        self.call = call
        self.server_inbox = ""
        self.subjects: list[str] = []
        self.woken = asyncio.Event()

    def fail(self, error: Exception) -> None:
        """End the call with an error, unless its result is here."""
        if not self.call.done:
            self.call.fail(error)
            self.woken.set()


def _note_error(subscribing: asyncio.Task[None]) -> None:
    """Take the error of a task, because all calls that wait for it may have timed out. asyncio would log it."""
    if not subscribing.cancelled():
        subscribing.exception()


def _size_of(headers: Mapping[str, str] | None) -> int:
    """Return the size of a header block."""
    if not headers:
        return 0
    return HEADER_BLOCK_BYTES + sum(
        len(name.encode()) + len(value.encode()) + HEADER_BYTES for name, value in headers.items()
    )
