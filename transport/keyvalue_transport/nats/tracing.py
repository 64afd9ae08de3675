"""The calls that are traced. A sampled call gets a handler of its own, which notes when the call began and ended.

    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01      sampled: the last digit is odd
                    trace                            the caller's span

    a sampled call ── Tracer ──> SampledCall ── called by a path or the core, like any handler ──> FinishedCall
                                     └── what the call changes ──> OutgoingCall: a call to a component ──> FinishedCall

A path asks the tracer for the handler of a call. Paths and the core then treat a SampledCall like any other handler.
So a call that must wait, or must be made again, needs nothing more: its answer goes through the SampledCall. If a
limit or a stop ends the call, the core tells the SampledCall (`give_up` in handler.py).

Calls that are not sampled use the handler itself. The direct path finds them by their shape: alike.py makes the last
digit of the traceparent a part of the shape. So no shape fits a sampled call.

This module knows neither spans nor OpenTelemetry.
"""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from functools import partial
from random import getrandbits
from time import time_ns
from typing import Any, NamedTuple

from keyvalue_transport.nats.headers import CRLF, TRACEPARENT_LINE
from keyvalue_transport.wrpc.errors import NeedMoreBytes, NoPlaceError
from keyvalue_transport.wrpc.handler import REFUSED, Again, Caller, Handler, HandlerResult, LargeResult, Pending

__all__ = ["FinishedCall", "Function", "OutgoingCall", "Tracer", "new_span_id"]

#: The traceparent of a sampled call (W3C Trace Context): its version, two ids that are not 0, and odd flags.
SAMPLED = re.compile("(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]")
#: The last character of these traceparents.
SAMPLED_ENDS = b"13579bdf"
#: The first bytes of an encoded result tell the outcome. The rest may hold a value.
OUTCOME_BYTES = 2


class Function(NamedTuple):
    """A function of an instance, for example `get` of `wrpc:keyvalue/store@0.2.0-draft`."""

    instance: str
    name: str


class FinishedCall(NamedTuple):
    """A sampled call that has ended.

    :ivar traceparent: the span that made the call
    :ivar peer: the other component, if its id is known
    :ivar outcome: the first bytes of the result; or why the call ended without a result: REFUSED, EXPIRED, or the name
        of an exception
    :ivar span_id: 0 if nobody has needed the call's own id yet
    :ivar is_outgoing: True for a call to a component
    """

    traceparent: str
    function: Function
    peer: str | None
    began_ns: int
    ended_ns: int
    outcome: bytes | str
    span_id: int = 0
    is_outgoing: bool = False


def new_span_id() -> int:
    """Return a random id for a span."""
    return getrandbits(64) or 1


class Tracer:
    """It finds sampled calls, and notes them when they end.

    :param note: takes each call that has ended; it must neither wait nor raise
    :ivar current: the sampled call whose handler runs now
    """

    __slots__ = ("_functions", "current", "note")

    def __init__(self, note: Callable[[FinishedCall], None]) -> None:
        self.note = note
        self.current: SampledCall | None = None
        self._functions: dict[Handler, Function] = {}

    def add(self, handler: Handler, instance: str, name: str) -> None:
        """Add the handler of a function. `Server.add` calls this."""
        self._functions[handler] = Function(instance, name)

    def of_block(self, handler: Handler, block: bytes, caller: Caller) -> Handler | None:
        """Return the handler for a call with these headers.

        Return None if the trace does not end like that of a sampled call. Only such a call may be learned as a shape.
        """
        at = block.rfind(TRACEPARENT_LINE)
        if at < 0:
            return None
        at += len(TRACEPARENT_LINE)
        end = block.find(CRLF, at)
        if end < 0 or block[end - 1] not in SAMPLED_ENDS:
            return None
        return self.of(handler, block[at:end].strip().decode("ascii", "replace"), caller)

    def of(self, handler: Handler, traceparent: str | None, caller: Caller) -> Handler:
        """Return the handler for a call with this trace: a new one if the call is sampled, otherwise `handler`."""
        if traceparent is None or SAMPLED.fullmatch(traceparent) is None:
            return handler
        return SampledCall(handler, self._functions[handler], traceparent, caller.source_id, self)


