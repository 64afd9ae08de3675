"""A wRPC server on a NATS connection: subscribes, waits for answers, logs what went wrong, and stops in order.

    NATS ── message ──> path ── Invocations.receive ── Step ──> messages to NATS
                                      ^                 │
                                      │ finish          v
                                      └────────── answers that must be waited for, failures for the log

Everything about an invocation is decided in `keyvalue_transport.wrpc.invocation`. A path (`direct/path.py`, `plain.py`) brings messages in
and out. Here are only the clock, the subscriptions, the answers that are waited for, and the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from keyvalue_transport.nats.connection import Connection, Subscription
from keyvalue_transport.nats.direct.path import DirectPath
from keyvalue_transport.nats.plain import PlainPath
from keyvalue_transport.nats.rate_limit import RateLimit
from keyvalue_transport.nats.subjects import check_subject, invocation_subject, params_subject
from keyvalue_transport.wrpc.errors import DecodeError, DisconnectedError
from keyvalue_transport.wrpc.handler import Handler
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationFailure, InvocationLimits, Step, Waiting

__all__ = ["Server"]

log = logging.getLogger(__name__)

EXPIRY_INTERVAL_S = 0.5
#: Pieces that come now are of invocations that were ended.
PARAMS_DRAIN_TIMEOUT_S = 0.02
#: For writing the last answers, if the stop has taken all of its time.
FLUSH_TIMEOUT_S = 0.02
#: For answers that are cancelled at a stop to end.
CANCEL_TIMEOUT_S = 0.02
#: Lines of the log about failures in an interval, and as many about lost answers.
LOGGED_MAX = 5
LOG_INTERVAL_S = 10.0
#: A caller's traceparent has 55. More of it is not logged.
TRACEPARENT_CHARACTERS_MAX = 64


class Server:
    """Serves instances under a prefix. `add` them, `start`, and `stop`.

    :param on_batch: told how many seconds the invocations of one read took, from the read to the write of their answers
    :raises ValueError: the prefix is no subject, or another server has the direct path of this connection
    """

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        limits: InvocationLimits | None = None,
        on_batch: Callable[[float], None] | None = None,
    ) -> None:
        self.prefix = check_subject(prefix, "prefix")
        self.unsent = 0  # messages that found no connection
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._path: DirectPath | PlainPath
        ends = self._inbox, connection.new_inbox(), lambda: secrets.token_hex(8), limits
        hooks = self._on_step, self._on_unsent, on_batch
        if connection.direct is not None:
            self._path = DirectPath(connection, connection.direct, *ends, *hooks)
        else:
            self._path = PlainPath(connection, *ends, *hooks)
        self._handlers: list[tuple[str, Handler]] = []
        self._functions: list[Subscription] = []
        self._params: Subscription | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Future[Any]] = set()  # that are waited for
        self._idle: asyncio.Event | None = None  # while the server stops
        self._failures = RateLimit(LOGGED_MAX, LOG_INTERVAL_S)
        self._losses = RateLimit(LOGGED_MAX, LOG_INTERVAL_S)

    @property
    def counts(self) -> InvocationCounts:
        """Return how invocations went."""
        return self._path.invocations.counts

    @property
    def in_flight(self) -> int:
        """Return the number of invocations that were taken and not ended."""
        return self._path.invocations.half_open + self._path.invocations.waiting

    @property
    def half_open(self) -> int:
        """Return the number of those whose parameters are not whole."""
        return self._path.invocations.half_open

    @property
    def failed(self) -> BaseException | None:
        """Return what a background task of the server died of, if one did."""
        if self._expiry is not None and self._expiry.done() and not self._expiry.cancelled():
            return self._expiry.exception()
        return None

    def add(self, instance: str, handlers: Mapping[str, Handler]) -> None:
        """Serve an instance: its handlers by the functions' names. Call it before `start`."""
        self._handlers += [
            (invocation_subject(self.prefix, instance, name), handler) for name, handler in handlers.items()
        ]

    async def start(self) -> None:
        """Subscribe. Several servers of one prefix share the invocations (its queue group).

        :raises DisconnectedError: the connection is closed
        """
        self._expiry = asyncio.create_task(self._expire())
        self._params = await self._path.subscribe_params(params_subject(f"{self._inbox}.*"))
        for subject, handler in self._handlers:
            self._functions.append(await self._path.subscribe_function(subject, handler, self.prefix))

    async def stop(self, timeout_s: float) -> None:
        """Take no further invocation, answer those that were taken, and end those that are not answered within `timeout_s`."""
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
        answers = list(self._answers)
        for answer in answers:
            answer.cancel()
        if answers:
            _, late = await asyncio.wait(answers, timeout=CANCEL_TIMEOUT_S)
            if late:
                log.warning("%d answers did not end when they were cancelled: nobody waits for them", len(late))
            await asyncio.sleep(0)  # their callbacks end the invocations
        self._send(self._path.invocations.close())
        with suppress(TimeoutError):  # a connection that takes nothing holds up no stop
            async with asyncio.timeout_at(max(deadline_s, loop.time() + FLUSH_TIMEOUT_S)):
                await self._path.flush()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._params is not None:
            await self._connection.drain([self._params], PARAMS_DRAIN_TIMEOUT_S)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            self._send(self._path.invocations.expire(monotonic()))

    def _send(self, step: Step[Any, Any]) -> None:
        self._path.send(step.sends)
        self._on_step(step)

    def _on_step(self, step: Step[Any, Any]) -> None:
        """Do what a step says besides its messages."""
        if step.failure is not None:
            self._log_failure(step.failure)
        if step.waiting is not None:
            self._wait(step.waiting)
        if self._idle is not None and not self.in_flight:
            self._idle.set()

    def _wait(self, waiting: Waiting[Any]) -> None:
        """Have `_finish` called with an answer. A future is waited for as it is. Only a coroutine costs a task."""
        try:
            answer = asyncio.ensure_future(waiting.pending.answer)
        except (
            Exception
        ) as error:  # it is no awaitable: a fault of the handler, which must not end the connection's reading
            self._send(self._path.invocations.finish(waiting, error))
            return
        self._answers.add(answer)
        answer.add_done_callback(partial(self._finish, waiting))

    def _finish(self, waiting: Waiting[Any], answer: asyncio.Future[Any]) -> None:
        """Answer an invocation whose answer was waited for."""
        self._answers.discard(answer)
        result: bytes | Exception
        try:
            result = waiting.pending.encode(answer.result)
        except asyncio.CancelledError:
            result = TimeoutError("the server stops" if self._idle is not None else "the answer was cancelled")
        except Exception as error:  # the boundary of the answer: counted and logged
            result = error
        step = self._path.invocations.finish(waiting, result)
        result = b""  # a traceback of an exception holds this frame
        self._send(step)

    def _on_unsent(self, error: DisconnectedError) -> None:
        """Count messages whose client is gone with the connection, or will run into its time-out."""
        self.unsent += error.unsent
        if (suppressed := self._losses.admit(monotonic())) is not None:
            log.warning("an answer is lost: %s%s", error, _more(suppressed))

    def _log_failure(self, failure: InvocationFailure) -> None:
        suppressed = self._failures.admit(monotonic())
        if suppressed is None:
            return
        error, traceparent = failure
        trace = {} if traceparent is None else {"traceparent": traceparent[:TRACEPARENT_CHARACTERS_MAX]}
        what, more = "an invocation was ended without a result", _more(suppressed)
        if isinstance(error, DecodeError):
            log.warning("%s: malformed parameters: %s%s", what, error, more, extra=trace)
        else:
            log.error("%s: its handler failed%s", what, more, exc_info=error, extra=trace)


def _more(suppressed: int) -> str:
    return f" ({suppressed} more like it were not logged)" if suppressed else ""
