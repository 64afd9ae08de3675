"""A wRPC server on a NATS connection: subscribes, and carries out what `Invocations` says. The plain path: nats-py's callbacks.

    NATS ── message ──> Invocations.receive ── Step ──> NATS
                              │  ^
                       handler│  │finish, where the handler must be waited for (a task each)

Everything about an invocation is decided in `keyvalue_transport.wrpc.invocation`; here are only the clock, the subscriptions, the tasks and the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic

from keyvalue_transport.nats.connection import Connection, Message, Subscription
from keyvalue_transport.nats.direct.routes import PARAMS
from keyvalue_transport.wrpc.errors import DecodeError, DisconnectedError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller, Handler
from keyvalue_transport.wrpc.invocation import (
    InvocationCounts,
    InvocationFailure,
    InvocationLimits,
    Invocations,
    Step,
    Waiting,
)
from keyvalue_transport.wrpc.subjects import (
    check_subject,
    invocation_subject,
    params_subject,
    params_token,
    results_subject,
)

__all__ = ["Server"]

log = logging.getLogger(__name__)

EXPIRY_INTERVAL_S = 0.5
#: Pieces that come now are of invocations that were ended.
PARAMS_DRAIN_TIMEOUT_S = 0.02
#: Failures that are logged in full; of the others in the same interval only their number.
FAILURES_LOGGED_MAX = 5
FAILURES_INTERVAL_S = 10.0
#: Of a caller's traceparent, which has 55, so many are logged.
TRACEPARENT_CHARACTERS_MAX = 64


class Server:
    """Serves instances under a prefix. `add` them, `start`, and `stop`.

    :param on_batch: told how many seconds the invocations of one read took, from the read to the write of their answers
    """

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        limits: InvocationLimits | None = None,
        on_batch: Callable[[float], None] | None = None,
    ) -> None:
        self.prefix = check_subject(prefix, "prefix")
        self._connection = connection
        self._on_batch = on_batch
        self._inbox = connection.new_inbox()
        self._invocations = Invocations(
            self._inbox, connection.new_inbox(), lambda: secrets.token_hex(8), limits, connection.max_payload
        )
        self._handlers: list[tuple[str, Handler]] = []
        self._functions: list[Subscription] = []
        self._params: Subscription | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Event | None = None  # while the server stops
        self._failures = RateLimit(FAILURES_LOGGED_MAX, FAILURES_INTERVAL_S)
        self._batch_began_s: float | None = None  # on the plain path, while one is answered
        self.unsent = 0  # messages that found no connection

    @property
    def counts(self) -> InvocationCounts:
        """How invocations went."""
        return self._invocations.counts

    @property
    def in_flight(self) -> int:
        """Invocations that were taken and not ended."""
        return self._invocations.half_open + self._invocations.waiting

    @property
    def half_open(self) -> int:
        """Those of them whose parameters are not whole."""
        return self._invocations.half_open

    @property
    def failed(self) -> BaseException | None:
        """What a background task of the server died of, if one did."""
        if self._expiry is not None and self._expiry.done() and not self._expiry.cancelled():
            return self._expiry.exception()
        return None

    def add(self, instance: str, handlers: Mapping[str, Handler]) -> None:
        """Serve an instance: its handlers by the functions' names. Before `start`."""
        self._handlers += [
            (invocation_subject(self.prefix, instance, name), handler) for name, handler in handlers.items()
        ]

    async def start(self) -> None:
        """Subscribe. Several servers of one prefix share the invocations (its queue group).

        :raises DisconnectedError: the connection is closed
        """
        direct = self._connection.direct
        if direct is not None:
            direct.invocations = self._invocations
            direct.on_step = self._on_direct_step
            direct.on_batch = self._on_batch
        self._expiry = asyncio.create_task(self._expire())
        self._params = await self._connection.subscribe(
            params_subject(f"{self._inbox}.*"), self._on_params, route=PARAMS
        )
        for subject, handler in self._handlers:
            self._functions.append(await self._subscribe(subject, handler))

    async def stop(self, timeout_s: float) -> None:
        """Take no further invocation, answer those that were taken, and end what is not answered within `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        functions, self._functions = self._functions, []
        await self._connection.drain(functions, timeout_s)
        self._idle = asyncio.Event()
        if self.in_flight:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s):
                    await self._idle.wait()
        await asyncio.sleep(0)  # a task that was never begun would leave its handler's coroutine unawaited
        for task in self._waiting:
            task.cancel()
        if self._waiting:
            await asyncio.wait(self._waiting)
        await self._carry_out(self._invocations.close())
        if self._expiry is not None:
            self._expiry.cancel()
        if self._params is not None:
            await self._connection.drain([self._params], PARAMS_DRAIN_TIMEOUT_S)

    async def _subscribe(self, subject: str, handler: Handler) -> Subscription:
        invocations, counts, connection = self._invocations, self.counts, self._connection

        async def receive(message: Message) -> None:
            if self._batch_began_s is None:
                self._begin_batch()
            piece, reply = message.data, message.reply
            counts.received_bytes += len(piece)
            if not reply:
                counts.without_reply += 1
                return
            caller = caller_of(message.headers)
            outcome: Answer[bytes] | Exception
            try:
                outcome = handler(caller, piece, 0, len(piece))
            except Exception as error:  # of all kinds, NeedMoreBytes too
                outcome = error
            if isinstance(outcome, bytes) and 0 < len(outcome) <= invocations.max_payload:
                # The messages of `Invocations.receive`, written out; pays: bench end-to-end functions, plain
                counts.answered += 1
                results = results_subject(reply)
                try:
                    sent_bytes = await connection.publish_all(
                        ((reply, b"", invocations.nobody), (results, outcome, ""), (results, b"", ""))
                    )
                    counts.sent_bytes += sent_bytes
                except DisconnectedError as error:
                    self._note_unsent(error)
            else:
                traceparent = (message.headers or {}).get("traceparent")
                step = invocations.receive(handler, reply, caller, piece, outcome, monotonic(), traceparent)
                outcome = b""  # a traceback of an exception holds this frame
                await self._carry_out(step)

        async def refuse(reply: str) -> None:
            await self._carry_out(invocations.refuse(reply))

        return await self._connection.subscribe(subject, receive, self.prefix, refuse, route=handler)

    async def _on_params(self, message: Message) -> None:
        if self._batch_began_s is None:
            self._begin_batch()
        self.counts.received_bytes += len(message.data)
        token = params_token(message.subject)
        await self._carry_out(self._invocations.receive_params(token, message.data, monotonic()))

    # Callbacks of a subscription are called one after the other for all messages of a read, unless one waits for the socket: a batch.

    def _begin_batch(self) -> None:
        self._batch_began_s = monotonic()
        self._invocations.max_payload = self._connection.max_payload  # another server may have another
        asyncio.get_running_loop().call_soon(self._end_batch)

    def _end_batch(self) -> None:
        began_s, self._batch_began_s = self._batch_began_s, None
        if self._on_batch is not None and began_s is not None:
            self._on_batch(monotonic() - began_s)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            await self._carry_out(self._invocations.expire(monotonic()))

    async def _carry_out(self, step: Step) -> None:
        """Do what a step says."""
        if step.failure is not None or step.waiting is not None:
            self._begin(step)
        if step.sends:
            try:
                sent_bytes = await self._connection.publish_all(step.sends)
                self.counts.sent_bytes += sent_bytes  # not read before the wait: others count meanwhile
            except DisconnectedError as error:
                self._note_unsent(error)
        self._note_idle()

    def _note_unsent(self, error: DisconnectedError) -> None:
        """The client is gone with the connection, or will run into its time-out."""
        self.unsent += error.unsent
        if self._failures.allows(monotonic()):
            log.warning("an answer is lost: %s", error)

    def _on_direct_step(self, step: Step) -> None:
        self._begin(step)
        self._note_idle()

    def _note_idle(self) -> None:
        if self._idle is not None and not self.in_flight:
            self._idle.set()

    def _begin(self, step: Step) -> None:
        """What a step has besides messages."""
        if step.failure is not None:
            self._log_failure(step.failure)
        if step.waiting is not None:
            # The handshake is in step.sends: the task runs after it was written.
            task = asyncio.create_task(self._wait(step.waiting))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _wait(self, waiting: Waiting) -> None:
        result: bytes | Exception
        try:
            result = await waiting.answer
        except asyncio.CancelledError:
            await self._carry_out(self._invocations.finish(waiting, TimeoutError("the server stops")))
            raise
        except Exception as error:  # the boundary of the task: counted and logged
            result = error
        self._invocations.max_payload = self._connection.max_payload
        step = self._invocations.finish(waiting, result)
        result = b""  # a traceback of an exception holds this frame
        await self._carry_out(step)

    def _log_failure(self, failure: InvocationFailure) -> None:
        if not self._failures.allows(monotonic()):
            return
        error, traceparent = failure
        trace = {} if traceparent is None else {"traceparent": traceparent[:TRACEPARENT_CHARACTERS_MAX]}
        if isinstance(error, DecodeError):
            log.warning("an invocation was ended without a result: damaged parameters: %s", error, extra=trace)
        else:
            log.error("an invocation was ended without a result: its handler failed", exc_info=error, extra=trace)


def caller_of(headers: Mapping[str, str] | None) -> Caller:
    """The caller that the headers of an invocation name."""
    return Caller(headers.get("source-id"), headers.get("link-name")) if headers else ANONYMOUS


class RateLimit:
    """Allows so many in an interval of time; the log says how many it was silent about."""

    __slots__ = ("_allowed", "_interval_s", "_number_max", "_silent", "_until_s")

    def __init__(self, number_max: int, interval_s: float) -> None:
        self._number_max = number_max
        self._interval_s = interval_s
        self._until_s = 0.0
        self._allowed = 0
        self._silent = 0

    def allows(self, now_s: float) -> bool:
        """Whether one more may be logged at this time."""
        if now_s >= self._until_s:
            if self._silent:
                log.warning("%d more invocations were ended without a result", self._silent)
            self._until_s = now_s + self._interval_s
            self._allowed = self._silent = 0
        self._allowed += 1
        if self._allowed <= self._number_max:
            return True
        self._silent += 1
        return False