class SampledCall:
    """The handler of one sampled call. It notes the call once, when the result is known or an exception ends it."""

    __slots__ = ("_began_ns", "_function", "_handler", "_source_id", "_span_id", "_traceparent", "_tracer")

    def __init__(
        self, handler: Handler, function: Function, traceparent: str, source_id: str | None, tracer: Tracer
    ) -> None:
        self._handler = handler
        self._function = function
        self._traceparent = traceparent
        self._source_id = source_id
        self._tracer = tracer
        self._span_id = 0
        self._began_ns = time_ns()

    def __call__(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        """Call the handler. The core does so again if the parameters were incomplete, or if the call must wait."""
        self._tracer.current = self
        try:
            result = self._handler(caller, buffer, start, end)
        except NeedMoreBytes:
            raise
        except Exception as error:
            self.give_up(_reason_of(error))
            raise
        finally:
            self._tracer.current = None
        if isinstance(result, bytes):
            self._end(result[:OUTCOME_BYTES])
            return result
        if isinstance(result, Again):
            return result
        if isinstance(result, LargeResult):
            return LargeResult(partial(self.encode, result.encode))
        return SampledPending(result, self)

    def encode(self, encode: Callable[..., bytes | Pending], *arguments: Any) -> Any:
        """Return the result of `encode`, and note the call."""
        try:
            result = encode(*arguments)
        except BaseException as error:  # including the cancellation of an answer
            self.give_up(_reason_of(error))
            raise
        if isinstance(result, bytes):
            self._end(result[:OUTCOME_BYTES])
            return result
        return SampledPending(result, self)

    def cause(self) -> str:
        """Return the traceparent of what this call causes."""
        self._span_id = self._span_id or new_span_id()
        return _traceparent(self._traceparent, self._span_id)

    def give_up(self, reason: str) -> None:
        """Note that the call ends without a result."""
        self._end(reason)

    def _end(self, outcome: bytes | str) -> None:
        function, source_id, ended_ns = self._function, self._source_id, time_ns()
        self._tracer.note(
            FinishedCall(self._traceparent, function, source_id, self._began_ns, ended_ns, outcome, self._span_id)
        )


class SampledPending:
    """The Pending answer of a sampled call."""

    __slots__ = ("_call", "_pending")

    def __init__(self, pending: Pending, call: SampledCall) -> None:
        self._pending = pending
        self._call = call

    @property
    def answer(self) -> Awaitable[object]:
        """Return the function's answer."""
        return self._pending.answer

    @property
    def extra_bytes(self) -> int:
        """Return the memory of the call besides its parameters."""
        return getattr(self._pending, "extra_bytes", 0)

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return the encoded result, and note the call."""
        result: bytes = self._call.encode(self._pending.encode, read)
        return result

    def give_up(self, reason: str) -> None:
        """Note that the call ends without a result."""
        self._call.give_up(reason)


class OutgoingCall:
    """A call to a component that a sampled call has caused.

    :param cause: the traceparent of the call that has caused it
    :ivar traceparent: the traceparent to send
    """

    __slots__ = ("_began_ns", "_cause", "_function", "_peer", "_span_id", "_tracer", "traceparent")

    def __init__(self, tracer: Tracer, cause: str, function: Function, peer: str) -> None:
        self._tracer = tracer
        self._cause = cause
        self._function = function
        self._peer = peer
        self._span_id = new_span_id()
        self._began_ns = time_ns()
        self.traceparent = _traceparent(cause, self._span_id)

    def end(self, error: BaseException | None) -> None:
        """Note the call. It has failed with an error, or succeeded."""
        outcome = b"" if error is None else type(error).__name__
        cause, began_ns, ended_ns = self._cause, self._began_ns, time_ns()
        self._tracer.note(
            FinishedCall(cause, self._function, self._peer, began_ns, ended_ns, outcome, self._span_id, True)
        )


def _reason_of(error: BaseException) -> str:
    """Return why a call ended with this exception. A limit refuses calls before they begin, and a stop cancels them."""
    return REFUSED if isinstance(error, (NoPlaceError, CancelledError)) else type(error).__name__


def _traceparent(parent: str, span_id: int) -> str:
    """Return the traceparent of a span in the trace of `parent`, with its flags."""
    _, trace_id, _, flags = parent.split("-")
    return f"00-{trace_id}-{span_id:016x}-{flags}"
