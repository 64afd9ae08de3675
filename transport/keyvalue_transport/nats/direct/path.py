"""A server's interface to the direct path. It subscribes, and sends late answers. `DirectProtocol` does the rest."""

from __future__ import annotations

from collections.abc import Callable

from keyvalue_transport.nats.connection import Connection, Message, Subscription
from keyvalue_transport.nats.direct.answers import FrameReplies, message_count
from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer, Further
from keyvalue_transport.nats.tracing import Tracer
from keyvalue_transport.wrpc.errors import DisconnectedError
from keyvalue_transport.wrpc.handler import Handler
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Step, Waiting

__all__ = ["DirectPath"]


class DirectPath:
    """A server's interface to the direct path of its connection. `PlainPath` explains the parameters.

    :raises ValueError: another server already uses this direct path
    """

    refusing_s = 0.0

    def __init__(
        self,
        connection: Connection,
        routes: DirectRoutes,
        inbox: str,
        nobody: str,
        new_token: Callable[[], str],
        limits: InvocationLimits | None,
        on_step: Callable[[Step[bytes, bytes]], None],
        on_waiting: Callable[[Waiting[bytes]], None],
        on_unsent: Callable[[DisconnectedError], None],
        on_batch: Callable[[float], None] | None,
        tracer: Tracer | None = None,
    ) -> None:
        self._connection = connection
        self._routes = routes
        self._on_unsent = on_unsent
        replies = FrameReplies(inbox, nobody, connection.max_payload, new_token())
        self.invocations = Invocations(replies, new_token, limits, routes.has_room)
        routes.serve(DirectServer(self.invocations, replies, on_step, on_waiting, on_batch, self._lose, tracer))

    async def subscribe_function(self, subject: str, handler: Handler, queue: str) -> Subscription:
        """Receive the invocations of a function."""
        return await self._connection.subscribe(subject, _never, queue, route=handler)

    async def subscribe_params(self, subject: str) -> Subscription:
        """Receive the remaining pieces of cut parameters."""
        return await self._connection.subscribe(subject, _never, route=Further.PIECES)

    async def refuse_all(self, queued: list[str]) -> None:
        """Do nothing, because calls begin as soon as they arrive."""
        assert not queued

    def send(self, sends: list[bytes]) -> None:
        """Send messages outside of reads, in the next turn of the event loop."""
        protocol = self._routes.protocol
        if sends and (protocol is None or not protocol.send(sends)):
            self._lose(message_count(sends))

    def _lose(self, unsent: int) -> None:
        self._on_unsent(DisconnectedError(f"{unsent} messages were not sent: the connection is lost", unsent))

    def give_up(self) -> list[bytes]:
        """Give up the calls that are to be made again. Return the frames that end them."""
        if self._routes.begun is not None:
            self._routes.begun.close()
        return [] if self._routes.repeats is None else self._routes.repeats.close()

    async def flush(self) -> None:
        """Write everything given to `send`."""
        if self._routes.protocol is not None:
            self._routes.protocol.flush()


async def _never(message: Message) -> None:
    raise AssertionError("the direct path takes these frames before nats-py sees them")
