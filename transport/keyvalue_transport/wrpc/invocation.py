"""The lifecycle of an invocation on the server side, without I/O and without NATS.

    first piece ──┬─ complete ──> CALLED ─┬─ bytes ────────────────────────────────> result, end
                  │                 ^     └─ a Pending answer: WAITING ── finish ──> result, end
                  │ incomplete      │
                  └──> HALF-OPEN ───┴─ piece: complete
                           │  ── piece: still incomplete ──> HALF-OPEN
                           └─ empty piece (the parameters end), malformed parameters, expiry, a limit ──> end alone

For each event, call a method of `Invocations` (`receive`, `receive_params`, `finish`, `expire`, `close`). The method
returns a `Step`: messages to send in order, an answer to wait for, and a failure to log.

`Replies` builds the messages, and the transport sends them. An invocation has three kinds of message:

    accept   the handshake; if it has a token, the client uses the token to send the remaining parameters
    result   the encoded result, in one or more pieces
    end      the end of the invocation; if no result was sent, the client stops waiting for one

Invariant: an accepted invocation gets exactly one `end`. `InvocationLimits` limits half-open invocations by number, by
bytes, by time since the last piece, and by time since the first piece. Waiting invocations are limited only by number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import Caller, Handler, Measure, NeedMoreElements, Pending, drop_answer

__all__ = ["InvocationCounts", "InvocationFailure", "InvocationLimits", "Invocations", "Replies", "Step", "Waiting"]

#: The transport's reply address: the address for the messages that answer one invocation.
A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
#: A message of the transport.
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class InvocationLimits:
    """Limits for half-open and waiting invocations.

    An invocation that would exceed a count or byte limit is refused. An invocation that exceeds a time limit
    expires. A refused or expired invocation ends without a result.
    """

    half_open_max: int = 1024
    half_open_bytes_max: int = 256 * 1024 * 1024
    half_open_timeout_s: float = 10.0  # since the last piece
    waiting_max: int = 4096
    half_open_lifetime_s: float = 60.0  # since the first piece


@dataclass(slots=True)
class InvocationCounts:
    """Counts of invocations since the start."""

    answered: int = 0
    damaged: int = 0  # the parameters were malformed, or ended too early
    expired: int = 0
    refused: int = 0
    failed: int = 0  # the handler raised an exception
    without_reply: int = 0  # not executed, because the client gave no reply subject
    stray_pieces: int = 0  # pieces of parameters that match no half-open invocation
    received_bytes: int = 0  # bytes of all invocations; the direct path also counts the framing
    sent_bytes: int = 0


class Replies(Protocol[A_contra, M]):
    """The builder of the messages that answer an invocation."""

    def accept(self, reply: A_contra, token: str | None, /) -> list[M]:
        """Return the handshake. If `token` is given, the client uses the token to send the remaining pieces."""

    def result(self, reply: A_contra, result: bytes, /) -> list[M]:
        """Return the pieces of a result. The result must not be empty."""

    def end(self, reply: A_contra, /) -> list[M]:
        """Return the message that ends an invocation."""


class Waiting(NamedTuple, Generic[A]):
    """An answer to wait for. When it is ready, call `Invocations.finish(waiting, result)`."""

    reply: A
    traceparent: str | None
    pending: Pending


class InvocationFailure(NamedTuple):
    """The error that ended an invocation without a result.

    :ivar traceparent: the `traceparent` header, which identifies the trace of the invocation
    """

    error: Exception
    traceparent: str | None


class Step(NamedTuple, Generic[A, M]):
    """The steps that the transport must take, in this order: log the failure, send the messages, await the answer."""

    sends: list[M]
    waiting: Waiting[A] | None = None
    failure: InvocationFailure | None = None


@dataclass(slots=True)
class HalfOpen(Generic[A]):
    """An invocation whose parameters are incomplete.

    :ivar first: the first piece, which is not copied; empty if `measure` needs all pieces in one buffer
    :ivar more: the later pieces in one buffer, because many small objects would take more memory than the server counts
    :ivar needed: the smallest possible size of the complete parameters in bytes; `measure`, if set, updates this size
    """

    handler: Handler
    reply: A
    caller: Caller
    traceparent: str | None
    first: bytes
    end_s: float
    more: bytearray = field(default_factory=bytearray)
    needed: int = 0
    measure: Measure | None = None
    deadline_s: float = 0.0

    def __len__(self) -> int:
        return len(self.first) + len(self.more)

    def need(self, error: NeedMoreBytes) -> None:
        """Set how many bytes the handler needs, and its measure, if any."""
        self.needed = error.end_min
        self.measure = error.measure if isinstance(error, NeedMoreElements) else None
        if self.measure is not None and self.first:
            self.first, self.more = b"", bytearray(self.first) + self.more


class Invocations(Generic[A, M]):
    """The invocations of one server.

    :param replies: builds the messages
    :param new_token: returns a token that clients cannot guess, so no client can add to another client's parameters
    """

    def __init__(
        self, replies: Replies[A, M], new_token: Callable[[], str], limits: InvocationLimits | None = None
    ) -> None:
        self.counts = InvocationCounts()
        self._replies = replies
        self._limits = limits or InvocationLimits()
        self._new_token = new_token
        self._half_open: dict[str, HalfOpen[A]] = {}
        self._closed = False
        self._half_open_bytes = 0
        self._waiting = 0

    @property
    def half_open(self) -> int:
        """Return the number of invocations whose parameters are incomplete."""
        return len(self._half_open)

    @property
    def half_open_bytes(self) -> int:
        """Return the number of parameter bytes that half-open invocations hold."""
        return self._half_open_bytes

    @property
    def waiting(self) -> int:
        """Return the number of invocations whose answer is not ready yet."""
        return self._waiting

    def receive(
        self,
        handler: Handler,
        reply: A,
        caller: Caller,
        piece: bytes,
        outcome: bytes | Pending | Exception,
        now_s: float,
        traceparent: str | None,
    ) -> Step[A, M]:
        """Process the first piece of an invocation's parameters.

        :param outcome: the return value or the exception of the handler
        """
        if isinstance(outcome, NeedMoreBytes):
            return self._cut(handler, reply, caller, traceparent, piece, outcome, now_s)
        handshake = self._replies.accept(reply, None)
        if isinstance(outcome, Exception):
            return self._fail(reply, outcome, traceparent, handshake)
        return self._answer(reply, outcome, traceparent, handshake)

    def receive_params(self, token: str, piece: bytes, now_s: float) -> Step[A, M]:
        """Process the next piece of a half-open invocation's parameters. An empty piece ends the parameters."""
        half_open = self._half_open.pop(token, None)
        if half_open is None:
            self.counts.stray_pieces += bool(piece)
            return Step([])
        self._half_open_bytes -= len(half_open)
        reply = half_open.reply
        if not piece:
            error = DecodeError(
                f"the parameters end after {len(half_open)} bytes; at least {half_open.needed} are needed"
            )
            return self._fail(reply, error, half_open.traceparent, [])
        half_open.more += piece
        if len(half_open) >= half_open.needed and half_open.measure is not None:
            half_open.needed = half_open.measure(half_open.more)
        if len(half_open) >= half_open.needed:
            # Join the pieces only after enough bytes have arrived, so that large parameters are copied only once.
            buffer = half_open.first + half_open.more
            try:
                answer = half_open.handler(half_open.caller, buffer, 0, len(buffer))
            except NeedMoreBytes as more:
                half_open.need(more)
            except Exception as error:
                return self._fail(reply, error, half_open.traceparent, [])
            else:
                return self._answer(reply, answer, half_open.traceparent, [])
        if self._hold(token, half_open, now_s):
            return Step([])
        return self._refuse(reply, [])

    def finish(self, waiting: Waiting[A], result: bytes | Exception) -> Step[A, M]:
        """Process the encoded result of a waiting invocation, or its error."""
        self._waiting -= 1
        if isinstance(result, Exception):
            return self._fail(waiting.reply, result, waiting.traceparent, [])
        return Step(self._result(waiting.reply, result, []))

    def expire(self, now_s: float) -> Step[A, M]:
        """End the half-open invocations that have passed their deadline.

        The deadline is `half_open_timeout_s` after the last piece, but at most `half_open_lifetime_s` after the first.
        """
        late = [token for token, half_open in self._half_open.items() if half_open.deadline_s <= now_s]
        self.counts.expired += len(late)
        return Step([message for token in late for message in self._drop(token)])

    def close(self) -> Step[A, M]:
        """End all half-open invocations, and refuse new ones. The server calls this method when it stops."""
        self._closed = True
        self.counts.refused += len(self._half_open)
        return Step([message for token in list(self._half_open) for message in self._drop(token)])

    def refuse(self, reply: A) -> Step[A, M]:
        """Refuse an invocation when its first piece arrives, without reading the piece."""
        return self._refuse(reply, self._replies.accept(reply, None))

    def _cut(
        self,
        handler: Handler,
        reply: A,
        caller: Caller,
        traceparent: str | None,
        piece: bytes,
        more: NeedMoreBytes,
        now_s: float,
    ) -> Step[A, M]:
        end_s = now_s + self._limits.half_open_lifetime_s
        half_open = HalfOpen(handler, reply, caller, traceparent, piece, end_s)
        half_open.need(more)
        token = self._new_token()
        if not self._hold(token, half_open, now_s):
            return self.refuse(reply)
        # The invocation is registered before the handshake is sent, because the next piece may arrive immediately.
        return Step(self._replies.accept(reply, token))

    def _hold(self, token: str, half_open: HalfOpen[A], now_s: float) -> bool:
        limits = self._limits
        held_bytes = self._half_open_bytes + len(half_open)
        if self._closed or len(self._half_open) >= limits.half_open_max or held_bytes > limits.half_open_bytes_max:
            return False
        half_open.deadline_s = min(now_s + limits.half_open_timeout_s, half_open.end_s)
        self._half_open[token] = half_open
        self._half_open_bytes = held_bytes
        return True

    def _drop(self, token: str) -> list[M]:
        half_open = self._half_open.pop(token)
        self._half_open_bytes -= len(half_open)
        return self._replies.end(half_open.reply)

    def _answer(self, reply: A, answer: bytes | Pending, traceparent: str | None, sends: list[M]) -> Step[A, M]:
        if isinstance(answer, bytes):
            return Step(self._result(reply, answer, sends))
        if self._waiting >= self._limits.waiting_max:
            drop_answer(answer.answer)
            return self._refuse(reply, sends)
        self._waiting += 1
        return Step(sends, Waiting(reply, traceparent, answer))

    def _result(self, reply: A, result: bytes, sends: list[M]) -> list[M]:
        self.counts.answered += 1
        if result:
            sends += self._replies.result(reply, result)
        sends += self._replies.end(reply)
        return sends

    def _refuse(self, reply: A, sends: list[M]) -> Step[A, M]:
        self.counts.refused += 1
        return Step([*sends, *self._replies.end(reply)])

    def _fail(self, reply: A, error: Exception, traceparent: str | None, sends: list[M]) -> Step[A, M]:
        if isinstance(error, DecodeError):
            self.counts.damaged += 1
        else:
            self.counts.failed += 1
        return Step([*sends, *self._replies.end(reply)], failure=InvocationFailure(error, traceparent))
