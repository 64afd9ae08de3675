"""The plain path: nats-py's callbacks receive the invocations. A server uses it if the direct path is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from keyvalue_transport.nats.arrival_order import Lane
from keyvalue_transport.nats.connection import Connection, Message, Subscription
from keyvalue_transport.nats.direct.answers import FrameReplies
from keyvalue_transport.nats.headers import headers_of
from keyvalue_transport.nats.replies import Send, SubjectReplies
from keyvalue_transport.nats.subjects import params_token, results_subject
from keyvalue_transport.nats.tracing import Tracer
from keyvalue_transport.wrpc.errors import DisconnectedError
from keyvalue_transport.wrpc.handler import Handler, HandlerResult
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Step

__all__ = ["PlainPath"]

#: nats-py's task of a subscription handles all queued messages in one turn of the event loop. When the calls of a turn
#: have taken this long, in seconds, the rest waits for the next turn. Otherwise a flood delays the host and a stop.
TURN_S_MAX = 0.005


class PlainPath:
    """A path that receives invocations through callbacks and publishes the answers.

    :cvar refusing_s: seconds that `refuse_all` may take; 20,000 calls take about 40 ms

    :param inbox: the prefix of the subjects for the remaining pieces of parameters; each call adds a token
    :param nobody: an inbox without subscribers
    :param on_step: called with each step that the core returns, after the step's messages are sent
    :param on_unsent: called with an error if messages could not be sent
    :param on_batch: called with the time spent on the invocations of one read, in seconds
    :param tracer: finds the calls to trace; None to trace no calls
    """

    refusing_s = 0.04

    def __init__(
        self,
        connection: Connection,
        inbox: str,
        nobody: str,
        new_token: Callable[[], str],
        limits: InvocationLimits | None,
        on_step: Callable[[Step[str, Send]], None],
        on_unsent: Callable[[DisconnectedError], None],
        on_batch: Callable[[float], None] | None,
        tracer: Tracer | None = None,
    ) -> None:
        self._connection = connection
        self._nobody = nobody
        self.invocations = Invocations(SubjectReplies(inbox, nobody, connection), new_token, limits)
        self._on_step, self._on_unsent, self._on_batch = on_step, on_unsent, on_batch
        self._tracer = tracer
        self._batch_began_s: float | None = None
        self._outbox: list[Send] = []
        self._left: list[str] = []  # the reply subjects of calls that were cancelled before they began
        self._sending: asyncio.Task[None] | None = None

    async def subscribe_function(self, subject: str, handler: Handler, queue: str) -> Subscription:
        """Receive the invocations of a function."""
        order, invocations, counts, connection = (
            self._connection.order,
            self.invocations,
            self.invocations.counts,
            self._connection,
        )
        lane, replies, tracer = Lane(), connection.replies, self._tracer

        async def receive(message: Message) -> None:
            if self._batch_began_s is None:
                self._batch_began_s = self._begin_batch()
            piece, reply = message.data, message.reply
            counts.received_bytes += len(piece)
            try:
                await order.enter(lane, monotonic() - self._batch_began_s > TURN_S_MAX)
            except asyncio.CancelledError:  # the server stops, and this call has not begun
                self._left.append(reply)
                raise
            if not reply or replies.refuses(reply.encode()):
                counts.without_reply += not reply
                order.leave(lane)
                return
            caller, traceparent = headers_of(message.headers)
            act = handler if tracer is None else tracer.of(handler, traceparent, caller)
            outcome: HandlerResult | Exception
            try:
                outcome = act(caller, piece, 0, len(piece))
            except Exception as error:  # any exception, including NeedMoreBytes
                outcome = error
            if isinstance(outcome, bytes) and 0 < len(outcome) <= connection.max_payload:
                # This branch inlines `Invocations.receive` for results that fit in one message. The end-to-end
                # benchmark of functions on the plain path measures the gain.
                order.leave(lane)
                counts.answered += 1
                results = results_subject(reply)
                await self._publish([(reply, b"", self._nobody), (results, outcome, ""), (results, b"", "")])
            else:
                step = invocations.receive(act, reply, caller, piece, outcome, monotonic(), traceparent)
                outcome = b""  # free the bytes, because an exception's traceback may keep this frame alive
                order.leave(lane)  # only now, because a LargeResult is calculated by `receive`
                await self._carry_out(step)

        async def refuse(reply: str) -> None:
            if not reply:
                counts.without_reply += 1
            elif not replies.refuses(reply.encode()):
                await self._carry_out(invocations.refuse(reply))

        return await connection.subscribe(subject, receive, queue, refuse, lane=lane)

    async def subscribe_params(self, subject: str) -> Subscription:
        """Receive the remaining pieces of cut parameters."""
        order, lane = self._connection.order, Lane()

        async def receive(message: Message) -> None:
            if self._batch_began_s is None:
                self._batch_began_s = self._begin_batch()
            self.invocations.counts.received_bytes += len(message.data)
            await order.enter(lane)
            try:
                step = self.invocations.receive_params(params_token(message.subject), message.data, monotonic())
            finally:
                order.leave(lane)
            await self._carry_out(step)

        return await self._connection.subscribe(subject, receive, lane=lane)

    async def refuse_all(self, queued: list[str]) -> None:
        """Refuse calls that have not begun when the server stops, all together."""
        replies = filter(None, [*self._left, *queued])
        frames = FrameReplies("", self._nobody, self._connection.max_payload, "")
        calls = [reply for reply in map(str.encode, replies) if not self._connection.replies.refuses(reply)]
        self.invocations.counts.refused += len(calls)
        sends = [frame for reply in calls for frame in (*frames.accept(reply, None), *frames.end(reply))]
        if sends:
            try:
                await self._connection.write(b"".join(sends))
            except DisconnectedError as error:
                self._on_unsent(error)

    def send(self, sends: list[Send]) -> None:
        """Publish messages in order, in a background task."""
        self._outbox += sends
        if self._outbox and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._send_all())

    def give_up(self) -> list[Send]:
        """Do nothing, because calls that are to be made again are answers to wait for."""
        return []

    async def flush(self) -> None:
        """Wait until all messages given to `send` are published."""
        if self._sending is not None:
            await self._sending

    async def _send_all(self) -> None:
        while self._outbox:
            sends, self._outbox = self._outbox, []
            await self._publish(sends)

    async def _carry_out(self, step: Step[str, Send]) -> None:
        try:
            if step.sends:
                await self._publish(step.sends)
        finally:
            self._on_step(step)  # even after a cancellation, because the step may have an answer to wait for

    async def _publish(self, sends: list[Send] | list[tuple[str, bytes, str]]) -> None:
        try:
            sent_bytes = await self._connection.publish_all(sends)
        except DisconnectedError as error:
            self._on_unsent(error)
        else:
            self.invocations.counts.sent_bytes += sent_bytes

    # A batch is all messages from one read of the socket. nats-py calls the callback for each message without a pause,
    # unless the callback has to wait for the socket.

    def _begin_batch(self) -> float:
        asyncio.get_running_loop().call_soon(self._end_batch)
        return monotonic()

    def _end_batch(self) -> None:
        began_s, self._batch_began_s = self._batch_began_s, None
        if self._on_batch is not None and began_s is not None:
            self._on_batch(monotonic() - began_s)
