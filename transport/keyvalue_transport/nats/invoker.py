"""The client side of wRPC over NATS. It can invoke any function of any interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from keyvalue_transport.nats.connection import Connection, Message, Subscription
from keyvalue_transport.nats.subjects import params_subject
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import InvocationTimeoutError, NoProviderError

__all__ = ["Invoker"]

T = TypeVar("T")

#: Size of a header block without headers: "NATS/1.0" and two line ends.
HEADER_BLOCK_BYTES = 12
#: Size that each header adds to its name and its value: ": " and a line end.
HEADER_BYTES = 4
CLOSE_TIMEOUT_S = 1.0
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
        self._header_bytes = (
            HEADER_BLOCK_BYTES
            + sum(len(name.encode()) + len(value.encode()) + HEADER_BYTES for name, value in headers.items())
            if headers
            else 0
        )
        self._tokens = 0
        self._calls: dict[str, _Pending] = {}
        self._subscribing: asyncio.Task[Subscription] | None = None

    async def close(self) -> None:
        """Stop receiving results. Calls in flight will time out."""
        subscribing, self._subscribing = self._subscribing, None
        if subscribing is not None and subscribing.done() and subscribing.exception() is None:
            await self._connection.drain([subscribing.result()], CLOSE_TIMEOUT_S)

    async def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[T, int]],
        timeout_s: float,
    ) -> T:
        """Invoke a function and return its result.

        :raises Exception: the result is an error that the interface defines; `decode` raises it
        :raises NoProviderError: the subject has no subscribers
        :raises InvocationTimeoutError: no complete result arrived in time
        :raises InvocationEndedError: the provider ended the invocation without a complete result
        :raises DecodeError: the result is malformed
        :raises DisconnectedError: the parameters could not be sent
        """
        if self._subscribing is None or (self._subscribing.done() and self._subscribing.exception() is not None):
            self._subscribing = asyncio.create_task(self._subscribe())
        await asyncio.shield(self._subscribing)
        self._tokens += 1
        token = f"{self._tokens:x}"
        connection = self._connection
        inbox = f"{self._inbox}.{token}"
        # Leave room in the first message for its subjects and headers, as clients in other languages do.
        first_bytes_max = connection.max_payload - self._header_bytes - len(subject.encode()) - len(inbox.encode())
        call = Call(params, decode, first_bytes_max, connection.max_payload)
        pending = self._calls[token] = _Pending(call)
        try:
            async with asyncio.timeout(timeout_s):
                await connection.publish(subject, call.start(), inbox, self._headers)
                while not call.done:
                    await pending.woken.wait()
                    pending.woken.clear()
                    await self._send_rest(pending)
                await self._send_rest(pending)
        except TimeoutError:
            raise InvocationTimeoutError(f"{subject}: no result within {timeout_s:g} s") from None
        finally:
            del self._calls[token]
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[return-value] # the call is done and has no error

    async def _send_rest(self, pending: _Pending) -> None:
        """Send the remaining pieces and the closing message, if a handshake has arrived."""
        inbox, pending.server_inbox = pending.server_inbox, ""
        if inbox:
            params = params_subject(inbox)
            for piece in pending.call.accepted():
                await self._connection.publish(params, piece)

    async def _subscribe(self) -> Subscription:
        return await self._connection.subscribe(f"{self._inbox}.>", self._on_message)

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
    """A call in flight. `woken` is set when the call is done, or when more can be sent to `server_inbox`."""

    __slots__ = ("call", "server_inbox", "woken")

    def __init__(self, call: Call[Any]) -> None:
        self.call = call
        self.server_inbox = ""
        self.woken = asyncio.Event()
