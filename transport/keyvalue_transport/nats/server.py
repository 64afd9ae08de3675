"""A wRPC server on a NATS connection. It subscribes, waits for answers, logs failures and stops cleanly.

    NATS ── message ──> path ──┬─ a result of 1 byte to max_payload ───────────────────> messages to NATS
                               └─ anything else ──> Invocations.receive ── Step ──┬────> messages to NATS
                                                             ^                    │
                                                             │ finish             v
                                                             └──── answers to wait for, failures to log

A path (`direct/path.py`, `plain.py`) receives invocations, calls their handlers, and sends messages. The core,
`keyvalue_transport.wrpc.invocation`, handles every invocation that is not answered at once. This module reads the
clock, subscribes, waits for answers, and logs failures.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from keyvalue_transport.nats.connection import Connection, Subscription
from keyvalue_transport.nats.direct.path import DirectPath
from keyvalue_transport.nats.plain import PlainPath
from keyvalue_transport.nats.rate_limit import network_limit
from keyvalue_transport.nats.subjects import check_subject, invocation_subject, params_subject
from keyvalue_transport.nats.tracing import Tracer
from keyvalue_transport.nats.waits import Waits
from keyvalue_transport.wrpc.errors import DecodeError, DisconnectedError
from keyvalue_transport.wrpc.handler import Handler
from keyvalue_transport.wrpc.invocation import (
    InvocationCounts,
    InvocationFailure,
    InvocationLimits,
    Invocations,
    Step,
    Waiting,
)
from keyvalue_transport.wrpc.repeated import MustWait

__all__ = ["Server"]

log = logging.getLogger(__name__)

EXPIRY_INTERVAL_S = 0.5
#: This timeout is short, because pieces that arrive during the stop belong to invocations that have ended.
PARAMS_DRAIN_TIMEOUT_S = 0.02
#: Seconds that `stop` may use to write the last answers after its timeout.
FLUSH_TIMEOUT_S = 0.02
#: Seconds that `leave` waits for the calls that were sent to us before the NATS server knew.
LEAVE_TIMEOUT_S = 1.0
#: Seconds that `stop` waits for cancelled answers to end.
CANCEL_TIMEOUT_S = 0.02


class Server:
    """A server for instances under a prefix. Call `add` for each instance, then `start`, and finally `stop`.

    :param on_batch: called with the seconds between reading a batch of invocations and writing its answers
    :param tracer: finds the calls to trace; None to trace no calls
    :param encode_refusal: encodes the error of a call that is refused because of `in_flight_bytes_max`
    :raises ValueError: the prefix is not a subject, or another server uses the direct path of this connection
    """

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        limits: InvocationLimits | None = None,
        on_batch: Callable[[float], None] | None = None,
        tracer: Tracer | None = None,
        encode_refusal: Callable[[str], bytes] | None = None,
    ) -> None:
        self.prefix = check_subject(prefix, "prefix")
        connection.replies.forbid(prefix)
        self.unsent = 0  # messages that could not be sent
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._tracer = tracer
        self._path: DirectPath | PlainPath
        ends = self._inbox, connection.new_inbox(), lambda: secrets.token_hex(8), limits
        self._waits = Waits(self._finish)
        if connection.direct is not None:
            self._path = DirectPath(
                connection, connection.direct, *ends, self._on_step, self._wait, self._on_unsent, on_batch, tracer
            )
        else:
            self._path = PlainPath(connection, *ends, self._on_step, self._on_unsent, on_batch, tracer)
        if encode_refusal is not None:
            self.invocations.encode_refusal = encode_refusal
        self._handlers: list[tuple[str, Handler]] = []
        self._functions: list[Subscription] = []
        self._params: Subscription | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._membership = asyncio.Lock()  # held by `join` and `leave`
        self._is_stopping = False
        self._idle: asyncio.Event | None = None  # only while the server stops
        self._failures, self._losses = network_limit(), network_limit()

    @property
    def invocations(self) -> Invocations[Any, Any]:
        """Return the invocations that are not answered at once, with their numbers and sizes."""
        return self._path.invocations

    @property
    def counts(self) -> InvocationCounts:
        """Return the counts of invocations and bytes."""
        return self.invocations.counts

    @property
    def in_flight(self) -> int:
        """Return the number of invocations that were accepted and have not ended."""
        invocations = self.invocations
        return invocations.half_open + invocations.waiting + invocations.queued + invocations.held

    @property
    def failed(self) -> BaseException | None:
        """Return the exception that ended a background task of the server, or None."""
        if self._expiry is not None and self._expiry.done() and not self._expiry.cancelled():
            return self._expiry.exception()
        return None

    def add(self, instance: str, handlers: Mapping[str, Handler], begun: Collection[str] = ()) -> None:
        """Add an instance, with a handler for each function name. Call this method before `start`.

        :param begun: functions that change something before their answer is ready; they are called only if they may wait
        """
        for name, handler in handlers.items():
            handle = self.invocations.if_may_wait(handler) if name in begun else handler
            self._handlers.append((invocation_subject(self.prefix, instance, name), handle))
            if self._tracer is not None:
                self._tracer.add(handle, instance, name)

    async def start(self, joins: bool = True) -> None:
        """Start to serve. Servers with the same prefix share the invocations, because the prefix is the queue group.

        :param joins: False to receive no calls until `join` is called
        :raises DisconnectedError: the connection is closed or lost
        """
        self._expiry = asyncio.create_task(self._expire())
        self._params = await self._path.subscribe_params(params_subject(f"{self._inbox}.*"))
        if joins:
            await self.join()
        await self._connection.check_publishing()

    async def join(self) -> None:
        """Receive calls, unless the server does so already or stops.

        :raises DisconnectedError: the connection is closed or lost
        """
        async with self._membership:
            if self._is_stopping or self._functions:
                return
            for subject, handler in self._handlers:
                self._functions.append(await self._path.subscribe_function(subject, handler, self.prefix))

    async def leave(self) -> None:
        """Receive no more calls until `join`. The calls that were received are answered."""
        async with self._membership:
            functions, self._functions = self._functions, []
            await self._path.refuse_all(await self._connection.drain(functions, LEAVE_TIMEOUT_S))

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting invocations, and answer those in flight. After `timeout_s`, end the unanswered invocations."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        self._is_stopping = True
        functions, self._functions = self._functions, []
        queued = await self._connection.drain(functions, max(0.0, timeout_s - self._path.refusing_s))
        await self._path.refuse_all(queued)
        self._idle = asyncio.Event()
        if self.in_flight:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s):
                    await self._idle.wait()
        await asyncio.sleep(0)  # let all tasks start: a task cancelled before its start leaves a coroutine unawaited
        if late := await self._waits.cancel(CANCEL_TIMEOUT_S):
            log.warning("%d answers did not end when they were cancelled, and are abandoned", late)
        self._send(self._path.invocations.close())
        self._path.send(self._path.give_up())  # type: ignore[arg-type] # each path takes what it returns
        with suppress(TimeoutError):  # a blocked connection must not delay the stop
            async with asyncio.timeout_at(max(deadline_s, loop.time() + FLUSH_TIMEOUT_S)):
                await self._path.flush()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._params is not None:
            await self._connection.drain([self._params], PARAMS_DRAIN_TIMEOUT_S)

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Other tasks of an idle process end their pauses at the same time, so that it wakes up once for all.
            await asyncio.sleep(EXPIRY_INTERVAL_S - loop.time() % EXPIRY_INTERVAL_S)
            self._send(self._path.invocations.expire(monotonic()))

    def _send(self, step: Step[Any, Any]) -> None:
        self._path.send(step.sends)
        self._on_step(step)

    def _on_step(self, step: Step[Any, Any]) -> None:
        """Log the failure of a step, or wait for its answer. The caller sends the step's messages."""
        if step.failure is not None:
            self._log_failure(step.failure)
        if step.waiting is not None:
            self._wait(step.waiting)
        if self._idle is not None and not self.in_flight:
            self._idle.set()

    def _wait(self, waiting: Waiting[Any]) -> None:
        """Call `_finish` when an answer is done."""
        try:
            self._waits.add(waiting)
        except Exception as error:  # a faulty handler's answer may not be awaitable, and reading must continue
            self._send(self._path.invocations.finish(waiting, error))

    def _finish(self, answer: Any) -> None:
        """Send the results of the calls that have waited for an answer, all together."""
        invocations = self._path.invocations
        read = answer.result
        sends: list[Any] = []
        for waiting in self._waits.take(answer):
            try:
                sends += invocations.answer(waiting, waiting.pending.encode(read))
                continue
            except MustWait as more:
                self._wait(waiting._replace(pending=more.pending))
                continue
            except asyncio.CancelledError:
                failure: Exception = TimeoutError(
                    "the server stops" if self._idle is not None else "the answer was cancelled"
                )
            except Exception as error:  # every exception from an answer is counted and logged
                failure = error
            step = invocations.finish(waiting, failure)
            sends += step.sends
            if step.failure is not None:
                self._log_failure(step.failure)
        self._path.send(sends)
        if self._idle is not None and not self.in_flight:
            self._idle.set()

    def _on_unsent(self, error: DisconnectedError) -> None:
        """Count messages that could not be sent. Their callers will time out."""
        self.unsent += error.unsent
        if (more := self._losses.admit(monotonic())) is not None:
            log.warning("an answer is lost: %s%s", error, more)

    def _log_failure(self, failure: InvocationFailure) -> None:
        more = self._failures.admit(monotonic())
        if more is None:
            return
        error, traceparent = failure
        trace = {} if traceparent is None else {"traceparent": traceparent}
        what = "an invocation was ended without a result"
        if isinstance(error, DecodeError):
            log.warning("%s: malformed parameters: %s%s", what, error, more, extra=trace)
        else:
            log.error("%s: its handler failed%s", what, more, exc_info=error, extra=trace)
